"""Columns as Arrow has them: their names, their types, what two types have in common, what text becomes."""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from multigate.data.buffers import is_uuid, plain
from multigate.errors import DataError, nearest

INTEGER_DIGITS = 20
"""Of the largest uint64."""


def type_name(kind: pa.DataType) -> str:
    """An Arrow type as text, in the words Arrow prints; ``parse_type`` reads it back."""
    if pa.types.is_dictionary(kind):
        value, index = type_name(kind.value_type), type_name(kind.index_type)
        return f"dictionary<values={value}, indices={index}, ordered={int(kind.ordered)}>"
    if pa.types.is_fixed_size_list(kind):
        return f"fixed_size_list<item: {type_name(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"{'large_' if pa.types.is_large_list(kind) else ''}list<item: {type_name(kind.value_type)}>"
    return str(kind)


def parse_type(text: str) -> pa.DataType:
    """The Arrow type that ``type_name`` (or Arrow itself) prints as ``text``.

    Raises:
        DataError: not the name of a type that columns may have.
    """
    text = text.strip()
    if match := re.fullmatch(r"timestamp\[(s|ms|us|ns), tz=(.+)\]", text):
        return pa.timestamp(match[1], match[2])
    if match := re.fullmatch(r"decimal(32|64|128|256)\((\d+), ?(-?\d+)\)", text):
        return getattr(pa, f"decimal{match[1]}")(int(match[2]), int(match[3]))
    if match := re.fullmatch(r"(large_)?list<(?:\w+: )?(.+?)(?: not null)?>", text):
        return (pa.large_list if match[1] else pa.list_)(parse_type(match[2]))
    if match := re.fullmatch(r"fixed_size_list<(?:\w+: )?(.+?)(?: not null)?>\[(\d+)\]", text):
        return pa.list_(parse_type(match[1]), int(match[2]))
    if match := re.fullmatch(r"dictionary<values=(.+), indices=(\w+), ordered=([01])>", text):
        return pa.dictionary(parse_type(match[2]), parse_type(match[1]), match[3] == "1")
    try:
        return pa.type_for_alias(text)
    except ValueError:
        known = ["int64", "double", "bool", "string", "date32[day]", "timestamp[us]", "list<item: string>"]
        raise DataError(f"{text!r} is not the name of an Arrow type; {nearest(text, known)}") from None


