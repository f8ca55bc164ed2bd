"""Rows of a validation or test part that are training rows too, beyond what chance has."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from multigate.batch import Batch
from multigate.data.prepared import Prepared
from multigate.data.rows import pick
from multigate.data.shards import Part

SHARDS, ROWS = 2, 10_000
"""Shards of each part, and rows of these, that are looked at (of training shards all): some hundredths of a second."""
STEP = 4096
"""Rows that are hashed at a time: they stay in the processor's cache."""
LEAST, DEVIATIONS = 0.05, 5.0
"""Share of copies beyond chance that is told, and by how many standard deviations it must stand out."""
AGREE, PAIRS, KINDS = 0.95, 20, 0.1
"""Training rows are copies of each other where of the pairs with the same features a larger share than this have the
same label too, for each task with so many pairs, and where there are so many kinds of rows for each row."""

Hashes = NDArray[np.uint64]


def copies(prepared: Prepared) -> dict[str, float]:
    """By part, what share of its rows are copies of training rows, labels included, beyond those that chance has.

    Rows may be alike by nature, where columns have few values: then a training row has as many like it among the others
    as a new row of the same source has. So the share of such training rows is what chance has, and only parts with far
    more are told. Training rows that are copies of each other are no chance: a table that holds rows twice has some on
    both sides of its split.
    """
    shards = _some_shards(prepared.train)
    features, labels = (np.concatenate([of(shard) for shard in shards]) for of in (_features, _labels))
    known = np.sort(features + _of_labels(labels))
    looked_at = len(known) / prepared.train.rows
    by_chance = _times(known, _some_rows(prepared.train)) > 1
    if _are_copies(features, labels):
        by_chance[:] = False
    found = {}
    for name in sorted(prepared.parts.keys() - {"train"}):
        copied = _times(known, _some_rows(prepared.parts[name])) > 0
        beyond = copied.mean() - by_chance.mean()
        rate = np.concatenate((copied, by_chance)).mean()
        deviation = math.sqrt(rate * (1 - rate) * (1 / len(copied) + 1 / len(by_chance)))
        # copies of rows that were not looked at are as many in proportion
        share = float(min(1.0, beyond / looked_at))
        if share >= LEAST and beyond > DEVIATIONS * deviation:
            found[name] = share
    return found


def _are_copies(features: Hashes, labels: NDArray[np.float32]) -> bool:
    """Whether rows with the same features are one row several times, rather than alike as columns have few values.

    Labels (rows, tasks) tell: those of different rows differ now and then, if not of every task. A task's most frequent
    label is left aside, which rows share by chance.
    """
    order = np.argsort(features, kind="stable")
    alike = features[order][1:] == features[order][:-1]
    agree = []
    for column in labels[order].T:
        values, counts = np.unique(column, return_counts=True)
        rare = column != values[counts.argmax()]
        pairs = alike & (rare[1:] | rare[:-1])
        if np.count_nonzero(pairs) >= PAIRS:
            agree.append((column[1:] == column[:-1])[pairs].mean())
    kinds = len(features) - np.count_nonzero(alike)
    return bool(agree and kinds >= KINDS * len(features) and min(agree) > AGREE)


def _some_shards(part: Part) -> list[Batch]:
    return [part.shards[at] for at in _spread(len(part.shards), SHARDS)]


def _some_rows(part: Part) -> Hashes:
    """Of rows spread over the same shards."""
    shards = _some_shards(part)
    chosen = [torch.from_numpy(_spread(shard.rows, ROWS // len(shards))) for shard in shards]
    return np.concatenate([_hashes(pick(shard, rows)) for shard, rows in zip(shards, chosen, strict=True)])


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """At most so many places of ``count``, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def _times(known: Hashes, hashes: Hashes) -> NDArray[np.int64]:
    """How often each is among the known ones, which are sorted."""
    return np.searchsorted(known, hashes, "right") - np.searchsorted(known, hashes, "left")


def _hashes(rows: Batch) -> Hashes:
    """A number for each row: the same where all features, and labels that are known, are the same."""
    return _features(rows) + _of_labels(_labels(rows))


def _features(rows: Batch) -> Hashes:
    random = np.random.default_rng(0)
    total = _of_columns(random, rows.numbers, rows.categories)
    for bag in rows.bags:
        factor, other = _odd(random, 2)
        sums = np.zeros(len(bag.values) + 1, dtype=np.uint64)
        # squares, lest two bags be the same whose ids have one sum
        np.cumsum((bag.values.numpy().astype(np.uint64) + other) ** 2 * factor, out=sums[1:])
        total += np.diff(sums[bag.offsets.numpy()])
    return total


def _labels(rows: Batch) -> NDArray[np.float32]:
    """With infinity for unknown ones, which equals itself."""
    return np.asarray(torch.where(rows.known, rows.labels, torch.inf).numpy())


def _of_labels(labels: NDArray[np.float32]) -> Hashes:
    return _of_columns(np.random.default_rng(1), torch.from_numpy(labels))


def _of_columns(random: np.random.Generator, *tables: torch.Tensor) -> Hashes:
    total = np.zeros(len(tables[0]), dtype=np.uint64)
    for columns in tables:
        bits = columns.numpy().view(np.uint32)
        factors = _odd(random, bits.shape[1])
        for start in range(0, len(bits), STEP):
            total[start : start + STEP] += bits[start : start + STEP].astype(np.uint64) @ factors
    return total


def _odd(random: np.random.Generator, many: int) -> Hashes:
    return random.integers(1 << 63, size=many, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
