"""Gradient boosting on the same encoded rows: what any multi-task network on a table should be held against."""

from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from multigate.batch import BagIds, Batch, Layout, TaskColumn
from multigate.errors import MultigateError

Floats = NDArray[np.float64]

CATEGORIES = 254
"""Values of a category kept apart, all others together: scikit-learn's trees take 255."""
ITEMS = 32
"""Items of a bag with a column of their own."""
MISSING = 1
UNSEEN_CLASS = -30.0
"""Logit of a class without training rows."""

SETTINGS = {"learning_rate": 0.1, "max_iter": 400, "max_leaf_nodes": 31, "min_samples_leaf": 20, "n_iter_no_change": 20}
"""Fixed for every table and task: a baseline is not tuned where the networks are not."""


class Boosted(NamedTuple):
    """Outputs of each task by name: logits (R,) of a binary one, encoded label (R,) of a regression, logits (R, K) of
    a multiclass one; ``Encoder.decode`` gives a regression's own unit. ``test`` is empty without test rows."""  # fmt: skip

    valid: dict[str, Floats]
    test: dict[str, Floats]
    trees: dict[str, int]
    """Boosting rounds of each task, after early stopping."""


def available() -> bool:
    """Whether scikit-learn, the extra ``boost``, is installed."""
    return find_spec("sklearn") is not None


def boosting_baseline(
    layout: Layout, train: Batch, valid: Batch, test: Batch | None = None, seed: int = 0, max_rows: int = 1_000_000
) -> Boosted:
    """One histogram gradient boosting a task on all rows where its label is known, stopped early on the valid rows.

    Tasks with ``given`` learn p(task) itself on every row, those with ``where`` only on its rows: the label masks
    say so. Works in memory, 8 bytes a cell, on at most ``max_rows`` training rows drawn at random. Numbers are read
    as encoded (trees see only their order), categories by training frequency: the 254 most frequent, the rest
    together beside their count; bags as their number of items and which of the 32 most frequent they hold.
    Raises ``MultigateError`` without scikit-learn.
    """
    if not available():
        raise MultigateError(
            "the gradient-boosting baseline wants scikit-learn, found none; install it: pip install 'multigate[boost]'"
        )
    rows = _sample(train.rows, max_rows, seed)
    columns = _Columns(layout, train)
    read = [columns.read(train)[rows], columns.read(valid), *([] if test is None else [columns.read(test)])]
    boosted = Boosted({}, {}, {})
    for at, task in enumerate(layout.tasks):
        known = train.known[:, at].numpy()[rows]
        labels = train.labels[:, at].numpy()[rows][known]
        weights = train.weights[:, at].numpy()[rows][known]
        held = valid.known[:, at].numpy()
        stop_on = (read[1][held], valid.labels[:, at].numpy()[held], valid.weights[:, at].numpy()[held])
        model = _fit(task, columns.categorical, (read[0][known], labels, weights), stop_on, seed)
        boosted.trees[task.name] = 0 if model is None else int(model.n_iter_)
        for outputs, x in zip((boosted.valid, boosted.test), read[1:], strict=False):
            outputs[task.name] = _outputs(task, model, labels, x)
    return boosted


_Rows = tuple[Floats, NDArray[np.float32], NDArray[np.float32]]
"""Columns (R, F), labels (R,) and weights (R,)."""


def _fit(task: TaskColumn, categorical: list[bool], train: _Rows, valid: _Rows, seed: int) -> Any:
    """The fitted model; None where there is nothing to tell apart."""
    from sklearn import ensemble

    x, labels, weights = train
    classes = np.unique(labels)
    if len(classes) < 2 or not any(np.nanmin(c) < np.nanmax(c) for c in x.T if not np.isnan(c).all()):
        return None
    kind = (
        ensemble.HistGradientBoostingRegressor if task.kind == "regression" else ensemble.HistGradientBoostingClassifier
    )
    model = kind(**SETTINGS, early_stopping=True, categorical_features=categorical, random_state=seed)
    seen = np.isin(valid[1], classes) if task.kind != "regression" else np.ones(len(valid[1]), dtype=np.bool_)
    seen &= valid[2] > 0
    if not seen.any() or not _takes_valid_rows(kind):
        return model.fit(x, labels, weights)
    return model.fit(x, labels, weights, X_val=valid[0][seen], y_val=valid[1][seen], sample_weight_val=valid[2][seen])


