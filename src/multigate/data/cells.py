"""What one raw cell means as text, as a number, as a moment; and the same for whole Arrow columns.

A column is read through its distinct values wherever a cell needs Python: the answers are equal because the
same function gives them.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from struct import Struct
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.errors import DataError

LARGEST = float(np.finfo(np.float32).max)
"""Numbers beyond it, infinities included, are taken as missing: their squares must stay finite in a fit."""

MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "-nan", "null", "NULL", "None", "\\N", "?")
"""What reads as missing in text of numbers, times or booleans; in a text column only the empty string does."""
_LONG = 10**76
"""Whole numbers beyond it, which no column holds, are not written out."""
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
_FIRST, _LAST = (datetime.min - _EPOCH) // _MICROSECOND, (datetime.max - _EPOCH) // _MICROSECOND
"""The moments that are read, of the years 1 to 9999; others are taken as missing."""


class ColumnError(DataError):
    """A column, or its cell in the row (from 0) of the rows at hand, does not hold what was wanted."""

    def __init__(self, column: str, why: str, row: int | None = None) -> None:
        super().__init__(f"column {column!r}: {why}")
        self.column, self.why, self.row = column, why, row


class Numbers(Protocol):
    """The number in its table of each row at hand, both from 0."""

    def __getitem__(self, row: int, /) -> int: ...


@contextmanager
def placed(table: str, numbers: Numbers) -> Iterator[None]:
    """Errors of columns name the table (unless it is ``""``) and the row by its number."""
    try:
        yield
    except ColumnError as error:
        row = "" if error.row is None else f", row {numbers[error.row] + 1:,}"  # people count from 1
        raise DataError(f"{table + ': ' if table else ''}column {error.column!r}{row}: {error.why}") from None


class BadCell(Exception):
    """A cell that does not hold what was wanted; the caller knows the column and raises ``ColumnError``."""

    def __init__(self, wanted: str, found: Any, advice: str) -> None:
        super().__init__(wanted)
        self.wanted, self.found, self.advice = wanted, found, advice

    def error(self, column: str, row: int | None = None) -> ColumnError:
        return ColumnError(column, f"wanted {self.wanted}, found {short(self.found)}; {self.advice}", row)


def short(value: Any) -> str:
    """A value as an error shows it."""
    try:
        shown = repr(value)
    except ValueError:  # an integer of thousands of digits
        shown = f"a very long {type(value).__name__}"
    return shown if len(shown) <= 60 else shown[:57] + "..."


def text(value: Any) -> str | None:
    """The one text form of a cell, None where missing: 3, 3.0 and "3" agree, true and "true" agree; never stripped."""
    if isinstance(value, str):
        return value or None
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer) and not isinstance(value, np.timedelta64):
        return str(int(value)) if -_LONG < int(value) < _LONG else hex(value)
    if isinstance(value, float | np.floating):
        return _float_text(float(value))
    return _other_text(value)


def _float_text(value: float) -> str | None:
    if math.isnan(value):
        return None
    return str(int(value)) if value.is_integer() else repr(shortest_of(value))


def _other_text(value: Any) -> str | None:
    if type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, np.datetime64):
        when = _datetime(value)
        return None if when is None else str(when)
    if isinstance(value, np.timedelta64):
        return None if np.isnat(value) else str(value.astype("timedelta64[us]").item())
    if isinstance(value, Decimal):
        return _decimal_text(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace") or None
    if isinstance(value, list | tuple | dict | set | np.ndarray):
        raise BadCell("a single value", value, "only bags and vectors read lists")
    return str(value)


def _decimal_text(value: Decimal) -> str | None:
    if value.is_nan():
        return None
    if not value.is_finite() or abs(value) >= _LONG:
        return str(value)
    return str(int(value)) if value == value.to_integral_value() else _float_text(float(value))


Spell = Callable[[str], str | None]
"""From a text to the one that its value has in a column of another type; None where that is missing."""


def spelling(kind: str | None) -> Spell | None:
    """How texts are spelled beside those of a column of this Arrow type, None where they stay as they are.

    Among numbers 07 is 7, among truth values True is true; what is neither stays, a value that was not there.
    """
    if kind == "bool":
        return _as_truth
    return _as_number if kind is not None and re.match(r"u?int\d+$|double$|float$|halffloat$", kind) else None


def _as_truth(text: str) -> str | None:
    if text in MISSING:
        return None
    return {"1": "true", "0": "false"}.get(text, text.lower() if text.lower() in ("true", "false") else text)


def _as_number(text: str) -> str | None:
    if text in MISSING:
        return None
    try:
        return str(int(text)) if re.fullmatch(r"\s*[+-]?\d{1,76}\s*", text) else _float_text(number(text))
    except BadCell:
        return {"true": "1", "false": "0"}.get(text.lower(), text)


_NUMBERS = (bool, int, float, np.integer, np.floating, np.bool_, Decimal)


def number(value: Any) -> float:
    """A cell as a float64, NaN where missing (null, empty, not finite, or beyond float32)."""
    if value is None:
        return math.nan
    try:
        if isinstance(value, str):
            if "_" in value:  # Python reads 1_000, no table does
                raise ValueError
            result = float(value) if value else math.nan
        elif isinstance(value, _NUMBERS) and not isinstance(value, np.timedelta64):
            result = float(value)
        elif type(value).__name__ in ("NaTType", "NAType"):
            return math.nan
        else:
            raise ValueError
    except OverflowError:
        return math.nan
    except (ValueError, TypeError):
        raise BadCell("a number", value, "mend the value, or give the column another kind") from None
    return result if abs(result) <= LARGEST else math.nan


def moment(value: Any) -> int | None:
    """A cell as microseconds since 1970 on its own wall clock, None where missing or not of the years 1 to 9999.

    Dates, datetimes and ISO text are read as they stand (a time zone is dropped, not converted). A number counts
    from 1970 UTC in seconds below 1e11, else milliseconds below 1e14, else microseconds below 1e17, else nanoseconds.
    """
    if isinstance(value, np.datetime64):
        value = _datetime(value)
    if value is None or (isinstance(value, str) and not value) or type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise BadCell("a time such as '2024-05-31 17:00'", value, "write it as ISO 8601") from None
    if isinstance(value, datetime):
        return (value.replace(tzinfo=None) - _EPOCH) // _MICROSECOND
    if isinstance(value, date):
        return (datetime(value.year, value.month, value.day) - _EPOCH) // _MICROSECOND
    if isinstance(value, bool | np.bool_) or not isinstance(value, _NUMBERS):
        raise BadCell("a time", value, "give a timestamp, ISO 8601 text or a number of seconds since 1970")
    count = number(value)
    micros = math.floor(count * _tick(abs(count))) if abs(count) <= _FURTHEST else None
    return micros if micros is not None and _FIRST <= micros <= _LAST else None


def _datetime(value: np.datetime64) -> datetime | None:
    """To the microsecond, None where missing or not of the years 1 to 9999."""
    if np.datetime_data(value.dtype)[0] in ("ps", "fs", "as"):  # a year is too long for them
        value = value.astype("datetime64[us]")
    # as a Python int: of the largest dates even the year overflows
    if np.isnat(value) or not 1 <= 1970 + int(value.astype("datetime64[Y]").astype(np.int64)) <= 9999:
        return None
    return value.astype("datetime64[us]").item()


_FURTHEST = 9e18


def _tick(size: float) -> float:
    """Microseconds in one unit of an epoch number of this size."""
    return 1e6 if size < 1e11 else 1e3 if size < 1e14 else 1.0 if size < 1e17 else 1e-3


def plain(array: pa.Array) -> pa.Array:
    """The array without its extension type."""
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def codes(array: pa.Array, column: str) -> tuple[np.ndarray, pa.Array]:
    """Index of each row's value among the distinct ones (R,), and those; a null has the index after the last.

    Distinct values may repeat where the column is an Arrow dictionary already, and a few may be unused.
    """
    array = plain(array)
    if pa.types.is_nested(array.type):
        raise refused(array.type, column, "single values")
    _check_zone(array.type, column)
    if not pa.types.is_dictionary(array.type):
        array = (array.cast(pa.float32()) if array.type == pa.float16() else array).dictionary_encode()
    indices, values = array.indices, plain(array.dictionary)
    index = stored(indices)
    if indices.null_count or index.dtype == np.uint64:
        index = np.where(known(indices), index.astype(np.int64), len(values))
    if len(values) > 1024:
        seen = np.zeros(len(values) + 1, dtype=np.bool_)
        seen[index] = True
        used = np.flatnonzero(seen[:-1])
        if len(used) < len(values):
            place = np.empty(len(seen), dtype=np.int64)
            place[used], place[-1] = np.arange(len(used)), len(used)
            index, values = place.take(index), values.take(as_arrow(used))
    return index, values


def close_integers(array: pa.Array) -> tuple[np.ndarray, np.ndarray] | None:
    """As ``codes``, of integers not much further apart than there are rows: their values (V,) int64 rise.

    None of other integers and types. No hashing: a column of 65,536 ages in a quarter of the time.
    """
    array = plain(array)
    if not pa.types.is_integer(array.type) or array.null_count == len(array):
        return None
    ends = pc.min_max(array)
    low, high = ends["min"].as_py(), ends["max"].as_py()
    if high - low > 4 * len(array) + 1024 or high >= 1 << 62 or low <= -(1 << 62):
        return None
    index = np.subtract(stored(array), low, dtype=np.int64)
    if array.null_count:
        index[~known(array)] = high - low + 1
    seen = np.zeros(high - low + 2, dtype=np.bool_)
    seen[index] = True
    values = np.flatnonzero(seen[:-1])
    if len(values) < high - low + 1:
        place = np.empty(len(seen), dtype=np.int64)
        place[values], place[-1] = np.arange(len(values)), len(values)
        index = place.take(index)
    return index, values + low


def stored(array: pa.Array) -> np.ndarray:
    """The numbers of an array as they lie in memory, whatever stands where it is null; not copied.

    ``to_numpy`` would import pandas where it is installed, which takes longer than most tables.
    """
    dtype = np.dtype(array.type.to_pandas_dtype())
    if len(array) == 0:
        return np.empty(0, dtype=dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def filled(array: pa.Array, value: float) -> np.ndarray:
    """``stored``, but ``value`` where it is null."""
    return np.where(known(array), stored(array), value) if array.null_count else stored(array)


def as_arrow(values: np.ndarray) -> pa.Array:
    """Numbers or truth values (R,) as an Arrow array; ``pa.array`` would import pandas, too."""
    packed = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(packed)])


def as_arrow_text(values: Sequence[str]) -> pa.Array:
    """Texts as an Arrow array."""
    written = [one.encode() for one in values]
    ends = pa.py_buffer(np.cumsum([0, *map(len, written)], dtype=np.int64))
    text = pa.py_buffer(b"".join(written))
    return pa.Array.from_buffers(pa.large_string(), len(values), [None, ends, text]).cast(pa.string())


def known(array: pa.Array) -> np.ndarray:
    """(R,) bool: where an array is not null."""
    if array.null_count == 0:
        return np.ones(len(array), dtype=np.bool_)
    bits = np.frombuffer(array.buffers()[0], dtype=np.uint8)
    return np.unpackbits(bits, count=array.offset + len(array), bitorder="little")[array.offset :].view(np.bool_)


def with_codes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its text as dictionaries: ``codes`` of it take no hashing any more."""
    columns = [
        one.dictionary_encode() if pa.types.is_string(one.type) or pa.types.is_large_string(one.type) else one
        for one in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names) if columns else batch


