"""Labels: raw columns as 0/1, classes or transformed targets, which of them are known, and what they weigh."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from multigate.batch import TaskColumn
from multigate.data import arrow, cells
from multigate.data.buffers import as_arrow
from multigate.data.missingness import Followed, chains
from multigate.data.numbers import Moments
from multigate.errors import DataError, nearest
from multigate.options import Options
from multigate.schema import Schema, Task

MOST_CLASSES = 10_000
MOST_WEIGHT, MOST_TARGET = 1e30, 1e15
"""Of a sample weight, of a target that is not standardised: sums of weights and squares of targets stay in float32."""
MOST_VALUES = 100
"""Of the labels that ``positive`` chooses among, where they are kept."""
MOST_VIOLATIONS = 0.001
"""Share of a child's positives that may lie under a parent of 0 in a strict funnel."""

Column = Callable[[str], pa.Array]
"""Gives a column of the table at hand by name, or raises ``DataError``."""


class LabelStats(Options):
    """What the training rows say of one task."""

    name: str
    known: int
    """Rows with a known label, after ``given`` filled and ``where`` took away."""
    positives: int = 0
    """Known labels that are 1 (binary only)."""
    violations: int = 0
    """Known labels of 1 under a ``given`` parent of 0."""
    mean: float = 0.0
    sd: float = 1.0
    """Of a regression target after ``log1p``; 0 and 1 where it is not standardised."""
    average: float = 0.0
    """Mean of the known encoded labels, by weight; of a binary task only if all of its chain are weighed alike."""
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    """Known rows of each class."""
    shares: tuple[float, ...] = ()
    """Of each class in the weights of known labels; none without weights."""
    followed: float | None = None
    """Share of the rows where the ``given`` parent is 1 that have a known label, which make up for the others there
    (``missingness``); none if that makes no difference."""
    beside: float | None = None
    """Then the share of the rows where the parent is unknown that have one; none if there are none."""
    values: tuple[str, ...] = ()
    """What labels are there where ``positive`` says which of them mean 1; empty where there are many."""

    @model_serializer(mode="wrap")
    def _without_what_is_rare(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        empty = {name for name in ("shares", "followed", "beside") if not getattr(self, name)}
        return {name: value for name, value in values.items() if name not in empty}


class LabelReader:
    """Reads label columns as far as that goes without statistics: 0/1, class index, log1p of a target."""

    def __init__(self, schema: Schema, classes: dict[str, tuple[str, ...]], growing: bool = False) -> None:
        self.schema, self._growing = schema, growing
        self.classes = {name: {value: at for at, value in enumerate(values)} for name, values in classes.items()}
        self.values: dict[str, set[str]] = {task.name: set() for task in schema.tasks if task.positive is not None}
        """Labels met so far of tasks with a ``positive``, at most one more than ``MOST_VALUES``."""
        index = {task.name: at for at, task in enumerate(schema.tasks)}
        self._where = [(at, index[task.where]) for at, task in enumerate(schema.tasks) if task.where is not None]
        parents = schema.parents()
        self.given = [(at, parent) for at in schema.order() if (parent := parents[at]) is not None]

    def read(self, rows: int, column: Column) -> tuple[np.ndarray, np.ndarray]:
        """Labels (T, R) float64, NaN where null; known (T, R) bool."""
        labels = np.empty((len(self.schema.tasks), rows))
        for at, task in enumerate(self.schema.tasks):
            labels[at] = self._label(task, column(task.source))
        for child, parent in self.given:
            labels[child, (labels[parent] == 0) & np.isnan(labels[child])] = 0.0
        known = ~np.isnan(labels)
        for task_at, parent in self._where:
            known[task_at] &= labels[parent] == 1
        return labels, known

    def weights(self, rows: int, column: Column) -> np.ndarray:
        """(R, T) float32: the tasks' sample weights, 1 without."""
        weights = np.ones((rows, len(self.schema.tasks)), dtype=np.float32)
        for at, task in enumerate(self.schema.tasks):
            if task.sample_weight is None:
                continue
            array = column(task.sample_weight)
            found = arrow.numbers(array, task.sample_weight)
            wrong = np.flatnonzero(~((found >= 0) & (found <= MOST_WEIGHT)))
            if len(wrong):
                row = int(wrong[0])
                wanted = f"a weight of 0 or more for task {task.name!r}"
                if found[row] > MOST_WEIGHT:
                    wanted = f"a weight of at most {MOST_WEIGHT:.0e} for task {task.name!r}"
                bad = cells.BadCell(wanted, array[row].as_py(), "mend it or leave the row out")
                raise bad.error(task.sample_weight, row)
            weights[:, at] = found
        return weights

    def _label(self, task: Task, array: pa.Array) -> np.ndarray:
        if task.kind == "regression":
            return self._target(task, array)
        read = self._binary(task) if task.kind == "binary" else self._class(task)
        index, answers = arrow.through_distinct(array, read, task.source)
        return np.array(answers, dtype=np.float64)[index]

    def _target(self, task: Task, array: pa.Array) -> np.ndarray:
        found = arrow.numbers(array, task.source)
        if task.transform != "log1p":
            return found
        low = np.flatnonzero(found <= -1)
        if len(low):
            bad = cells.BadCell("labels above -1 for log1p", float(found[low[0]]), "use transform: standard")
            raise bad.error(task.source, int(low[0]))
        return np.log1p(found)

    def _binary(self, task: Task) -> Callable[[Any], float]:
        if task.positive is None:
            plain = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}
            spell = cells.spelling(self.schema.types.get(task.source))

            def read(value: Any) -> float:
                found = cells.text(value)
                if found is not None and found not in plain and spell is not None:
                    found = spell(found)  # text among numbers, such as 1.0 or True
                if found is not None and found not in plain:
                    raise cells.BadCell(
                        f"0/1 or true/false as label of task {task.name!r}",
                        value,
                        "name the value that means 1 as 'positive', or set its kind",
                    )
                return math.nan if found is None else plain[found]

            return read
        positive, values = positives(task), self.values[task.name]

        def is_positive(value: Any) -> float:
            found = cells.text(value)
            if found is None:
                return math.nan
            if len(values) <= MOST_VALUES:
                values.add(found)
            return float(found in positive)

        return is_positive

    def _class(self, task: Task) -> Callable[[Any], float]:
        classes = self.classes[task.name]

        def read(value: Any) -> float:
            found = cells.text(value)
            if found is None:
                return math.nan
            if self._growing and found not in classes:
                if task.classes:
                    raise cells.BadCell(f"a class of task {task.name!r}", value, nearest(found, task.classes))
                if len(classes) == MOST_CLASSES:
                    raise DataError(
                        f"column {task.source!r}: wanted a few classes for task {task.name!r}, found more than "
                        f"{MOST_CLASSES:,} values; declare it a regression"
                    )
                classes[found] = len(classes)
            return float(classes.get(found, math.nan))

        return read


