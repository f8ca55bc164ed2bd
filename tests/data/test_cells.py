"""Whole columns against the same cells read one at a time."""

import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multigate.data import arrow, buffers, cells
from multigate.data.labels import rows_first
from multigate.data.numbers import Scale, Scales, counted
from multigate.data.types import is_text

INTEGERS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]


@st.composite
def integers(draw):
    """A column of integers, near each other or not, with nulls, and cut out of a longer one."""
    kind = draw(st.sampled_from(INTEGERS))
    bits = kind.bit_width
    low, high = (0, 2**bits - 1) if pa.types.is_unsigned_integer(kind) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    start = draw(st.integers(low, high))
    near = st.integers(start, min(high, start + draw(st.sampled_from([0, 3, 90, 2_000, 10**6]))))
    values = draw(st.lists(st.none() | near | st.sampled_from([start, low, high]), min_size=1, max_size=60))
    array = pa.array([None, *values, start], kind)
    return array.slice(draw(st.integers(0, 2)), len(values))


def texts_of(array, column, spell=None):
    """Of ``distinct_texts``, the texts as a list."""
    index, texts = arrow.distinct_texts(array, column, spell)
    assert is_text(texts.type)
    return index, texts.to_pylist()


def test_errors_of_cells_reach_other_processes() -> None:
    """A pool that cannot read the error of a worker waits for ever, or is broken."""
    with pytest.raises(cells.ColumnError) as caught:
        arrow.numbers(pa.array(["1", "x"]), "price")
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is cells.ColumnError
    assert str(again) == str(caught.value)
    assert (again.column, again.why, again.row) == ("price", caught.value.why, 1)


def test_whole_numbers_that_a_float_cannot_hold_are_refused_or_rounded_as_in_training() -> None:
    """2**53 + 1 has no float of its own: beside whole numbers it is told, among floats it is the nearest one."""
    near = 2**53 + 1
    whole, double = cells.spelling("int64"), cells.spelling("double")
    assert whole is not None
    assert double is not None
    assert cells.exact_text(2.0**53) == str(2**53)
    assert cells.exact_text(near) == str(near) == whole(str(near))
    assert cells.exact_text(math.nan) is None
    assert double(str(near)) == cells.text(float(near)) == str(2**53)
    assert double(str(-near)) == str(-(2**53))
    with pytest.raises(cells.BadCell):
        cells.exact_text(float(2**54))
    single, double_width = (pa.array([3.0, None, 2.0**60], kind) for kind in (pa.float32(), pa.float64()))
    for floats in (single, double_width, double_width.dictionary_encode()):
        with pytest.raises(
            cells.ColumnError, match=r"column 'id': wanted a whole number, found 1\.15.*Int64 or as text"
        ):
            arrow.distinct_texts(floats, "id", whole)
        index, found = texts_of(floats.slice(0, 2), "id", whole)
        assert [[*found, None][at] for at in index] == ["3", None]
    for written in ("9007199254740994.0", "1.152921504606847e+18", " -1E16 "):  # as pandas writes them
        with pytest.raises(cells.ColumnError, match=r"wanted a whole number, found '.*'; .*Int64 or as text") as told:
            arrow.distinct_texts(pa.array([None, written, "7.0"]), "id", whole)
        assert told.value.row == 1
    texts = pa.array(["7.0", None, "1e3", "-0.5", str(near), "9007199254740993.x", "1e400"])
    index, found = texts_of(texts, "id", whole)
    assert [[*found, None][at] for at in index] == ["7", None, "1000", "-0.5", str(near), "9007199254740993.x", "inf"]
    index, found = texts_of(pa.array([near, 2**60, near]), "id", double)
    assert [found[at] for at in index] == [str(2**53), str(2**60), str(2**53)]


@given(integers())
def test_close_integers_are_found_without_hashing(array):
    values = [one for one in array.to_pylist() if one is not None]
    close = arrow.close_integers(array)
    if close is None:
        assert not values or max(values) - min(values) > 4 * len(array) + 1_024 or abs(max(values, key=abs)) >= 2**62
        return
    index, distinct = close
    assert distinct.tolist() == sorted(set(values))
    assert [[*distinct.tolist(), None][at] for at in index] == array.to_pylist()


@given(integers())
def test_integers_are_numbers_and_texts_by_way_of_distinct_ones(array):
    index, x = arrow.distinct_numbers(array, "c")
    found = x if index is None else x[index]
    wanted = [cells.number(one) for one in array.to_pylist()]
    assert np.array_equal(found, wanted, equal_nan=True)
    assert np.array_equal(arrow.numbers(array, "c"), wanted, equal_nan=True)
    index, texts = texts_of(array, "c")
    assert [[*texts, None][at] for at in index] == [cells.text(one) for one in array.to_pylist()]


@pytest.mark.parametrize("few", [0, 256])
@given(
    array=integers() | st.lists(st.none() | st.text(max_size=3)).map(lambda one: pa.array(one, pa.string()).slice(1))
)
def test_texts_are_those_of_each_cell_whether_python_or_arrow_reads_them(few, array):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrow, "FEW", few)
        found = arrow.texts(array)
    assert is_text(found.type)
    assert found.to_pylist() == [cells.text(one) for one in array.to_pylist()]


@given(st.lists(st.none() | st.integers(0, 5), max_size=40), st.integers(0, 9), st.sampled_from(INTEGERS))
def test_codes_of_a_slice_of_a_dictionary(indices, skipped, kind):
    values = pa.array(["b", None, "a", "b", "", "c"])
    array = pa.DictionaryArray.from_arrays(pa.array(indices, kind), values).slice(skipped)
    index, found = arrow.codes(array, "c")
    assert [[*found.to_pylist(), None][at] for at in index] == array.to_pylist()
    assert np.bincount(index, minlength=7).sum() == len(array)


@given(st.lists(st.booleans() | st.none(), max_size=30), st.integers(0, 9))
def test_what_is_known_of_a_slice(values, skipped):
    array = pa.array(values, pa.bool_()).slice(skipped)
    assert buffers.known(array).tolist() == [one is not None for one in values[skipped:]]


@given(st.lists(st.text() | st.none()), st.lists(st.booleans()), st.lists(st.integers(-9, 9)))
def test_arrow_arrays_are_what_pyarrow_makes(texts, truths, whole):
    assert buffers.as_arrow_text(texts).equals(pa.array(texts, pa.large_string()))
    for skipped in range(3):
        assert buffers.truths(pa.array(truths, pa.bool_()).slice(skipped)).tolist() == truths[skipped:]
    known = [one for one in texts if one is not None]
    assert buffers.joined(buffers.as_arrow_text(known)).to_pybytes() == "\0".join(known).encode()
    assert buffers.as_arrow(np.array(truths, dtype=bool)).equals(pa.array(truths, pa.bool_()))
    assert buffers.as_arrow(np.array(whole, dtype=np.int16)).equals(pa.array(whole, pa.int16()))


def test_values_that_no_row_has_are_not_read():
    """One of them could not be read."""
    values = pa.array(["1", "cheap", "7"])
    index, answers = arrow.through_distinct(coded([2, 0, None], values), cells.number, "c")
    assert [answers[at] for at in index[:2]] == [7, 1]
    assert math.isnan(answers[index[2]])
    with pytest.raises(cells.ColumnError, match="found 'cheap'") as caught:
        arrow.through_distinct(coded([2, 0, None, 2, 1, 1], values), cells.number, "c")
    assert caught.value.row == 4


def test_a_column_that_is_wrong_throughout_is_told_at_once():
    """However many values there are: the first row is looked for once, not for each of them."""
    words = pa.array([f"word {at}" for at in range(200_000)]).dictionary_encode()
    with pytest.raises(cells.ColumnError, match="found 'word 7'") as caught:
        arrow.numbers(words.slice(7), "c")
    assert caught.value.row == 0


def coded(indices, values):
    return pa.DictionaryArray.from_arrays(pa.array(indices), values)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, 2.0, 7.0, 0.5, -3.0, 1e9]), max_size=40))
def test_values_are_counted_as_numpy_does(values):
    values = np.array(values)
    for found, wanted in zip(counted(values), np.unique(values, return_counts=True), strict=True):
        assert found.tobytes() == wanted.astype(found.dtype).tobytes()


@pytest.mark.parametrize(("columns", "rows"), [(1, 5), (3, 0), (2, 300_000), (700, 1_000), (5_000, 70)])
def test_columns_become_rows(columns, rows):
    given = np.arange(columns * rows, dtype=np.int32).reshape(columns, rows)
    found = rows_first(list(given)).numpy()
    assert (found == given.T).all()
    assert found.flags.c_contiguous


def test_scales_of_some_columns_are_those_of_all():
    draw = np.random.default_rng(0)
    scales = [
        Scale(transform="log", mean=1.0, sd=2.0), Scale(mean=3.0, sd=0.1),
        Scale(transform="quantile", knots=(0.0, 1.0, 5.0), scores=(-1.0, 0.5, 2.0)), Scale(transform="log"),
    ]  # fmt: skip
    raw = np.where(draw.random((4, 99)) < 0.1, np.nan, draw.normal(2, 9, (4, 99)))
    whole = Scales(scales).encode(raw)
    for first in range(4):
        for last in range(first + 1, 5):
            found = Scales(scales).encode(raw[first:last], range(first, last))
            assert found.tobytes() == whole[first:last].tobytes()
