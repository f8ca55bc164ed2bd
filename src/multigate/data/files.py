"""From paths or a table in memory to a stream of record batches; never a whole file or row group at once."""

import contextlib
import glob
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import narwhals as nw
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import xxhash

from multigate.data.beginnings import check_csv, check_parquet
from multigate.data.cells import MISSING, NO_MOMENT, as_arrow, known, moments, numbers, short
from multigate.errors import DataError, nearest

PARQUET = (".parquet", ".pq", ".parq")
CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
BLOCK = 4 << 20
"""Bytes of a CSV file read at a time; column types are inferred from the first of them."""


class Source:
    """A table that can be read again and again as record batches, rows always in the same order.

    ``name`` is for people; ``rows`` is None where it is not known without reading (CSV); ``fingerprint`` changes
    when the content may have (paths, sizes and modification times; the content itself for a table in memory);
    ``at_hand`` says that reading again costs nothing (a table in memory whose text, if any, is coded); ``unreadable``
    are columns of a table in memory that are not in ``schema``, with the error for who asks for one.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence["_Part"],
        fingerprint: str,
        types: Mapping[str, str] = {},
        unreadable: Mapping[str, DataError] = {},
    ) -> None:
        frozen = {column: parse_type(text) for column, text in types.items()}
        self.name = name
        self.schema = _merged(parts, frozen)
        self.unreadable = unreadable
        self.fingerprint = fingerprint
        counts = [part.rows for part in parts]
        self.rows = None if None in counts else sum(count for count in counts if count is not None)
        plain_text = any(_is_text(kind) and not pa.types.is_dictionary(kind) for kind in self.schema.types)
        self.at_hand = not plain_text and all(isinstance(part, _Memory) for part in parts)
        self._parts = parts
        if not self.schema.names:
            raise DataError(f"{name} has no columns; give at least one feature and one label")
        if self.rows == 0:
            raise DataError(f"{name} has column names but no rows; give a table with at least one row")

    def batches(
        self, columns: Sequence[str] | None = None, rows: int = 65_536, *, as_read: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """At most ``rows`` rows at a time, columns in the order asked for (all of them if None).

        Text ``as_read`` is plain or Arrow dictionaries, which may differ from batch to batch, and the empty text is not
        made null: for who reads it by its distinct values.

        Raises:
            DataError: a column that is not there, a file that is damaged, or a CSV value that does not convert.
        """
        there = {field.name: field for field in self.schema}
        for name in columns or ():
            if name in self.unreadable:
                raise self.unreadable[name]
            if name not in there:
                raise DataError(f"{self.name} has no column {name!r}; {nearest(name, self.schema.names)}")
        wanted = self.schema if columns is None else pa.schema([there[name] for name in columns])
        return self._stream(wanted, rows, as_read)

    def _stream(self, wanted: pa.Schema, rows: int, as_read: bool) -> Iterator[pa.RecordBatch]:
        for part in self._parts:
            first = 1
            for batch in part.read(wanted, rows):
                arrays = [
                    array
                    if as_read and _is_text(array.type) and _is_text(field.type)
                    else _converted(array, field.type, part.name, field.name, first)
                    for array, field in zip(batch.columns, wanted, strict=True)
                ]
                # a batch of no columns keeps its row count only while it is left as it is
                found = [field.with_type(array.type) for array, field in zip(arrays, wanted, strict=True)]
                yield pa.RecordBatch.from_arrays(arrays, schema=pa.schema(found)) if arrays else batch
                first += batch.num_rows


def open_table(data: Any, types: Mapping[str, str] = {}) -> Source:
    """A source for a Parquet or CSV file, a folder, a glob, a list of those, or a table in memory.

    In memory: pyarrow Table or RecordBatch, pandas, polars and whatever else speaks the Arrow PyCapsule interface,
    or a dict of lists. ``types`` (column to ``type_name``) freezes the types of CSV columns, which are otherwise
    inferred from the first rows; in any other table it turns text into the type named, and lists into lists of
    a fixed size. Columns it names that are not there are ignored.

    Raises:
        DataError: nothing to read, files that do not fit together, or column names that are empty or repeated.
    """
    if isinstance(data, Source):
        return data
    listed = isinstance(data, Sequence) and all(isinstance(one, str | Path) for one in data)
    if isinstance(data, str | Path) or (listed and len(data)):
        given = [data] if isinstance(data, str | Path) else list(data)
        paths = [path for one in given for path in _found(str(one))]
        frozen = {column: parse_type(text) for column, text in types.items()}
        parts = [_ParquetFile(path) if _suffix(path) in PARQUET else _CsvFile(path, frozen) for path in paths]
        stamps = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        name = ", ".join(str(one) for one in given[:3]) + (", ..." if len(given) > 3 else "")
        return Source(name, parts, xxhash.xxh3_128_hexdigest(repr(stamps).encode()), types)
    found, unreadable = _in_memory(data)
    table = _plain(found)
    return Source("table", [_Memory(table)], _content_hash(table), types, unreadable)


class _Part(Protocol):
    """One file, or one table in memory."""

    name: str
    schema: pa.Schema
    rows: int | None

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        """Batches of the columns wanted, in that order; only CSV already has the types wanted."""


class _ParquetFile:
    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path
        self._dictionaries: list[str] = []
        check_parquet(path)
        with self._told("is not a whole Parquet file, perhaps cut off while it was written"):
            with self._open() as file:
                self._dictionaries = _dictionary_columns(file)
            with self._open() as file:
                schema = file.schema_arrow.remove_metadata()
                self.schema = pa.schema([field.with_type(_plain_type(field.type)) for field in schema])
                self.rows: int | None = file.metadata.num_rows
                names = self.schema.names
        _check_names(names, self.name)

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._path, read_dictionary=self._dictionaries, pre_buffer=False)

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        with self._told("is damaged and cannot be read to its end"), self._open() as file:
            for batch in file.iter_batches(batch_size=rows, columns=wanted.names):
                yield batch.select(wanted.names)  # 'a.b' also names the field b of a struct a

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeError) as error:
            raise self._explained(error, what) from error

    def _explained(self, error: Exception, what: str) -> DataError:
        if "crypt" in str(error):
            return DataError(f"{self.name} is encrypted, which is not read; write it without encryption")
        if isinstance(error, OSError) and error.errno:
            return DataError(f"{self.name} cannot be read ({error.strerror}); check the file")
        return DataError(f"{self.name} {what}; write or fetch it again")


def _dictionary_columns(file: pq.ParquetFile) -> list[str]:
    """Text columns that the file stores as short codes throughout: they are cheaper to read as dictionaries."""
    names = []
    for index, field in enumerate(file.schema_arrow):
        if not _is_text(field.type) or file.metadata.num_columns != len(file.schema_arrow):
            continue
        chunks = [file.metadata.row_group(group).column(index) for group in range(file.metadata.num_row_groups)]
        if all(chunk.has_dictionary_page and chunk.total_uncompressed_size < 8 * chunk.num_values for chunk in chunks):
            names.append(field.name)
    return names


class _CsvFile:
    def __init__(self, path: Path, frozen: Mapping[str, pa.DataType]) -> None:
        self.name = str(path)
        self.rows: int | None = None
        self._path = path
        check_csv(path)
        head = self._head()
        names = head.split("\n", 1)[0]
        self._quoted = names.count('"') % 2 == 1
        self._delimiter = "\t" if _suffix(path).startswith(".tsv") else _delimiter(names)
        self._decimal = "," if self._delimiter == ";" and _has_decimal_commas(head) else "."
        self.schema = self._infer({column: _csv_type(kind) for column, kind in frozen.items()})

    def _head(self) -> str:
        """The first lines; checks that the file begins as UTF-8 text."""
        try:
            with pa.input_stream(str(self._path), compression="detect") as stream:
                head: bytes = stream.read(1 << 16)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name} cannot be read ({_one_line(error)}); write or fetch it again") from error
        if not head.strip():
            raise DataError(f"{self.name} is empty; a CSV file starts with a line of column names")
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head.count(0) > len(head) // 4:
            raise DataError(f"{self.name} is UTF-16 text; save it as UTF-8")
        if b"\0" in head:
            raise DataError(f"{self.name} holds zero bytes, so it is no text; write it again as UTF-8 text")
        try:
            head.split(b"\n", 1)[0].decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{self.name} row 1 (the column names) is not UTF-8 text; save it as UTF-8") from error
        return head.decode("utf-8-sig", "replace").replace("\r\n", "\n")

    def _stream(self, types: Mapping[str, pa.DataType], columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
        try:
            with pyarrow.csv.open_csv(
                str(self._path),
                # without threads it is as fast, and errors know their row
                read_options=pyarrow.csv.ReadOptions(block_size=BLOCK, use_threads=False),
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
        block = next((batch for batch in self._stream({}, None) if batch.num_rows), None)
        names = self._names() if block is None else block.schema.names
        _check_names(names, self.name)
        if block is None:
            self.rows = 0
            return pa.schema([(name, frozen.get(name, pa.null())) for name in names])
        found = {field.name: frozen.get(field.name, field.type) for field in block.schema}
        for column, kind in found.items():
            if pa.types.is_binary(kind) and column not in frozen:
                raise DataError(f"{self.name}: column {column!r} is not UTF-8 text; save the file as UTF-8")
        unsure = [column for column, kind in found.items() if pa.types.is_null(kind)]
        codes = [column for column, kind in found.items() if pa.types.is_integer(kind) and column not in frozen]
        if unsure or codes:
            found |= self._looked_at(unsure, codes)
        return pa.schema(list(found.items()))

    def _looked_at(self, unsure: list[str], codes: list[str], blocks: int = 16) -> dict[str, pa.DataType]:
        """Types by the text itself: of columns empty in the first block, and codes such as 007, which stay text."""
        found = {}
        text = {column: pa.string() for column in unsure + codes}
        for index, block in enumerate(self._stream(text, list(text))):
            if index == 0:
                for column in codes:
                    if pc.any(pc.match_substring_regex(block[column], r"^\s*[-+]?0\d")).as_py():
                        found[column] = pa.string()
            for column in list(unsure):
                values = block[column].filter(pc.invert(pc.is_in(block[column], pa.array(MISSING))))
                if len(values):
                    found[column] = _guess(values)
                    unsure.remove(column)
            if not unsure or index + 1 == blocks:
                break
        return found

    def _names(self) -> list[str]:
        with pyarrow.csv.open_csv(
            str(self._path), parse_options=pyarrow.csv.ParseOptions(delimiter=self._delimiter)
        ) as reader:
            names: list[str] = reader.schema.names
            return names

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        if self.rows == 0:
            return
        names = wanted.names or self.schema.names[:1]
        types = {name: _csv_type(wanted.field(name).type) for name in wanted.names}
        times = [at for at, kind in enumerate(wanted.types) if pa.types.is_timestamp(kind)]
        for block in self._stream(types or {names[0]: pa.string()}, names):
            found = block.select(wanted.names)
            for at in times:
                found = found.set_column(at, wanted.names[at], _nulls_where_missing(found.column(at)))
            for start in range(0, block.num_rows, rows):
                yield found.slice(start, rows)

    def _explained(self, error: Exception) -> DataError:
        text = _one_line(error)
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
        where = f"row {int(row[1]):,} (row 1 holds the column names)" if row else "some row"
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
            wider = "double" if _guess(pa.array([bad[2]])) == pa.float64() else "string"
            return DataError(
                f"{self.name}: column {name!r}, {where}: {short(bad[2])} is not {bad[1]}; mend the value, "
                f"or set the column's type to {wider!r} (schema.types.{name}={wider})"
            )
        if "UTF8" in text:
            return DataError(f"{self.name}: column {name!r}, {where} is not UTF-8 text; save the file as UTF-8")
        return DataError(f"{self.name} cannot be read to its end ({text}); write or fetch it again")


class _Memory:
    def __init__(self, table: pa.Table) -> None:
        self.name = "table"
        self.schema = table.schema
        self.rows: int | None = table.num_rows
        self._table = table

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        yield from self._table.select(wanted.names).to_batches(max_chunksize=rows)


def _in_memory(data: Any) -> tuple[pa.Table, dict[str, DataError]]:
    """The columns that can be read, and why others cannot."""
    if isinstance(data, Mapping):
        return _from_lists(data)
    if isinstance(data, pa.Table):
        return data, {}
    if isinstance(data, pa.RecordBatch):
        return pa.Table.from_batches([data]), {}
    try:
        try:
            frame = nw.from_native(data, eager_only=True)
        except TypeError:
            return _from_capsule(data), {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The DataFrame has column names of mixed type")  # all become text
            try:
                # pandas adds its index behind the columns
                return frame.to_arrow().select(list(range(len(frame.columns)))), {}
            except UNREADABLE:
                return _readable({name: frame.get_column(name).to_arrow for name in frame.columns})
    except nw.exceptions.DuplicateError as error:
        twice = re.search(r"'(.+)' \d+ times", str(error))
        which = f"are named {twice[1]!r}" if twice else "have one name"
        raise DataError(f"two columns of the table {which}; rename one") from error


def _readable(columns: Mapping[Any, Callable[[], pa.Array]]) -> tuple[pa.Table, dict[str, DataError]]:
    arrays, unreadable = {}, {}
    for name, read in columns.items():
        try:
            arrays[str(name)] = read()
        except UNREADABLE as error:
            unreadable[str(name)] = _unreadable(f"column {str(name)!r}", error)
    if unreadable and not arrays:
        raise next(iter(unreadable.values()))
    try:
        return pa.table(arrays), unreadable
    except UnicodeEncodeError as error:
        raise _unreadable("the name of a column", error) from error


UNREADABLE = (pa.ArrowException, TypeError, ValueError, OverflowError)
"""What Arrow raises of values that have no one type."""


def _unreadable(column: str, error: Exception) -> DataError:
    """The error for values that have no one Arrow type."""
    if isinstance(error, UnicodeEncodeError):
        return DataError(f"{column} holds text that is not valid Unicode ({_one_line(error)}); replace such characters")
    why = re.sub(r"; Conversion failed for column .*| at 0x[0-9a-f]+", "", _one_line(error))
    return DataError(f"{column} cannot be read as one type ({why}); make its values all text or all numbers")


def _from_capsule(data: Any) -> pa.Table:
    if hasattr(data, "__arrow_c_stream__"):
        with contextlib.suppress(pa.ArrowException):
            return pa.table(data)
    raise DataError(
        f"a table is wanted, found {type(data).__name__}; give the path of a Parquet or CSV file, "
        "a pyarrow, pandas or polars table (a lazy one collected first), or a dict of lists"
    )


def _from_lists(data: Mapping[Any, Any]) -> tuple[pa.Table, dict[str, DataError]]:
    columns: dict[str, Any] = {}
    for name, values in data.items():
        if isinstance(values, str | bytes | Mapping | Set) or not hasattr(values, "__len__"):
            raise DataError(f"column {name!r} is one {type(values).__name__}, not a list; write [{values!r}]")
        if str(name) in columns:
            raise DataError(f"two columns of the table are named {str(name)!r}; rename one")
        columns[str(name)] = values
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        shown = ", ".join(f"{name!r} {len(values)}" for name, values in list(columns.items())[:6])
        raise DataError(f"columns differ in length ({shown}); give every column the same number of values")
    return _readable({name: partial(_as_array, values) for name, values in columns.items()})


def _as_array(values: Any) -> pa.Array:
    return pa.array(list(values) if getattr(values, "ndim", 1) > 1 else values)


def _plain(table: pa.Table) -> pa.Table:
    """Without views and run ends, which few kernels know, and without metadata."""
    _check_names(table.column_names, "table")
    if not table.num_columns:
        raise DataError("the table has no columns; give at least one feature and one label")
    schema = pa.schema([(field.name, _plain_type(field.type)) for field in table.schema])
    try:
        columns = [
            pc.run_end_decode(column) if pa.types.is_run_end_encoded(column.type) else column
            for column in table.columns
        ]
        return pa.table(columns, names=table.column_names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"a column of the table cannot be read ({_one_line(error)}); write it as another type"
        ) from error


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    if pa.types.is_run_end_encoded(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _plain_type(kind.value_type), kind.ordered)
    if pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind


def _content_hash(table: pa.Table) -> str:
    """Hash of the table as an Arrow stream; it may differ where equal rows lie in memory differently."""
    digest = xxhash.xxh3_128()

    class Sink:
        closed = False

        def write(self, data: Any) -> int:
            digest.update(data)
            return len(data)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    with pa.ipc.new_stream(pa.PythonFile(Sink(), mode="w"), table.schema) as writer:
        writer.write_table(table)
    return digest.hexdigest()


def _found(given: str) -> list[Path]:
    """The data files that a path, a folder or a glob names, sorted by name."""
    path = Path(given).expanduser()
    if not given.strip():
        raise DataError("the path of a table is empty; give a file, a folder or a glob")
    if path.is_dir():
        inside = [one for one in sorted(path.rglob("*")) if one.is_file() and not _hidden(one.relative_to(path))]
        files = [one for one in inside if _suffix(one) in PARQUET + CSV]
        if not files:
            seen = f"; it holds {inside[0].name!r}" if inside else "; it is empty"
            raise DataError(f"no Parquet or CSV file is in folder {given}{seen}")
        kinds = {_suffix(one) in PARQUET for one in files}
        if len(kinds) > 1:
            raise DataError(f"folder {given} holds Parquet and CSV files; give a glob such as {given}/*.parquet")
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
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    names = [one.name for one in missing.parent.iterdir()]
    raise DataError(
        f"there is no {given}: folder {missing.parent} has no {missing.name!r}; {nearest(missing.name, names)}"
    )


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _suffix(path: Path) -> str:
    lower = path.name.lower()
    return next((suffix for suffix in PARQUET + CSV if lower.endswith(suffix)), path.suffix.lower())


def _check_suffix(path: Path) -> None:
    if _suffix(path) not in PARQUET + CSV:
        raise DataError(f"{path} has an unsupported extension; these are read: {', '.join(PARQUET + CSV)}")


def _check_names(names: Sequence[str], where: str) -> None:
    for position, name in enumerate(names, 1):
        if not name.strip():
            raise DataError(f"{where}: column {position} has an empty name; name every column")
        if name in names[: position - 1]:
            raise DataError(f"{where}: two columns are named {name!r}; rename one")


def _has_decimal_commas(head: str) -> bool:
    """Whether fields between semicolons are numbers such as 1,5 and none is one such as 1.5."""
    return bool(re.search(r"[;\n]-?\d+,\d+[;\n]", head)) and not re.search(r"[;\n]-?\d+\.\d+[;\n]", head)


def _delimiter(line: str) -> str:
    """Comma, unless the line of names has none and another common separator does."""
    return "," if "," in line else next((mark for mark in "\t;|" if mark in line), ",")


def _merged(parts: Sequence[_Part], frozen: Mapping[str, pa.DataType]) -> pa.Schema:
    """The columns that all parts share, in the order of the first, wide enough for every part."""
    first = parts[0]
    guessed = all(isinstance(part, _CsvFile) for part in parts)
    """A CSV file has no types: where its guesses differ from those of another the column is text."""
    types = dict(zip(first.schema.names, first.schema.types, strict=True))
    for part in parts[1:]:
        for name in part.schema.names:
            if name not in types:
                raise DataError(f"{part.name} has a column {name!r} that {first.name} has not; give files of one table")
        for name, kind in types.items():
            if name not in part.schema.names:
                raise DataError(f"{part.name} has no column {name!r}, {first.name} has; give files of one table")
            other = part.schema.field(name).type
            common = _common(kind, other)
            if common is None and guessed:
                common = pa.string()
            if common is None:
                raise DataError(
                    f"{part.name}: column {name!r} is {type_name(other)}, but {type_name(kind)} in the files before; "
                    "write both with one type"
                )
            types[name] = common
    if guessed:
        types = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()}
    for name, wanted in frozen.items():
        if name in types and _converts(types[name], wanted):
            types[name] = wanted
    return pa.schema(list(types.items()))


def _converts(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Text becomes any plain type, lists become lists of a fixed size; other types stay what they are."""
    if _is_text(found):
        return not (_is_text(wanted) or pa.types.is_nested(wanted) or pa.types.is_null(wanted))
    return bool(pa.types.is_fixed_size_list(wanted) and (pa.types.is_list(found) or pa.types.is_large_list(found)))


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    if one == other:
        return one
    if _is_text(one) and _is_text(other):
        large = pa.types.is_large_string(_value_type(one)) or pa.types.is_large_string(_value_type(other))
        return pa.large_string() if large else pa.string()
    both = [pa.schema([("x", kind)]) for kind in (one, other)]
    try:
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return None


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    value = _value_type(kind)
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value))