class LabelFit:
    """One pass over the labels of the training rows.

    With ``base``, what earlier rows said, classes and the scale of targets stay as they are there, and labels that
    are all the same are taken as they come.
    """

    def __init__(self, schema: Schema, base: tuple[LabelStats, ...] | None = None) -> None:
        declared = {task.name: task.classes for task in schema.tasks if task.kind == "multiclass"}
        if base is not None:
            declared = {one.name: one.classes for one in base if one.name in declared}
        self.schema, self._base = schema, base
        self._reader = LabelReader(schema, declared, growing=base is None)
        self._violations = np.zeros(len(schema.tasks), dtype=np.int64)
        self._followed = Followed(schema)
        self._weight = np.zeros(len(schema.tasks))
        self._moments = Moments(len(schema.tasks))
        self._weighed = Moments(2 * len(schema.tasks))
        """Of the weights of known labels, and of these times the labels; of tasks whose means go by weight."""
        self._by_weight = _means_by_weight(schema)
        self._counts: list[np.ndarray] = [np.zeros(2, dtype=np.int64) for _ in schema.tasks]
        self._shares: list[np.ndarray] = [np.zeros(2) for _ in schema.tasks]

    def add(self, rows: int, column: Column) -> None:
        labels, known = self._reader.read(rows, column)
        weights = self._reader.weights(rows, column).T
        self._weight += np.where(known, weights, 0.0).sum(axis=1)
        if any(self._by_weight):
            held = np.where(known, weights, np.nan)
            self._weighed.add(np.concatenate((held, held * labels)))
        self._followed.add(labels, known)
        for child, parent in self._reader.given:
            self._violations[child] += (known[child] & (labels[child] == 1) & (labels[parent] == 0)).sum()
        self._moments.add(np.where(known, labels, np.nan))
        for at, task in enumerate(self.schema.tasks):
            if task.kind != "regression":
                found = labels[at, known[at]].astype(np.int64)
                self._counts[at] = _added(self._counts[at], np.bincount(found))
                if task.kind == "multiclass" and task.sample_weight is not None:
                    self._shares[at] = _added(self._shares[at], np.bincount(found, weights=weights[at, known[at]]))

    def finish(self) -> tuple[LabelStats, ...]:
        """Statistics per task, or ``DataError`` where a task cannot be learnt from these rows."""
        count, mean, sd = self._moments.finish()
        of_weights, of_products = np.split(self._weighed.finish()[1], 2)
        average = np.divide(of_products, of_weights, out=mean.copy(), where=self._by_weight & (of_weights > 0))
        followed, beside = self._followed.shares(), self._followed.beside()
        made_up = average.copy()  # for the unknown; where a sample_weight does so itself, only their children read it
        for child, parent in chains(self.schema):
            if child in followed:
                made_up[child] = self._followed.mean(
                    child, made_up[parent], self._counts[child], self._violations[child]
                )
                if self.schema.tasks[child].sample_weight is None:
                    average[child] = made_up[child]
        return tuple(
            self._finish(at, task, int(count[at]), float(mean[at]), float(sd[at]), float(average[at])).with_(
                followed=followed.get(at), beside=beside.get(at)
            )
            for at, task in enumerate(self.schema.tasks)
        )

    def _finish(self, at: int, task: Task, known: int, mean: float, sd: float, average: float) -> LabelStats:
        self._check_known(at, task, known, sd)
        mean, average = (mean, average) if known else (0.0, 0.0)
        if task.kind == "binary":
            positives, violations = int(self._counts[at][1]), int(self._violations[at])
            self._check_funnel(task, violations, positives)
            return LabelStats(
                name=task.name, known=known, positives=positives, violations=violations, average=average,
                values=self._values(at, task),
            )  # fmt: skip
        if task.kind == "multiclass":
            return self._of_classes(at, task, known)
        if self._base is not None:
            return self._base[at].with_(known=known)
        if task.transform == "none":
            if abs(mean) + sd > MOST_TARGET:
                raise cells.ColumnError(
                    task.source,
                    f"labels of task {task.name!r} are too large to be fitted as they are "
                    f"(mean {mean:.3g}, deviation {sd:.3g}); use transform: standard",
                )
            return LabelStats(name=task.name, known=known, average=average)
        return LabelStats(name=task.name, known=known, mean=mean, sd=sd, average=(average - mean) / sd)

    def _of_classes(self, at: int, task: Task, known: int) -> LabelStats:
        """Of a multiclass task: its classes, and the rows and the weight of each."""
        counts, index = self._counts[at], self._reader.classes[task.name]
        classes = tuple(index) if task.classes or self._base is not None else tuple(sorted(index))
        held = [int(counts[index[one]]) if index[one] < len(counts) else 0 for one in classes]
        average = sum(index * many for index, many in enumerate(held)) / max(known, 1)
        shares: tuple[float, ...] = ()
        if task.sample_weight is not None and known:
            of = self._shares[at] / self._shares[at].sum()
            # rounded, for sums depend a little on how the rows came
            shares = tuple(round(float(of[index[one]]), 12) if index[one] < len(of) else 0.0 for one in classes)
        return LabelStats(
            name=task.name, known=known, average=average, classes=classes, counts=tuple(held), shares=shares
        )

    def _check_known(self, at: int, task: Task, known: int, sd: float) -> None:
        """Raise ``ColumnError`` where there is nothing to learn: labels none or all alike, or without weight."""
        constant = sd == 0 if task.kind == "regression" else int((self._counts[at] > 0).sum()) < 2
        if self._base is None and (known == 0 or constant):
            clause = f" on the rows where {task.where!r} is 1" if task.where else ""
            wanted = "known values" if known == 0 else "different values"
            found = "none" if known == 0 else f"the same in all of them ({known:,})"
            if known == 0 and task.kind == "regression":
                found += " (infinities and numbers beyond 3.4e38 count as unknown)"
            advice = "check the column" + (" and 'positive'" if task.positive is not None else "")
            raise cells.ColumnError(
                task.source,
                f"wanted {wanted} of task {task.name!r} among the training rows{clause}, found {found}; {advice}, "
                "or leave the task out",
            )
        if known and task.sample_weight and self._weight[at] == 0:
            raise cells.ColumnError(
                task.sample_weight,
                f"wanted a weight above 0 on some training row with a label of task {task.name!r}, found none; "
                "correct the weights, or leave sample_weight out",
            )

    def _values(self, at: int, task: Task) -> tuple[str, ...]:
        """Labels there are, with those of earlier rows; empty where they are not kept."""
        found = self._reader.values.get(task.name, set())
        if self._base is not None:
            check_spelling(task, self._base[at].values, found)
            found = found | set(self._base[at].values) if self._base[at].values else set()
        return tuple(sorted(found)) if len(found) <= MOST_VALUES else ()

    def _check_funnel(self, task: Task, violations: int, positives: int) -> None:
        if self.schema.funnel == "loose" or violations <= MOST_VIOLATIONS * positives:
            return
        raise DataError(
            f"task {task.name!r} is given {task.given!r}, but {violations:,} of its {positives:,} labels of 1 "
            f"({violations / positives:.2%}) lie on rows where {task.given!r} is 0; correct the labels, or accept them "
            f"with funnel: loose"
        )


