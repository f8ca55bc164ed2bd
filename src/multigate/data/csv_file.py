"""CSV files, which have no types: those of the schema, or what the first rows look like."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from multigate.data.beginnings import check_text
from multigate.data.cells import MISSING
from multigate.data.csv_dialect import dialect_of
from multigate.data.csv_reader import CsvReader
from multigate.data.types import (
    are_codes,
    are_local,
    are_thousands,
    check_names,
    guessed_type,
    is_number,
    is_text,
    value_type,
)
from multigate.errors import DataError

BLOCKS = 16
"""That are looked at for values of a column which begins with none."""
_COMMA = r"^(\s*[-+]?\d*),(\d+(?:[eE][-+]?\d+)?\s*)$"
"""A number with a decimal comma."""


class CsvFile:
    """One file as a part of a table; types that are not ``frozen`` are inferred.

    In columns that are read as text, but were ``trained`` on as numbers, 1,5 between semicolons is 1.5 as well.
    """

    guessed, sparse = True, False

    def __init__(self, path: Path, frozen: Mapping[str, pa.DataType], trained: Mapping[str, pa.DataType] = {}) -> None:
        self.name = str(path)
        self.rows: int | None = None
        check_text(path, "CSV", ".csv")
        self._numbers = {column for column, kind in trained.items() if is_number(kind)}
        plain = CsvReader(path, dialect_of(path))
        kinds = {column: _csv_type(kind) for column, kind in frozen.items()}
        self._reader, self.schema = self._inferred(plain, kinds)

    def _inferred(self, plain: CsvReader, frozen: Mapping[str, pa.DataType]) -> tuple[CsvReader, pa.Schema]:
        """The reader that knows of decimals too, and the types that it reads; ``rows`` is 0 where there are none."""
        block = plain.first({})
        try:
            names = plain.names() if block is None else block.schema.names
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name} row 1 (the column names) is not UTF-8 text; save it as UTF-8") from error
        numbered = int(len(names) > 1 and not names[0].strip())  # the index of a data frame, which pandas and R write
        check_names(names, self.name, first=numbered)
        if block is None:
            self.rows = 0
            return plain, pa.schema([(name, frozen.get(name, pa.null())) for name in names[numbered:]])
        texts = {column for column, kind in frozen.items() if is_text(kind)} - self._numbers
        reader = plain.with_decimals([name for name in names if name not in texts])
        if reader.dialect.decimal != plain.dialect.decimal:
            block = reader.first({})
            assert block is not None
        fields = list(block.schema)[numbered:]
        found = {field.name: frozen.get(field.name, _guessed(field.type)) for field in fields}
        for column, kind in found.items():
            if pa.types.is_binary(kind) and column not in frozen:
                raise DataError(f"{self.name}: column {column!r} is not UTF-8 text; save the file as UTF-8")
        pointed = reader.dialect.pointed - frozen.keys()
        unsure = [column for column, kind in found.items() if pa.types.is_null(kind) or column in pointed]
        codes = [column for column, kind in found.items() if is_number(kind) and column not in frozen]
        zoned = [at for at, kind in found.items() if pa.types.is_timestamp(kind) and kind.tz and at not in frozen]
        if unsure or codes or zoned:
            found |= _looked_at(reader, unsure, codes, zoned)
        return reader, pa.schema(list(found.items()))

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        if self.rows == 0:
            return
        dialect = self._reader.dialect
        names = wanted.names or self.schema.names[:1]
        types = {name: _csv_type(wanted.field(name).type) for name in wanted.names}
        types |= {name: pa.string() for name in wanted.names if name in dialect.pointed}
        texts = [
            at
            for at, field in enumerate(wanted)
            if pa.types.is_timestamp(field.type) or (field.name in dialect.pointed and not is_text(field.type))
        ]
        counted = [
            at
            for at, field in enumerate(wanted)
            if dialect.decimal == "," and field.name in self._numbers and is_text(field.type)
        ]
        for block in self._reader.batches(types or {names[0]: pa.string()}, names):
            found = block.select(wanted.names)
            for at in texts:
                found = found.set_column(at, wanted.names[at], _nulls_where_missing(found.column(at)))
            for at in counted:
                pointed = pc.replace_substring_regex(found.column(at), _COMMA, r"\1.\2")
                found = found.set_column(at, wanted.names[at], pointed)
            for start in range(0, block.num_rows, rows):
                yield found.slice(start, rows)


def _looked_at(reader: CsvReader, unsure: list[str], codes: list[str], zoned: list[str]) -> dict[str, pa.DataType]:
    """Types by the text itself: of columns the reader knows nothing of, of codes such as 007 and thousands such as
    1.234, which stay text, and of times of other zones than UTC, which are read as they stand."""

    def are_text(numbers: pa.Array) -> bool:
        return are_codes(numbers) or (reader.dialect.thousands and are_thousands(numbers))

    found: dict[str, pa.DataType] = {}
    text = {column: pa.string() for column in unsure + codes + zoned}
    for index, block in enumerate(reader.batches(text, list(text))):
        if index == 0:
            found |= {column: pa.string() for column in codes if are_text(_there(block[column]))}
            found |= {column: pa.timestamp("us") for column in zoned if are_local(_there(block[column]))}
        for column in list(unsure):
            values = _there(block[column])
            if len(values):
                found[column] = guessed_type(values)
                unsure.remove(column)
        if not unsure or index + 1 == BLOCKS:
            break
    return found


def _there(texts: pa.Array) -> pa.Array:
    """Those that are not missing."""
    return texts.filter(pc.invert(pc.is_in(texts, pa.array(MISSING))))


def _guessed(kind: pa.DataType) -> pa.DataType:
    """The type that a column gets of which the reader infers this one: times of day stay the text that they are."""
    return pa.string() if pa.types.is_time(kind) else kind


def _nulls_where_missing(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_in(texts, pa.array(MISSING)), None, texts)


def _csv_type(kind: pa.DataType) -> pa.DataType:
    """The nearest type that the CSV reader can make; it would not drop the zone of a time, but count in UTC."""
    kind = value_type(kind)
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_nested(kind) or pa.types.is_decimal256(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind
