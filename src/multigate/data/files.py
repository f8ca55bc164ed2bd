"""From paths or a table in memory to a stream of record batches; never a whole file at once."""

import glob
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from multigate.data.arrow_file import ArrowFile
from multigate.data.beginnings import PACKED
from multigate.data.conversion import converted
from multigate.data.csv_file import CsvFile
from multigate.data.gathering import gathered
from multigate.data.json_lines import JsonLinesFile
from multigate.data.memory import Memory, content_hash, in_memory, plain_table
from multigate.data.parquet_file import ParquetFile
from multigate.data.partition import Keys, Part, keys_of, partitioned
from multigate.data.types import common_type, converts, is_text, parse_type, type_name, value_type
from multigate.errors import DataError, check_text, nearest

KINDS = {
    "Parquet": (".parquet", ".pq", ".parq"),
    "Arrow": (".arrow", ".feather", ".ipc"),
    "CSV": tuple(kind + end for kind in (".csv", ".tsv") for end in ("", *PACKED)),
    "JSON lines": tuple(kind + end for kind in (".jsonl", ".ndjson") for end in ("", *PACKED)),
}
"""Files that are read, and how their names end."""


class Source:
    """A table that can be read again and again as record batches, rows always in the same order.

    ``name`` is for people; ``rows`` is None where it is not known without reading (CSV, JSON lines); ``fingerprint``
    changes when the content may have (paths, sizes and modification times; the content itself for a table in memory),
    and ``content()``, which reads the files, only when it has;
    ``at_hand`` says that reading again costs nothing (a table in memory whose text, if any, is coded); ``unreadable``
    are columns with the error for who asks for one; those of a table in memory are not in ``schema``.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Part],
        fingerprint: str,
        types: Mapping[str, str] = {},
        unreadable: Mapping[str, DataError] = {},
        files: Sequence[tuple[Path, Keys]] = (),
    ) -> None:
        frozen = {column: parse_type(text) for column, text in types.items()}
        self.name = name
        self.schema = _merged(parts, frozen)
        self.unreadable = unreadable
        self.fingerprint = fingerprint
        counts = [part.rows for part in parts]
        self.rows = None if None in counts else sum(count for count in counts if count is not None)
        plain_text = any(is_text(kind) and not pa.types.is_dictionary(kind) for kind in self.schema.types)
        self.at_hand = not plain_text and all(isinstance(part, Memory) for part in parts)
        self._parts, self._files = parts, files
        if not self.schema.names:
            raise DataError(f"{name} has no columns; give at least one feature and one label")
        if self.rows == 0:
            raise self._empty()

    def content(self) -> str:
        """Checksum of the files' bytes, and of what their folders say, in their order, wherever they are; of a table in
        memory its fingerprint.

        Raises ``DataError`` where a file cannot be read any more.
        """
        if not self._files:
            return self.fingerprint
        told = [(_suffix(path), _bytes_of(path), *keys.items()) for path, keys in self._files]
        return xxhash.xxh3_128_hexdigest(repr(told).encode())

    def check_unchanged(self) -> None:
        """Raise ``DataError`` where a file was written to, replaced or removed since the table was opened."""
        try:
            same = not self._files or _stamped([path for path, _ in self._files]) == self.fingerprint
        except OSError:
            same = False
        if not same:
            raise DataError(
                f"{self.name} changed while it was read; go on once nothing writes to it any more, or with a copy"
            )

    def batches(
        self, columns: Sequence[str] | None = None, rows: int = 65_536, *, as_read: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """At most ``rows`` rows at a time, columns in the order asked for (all of them if None).

        Text ``as_read`` is plain or Arrow dictionaries, which may differ from batch to batch, and the empty text is not
        made null: for who reads it by its distinct values.

        Raises:
            DataError: a column that is not there, a file that is damaged, a CSV value that does not convert, or, after
                the last batch, files that were written to meanwhile.
        """
        there = {field.name: field for field in self.schema}
        for name in self.schema.names if columns is None else columns:
            if name in self.unreadable:
                raise self.unreadable[name]
            if name not in there:
                raise DataError(f"{self.name} has no column {name!r}; {nearest(name, self.schema.names)}")
        wanted = self.schema if columns is None else pa.schema([there[name] for name in columns])
        return gathered(self._stream(wanted, rows, as_read), rows)

    def _empty(self) -> DataError:
        return DataError(f"{self.name} has column names but no rows; give a table with at least one row")

    def _stream(self, wanted: pa.Schema, rows: int, as_read: bool) -> Iterator[pa.RecordBatch]:
        some = False
        for part in self._parts:
            first = 1
            for batch in part.read(wanted, rows):
                arrays = [
                    array
                    if as_read and is_text(array.type) and is_text(field.type)
                    else converted(array, field.type, part.name, field.name, first)
                    for array, field in zip(batch.columns, wanted, strict=True)
                ]
                # a batch of no columns keeps its row count only while it is left as it is
                found = [field.with_type(array.type) for array, field in zip(arrays, wanted, strict=True)]
                yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(found)) if arrays else batch
                first += batch.num_rows
            some = some or first > 1
        if not some:  # a stream, of which nothing tells before
            raise self._empty()
        self.check_unchanged()  # or rows of two tables would go together


def open_table(data: Any, types: Mapping[str, str] = {}, trained: Mapping[str, str] = {}) -> Source:
    """A source for a Parquet, Arrow, CSV or JSON lines file, a folder, a glob, a list of those, or a table in memory.

    In memory: pyarrow Table or RecordBatch, pandas, polars and whatever else speaks the Arrow PyCapsule interface,
    or a dict of lists. ``types`` (column to ``type_name``) freezes the types of CSV columns, which are otherwise
    inferred from the first rows; in any other table it turns text into the type named, and lists into lists of
    a fixed size. Columns it names that are not there are ignored. ``trained`` are the types that the columns had in
    training, by which decimal commas are told in those that are read as text since.

    Raises:
        DataError: nothing to read, files that do not fit together, or column names that are empty or repeated.
    """
    if isinstance(data, Source):
        return data
    listed = isinstance(data, Sequence) and all(isinstance(one, str | Path) for one in data)
    if isinstance(data, str | Path) or (listed and len(data)):
        given = [data] if isinstance(data, str | Path) else list(data)
        found = {one: _found(str(one)) for one in given}
        paths = [path for one in given for path in found[one]]
        check_text(map(str, paths))
        keys = [keys_of(path) for path in paths]
        frozen = {column: parse_type(text) for column, text in types.items()}
        files = [_part(path, frozen, {column: parse_type(text) for column, text in trained.items()}) for path in paths]
        parts = partitioned(files, keys, frozen)
        name = ", ".join(str(one) for one in given[:3]) + (", ..." if len(given) > 3 else "")
        lines = [file for file in files if isinstance(file, JsonLinesFile)]
        if lines and all(file.rows == 0 for file in files):
            raise DataError(f"{name} has no rows; write one JSON object a line")
        unreadable = {column: error for file in reversed(lines) for column, error in file.unreadable.items()}
        return Source(name, parts, _stamped(paths), types, unreadable, list(zip(paths, keys, strict=True)))
    columns, unreadable = in_memory(data)
    table = plain_table(columns)
    return Source("table", [Memory(table)], content_hash(table), types, unreadable)


def _part(path: Path, frozen: Mapping[str, pa.DataType], trained: Mapping[str, pa.DataType]) -> Part:
    match _kind(path):
        case "Parquet":
            return ParquetFile(path)
        case "Arrow":
            return ArrowFile(path)
        case "JSON lines":
            return JsonLinesFile(path, frozen)
        case _:
            return CsvFile(path, frozen, trained)


def _merged(parts: Sequence[Part], frozen: Mapping[str, pa.DataType]) -> pa.Schema:
    """The columns of the parts, which all have the same, in the order of the first, wide enough for every part."""
    first = parts[0]
    # a CSV file has no types: where its guesses differ from those of another the column is text
    guessed = all(part.guessed for part in parts)
    types = dict(zip(first.schema.names, first.schema.types, strict=True))
    if all(part.sparse for part in parts):
        types |= {name: pa.null() for part in parts for name in part.schema.names if name not in types}
    for part in parts[1:]:
        there = dict(zip(part.schema.names, part.schema.types, strict=True))  # Arrow makes the names anew when asked
        for name in there:
            if name not in types:
                raise DataError(f"{part.name} has a column {name!r} that {first.name} has not; give files of one table")
        for name, kind in types.items():
            if name not in there:
                if part.sparse and first.sparse:
                    continue
                raise DataError(f"{part.name} has no column {name!r}, {first.name} has; give files of one table")
            other = there[name]
            common = common_type(kind, other)
            if common is None and guessed:
                # of one place, London in winter and in summer: both are read as they stand
                times = pa.types.is_timestamp(kind) and pa.types.is_timestamp(other)
                common = pa.timestamp("us") if times else pa.string()
            if common is None:
                raise DataError(
                    # text of Parquet files is read as a dictionary
                    f"{part.name}: column {name!r} is {type_name(value_type(other))}, but "
                    f"{type_name(value_type(kind))} in the files before; "
                    "write both with one type"
                )
            types[name] = common
    if guessed:
        types = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()}
    for name, wanted in frozen.items():
        if name in types and converts(types[name], wanted):
            types[name] = wanted
    return pa.schema(list(types.items()))


def _found(given: str) -> list[Path]:
    """The data files that a path, a folder or a glob names, sorted by name."""
    try:
        path = Path(given).expanduser()
    except RuntimeError:
        raise DataError(f"{given}: there is no home folder for its '~'; write the path from / on") from None
    if not given.strip():
        raise DataError("the path of a table is empty; give a file, a folder or a glob")
    if path.is_dir():
        inside = [one for one in sorted(path.rglob("*")) if one.is_file() and not _hidden(one.relative_to(path))]
        files = [one for one in inside if _kind(one)]
        if not files:
            seen = f"; it holds {inside[0].name!r}" if inside else "; it is empty"
            raise DataError(f"no Parquet, Arrow, CSV or JSON lines file is in folder {given}{seen}")
        kinds = sorted({_kind(one) for one in files})
        if len(kinds) > 1:
            example = f"{given}/*{files[0].suffix}"
            raise DataError(f"folder {given} holds {' and '.join(kinds)} files; give a glob such as {example}")
        return files
    if path.is_file():
        _check_suffix(path)
        return [path]
    if glob.has_magic(given):
        matched = [Path(one) for one in sorted(glob.glob(str(path), recursive=True)) if Path(one).is_file()]
        if not matched:
            raise DataError(f"no file matches {given!r}; check the folder and the pattern")
        for one in matched:
            _check_suffix(one)
        return matched
    if path.is_symlink() and not path.exists():
        raise DataError(f"{given} is a link to {os.readlink(path)}, which is not there; mend the link")
    if path.exists():
        raise DataError(f"{given} is no file but a pipe or device, which is read once only; write its rows to a file")
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    names = [one.name for one in missing.parent.iterdir()]
    raise DataError(
        f"there is no {given}: folder {missing.parent} has no {missing.name!r}; {nearest(missing.name, names)}"
    )


def _stamped(paths: Sequence[Path]) -> str:
    """Changes when files are written to or replaced: of their paths, sizes and modification times."""
    stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return xxhash.xxh3_128_hexdigest(repr(stamps).encode())


def _bytes_of(path: Path) -> str:
    """Checksum of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the file") from None


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _suffix(path: Path) -> str:
    lower = path.name.lower()
    return next((suffix for suffixes in KINDS.values() for suffix in suffixes if lower.endswith(suffix)), "")


def _kind(path: Path) -> str:
    """What kind of file it is, by its name; else nothing."""
    return next((kind for kind, suffixes in KINDS.items() if _suffix(path) in suffixes), "")


def _check_suffix(path: Path) -> None:
    if not _kind(path):
        known = [suffix for suffixes in KINDS.values() for suffix in suffixes]
        raise DataError(f"{path} has an unsupported extension; these are read: {', '.join(known)}")
