"""Bags of whole columns against their items gathered row by row."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from multigate.data.bags import cell_ids, column_ids, count_items
from multigate.data.text_counts import TextCounts
from multigate.data.vocabulary import MISSING, UNSEEN, Vocabulary

KNOWN = Vocabulary(("a", "b", "7"), (3, 2, 1))
LISTS = [["b", "a", "z"], [], None, ["a", None, "a"], [None], ["7"], None]
PAIRS = [["b", "a"], None, ["a", None], [None, None], ["z", "7"], None]
TEXTS = [None, "a,b", "", "z,,a,a", ",", "7", None]
COLUMNS = {
    "lists": pa.array(LISTS, pa.list_(pa.string())),
    "large lists": pa.array(LISTS, pa.large_list(pa.string())),
    "lists of two": pa.array(PAIRS, pa.list_(pa.string(), 2)),
    "texts": pa.array(TEXTS, pa.string()),
    "large texts": pa.array(TEXTS, pa.large_string()),
    "dictionary": pa.array(TEXTS, pa.string()).dictionary_encode(),
    "a part of a dictionary": pa.array(TEXTS, pa.string()).dictionary_encode().slice(2, 1),
    "numbers": pa.array([7, None, 8, 7, None], pa.int64()),
    "no rows": pa.array([], pa.string()),
    "a part of lists": pa.array(LISTS, pa.list_(pa.string())).slice(1, 4),
    "a part of texts": pa.array(TEXTS, pa.string()).slice(2, 3),
}


def items_of(cell: object) -> list[str]:
    if cell is None:
        return []
    if isinstance(cell, str):
        return [one for one in cell.split(",") if one]
    return [one for one in cell if one is not None] if isinstance(cell, list) else [str(cell)]


@pytest.mark.parametrize("name", COLUMNS)
def test_ids_of_a_column_are_those_of_its_cells(name: str) -> None:
    places = {"a": 2, "b": 3, "7": 4}
    expected = [[places.get(one, UNSEEN) for one in items_of(cell)] or [MISSING] for cell in COLUMNS[name].to_pylist()]
    values, offsets = column_ids(COLUMNS[name], ",", KNOWN, "tags")
    assert offsets.tolist() == [0, *np.cumsum([len(row) for row in expected])]
    assert values.tolist() == [one for row in expected for one in row]
    assert [cell_ids(cell, ",", KNOWN) for cell in COLUMNS[name].to_pylist()] == expected


@pytest.mark.parametrize("name", COLUMNS)
def test_items_of_a_column_are_counted(name: str) -> None:
    counts = TextCounts.of({"a": 10})
    count_items(COLUMNS[name], ",", counts, "tags")
    counted = Counter(one for cell in COLUMNS[name].to_pylist() for one in items_of(cell)) + Counter(a=10)
    texts, times = counts.together()
    assert dict(zip(texts.to_pylist(), times.tolist(), strict=True)) == dict(counted)
