"""A first schema for a table nobody has described yet: what each column most likely means, and what looks wrong."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from multigate.data import cells
from multigate.data.files import Source, open_table, type_name
from multigate.data.leaks import Target, leaks
from multigate.data.survey import Column, Survey, is_list, is_moment, is_number, is_scalar, is_text, survey
from multigate.errors import DataError, ExperimentError, nearest
from multigate.options import explain
from multigate.schema import Bag, Category, Feature, Hashed, Number, Schema, Task, Time, Value, Vector

FEW = 50
"""Whole numbers with at most so many different values are codes, unless their name says that they count something."""
HASHED = 100_000
"""Categories with more different values than this are hashed."""
MANY_ROWS = 1_000
"""Only in tables longer than this does a value of its own in every row say that a column is a key."""

_IDS = {
    "id",
    "ids",
    "uid",
    "uuid",
    "guid",
    "userid",
    "itemid",
    "pid",
    "sid",
    "sku",
    "code",
    "zip",
    "zipcode",
    "postcode",
}
_QUANTITIES = {
    *("age", "num", "count", "cnt", "amount", "amt", "qty", "quantity", "total", "sum", "avg", "mean", "rate", "ratio"),
    *("price", "cost", "fee", "wage", "income", "salary", "revenue", "spend", "balance", "gain", "gains", "loss"),
    *("losses", "dividends", "score", "percent", "pct", "width", "height", "length", "size", "distance", "duration"),
    *("seconds", "minutes", "hours", "days", "weeks", "months", "years", "views", "visits", "clicks", "population"),
    *("time", "latitude", "longitude", "lat", "lon", "temperature", "ms", "sec", "secs"),
}
_WHEN = {"time", "timestamp", "ts", "date", "datetime", "dt", "day", "at", "when"}
_NOT_WHEN = {"birth", "birthday", "birthdate", "dob", "born", "expiry", "expires"}
_GROUPS = ("(user(_?id)?|uid)", "customer(_?id)?", "member_?id", "visitor_?id", "session(_?id)?")
"""Whose rows belong together, the first that is there."""
_WEIGHTS = {
    "weight",
    "weights",
    "instance_weight",
    "sample_weight",
    "row_weight",
    "case_weight",
    "survey_weight",
    "fnlwgt",
}
_YES = {"1", "true", "t", "yes", "y", "positive", "on"}
_NO = {"0", "-1", "false", "f", "no", "n", "negative", "off"}


class Note(NamedTuple):
    """Something to know of a column."""

    column: str
    reason: str


class Findings(NamedTuple):
    """What ``inspect_table`` says: the schema, the columns it leaves out, those that may be leaks, rows read."""

    schema: Schema
    left_out: tuple[Note, ...]
    leaks: tuple[Note, ...]
    rows: int


def infer_schema(data: Any, tasks: Sequence[Task | str], types: Mapping[str, str] = {}) -> Schema:
    """The schema that ``inspect_table`` proposes for whatever ``open_table`` reads (``types`` as there)."""
    return inspect_table(open_table(data, types), tasks).schema


def inspect_table(source: Source, tasks: Sequence[Task | str]) -> Findings:
    """Look at every row once and propose what each column means.

    A task is a ``Task``, whose declared fields are kept and whose other ones (kind, positive, classes, transform) are
    filled in, or a text: the label column's name, or ``"buy|click"`` for ``Task("buy", given="click")``.

    Raises:
        DataError: a label that is not there, is empty or constant, or does not hold what its task says; no feature.
        ExperimentError: tasks that do not fit together.
    """
    wanted = [_task(one) for one in ([tasks] if isinstance(tasks, str | Task) else tasks)]
    if not wanted:
        raise ExperimentError(f"at least one task is wanted; name a label column of {source.name}")
    for task in wanted:
        for column in (task.source, task.sample_weight):
            if column is not None and column not in source.schema.names:
                raise DataError(
                    f"{source.name} has no column {column!r} for task {task.name!r}; "
                    f"{nearest(column, source.schema.names)}"
                )
        _check_label(task, source.schema.field(task.source).type)
    read = [field.name for field in source.schema if _is_read(field.type)]
    seen = survey(source, read)
    labels = [_completed(task, seen) for task in wanted]
    taken = {task.source for task in labels} | {task.sample_weight for task in labels}
    verdicts = {
        name: _verdict(seen.columns[name], seen)
        if name in seen.columns
        else _unsupported(source.schema.field(name).type)
        for name in source.schema.names
        if name not in taken
    }
    for name, twin in _twins(verdicts, labels, seen):
        verdicts[name] = _Verdict(reason=f"holds the same values as {twin.source!r}, the label of task {twin.name!r}")
    schema = _schema(source, seen, labels, verdicts)
    left_out = tuple(Note(name, verdict.reason) for name, verdict in verdicts.items() if verdict.feature is None)
    return Findings(schema, left_out, tuple(_leaks(schema, seen)), seen.rows)


def _task(given: Task | str) -> Task:
    if isinstance(given, Task):
        return given
    name, *parent = (part.strip() for part in given.split("|"))
    try:
        return Task(name=name, given=parent[0]) if len(parent) == 1 else Task(name="|".join([name, *parent]))
    except ValidationError as error:
        raise ExperimentError(f"{given!r} is not a task: {explain(error)}") from None


def _check_label(task: Task, kind: pa.DataType) -> None:
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if is_moment(kind) or not (is_scalar(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"{_place(task)} is {type_name(kind)}, but labels are numbers, text or booleans; choose another column"
        )


# --- features --------------------------------------------------------------------------------------------------------


class _Verdict(NamedTuple):
    """What a column becomes: a feature, or nothing for a reason; a key, a time or both."""

    feature: Feature | None = None
    reason: str = ""
    key: bool = False
    time: int | None = None
    """How well it orders the rows, less is better."""
    kind: pa.DataType | None = None
    """Its type in the schema where that is not the table's."""


