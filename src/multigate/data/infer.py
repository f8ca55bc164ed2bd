"""A first schema for a table nobody has described yet: what each column most likely means, and what looks wrong."""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from multigate.data import arrow, cells
from multigate.data.files import Source, open_table
from multigate.data.leaks import Target, leaks
from multigate.data.meaning import FEW, Verdict, is_id, is_readable, judge, unsupported, words_of
from multigate.data.survey import Column, Survey, survey
from multigate.data.tasks import Tasks, check_label, completed, read_tasks
from multigate.data.types import are_codes, is_list, is_number, is_text, type_name, value_type
from multigate.data.vocabulary import own_tables
from multigate.errors import DataError, ExperimentError, nearest
from multigate.options import explain
from multigate.progress import Progress
from multigate.schema import Bag, Category, Feature, Hashed, Number, Schema, Task

_ID = "_?(id|no|nr|number)"
_GROUPS = (
    f"(user({_ID})?|uid)",
    f"customer({_ID})?",
    f"patient({_ID})?",
    f"member{_ID}",
    f"visitor{_ID}",
    "session(_?id)?",
)
"""Whose rows belong together, the first that is there."""
_POINT = r"(\d+|\d{1,3}([,'\x{2019} \x{a0}\x{202f}]\d{3})+)(\.\d+)?"
_COMMA = r"(\d+|\d{1,3}([.'\x{2019} \x{a0}\x{202f}]\d{3})+),\d+([eE][-+]?\d+)?|\d{1,3}(\.\d{3}){2,}"
_MARKED = rf"^\(?[-+]?[$€£¥]? ?[-+]?({_POINT}|{_COMMA})(-| ?([%$€£¥]|EUR|USD|GBP|CHF))?\)?$"
"""A number as people write it: 1,234.56, 1.234,56, 1.234.567, 1 234, 1,5E+06, 12 %, $9.99, 9 EUR, 9.99- or (9.99)."""
_PLAIN = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"
_GROUPED = r"^\s*[-+]?\d{1,3}(\.\d{3})?\s*$"
"""Plain, but where others are no different 1.234 may be a thousand and more."""
_MOST, _MANY = 0.8, 20
"""Of the different texts of a column those that are numbers, where the others are an exception."""
_NO_CODE = r"^(\D*|#.*|[<>≤≥~]=? ?[-+]?\d+([.,]\d+)?|\d+([.,]\d+)? ?\+)$"
"""A word or a sign in place of a number, or a bound: n/a, -, <5 or 90+; codes such as V27 hold letters and digits."""
_MONTH = r"(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
_DATE = (
    r"^((\d{1,2}[/.-]\d{1,2}[/.-]\d{4}|\d{1,2}/\d{1,2}/\d{2}|\d{4}[/.]\d{1,2}[/.]\d{1,2}"
    rf"|\d{{1,2}}[ -]{_MONTH}[ -](\d{{2}}|\d{{4}})|{_MONTH} \d{{1,2}},? \d{{4}})([ ,]+\d{{1,2}}:\d{{2}}.*)?"
    r"|\d{4}-\d{2}-\d{2}[ T]\d{1,2}:\d{2}(:\d{2})? ?[A-Za-z]{2,4})$"
)
"""A day that is not ISO 8601, such as 5/31/2024, 31.05.2024 or 31-May-2024, with or without a time of day; or one with
a time of day that is not, such as 05:30 PM."""
_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}.*)?)?$"
_ABSENT = {word.lower() for word in cells.MISSING} | {"-", "--", ".", "n.a.", "<na>", "nat", "unknown", "missing"}
"""What people write in place of what they do not know."""
_SHARE, _CLASSES = 2 / 3, 10
"""What the mean of a logarithm stands for, of the mean itself, below which it is told; and numbers that are classes,
above which."""
_PRINTED = r"""^\[(['"].*['"]|\s*-?\d+(\.\d*)?([,\s]+-?\d+(\.\d*)?(e[-+]\d+)?)+\s*)?\]$"""
"""A list as Python and NumPy print it: ['a', 'b'] or [0.5 1.5]."""


