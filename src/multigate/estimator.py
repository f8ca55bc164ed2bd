"""Multi-task models as a scikit-learn estimator: ``train`` and a bundle behind ``fit`` and ``predict``."""
# ruff: noqa: N803, N806  (X is scikit-learn's name)

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from multigate.bundle import load
from multigate.data import arrow, cells
from multigate.data.files import open_table
from multigate.data.infer import infer_schema, infer_tasks
from multigate.data.meaning import FEW
from multigate.data.missingness import weights_of
from multigate.data.tasks import Tasks, read_tasks
from multigate.data.types import is_text
from multigate.errors import DataError, ExperimentError, MultigateError, nearest
from multigate.evaluate import Monitor, Scored, forward, scores, spaces
from multigate.experiment import Experiment, make_experiment
from multigate.options import explain
from multigate.schema import Feature, Schema, Task
from multigate.sharing import Structure, structure_named
from multigate.training.interrupts import Interrupted
from multigate.training.train import train

try:
    from scipy import sparse
    from sklearn.base import BaseEstimator, MultiOutputMixin
    from sklearn.utils import ClassifierTags, RegressorTags, check_array, check_consistent_length, check_random_state
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ModuleNotFoundError:
    raise MultigateError(
        "MultiTaskEstimator wants scikit-learn, found none; install it: pip install 'multigate[sklearn]'"
    ) from None

WEIGHT = "sample_weight passed to fit"
"""Column of the row weights, for tasks that name none of their own."""

OPTION = "sharing__"
"""Before the name of a structure's option among the estimator's parameters."""

Array = NDArray[Any]


class InputError(DataError, ValueError):
    """Rows or labels that cannot be fitted; scikit-learn's tools expect a ``ValueError``."""


class Target(NamedTuple):
    """What one task predicts, in the values that ``fit`` was given."""

    name: str
    classes: Array | None
    """(K,); None of a regression."""
    positive: int | None
    """Which of two classes p(task) is the probability of; None of other kinds."""

    def probabilities(self, predicted: Mapping[str, Array]) -> Array | None:
        """(R, K) float64, columns in the order of ``classes``; None of a regression."""
        if self.classes is None:
            return None
        if self.positive is None:
            named = [f"{self.name}={cells.text(one)}" for one in self.classes]
            found = np.stack([predicted[name].astype(np.float64) for name in named], axis=1)
            return found / found.sum(axis=1, keepdims=True)  # float32 sums to 1 only nearly
        p = predicted[self.name].astype(np.float64)
        return np.stack([p, 1 - p] if self.positive == 0 else [1 - p, p], axis=1)

    def values(self, predicted: Mapping[str, Array]) -> Array:
        """(R,): the most likely class, or the value of a regression as float64."""
        probabilities = self.probabilities(predicted)
        if self.classes is None or probabilities is None:
            return predicted[self.name].astype(np.float64)
        return self.classes[probabilities.argmax(axis=1)]


@contextmanager
def _value_errors() -> Iterator[None]:
    try:
        yield
    except (DataError, ExperimentError) as error:
        raise InputError(str(error)) from None


def _classifies(estimator: "MultiTaskEstimator") -> bool:
    if hasattr(estimator, "_targets"):
        return any(one.classes is not None for one in estimator._targets)
    return estimator.kind != "regressor"


