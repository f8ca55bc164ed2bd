"""What whole Arrow columns hold as text, as numbers, as moments: cell by cell what ``cells`` says.

A column is read through its distinct values wherever a cell needs Python: the answers are equal because the
same function gives them.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.data.buffers import as_arrow, as_arrow_text, as_text, filled, known, plain, slices, stored
from multigate.data.cells import (
    DAYS,
    FIRST,
    FURTHEST,
    LAST,
    LATE,
    BadCell,
    ColumnError,
    Spell,
    as_whole,
    exact_text,
    moment,
    number,
    on_clock,
    spelling,
    text,
)  # fmt: skip
from multigate.data.float32 import LARGEST
from multigate.data.types import is_list, is_moment, is_text, value_type

FEW = 256
"""Values that are read sooner by Python than by Arrow, for whose calls other threads must stop (measured)."""


def codes(array: pa.Array, column: str) -> tuple[np.ndarray, pa.Array]:
    """Index of each row's value among the distinct ones (R,), and those; a null has the index after the last.

    Distinct values may repeat where the column is an Arrow dictionary already, and a few may be unused.
    """
    array = plain(array)
    kind = plain(array.dictionary).type if pa.types.is_dictionary(array.type) else array.type
    if pa.types.is_nested(kind) or pa.types.is_interval(kind):
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


def with_codes(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its text as dictionaries: ``codes`` of it take no hashing any more."""
    columns = [
        one.dictionary_encode() if pa.types.is_string(one.type) or pa.types.is_large_string(one.type) else one
        for one in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names) if columns else batch


def texts(values: pa.Array) -> pa.Array:
    """``text`` of every value, as strings or large ones, null where missing."""
    whole, written = pa.types.is_integer(values.type), is_text(values.type)
    if len(values) <= FEW or not (whole or written):
        found = _python(values)
        return values if written and "" not in found else as_arrow_text([text(one) for one in found])
    if whole:
        return as_text(values)
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        values.to_pylist()  # says that it is not UTF-8
        raise
    values = as_text(values)
    empty = np.diff(slices(values)[0]) == 0
    return pc.if_else(as_arrow(~empty), values, pa.nulls(len(values), values.type)) if empty.any() else values


def distinct_texts(array: pa.Array, column: str, spell: Spell | None = None) -> tuple[np.ndarray, pa.Array]:
    """``codes`` and ``texts`` of a column, in any order, spelled by ``spell``."""
    index, values = distinct_values(array, column, spell)
    return index, as_text(values) if pa.types.is_integer(values.type) else values


def distinct_values(array: pa.Array, column: str, spell: Spell | None = None) -> tuple[np.ndarray, pa.Array]:
    """``distinct_texts``, but of many whole numbers, whose texts take longer to make, int64 in the place of those."""
    array = plain(array)
    spell = None if spell is None or spelling(str(array.type)) is spell else spell
    if spell is as_whole and (pa.types.is_floating(value_type(array.type)) or is_text(array.type)):
        index, found = through_distinct(array, exact_text, column)
        return index, _spelled(as_arrow_text(found[:-1]), spell)
    close = close_integers(array)
    index, values = codes(array, column) if close is None else (close[0], as_arrow(close[1]))
    if spell is not None:
        return index, _spelled(texts(values), spell)
    many = len(values) > FEW and pa.types.is_signed_integer(values.type) and not values.null_count
    return index, values.cast(pa.int64()) if many else texts(values)


def _spelled(found: pa.Array, spell: Spell) -> pa.Array:
    return as_arrow_text([None if one is None else spell(one) for one in found.to_pylist()])


def _python(values: pa.Array) -> list[Any]:
    if is_moment(values.type):
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
        found = filled(array.cast(pa.float64(), safe=False), np.nan)
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


def refused(kind: pa.DataType, column: str, wanted: str) -> ColumnError:
    """The error for a column of a type that is not read as what was wanted."""
    if is_moment(kind):
        advice = "declare it a time, or write it as numbers"
    elif pa.types.is_temporal(kind):
        advice = "write it as a number of seconds"
    elif is_list(kind):
        advice = "only bags and vectors read lists"
    else:
        advice = "give its fields columns of their own, or leave it out"
    return ColumnError(column, f"wanted {wanted}, found {kind}; {advice}")


NO_MOMENT = np.iinfo(np.int64).min


def moments(array: pa.Array, column: str, zone: str | None = None) -> np.ndarray:
    """``moment`` of every row in ``zone``, (R,) int64 microseconds with ``NO_MOMENT`` where missing."""
    array = plain(array)
    kind = array.type
    if is_moment(kind):
        _check_zone(kind, column)
        if zone is not None and pa.types.is_timestamp(kind) and kind.tz is not None:
            kind = pa.timestamp(kind.unit, zone)
            _check_zone(kind, column)
            array = array.cast(kind)
        if not pa.types.is_timestamp(kind) or kind.tz is None:
            return _micros(array)
        return late_by_python(_micros(pc.local_timestamp(array)), _micros(array), partial(on_clock, zone=kind.tz))
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        count = numbers(array, column)
        size = np.abs(count)
        tick = np.where(size < 1e11, 1e6, np.where(size < 1e14, 1e3, np.where(size < 1e17, 1.0, 1e-3)))
        fits = size <= FURTHEST
        micros = np.floor(np.where(fits, count, 0.0) * tick).astype(np.int64)
        fits &= (micros >= FIRST) & (micros <= LAST)
        if zone is None:
            micros = np.where(fits, micros, NO_MOMENT)
        else:
            counted = pc.if_else(as_arrow(fits), as_arrow(micros), None)
            micros = moments(counted.cast(pa.timestamp("us", "UTC")), column, zone)
        near = np.flatnonzero((count >= DAYS[0]) & (count <= DAYS[1]))
        if len(near):
            distinct, index = np.unique(count[near], return_inverse=True)
            micros[near] = np.array(list(map(moment, distinct.tolist())), dtype=np.int64)[index]
        return micros
    index, answers = through_distinct(array, partial(moment, zone=zone), column)
    return np.array([NO_MOMENT if one is None else one for one in answers], dtype=np.int64)[index]


def late_by_python(found: np.ndarray, micros: np.ndarray, read: Callable[[int], int | None]) -> np.ndarray:
    """What Arrow has made of ``micros`` (R,), with what ``read`` makes of those where its time zones end."""
    late = np.flatnonzero(micros >= LATE)
    if len(late):
        distinct, index = np.unique(micros[late], return_inverse=True)
        answers = [read(one) for one in distinct.tolist()]
        found[late] = np.array([NO_MOMENT if one is None else one for one in answers], dtype=np.int64)[index]
    return found


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
    read = (found >= -(-FIRST // size)) & (found <= LAST // size) & known(array)
    return np.where(read, np.where(read, found, 0) * size, NO_MOMENT)
