"""A column read as another type."""

from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.data.arrow import NO_MOMENT, late_by_python, moments, numbers
from multigate.data.buffers import as_arrow, known
from multigate.data.cells import EXACT, LATE, from_clock, short
from multigate.data.types import is_text, type_name
from multigate.errors import DataError, one_line

ZONED = r"^(.+[T ]\d\d.*?) ?(Z|[+-]\d\d(:?\d\d)?)$"
"""A time of day with its zone."""


def converted(array: pa.Array, kind: pa.DataType, where: str, column: str, first: int) -> pa.Array:
    """One column of one batch in the type wanted; ``first`` is the number of its first row."""
    if pa.types.is_dictionary(array.type) and array.type != kind:
        array = array.dictionary_decode()
    if is_text(array.type) and not pa.types.is_dictionary(array.type):
        empty = pc.equal(array, "")
        if pc.any(empty).as_py():
            array = pc.if_else(empty, pa.scalar(None, array.type), array)
    if array.type == kind:
        return array
    try:
        return _cast(array, kind)
    except pa.ArrowException as error:
        for row, value in enumerate(array, first):
            if not value.is_valid:  # which Arrow refuses too where it casts to null
                continue
            if pa.types.is_null(kind):
                raise DataError(
                    f"{where}: column {column!r}, row {row:,}: found {short(value.as_py())}, but no value in the first "
                    "rows, which tell the types; set the column's type in the schema's types"
                ) from error
            try:
                _cast(pa.array([value.as_py()], array.type), kind)
            except pa.ArrowException:
                if pa.types.is_integer(array.type) and pa.types.is_floating(kind):
                    raise DataError(
                        f"{where}: column {column!r}, row {row:,}: {short(value.as_py())} has too many digits for the "
                        "fractional numbers that the column holds in another file; write whole numbers in all of them"
                    ) from error
                if pa.types.is_uint64(array.type) and pa.types.is_integer(kind):
                    raise DataError(
                        f"{where}: column {column!r}, row {row:,}: {short(value.as_py())} is too large for "
                        f"{type_name(kind)}, which the column is in another file; write it as uint64 or as text in "
                        "all of them"
                    ) from error
                raise DataError(
                    f"{where}: column {column!r}, row {row:,}: {short(value.as_py())} is not {type_name(kind)}; "
                    "mend the value, or change the column's type in the schema's types"
                ) from error
        raise DataError(
            f"{where}: column {column!r} does not convert to {type_name(kind)} ({one_line(error)}); write it as such"
        ) from error


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column as another type; text as one cell of a row would be read."""
    if pa.types.is_decimal(array.type) and pa.types.is_floating(kind):
        array = array.cast(pa.string())  # Arrow's own floats of decimals are not the nearest ones
    if not is_text(array.type):
        return array.cast(kind)
    if pa.types.is_timestamp(kind):
        return _on_the_clock(array, kind)
    try:
        return array.cast(kind)
    except pa.ArrowException:
        if not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
            raise
    try:
        found = numbers(array, "")
    except DataError as error:
        raise pa.ArrowInvalid(str(error)) from error
    if pa.types.is_integer(kind) and (np.abs(found) > EXACT).any():
        raise pa.ArrowInvalid("whole numbers of more than 15 digits stand beside numbers written otherwise")
    return pc.if_else(as_arrow(known(array)), as_arrow(found), None).cast(kind)


def _on_the_clock(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Times as they stand; in the zone of ``kind``, if it has one, where theirs is told."""
    texts = pc.utf8_trim_whitespace(texts)
    naive = pa.timestamp(kind.unit)
    if kind.tz is None:
        return _clock(texts, naive)
    zoned = pc.match_substring_regex(texts, ZONED)
    standing = _clock(pc.if_else(zoned, None, texts), naive)
    found = pc.assume_timezone(standing, kind.tz, ambiguous="earliest", nonexistent="earliest")
    micros = moments(standing, "")
    late = micros >= LATE
    if late.any():
        instants = late_by_python(np.zeros_like(micros), micros, partial(from_clock, zone=kind.tz))
        found = pc.if_else(as_arrow(late), as_arrow(instants).cast(pa.timestamp("us", "UTC")).cast(kind), found)
    return pc.if_else(zoned, _instants(pc.if_else(zoned, texts, None), kind), found)


def _instants(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Times that have a zone, each in its own, at once where Arrow reads them, else cell by cell."""
    texts = pc.replace_substring_regex(texts, ZONED, r"\1\2")
    try:
        return texts.cast(kind)
    except pa.ArrowException:
        found = _by_cell(texts, "UTC").cast(pa.timestamp(kind.unit))
    return pc.assume_timezone(found, "UTC").cast(kind)


def _clock(texts: pa.Array, naive: pa.DataType) -> pa.Array:
    try:
        return texts.cast(naive)
    except pa.ArrowException:
        return _without_zone(texts, naive)


def _without_zone(texts: pa.Array, naive: pa.DataType) -> pa.Array:
    """Times with their zone cut off, at once where Arrow reads what is left, else cell by cell."""
    try:
        return pc.replace_substring_regex(texts, ZONED, r"\1").cast(naive)
    except pa.ArrowException:
        return _by_cell(texts, None).cast(naive)


def _by_cell(texts: pa.Array, zone: str | None) -> pa.Array:
    try:
        micros = moments(texts, "", zone)
    except DataError as error:
        raise pa.ArrowInvalid(str(error)) from error
    return pc.if_else(as_arrow(micros != NO_MOMENT), as_arrow(micros), None).cast(pa.timestamp("us"))
