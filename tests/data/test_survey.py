"""One pass sees what a plain look at all rows sees, and samples rows evenly whatever the batches."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multigate.data import arrow
from multigate.data import survey as surveying
from multigate.data.files import open_table
from multigate.data.survey import COUNTED, SAMPLE, SKETCH, Distinct, Sample, _hashes, survey


def different(*batches: pa.Array) -> int:
    distinct = Distinct()
    for batch in batches:
        distinct.add(_hashes(batch))
    return distinct.estimate


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30), max_size=5))
def test_few_values_are_counted_exactly(batches: list[list[int]]) -> None:
    truth = len({value for batch in batches for value in batch})
    assert different(*(pa.array(batch, pa.int64()) for batch in batches)) == truth
    assert different(*(pa.array([str(value) for value in batch], pa.string()) for batch in batches)) == truth


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64(), pa.string(), pa.timestamp("us"), pa.uint64()])
def test_many_values_are_estimated_within_three_percent(kind: pa.DataType) -> None:
    values = pd.Series(range(10**6, 10**6 + 6 * SKETCH))
    column = pa.array(values).cast(kind)
    assert different(column[: 3 * SKETCH], column[SKETCH:], column) == pytest.approx(6 * SKETCH, rel=0.03)


@given(
    st.lists(st.one_of(st.none(), st.integers(-5, 5), st.floats(-3, 3), st.just(float("nan"))), min_size=1),
    st.integers(1, 7),
)
def test_a_column_is_described_as_a_plain_look_describes_it(values: list[float | None], size: int) -> None:
    known = [float(value) for value in values if value is not None and value == value]
    table = pa.table({"x": pa.array([None if value is None else float(value) for value in values], pa.float64())})
    batches = [pa.Table.from_batches([batch]) for batch in table.to_batches(max_chunksize=size)]
    column = survey(open_table(pa.concat_tables(batches)), ["x"]).columns["x"]
    assert (column.rows, column.known) == (len(values), len(known))
    assert column.counts == {value: known.count(value) for value in known}
    assert column.distinct.estimate == len(set(known))
    if known:
        assert (column.low, column.high) == (min(known), max(known))
        assert column.integral == all(value.is_integer() for value in known)


def test_counts_stop_where_values_are_many() -> None:
    column = survey(open_table({"x": range(COUNTED + 1), "y": [0] * (COUNTED + 1)}), ["x", "y"]).columns
    assert column["x"].counts is None
    assert column["y"].counts == {0: COUNTED + 1}


def sampled(rows: int, batch: int, size: int = 500) -> list[int]:
    sample = Sample(["n"], size)
    for one in pa.table({"n": range(rows)}).to_batches(max_chunksize=batch):
        sample.add(one)
    return sample.table()["n"].to_pylist()


def test_the_sample_does_not_depend_on_the_batches() -> None:
    whole = sampled(20_000, 20_000)
    assert len(whole) == 500
    assert whole == sorted(whole) == sampled(20_000, 777) == sampled(20_000, 19_999)
    assert sampled(300, 7) == list(range(300))


def test_the_sample_is_the_rows_with_the_smallest_numbers() -> None:
    draws = np.random.default_rng(0).random(20_000)
    assert sampled(20_000, 300) == sorted(np.argsort(draws)[:500].tolist())


def test_the_sample_is_even() -> None:
    rows = sampled(40_000, 1_000, 4_000)
    quarters = [sum(start <= row < start + 10_000 for row in rows) for start in range(0, 40_000, 10_000)]
    assert max(abs(quarter - 1_000) for quarter in quarters) < 4 * (4_000 * 0.25 * 0.75) ** 0.5


def test_whole_rows_are_sampled() -> None:
    table = pa.table(
        {"n": range(3 * SAMPLE), "text": pa.array([str(n % 97) for n in range(3 * SAMPLE)]).dictionary_encode()}
    )
    sample = survey(open_table(table), ["n", "text"]).sample
    assert len(sample) == SAMPLE
    assert all(row["text"] == str(row["n"] % 97) for row in sample.slice(0, 500).to_pylist())


def test_items_of_lists_are_looked_at_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of long vectors has many times as many items as rows, and distinct ones take many times their size."""
    vectors = pa.FixedSizeListArray.from_arrays(np.random.default_rng(0).normal(size=600), 20)
    bags = [["b", None, "a"], None, [], ["a", "2024-05-01"]] * 6 + [[]] * 6
    table = {"vector": vectors, "bag": pa.array(bags, pa.list_(pa.string())), "label": pa.nulls(30)}
    source = open_table(pa.table(table))
    whole = survey(source, list(table))
    looked, codes = [], arrow.codes
    monkeypatch.setattr(surveying, "ITEMS", 7)
    monkeypatch.setattr(arrow, "codes", lambda array, name: (looked.append(len(array)), codes(array, name))[1])
    parts = survey(source, list(table))
    assert max(looked) == 7
    assert sum(looked) == 600 + 5 * 6
    for name, column in whole.columns.items():
        found, wanted = vars(parts.columns[name]), vars(column)
        assert found.pop("distinct").least.tolist() == wanted.pop("distinct").least.tolist()
        assert found == wanted
