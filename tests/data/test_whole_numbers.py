from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from multigate.data import arrow, vocabulary
from multigate.data.encoder import Encoder
from multigate.data.text_counts import TextCounts
from multigate.data.vocabulary import MISSING, UNSEEN, Buckets, Vocabulary
from multigate.data.whole_numbers import WholeIndex, text_order
from multigate.schema import Category, Hashed, Schema, Task

ENDS = [0, -1, 1, 9, 10, 11, 100, -10, -9, 2**63 - 1, -(2**63), -(2**63) + 1, 10**18, 10**18 - 1, -(10**18)]
WHOLE = st.one_of(st.sampled_from(ENDS), st.integers(-(2**63), 2**63 - 1), st.integers(-2_000, 2_000))


def int64(values):
    return pa.array(values, pa.int64())


@settings(max_examples=300, deadline=None)
@given(st.lists(WHOLE, unique=True))
def test_whole_numbers_are_ordered_as_their_texts(values):
    assert [values[at] for at in text_order(int64(values))] == sorted(values, key=str)


@settings(max_examples=300, deadline=None)
@given(st.lists(WHOLE, unique=True, min_size=1), st.lists(WHOLE))
def test_a_whole_number_stands_where_it_was_put(values, asked):
    asked = [*asked, *values]
    wanted = [values.index(one) if one in values else -1 for one in asked]
    for index in (WholeIndex(np.array(values)), WholeIndex.of(pa.array([str(one) for one in values]))):
        assert index is not None
        assert index.places(np.array(asked)).tolist() == wanted


@pytest.mark.parametrize(
    "other", ["", "007", "+7", " 7", "-0", "7.0", "seven", str(2**63), "0x7", "\N{FULLWIDTH DIGIT ONE}"]
)
def test_texts_that_are_no_whole_numbers_as_they_are_written_have_no_such_index(other):
    assert WholeIndex.of(pa.array(["1", other, "-2"])) is None
    assert WholeIndex.of(pa.array([], pa.string())) is None


@pytest.mark.parametrize("texts", [False, True], ids=["whole numbers alone", "texts among them"])
def test_whole_numbers_are_counted_as_their_texts(texts):
    random = np.random.default_rng(0)
    counts, wanted = TextCounts(), Counter()
    for at in range(12):
        values = random.integers(-40_000, 40_000, 20_000)
        times = random.integers(0, 3, len(values))
        counts.add(int64(values), times)
        for value, many in zip(values.tolist(), times.tolist(), strict=True):
            wanted[str(value)] += many
        if texts and at % 3 == 0:
            counts.add(pa.array(["seven", "7", None]), np.array([2, 3, 4]))
            wanted.update({"seven": 2, "7": 3})
    found = Vocabulary.fit(counts, 3, 50_000)
    often = sorted((-many, text) for text, many in wanted.items() if many >= 3)[:50_000]
    assert found.values == tuple(text for _, text in often)
    assert found.counts == tuple(-many for many, _ in often)
    assert found.left_out == sum(many > 0 for many in wanted.values()) - len(often)


@pytest.mark.parametrize("small", [0, 4096])
@pytest.mark.parametrize("values", [["7", "-3", "70"], ["007", "070"], ["7", "other"], [str(2**63 - 1), "0"], []])
def test_whole_numbers_have_the_ids_of_their_texts(values, small, monkeypatch):
    monkeypatch.setattr(vocabulary, "SMALL", small)
    asked = int64([7, 70, -3, 0, 5, 2**63 - 1, -(2**63), 7])
    made = Vocabulary(values, [1] * len(values))
    assert made.ids(asked).tolist() == made.ids(asked.cast(pa.string())).tolist()
    buckets = Buckets(1_000)
    assert buckets.ids(asked).tolist() == buckets.ids(asked.cast(pa.string())).tolist()


@pytest.mark.parametrize("told", [None, "int64", "int32", "double", "string"])
@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.uint32(), pa.dictionary(pa.int32(), pa.int64())])
@pytest.mark.parametrize("gap", [1, 1_000])
def test_a_column_of_whole_numbers_is_fitted_and_encoded_as_one_of_texts(gap, kind, told):
    """Close together and far apart, with gaps, in batches of many and of few values."""
    random = np.random.default_rng(1)
    drawn = (gap * random.integers(0, 9_000, 30_000)).tolist()
    cells = [None if at % 50 == 0 else one for at, one in enumerate(drawn)]
    texts = pa.array([None if one is None else str(one) for one in cells])
    features = (Category("c", min_count=2), Hashed("h", column="c", buckets=1_000))
    schema = Schema(features=features, tasks=(Task("y"),), types={} if told is None else {"c": told})
    labels = pa.array(random.integers(0, 2, len(cells)))

    def batches(column):
        table = pa.table({"c": column, "y": labels})
        return [
            table.slice(first, many).to_batches()[0] for first, many in ((0, 14_000), (14_000, 100), (14_100, 15_900))
        ]

    def encoded(encoder, column):
        return np.concatenate([encoder.columns(one).categories.numpy() for one in batches(column)])

    plain = pa.array(cells, pa.int64())
    whole = plain.dictionary_encode() if pa.types.is_dictionary(kind) else plain.cast(kind)
    of_whole, of_texts = (Encoder.fit(schema, batches(one)) for one in (whole, texts))
    assert of_whole.fingerprint == of_texts.fingerprint
    assert (encoded(of_whole, whole) == encoded(of_texts, texts)).all()
    assert (encoded(of_texts, whole) == encoded(of_whole, texts)).all()
    later = batches(whole)[0].set_column(0, "c", pa.array(np.arange(-7_000, 7_000)))
    known = of_whole.columns(later).categories.numpy()[:, 0]
    assert (known[:7_000] == UNSEEN).all()
    assert [of_whole.row({"c": at - 7_000}).categories[0, 0].item() for at in range(6_990, 7_100)] == known[
        6_990:7_100
    ].tolist()


def test_many_whole_numbers_stay_such_and_few_are_texts():
    index, values = arrow.distinct_values(pa.array([5, None, 5, 3]), "c")
    assert pa.types.is_large_string(values.type)
    assert [None if at == 2 else values[at].as_py() for at in index.tolist()] == ["5", None, "5", "3"]
    index, values = arrow.distinct_values(pa.array([*range(300), None], pa.int16()), "c")
    assert values.type == pa.int64()
    assert index.tolist() == list(range(301))
    assert values.to_pylist() == list(range(300))


def test_a_null_among_many_whole_numbers_of_a_dictionary_is_missing(monkeypatch):
    monkeypatch.setattr(vocabulary, "SMALL", 0)
    coded = pa.DictionaryArray.from_arrays(pa.array([2, 1, 0], pa.int32()), pa.array([7, None, *range(8, 400)]))
    encoder = Encoder.fit(
        Schema(features=(Category("c"),), tasks=(Task("y"),)),
        [pa.RecordBatch.from_pydict({"c": coded, "y": [0, 1, 0]})],
    )
    assert encoder.fitted.vocabularies["c"].values == ("7", "8")
    assert encoder.columns(pa.RecordBatch.from_pydict({"c": coded}), labels=False).categories[:, 0].tolist() == [
        3,
        MISSING,
        2,
    ]