def is_text(kind: pa.DataType) -> bool:
    """Whether it is of text, as a dictionary or not."""
    value = value_type(kind)
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type without its dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_number(kind: pa.DataType) -> bool:
    """Whether it is of integers, floats or decimals."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def is_moment(kind: pa.DataType) -> bool:
    """Whether it is of timestamps or dates."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether it is of lists, of any or of one length."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_scalar(kind: pa.DataType) -> bool:
    """Whether its cells are what a single cell of a feature or label may hold."""
    kind = value_type(kind)
    return is_text(kind) or is_number(kind) or is_moment(kind) or bool(pa.types.is_boolean(kind))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without views, run ends and narrow decimals, which few kernels know; UUIDs are text."""
    if is_uuid(value_type(kind)):
        return pa.large_string()
    if pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, plain_type(kind.value_type), kind.ordered)
    if is_list(kind):
        return _list_of(plain_type(kind.value_type), kind)
    return _plain_value(kind)


def _plain_value(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_decimal(kind) and kind.bit_width < 128:
        return pa.decimal128(kind.precision, kind.scale)
    return pa.bool_() if getattr(kind, "extension_name", "") == "arrow.bool8" else kind


def plain_column(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """The column as its ``plain_type``. Raises ``pa.ArrowException`` or ``ValueError`` where Arrow cannot."""
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if is_uuid(value_type(column.type)):
        if isinstance(column, pa.ChunkedArray):
            return pa.chunked_array([plain_column(one) for one in column.chunks], pa.large_string())
        return plain(column.dictionary_decode() if pa.types.is_dictionary(column.type) else column)
    kind = plain_type(column.type)
    return column if column.type == kind else column.cast(kind)


def _list_of(value: pa.DataType, like: pa.DataType) -> pa.DataType:
    if pa.types.is_fixed_size_list(like):
        return pa.list_(value, like.list_size)
    return pa.large_list(value) if pa.types.is_large_list(like) else pa.list_(value)


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The narrowest type for the values of both, None where there is none."""
    if one == other:
        return one
    if is_text(one) and is_text(other):
        large = pa.types.is_large_string(value_type(one)) or pa.types.is_large_string(value_type(other))
        return pa.large_string() if large else pa.string()
    both = [pa.schema([("x", kind)]) for kind in (one, other)]
    try:
        common = pa.unify_schemas(both, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None
    if pa.types.is_decimal(common) and (pa.types.is_integer(one) or pa.types.is_integer(other)):
        digits = max(common.precision, INTEGER_DIGITS + common.scale)  # for Arrow makes no narrower ones of integers
        return (pa.decimal128 if digits <= 38 else pa.decimal256)(digits, common.scale)
    return common


def converts(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Text becomes any plain type, lists become lists of a fixed size; other types stay what they are."""
    if is_text(found):
        return not (is_text(wanted) or pa.types.is_nested(wanted) or pa.types.is_null(wanted))
    return bool(pa.types.is_fixed_size_list(wanted) and (pa.types.is_list(found) or pa.types.is_large_list(found)))


def are_codes(texts: pa.Array) -> bool:
    """Whether they are whole numbers that no number holds as it is written: 007, 0x1F, or more digits than an int64."""
    if pc.any(pc.match_substring_regex(texts, r"^\s*[-+]?0(\d+|[xX][\da-fA-F]+)\s*$")).as_py():
        return True
    if not pc.all(pc.match_substring_regex(texts, r"^\s*[-+]?\d+\s*$")).as_py():
        return False
    try:
        pc.utf8_trim_whitespace(texts).cast(pa.int64())
    except pa.ArrowException:
        return True
    return False


def are_thousands(texts: pa.Array) -> bool:
    """Whether 1.234 stands among them for a thousand and more: all its numbers have three digits behind a point or are
    whole, with some of three digits among these, which fractions seldom are."""
    form = r"^\s*[-+]?(0|[1-9]\d{0,2}(\.\d{3})*)\s*$"
    forms = (form, r"\.", r"^\s*[-+]?\d{3}\s*$")
    alike, pointed, hundreds = (pc.match_substring_regex(texts, one) for one in forms)
    return bool(pc.all(alike).as_py() and pc.any(pointed).as_py() and pc.any(hundreds).as_py())


def guessed_type(values: pa.Array) -> pa.DataType:
    """The narrowest type that all the texts convert to without loss."""
    if are_codes(values):
        return pa.string()
    for kind in (pa.int64(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            values.cast(kind)
        except pa.ArrowException:
            continue
        return pa.timestamp("us") if pa.types.is_timestamp(kind) and are_local(values) else kind
    return pa.string()


def are_local(texts: pa.Array) -> bool:
    """Whether some are times of another zone than UTC, each on a clock of its own."""
    return bool(pc.any(pc.match_substring_regex(texts, r"[T ]\d\d.*[+-][\d:]*[1-9][\d:]*\s*$")).as_py())


def check_names(names: Sequence[str], where: str, *, first: int = 0) -> None:
    """Raise ``DataError`` where a column of ``where``, from the ``first`` on, has no name, or that of another."""
    seen = set(names[:first])
    for at, name in enumerate(names[first:], first):
        if not name.strip():
            raise DataError(f"{where}: column {at + 1} has an empty name; name every column")
        if name in seen:
            raise DataError(f"{where}: two columns are named {name!r}; rename one")
        seen.add(name)