def _is_read(kind: pa.DataType) -> bool:
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    inner = kind.value_type if is_list(kind) else kind
    return is_scalar(inner) or bool(pa.types.is_null(inner))


def _unsupported(kind: pa.DataType) -> _Verdict:
    return _Verdict(reason=f"its type {type_name(kind)} is not one that features can read")


def _verdict(column: Column, seen: Survey) -> _Verdict:
    reason = _useless(column)
    if reason:
        return _Verdict(reason=reason)
    if is_list(column.kind):
        return _list_verdict(column)
    if is_moment(column.kind):
        return _moment_verdict(column, seen)
    if is_text(column.kind):
        return _text_verdict(column, seen)
    if is_number(column.kind) and not column.declared_category:
        return _number_verdict(column, seen)
    return _category_verdict(column)


def _useless(column: Column) -> str:
    if column.known == 0:
        return "holds no value in any row"
    if is_list(column.kind):
        return ""
    if column.distinct.estimate == 1 and column.known == column.rows:
        return f"holds {_only(column)} in every row"
    if column.name.lower() in _WEIGHTS and is_number(column.kind):
        return (
            "its name says that it weighs the rows; name it as the sample_weight of a task, "
            "or add it as a number if it is a measurement"
        )
    return ""


def _list_verdict(column: Column) -> _Verdict:
    kind, name = column.kind.value_type, column.name
    low, high = column.lengths or (0, 0)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if low == high > 0:
            return _Verdict(Vector(name=name, size=high))
        return _Verdict(
            reason=f"holds lists of {low} to {high} fractional numbers; lists of one length would be a vector"
        )
    if column.distinct.estimate > HASHED:
        return _Verdict(Bag(name=name, buckets=_buckets(column.distinct.estimate)))
    return _Verdict(Bag(name=name))


def _moment_verdict(column: Column, seen: Survey, kind: pa.DataType | None = None) -> _Verdict:
    """Of times: which parts vary, and how well the column orders the rows."""
    array = _sampled(column, seen)
    micros = cells.moments(array, column.name)
    micros = micros[micros != cells.NO_MOMENT]
    daily = bool((micros % 86_400_000_000 == 0).all())
    ordered = bool((np.diff(micros) >= 0).all())
    words = set(_words(column.name))
    time = None if words & _NOT_WHEN else 2 * (not ordered) + daily
    feature = Time(name=column.name, parts=("weekday",)) if daily else Time(name=column.name)
    return _Verdict(feature, time=time, kind=kind)


def _text_verdict(column: Column, seen: Survey) -> _Verdict:
    share = column.moments / column.known
    if share == 1 and column.zoned_moments in (0, column.known):
        return _moment_verdict(column, seen, pa.timestamp("us", "UTC" if column.zoned_moments else None))
    if share > 0.99:
        return _Verdict(
            reason=f"{share:.2%} of its values are times"
            + (", some with a zone and some without" if share == 1 else " and the others are not")
            + "; write all of them alike"
        )
    bag = _bag(column, seen)
    if bag is not None:
        return _Verdict(bag)
    if _one_per_row(column):
        if _is_id(column) or not pc.any(pc.match_substring(_sampled(column, seen), " ")).as_py():
            return _Verdict(reason="has a value of its own in almost every row; kept as a key", key=True)
        return _Verdict(reason="has a text of its own in almost every row, which no category can learn from")
    return _category_verdict(column)


