"""Gradient boosting on the same encoded rows: what any multi-task network on a table should be held against."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from multigate.batch import BagIds, Batch, IdColumn, Layout, NumberColumn, TaskColumn
from multigate.data.rows import pick
from multigate.data.vocabulary import MISSING
from multigate.errors import MultigateError
from multigate.schema import BIAS

Floats = NDArray[np.float64]

CATEGORIES = 254
"""Values of a category kept apart, all others together: scikit-learn's trees take 255."""
ITEMS = 32
"""Items of a bag with a column of their own."""
UNSEEN_CLASS = -30.0
"""Logit of a class without training rows."""

SETTINGS = {
    "learning_rate": 0.1,
    "max_iter": 400,
    "max_leaf_nodes": 31,
    "min_samples_leaf": 20,
    "l2_regularization": 1.0,  # without it a Newton step for labels of rate p is up to 1 / p: rare ones diverge
    "n_iter_no_change": 20,
}
"""Of every table and task, unless told otherwise: a baseline is not tuned where the networks are not."""


class Boosted(NamedTuple):
    """Outputs by task, and by conditional ("buy|click"), on the valid rows and, where there are some, the test rows.

    Logits (R,) of a binary task, logits (R, K) of a multiclass one, encoded labels (R,) of a regression
    (``Encoder.decode`` gives them in the label's own unit).
    """

    valid: dict[str, Floats]
    test: dict[str, Floats]
    trees: dict[str, int]
    """Boosting rounds of each task and conditional, after early stopping."""


def available() -> bool:
    """Whether scikit-learn, the extra ``boost``, is installed."""
    return find_spec("sklearn") is not None


def boosting_baseline(
    layout: Layout,
    train: Batch,
    valid: Batch,
    test: Batch | None = None,
    seed: int = 0,
    *,
    parents: Sequence[int | None] = (),
    max_rows: int = 1_000_000,
    settings: Mapping[str, Any] | None = None,
) -> Boosted:
    """One histogram gradient boosting a task on all rows where its label is known, stopped early on the valid rows.

    Tasks with ``given`` learn p(task) itself on every row, those with ``where`` only on its rows: the label masks
    say so. ``parents``, those of ``Schema``, ask for conditionals too: p(task | parent), learnt on the rows where the
    parent is 1, with an output for every row. Works in memory, 8 bytes a cell, on at most ``max_rows`` training rows
    drawn at random. Weights are relative. Numbers are read as encoded (trees see only their order), categories by
    training frequency: the 254 most frequent, the rest together beside their count; bags as their number of items and
    which of the 32 most frequent they hold. Columns that only bias a task are left out, as predictions of a model are
    made without them. Raises ``MultigateError`` without scikit-learn.
    """
    if not available():
        raise MultigateError(
            "the gradient-boosting baseline wants scikit-learn, found none; install it: pip install 'multigate[boost]'"
        )
    if train.rows > max_rows:
        drawn = np.random.default_rng(seed).choice(train.rows, max_rows, replace=False)
        train = pick(train, torch.from_numpy(np.sort(drawn)))
    columns = _Columns(layout, train)
    x_train, x_valid = columns.read(train), columns.read(valid)
    x_test = None if test is None else columns.read(test)
    boosted = Boosted({}, {}, {})
    wanted: list[tuple[int, int | None]] = [(at, None) for at in range(len(layout.tasks))]
    wanted += [(at, parent) for at, parent in enumerate(parents) if parent is not None]
    for at, parent in wanted:
        task = layout.tasks[at]
        name = task.name if parent is None else f"{task.name}|{layout.tasks[parent].name}"
        fit_on = _known(train, x_train, at, parent)
        model = _fit(task, columns.categorical, fit_on, _known(valid, x_valid, at, parent), seed, settings or SETTINGS)
        boosted.trees[name] = 0 if model is None else int(model.n_iter_)
        boosted.valid[name] = _outputs(task, model, fit_on.labels, x_valid)
        if x_test is not None:
            boosted.test[name] = _outputs(task, model, fit_on.labels, x_test)
    return boosted


class _Rows(NamedTuple):
    """Rows to learn a task from: columns (R, F), labels (R,), weights (R,)."""

    x: Floats
    labels: NDArray[np.float32]
    weights: NDArray[np.float32]


def _known(batch: Batch, x: Floats, task: int, parent: int | None) -> _Rows:
    """Where the label is known; of a conditional, where the parent is 1 besides."""
    known = batch.known[:, task].numpy()
    if parent is not None:
        known = known & (batch.known[:, parent] & (batch.labels[:, parent] == 1)).numpy()
    return _Rows(x[known], batch.labels[:, task].numpy()[known], batch.weights[:, task].numpy()[known])


