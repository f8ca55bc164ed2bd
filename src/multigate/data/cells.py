"""What one raw cell means as text, as a number, as a moment; and the same for whole Arrow columns.

A column is read through its distinct values wherever a cell needs Python: the answers are equal because the
same function gives them.
"""

import math
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.errors import DataError

LARGEST = float(np.finfo(np.float32).max)
"""Numbers beyond it, infinities included, are taken as missing: their squares must stay finite in a fit."""

_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


class BadCell(Exception):
    """A cell that does not hold what was wanted; the caller knows the column and raises ``DataError``."""

    def __init__(self, wanted: str, found: Any, advice: str) -> None:
        super().__init__(wanted)
        self.wanted, self.found, self.advice = wanted, found, advice

    def error(self, column: str, row: int | None = None) -> DataError:
        """``row`` counts from 0; people count from 1."""
        place = f"column {column!r}" + ("" if row is None else f", row {row + 1:,}")
        found = repr(self.found)
        return DataError(f"{place}: wanted {self.wanted}, found {found[:80]}; {self.advice}")


def text(value: Any) -> str | None:
    """The one text form of a cell, None where missing: 3, 3.0 and "3" agree, true and "true" agree; never stripped."""
    if isinstance(value, str):
        return value or None
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
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
        return None if np.isnat(value) else str(value.astype("datetime64[us]").item())
    if isinstance(value, Decimal):
        if not value.is_finite():
            return _float_text(float(value))
        return str(int(value)) if value == value.to_integral_value() else _float_text(float(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace") or None
    if isinstance(value, list | tuple | dict | set | np.ndarray):
        raise BadCell("a single value", value, "declare the column a bag or a vector")
    return str(value)


def number(value: Any) -> float:
    """A cell as a float64, NaN where missing (null, empty, not finite, or beyond float32)."""
    if value is None:
        return math.nan
    try:
        if isinstance(value, str):
            result = float(value) if value else math.nan
        elif isinstance(value, bool | int | float | np.number | np.bool_ | Decimal):
            result = float(value)
        elif type(value).__name__ in ("NaTType", "NAType"):
            return math.nan
        else:
            raise ValueError
    except OverflowError:
        return math.nan
    except (ValueError, TypeError):
        raise BadCell("a number", value, "declare the column a category, or clean it") from None
    return result if abs(result) <= LARGEST else math.nan


def moment(value: Any) -> int | None:
    """A cell as microseconds since 1970 on its own wall clock, None where missing.

    Dates, datetimes and ISO text are read as they stand (a time zone is dropped, not converted). A number counts
    from 1970 UTC in seconds below 1e11, else milliseconds below 1e14, else microseconds below 1e17, else nanoseconds.
    """
    if isinstance(value, np.datetime64):
        value = None if np.isnat(value) else value.astype("datetime64[us]").item()
    if value is None or value == "" or type(value).__name__ in ("NaTType", "NAType"):
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
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number | Decimal):
        raise BadCell("a time", value, "give a timestamp, ISO 8601 text or a number of seconds since 1970")
    count = number(value)
    return math.floor(count * _tick(abs(count))) if abs(count) <= _FURTHEST else None


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
        raise DataError(f"column {column!r}: wanted single values, found {array.type}; declare it a bag or a vector")
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
    if pa.types.is_timestamp(values.type) and values.type.unit == "ns":
        values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
    return values.to_pylist()


def through_distinct(
    array: pa.Array, read: Callable[[Any], Any], column: str, first_row: int | None
) -> tuple[np.ndarray, list[Any]]:
    """(R,) index into the answers of ``read``, called once per distinct value; ``BadCell`` becomes ``DataError``."""
    index, values = codes(array, column)
    answers: list[Any] = []
    for at, value in enumerate(_python(values)):
        try:
            answers.append(read(value))
        except BadCell as bad:
            rows = np.flatnonzero(index == at)
            if len(rows):
                raise bad.error(column, None if first_row is None else first_row + int(rows[0])) from None
            answers.append(read(None))
    answers.append(read(None))
    return index, answers


def numbers(array: pa.Array, column: str, first_row: int | None = None) -> np.ndarray:
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
    _refuse(kind, column)
    index, answers = through_distinct(array, number, column, first_row)
    return np.array(answers, dtype=np.float64)[index]


def _refuse(kind: pa.DataType, column: str) -> None:
    if pa.types.is_temporal(kind):
        raise DataError(f"column {column!r}: wanted numbers, found {kind}; declare it a time")
    if pa.types.is_nested(kind):
        raise DataError(f"column {column!r}: wanted numbers, found {kind}; declare it a vector or a bag")


NO_MOMENT = np.iinfo(np.int64).min


def moments(array: pa.Array, column: str, first_row: int | None = None) -> np.ndarray:
    """``moment`` of every row, (R,) int64 microseconds with ``NO_MOMENT`` where missing."""
    array = plain(array)
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            array = pc.local_timestamp(array)
        micros = array.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        return pc.fill_null(micros, NO_MOMENT).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        count = numbers(array, column, first_row)
        size = np.abs(count)
        tick = np.where(size < 1e11, 1e6, np.where(size < 1e14, 1e3, np.where(size < 1e17, 1.0, 1e-3)))
        fits = size <= _FURTHEST
        micros = np.floor(np.where(fits, count, 0.0) * tick).astype(np.int64)
        return np.where(fits, micros, NO_MOMENT)
    index, answers = through_distinct(array, moment, column, first_row)
    return np.array([NO_MOMENT if one is None else one for one in answers], dtype=np.int64)[index]
