"""What one raw cell means: as text, as a number, as a moment; ``arrow`` reads whole columns alike."""

import math
import re
from collections.abc import Callable, Iterator, Sized
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from decimal import Decimal
from functools import cache, partial
from typing import Any, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from multigate.data.float32 import LARGEST, shortest_of
from multigate.errors import DataError

MISSING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "-nan", "null", "NULL", "None", "\\N", "?")
"""What reads as missing in text of numbers, times or booleans; in a text column only the empty string does."""
_LONG = 10**76
"""Whole numbers beyond it, which no column holds, are not written out."""
_FRACTION = re.compile(r"\s*[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?\s*")
"""A number in text with a point or an exponent."""
_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)
EXACT = 2**53
"""Up to here a float64 holds every whole number."""
DIGITS = 15
"""Of whole numbers that are below it."""
SHORT = 10**DIGITS
"""Whole numbers below it are written alike in columns of whole ones, of floats and of decimals."""
LATE = (datetime(2037, 1, 1) - _EPOCH) // _MICROSECOND
"""From then on Arrow's time zones have no summer, Python's do."""
FIRST, LAST = (datetime.min - _EPOCH) // _MICROSECOND, (datetime.max - _EPOCH) // _MICROSECOND
"""The moments that are read, of the years 1 to 9999; others are taken as missing."""
DAYS = 19000101, 21001231
"""Between them a number whose digits are those of a date is that day, and no moment of August 1970."""
FURTHEST = 9e18
"""Numbers beyond it are no moments, in whatever unit."""


class ColumnError(DataError):
    """A column, or its cell in the row (from 0) of the rows at hand, does not hold what was wanted."""

    def __init__(self, column: str, why: str, row: int | None = None) -> None:
        super().__init__(f"column {column!r}: {why}")
        self.column, self.why, self.row = column, why, row

    def __reduce__(self) -> tuple[type["ColumnError"], tuple[str, str, int | None]]:
        return type(self), (self.column, self.why, self.row)  # else a process that receives it fails to read it


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
    except UnicodeDecodeError:  # Arrow checks no text that it reads: that would take a sixth of the reading
        raise DataError(f"{table or 'the table'} holds text that is not UTF-8; write it again as UTF-8") from None


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
    # most are plain ones, and asking for every type takes ten times as long
    if type(value) is int or (isinstance(value, int | np.integer) and not isinstance(value, bool | np.timedelta64)):
        return str(int(value)) if -_LONG < int(value) < _LONG else hex(value)
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, float | np.floating):
        return _float_text(float(value))
    return _other_text(value)


def exact_text(value: Any) -> str | None:
    """``text`` of a cell among whole numbers. Raises ``BadCell`` for a float that may have been another one, and for
    text of one, as pandas writes it."""
    floating = _FRACTION.fullmatch(value) if isinstance(value, str) else isinstance(value, float | np.floating)
    if floating and EXACT < abs(float(value)) < math.inf:
        advice = (
            "a float of so many digits may stand for any of several (pandas makes floats of whole numbers where one is "
            "missing); give it as Int64 or as text with all its digits"
        )
        raise BadCell("a whole number", value, advice)
    return text(value)


def _float_text(value: float) -> str | None:
    if math.isnan(value):
        return None
    return str(int(value)) if value.is_integer() else repr(shortest_of(value))


def _other_text(value: Any) -> str | None:
    value = _datetime(value) if isinstance(value, np.datetime64) else value
    if value is None or type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, datetime):
        return datetime.isoformat(value, " ")  # pandas, whose times are Python's too, writes nanoseconds as well
    if isinstance(value, np.timedelta64 | timedelta):
        return _duration_text(value)
    if isinstance(value, Decimal):
        return _decimal_text(value)
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "backslashreplace") or None
    if isinstance(value, Sized):  # of whatever kind: what it shows is no value
        raise BadCell("a single value", value, "only bags and vectors read lists")
    return str(value)


def _duration_text(value: np.timedelta64 | timedelta) -> str | None:
    """As Python writes it; pandas, whose durations are Python's too, writes it otherwise."""
    found = value.astype("timedelta64[us]").item() if isinstance(value, np.timedelta64) else value
    return None if found is None else str(timedelta(found.days, found.seconds, found.microseconds))