class Spelling:
    """Whether labels of one later table are spelled as those of the training rows were."""

    def __init__(self, schema: Schema, stats: Sequence[LabelStats]) -> None:
        self._open = [
            (task, one.values, set[str]()) for task, one in zip(schema.tasks, stats, strict=True) if one.values
        ]

    def add(self, column: Column) -> None:
        """Look at a batch, as long as nothing in it or before it was there in training."""
        for task, _, found in self._open:
            index, texts = arrow.distinct_texts(column(task.source), task.source)
            used = np.unique(index)
            texts = texts.take(as_arrow(used[used < len(texts)]))
            found.update(text for text in texts.to_pylist() if text is not None)
        self._open = [one for one in self._open if not _shared(*one) and len(one[2]) <= MOST_VALUES]

    def check(self) -> None:
        """Raise ``ColumnError`` where all labels of a task would count as 0 because they are spelled otherwise."""
        for task, values, found in self._open:
            check_spelling(task, values, found)


def check_spelling(task: Task, values: Sequence[str], found: set[str]) -> None:
    """Raise ``ColumnError`` where none of the labels found is among ``values``, those of training, if known."""
    if not values or not found or _shared(task, values, found):
        return
    there, here = (", ".join(map(cells.short, sorted(one)[:3])) + ", ..." * (len(one) > 3) for one in (values, found))
    raise cells.ColumnError(
        task.source,
        f"wanted labels of task {task.name!r} as the training rows have them ({there}), found {here}, "
        "which would all count as 0; write them as there",
    )