class Note(NamedTuple):
    """Something to know of a column."""

    column: str
    reason: str


class Findings(NamedTuple):
    """What ``inspect_table`` says: the schema, the columns it leaves out, those that may be leaks, those that hold
    numbers as text, labels whose logarithm says little of their total, those whose classes may be fewer or none, rows
    read."""

    schema: Schema
    left_out: tuple[Note, ...]
    leaks: tuple[Note, ...]
    written: tuple[Note, ...]
    too_low: tuple[Note, ...]
    doubtful: tuple[Note, ...]
    rows: int


def infer_schema(data: Any, tasks: Tasks, types: Mapping[str, str] = {}) -> Schema:
    """The schema that ``inspect_table`` proposes for whatever ``open_table`` reads (``types`` as there).

    Raises ``DataError`` for a table that cannot be read, and what ``inspect_table`` raises for tasks that cannot be.
    """
    return inspect_table(open_table(data, types), tasks).schema


def infer_tasks(data: Any, tasks: Tasks) -> tuple[Task, ...]:
    """The tasks as ``inspect_table`` fills them in, whatever there is to predict them from; errors as there."""
    source = open_table(data)
    wanted = _wanted(source, tasks)
    seen = survey(source, list(dict.fromkeys(task.source for task in wanted)))
    return tuple(completed(task, seen) for task in wanted)


def inspect_table(source: Source, tasks: Tasks, *, progress: Progress | None = None) -> Findings:
    """Look at every row once and propose what each column means.

    A task is a ``Task``, whose declared fields are kept and whose other ones (kind, positive, classes, transform) are
    filled in, or a text: the label column's name, or ``"buy|click"`` for ``Task("buy", given="click")``.

    Raises:
        DataError: a label that is not there, is empty or constant, or does not hold what its task says; no feature.
        ExperimentError: tasks that do not fit together.
    """
    wanted = _wanted(source, tasks)
    read = [field.name for field in source.schema if is_readable(field.type)]
    seen = survey(source, read, progress)
    labels = [completed(task, seen) for task in wanted]
    taken = {task.source for task in labels} | {task.sample_weight for task in labels}
    verdicts = {
        name: judge(seen.columns[name], seen) if name in seen.columns else unsupported(source.schema.field(name).type)
        for name in source.schema.names
        if name not in taken
    }
    for name, why in source.unreadable.items():
        if name in source.schema.names:  # objects, which are not looked at
            continue
        verdicts[name] = Verdict(reason=str(why).removeprefix(f"column {name!r} "))
    for name, twin in _twins(verdicts, labels, seen):
        verdicts[name] = Verdict(reason=f"holds the same values as {twin.source!r}, the label of task {twin.name!r}")
    schema = _schema(source, seen, labels, verdicts)
    left_out = tuple(Note(name, verdict.reason) for name, verdict in verdicts.items() if verdict.feature is None)
    written, too_low = tuple(_written(verdicts, labels, seen)), tuple(_too_low(wanted, labels, seen))
    told = {note.column for note in written}
    doubtful = tuple(note for note in _doubtful(wanted, labels, seen) if note.column not in told)
    return Findings(schema, left_out, tuple(_leaks(schema, seen)), written, too_low, doubtful, seen.rows)


def _wanted(source: Source, tasks: Tasks) -> list[Task]:
    """The tasks, whose labels are there and can be read."""
    names = source.schema.names
    wanted = read_tasks(tasks, names)
    if not wanted:
        raise ExperimentError(f"at least one task is wanted; name a label column of {source.name}")
    for task in wanted:
        for column in (task.source, task.sample_weight):
            if column is not None and column in source.unreadable:
                raise source.unreadable[column]
            if column is not None and column not in names:
                raise DataError(
                    f"{source.name} has no column {column!r} for task {task.name!r}; {nearest(column, names)}"
                )
        check_label(task, source.schema.field(task.source).type)
    return wanted