def _decimal_text(value: Decimal) -> str | None:
    if value.is_nan():
        return None
    if not value.is_finite() or abs(value) >= _LONG:
        return str(value)
    return str(int(value)) if value == value.to_integral_value() else _float_text(float(value))


Spell = Callable[[str], str | None]
"""From a text to the one that its value has in a column of another type; None where that is missing."""


@cache
def spelling(kind: str | None) -> Spell | None:
    """How texts are spelled beside those of a column of this Arrow type, None where they stay as they are.

    Among numbers 07 is 7, among truth values True is true, among times 2024-05-01T17:00 is 2024-05-01 17:00:00, among
    times of day 17:00 is 17:00:00; what is none stays, a value that was not there.
    """
    if kind is None:
        return None
    if kind == "bool":
        return _as_truth
    if re.match(r"u?int\d+$", kind):
        return as_whole
    if kind in ("double", "float", "halffloat"):
        return _as_fraction
    if kind.startswith("decimal"):
        return as_whole if re.search(r", ?(0|-\d+)\)$", kind) else _as_decimal
    of_day = _as_time_of_day if kind.startswith(("time32", "time64")) else None
    found = re.match(r"(timestamp|date)(?:.*tz=([^]]+))?", kind)
    return of_day if found is None else partial(_as_moment, day=found[1] == "date", zone=found[2])


def _as_truth(text: str) -> str | None:
    if text in MISSING:
        return None
    return {"1": "true", "0": "false"}.get(_as_number(text) or "", text)


def as_whole(text: str) -> str | None:
    """As among numbers, in a column that was of whole ones."""
    return _as_number(text)


def _as_fraction(text: str) -> str | None:
    """As among numbers, in a column that was of floats: a whole number of many digits was rounded there."""
    found = _as_number(text)
    rounded = found is not None and len(found) > DIGITS and re.fullmatch(r"-?\d+", found)
    return _float_text(float(text)) if rounded else found


def _as_decimal(text: str) -> str | None:
    """As among numbers, in a column that was of decimals, which hold all digits that are written."""
    with suppress(ArithmeticError):  # of an exponent that no decimal has
        if _FRACTION.fullmatch(text):
            return _decimal_text(Decimal(text))
    return _as_number(text)


def _as_number(text: str) -> str | None:
    if text in MISSING:
        return None
    with suppress(ValueError):
        if "_" not in text:  # Python reads 1_000, no table does
            return str(int(text)) if re.fullmatch(r"\s*[+-]?\d{1,76}\s*", text) else _float_text(float(text))
    return {"true": "1", "false": "0"}.get(text.lower(), text)


NUMBERS = (as_whole, _as_fraction, _as_decimal)
"""How texts are spelled in columns of whole numbers, of floats and of decimals: alike but for very long numbers."""


def _as_moment(text: str, day: bool, zone: str | None) -> str | None:
    if text in MISSING:
        return None
    try:
        micros = moment(text, zone)
    except BadCell:
        try:
            micros = moment(number(text), zone)  # counted, as pandas writes JSON
        except BadCell:
            return text
    if micros is None:
        return None
    found = _EPOCH + micros * _MICROSECOND
    if day:
        return str(found.date()) if found.time() == time.min else text
    return str(found if zone is None else found.replace(tzinfo=_zone(zone)))


def _as_time_of_day(text: str) -> str | None:
    if text in MISSING:
        return None
    with suppress(ValueError):
        if ":" in text:  # Python reads 17, too
            return str(time.fromisoformat(text.strip()))
    return text


_NUMBERS = (bool, int, float, np.integer, np.floating, np.bool_, Decimal)


def number(value: Any) -> float:
    """A cell as a float64, NaN where missing (null, empty, not finite, or beyond float32)."""
    if type(value) in (float, int) and -LARGEST <= value <= LARGEST:  # as most are; the rest takes four times as long
        return float(value)
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


