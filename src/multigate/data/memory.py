"""Tables in memory: whatever speaks Arrow, pandas, polars, dicts of lists."""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from datetime import date, datetime, time
from functools import partial
from itertools import zip_longest
from typing import Any

import narwhals as nw
import pyarrow as pa
import xxhash

from multigate.data.types import check_names, plain_column, plain_type
from multigate.errors import DataError, one_line

UNREADABLE = (pa.ArrowException, TypeError, ValueError, OverflowError)
"""What Arrow raises of values that have no one type."""
HASHED = 65_536
"""Rows that are put together at a time to know a table by its content."""


class Memory:
    """One table as the only part of itself."""

    guessed = sparse = False

    def __init__(self, table: pa.Table) -> None:
        self.name = "table"
        self.schema = table.schema
        self.rows: int | None = table.num_rows
        self._table = table

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        yield from self._table.select(wanted.names).to_batches(max_chunksize=rows)


def in_memory(data: Any) -> tuple[pa.Table, dict[str, DataError]]:
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
            if nw.dependencies.is_pandas_dataframe(data):
                frame = nw.from_native(_arrow_ready(data), eager_only=True)
            try:
                # pandas adds its index behind the columns
                return _with_times(frame.to_arrow().select(list(range(len(frame.columns)))), frame), {}
            except UNREADABLE:
                return _readable({name: partial(_of_frame, frame.get_column(name)) for name in frame.columns})
    except nw.exceptions.DuplicateError as error:
        twice = re.search(r"'(.+)' \d+ times", str(error))
        which = f"are named {twice[1]!r}" if twice else "have one name"
        raise DataError(f"two columns of the table {which}; rename one") from error


def _arrow_ready(frame: Any) -> Any:
    """A pandas frame without columns that Arrow reads otherwise than they stand there, or not at all."""
    changed = frame.copy(deep=False)
    for at in range(len(frame.columns)):
        column = frame.iloc[:, at]
        ready = _ready_column(column)
        if ready is not column:
            changed.isetitem(at, ready)
    return changed


def _ready_column(column: Any) -> Any:
    """A pandas column, dense where it is sparse; periods and intervals, which Arrow would give as counts and pairs, as
    the text that rows and CSV files have of them."""
    kind = column.dtype
    kind = kind.categories.dtype if type(kind).__name__ == "CategoricalDtype" else kind
    if type(kind).__name__ == "SparseDtype":
        return column.sparse.to_dense()
    return column.astype("string") if type(kind).__name__ in ("PeriodDtype", "IntervalDtype") else column


def _with_times(table: pa.Table, frame: nw.DataFrame[Any]) -> pa.Table:
    """The table of a frame, with the times that Arrow has dropped of days and times in one column."""
    for at, kind in enumerate(table.schema.types):
        if pa.types.is_date32(kind):
            name = table.column_names[at]
            table = table.set_column(at, name, _of_frame(frame.get_column(name)))
    return table


def _readable(columns: Mapping[Any, Callable[[], pa.Array]]) -> tuple[pa.Table, dict[str, DataError]]:
    arrays, unreadable = {}, {}
    for name, read in ((str(name), read) for name, read in columns.items()):
        if name in arrays or name in unreadable:  # 5 and "5"
            raise DataError(f"two columns of the table are named {name!r}; rename one")
        try:
            arrays[name] = read()
        except UNREADABLE as error:
            unreadable[name] = _unreadable(f"column {name!r}", error)
    if unreadable and not arrays:
        raise next(iter(unreadable.values()))
    try:
        return pa.table(arrays), unreadable
    except UnicodeEncodeError as error:
        raise _unreadable("the name of a column", error) from error


def _unreadable(column: str, error: Exception) -> DataError:
    """The error for values that have no one Arrow type."""
    if isinstance(error, UnicodeEncodeError):
        return DataError(f"{column} holds text that is not valid Unicode ({one_line(error)}); replace such characters")
    if isinstance(error, OverflowError):
        return DataError(
            f"{column} cannot be read, for it holds whole numbers too large for an int64; give them as text"
        )
    why = re.sub(r"; Conversion failed for column .*| at 0x[0-9a-f]+", "", one_line(error))
    return DataError(f"{column} cannot be read as one type ({why}); make its values all text or all numbers")


def _from_reader(reader: pa.RecordBatchReader) -> pa.Table:
    """All batches of a reader. Arrow itself goes by their places: it reads other columns as those of the schema, and
    other types by their bits."""
    batches = []
    try:
        for number, batch in enumerate(reader, 1):
            for wanted, found in zip_longest(reader.schema, batch.schema):
                if wanted is None or found is None or (wanted.name, wanted.type) != (found.name, found.type):
                    raise DataError(
                        f"batch {number:,} of the reader has {_described(found)} where its schema has "
                        f"{_described(wanted)}; give all batches the columns of the schema, in its order"
                    )
            batches.append(pa.RecordBatch.from_arrays(batch.columns, schema=reader.schema))
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"the reader cannot be read to its end ({one_line(error)}); mend what it reads from") from error
    return pa.Table.from_batches(batches, reader.schema)


def _described(field: pa.Field | None) -> str:
    return "no column" if field is None else f"column {field.name!r} of {field.type}"


def _from_capsule(data: Any) -> pa.Table:
    if isinstance(data, pa.RecordBatchReader):
        return _from_reader(data)
    if hasattr(data, "__arrow_c_stream__"):
        with contextlib.suppress(pa.ArrowException):
            return pa.table(data)
    raise DataError(
        f"a table is wanted, found {type(data).__name__}; give the path of a Parquet, Arrow, CSV or JSON lines file, "
        "a pyarrow, pandas or polars table (a lazy one collected first), or a dict of lists"
    )


