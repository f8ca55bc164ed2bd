"""CSV files, which have no types: those of the schema, or what the first rows look like."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from multigate.data.beginnings import PACKED, check_text, unpacked
from multigate.data.cells import MISSING, short
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
from multigate.errors import DataError, one_line

BLOCK = 4 << 20
"""Bytes of a CSV file read at a time; column types are inferred from the first of them."""
BLOCKS = 16
"""That are looked at for values of a column which begins with none."""
_QUOTED = re.compile(r'(?<![^,;\t|\n])"(?:[^"]|"")*"')
"""A field in quotes, which may hold what else separates."""
_SEPARATOR = re.compile(r'("?)sep=([\x01-\x7f])\1[^\S\n]*(?:\n|$)')
"""The line before the column names that tells Excel what separates; its own quote marks would end it."""
_COMMA = r"^(\s*[-+]?\d*),(\d+(?:[eE][-+]?\d+)?\s*)$"
"""A number with a decimal comma."""
_POINTED = r"\s*[-+]?(\d+\.\d+|\d{1,3}(\.\d{3})+(,\d+)?)([eE][-+]?\d+)?\s*"
"""A number with points, decimal ones or of thousands."""


class CsvFile:
    """One file as a part of a table; types that are not ``frozen`` are inferred.

    In columns that are read as text, but were ``trained`` on as numbers, 1,5 between semicolons is 1.5 as well.
    """

    guessed, sparse = True, False

    def __init__(self, path: Path, frozen: Mapping[str, pa.DataType], trained: Mapping[str, pa.DataType] = {}) -> None:
        self.name, self._path = str(path), path
        self.rows: int | None = None
        check_text(path, "CSV", ".csv")
        head = self._head()
        told = _SEPARATOR.match(head)
        self._before = 0 if told is None else 1
        """Lines before the one of the column names."""
        head = head[told.end() :] if told else head
        if not head.strip():
            raise DataError(f"{self.name} is empty; a CSV file starts with a line of column names")
        lines = _QUOTED.sub("", head.lstrip("\n")).split("\n")
        names = lines[0]
        self._quoted = names.count('"') % 2 == 1
        name = path.with_suffix("") if path.suffix.lower() in PACKED else path
        self._delimiter = told[2] if told else "\t" if name.suffix.lower() == ".tsv" else _delimiter(names)
        self._check_comment(lines)
        self._decimal, self._points = ".", set[str]()
        self._numbers = {column for column, kind in trained.items() if is_number(kind)}
        self.schema = self._infer({column: _csv_type(kind) for column, kind in frozen.items()})

    def _head(self) -> str:
        """The first lines; checks that the file begins as text."""
        try:
            with unpacked(self._path) as stream:
                head: bytes = stream.read(1 << 16)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name} cannot be read ({one_line(error)}); write or fetch it again") from error
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head.count(0) > len(head) // 4:
            raise DataError(f"{self.name} is UTF-16 text; save it as UTF-8")
        if b"\0" in head:
            raise DataError(f"{self.name} holds zero bytes, so it is no text; write it again as UTF-8 text")
        return head.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")

    def _check_comment(self, lines: Sequence[str]) -> None:
        """Raise ``DataError`` where a comment stands in the place of the column names, which may begin with a # too."""
        whole = lines[1:-1]  # the last may be cut off
        after = next((line for line in whole if line and not line.startswith("#")), lines[0])
        mark = self._delimiter if self._delimiter in lines[0] + after else _delimiter(after)
        if lines[0].startswith("#") and lines[0].count(mark) != after.count(mark):
            raise DataError(
                f"{self.name} begins with {short(lines[0])}, which looks like a comment and stands where the column "
                "names are wanted; delete the line"
            )

    def _stream(self, types: Mapping[str, pa.DataType], columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        try:
            with pyarrow.csv.open_csv(
                unpacked(self._path),
                # without threads it is as fast, and errors know their row
                read_options=pyarrow.csv.ReadOptions(block_size=BLOCK, use_threads=False, skip_rows=self._before),
                parse_options=pyarrow.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=types,
                    include_columns=columns,
                    null_values=MISSING,
                    strings_can_be_null=False,
                    decimal_point=self._decimal,
                ),
            ) as reader:
                yield from reader
        except (pa.ArrowException, OSError) as error:
            raise self._explained(error) from error

    def _infer(self, frozen: Mapping[str, pa.DataType]) -> pa.Schema:
        block = self._first({})
        try:
            names = self._names() if block is None else block.schema.names
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name} row 1 (the column names) is not UTF-8 text; save it as UTF-8") from error
        numbered = int(len(names) > 1 and not names[0].strip())  # the index of a data frame, which pandas and R write
        check_names(names, self.name, first=numbered)
        if block is None:
            self.rows = 0
            return pa.schema([(name, frozen.get(name, pa.null())) for name in names[numbered:]])
        texts = {column for column, kind in frozen.items() if is_text(kind)} - self._numbers
        commas, points = self._decimals([name for name in names if name not in texts])
        self._unsure_of_points = self._delimiter == ";" and not points
        if commas:
            self._decimal, self._points = ",", points
            block = self._first({})
            assert block is not None
        fields = list(block.schema)[numbered:]
        found = {field.name: frozen.get(field.name, _inferred(field.type)) for field in fields}
        for column, kind in found.items():
            if pa.types.is_binary(kind) and column not in frozen:
                raise DataError(f"{self.name}: column {column!r} is not UTF-8 text; save the file as UTF-8")
        pointed = self._points - frozen.keys()
        unsure = [column for column, kind in found.items() if pa.types.is_null(kind) or column in pointed]
        codes = [column for column, kind in found.items() if is_number(kind) and column not in frozen]
        zoned = [at for at, kind in found.items() if pa.types.is_timestamp(kind) and kind.tz and at not in frozen]
        if unsure or codes or zoned:
            found |= self._looked_at(unsure, codes, zoned)
        return pa.schema(list(found.items()))

    def _first(self, types: Mapping[str, pa.DataType]) -> pa.RecordBatch | None:
        """The first rows, None where there are none."""
        return next((batch for batch in self._stream(types, None) if batch.num_rows), None)

    def _decimals(self, names: Sequence[str]) -> tuple[set[str], set[str]]:
        """Columns with numbers such as 1,5 or 1.234,5 among fields between semicolons, and others with such as 1.5.

        Where there are both, 1.500 may be one and a half thousand: a column of nothing else is neither.
        """
        block = self._first(dict.fromkeys(names, pa.binary())) if self._delimiter == ";" else None
        if block is None:
            return set(), set()
        commas, points = (
            {name for name in names if pc.any(pc.match_substring_regex(block[name], rf"^\s*[-+]?{digits}\s*$")).as_py()}
            for digits in (r"(\d+|\d{1,3}(\.\d{3})+),\d+", r"\d+\.(\d{1,2}|\d{4,})")
        )
        return commas, points - commas

    def _are_text(self, numbers: pa.Array) -> bool:
        """Whether these numbers are codes, or may be thousands where no 1.5 tells what points are."""
        return are_codes(numbers) or (self._unsure_of_points and are_thousands(numbers))

    def _looked_at(self, unsure: list[str], codes: list[str], zoned: list[str]) -> dict[str, pa.DataType]:
        """Types by the text itself: of columns the reader knows nothing of, of codes such as 007 and thousands such as
        1.234, which stay text, and of times of other zones than UTC, which are read as they stand."""
        found: dict[str, pa.DataType] = {}
        text = {column: pa.string() for column in unsure + codes + zoned}
        for index, block in enumerate(self._stream(text, list(text))):
            if index == 0:
                found |= {column: pa.string() for column in codes if self._are_text(_there(block[column]))}
                found |= {column: pa.timestamp("us") for column in zoned if are_local(_there(block[column]))}
            for column in list(unsure):
                values = _there(block[column])
                if len(values):
                    found[column] = guessed_type(values)
                    unsure.remove(column)
            if not unsure or index + 1 == BLOCKS:
                break
        return found

    def _names(self) -> list[str]:
        with pyarrow.csv.open_csv(
            unpacked(self._path),
            read_options=pyarrow.csv.ReadOptions(skip_rows=self._before),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self._delimiter),
        ) as reader:
            names: list[str] = reader.schema.names
            return names

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        if self.rows == 0:
            return
        names = wanted.names or self.schema.names[:1]
        types = {name: _csv_type(wanted.field(name).type) for name in wanted.names}
        types |= {name: pa.string() for name in wanted.names if name in self._points}
        texts = [
            at
            for at, field in enumerate(wanted)
            if pa.types.is_timestamp(field.type) or (field.name in self._points and not is_text(field.type))
        ]
        counted = [
            at
            for at, field in enumerate(wanted)
            if self._decimal == "," and field.name in self._numbers and is_text(field.type)
        ]
        for block in self._stream(types or {names[0]: pa.string()}, names):
            found = block.select(wanted.names)
            for at in texts:
                found = found.set_column(at, wanted.names[at], _nulls_where_missing(found.column(at)))
            for at in counted:
                pointed = pc.replace_substring_regex(found.column(at), _COMMA, r"\1.\2")
                found = found.set_column(at, wanted.names[at], pointed)
            for start in range(0, block.num_rows, rows):
                yield found.slice(start, rows)

    def _explained(self, error: Exception) -> DataError:
        text = one_line(error)
        if "Empty CSV file or block" in text and self._quoted:
            return DataError(f"{self.name}: row 1 (the column names) opens a quote that is never closed; close it")
        if "Empty CSV file or block" in text:
            return DataError(f"{self.name} has column names but no rows; give a table with at least one row")
        if "straddling" in text:
            return DataError(
                f"{self.name} holds a row of more than {BLOCK >> 20} MB, or opens a quote that is never closed; "
                "shorten the row, or close the quote"
            )
        row = re.search(r"Row #(\d+)", text)
        where = f"row {int(row[1]) - self._before:,} (row 1 holds the column names)" if row else "some row"
        ragged = re.search(r"Expected (\d+) columns, got (\d+)", text)
        if not ragged:
            return self._misread(text, where)
        open_quote = int(ragged[2]) < int(ragged[1]) and text.count('"') % 2 == 1
        advice = "close its quote" if open_quote else f"quote fields that hold {self._delimiter!r}"
        return DataError(
            f"{self.name}: {where} has {ragged[2]} fields where the column names are {ragged[1]}; "
            f"mend the row, or {advice}"
        )

    def _misread(self, text: str, where: str) -> DataError:
        """The error for a value of a wrong kind, or for whatever else Arrow says."""
        index = re.search(r"In CSV column #(\d+)", text)
        name = self._names()[int(index[1])] if index else "?"
        bad = re.search(r"conversion error to (.+?): (?:invalid value|expected .*zone offset in) '(.*?)'", text)
        if bad:
            if self._decimal == "," and re.match("u?int|float|double", bad[1]) and re.fullmatch(_POINTED, bad[2]):
                return DataError(
                    f"{self.name}: column {name!r}, {where}: {short(bad[2])} is not {bad[1]}, for other numbers of "
                    "this file have decimal commas; write it without points (1234,56)"
                )
            wider = "double" if guessed_type(pa.array([bad[2]])) == pa.float64() else "string"
            return DataError(
                f"{self.name}: column {name!r}, {where}: {short(bad[2])} is not {bad[1]}; mend the value, "
                f"or set the column's type to {wider!r} (schema.types.{name}={wider})"
            )
        if index and "ecimal" in text:
            return DataError(
                f"{self.name}: column {name!r}, {where} holds no decimal, or one of too many digits; mend the value, "
                f"or set the column's type to 'double' (schema.types.{name}=double)"
            )
        if "UTF8" in text:
            return DataError(f"{self.name}: column {name!r}, {where} is not UTF-8 text; save the file as UTF-8")
        return DataError(f"{self.name} cannot be read to its end ({text}); write or fetch it again")


def _delimiter(line: str) -> str:
    """Comma, unless the line of names has none and another common separator does."""
    return "," if "," in line else next((mark for mark in "\t;|" if mark in line), ",")


def _there(texts: pa.Array) -> pa.Array:
    """Those that are not missing."""
    return texts.filter(pc.invert(pc.is_in(texts, pa.array(MISSING))))


def _inferred(kind: pa.DataType) -> pa.DataType:
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