def _bag(column: Column, seen: Survey) -> Bag | None:
    """Text whose pieces repeat much more than its whole cells do; words of phrases only where phrases are many."""
    whole = pc.unique(pc.drop_null(_sampled(column, seen)))
    for separator in (", ", ",", "|", ";", " "):
        share = pc.mean(pc.match_substring(whole, separator).cast(pa.int8())).as_py() or 0
        if share < 0.1 or (separator == " " and len(whole) <= MANY_ROWS):
            continue
        pieces = pc.list_flatten(pc.split_pattern(whole, separator))
        different = len(pc.unique(pieces))
        if len(pieces) >= (4 if separator == " " else 2) * different and different < len(whole):
            growing = seen.rows > 2 * len(seen.sample) and different > HASHED / 10
            return Bag(name=column.name, separator=separator, buckets=_buckets(2 * HASHED) if growing else None)
    return None


def _number_verdict(column: Column, seen: Survey) -> _Verdict:
    words = set(_words(column.name))
    whole = column.integral and not pa.types.is_decimal(column.kind)
    if whole and words & _WHEN and _is_epoch(column):
        return _moment_verdict(column, seen)
    if whole and words & _WHEN and _is_day_number(column):
        late = 10  # any other time orders the rows better
        return _Verdict(reason="writes days as numbers such as 20240531, which later rows never repeat", time=late)
    if whole and _one_per_row(column) and (_is_id(column) or _is_dense(column)):
        return _Verdict(reason="has a number of its own in almost every row; kept as a key", key=True)
    if column.distinct.estimate <= 2 or (whole and _are_codes(column, seen)):
        return _category_verdict(column)
    return _Verdict(Number(name=column.name, transform="log" if _heavy_tailed(column, seen) else "standard"))


def _are_codes(column: Column, seen: Survey) -> bool:
    """Whether whole numbers name things rather than count or measure them."""
    if _is_id(column):
        return True
    if set(_words(column.name)) & _QUANTITIES:
        return False
    different = column.distinct.estimate
    if different <= FEW:
        return column.known >= 10 * different
    return column.low in (0, 1) and _is_dense(column) and _is_rough(_sampled(column, seen), column)


def _category_verdict(column: Column) -> _Verdict:
    if column.distinct.estimate > HASHED:
        return _Verdict(Hashed(name=column.name, buckets=_buckets(column.distinct.estimate)))
    return _Verdict(Category(name=column.name))


def _heavy_tailed(column: Column, seen: Survey) -> bool:
    x = cells.numbers(_sampled(column, seen), column.name)
    x = x[~np.isnan(x)]
    if len(x) < 2 or x.std() == 0:
        return column.high > column.low  # what differs is too rare to be in the sample
    upper = float(np.quantile(np.abs(x), 0.75))
    skewness = float(np.mean(((x - x.mean()) / x.std()) ** 3))
    return abs(skewness) > 5 or (upper > 0 and max(abs(column.low), abs(column.high)) > 100 * upper)


def _is_rough(array: pa.Array, column: Column) -> bool:
    """Whether neighbouring values differ in frequency far beyond chance: codes do, quantities do not.

    The statistic is 1 where both have one rate; a tenth of the pairs, the most different, may be the edge or the
    mode of a quantity and is left aside.
    """
    x = cells.numbers(array, column.name)
    many = np.bincount((x[~np.isnan(x)] - column.low).astype(np.int64)).astype(np.float64)
    apart, together = np.diff(many) ** 2, many[1:] + many[:-1]
    kept = np.argsort(apart)[: int(0.9 * len(apart))]
    return bool(apart[kept].sum() > 3 * together[kept].sum())


def _is_epoch(column: Column) -> bool:
    """Seconds, milli-, micro- or nanoseconds since 1970, all between 1990 and 2100."""
    return any(6.3e8 * unit <= column.low and column.high <= 4.1e9 * unit for unit in (1.0, 1e3, 1e6, 1e9))


def _is_day_number(column: Column) -> bool:
    days = [int(value) for value in (column.counts or ())]
    return bool(days) and all(
        1900 <= day // 10_000 <= 2100 and 1 <= day // 100 % 100 <= 12 and 1 <= day % 100 <= 31 for day in days
    )


def _one_per_row(column: Column) -> bool:
    return column.rows > MANY_ROWS and column.distinct.estimate > 0.95 * column.known


def _buckets(different: int) -> int:
    """About twice as many, as a power of two."""
    return int(1 << round(np.log2(2 * different)))


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]


