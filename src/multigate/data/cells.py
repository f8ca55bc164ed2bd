"""What one raw cell means as text, as a number, as a moment; and the same for whole Arrow columns.

A column is read through its distinct values wherever a cell needs Python: the answers are equal because the
same function gives them.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.errors import DataError

LARGEST = float(np.finfo(np.float32).max)
"""Numbers beyond it, infinities included, are taken as missing: their squares must stay finite in a fit."""

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
    return str(int(value)) if value.is_integer() else repr(value)


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


_NUMBERS = (bool, int, float, np.integer, np.floating, np.bool_, Decimal)


def number(value: Any) -> float:
    """A cell as a float64, NaN where missing (null, empty, not finite, or beyond float32)."""
    if value is None:
        return math.nan
    try:
        if isinstance(value, str):
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

    Distinct values may repeat or be unused where the column is an Arrow dictionary already, but never outnumber
    the rows by much.
    """
    array = plain(array)
    if pa.types.is_nested(array.type):
        raise refused(array.type, column, "single values")
    _check_zone(array.type, column)
    if not pa.types.is_dictionary(array.type):
        array = (array.cast(pa.float32()) if array.type == pa.float16() else array).dictionary_encode()
    indices, values = array.indices, plain(array.dictionary)
    if indices.null_count:
        indices = pc.fill_null(indices.cast(pa.int64()), len(values))
    index = indices.to_numpy(zero_copy_only=False)
    if len(values) > 2 * len(index) + 1024:
        used, index = np.unique(index, return_inverse=True)
        missing = len(used) > 0 and used[-1] == len(values)
        used = used[:-1] if missing else used
        values = values.take(pa.array(used))
    return index, values


def texts(values: pa.Array) -> list[str | None]:
    """``text`` of every value."""
    kind = values.type
    if pa.types.is_integer(kind):
        return values.cast(pa.string()).to_pylist()
    found = _python(values)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [one or None for one in found]
    return [text(one) for one in found]


def _python(values: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(values.type) or pa.types.is_date(values.type):
        if pa.types.is_timestamp(values.type) and values.type.unit == "ns":
            values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
        read = (_micros(values) != NO_MOMENT) & (moments(values, "") != NO_MOMENT)  # here and in its zone
        values = pc.if_else(pa.array(read), values, pa.scalar(None, values.type))
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
    answers: list[Any] = []
    for at, value in enumerate(_python(values)):
        try:
            answers.append(read(value))
        except BadCell as bad:
            rows = np.flatnonzero(index == at)
            if len(rows):
                raise bad.error(column, int(rows[0])) from None
            answers.append(read(None))
    answers.append(read(None))
    return index, answers


def numbers(array: pa.Array, column: str) -> np.ndarray:
    """``number`` of every row, (R,) float64."""
    array = plain(array)
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        if pa.types.is_boolean(kind) or kind == pa.float16():
            array = array.cast(pa.int8() if pa.types.is_boolean(kind) else pa.float32())
        found = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        outside = ~(np.abs(found) <= LARGEST)
        return np.where(outside, np.nan, found) if outside.any() else found
    if pa.types.is_null(kind):
        return np.full(len(array), np.nan)
    if pa.types.is_temporal(kind) or pa.types.is_nested(kind):
        raise refused(kind, column, "numbers")
    index, answers = through_distinct(array, number, column)
    return np.array(answers, dtype=np.float64)[index]


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
    found = pc.fill_null(ticks, NO_MOMENT).to_numpy(zero_copy_only=False)
    unit = "D" if pa.types.is_date32(kind) else "ms" if pa.types.is_date64(kind) else kind.unit
    if unit == "ns":
        found, size = found // 1_000, 1
    else:
        size = {"us": 1, "ms": 1_000, "s": 1_000_000, "D": 86_400_000_000}[unit]
    read = (found >= -(-_FIRST // size)) & (found <= _LAST // size) & array.is_valid().to_numpy(zero_copy_only=False)
    return np.where(read, np.where(read, found, 0) * size, NO_MOMENT)