def _from_lists(data: Mapping[Any, Any]) -> tuple[pa.Table, dict[str, DataError]]:
    for name, values in data.items():
        one = isinstance(values, str | bytes | Mapping | Set) or not hasattr(values, "__len__")
        if one or getattr(values, "ndim", 1) == 0:
            raise DataError(f"column {name!r} is one {type(values).__name__}, not a list; write [{values!r}]")
    lengths = {len(values) for values in data.values()}
    if len(lengths) > 1:
        shown = ", ".join(f"{name!r} {len(values)}" for name, values in list(data.items())[:6])
        raise DataError(f"columns differ in length ({shown}); give every column the same number of values")
    return _readable({name: partial(_as_array, values) for name, values in data.items()})


def _of_frame(column: nw.Series[Any]) -> pa.Array:
    """A column of a data frame; one of Python objects, as pandas has them, as a list of these."""
    if column.dtype in (nw.Int128, nw.UInt128):  # polars has its own format of them
        return _as_array(column.to_list())
    try:
        array = column.to_arrow()
    except OverflowError:
        return _as_array(column.to_list())
    return _as_array(column.to_list()) if pa.types.is_date32(array.type) and column.dtype == nw.Object else array


def _as_array(values: Any) -> pa.Array:
    values = list(values) if getattr(values, "ndim", 1) > 1 else values
    values = _ready_column(values) if nw.dependencies.is_pandas_series(values) else values
    try:
        array = pa.array(values, from_pandas=True)
        # Arrow goes by the first value: behind a day it takes times for days
        return _as_array(list(map(_as_time, values))) if pa.types.is_date32(array.type) and _has_time(values) else array
    except OverflowError:  # Arrow takes Python's whole numbers for int64, and hashes are uint64
        for kind in (pa.uint64(), pa.list_(pa.uint64())):
            with contextlib.suppress(*UNREADABLE):
                return pa.array(values, kind, from_pandas=True)
        raise


def _has_time(values: Any) -> bool:
    """Whether one of Python's values is a time."""
    python = not isinstance(values, pa.Array | pa.ChunkedArray) and str(getattr(values, "dtype", "object")) == "object"
    return python and any(isinstance(one, datetime) and type(one).__name__ != "NaTType" for one in values)


def _as_time(value: Any) -> Any:
    return datetime.combine(value, time.min) if type(value) is date else value


def plain_table(table: pa.Table) -> pa.Table:
    """Without views and run ends, which few kernels know, and without metadata.

    Raises ``DataError`` where there are no columns, or one cannot be read.
    """
    check_names(table.column_names, "table")
    if not table.num_columns:
        raise DataError("the table has no columns; give at least one feature and one label")
    _check_whole(table)
    try:
        return pa.table([plain_column(column) for column in table.columns], names=table.column_names)
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"a column of the table cannot be read ({one_line(error)}); write it as another type"
        ) from error


def _check_whole(table: pa.Table) -> None:
    """Raise ``DataError`` where something points beside its values: Arrow takes what a damaged stream holds as it lies
    there, and to read what such a text or code points at would end the process."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        is_plain_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        checked: set[tuple[int, ...]] = set()
        for chunk in column.chunks:
            try:
                _validate(chunk, checked)
            except pa.ArrowInvalid as error:
                if is_plain_text and "UTF8" in str(error):
                    continue  # text that nobody reads may be of any encoding
                raise DataError(
                    f"column {name!r} of the table is damaged ({one_line(error)}); write or fetch it again"
                ) from error


def _validate(array: pa.Array, checked: set[tuple[int, ...]]) -> None:
    """Raise ``ArrowInvalid`` where an array is not whole. Arrow looks at all items behind every slice of lists, and at
    all values of a dictionary for each of its chunks; here at those of the slice, and once: ``checked`` are known."""
    kind = array.type
    array.validate()
    if pa.types.is_dictionary(kind):
        values = array.dictionary
        pa.DictionaryArray.from_arrays(array.indices, pa.nulls(len(values)), safe=False).validate(full=True)
        place = (values.offset, len(values), *(0 if one is None else one.address for one in values.buffers()))
        if place not in checked:
            _validate(values, checked)
            checked.add(place)
    elif (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and plain_type(kind) == kind:  # others are cast whole
        items, empty = array.values, pa.large_list if pa.types.is_large_list(kind) else pa.list_
        held = [pa.nulls(len(items))]
        lists = pa.Array.from_buffers(
            empty(pa.null()), len(array), array.buffers()[:2], offset=array.offset, children=held
        )
        lists.validate(full=True)
        if len(array):
            start, end = lists.offsets[0].as_py(), lists.offsets[-1].as_py()
            _validate(items.slice(start, end - start), checked)
    else:
        array.validate(full=not pa.types.is_date64(kind))  # of which there are some with a time of day


def content_hash(table: pa.Table) -> str:
    """Hash of the table as an Arrow stream, however its rows are cut into chunks; it may differ where equal rows
    otherwise lie in memory differently."""
    digest = xxhash.xxh3_128()

    class Sink:
        closed = False

        def write(self, data: Any) -> int:
            digest.update(data)
            return len(data)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    with pa.ipc.new_stream(pa.PythonFile(Sink(), mode="w"), table.schema) as writer:
        for first in range(0, table.num_rows, HASHED):
            piece = table.slice(first, HASHED)
            with contextlib.suppress(pa.ArrowException):  # of dictionaries with nulls, which stay in their chunks
                # a copy: of text that is part of more, Arrow writes some of what follows
                piece = pa.concat_tables([piece, piece.slice(0, 0)]).combine_chunks()
            writer.write_table(piece)
    return digest.hexdigest()
