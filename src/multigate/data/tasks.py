"""What a task predicts, read off its label column where it was not declared."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from multigate.data import cells
from multigate.data.meaning import FEW, QUANTITIES, heavy_tailed, only_value, words_of
from multigate.data.survey import Column, Survey
from multigate.data.types import are_thousands, guessed_type, is_moment, is_number, is_scalar, type_name, value_type
from multigate.errors import DataError, ExperimentError, nearest
from multigate.options import explain
from multigate.schema import Task, Value
from multigate.yaml_text import parse_yaml

_YES = {"1", "true", "t", "yes", "y", "positive", "on", "ja", "j", "oui", "si", "sí", "sì", "sim", "是"}
_TRUTHS = {"0", "1", "true", "false"}
_NO = {"0", "-1", "false", "f", "no", "n", "negative", "off", "nein", "nee", "non", "não", "否"}


Tasks = Task | str | Sequence[Task | str] | Mapping[str, Any]
"""Tasks, or names of label columns (``"buy|click"`` is buy given click), or what kind each of them is, by name."""


def read_tasks(given: Tasks, columns: Sequence[str] = ()) -> list[Task]:
    """Tasks as the user gave them, one by itself among them.

    Raises ``ExperimentError`` for what is no task.
    """
    if isinstance(given, Mapping):
        return [Task(name, kind=kind) for name, kind in given.items()]
    if not isinstance(given, str | Task | Iterable):
        raise ExperimentError(
            f"tasks are named by their label columns, found {type(given).__name__}; name one at least"
        )
    return [read_task(one, columns) for one in ([given] if isinstance(given, str | Task) else given)]


def read_labels(text: str) -> list[Task | str]:
    """Labels as they stand behind ``tasks=``: names and ``buy|click``, or blocks where a name alone cannot say it.

    Raises ``ExperimentError`` for blocks that are no tasks.
    """
    if not re.search(r"\{\s*\w+\s*:", text):
        return [name.strip() for name in text.strip("[] ").split(",") if name.strip()]
    found = parse_yaml(text if text.strip().startswith("[") else f"[{text}]", f"tasks={text}")
    try:
        return [Task.model_validate(one) if isinstance(one, Mapping) else str(one) for one in found]
    except ValidationError as error:
        raise ExperimentError(f"tasks={text}: {explain(error)}") from None


def read_task(given: Task | str, columns: Sequence[str] = ()) -> Task:
    """A task as the user gave it: ``"buy|click"`` is ``buy`` given ``click``. Blanks around names may be left out.

    ``columns`` are those of the table, where it is known. Raises ``ExperimentError`` for what is no task.
    """
    if isinstance(given, Task):
        return given
    if not isinstance(given, str):
        raise ExperimentError(
            f"a task is a Task or the name of its label column, found {cells.short(given)}; names of columns are text, "
            "such as 'click' (a column 5 of pandas is '5')"
        )
    name, *parent = (part.strip() for part in given.split("|"))
    named = [column for column in columns if column.strip() == name]
    if given in columns and not parent:
        named = [given]
    column = named[0] if len(named) == 1 and named[0] != name else ""
    try:
        # a column called a|b where there is no a is meant as it is, and told that no task can have its name
        if len(parent) == 1 and not (given in columns and not named):
            return Task.model_validate({"name": name, "column": column, "given": parent[0]})
        return Task.model_validate({"name": "|".join([name, *parent]), "column": column})
    except ValidationError as error:
        label = given if given in columns else name
        shown = f", as in [{{name: label, column: {label!r}}}]" if label in columns else ""
        raise ExperimentError(f"{given!r} is not a task: {explain(error)}{shown}") from None


def check_label(task: Task, kind: pa.DataType) -> None:
    """Raise ``DataError`` where a column of this type cannot be the task's label."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    if is_moment(value_type(kind)) or not (is_scalar(kind) or pa.types.is_null(kind)):
        raise DataError(
            f"{_place(task)} is {type_name(kind)}, but labels are numbers, text or booleans; choose another column"
        )


def completed(task: Task, seen: Survey) -> Task:
    """The task with what was not declared read off its column."""
    column, place = seen.columns[task.source], _place(task)
    if column.known == 0:
        raise DataError(f"{place} holds no value in any row; choose another column or fill it")
    if column.distinct.estimate == 1 and not (task.given and column.known < column.rows):
        raise _one_value(column, place)
    return _filled(task, column, seen, place)


def _one_value(column: Column, place: str) -> DataError:
    unknown = "; empty cells are unknown: write there what they mean" if column.known < column.rows else ""
    return DataError(
        f"{place} is {only_value(column)} wherever it is known; a label wants at least two values{unknown}"
    )


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
            raise DataError(
                f"{place} has {column.distinct.estimate:,} different values, too many classes; "
                "group them, or write plain numbers for a regression"
            )
        return task if task.classes else task.with_(classes=tuple(_in_order(values)))
    if not is_number(column.kind) and not pa.types.is_boolean(column.kind):
        raise DataError(
            f"{place} is {type_name(column.kind)}, but a regression wants numbers; {_to_be_numbers(column, seen)}"
        )
    if "transform" not in declared and column.low >= 0 and heavy_tailed(column, seen):
        return task.with_(transform="log1p")
    return task


def _to_be_numbers(column: Column, seen: Survey) -> str:
    """What helps where a label that is no number is to be one."""
    texts = pc.unique(pc.drop_null(seen.sampled(column.name)).cast(pa.string()))
    texts = texts.filter(pc.invert(pc.is_in(texts, pa.array(cells.MISSING))))
    if not are_thousands(texts):
        if len(texts) and is_number(guessed_type(texts)):
            return f"set the column's type, whose text is numbers (schema.types.{column.name}=double)"
        return "set its kind"
    one = cells.short(texts.filter(pc.match_substring(texts, "."))[0].as_py())
    return (
        f"{one} may be thousands: write plain numbers (1234.56), or set the column's type to 'double' where it is not "
        f"(schema.types.{column.name}=double)"
    )


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
    if values is not None and {text.lower() for text in values} <= _TRUTHS:  # 0 and 1 in one file, True in another
        return "binary"
    if not is_number(column.kind) or column.declared_category:
        return "multiclass"
    few = values is not None and len(values) <= FEW and column.known >= 10 * len(values)
    whole = column.integral and not pa.types.is_decimal(
        column.kind
    )  # of fractional type, too: a null makes it so in pandas
    counts = set(words_of(column.name)) & QUANTITIES
    return "multiclass" if few and whole and not counts else "regression"


def _with_positive(task: Task, column: Column, values: dict[str, tuple[Any, int]] | None, place: str) -> Task:
    if task.positive is not None:
        chosen = task.positive if isinstance(task.positive, tuple) else (task.positive,)
        for value in chosen:
            if values is not None and cells.text(value) not in values:
                raise DataError(f"{place} never holds {value!r}, its positive value; {nearest(str(value), values)}")
        if values is not None and len(values) == 1:
            raise _one_value(column, place)
        if values is not None and {cells.text(value) for value in chosen} >= set(values):
            raise DataError(f"{place} holds nothing but its positive values; a label wants at least two values")
        return task
    if values is not None and set(values) <= _TRUTHS:
        return task
    if values is not None and len(values) == 1:
        raise _one_value(column, place)
    if values is None or len(values) != 2:
        some = (
            ""
            if values is None
            else " (" + ", ".join(cells.short(value) for value, _ in [*values.values()][:3]) + ", ...)"
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