def moment(value: Any, zone: str | None = None) -> int | None:
    """A cell as microseconds since 1970 on the wall clock, None where missing or not of the years 1 to 9999.

    Dates, datetimes and ISO text, blanks around it aside, are read as they stand; what has a time zone is read on the
    clock of ``zone``, or, without one, on its own. A number such as 20240531 is that day, as the text is; any other is
    a moment, counted from 1970 UTC in seconds below 1e11, else milliseconds below 1e14, else microseconds below 1e17,
    else nanoseconds.
    """
    if isinstance(value, np.datetime64):
        value = _datetime(value)
    if type(value).__name__ == "Period":  # of pandas, in whose tables it is text
        value = str(value)
    if isinstance(value, str):
        value = _written(value)
    if value is None or type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, datetime):
        if zone is not None and value.tzinfo is not None:
            try:
                value = value.astimezone(_zone(zone))
            except OverflowError:
                return None
        return (value.replace(tzinfo=None) - _EPOCH) // _MICROSECOND
    if isinstance(value, date):
        return (datetime(value.year, value.month, value.day) - _EPOCH) // _MICROSECOND
    if isinstance(value, bool | np.bool_) or not isinstance(value, _NUMBERS):
        raise BadCell("a time", value, "give a timestamp, ISO 8601 text or a number of seconds since 1970")
    return _counted(number(value), zone)


def counted_moment(value: Any, zone: str | None = None) -> int | None:
    """``moment`` of a cell in a column that was of numbers: text of one is that number."""
    if isinstance(value, str):
        with suppress(BadCell):
            value = number(value) if value else None
    return moment(value, zone)


def _written(value: str) -> datetime | None:
    """The time that ISO text tells, None where it is blank or of the year 0, which Arrow has and Python has not."""
    found = value.strip()
    if not found:
        return None
    year_0 = found.startswith("0000")
    try:
        read = datetime.fromisoformat("0004" + found[4:] if year_0 else found)  # which has a 29th of February, too
    except ValueError:
        raise BadCell("a time such as '2024-05-31 17:00'", value, "write it as ISO 8601") from None
    return None if year_0 else read


def _counted(count: float, zone: str | None) -> int | None:
    """``moment`` of a number."""
    day = day_number(count)
    if day is not None:
        return (day - _EPOCH) // _MICROSECOND
    micros = math.floor(count * _tick(abs(count))) if abs(count) <= FURTHEST else None
    if micros is None or not FIRST <= micros <= LAST:
        return None
    return micros if zone is None else on_clock(micros, zone)


def on_clock(micros: int, zone: str) -> int | None:
    """Microseconds since 1970 UTC as those on the clock of a zone, None where that is not of the years 1 to 9999."""
    return moment((_EPOCH + micros * _MICROSECOND).replace(tzinfo=UTC), zone)


def from_clock(micros: int, zone: str) -> int:
    """Those on the clock of a zone as microseconds since 1970 UTC; of two the earlier."""
    standing = _EPOCH + micros * _MICROSECOND
    ahead = standing.replace(tzinfo=_zone(zone)).utcoffset() or timedelta()
    return (standing - _EPOCH - ahead) // _MICROSECOND


def day_number(count: float) -> datetime | None:
    """The day, of the years 1900 to 2100, that a number such as 20240531 writes; None of any other."""
    if not DAYS[0] <= count <= DAYS[1] or not float(count).is_integer():
        return None
    try:
        return datetime(int(count) // 10_000, int(count) // 100 % 100, int(count) % 100)
    except ValueError:
        return None


@cache
def zone_of(kind: str | None) -> str | None:
    """The time zone in the name of an Arrow type."""
    found = re.match(r"timestamp\[\w+, tz=(.+)\]$", kind or "")
    return found[1] if found else None


@cache
def _zone(name: str) -> tzinfo:
    """A time zone by its name, or by what it is ahead of UTC, such as +02:00."""
    try:
        if re.fullmatch(r"[+-]\d\d:?\d\d", name):
            return datetime.strptime(name, "%z").tzinfo or UTC
        return ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        raise DataError(
            f"the time zone {name!r} of the schema's types is unknown on this machine; install tzdata, or name another"
        ) from None


def _datetime(value: np.datetime64) -> datetime | None:
    """To the microsecond, None where missing or not of the years 1 to 9999."""
    if np.datetime_data(value.dtype)[0] in ("ps", "fs", "as"):  # a year is too long for them
        value = value.astype("datetime64[us]")
    # as a Python int: of the largest dates even the year overflows
    if np.isnat(value) or not 1 <= 1970 + int(value.astype("datetime64[Y]").astype(np.int64)) <= 9999:
        return None
    return value.astype("datetime64[us]").item()


def _tick(size: float) -> float:
    """Microseconds in one unit of an epoch number of this size."""
    return 1e6 if size < 1e11 else 1e3 if size < 1e14 else 1.0 if size < 1e17 else 1e-3