def _schema(source: Source, seen: Survey, labels: Sequence[Task], verdicts: dict[str, Verdict]) -> Schema:
    features = _apart([verdict.feature for verdict in verdicts.values() if verdict.feature is not None])
    if not features:
        for error in source.unreadable.values():
            raise error
        first = next(iter(verdicts.items()), None)
        why = f" (column {first[0]!r}: {first[1].reason})" if first else ""
        raise DataError(f"{source.name} has no column to predict from besides the labels{why}; add one")
    times = [
        (verdict.time, at, name) for at, (name, verdict) in enumerate(verdicts.items()) if verdict.time is not None
    ]
    try:
        schema = Schema.model_validate(
            {
                "features": features,
                "tasks": tuple(labels),
                "keys": tuple(name for name, verdict in verdicts.items() if verdict.key),
                "time": min(times)[2] if times else None,
                "group": _group(features, seen),
            }
        )
    except ValidationError as error:
        raise ExperimentError(explain(error)) from None
    kinds = {name: verdict.kind for name, verdict in verdicts.items() if verdict.kind is not None}
    types = {name: kinds.get(name) or _frozen(source.schema.field(name).type) for name in schema.columns()}
    return schema.with_(types={name: type_name(kind) for name, kind in types.items()})


def _apart(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """The features, those whose name is that of a table of another's bins, values or parts with another name, which for
    categories and bags is the table's alone."""
    derived = {table for one in features for table in own_tables(one) if table != one.name}
    taken = derived | {one.name for one in features}
    return tuple(_renamed(one, taken) if one.name in derived else one for one in features)


def _renamed(feature: Feature, taken: Set[str]) -> Feature:
    if isinstance(feature, Number):
        return feature.with_(name=_free(feature.name, ":number", taken), column=feature.source)
    if isinstance(feature, Category | Hashed | Bag):
        return feature.with_(table=_free(feature.name, ":category", taken))
    return feature


def _free(name: str, ending: str, taken: Set[str]) -> str:
    """The name with the ending as often as needed for it and the table of its values to be no other's."""
    while name in taken or f"{name}:value" in taken:
        name += ending
    return name


def _group(features: Sequence[Feature], seen: Survey) -> str | None:
    """The one id of a user, or failing that of a customer and so on, that comes back row after row."""
    for pattern in _GROUPS:
        named = [
            feature.name
            for feature in features
            if isinstance(feature, Category | Hashed)
            and re.search(f"(^|_){pattern}$", "_".join(words_of(feature.name)))
            and 2 * FEW < 2 * seen.columns[feature.name].distinct.estimate <= seen.columns[feature.name].known
        ]
        if named:
            return named[0] if len(named) == 1 else None
    return None


def _frozen(kind: pa.DataType) -> pa.DataType:
    """How text of the column is to be read: wide enough for values that this table does not hold."""
    kind = value_type(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind)
    if pa.types.is_integer(kind):
        return pa.uint64() if kind == pa.uint64() else pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_timestamp(kind) and kind.unit in ("s", "ms"):
        return pa.timestamp("us", kind.tz)
    return kind


def _twins(verdicts: dict[str, Verdict], labels: Sequence[Task], seen: Survey) -> Iterator[tuple[str, Task]]:
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
                and seen.sampled(one.name).equals(seen.sampled(other.name))
            ):
                yield name, task
                break


def _too_low(wanted: Sequence[Task], labels: Sequence[Task], seen: Survey) -> Iterator[Note]:
    """Labels that are to be fitted through ``log1p`` without having been declared so, though most are 0, or though the
    mean of their logarithm stands for far less than their own mean."""
    for asked, task in zip(wanted, labels, strict=True):
        if (
            task.kind != "regression"
            or task.transform != "log1p"
            or task.where
            or "transform" in asked.model_fields_set
        ):
            continue
        known = arrow.numbers(seen.sampled(task.source), task.source)
        known = known[np.isfinite(known)]
        zero = float(np.mean(known == 0)) if len(known) else 0.0
        share = float(np.expm1(np.log1p(known).mean()) / known.mean()) if known.any() else 1.0
        remedy = "set transform: standard or recalibrate: platt for totals that are true"
        if zero > 0.5:
            yield Note(
                task.source,
                f"{zero:.0%} of the labels are 0; {remedy}, or name in 'where' a task of 0 and 1 that says where there "
                "is more",
            )
        elif share < _SHARE:
            yield Note(
                task.source, f"the mean of the logarithm stands for {share:.0%} of the mean of the labels; {remedy}"
            )


