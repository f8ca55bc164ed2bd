"""Rows with ids by Zipf's law and planted tasks, of any width and vocabulary.

Rank r of a column is drawn with probability near 1 / r, and ranks are dealt over the ids at random. On request every
id occurs (where there are as many rows), so that the vocabularies are as large as said. What tasks depend on is a
closed form of the ids, which needs no tables of effects: task k weighs two signals by the sides of an angle of k * 30
degrees.
"""

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa

import multigate as mg
from multigate.schema import Feature

SCRAMBLE = 7_368_787
"""A prime: rank times this, modulo the vocabulary, is the id."""
TURN = math.pi / 6
BASE = 0.0


class Law(NamedTuple):
    """What rows look like; ``vocabulary`` counts the ids of all columns together."""

    columns: int = 26
    vocabulary: int = 1_000_000
    numbers: int = 13
    tasks: int = 2

    @property
    def ids(self) -> int:
        """Of one column."""
        return max(2, self.vocabulary // max(self.columns, 1))

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(f"task_{k}" for k in range(self.tasks))


def draw(law: Law, rows: int, seed: int = 0, *, every_id: bool = False) -> pa.Table:
    """Rows as a table: ``id_0`` ... (int32), ``number_0`` ... (float32), and labels 0 or 1, ``task_0`` ...."""
    rng = np.random.default_rng([seed, rows])
    numbers = rng.standard_normal((rows, law.numbers), dtype=np.float32)
    ids = [_ids(law, rows, rng, every_id=every_id) for _ in range(law.columns)]
    straight, turned = _signals(law, ids, numbers)
    labels = {}
    for k, name in enumerate(law.task_names):
        logit = BASE + math.cos(k * TURN) * straight + math.sin(k * TURN) * turned
        labels[name] = pa.array((rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int8))
    columns = {f"id_{c}": pa.array(one) for c, one in enumerate(ids)}
    columns |= {f"number_{n}": pa.array(numbers[:, n]) for n in range(law.numbers)}
    return pa.table(columns | labels)


def schema(law: Law, buckets: int | None = None) -> mg.Schema:
    """Ids as categories, or hashed into ``buckets`` a column; numbers standardised and nothing else."""
    ids: list[Feature] = [
        mg.Category(f"id_{c}") if buckets is None else mg.Hashed(f"id_{c}", buckets=buckets) for c in range(law.columns)
    ]
    numbers: list[Feature] = [mg.Number(f"number_{n}", embedding="none") for n in range(law.numbers)]
    return mg.Schema(features=(*ids, *numbers), tasks=tuple(mg.Task(name) for name in law.task_names))


def _ids(law: Law, rows: int, rng: np.random.Generator, *, every_id: bool) -> np.ndarray:
    ranks = np.minimum((law.ids + 1.0) ** rng.random(rows), law.ids).astype(np.int64) - 1
    if every_id:
        many = min(rows, law.ids)
        ranks[rng.permutation(rows)[:many]] = np.arange(many)
    return (ranks * SCRAMBLE % law.ids).astype(np.int32)


def _signals(law: Law, ids: list[np.ndarray], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two signals (R,) with nothing in common, each of variance near 2: half by ids, half by numbers."""
    rng = np.random.default_rng(0)
    signals = []
    for _ in range(2):
        phases = rng.uniform(0, 2 * math.pi, law.columns)
        waves = [np.sin(one * rng.uniform(1, 2) * 1e3 + phase) for one, phase in zip(ids, phases, strict=True)]
        by_ids = sum(waves) * math.sqrt(2 / max(law.columns, 1)) if waves else np.zeros(len(numbers))
        weights = rng.standard_normal(law.numbers)
        by_numbers = numbers @ (weights / max(np.linalg.norm(weights), 1e-9)) if law.numbers else 0.0
        signals.append(by_ids + by_numbers)
    return signals[0], signals[1]
