"""Whom an expert serves: feature values that are over-represented among the rows that weigh it most."""

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multigate.analysis.gates import IDLE, LevelGates, dead_sources
from multigate.batch import Batch
from multigate.data.encoder import Encoder
from multigate.data.names import Words, feature_columns, range_words, raw_values
from multigate.data.numbers import bin_ids, quantile_edges
from multigate.evaluate import each_alone
from multigate.options import Options

SUPPORT = 50
SUPPORT_SHARE = 0.01
"""A value counts where at least so many rows, and this share of them, have it."""
LIFT = 1.1
"""Smaller over-representations are not worth telling, however sure."""
LEVEL = 0.05
"""Chance that any value of a model whose gates look at nothing would be told."""
MOST = 5
"""Values told of each source."""
BINS = 10
"""Ranges a number is cut into."""

Floats = NDArray[np.float64]


class Served(Options):
    """A feature value that the rows a source serves have more often than all rows."""

    level: int
    """Place of the level in the wiring."""
    source: str
    feature: str
    value: str
    share: float
    """Of the rows, each weighted by how much of the source its readers read ..."""
    overall: float
    """... and of all rows, each counting the same."""
    lift: float
    """The one over the other."""
    rows: int
    """Rows that have the value."""


class Column(NamedTuple):
    """Values that rows have: row ``rows[i]`` has the value ``ids[i]``, (V,) both; a row has a value at most once."""

    feature: str
    rows: NDArray[np.int64]
    ids: NDArray[np.int64]
    words: Words


def served_values(
    encoder: Encoder, batch: Batch, levels: Sequence[LevelGates], gates: Sequence[NDArray[np.float32]]
) -> tuple[Served, ...]:
    """For each source the values its rows have most more often, one a feature, from gates (R, readers, sources).

    A row weighs as much as all its readers together read of the source; a source that hardly anyone reads is left
    out. Told is a lift that is not chance: the mean weight of n of R rows, drawn without replacement, has the variance
    sd^2 / n (R - n) / (R - 1), and the bound is Bonferroni's for all values looked at, further out where weights are
    skewed, as they are of sharp gates (Cornish and Fisher 1938, its first term). Where the schema has a group, the mean
    of a value that several have is to be as clear from group to group, by Student's t.
    """
    columns = list(value_columns(encoder, batch))
    groups = each_alone(batch.groups.numpy()) if encoder.schema.group is not None else None
    found: list[Served] = []
    sources = sum(len(level.sources) for level in levels)
    for place, (level, gate) in enumerate(zip(levels, gates, strict=True)):
        idle = dead_sources(level, IDLE)
        weights = np.abs(gate).sum(axis=1, dtype=np.float64)  # (R, sources)
        for at, source in enumerate(level.sources):
            if at not in idle:
                found += _of_source(place, source, weights[:, at], columns, sources, groups)
    return tuple(found)


def value_columns(encoder: Encoder, batch: Batch) -> Iterator[Column]:
    """Values of every feature: categories, buckets, parts of times, items of bags, numbers as ranges of these rows."""
    every = np.arange(batch.rows)
    for columns in feature_columns(encoder):
        if columns.numbers:  # ranges: the ids that numbers may have are finer than one can read
            for at in columns.numbers:
                raw = raw_values(encoder.fitted.scales[at], batch.numbers[:, at].numpy())
                known = raw[~np.isnan(raw)]
                edges = quantile_edges(known, BINS) if len(known) else known
                name = encoder.layout.numbers[at].feature
                yield Column(name, every, bin_ids(raw, edges).astype(np.int64), range_words(edges.tolist()))
        elif columns.bags:
            values, offsets = (one.numpy().astype(np.int64) for one in batch.bags[columns.bags[0]])
            size = int(values.max(initial=0)) + 1
            once = np.unique(np.repeat(every, np.diff(offsets)) * size + values)
            yield Column(columns.feature.name, *np.divmod(once, size), columns.words[0])
        else:
            for at, words in zip(columns.categories, columns.words, strict=True):
                yield Column(columns.feature.name, every, batch.categories[:, at].numpy().astype(np.int64), words)


def _of_source(
    level: int,
    source: str,
    weights: Floats,
    columns: Sequence[Column],
    sources: int,
    groups: NDArray[np.int64] | None,
) -> list[Served]:
    """The clearest values of one source, from the weights (R,) of the rows."""
    rows, mean, sd = len(weights), weights.mean(), weights.std()
    if sd <= 1e-6 * mean:
        return []
    counts = [np.bincount(column.ids) for column in columns]
    kept = [np.flatnonzero(count >= max(SUPPORT, SUPPORT_SHARE * rows)) for count in counts]
    level_of_each = LEVEL / max(1, sum(map(len, kept)) * sources)
    bound = NormalDist().inv_cdf(1 - level_of_each)
    skew = max(0.0, float((((weights - mean) / sd) ** 3).mean()))
    found = []
    for column, count, values in zip(columns, counts, kept, strict=True):
        n = count[values]
        lift = np.bincount(column.ids, weights[column.rows])[values] / n / mean
        error = np.sqrt((rows - n) / (rows - 1) / n)  # of a mean, in standard deviations of a weight
        chance = (bound + skew * (bound**2 - 1) / 6 * error) * error * sd / mean
        clear = np.where((lift >= LIFT) & (lift - 1 > chance), lift, 0)
        if groups is not None:
            for at in np.flatnonzero(clear):
                its = column.rows[column.ids == values[at]]
                clear[at] *= _is_clear_between(weights[its] - mean, groups[its], level_of_each)
        if clear.any():
            best = int(clear.argmax())
            share = float(n[best] / rows)
            found.append(
                Served(
                    level=level, source=source, feature=column.feature, value=column.words(int(values[best])),
                    share=float(lift[best]) * share, overall=share, lift=float(lift[best]), rows=int(n[best]),
                )
            )  # fmt: skip
    return sorted(found, key=lambda one: -one.lift)[:MOST]


def _is_clear_between(above: Floats, groups: NDArray[np.int64], level: float) -> bool:
    """Whether the mean of rows (n,) is above 0 also where whole groups were drawn; that of one group is as it is."""
    from scipy.special import stdtrit

    _, of_row = np.unique(groups, return_inverse=True)
    many = int(of_row.max()) + 1
    if many == 1:
        return True
    off = np.bincount(of_row, above - above.mean())
    error = np.sqrt((off**2).sum() * many / (many - 1)) / len(above)
    return bool(above.mean() > stdtrit(many - 1, 1 - level) * error)
