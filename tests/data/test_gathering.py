"""Batches of few rows are put together, and nothing of them changes."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multigate.data import gathering
from multigate.data.files import open_table
from multigate.data.gathering import gathered

KINDS = {
    pa.int64(): st.integers(-5, 5),
    pa.string(): st.text("abé", max_size=3),
    pa.dictionary(pa.int8(), pa.string()): st.integers(0, 300).map(str),  # more values than codes
    pa.list_(pa.string()): st.lists(st.text("abé", max_size=3) | st.none(), max_size=3),
    pa.list_(pa.float32(), 2): st.lists(st.integers(0, 9), min_size=2, max_size=2),
    pa.struct([("a", pa.string())]): st.fixed_dictionaries({"a": st.text("ab", max_size=2) | st.none()}),
}


def as_array(values: list[Any], kind: pa.DataType, *, null_in_dictionary: bool) -> pa.Array:
    if null_in_dictionary and pa.types.is_dictionary(kind):
        return pa.array(values, pa.string()).dictionary_encode(null_encoding="encode").cast(kind)
    return pa.array(values, kind)


@settings(deadline=None)
@given(st.data(), st.sampled_from(list(KINDS)), st.booleans())
def test_rows_stay_as_they_are(data: st.DataObject, kind: pa.DataType, null_in_dictionary: bool) -> None:
    chunks = data.draw(st.lists(st.lists(KINDS[kind] | st.none(), max_size=5), max_size=20))
    arrays = [as_array(chunk, kind, null_in_dictionary=null_in_dictionary) for chunk in chunks]
    batches = [pa.RecordBatch.from_arrays([array], names=["x"]) for array in arrays]
    batches = [batch.slice(data.draw(st.integers(0, 2))) for batch in batches]
    found = list(gathered(batches, 7))
    for batch in found:
        batch.validate(full=True)
        assert batch.num_rows <= 7
    assert [row for batch in found for row in batch.to_pylist()] == [row for one in batches for row in one.to_pylist()]


def test_a_table_of_rows_one_by_one_is_read_in_few_batches() -> None:
    table = pa.table({"x": range(3_000), "c": ["a", None, "b"] * 1_000})
    rows = pa.concat_tables([table.slice(at, 1) for at in range(3_000)])
    assert [batch.num_rows for batch in open_table(rows).batches(rows=2_000)] == [2_000, 1_000]
    assert pa.Table.from_batches(open_table(rows).batches()).combine_chunks() == table
    assert sum(batch.num_rows for batch in open_table(rows).batches([])) == 3_000


def test_what_is_put_together_is_no_more_than_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "BYTES", 4_000)
    batches = [pa.record_batch({"x": ["a" * 1_000]}) for _ in range(10)]
    assert [batch.num_rows for batch in gathered(batches, 65_536)] == [3, 3, 3, 1]


def test_batches_of_many_rows_and_of_other_types_stand_for_themselves() -> None:
    one, many = pa.record_batch({"x": [1]}), pa.record_batch({"x": range(2_000)})
    other = pa.record_batch({"x": ["1"]})
    assert [batch.num_rows for batch in gathered([one, one, many, one, other, other], 65_536)] == [2, 2_000, 1, 2]
    assert next(iter(gathered([many, one], 65_536))) is many
