"""JSON lines: an object a line, whose keys are the columns; a key that a line has not is null there."""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from multigate.data.ahead import worked
from multigate.data.beginnings import check_text, unpacked
from multigate.data.damage import DAMAGED, file_errors
from multigate.data.json_reader import as_text, inferred, is_long, is_open, parsed
from multigate.data.types import check_names, common_type, is_list, type_name
from multigate.errors import DataError, one_line

BLOCK = 4 << 20
"""Bytes read at a time."""
LOOKED_AT = 4
"""Blocks that tell which columns there are, and of what types."""
CELLS = 1 << 22
"""Rows times columns that are made of a block at once: fewer than this where rows have all columns."""
LONGEST = 64 << 20
"""Bytes of a line at most."""
OBJECTS = pa.struct([])
"""The type of a column of objects, and of what else stands beside them, that have nothing in common."""
_KEY = re.compile(rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"\s*+:')
_NEXT = re.compile(rb"\n\{")
"""Where a row ends; objects that are written over several lines have no line that begins so but their first."""
_CHANGE = re.compile(r"Column\(/(.+)\) changed from (\w+) to (\w+)")


class JsonLinesFile:
    """One file as a part of a table. Text stays text, whatever it looks like; numbers, booleans and lists have types.

    Columns are those of the first 16 MB. A number is fractional there if any is, or if ``frozen`` says so. Of columns
    whose values have no one type ``unreadable`` has the errors for who reads them. A file without rows, as Spark leaves
    among others, has no columns either.
    """

    guessed, sparse = False, True

    def __init__(self, path: Path, frozen: Mapping[str, pa.DataType]) -> None:
        self.name, self._path = str(path), path
        self.rows: int | None = None
        self.unreadable: dict[str, DataError] = {}
        check_text(path, "JSON lines", ".jsonl")
        self.schema = self._infer(frozen)
        check_names(self.schema.names, self.name)

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        own = {field.name: self._long.get(field.name, field.type) for field in self.schema}
        kinds = pa.schema([(name, own.get(name, pa.null())) for name in wanted.names or self.schema.names[:1]])
        pieces = chain.from_iterable(_pieces(block, len(kinds)) for block in self._blocks())
        before = 0
        for piece, table in worked(partial(_parsed, kinds), pieces):
            # where a column is of another type, its reader says what becomes of it
            tables = self._typed_parts(piece, before) if table is None else [table]
            for found in tables:
                for error in (self.unreadable[name] for name in wanted.names if name in self.unreadable):
                    raise error from None
                before += found.num_rows
                for batch in found.to_batches(max_chunksize=rows):
                    yield _chosen(batch, wanted.names)

    def _blocks(self) -> Iterator[bytes]:
        """Whole lines, some 4 MB at a time."""
        rest = b""
        with file_errors(self.name, DAMAGED), unpacked(self._path) as stream:
            while chunk := stream.read(BLOCK):
                end = chunk.rfind(b"\n") + 1
                if end:
                    yield rest + chunk[:end]
                    rest = b""
                rest += chunk[end:]
                if len(rest) > LONGEST:
                    raise DataError(f"{self.name} has a line of more than {LONGEST >> 20} MB; write one object a line")
        if rest.strip():
            yield rest

    def _infer(self, frozen: Mapping[str, pa.DataType]) -> pa.Schema:
        found: dict[str, pa.DataType] = {}
        before = 0
        for table in self._looked_at():
            before += table.num_rows
            for field in table.schema:
                known = found.get(field.name, pa.null())
                common = common_type(known, field.type)
                if common is None:
                    error = DataError(
                        f"{self.name}: column {field.name!r} is {type_name(known)} in the first rows and "
                        f"{type_name(field.type)} from about row {before:,} on; write both with one type"
                    )
                    self.unreadable.setdefault(field.name, error)
                    common = OBJECTS if _has_objects(known) or _has_objects(field.type) else pa.string()
                found[field.name] = common
        if not before:
            self.rows = 0
        if self.unreadable.keys() >= found.keys() > set():
            raise next(iter(self.unreadable.values()))
        self._long = {name: kind for name, kind in found.items() if is_long(kind)}
        found |= {name: as_text(kind) for name, kind in self._long.items()}
        for name in found.keys() & frozen.keys():
            if is_open(found[name]):
                found[name] = _readable(frozen[name])
            elif pa.types.is_integer(found[name]) and pa.types.is_floating(frozen[name]):
                found[name] = frozen[name]
        return pa.schema(list(found.items()))

    def _looked_at(self) -> Iterator[pa.Table]:
        """The rows of the first blocks, ``_typed``."""
        before = 0
        for at, block in enumerate(self._blocks(), 1):
            for table in self._typed_parts(block, before):
                before += table.num_rows
                yield table
            if at >= LOOKED_AT and before:
                break

    def _typed_parts(self, block: bytes, before: int) -> Iterator[pa.Table]:
        """The rows of a block, ``_typed`` in parts."""
        for piece in _pieces(block, len(set(_KEY.findall(block)))):
            table = self._typed(piece, before)
            before += table.num_rows
            yield table

    def _typed(self, block: bytes, before: int) -> pa.Table:
        """The rows of a block, each column of the type that its values have there.

        What is ``unreadable`` is null, and of type ``OBJECTS`` if there are objects among its values, else text.
        """
        changed: dict[str, pa.DataType] = {}
        while True:
            try:
                found = self._inferred(block, before)
                break
            except _Changed as at:
                block, name = _without(block, at)
                self.unreadable.setdefault(name, at.error)
                changed[name] = OBJECTS if at.of_objects(name) else pa.string()
        for name, kind in changed.items():
            found = found.append_column(name, pa.nulls(found.num_rows, kind))
        return found

    def _inferred(self, block: bytes, before: int) -> pa.Table:
        """``_typed`` where every column has one type. Raises ``_Changed`` where one has not."""
        try:
            return inferred(block)
        except (pa.ArrowInvalid, UnicodeError) as error:
            told = self._explained(error, before)
            if change := _CHANGE.search(one_line(error)):
                raise _Changed(change[1], {change[2], change[3]}, told) from error
            raise told from error

    def _explained(self, error: Exception, before: int) -> DataError:
        text = one_line(error)
        row = re.search(r"in row (\d+)", text)
        where = f"row {before + int(row[1]) + 1:,}" if row else "some row"
        column = re.search(r"Column\(/(.+?)\)", text)
        changed = re.search(r"changed from (\w+) to (\w+)", text)
        if column and changed:
            return DataError(
                f"{self.name}: column {column[1]!r}, {where}: found {changed[2]} where rows before have {changed[1]}; "
                "write all of them as one type"
            )
        if column and "specified twice" in text:
            return DataError(f"{self.name}: {where} has column {column[1]!r} twice; leave one out")
        if isinstance(error, UnicodeError) or "UTF8" in text:
            return DataError(f"{self.name} holds text that is not UTF-8; write it again as UTF-8")
        if changed:
            return DataError(f"{self.name}: {where} is no JSON object but {changed[2]}; write one object a line")
        why = re.sub(r"JSON parse error: |\.? in row \d+|\.$", "", text)
        why = why.replace("The document is empty", "something stands between objects")
        return DataError(
            f"{self.name}: {where} is no JSON object ({why}); write one object a line, with nothing between lines"
        )


class _Changed(Exception):
    """A column, or at its ``path`` what is within its objects and lists, has values of two kinds."""

    def __init__(self, path: str, kinds: set[str], error: DataError) -> None:
        super().__init__(path)
        self.path, self.kinds, self.error = path, kinds, error

    def of_objects(self, name: str) -> bool:
        """Whether the values of the column are objects, some of them at least."""
        return "object" in self.kinds or self.path.removeprefix(name).replace("/[]", "") != ""


def _without(block: bytes, changed: _Changed) -> tuple[bytes, str]:
    """The block without the column, and what that is called. Raises the error where it does not stand in one line."""
    lines, rows = block.splitlines(), dict[int, dict[str, Any]]()
    for at, line in enumerate(lines):
        with suppress(ValueError, RecursionError):  # of which its reader tells
            row = json.loads(line)
            if isinstance(row, dict):
                rows[at] = row
    names = {name for row in rows.values() for name in row if f"{changed.path}/".startswith(f"{name}/")}
    if not names:
        raise changed.error
    name = max(names, key=len)
    for at, row in rows.items():
        if name in row:
            del row[name]
            lines[at] = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return b"\n".join(lines), name


def _parsed(kinds: pa.Schema, piece: bytes) -> tuple[bytes, pa.Table | None]:
    """The piece and its rows, None where a column is not of its kind."""
    try:
        return piece, parsed(piece, kinds)
    except pa.ArrowInvalid:
        return piece, None


def _chosen(batch: pa.RecordBatch, names: list[str]) -> pa.RecordBatch:
    there = dict(zip(batch.schema.names, batch.columns, strict=True))  # Arrow makes both anew when asked
    columns = [_plain(there[name]) if name in there else pa.nulls(batch.num_rows) for name in names]
    return pa.RecordBatch.from_arrays(columns, names=names) if columns else batch.select([])


def _pieces(block: bytes, columns: int) -> Iterator[bytes]:
    """The block, or parts of it where rows are short beside the many columns that they have or lack."""
    rows = max(1, CELLS // max(columns, 1))
    if block.count(b"\n") < rows or block.count(b"\n{") < rows:  # the first alone takes half the time
        yield block
        return
    begins = [found.start() + 1 for found in _NEXT.finditer(block)]
    for start, end in pairwise([0, *begins[rows - 1 :: rows], len(block)]):
        yield block[start:end]


def _plain(array: pa.Array) -> pa.Array:
    return array.cast(as_text(array.type)) if is_long(array.type) else array


def _has_objects(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) or (pa.types.is_list(kind) and _has_objects(kind.value_type)))


def _readable(kind: pa.DataType) -> pa.DataType:
    """What JSON has for values of a type."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return kind
    return pa.list_(_readable(kind.value_type)) if is_list(kind) else pa.string()