def _takes_valid_rows(kind: Any) -> bool:
    """Before scikit-learn 1.7 a tenth of the training rows stands in for the valid ones."""
    import inspect

    return "X_val" in inspect.signature(kind.fit).parameters


def _outputs(task: TaskColumn, model: Any, labels: NDArray[np.float32], x: Floats) -> Floats:
    """What the model says of the rows (R, F), (R,) or (R, K); without a model what the training rows say of all."""
    if task.kind == "regression":
        return model.predict(x) if model is not None else np.full(len(x), labels.mean() if len(labels) else 0.0)
    if task.kind == "binary":
        if model is not None:
            return model.decision_function(x)
        rate = (labels.sum() + 0.5) / (len(labels) + 1)
        return np.full(len(x), np.log(rate / (1 - rate)))
    logits = np.full((len(x), task.outputs), UNSEEN_CLASS)
    classes, counts = np.unique(labels.astype(np.intp), return_counts=True)
    if model is None:
        logits[:, classes] = np.log(counts / counts.sum()) if len(classes) else UNSEEN_CLASS
        return logits
    found = model.decision_function(x)
    found = found if found.ndim == 2 else np.stack([np.zeros(len(x)), found], axis=1)  # scikit-learn's two-class form
    logits[:, classes] = found - found.max(axis=1, keepdims=True)
    return logits


class _Columns:
    """How encoded rows become columns for trees, from the training rows."""

    def __init__(self, layout: Layout, train: Batch) -> None:
        numbers = {column.feature for column in layout.numbers}
        # A number's quantile bin tells a tree nothing that the number does not.
        self.ids = [at for at, column in enumerate(layout.categories) if column.feature not in numbers]
        self.codes: list[NDArray[np.float64]] = []
        self.counts: list[NDArray[np.float64] | None] = []
        for at in self.ids:
            found = np.bincount(train.categories[:, at].numpy(), minlength=layout.tables[layout.categories[at].table])
            self.codes.append(np.minimum(_ranks(found), CATEGORIES).astype(np.float64))
            self.counts.append(np.log1p(found) if np.count_nonzero(found) > CATEGORIES else None)
        self.items = []
        for bag, column in zip(train.bags, layout.bags, strict=True):
            found = np.bincount(bag.values.numpy(), minlength=layout.tables[column.table])
            found[MISSING] = 0
            self.items.append(np.where(found > 0, np.minimum(_ranks(found), ITEMS), ITEMS))
        plain = len(layout.numbers) + sum(one is not None for one in self.counts) + len(self.items) * (1 + ITEMS)
        self.categorical = [False] * plain + [True] * len(self.ids)

    def read(self, batch: Batch) -> Floats:
        """(R, F) float64: numbers, counts of categories, bags, codes of categories."""
        x = np.empty((batch.rows, len(self.categorical)))
        end = batch.numbers.shape[1]
        x[:, :end] = batch.numbers.numpy()
        ids = batch.categories.numpy()
        for at, counts in zip(self.ids, self.counts, strict=True):
            if counts is not None:
                x[:, end] = counts[ids[:, at]]
                end += 1
        for bag, items in zip(batch.bags, self.items, strict=True):
            _read_bag(bag, items, x[:, end : end + 1 + ITEMS])
            end += 1 + ITEMS
        for at, codes in zip(self.ids, self.codes, strict=True):
            x[:, end] = codes[ids[:, at]]
            end += 1
        return x


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


def _sample(rows: int, most: int, seed: int) -> NDArray[np.int64] | slice:
    """Rows to train on, in order."""
    if rows <= most:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