def _is_id(column: Column) -> bool:
    """By its name, or by whole numbers too large to be told apart as quantities."""
    words = _words(column.name)
    named = bool(words) and ("id" in words or words[-1] in _IDS)
    return named or (is_number(column.kind) and column.integral and max(abs(column.low), abs(column.high)) > 2**53)


def _is_dense(column: Column) -> bool:
    return column.distinct.estimate > 0.5 * (column.high - column.low + 1)


def _sampled(column: Column, seen: Survey) -> pa.Array:
    return cells.plain(seen.sample[column.name].combine_chunks())


def _only(column: Column) -> str:
    """The value of a column of one value."""
    return _short(next(iter(column.counts))) if column.counts else "one value"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# --- labels ----------------------------------------------------------------------------------------------------------


def _completed(task: Task, seen: Survey) -> Task:
    """The task with what was not declared read off its column."""
    column, place = seen.columns[task.source], _place(task)
    if column.known == 0:
        raise DataError(f"{place} holds no value in any row; choose another column or fill it")
    if column.distinct.estimate == 1 and not (task.given and column.known < column.rows):
        raise DataError(f"{place} is {_only(column)} wherever it is known; a label wants at least two values")
    try:
        return _filled(task, column, seen, place)
    except ValidationError as error:
        raise ExperimentError(explain(error)) from None


def _place(task: Task) -> str:
    return f"column {task.source!r}, the label of task {task.name!r},"


def _filled(task: Task, column: Column, seen: Survey, place: str) -> Task:
    declared = task.model_fields_set
    values = _values(column)
    if "kind" not in declared:
        task = task.with_(kind=_label_kind(task, column, values))
    if task.kind == "binary":
        return _with_positive(task, column, values, place)
    if task.kind == "multiclass":
        if values is None:
            raise DataError(f"{place} has {column.distinct.estimate:,} different values, too many classes")
        return task if task.classes else task.with_(classes=tuple(_in_order(values)))
    if not is_number(column.kind) and not pa.types.is_boolean(column.kind):
        raise DataError(f"{place} is {type_name(column.kind)}, but a regression wants numbers; set its kind")
    if "transform" not in declared and column.low >= 0 and _heavy_tailed(column, seen):
        return task.with_(transform="log1p")
    return task


def _values(column: Column) -> dict[str, tuple[Any, int]] | None:
    """Text of each value -> the value, its rows; None where they are too many to have been counted."""
    if column.counts is None:
        return None
    found: dict[str, tuple[Any, int]] = {}
    for value, count in column.counts.items():
        text = cells.text(value) or ""
        found[text] = value, count + found.get(text, (None, 0))[1]
    return found


def _label_kind(task: Task, column: Column, values: dict[str, tuple[Any, int]] | None) -> str:
    if task.classes:
        return "multiclass"
    if task.positive is not None or task.given or (values is not None and len(values) <= 2):
        return "binary"
    if not is_number(column.kind) or column.declared_category:
        return "multiclass"
    few = values is not None and len(values) <= FEW and column.known >= 10 * len(values)
    counts = set(_words(column.name)) & _QUANTITIES
    return "multiclass" if few and pa.types.is_integer(column.kind) and not counts else "regression"


def _with_positive(task: Task, column: Column, values: dict[str, tuple[Any, int]] | None, place: str) -> Task:
    if task.positive is not None:
        chosen = task.positive if isinstance(task.positive, tuple) else (task.positive,)
        for value in chosen:
            if values is not None and cells.text(value) not in values:
                raise DataError(f"{place} never holds {value!r}, its positive value; {nearest(str(value), values)}")
        if values is not None and {cells.text(value) for value in chosen} >= set(values):
            raise DataError(f"{place} holds nothing but its positive values; a label wants at least two values")
        return task
    if values is not None and set(values) <= {"0", "1", "true", "false"}:
        return task
    if values is None or len(values) != 2:
        some = (
            "" if values is None else " (" + ", ".join(_short(value) for value, _ in [*values.values()][:3]) + ", ...)"
        )
        raise DataError(
            f"{place} has {column.distinct.estimate:,} different values{some}, but a binary task wants two; "
            "say which mean 1 with 'positive', or set its kind"
        )
    return task.with_(positive=_plain_value(values[_affirmative(values)][0]))


def _affirmative(values: dict[str, tuple[Any, int]]) -> str:
    """Of two texts the one that means yes, or the rarer, or the greater."""
    one, other = values
    for first, second in ((one, other), (other, one)):
        if _word(first) in _YES - {_word(second)} or (_word(second) in _NO and _word(first) not in _NO):
            return first
    return max(values, key=lambda text: (-values[text][1], text))