def texts(values: pa.Array) -> list[str | None]:
    """``text`` of every value."""
    kind = values.type
    if pa.types.is_integer(kind):
        return values.cast(pa.string()).to_pylist()
    found = _python(values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [one or None for one in found]
    return [text(one) for one in found]


def distinct_texts(array: pa.Array, column: str, spell: Spell | None = None) -> tuple[np.ndarray, list[str | None]]:
    """``codes`` and ``texts`` of a column, in any order, spelled by ``spell``."""
    close = close_integers(array)
    if close is not None:
        return close[0], _spelled(list(map(str, close[1].tolist())), array.type, spell)
    index, values = codes(array, column)
    return index, _spelled(texts(values), array.type, spell)


def _spelled(found: list[str | None], kind: pa.DataType, spell: Spell | None) -> list[str | None]:
    if spell is None or (spell is _as_number and is_number(kind)):
        return found
    return [None if one is None else spell(one) for one in found]


def _python(values: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        if pa.types.is_timestamp(values.type) and values.type.unit == "ns":
            values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
        read = (_micros(values) != NO_MOMENT) & (moments(values, "") != NO_MOMENT)  # here and in its zone
        values = pc.if_else(as_arrow(read), values, pa.nulls(len(values), values.type))
    return values.to_pylist()


@cache
def _is_known(zone: str) -> bool:
    try:
        pc.local_timestamp(pa.array([0], pa.timestamp("us", zone)))
    except pa.ArrowException:
        return False
    return True


def _check_zone(kind: pa.DataType, column: str) -> None:
    if pa.types.is_timestamp(kind) and kind.tz is not None and not _is_known(kind.tz):
        raise ColumnError(column, f"wanted a time zone known on this machine, found {kind.tz!r}; write it in UTC")


def through_distinct(array: pa.Array, read: Callable[[Any], Any], column: str) -> tuple[np.ndarray, list[Any]]:
    """(R,) index into the answers of ``read``, called once per distinct value; ``BadCell`` becomes ``ColumnError``."""
    index, values = codes(array, column)
    used = np.bincount(index, minlength=len(values) + 1).tolist()
    found = [*_python(values), None]
    try:
        return index, [read(value if many else None) for value, many in zip(found, used, strict=True)]
    except BadCell:
        raise _first_wrong(index, found, read, column) from None


def _first_wrong(index: np.ndarray, values: list[Any], read: Callable[[Any], Any], column: str) -> ColumnError:
    """The error for the first row whose value cannot be read: a dictionary may have that of a later one before it."""
    for row in np.sort(np.unique(index, return_index=True)[1]).tolist():
        try:
            read(values[index[row]])
        except BadCell as bad:
            return bad.error(column, row)
    raise AssertionError("every value could be read")


def numbers(array: pa.Array, column: str) -> np.ndarray:
    """``number`` of every row, (R,) float64."""
    array = plain(array)
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        if pa.types.is_boolean(kind) or kind == pa.float16():
            array = array.cast(pa.int8() if pa.types.is_boolean(kind) else pa.float32())
        found = filled(array.cast(pa.float64(), safe=False), math.nan)
        outside = ~(np.abs(found) <= LARGEST)
        return np.where(outside, np.nan, found) if outside.any() else found
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    if pa.types.is_temporal(kind) or pa.types.is_nested(kind):
        raise refused(kind, column, "numbers")
    index, answers = through_distinct(array, number, column)
    return np.array(answers, dtype=np.float64)[index]


def distinct_numbers(array: pa.Array, column: str) -> tuple[np.ndarray | None, np.ndarray]:
    """``numbers`` by way of distinct ones where those are quickly found: an index (R,) into numbers (V,).

    Without an index there is a number for every row.
    """
    close = close_integers(array)
    if close is None:
        return None, numbers(array, column)
    index, values = close
    return index, np.append(values.astype(np.float64), np.nan)


def is_number(kind: pa.DataType) -> bool:
    """Whether it is of whole or fractional numbers."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def shortest(x: np.ndarray) -> np.ndarray:
    """Numbers (R,) float64; each that a float32 holds exactly as the shortest decimal that is this float32.

    So 0.99 is one number in a column of any width, in a text and in a row: 0.9900000095, which the float32 is, would be
    another category, and in another bin.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = x.astype(np.float32)
    left = np.flatnonzero((narrow == x) & (x != np.trunc(x)))
    if not len(left):
        return x
    found = x.copy()
    for digits in _DIGITS:
        y = x[left]
        # a whole number over a power of ten up to 10^22, both exact: the nearest double to the decimal
        places = digits - 1 - np.floor(np.log10(np.abs(y))).astype(np.int64)
        power = 10.0 ** np.minimum(places, 22)
        decimal = np.rint(y * power) / power
        same = (decimal.astype(np.float32) == narrow[left]) & (places <= 22)
        found[left[same]] = decimal[same]
        left = left[~same]
    found[left] = [shortest_of(value) for value in x[left].tolist()]
    return found


def shortest_of(value: float) -> float:
    """``shortest`` of one number."""
    if value.is_integer() or not abs(value) <= LARGEST:
        return value
    narrow = _FLOAT32.pack(value)
    if _FLOAT32.unpack(narrow)[0] != value:
        return value
    for digits in _DIGITS:
        decimal = float(f"{value:.{digits}g}")
        if decimal == value or (abs(decimal) <= LARGEST and _FLOAT32.pack(decimal) == narrow):
            return decimal
    return value


_FLOAT32, _DIGITS = Struct("f"), range(6, 10)
"""A float32 in bytes; the significant digits that tell all float32s apart."""


def refused(kind: pa.DataType, column: str, wanted: str) -> ColumnError:
    """The error for a column of a type that is not read as what was wanted."""
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        advice = "declare it a time, or write it as numbers"
    elif pa.types.is_temporal(kind):
        advice = "write it as a number of seconds"
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        advice = "only bags and vectors read lists"
    else:
        advice = "give its fields columns of their own, or leave it out"
    return ColumnError(column, f"wanted {wanted}, found {kind}; {advice}")


NO_MOMENT = np.iinfo(np.int64).min


def moments(array: pa.Array, column: str) -> np.ndarray:
    """``moment`` of every row, (R,) int64 microseconds with ``NO_MOMENT`` where missing."""
    array = plain(array)
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        _check_zone(kind, column)
        return _micros(pc.local_timestamp(array) if pa.types.is_timestamp(kind) and kind.tz is not None else array)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        count = numbers(array, column)
        size = np.abs(count)
        tick = np.where(size < 1e11, 1e6, np.where(size < 1e14, 1e3, np.where(size < 1e17, 1.0, 1e-3)))
        fits = size <= _FURTHEST
        micros = np.floor(np.where(fits, count, 0.0) * tick).astype(np.int64)
        return np.where(fits & (micros >= _FIRST) & (micros <= _LAST), micros, NO_MOMENT)
    index, answers = through_distinct(array, moment, column)
    return np.array([NO_MOMENT if one is None else one for one in answers], dtype=np.int64)[index]


def _micros(array: pa.Array) -> np.ndarray:
    """Timestamps or dates, not of a zone, as ``moments``."""
    kind = array.type
    ticks = (array.cast(pa.int32()) if pa.types.is_date32(kind) else array).cast(pa.int64())
    found = filled(ticks, NO_MOMENT)
    unit = "D" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    if unit == "ns":
        found, size = found // 1_000, 1
    else:
        size = {"us": 1, "ms": 1_000, "s": 1_000_000, "D": 86_400_000_000}[unit]
    read = (found >= -(-_FIRST // size)) & (found <= _LAST // size) & known(array)
    return np.where(read, np.where(read, found, 0) * size, NO_MOMENT)
