"""Rows of a CSV file as Arrow's reader parses them, and what it says of damaged ones in words for people."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.csv

from multigate.data.beginnings import unpacked
from multigate.data.cells import MISSING, short
from multigate.data.csv_dialect import Dialect
from multigate.data.damage import DAMAGED, too_little
from multigate.data.types import guessed_type
from multigate.errors import DataError, one_line

BLOCK = 8 << 20
"""Bytes read at a time (with half of them the calls for each column take a fifth of preparing some 40 columns).

Column types are inferred from the first of them.
"""
_POINTED = r"\s*[-+]?(\d+\.\d+|\d{1,3}(\.\d{3})+(,\d+)?)([eE][-+]?\d+)?\s*"
"""A number with points, decimal ones or of thousands."""


class CsvReader(NamedTuple):
    """A file and how it is written."""

    path: Path
    dialect: Dialect

    def batches(self, types: Mapping[str, pa.DataType], columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        """All rows of some columns, or of all; types that are not given are inferred."""
        before, delimiter, decimal = self.dialect.before, self.dialect.delimiter, self.dialect.decimal
        try:
            with pyarrow.csv.open_csv(
                unpacked(self.path),
                # without threads it is as fast, and errors know their row
                read_options=pyarrow.csv.ReadOptions(block_size=BLOCK, use_threads=False, skip_rows=before),
                parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=types,
                    include_columns=columns,
                    null_values=MISSING,
                    strings_can_be_null=False,
                    decimal_point=decimal,
                ),
            ) as reader:
                yield from reader
        except (pa.ArrowException, OSError) as error:
            raise (too_little(str(self.path), error, DAMAGED) or self._explained(error)) from error

    def first(self, types: Mapping[str, pa.DataType]) -> pa.RecordBatch | None:
        """The first rows, None where there are none."""
        return next((batch for batch in self.batches(types, None) if batch.num_rows), None)

    def with_decimals(self, columns: Sequence[str]) -> "CsvReader":
        """The same for numbers in these columns as the first rows have them.

        A comma between other fields separates them, so only one between semicolons may be a decimal one.
        """
        if self.dialect.delimiter != ";":
            return self
        texts = self.first(dict.fromkeys(columns, pa.binary()))
        return self if texts is None else self._replace(dialect=self.dialect.with_decimals(texts, columns))

    def names(self) -> list[str]:
        """Of the columns."""
        with pyarrow.csv.open_csv(
            unpacked(self.path),
            read_options=pyarrow.csv.ReadOptions(skip_rows=self.dialect.before),
            parse_options=pyarrow.csv.ParseOptions(delimiter=self.dialect.delimiter),
        ) as reader:
            found: list[str] = reader.schema.names
            return found

    def _explained(self, error: Exception) -> DataError:
        text = one_line(error)
        if "Empty CSV file or block" in text and self.dialect.open_quote:
            return DataError(f"{self.path}: row 1 (the column names) opens a quote that is never closed; close it")
        if "Empty CSV file or block" in text:
            return DataError(f"{self.path} has column names but no rows; give a table with at least one row")
        if "straddling" in text:
            return DataError(
                f"{self.path} holds a row of more than {BLOCK >> 20} MB, or opens a quote that is never closed; "
                "shorten the row, or close the quote"
            )
        row = re.search(r"Row #(\d+)", text)
        where = f"row {int(row[1]) - self.dialect.before:,} (row 1 holds the column names)" if row else "some row"
        ragged = re.search(r"Expected (\d+) columns, got (\d+)", text)
        if not ragged:
            return self._misread(text, where)
        open_quote = int(ragged[2]) < int(ragged[1]) and text.count('"') % 2 == 1
        advice = "close its quote" if open_quote else f"quote fields that hold {self.dialect.delimiter!r}"
        return DataError(
            f"{self.path}: {where} has {ragged[2]} fields where the column names are {ragged[1]}; "
            f"mend the row, or {advice}"
        )

    def _misread(self, text: str, where: str) -> DataError:
        """The error for a value of a wrong kind, or for whatever else Arrow says."""
        index = re.search(r"In CSV column #(\d+)", text)
        name = self.names()[int(index[1])] if index else "?"
        bad = re.search(r"conversion error to (.+?): (?:invalid value|expected .*zone offset in) '(.*?)'", text)
        if bad:
            of_number = re.match("u?int|float|double", bad[1])
            if self.dialect.decimal == "," and of_number and re.fullmatch(_POINTED, bad[2]):
                return DataError(
                    f"{self.path}: column {name!r}, {where}: {short(bad[2])} is not {bad[1]}, for other numbers of "
                    "this file have decimal commas; write it without points (1234,56)"
                )
            wider = "double" if guessed_type(pa.array([bad[2]])) == pa.float64() else "string"
            return DataError(
                f"{self.path}: column {name!r}, {where}: {short(bad[2])} is not {bad[1]}; mend the value, "
                f"or set the column's type to {wider!r} (schema.types.{name}={wider})"
            )
        if index and "ecimal" in text:
            return DataError(
                f"{self.path}: column {name!r}, {where} holds no decimal, or one of too many digits; mend the value, "
                f"or set the column's type to 'double' (schema.types.{name}=double)"
            )
        if "UTF8" in text:
            return DataError(f"{self.path}: column {name!r}, {where} is not UTF-8 text; save the file as UTF-8")
        return DataError(f"{self.path} cannot be read to its end ({text}); write or fetch it again")