def _word(text: str) -> str:
    return text.strip().rstrip(".").lower()


def _plain_value(value: Any) -> Value:
    if isinstance(value, bool | str):
        return value
    number = float(value)
    return int(value) if number.is_integer() else number


def _in_order(values: dict[str, tuple[Any, int]]) -> list[str]:
    """Numbers by size, texts by the alphabet."""
    if all(isinstance(value, int | float) for value, _ in values.values()):
        return sorted(values, key=lambda text: (values[text][0], text))
    return sorted(values)


# --- the whole -------------------------------------------------------------------------------------------------------


def _schema(source: Source, seen: Survey, labels: Sequence[Task], verdicts: dict[str, _Verdict]) -> Schema:
    features = tuple(verdict.feature for verdict in verdicts.values() if verdict.feature is not None)
    if not features:
        first = next(iter(verdicts.items()), None)
        why = f"; column {first[0]!r} {first[1].reason}" if first else ""
        raise DataError(f"{source.name} has no column to predict from besides the labels{why}")
    times = [
        (verdict.time, at, name) for at, (name, verdict) in enumerate(verdicts.items()) if verdict.time is not None
    ]
    try:
        schema = Schema(
            features=features,
            tasks=tuple(labels),
            keys=tuple(name for name, verdict in verdicts.items() if verdict.key),
            time=min(times)[2] if times else None,
            group=_group(features, seen),
        )
    except ValidationError as error:
        raise ExperimentError(explain(error)) from None
    kinds = {name: verdict.kind for name, verdict in verdicts.items() if verdict.kind is not None}
    types = {name: kinds.get(name) or _frozen(source.schema.field(name).type) for name in schema.columns()}
    return schema.with_(types={name: type_name(kind) for name, kind in types.items()})


def _group(features: Sequence[Feature], seen: Survey) -> str | None:
    """The one id of a user, or failing that of a customer and so on, that comes back row after row."""
    for pattern in _GROUPS:
        named = [
            feature.name
            for feature in features
            if isinstance(feature, Category | Hashed)
            and re.search(f"(^|_){pattern}$", "_".join(_words(feature.name)))
            and 2 * FEW < 2 * seen.columns[feature.name].distinct.estimate <= seen.columns[feature.name].known
        ]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def _frozen(kind: pa.DataType) -> pa.DataType:
    """How text of the column is to be read: wide enough for values that this table does not hold."""
    if pa.types.is_dictionary(kind):
        return _frozen(kind.value_type)
    if pa.types.is_integer(kind):
        return pa.uint64() if kind == pa.uint64() else pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_timestamp(kind) and kind.unit in ("s", "ms"):
        return pa.timestamp("us", kind.tz)
    return kind


def _twins(verdicts: dict[str, _Verdict], labels: Sequence[Task], seen: Survey) -> Iterator[tuple[str, Task]]:
    """Features that are a label's column again."""
    for name, verdict in verdicts.items():
        if verdict.feature is None or is_list(seen.columns[name].kind):
            continue
        for task in labels:
            one, other = seen.columns[name], seen.columns[task.source]
            if (
                one.kind == other.kind
                and one.known == other.known
                and one.counts == other.counts
                and np.array_equal(one.distinct.least, other.distinct.least)
                and _sampled(one, seen).equals(_sampled(other, seen))
            ):
                yield name, task
                break


def _leaks(schema: Schema, seen: Survey) -> Iterator[Note]:
    targets = [_target(task, seen) for task in schema.tasks]
    for feature in schema.features:
        column = seen.columns[feature.name]
        if is_list(column.kind):
            continue
        for reason in leaks(_sampled(column, seen), feature.name, targets):
            yield Note(feature.name, reason)


def _target(task: Task, seen: Survey) -> Target:
    array = _sampled(seen.columns[task.source], seen)
    if task.kind == "regression":
        y = cells.numbers(array, task.source)
        return Target(task.name, task.kind, np.log1p(np.maximum(y, 0)) if task.transform == "log1p" else y)
    index, values = cells.codes(array, task.source)
    texts = cells.texts(values)
    if task.kind == "multiclass":
        classes = {text: float(at) for at, text in enumerate(task.classes)}
        found = [classes.get(text or "", np.nan) for text in texts]
    else:
        chosen = task.positive if isinstance(task.positive, tuple) else (task.positive,)
        positive = {"1", "true"} if task.positive is None else {cells.text(value) for value in chosen}
        found = [np.nan if text is None else float(text in positive) for text in texts]
    return Target(task.name, task.kind, np.array([*found, np.nan])[index])
