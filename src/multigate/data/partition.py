"""Columns that stand in the names of folders: ``year=2024/month=5``, as Hive, Spark and Arrow write tables."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

import pyarrow as pa

from multigate.data.types import guessed_type

NULL = "__HIVE_DEFAULT_PARTITION__"

Keys = dict[str, str | None]


class Part(Protocol):
    """One file, or one table in memory."""

    name: str
    schema: pa.Schema
    rows: int | None
    guessed: bool
    """Whether its types are guesses (CSV)."""
    sparse: bool
    """Whether a column that it has not is null in it, as a key that a row has not (JSON lines)."""

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        """Batches of the columns wanted, in that order; only CSV already has the types wanted."""


class PartitionedFile:
    """A file and the columns that its folders say, as text that is converted to their types."""

    def __init__(self, file: Part, keys: Keys, types: Mapping[str, pa.DataType]) -> None:
        self.name, self.rows, self.guessed, self.sparse = file.name, file.rows, file.guessed, file.sparse
        self._file, self._keys = file, {name: text for name, text in keys.items() if name not in file.schema.names}
        self.schema = pa.schema([*file.schema, *((name, types[name]) for name in self._keys)])

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        inside = [field for field in wanted if field.name not in self._keys]
        for batch in self._file.read(pa.schema(inside or list(self._file.schema)[:1]), rows):
            said = {name: pa.scalar(text, pa.string()) for name, text in self._keys.items()}
            arrays = [
                pa.repeat(said[name], batch.num_rows) if name in said else batch.column(name) for name in wanted.names
            ]
            yield pa.RecordBatch.from_arrays(arrays, names=wanted.names) if arrays else batch.select([])


def keys_of(path: Path) -> Keys:
    """What the folders in the path of a file say."""
    named = [folder.partition("=") for folder in path.parts[:-1] if "=" in folder]
    return {unquote(name): None if text in ("", NULL) else unquote(text) for name, _, text in named if name}


def partitioned(files: Sequence[Part], keys: Sequence[Keys], frozen: Mapping[str, pa.DataType]) -> list[Part]:
    """The files with the columns that all of their folders name; a column that stands in a file is read there."""
    shared = [name for name in keys[0] if all(name in one for one in keys)] if keys else []
    if not shared:
        return list(files)
    types = {}
    for name in shared:
        texts = sorted({text for one in keys if (text := one[name]) is not None})
        types[name] = frozen.get(name) or guessed_type(pa.array(texts, pa.string()))
    return [
        PartitionedFile(file, {name: one[name] for name in shared}, types)
        for file, one in zip(files, keys, strict=True)
    ]
