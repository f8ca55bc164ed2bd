"""A block of JSON lines as a table, read by Arrow in ways around what its reader does by itself.

It does not know the row of an error where it uses threads, takes text that is not UTF-8, sees times in texts, loses
values of lists that begin with a null, and makes fractions of whole numbers that no int64 holds. What is done about
each stands in one function, in this order.
"""

import json
import re

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

_LONG = pa.decimal128(38, 0)
_LONGS = pa.list_(_LONG)
_OF_LONG = re.compile(rb'("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*+:\s*+(?:\[(?:[^\]]*[\s,])?)?-?\d{19,}(?![\d.eE])')
"""A key whose value, or one in its list, is a number of many digits, not one such as 9.3e+18."""


def parsed(block: bytes, kinds: pa.Schema) -> pa.Table:
    """These columns of a block. Raises ``pa.ArrowInvalid`` where rows are none, or a column not of its kind."""
    return _checked(_read(block, kinds, "ignore"))


def inferred(block: bytes) -> pa.Table:
    """All columns of a block, of the types that their values have; whole numbers beyond int64 are ``is_long``.

    Raises ``pa.ArrowInvalid`` where rows are none, or a column has values of two kinds, and ``UnicodeError`` too where
    text is not UTF-8.
    """
    found = _read(block, None, "infer")
    guessed = found.schema
    told = _to_be_told(guessed)
    found = _checked(_read(block, told, "infer") if told.names else found)
    for at, name in enumerate(found.schema.names):
        column = found.column(at)
        mended = _with_long_numbers(_with_open_lists(column, guessed.field(name).type), name, block)
        if mended is not column:
            found = found.set_column(at, name, mended)
    return found


def _read(block: bytes, kinds: pa.Schema | None, others: str) -> pa.Table:
    """On one thread, where errors know their row."""
    return pyarrow.json.read_json(
        pa.BufferReader(block),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=kinds, unexpected_field_behavior=others),
    )


def _checked(found: pa.Table) -> pa.Table:
    """The same; nothing else tells that text is not UTF-8."""
    found.validate(full=True)
    return found


def _to_be_told(guessed: pa.Schema) -> pa.Schema:
    """The columns whose types the reader must not guess: those with times, which are texts, and those with lists.

    Of lists that begin with a null it loses a value where it guesses.
    """
    kinds = [(field.name, _told(field.type)) for field in guessed]
    return pa.schema(
        [(name, kind) for name, kind in kinds if pa.types.is_nested(kind) or kind != guessed.field(name).type]
    )


def _told(kind: pa.DataType) -> pa.DataType:
    """The type with texts for times, and for what is null in all lists; see ``_with_open_lists``."""
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_told(field.type)) for field in kind])
    if not pa.types.is_list(kind):
        return kind
    return pa.list_(pa.string() if pa.types.is_null(kind.value_type) else _told(kind.value_type))


def _with_open_lists(column: pa.ChunkedArray, guessed: pa.DataType) -> pa.ChunkedArray:
    """The column, as lists of nulls where these are all: told so, the reader loses values as well."""
    if not (pa.types.is_list(guessed) and is_open(guessed)):
        return column
    return pa.chunked_array([pa.array(column.to_pylist(), guessed)])


def _with_long_numbers(column: pa.ChunkedArray, name: str, block: bytes) -> pa.ChunkedArray:
    """The column, with every digit where it has whole numbers, or lists of them, beyond int64 and no fractions."""
    if not (_may_be_long(column) and _is_whole(name, block)):
        return column
    kind = _LONGS if pa.types.is_list(column.type) else _LONG
    try:
        return parsed(block, pa.schema([(name, kind)])).column(name)
    except pa.ArrowInvalid:  # fractional
        return column


def _may_be_long(column: pa.ChunkedArray) -> bool:
    column = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    largest = pc.max(pc.abs(column)).as_py() if pa.types.is_floating(column.type) else None
    return largest is not None and 2.0**63 <= largest < 1e38


def _is_whole(name: str, block: bytes) -> bool:
    """Whether a number of a column, or in its lists, stands there with all of its many digits."""
    return any(json.loads(key, strict=False) == name for key in set(_OF_LONG.findall(block)))  # keys have escapes, too


def is_open(kind: pa.DataType) -> bool:
    """Whether nothing but nulls, or empty lists, was seen."""
    return bool(pa.types.is_null(kind.value_type if pa.types.is_list(kind) else kind))


def is_long(kind: pa.DataType) -> bool:
    """Whether these are whole numbers of more digits than an int64, or lists of them; text then, as in CSV files."""
    return bool(kind in (_LONG, _LONGS))


def as_text(kind: pa.DataType) -> pa.DataType:
    """What becomes of a type that ``is_long``."""
    return pa.string() if kind == _LONG else pa.list_(pa.string())
