"""A batch: rows of a table as tensors, and the layout that says what their columns are."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from multigate.options import Options


class BagIds(NamedTuple):
    """One bag feature: ids of all rows in order; row r owns ``values[offsets[r]:offsets[r + 1]]``.

    Shapes: values (V,), offsets (R + 1,).
    """

    values: Tensor
    offsets: Tensor


class Batch(NamedTuple):
    """R rows. N number columns, C id columns, T tasks.

    Shapes: numbers (R, N) float32, NaN where missing; categories (R, C) int32; one ``BagIds`` per bag;
    labels (R, T) float32 (class index for multiclass, transformed target for regression, 0 where unknown);
    known (R, T) bool; weights (R, T) float32; groups (R,) int64 hash of the group column (0 without one).
    Without labels (prediction) T is 0.
    """

    numbers: Tensor
    categories: Tensor
    bags: tuple[BagIds, ...]
    labels: Tensor
    known: Tensor
    weights: Tensor
    groups: Tensor

    @property
    def rows(self) -> int:
        return self.numbers.shape[0]


class NumberColumn(Options):
    """A column of ``Batch.numbers``."""

    feature: str
    embedding: str = "none"
    """none, piecewise or periodic (``bins`` embeds an id column instead)."""
    edges: tuple[float, ...] = ()
    """Quantiles of the encoded column on the training rows, increasing: the knots of a piecewise embedding."""
    dim: int | None = None
    use: str = "shared"
    """That of the feature: shared, gate or bias:<task>."""
    of_vector: bool = False
    """Whether it is one of a vector's."""
    flag: str | None = ""
    """None has no flag for being missing; empty has its own; a name has one with the neighbours of that name."""


class IdColumn(Options):
    """A column of ``Batch.categories``, or a bag: ids into one embedding table."""

    feature: str
    table: str
    dim: int | None = None
    use: str = "shared"


class TaskColumn(Options):
    """A column of ``Batch.labels``, with what the training rows say of it."""

    name: str
    kind: str
    outputs: int = 1
    """Outputs of the tower: the number of classes, else 1."""
    known_rate: float = 1.0
    """Share of training rows with a known label, at least a tiny positive number."""
    mean: float = 0.0
    """Mean of the known encoded labels, by their weights: the base rate of a binary task."""
    class_rates: tuple[float, ...] = ()
    """Of each class, by the labels' weights (multiclass only)."""


class Layout(Options):
    """What a model must know of the encoded columns."""

    numbers: tuple[NumberColumn, ...]
    categories: tuple[IdColumn, ...]
    bags: tuple[IdColumn, ...]
    tables: dict[str, int]
    """Rows of each embedding table, the ids 0 (unseen) and 1 (missing) included."""
    tasks: tuple[TaskColumn, ...]

    @property
    def columns(self) -> tuple[NumberColumn | IdColumn, ...]:
        """Of numbers, categories and bags."""
        return (*self.numbers, *self.categories, *self.bags)


def output_columns(tasks: Sequence[TaskColumn]) -> list[tuple[int, int]]:
    """For each task the half-open range of its columns among the O outputs."""
    ends = [sum(task.outputs for task in tasks[: i + 1]) for i in range(len(tasks))]
    return [(end - task.outputs, end) for task, end in zip(tasks, ends, strict=True)]