def _doubtful(wanted: Sequence[Task], labels: Sequence[Task], seen: Survey) -> Iterator[Note]:
    """Labels of classes that nobody declared, some of which are none more often than not: a number beside 0 and 1 that
    stands for unknown or is a sum, many whole numbers, single rows, a class spelled in two ways, a word for missing."""
    for asked, task in zip(wanted, labels, strict=True):
        if {"kind", "classes"} & asked.model_fields_set or task.kind != "multiclass":
            continue
        others = set(task.classes) - {"0", "1"}
        other = min(others) if len(task.classes) == 3 and len(others) == 1 else ""
        if re.fullmatch(r"-\d+|9|[1-9]\d+", other):
            yield Note(task.source, f"holds 0, 1 and {other}; leave such cells empty to have it binary")
            continue
        column = seen.columns[task.source]
        if len(task.classes) > _CLASSES and is_number(column.kind) and not column.declared_category:
            yield Note(
                task.source,
                f"holds {len(task.classes)} whole numbers, a class each, whose order is not learnt; set kind: "
                "regression if they count or measure",
            )
            continue
        alone = sum(count == 1 for count in (column.counts or {}).values())
        if 2 * alone > len(task.classes):
            yield Note(
                task.source,
                f"{alone:,} of its {len(task.classes):,} classes have a single row, from which nothing is learnt; "
                "group them, or choose another label",
            )
            continue
        spelled: dict[str, list[str]] = {}
        for one in task.classes:
            spelled.setdefault(one.strip().casefold(), []).append(one)
        alike = next((same for same in spelled.values() if len(same) > 1), None)
        absent = [one for one in task.classes if _is_absent(one)]
        if alike:
            yield Note(
                task.source,
                f"holds {cells.short(alike[0])} and {cells.short(alike[1])}, a class each; write them alike",
            )
        if absent:
            what = "to have it binary" if len(spelled) == 3 else "where the label is unknown"
            yield Note(task.source, f"holds {cells.short(absent[0])}, which is a class; leave such cells empty {what}")


def _is_absent(text: str) -> bool:
    return text.strip().lower() in _ABSENT


def _written(verdicts: Mapping[str, Verdict], labels: Sequence[Task], seen: Survey) -> Iterator[Note]:
    """Columns of text that are numbers with commas, percent or currency signs, numbers but for a few, days as people
    write them or printed lists, and so become no numbers, times and bags of the items. Labels are told of numbers."""
    classes = [task.source for task in labels if task.kind == "multiclass"]
    for name in (*verdicts, *classes):
        column, label = seen.columns.get(name), name in classes
        if column is None or not is_text(column.kind):
            continue
        sample = pc.unique(pc.utf8_trim_whitespace(pc.drop_null(seen.sampled(name)).cast(pa.string())))
        values = sample.filter(pc.not_equal(sample, ""))
        marked = values.filter(pc.invert(pc.match_substring_regex(values, _PLAIN)))
        absent = pc.is_in(pc.utf8_lower(values), pa.array(sorted(_ABSENT)))
        days = values.filter(pc.invert(absent))
        if len(marked) and pc.all(pc.match_substring_regex(values, _MARKED)).as_py():
            yield Note(
                name, f"holds text such as {marked[0].as_py()!r}; write plain numbers (1234.56) to have it as one"
            )
        elif not label and len(days) and pc.all(pc.match_substring_regex(days, _DATE)).as_py():
            yield Note(
                name,
                f"holds text such as {days[0].as_py()!r}; write it as ISO 8601 (2024-05-31) to have it as a time",
            )
        elif (
            not label
            and 0 < len(days) < len(values)
            and verdicts[name].feature is not None
            and pc.all(pc.match_substring_regex(days, _ISO)).as_py()
        ):
            word = values.filter(absent)[0].as_py()
            yield Note(
                name, f"holds times, but also text such as {word!r}; leave such cells empty to have it as a time"
            )
        elif not label and len(values) and pc.all(pc.match_substring_regex(values, _PRINTED)).as_py():
            yield Note(
                name,
                f"holds text such as {cells.short(values[0].as_py())}; write lists in Parquet, or the items with a "
                "separator between them, to have it as a bag",
            )
        elif label or verdicts[name].time is None:
            reason = _numeric(pc.unique(pc.drop_null(seen.sampled(name)).cast(pa.string())), column, label)
            if reason:
                yield Note(name, reason)


