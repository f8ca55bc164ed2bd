"""Bag columns: any number of values in one cell, as the values of all rows and where each row begins."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.data.arrow import codes, texts
from multigate.data.buffers import filled, plain
from multigate.data.cells import text
from multigate.data.text_counts import TextCounts
from multigate.data.types import is_list
from multigate.data.vocabulary import MISSING, Lookup


def cell_items(cell: Any, separator: str) -> list[str]:
    """The texts in one cell: of a list, or of a string split at ``separator``; empty ones are left out."""
    if isinstance(cell, str):
        return [item for item in cell.split(separator) if item]
    if isinstance(cell, Sequence | np.ndarray | set | frozenset) and not isinstance(cell, bytes | bytearray):
        found = [text(item) for item in cell]
        return [item for item in found if item is not None]
    one = text(cell)
    return [] if one is None else [one]


def cell_ids(cell: Any, separator: str, lookup: Lookup) -> list[int]:
    """Ids of one cell, [1] where it holds nothing."""
    return [lookup.id(item) for item in cell_items(cell, separator)] or [MISSING]


def column_ids(array: pa.Array, separator: str, lookup: Lookup, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all rows in order (V,) int32, and offsets (R + 1,) int32; a row that holds nothing has the one id 1."""
    index, values, lengths = _items(array, separator, column)
    ids = np.append(lookup.ids(texts(values)), np.int32(MISSING))[index]
    return _fill(ids, lengths)


def count_items(array: pa.Array, separator: str, counts: TextCounts, column: str) -> None:
    """Add the items of a column to the counts of its vocabulary."""
    index, values, _ = _items(array, separator, column)
    counts.add(texts(values), np.bincount(index, minlength=len(values))[: len(values)])


def _items(array: pa.Array, separator: str, column: str) -> tuple[np.ndarray, pa.Array, np.ndarray]:
    """Index of every item into the distinct values (null: one past them), those values, items per row (R,)."""
    array = plain(array)
    kind = array.type
    if is_list(kind):
        lengths = filled(pc.list_value_length(array), 0)
        index, values = codes(array.flatten(), column)
        return index, values, lengths.astype(np.int64)
    index, cells = codes(array, column)
    if not _is_text(cells.type):
        return index, cells, np.ones(len(array), dtype=np.int64)
    lists = pc.split_pattern(cells, separator)
    items, values = codes(lists.flatten(), column)
    sizes = np.append(filled(pc.list_value_length(lists), 0), 0)
    lengths = sizes[index].astype(np.int64)
    first = (np.cumsum(sizes, dtype=np.int64) - sizes)[index]
    return items[positions(first, lengths)], values, lengths


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def positions(first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Where the items of some rows lie (V,), each row having ``lengths`` of them from ``first`` on."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(first - (ends - lengths), lengths)


def _fill(ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the missing items, and with the one id 1 in rows that are left empty."""
    row = np.repeat(np.arange(len(lengths)), lengths)
    kept = ids != MISSING
    row, ids = row[kept], ids[kept]
    held = np.bincount(row, minlength=len(lengths))
    empty = held == 0
    offsets = np.concatenate([[0], np.cumsum(np.maximum(held, 1))]).astype(np.int32)
    values = np.full(int(offsets[-1]), MISSING, dtype=np.int32)
    values[np.arange(len(ids)) + np.cumsum(empty)[row]] = ids
    return values, offsets