class MultiTaskEstimator(MultiOutputMixin, BaseEstimator):  # type: ignore[misc]
    """A multi-task model of a table with scikit-learn's ``fit`` and ``predict``.

    ``X`` (R, F) is a pandas, polars or pyarrow table, a dict of lists, an array or a sparse matrix; strings, nulls, ids
    and times are read as in any table. ``y`` (R,) or (R, T) is a table or an array; NaN and None are unknown labels.

    Labels of two values are binary; text and at most 50 different whole numbers are classes; other numbers are a
    regression. ``kind`` makes all of them classes or numbers, ``tasks`` says more: a ``Task``, or text as in
    ``infer_schema``, for each column of ``y`` (for the columns they name where ``y`` is a table). ``features`` replaces
    what is inferred of ``X``, whose columns are called x0, x1, ... if they have no names. ``settings`` are changes of
    the experiment as after ``--set``: ``("embedding.dim=8", "patience=null")``.

    A share ``validation_fraction`` of the rows, drawn to hold labels like the rest, chooses the best weights and stops
    early; all rows do where it is 0 or too few to be scored. ``out`` keeps the run in a folder.
    """

    def __init__(
        self,
        sharing: str | Structure = "mmoe",
        *,
        tower: Sequence[int] = (32,),
        epochs: int = 12,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        balance: str = "fixed",
        kind: Literal["classifier", "regressor"] | None = None,
        tasks: Tasks | None = None,
        features: Sequence[Feature] | Mapping[str, Any] | None = None,
        settings: str | Sequence[str] = (),
        validation_fraction: float = 0.1,
        random_state: Any = 0,
        device: str = "auto",
        out: str | Path | None = None,
        verbose: bool = False,
    ) -> None:
        self.sharing = sharing
        self.tower = tower
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.balance = balance
        self.kind = kind
        self.tasks = tasks
        self.features = features
        self.settings = settings
        self.validation_fraction = validation_fraction
        self.random_state = random_state
        self.device = device
        self.out = out
        self.verbose = verbose

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """As scikit-learn's; ``deep`` has the options of the structure besides, as ``sharing__experts``."""
        found: dict[str, Any] = super().get_params(deep)
        structure = self._structure()
        if not deep or structure is None:
            return found
        options = [name for name in type(structure).model_fields if name != "structure"]
        return found | {f"{OPTION}{name}": getattr(structure, name) for name in options}

    def set_params(self, **params: Any) -> Self:
        """As scikit-learn's; ``sharing__experts=4`` changes an option of the structure."""
        options = {name.removeprefix(OPTION): params.pop(name) for name in list(params) if name.startswith(OPTION)}
        super().set_params(**params)
        if options:
            structure = self._structure()
            if structure is None:
                raise InputError(f"there is no structure {self.sharing!r} whose {', '.join(options)} could be set")
            self.sharing = structure.with_(**options)
        return self

    def _structure(self) -> Structure | None:
        if isinstance(self.sharing, str):
            return structure_named(self.sharing)
        return self.sharing if isinstance(self.sharing, Structure) else None

    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Train on ``X`` (R, F) and ``y`` (R,) or (R, T); rows of weight 0 are left out.

        Raises ``InputError``, a ``ValueError``, for rows, labels and parameters that cannot be fitted.
        """
        try:
            with _value_errors(), TemporaryDirectory() as temporary:
                rows, tasks = self._rows(X, y, sample_weight)
                schema = self._schema(rows, tasks)
                targets = tuple(_target(task, rows[task.source]) for task in schema.tasks)
                experiment = self._experiment(schema)
                parts = _parts(rows, schema.tasks, self.validation_fraction, experiment.seed)
                out = Path(temporary, "run") if self.out is None else self.out
                run = train(experiment, out, device=self.device, tables=parts, quiet=not self.verbose)
                self.bundle_ = load(run.folder, structures=[type(experiment.sharing)])
                self.history_ = run.history
        except Interrupted as stopped:
            raise KeyboardInterrupt(str(stopped)) from None  # a search would go on after any other error
        self.tasks_, self._targets = schema.tasks, targets
        self.n_iter_ = len(self.history_)
        return self

    def predict(self, X: Any) -> Array:
        """The most likely class or the value, (R,) of one task, else (R, T); of type object where types differ."""
        predicted = self._predicted(X)
        found = [one.values(predicted) for one in self._targets]
        if len(found) == 1:
            return found[0]
        if len({one.dtype.kind for one in found}) > 1:
            found = [one.astype(object) for one in found]
        return np.stack(found, axis=1)

    @available_if(_classifies)  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:
        """Probabilities (R, K) in the order of ``classes_``; of several tasks a list, with None for regressions."""
        predicted = self._predicted(X)
        found = [one.probabilities(predicted) for one in self._targets]
        return found[0] if len(found) == 1 else found

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Mean over the tasks of AUC (classes) and R² (numbers), each on the rows where its label is known."""
        check_is_fitted(self)
        bundle = self.bundle_
        with _value_errors():
            rows, _ = self._rows(X, y, sample_weight, fitting=False)
            batches = (batch for batch, _ in bundle.batches(rows, labels=True))
            scored = forward(bundle.model, batches, torch.device("cpu"))
        if sample_weight is not None:
            scored = _weighed(bundle.schema, scored, np.asarray(sample_weight, dtype=np.float64))
        return Monitor("mean", bundle.schema).value(scores(spaces(bundle.schema, bundle.encoder, scored)))

    @property
    def classes_(self) -> Any:
        """Classes (K,) in the type of the labels; of several tasks a list, with None for regressions."""
        if not hasattr(self, "_targets") or not _classifies(self):
            raise AttributeError(f"{type(self).__name__} has 'classes_' once it is fitted to labels that are classes")
        return self._targets[0].classes if len(self._targets) == 1 else [one.classes for one in self._targets]

    def _predicted(self, X: Any) -> dict[str, Array]:
        check_is_fitted(self)
        with _value_errors():
            return self.bundle_.predict(self._table(X, fitting=False))

    def _table(self, X: Any, *, fitting: bool) -> pa.Table:
        """The rows with one name per column, checked against those of ``fit``."""
        if sparse.issparse(X):
            X = X.toarray()
        elif isinstance(X, Mapping | pa.RecordBatch):  # whose names scikit-learn does not see
            X = _in_memory(X)
        if _is_table(X):
            columns = _in_memory(X).columns  # says what is wrong with a table before scikit-learn looks at its names
            validate_data(self, X, reset=fitting, skip_check_array=True)
        else:
            X = validate_data(self, _object_lists(X), reset=fitting, dtype=None, ensure_all_finite=False)
            columns = [_column(X[:, at], f"column {at} of X") for at in range(X.shape[1])]
        names = getattr(self, "feature_names_in_", None)
        return pa.table(columns, names=[f"x{at}" for at in range(len(columns))] if names is None else list(names))

    def _rows(self, X: Any, y: Any, sample_weight: Any, *, fitting: bool = True) -> tuple[pa.Table, tuple[Task, ...]]:
        """Features, weights and labels in one table, and the tasks as far as they are known before ``infer_schema``."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        rows = self._table(X, fitting=fitting)
        labels = _label_table(y, rows.column_names)
        check_consistent_length(rows, labels)
        tasks = self._declared(labels) if fitting else self.tasks_
        if not _is_table(y):
            if len(tasks) != labels.num_columns:
                raise InputError(f"y has {labels.num_columns} columns for {len(tasks)} tasks; give one for each")
            labels = labels.rename_columns([task.source for task in tasks])
        weights = pa.array(_check_sample_weight(sample_weight, rows, dtype=np.float64, ensure_non_negative=True))
        counted = pc.greater(weights, 0)
        rows, labels = rows.append_column(WEIGHT, weights).filter(counted), labels.filter(counted)
        for task in tasks:
            if task.source not in labels.column_names:
                raise InputError(
                    f"y has no column {task.source!r} for task {task.name!r}; "
                    f"{nearest(task.source, labels.column_names)}"
                )
        if fitting:
            named = None if sample_weight is None else WEIGHT  # weights would be left to make up for unknown labels
            tasks = tuple(_completed(task, labels, self.kind, named) for task in tasks)
        if not any(task.sample_weight == WEIGHT for task in tasks):
            rows = rows.drop_columns(WEIGHT)
        for name in dict.fromkeys(name for task in tasks for name in (task.source, task.sample_weight)):
            if name in labels.column_names and name in rows.column_names:
                raise InputError(f"column {name!r} is in X and in y; leave it out of X, or rename it in y")
            if name in labels.column_names:
                rows = rows.append_column(name, labels[name])
        return rows, tasks

    def _declared(self, labels: pa.Table) -> tuple[Task, ...]:
        if self.kind not in (None, "classifier", "regressor"):
            raise InputError(f"kind {self.kind!r}: wanted 'classifier', 'regressor' or None")
        if self.tasks is not None:
            return tuple(read_tasks(self.tasks))
        try:
            return tuple(Task.model_validate({"name": name}) for name in labels.column_names)
        except ValidationError as error:
            raise ExperimentError(f"{explain(error)}; rename the column of y, or name it in 'tasks'") from None

    def _schema(self, rows: pa.Table, tasks: Sequence[Task]) -> Schema:
        if self.features is None:
            return infer_schema(rows, tasks)
        features: Any = self.features if isinstance(self.features, Mapping) else tuple(self.features)
        return Schema(features=features, tasks=infer_tasks(rows, tasks))

    def _experiment(self, schema: Schema) -> Experiment:
        seed = self.random_state
        if not isinstance(seed, int | np.integer):
            seed = check_random_state(seed).randint(np.iinfo(np.int32).max)
        first, *others = schema.tasks
        # AUC is at its best as soon as the order is right, long before the classes are
        alone = not others and first.kind != "regression"
        values = {
            "schema": schema,
            "monitor": f"{first.name}/log_loss" if alone else "mean",
            "sharing": self.sharing,
            "tower": np.asarray(self.tower).tolist() if isinstance(self.tower, np.ndarray | range) else self.tower,
            "balance": self.balance,
            "optimizer": {"learning_rate": self.learning_rate},
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "seed": seed,
        }
        return make_experiment(values, self.settings, name=type(self).__name__)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.sparse = tags.input_tags.allow_nan = True
        kind = self.kind
        if hasattr(self, "_targets"):
            classes = {one.classes is not None for one in self._targets}
            kind = None if len(classes) > 1 else "classifier" if classes == {True} else "regressor"
        tags.estimator_type = kind
        tags.classifier_tags = ClassifierTags(multi_label=True) if _classifies(self) else None
        tags.regressor_tags = RegressorTags() if kind == "regressor" else None
        return tags


def _is_table(data: Any) -> bool:
    """Whether columns have names of their own: a data frame or a dict of lists, not an array."""
    return isinstance(data, Mapping) or hasattr(data, "columns")


def _in_memory(data: Any) -> pa.Table:
    source = open_table(data)
    for error in source.unreadable.values():
        raise error
    return pa.Table.from_batches(source.batches(), schema=source.schema)


def _listed(y: Any) -> Any:
    """A column that knows nulls as a list: in an array integers and booleans beside unknown ones would be floats."""
    if isinstance(y, pa.Array | pa.ChunkedArray):
        return y.to_pylist()
    if isinstance(getattr(y, "dtype", None), np.dtype):
        return y
    return list(y) if hasattr(y, "to_list") or hasattr(y, "isna") else y  # of polars, or a type of pandas' own


def _object_lists(data: Any) -> Any:
    """Lists as an array that keeps numbers beside text as they are."""
    return np.array(data, dtype=object) if isinstance(data, list | tuple) else data


def _column(values: Array, name: str) -> pa.Array:
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise TypeError(f"{name}: every argument must be a string, or every one a number ({error})") from None


def _label_table(y: Any, taken: Sequence[str]) -> pa.Table:
    """Label columns, named as in ``y`` or target, target_0, target_1, ...; where X has such a name, with more _."""
    if _is_table(y):
        return _in_memory(y)
    name = getattr(y, "name", None)
    array = check_array(_object_lists(_listed(y)), ensure_2d=False, dtype=None, ensure_all_finite=False, input_name="y")
    if array.ndim == 1 and isinstance(name, str) and name:
        return pa.table([_column(array, "y")], names=[name])
    own, names = "target", _numbered("target", array)
    while not set(names).isdisjoint(taken):
        own += "_"
        names = _numbered(own, array)
    columns = [array] if array.ndim == 1 else list(array.T)
    told = ["y"] if array.ndim == 1 else [f"column {at} of y" for at in range(len(columns))]
    return pa.table([_column(*one) for one in zip(columns, told, strict=True)], names=names)


def _numbered(name: str, array: Array) -> list[str]:
    """A name for each column of (R,) or (R, T)."""
    return [name] if array.ndim == 1 else [f"{name}_{at}" for at in range(array.shape[1])]


def _weighed(schema: Schema, scored: Scored, sample_weight: Array) -> Scored:
    """Rows that ``score`` weighs by (R,), less those of weight 0, where ``fit`` had no weights."""
    weights = weights_of(schema, scored.labels, scored.known, scored.weights).copy()
    plain = [task.sample_weight is None for task in schema.tasks]
    counted = sample_weight[sample_weight > 0]
    weights[:, plain] *= (counted / counted.max())[:, None]  # the largest as 1: float32 has no weights of 1e-60
    return scored._replace(weights=weights)


def _completed(task: Task, labels: pa.Table, kind: str | None, sample_weight: str | None) -> Task:
    """The task with a kind, and with the weights of ``fit``, if any, where it names none."""
    changes: dict[str, Any] = {} if task.sample_weight else {"sample_weight": sample_weight}
    if task.given is None:
        known = _known(labels[task.source], task.source)
        if len(known) == 1:
            raise InputError(
                f"column {task.source!r} of y holds one class, {known.tolist()[0]!r}; a label wants two values"
            )
        if not task.model_fields_set & {"kind", "classes", "positive"}:
            changes["kind"] = _kind(known, kind)
    return task.model_copy(update=changes)  # unlike with_, keeps what was declared apart from defaults


def _kind(values: Array, kind: str | None) -> str:
    """What labels of these different values are to be."""
    if kind == "classifier":
        check_classification_targets(np.tile(values, 2))  # it warns of labels that are there but once
    if kind == "regressor":
        return "regression"
    if len(values) <= 2:
        return "binary"
    if kind == "classifier" or values.dtype.kind not in "iuf":
        return "multiclass"
    return "multiclass" if len(values) <= FEW and bool((values == np.floor(values)).all()) else "regression"


def _known(column: pa.ChunkedArray, name: str) -> Array:
    """The different known labels (V,), sorted."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type) or pa.types.is_temporal(column.type):
        raise InputError(f"column {name!r} of y is {column.type}, but labels are numbers, text or booleans")
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    values = column.drop_null().unique()
    if is_text(values.type):
        values = values.filter(pc.not_equal(values, ""))
    found = np.array(values.to_pylist()) if is_text(values.type) else values.to_numpy(zero_copy_only=False)
    if found.dtype.kind == "f":
        found = np.unique(found[~np.isnan(found)] + 0.0)  # -0 is 0
        if np.isinf(found).any():
            raise InputError(f"column {name!r} of y contains infinity; leave such labels out, or make them NaN")
    return np.sort(found)