def _nulls_where_missing(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_in(texts, pa.array(MISSING)), None, texts)


def _csv_type(kind: pa.DataType) -> pa.DataType:
    """The nearest type that the CSV reader can make; it would not drop the zone of a time, but count in UTC."""
    kind = _value_type(kind)
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_nested(kind) or pa.types.is_decimal256(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return kind


def _guess(values: pa.Array) -> pa.DataType:
    """The narrowest type that all the texts convert to."""
    if pc.any(pc.match_substring_regex(values, r"^\s*[-+]?0\d")).as_py():
        return pa.string()
    for kind in (pa.int64(), pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            values.cast(kind)
        except pa.ArrowException:
            continue
        return kind
    return pa.string()


def _converted(array: pa.Array, kind: pa.DataType, where: str, column: str, first: int) -> pa.Array:
    """One column of one batch in the type wanted; ``first`` is the number of its first row."""
    if pa.types.is_dictionary(array.type) and array.type != kind:
        array = array.dictionary_decode()
    if _is_text(array.type) and not pa.types.is_dictionary(array.type):
        empty = pc.equal(array, "")
        if pc.any(empty).as_py():
            array = pc.if_else(empty, pa.scalar(None, array.type), array)
    if array.type == kind:
        return array
    try:
        return _cast(array, kind)
    except pa.ArrowException as error:
        for row, value in enumerate(array, first):
            try:
                _cast(pa.array([value.as_py()], array.type), kind)
            except pa.ArrowException:
                if pa.types.is_integer(array.type) and pa.types.is_floating(kind):
                    raise DataError(
                        f"{where}: column {column!r}, row {row:,}: {short(value.as_py())} has too many digits for the "
                        "fractional numbers that the column holds in another file; write whole numbers in all of them"
                    ) from error
                raise DataError(
                    f"{where}: column {column!r}, row {row:,}: {short(value.as_py())} is not {type_name(kind)}; "
                    "mend the value, or change the column's type in the schema's types"
                ) from error
        raise DataError(
            f"{where}: column {column!r} does not convert to {type_name(kind)} ({_one_line(error)}); write it as such"
        ) from error


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column as another type; text as one cell of a row would be read, of times without their zone."""
    if not _is_text(array.type):
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
    return pc.if_else(as_arrow(known(array)), as_arrow(found), None).cast(kind)


def _on_the_clock(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Times as they stand, in the zone of ``kind`` if it has one."""
    found = None
    for zone in ("", r" ?(Z|[+-]\d\d(:?\d\d)?)$"):
        plain = pc.replace_substring_regex(texts, rf"^(.+[T ]\d\d.*?){zone}", r"\1") if zone else texts
        with contextlib.suppress(pa.ArrowException):
            found = plain.cast(pa.timestamp(kind.unit))
            break
    if found is None:
        try:
            micros = moments(texts, "")
        except DataError as error:
            raise pa.ArrowInvalid(str(error)) from error
        found = pc.if_else(as_arrow(micros != NO_MOMENT), as_arrow(micros), None).cast(pa.timestamp("us"))
        found = found.cast(pa.timestamp(kind.unit))
    if kind.tz is None:
        return found
    return pc.assume_timezone(found, kind.tz, ambiguous="earliest", nonexistent="earliest")


def _one_line(error: Exception) -> str:
    text = str(error) if isinstance(error, UnicodeError) else "; ".join(str(one) for one in error.args)
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()[:300]


def type_name(kind: pa.DataType) -> str:
    """An Arrow type as text, in the words Arrow prints; ``parse_type`` reads it back."""
    if pa.types.is_dictionary(kind):
        value, index = type_name(kind.value_type), type_name(kind.index_type)
        return f"dictionary<values={value}, indices={index}, ordered={int(kind.ordered)}>"
    if pa.types.is_fixed_size_list(kind):
        return f"fixed_size_list<item: {type_name(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"{'large_' if pa.types.is_large_list(kind) else ''}list<item: {type_name(kind.value_type)}>"
    return str(kind)


def parse_type(text: str) -> pa.DataType:
    """The Arrow type that ``type_name`` (or Arrow itself) prints as ``text``.

    Raises:
        DataError: not the name of a type that columns may have.
    """
    text = text.strip()
    if match := re.fullmatch(r"timestamp\[(s|ms|us|ns), tz=(.+)\]", text):
        return pa.timestamp(match[1], match[2])
    if match := re.fullmatch(r"decimal(32|64|128|256)\((\d+), ?(-?\d+)\)", text):
        return getattr(pa, f"decimal{match[1]}")(int(match[2]), int(match[3]))
    if match := re.fullmatch(r"(large_)?list<(?:\w+: )?(.+?)(?: not null)?>", text):
        return (pa.large_list if match[1] else pa.list_)(parse_type(match[2]))
    if match := re.fullmatch(r"fixed_size_list<(?:\w+: )?(.+?)(?: not null)?>\[(\d+)\]", text):
        return pa.list_(parse_type(match[1]), int(match[2]))
    if match := re.fullmatch(r"dictionary<values=(.+), indices=(\w+), ordered=([01])>", text):
        return pa.dictionary(parse_type(match[2]), parse_type(match[1]), match[3] == "1")
    try:
        return pa.type_for_alias(text)
    except ValueError:
        known = ["int64", "double", "bool", "string", "date32[day]", "timestamp[us]", "list<item: string>"]
        raise DataError(f"{text!r} is not the name of an Arrow type; {nearest(text, known)}") from None