def _shared(task: Task, values: Sequence[str], found: set[str]) -> bool:
    return not found.isdisjoint(values) or not found.isdisjoint(positives(task))


def positives(task: Task) -> set[str | None]:
    """The labels that mean 1, as text."""
    wanted = task.positive if isinstance(task.positive, tuple) else (task.positive,)
    return {cells.text(value) for value in wanted}


def _added(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum of two vectors, the shorter one filled with zeros."""
    longer, shorter = (one, other) if len(one) > len(other) else (other, one)
    longer = longer.copy()
    longer[: len(shorter)] += shorter
    return longer


def _means_by_weight(schema: Schema) -> np.ndarray:
    """(T,) bool: tasks with a mean whose weights are a column, the same for all tasks ``given`` joins to them."""
    columns: dict[int, set[str | None]] = {}
    roots: dict[int, int] = {}
    parents = schema.parents()
    for at in schema.order():
        parent = parents[at]
        roots[at] = at if parent is None else roots[parent]
        columns.setdefault(roots[at], set()).add(schema.tasks[at].sample_weight)
    return np.array(
        [
            task.kind != "multiclass" and task.sample_weight is not None and len(columns[roots[at]]) == 1
            for at, task in enumerate(schema.tasks)
        ]
    )


class Labels:
    """Encodes the labels of any table as those of the training rows were."""

    def __init__(self, schema: Schema, rows: int, stats: tuple[LabelStats, ...]) -> None:
        self.schema, self.stats = schema, stats
        self._rows = rows
        self._reader = LabelReader(
            schema,
            {one.name: one.classes for one, task in zip(stats, schema.tasks, strict=True) if task.kind == "multiclass"},
        )
        self._mean = np.array([[one.mean] for one in stats])
        self._sd = np.array([[one.sd] for one in stats])

    def encode(self, rows: int, column: Column) -> tuple[Tensor, Tensor, Tensor]:
        """Labels (R, T) float32, known (R, T) bool, weights (R, T) float32."""
        labels, known = self._reader.read(rows, column)
        encoded = np.where(known, (labels - self._mean) / self._sd, 0.0).astype(np.float32)
        weights = self._reader.weights(rows, column)
        return rows_first(encoded), rows_first(known), torch.from_numpy(weights)

    def decode(self, task: int, values: NDArray[Any]) -> NDArray[Any]:
        """Encoded regression targets (any shape) in the label's own unit; other kinds as they are.

        Targets are float64: seconds since 1970 have ten digits, a float32 has seven.
        """
        if self.schema.tasks[task].kind != "regression":
            return values
        found = values.astype(np.float64) * self.stats[task].sd + self.stats[task].mean
        if self.schema.tasks[task].transform != "log1p":
            return found
        with np.errstate(over="ignore"):  # weights that went astray: the value is infinite
            return np.expm1(found)

    def layout(self) -> tuple[TaskColumn, ...]:
        """What a model must know of each task."""
        rates = [max(one.known, 1) / max(self._rows, 1) for one in self.stats]
        made_up = list(rates)  # with the rows that known labels speak for; see ``LabelFit.finish``
        for child, parent in chains(self.schema):
            if self.stats[child].followed is not None:
                beside = self.stats[child].beside or 0.0
                made_up[child] = (1 - beside) * made_up[parent] + beside
                if self.schema.tasks[child].sample_weight is None:
                    rates[child] = made_up[child]
        return tuple(
            TaskColumn(
                name=one.name,
                kind=task.kind,
                outputs=len(one.classes) if task.kind == "multiclass" else 1,
                known_rate=rate,
                mean=one.average,
                class_rates=one.shares or tuple(many / max(one.known, 1) for many in one.counts),
            )
            for one, task, rate in zip(self.stats, self.schema.tasks, rates, strict=True)
        )


TILE = 1 << 18
"""Cells that are turned at a time: they stay in the processor's cache."""


def rows_first(columns: Sequence[np.ndarray] | np.ndarray) -> Tensor:
    """K (at least one) columns (R,) -> (R, K), on one thread: beside other work torch's many are slower."""
    rows, many = len(columns[0]), max(64, TILE // len(columns))
    out = np.empty((rows, len(columns)), dtype=columns[0].dtype)
    # a few cells wider than needed: columns a power of two apart would fall on the same lines of the cache
    turned = np.empty((len(columns), min(many, rows) + 16), dtype=out.dtype)
    for start in range(0, rows, many):
        tile = turned[:, : min(many, rows - start)]
        for at, column in enumerate(columns):
            tile[at] = column[start : start + many]
        out[start : start + many] = tile.T
    return torch.from_numpy(out)