def _numeric(texts: pa.Array, column: Column, label: bool) -> str:
    """What is said of different texts that are numbers, all or most of them; nothing of codes.

    Whole numbers, and those with commas and signs, may be codes or lists as well: besides them there are only texts
    that can be no code.
    """
    texts = texts.filter(pc.not_equal(texts, ""))
    trimmed = pc.utf8_trim_whitespace(texts)
    plain, marked, no_code = (pc.match_substring_regex(trimmed, one) for one in (_PLAIN, _MARKED, _NO_CODE))
    fractional = pc.any(pc.match_substring(texts.filter(plain), ".")).as_py()
    # no codes, and no telephone numbers: +5 beside -7
    signed = all(pc.any(pc.match_substring_regex(trimmed, rf"^\{sign}\d+$")).as_py() for sign in "+-")
    number = plain if fractional else pc.or_(plain, marked)
    numbers, others = texts.filter(number), texts.filter(pc.invert(number))
    if label and set(numbers.to_pylist()) == {"0", "1"} and len(others) and pc.all(pc.or_(number, no_code)).as_py():
        return f"holds 0, 1 and text such as {cells.short(others[0].as_py())}; leave such cells empty to have it binary"
    if len(numbers) < max(_MANY, _MOST * len(texts)):
        return ""
    if not (fractional or signed) and (
        not len(others)
        or is_id(column)
        or are_codes(trimmed.filter(plain))
        or not pc.all(pc.or_(number, no_code)).as_py()
    ):
        return ""
    if len(others):
        return (
            f"holds numbers, but also text such as {cells.short(others[0].as_py())}; leave such cells empty, or write "
            "numbers, to have it as one"
        )
    if pc.all(pc.match_substring_regex(numbers, _GROUPED)).as_py() and fractional:
        one = cells.short(numbers.filter(pc.match_substring(numbers, "."))[0].as_py())
        return f"holds text such as {one}, which may be thousands; write plain numbers (1234.56) to have it as one"
    one = cells.short(numbers[0].as_py())
    advice = "store them as numbers" if label else "give it the kind number"
    return f"holds numbers as text, such as {one}; {advice} to have it as one"


def _leaks(schema: Schema, seen: Survey) -> Iterator[Note]:
    targets = [_target(task, seen) for task in schema.tasks]
    for feature in schema.features:
        column = seen.columns[feature.source]
        if is_list(column.kind):
            continue
        for reason in leaks(seen.sampled(column.name), column.name, targets):
            yield Note(column.name, reason)


def _target(task: Task, seen: Survey) -> Target:
    array = seen.sampled(seen.columns[task.source].name)
    if task.kind == "regression":
        y = arrow.numbers(array, task.source)
        return Target(task.name, task.kind, np.log1p(np.maximum(y, 0)) if task.transform == "log1p" else y)
    index, values = arrow.codes(array, task.source)
    texts = arrow.texts(values).to_pylist()
    if task.kind == "multiclass":
        classes = {text: float(at) for at, text in enumerate(task.classes)}
        found = [classes.get(text or "", np.nan) for text in texts]
    else:
        chosen = task.positive if isinstance(task.positive, tuple) else (task.positive,)
        positive = {"1", "true"} if task.positive is None else {cells.text(value) for value in chosen}
        found = [np.nan if text is None else float(text in positive) for text in texts]
    return Target(task.name, task.kind, np.array([*found, np.nan])[index])
