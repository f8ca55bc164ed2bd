"""Vectors and times, read from a column and from a single cell; and columns found by name."""

import math
from collections.abc import Callable, Iterable
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.data import arrow, buffers, cells
from multigate.data.types import is_list
from multigate.data.vocabulary import FIRST, MISSING
from multigate.errors import DataError, nearest
from multigate.schema import Time, Vector

PART_SIZES = {"hour": 24, "weekday": 7, "day": 31, "month": 12}

TILE = 64
"""Rows of vectors that are turned at a time."""
_DAY = 86_400_000_000
_ORDINAL = 719_163
"""Of 1970-01-01, as ``date.toordinal`` counts."""


def by_name(batch: pa.RecordBatch) -> Callable[[str], pa.Array]:
    """The columns of a batch by name, ``DataError`` where there is none of the name."""
    index = {name: at for at, name in enumerate(batch.schema.names)}

    def column(name: str) -> pa.Array:
        if name not in index:
            raise missing(name, index)
        return batch.column(index[name])

    return column


def missing(name: str, there: Iterable[str]) -> DataError:
    """The error for a column that is not there."""
    return DataError(f"there is no column {name!r}; {nearest(name, there, told='found')}")


def vector_column(array: pa.Array, feature: Vector) -> np.ndarray:
    """(size, R) float64, NaN where missing.

    Raises ``ColumnError`` for what is no list of ``size`` numbers.
    """
    array = buffers.plain(array)
    kind = array.type
    # pandas has NaN where nothing is known
    if pa.types.is_null(kind) or (pa.types.is_floating(kind) and pc.all(pc.is_null(array, nan_is_null=True)).as_py()):
        return np.full((feature.size, len(array)), np.nan)
    if not is_list(kind):
        raise cells.ColumnError(feature.source, f"wanted lists of {feature.size} numbers, found {kind}; give lists")
    known = buffers.known(array)
    lengths = buffers.filled(pc.list_value_length(array), feature.size)
    wrong = np.flatnonzero(lengths != feature.size)
    if len(wrong):
        raise wrong_size(int(lengths[wrong[0]]), feature).error(feature.source, int(wrong[0]))
    try:
        items = arrow.numbers(array.flatten(), feature.source).reshape(-1, feature.size)
    except cells.ColumnError as error:
        row = None if error.row is None else int(np.flatnonzero(known)[error.row // feature.size])
        raise cells.ColumnError(error.column, error.why, row) from None
    if len(items) < len(array):
        rows = np.full((len(array), feature.size), np.nan)
        rows[known] = items
        items = rows
    found = np.empty((feature.size, len(array)))
    for start in range(0, len(array), TILE):  # of all rows at once, what is written next is never in the cache
        found[:, start : start + TILE] = items[start : start + TILE].T
    return found


def vector_cell(value: Any, feature: Vector) -> list[float]:
    """The numbers of one cell, NaN where missing."""
    nan = isinstance(value, float | np.floating) and math.isnan(value)
    if value is None or nan or type(value).__name__ in ("NaTType", "NAType"):
        return [math.nan] * feature.size
    if not isinstance(value, list | tuple | np.ndarray):
        raise cells.BadCell(f"a list of {feature.size} numbers", value, "give a list")
    if len(value) != feature.size:
        raise wrong_size(len(value), feature)
    return [cells.number(item) for item in value]


def wrong_size(found: int, feature: Vector) -> cells.BadCell:
    """The error for a list of another length."""
    return cells.BadCell(f"{feature.size} numbers in a list", found, "correct the 'size' of the vector")


def time_column(micros: np.ndarray, feature: Time) -> list[np.ndarray]:
    """(R,) int32 per part."""
    known = micros != arrow.NO_MOMENT
    days = np.where(known, micros // _DAY, 0)
    stamps = days.astype("datetime64[D]")
    months = stamps.astype("datetime64[M]")
    parts = {
        "hour": np.where(known, micros, 0) % _DAY // 3_600_000_000,
        "weekday": (days + 3) % 7,
        "day": (stamps - months).astype(np.int64),
        "month": months.astype(np.int64) % 12,
    }
    return [np.where(known, FIRST + parts[part], MISSING).astype(np.int32) for part in feature.parts]


def time_cell(value: Any, feature: Time, zone: str | None, counted: bool) -> list[int]:
    """The ids of one cell, one per part, on the clock of ``zone``; ``counted``: its text may be a number."""
    micros = (cells.counted_moment if counted else cells.moment)(value, zone)
    if micros is None:
        return [MISSING] * len(feature.parts)
    at = date.fromordinal(micros // _DAY + _ORDINAL)
    parts = {"hour": micros % _DAY // 3_600_000_000, "weekday": at.weekday(), "day": at.day - 1, "month": at.month - 1}
    return [FIRST + parts[part] for part in feature.parts]