def _target(task: Task, column: pa.ChunkedArray) -> Target:
    """How a task's predictions are told in the values of its column."""
    if task.kind == "regression":
        return Target(task.name, None, None)
    known = _known(column, task.source)
    if task.kind == "multiclass":
        values = {cells.text(one): one for one in known}
        return Target(task.name, np.array([values.get(text, text) for text in task.classes]), None)
    if len(known) != 2 or isinstance(task.positive, tuple):
        return Target(task.name, np.array([0, 1]), 1)
    positive = {"1", "true"} if task.positive is None else {cells.text(task.positive)}
    return Target(task.name, known, int(cells.text(known[1]) in positive))


def _parts(rows: pa.Table, tasks: Sequence[Task], fraction: float, seed: int) -> dict[str, pa.Table]:
    """Training and validation rows: every so many-th in the order of the labels validates; all do where too few would.

    Systematic sampling: common and rare labels are in both parts in proportion, whatever the kinds of the tasks.
    """
    if not (isinstance(fraction, Real) and 0 <= fraction < 1):
        raise InputError(f"validation_fraction wants a number from 0 up to below 1, found {fraction!r}")
    roots = [task for task in tasks if task.given is None]
    ranks = sorted((_ranks(task, rows[task.source].combine_chunks()) for task in roots), key=_varieties)
    draws = np.random.default_rng(seed)
    order = np.lexsort((draws.random(rows.num_rows), *reversed(ranks)))
    count = round(fraction * rows.num_rows)
    held = np.zeros(rows.num_rows, dtype=bool)
    held[order[((np.arange(count) + draws.random()) * rows.num_rows / max(count, 1)).astype(np.intp)]] = True
    if all(_varieties(one[~held]) > 1 for one in ranks) and any(_varieties(one[held]) > 1 for one in ranks):
        return {"train": rows.filter(pa.array(~held)), "valid": rows.filter(pa.array(held))}
    return {"train": rows, "valid": rows}


def _ranks(task: Task, column: pa.Array) -> Array:
    """(R,) labels as numbers, NaN where unknown."""
    if task.kind == "regression":
        return arrow.numbers(column, task.source)
    index, values = arrow.codes(column, task.source)
    places: dict[str | None, float] = {None: np.nan}
    ranks = [places.setdefault(text, len(places)) for text in arrow.texts(values).to_pylist()]  # -0 and 0 are one text
    return np.array([*ranks, np.nan])[index]


def _varieties(ranks: Array) -> int:
    return len(np.unique(ranks[~np.isnan(ranks)]))