def _fit(
    task: TaskColumn, categorical: list[bool], train: _Rows, valid: _Rows, seed: int, settings: Mapping[str, Any]
) -> Any:
    """The fitted model; None where training labels are all the same."""
    from sklearn import ensemble

    found = np.unique(train.labels)
    if len(found) < 2:
        return None
    # scikit-learn cannot bin a column without a value, and puts into no leaf what so few rows have
    few = np.count_nonzero(~np.isnan(train.x), axis=0) < settings.get("min_samples_leaf", 20)
    train.x[:, few] = 0.0
    # scikit-learn's least hessian of a split is absolute: weights count as rows do, 1 in the mean
    size = float(train.weights.mean(dtype=np.float64)) or 1.0
    train, valid = (rows._replace(weights=rows.weights / size) for rows in (train, valid))
    classifies = task.kind != "regression"
    held = (valid.weights > 0) & (np.isin(valid.labels, found) if classifies else True)
    kind = ensemble.HistGradientBoostingClassifier if classifies else ensemble.HistGradientBoostingRegressor
    model = kind(
        **settings, early_stopping=bool(held.any()), categorical_features=np.array(categorical), random_state=seed
    )
    if not held.any():
        return model.fit(*train)
    x, labels, weights = (one[held] for one in valid)
    return model.fit(*train, X_val=x, y_val=labels, sample_weight_val=weights)


def _outputs(task: TaskColumn, model: Any, labels: NDArray[np.float32], x: Floats) -> Floats:
    """What the model says of the rows (R, F), (R,) or (R, K); without a model what the training labels say of all."""
    if task.kind == "multiclass":
        return _class_logits(task.outputs, model, labels, x)
    if model is not None:
        outputs: Floats = model.decision_function(x) if task.kind == "binary" else model.predict(x)
        return outputs
    if task.kind == "binary":
        rate = (labels.sum(dtype=np.float64) + 0.5) / (len(labels) + 1)
        return np.full(len(x), np.log(rate / (1 - rate)))
    return np.full(len(x), labels.mean(dtype=np.float64) if len(labels) else 0.0)


def _class_logits(classes: int, model: Any, labels: NDArray[np.float32], x: Floats) -> Floats:
    """(R, K): columns of classes without training labels are ``UNSEEN_CLASS`` below the largest."""
    logits = np.full((len(x), classes), UNSEEN_CLASS)
    found = np.zeros((len(x), 1)) if model is None else model.decision_function(x)
    if found.ndim == 1:  # scikit-learn's form of two classes
        found = np.stack([np.zeros(len(x)), found], axis=1)
    seen = np.unique(labels.astype(np.intp))
    if len(seen):
        logits[:, seen] = found - found.max(axis=1, keepdims=True)
    return logits


class _Columns:
    """How encoded rows become columns for trees, from the training rows."""

    def __init__(self, layout: Layout, train: Batch) -> None:
        numbers = {column.feature for column in layout.numbers}
        # Ids made from a number, its quantile bin and its value, are for networks; trees cut the number itself.
        made = numbers | {f"{name}:value" for name in numbers}
        self.numbers, self.bags = _told(layout.numbers), _told(layout.bags)
        self.ids = [at for at in _told(layout.categories) if layout.categories[at].feature not in made]
        self.codes: list[NDArray[np.float64]] = []
        self.counts: list[NDArray[np.float64] | None] = []
        for at in self.ids:
            found = np.bincount(train.categories[:, at].numpy(), minlength=layout.tables[layout.categories[at].table])
            self.codes.append(np.minimum(_ranks(found), CATEGORIES).astype(np.float64))
            self.counts.append(np.log1p(found) if np.count_nonzero(found) > CATEGORIES else None)
        self.items = []
        for at in self.bags:
            found = np.bincount(train.bags[at].values.numpy(), minlength=layout.tables[layout.bags[at].table])
            found[MISSING] = 0
            self.items.append(np.where(found > 0, np.minimum(_ranks(found), ITEMS), ITEMS))
        plain = len(self.numbers) + sum(one is not None for one in self.counts) + len(self.items) * (1 + ITEMS)
        self.categorical = [False] * plain + [True] * len(self.ids)

    def read(self, batch: Batch) -> Floats:
        """(R, F) float64: numbers, counts of categories, bags, codes of categories."""
        x = np.empty((batch.rows, len(self.categorical)))
        end = len(self.numbers)
        x[:, :end] = batch.numbers.numpy()[:, self.numbers]
        ids = batch.categories.numpy()
        for at, counts in zip(self.ids, self.counts, strict=True):
            if counts is not None:
                x[:, end] = counts[ids[:, at]]
                end += 1
        for at, items in zip(self.bags, self.items, strict=True):
            _read_bag(batch.bags[at], items, x[:, end : end + 1 + ITEMS])
            end += 1 + ITEMS
        for at, codes in zip(self.ids, self.codes, strict=True):
            x[:, end] = codes[ids[:, at]]
            end += 1
        return x


def _told(columns: Sequence[NumberColumn | IdColumn]) -> list[int]:
    """Places of the columns that predictions may read."""
    return [at for at, column in enumerate(columns) if not column.use.startswith(BIAS)]


def _read_bag(bag: BagIds, items: NDArray[np.int64], x: Floats) -> None:
    """Fill x (R, 1 + ITEMS) with the number of items and 1 for each frequent item held."""
    values, offsets = bag.values.numpy(), bag.offsets.numpy()
    rows = np.arange(len(x)).repeat(np.diff(offsets))
    x[:] = 0
    x[:, 0] = np.bincount(rows[values != MISSING], minlength=len(x))
    frequent = items[values] < ITEMS
    x[rows[frequent], 1 + items[values[frequent]]] = 1


def _ranks(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Place of each id by falling count, ties by id."""
    ranks = np.empty(len(counts), dtype=np.int64)
    ranks[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return ranks
