"""Parquet files, read a batch of rows at a time and never a whole row group at once."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from multigate.data.beginnings import check_parquet
from multigate.data.damage import DAMAGED, file_errors
from multigate.data.types import check_names, is_text, plain_column, plain_type


class ParquetFile:
    """One file as a part of a table; text that is stored as codes stays codes."""

    guessed = sparse = False

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._dictionaries: list[str] = []
        check_parquet(path)
        with file_errors(self.name, "is not a whole Parquet file, perhaps cut off while it was written"):
            with self._open() as file:
                self._dictionaries = _dictionary_columns(file)
            with self._open() as file:
                schema = file.schema_arrow.remove_metadata()
                self.schema = pa.schema([field.with_type(plain_type(field.type)) for field in schema])
                self.rows: int | None = file.metadata.num_rows
                names = self.schema.names
        check_names(names, self.name)

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(
            self._path, read_dictionary=self._dictionaries, pre_buffer=False, page_checksum_verification=True
        )

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        with file_errors(self.name, DAMAGED), self._open() as file:
            for batch in file.iter_batches(batch_size=rows, columns=wanted.names):
                chosen = batch.select(wanted.names)  # 'a.b' also names the field b of a struct a
                for column in chosen.columns:
                    if pa.types.is_dictionary(column.type):  # pages without a checksum may hold codes of no value
                        column.validate(full=True)
                columns = [plain_column(column) for column in chosen.columns]
                yield pa.RecordBatch.from_arrays(columns, names=wanted.names) if columns else chosen


def _dictionary_columns(file: pq.ParquetFile) -> list[str]:
    """Text columns that the file stores as short codes throughout: they are cheaper to read as dictionaries."""
    names: list[str] = []
    schema, metadata = file.schema_arrow, file.metadata  # each is made anew when asked for
    if metadata.num_columns != len(schema):
        return names
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    for index, field in enumerate(schema):
        if not is_text(field.type):
            continue
        chunks = [group.column(index) for group in groups]
        if all(chunk.has_dictionary_page and chunk.total_uncompressed_size < 8 * chunk.num_values for chunk in chunks):
            names.append(field.name)
    return names
