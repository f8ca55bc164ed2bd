import datetime as dt
import decimal
import json
import math
import shutil
import time
import uuid

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
import torch
import xxhash
from hypothesis import HealthCheck, example, given, settings

from multigate.data import arrow
from multigate.data.encoder import Encoder
from multigate.data.files import open_table
from multigate.data.float32 import shortest, shortest_of
from multigate.data.numbers import CLIP, Moments, Sample, quantile_edges
from multigate.data.rows import cut, join
from multigate.data.text_counts import TextCounts
from multigate.data.types import parse_type, type_name
from multigate.data.vocabulary import UNSEEN, Vocabulary
from multigate.errors import DataError, ExperimentError
from multigate.model import Heads
from multigate.schema import Bag, Category, Hashed, Number, Schema, Task, Time, Vector
from processes import run_program

LABEL = [0, 1]


def batch_of(**columns):
    return pa.RecordBatch.from_pydict(columns)


BINARY = (Task("y"),)


def fit(features, tasks=BINARY, columns=None, **more):
    columns = dict(columns or {})
    rows = max((len(column) for column in columns.values()), default=2)
    columns.setdefault("y", (LABEL * rows)[:rows])
    return Encoder.fit(Schema(features=features, tasks=tasks, **more), [batch_of(**columns)])


def ids_of(encoder, **columns):
    return encoder.columns(batch_of(**columns), labels=False).categories[:, 0].tolist()


def same(left, right):
    """Equal to the bit, NaN in the same places."""
    assert torch.equal(left.numbers.view(torch.int32), right.numbers.view(torch.int32))
    assert torch.equal(left.categories, right.categories)
    for one, other in zip(left.bags, right.bags, strict=True):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.offsets, other.offsets)
    for name in ("labels", "known", "weights", "groups"):
        assert torch.equal(getattr(left, name), getattr(right, name))
    for one, other in zip(left, right, strict=True):
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert one.shape == other.shape


# ---- categories


def test_ids_go_by_falling_frequency_then_by_value():
    encoder = fit((Category("c"),), columns={"c": ["b", "b", "a", "c", "c", None, "", "d"]})
    assert ids_of(encoder, c=["b", "c", "a", "d", "zebra", None, ""]) == [2, 3, 4, 5, 0, 1, 1]
    assert encoder.layout.tables == {"c": 6}


def test_rare_and_supernumerary_values_are_unseen():
    values = ["a"] * 5 + ["b"] * 4 + ["c"] * 3 + ["d"]
    encoder = fit((Category("c", min_count=2), Category("e", max_size=2)), columns={"c": values, "e": values})
    found = encoder.columns(batch_of(c=["a", "b", "c", "d"], e=["a", "b", "c", "d"]), labels=False)
    assert found.categories.tolist() == [[2, 2], [3, 3], [4, 0], [0, 0]]


@given(st.dictionaries(st.text(max_size=2), st.integers(1, 4)), st.integers(1, 4), st.none() | st.integers(1, 9))
def test_a_vocabulary_holds_the_most_frequent_values(counts, min_count, max_size):
    plain = sorted((one for one in counts.items() if one[1] >= min_count), key=lambda one: (-one[1], one[0]))
    found = Vocabulary.fit(TextCounts.of(counts), min_count, max_size)
    assert list(zip(found.values, found.counts, strict=True)) == plain[:max_size]
    assert found.left_out == len(counts) - len(found.values)


def test_a_value_is_the_same_whatever_its_type():
    encoder = fit((Category("c"),), columns={"c": ["3", "3", "true", "0.5"]})
    same_three = [
        pa.array([3], pa.int8()), pa.array([3], pa.uint64()), pa.array([3.0]), pa.array([3.0], pa.float32()),
        pa.array(["3"]), pa.array(["3"], pa.large_string()), pa.array(["3"]).dictionary_encode(),
        pa.array([3]).dictionary_encode(), pa.array([decimal.Decimal("3.00")]), pa.array([b"3"]),
    ]  # fmt: skip
    assert [ids_of(encoder, c=array) for array in same_three] == [[2]] * len(same_three)
    for value in (3, 3.0, "3", np.int16(3), np.float32(3), np.str_("3"), decimal.Decimal(3), b"3"):
        assert encoder.row({"c": value}).categories.tolist() == [[2]]
    bags = fit((Bag("c"),), columns={"c": [b"3", b"3", b"x"]})  # a binary cell is one value, not its bytes
    for found in (bags.row({"c": b"3"}), bags.columns(batch_of(c=[b"3"]), labels=False)):
        assert found.bags[0].values.tolist() == [2]
    assert ids_of(encoder, c=[True, False]) == [4, 0]
    assert encoder.row({"c": np.bool_(True)}).categories.tolist() == [[4]]
    assert ids_of(encoder, c=[0.5, math.nan, -0.0]) == [3, 1, 0]


def test_strings_are_not_stripped():
    encoder = fit((Category("c"),), columns={"c": ["x ", "x ", "x"]})
    assert ids_of(encoder, c=["x ", "x", " x"]) == [2, 3, 0]


def test_hashed_ids_are_xxh64_of_the_text():
    encoder = fit((Hashed("c", buckets=97),), columns={"c": ["a", "b"]})
    wanted = [2 + xxhash.xxh64_intdigest(text.encode(), seed=0) % 97 for text in ("a", "12", "é")]
    assert ids_of(encoder, c=["a", "12", "é", None, ""]) == [*wanted, 1, 1]
    assert ids_of(encoder, c=[12]) == [wanted[1]]
    assert encoder.layout.tables == {"c": 99}


def test_of_many_values_single_rows_and_tables_find_the_same_ids(tmp_path):
    codes = [f"{at:05}" for at in range(6_000)] + ["x" * 40 + str(at) for at in range(3)]
    encoder = fit((Category("c", min_count=1),), columns={"c": [*codes, "01234"], "y": [0, 1] * 3_002})
    encoder.save(tmp_path)
    loaded = Encoder.load(tmp_path)
    assert loaded.fingerprint == encoder.fingerprint
    asked = ["01234", "1234", "00000", "0", "05999", "06000", "x" * 40 + "2", "x" * 40, "", None, "é"]
    wanted = [2, 2, 3, 3, 6_001, 0, 6_004, 0, 1, 1, 0]
    for one in (encoder, loaded):
        assert ids_of(one, c=asked) == wanted
        assert [one.row({"c": value}).categories.item() for value in asked] == wanted


@pytest.mark.parametrize("few", [0, 256])
@pytest.mark.parametrize("feature", [Category("c"), Hashed("c", buckets=9), Bag("c")])
def test_text_that_is_not_utf_8_is_told(feature, few, monkeypatch):
    monkeypatch.setattr(arrow, "FEW", few)
    encoder = fit((feature,), columns={"c": ["a", "b"]})
    ends = pa.py_buffer(np.array([0, 1, 3], dtype=np.int32))
    odd = pa.Array.from_buffers(pa.string(), 2, [None, ends, pa.py_buffer(b"a\xff\xfe")])
    with pytest.raises(DataError, match="holds text that is not UTF-8; write it again"):
        encoder.columns(batch_of(c=odd), labels=False, first_row=0)


def test_features_share_a_vocabulary_by_naming_a_table():
    features = (Category("author"), Category("reader", table="author"), Bag("friends", table="author"))
    columns = {"author": ["a", "b", "b", "b"], "reader": ["a", "a", "c", "c"], "friends": ["a,a,c", "", None, "a"]}
    encoder = fit(features, columns=columns)
    # a 1 + 2 + 3, b 3, c 2 + 1
    found = encoder.columns(batch_of(author=["a", "c"], reader=["b", "c"], friends=["c,b", "z"]), labels=False)
    assert found.categories.tolist() == [[2, 3], [4, 4]]
    assert found.bags[0].values.tolist() == [4, 3, 0]
    assert encoder.layout.tables == {"author": 5}
    assert [column.table for column in (*encoder.layout.categories, *encoder.layout.bags)] == ["author"] * 3


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ((Category("a", min_count=2), Category("b", table="a")), "'a' and 'b' share .* 'a' but differ in min_count"),
        ((Hashed("a", buckets=5), Category("b", table="a")), "differ in buckets"),
        ((Hashed("a", buckets=5), Bag("b", buckets=6, table="a")), "differ in buckets"),
        ((Category("a", dim=4), Bag("b", table="a")), "differ in dim"),
        ((Number("a"), Category("b", table="a")), "holds the bins or parts of feature 'a'"),
        ((Time("a"), Category("a:hour")), "holds the bins or parts of feature 'a'"),
        ((Number("a"), Category("b", table="a:value")), "holds the bins or parts of feature 'a'"),
        ((Number("a"), Number("a:value")), "'a' and 'a:value' both want the table 'a:value' .* 'a:value' another name"),
        ((Number("a:hour"), Time("a")), "'a:hour' and 'a' both want the table 'a:hour' .* 'a:hour' another name"),
    ],
)  # fmt: skip
def test_features_that_cannot_share_a_table_are_refused(features, words):
    with pytest.raises(ExperimentError, match=words):
        fit(features, columns={feature.name: ["1", "2"] for feature in features})


def test_a_hashed_bag_and_a_hashed_category_may_share():
    features = (Hashed("a", buckets=5, table="t"), Bag("b", buckets=5, table="t"))
    encoder = fit(features, columns={"a": [1, 2], "b": [1, 2]})
    found = encoder.columns(batch_of(a=["x"], b=["x"]), labels=False)
    assert found.categories[0, 0] == found.bags[0].values[0]


def test_only_the_used_values_of_a_huge_dictionary_are_read():
    values = pa.array([f"v{i}" for i in range(300_000)])
    column = pa.DictionaryArray.from_arrays(pa.array([299_999, None, 7], pa.int32()), values)
    encoder = fit((Category("c"),), columns={"c": column})
    assert encoder.fitted.vocabularies["c"].values == ("v299999", "v7")
    assert ids_of(encoder, c=column) == [2, 1, 3]


# ---- numbers


def test_numbers_are_standardised_by_the_training_rows():
    x = np.random.default_rng(0).normal(5, 3, 1000)
    encoder = fit((Number("x", embedding="none"),), columns={"x": x})
    found = encoder.columns(batch_of(x=x), labels=False).numbers[:, 0].double().numpy()
    assert np.allclose(found, (x - x.mean()) / x.std(), atol=1e-6)
    odd = [1e9, -1e9, None, math.inf, -math.inf, math.nan, 1e39]
    far = encoder.columns(batch_of(x=odd), labels=False).numbers[:, 0]
    assert far[:2].tolist() == [CLIP, -CLIP]
    assert far[2:].isnan().all()


def test_log_and_rank_transforms():
    x = np.concatenate([np.random.default_rng(0).lognormal(0, 2, 5000), [-3.0]])
    encoder = fit((Number("l", transform="log"), Number("q", transform="quantile")), columns={"l": x, "q": x})
    found = encoder.columns(batch_of(l=x, q=x), labels=False).numbers.double().numpy()
    logged = np.sign(x) * np.log(1 + np.abs(x))
    assert np.allclose(found[:, 0], (logged - logged.mean()) / logged.std(), atol=1e-5)
    rank = torch.tensor((x.argsort().argsort() + 0.5) / len(x))
    score = torch.special.ndtri(rank).numpy()
    middle = np.abs(score) < 2.5
    assert np.allclose(found[middle, 1], score[middle], atol=0.02)


def test_a_constant_or_empty_number_column_is_harmless():
    columns = {"a": [0.1] * 999, "b": pa.array([None] * 999, pa.float64()), "c": pa.nulls(999)}
    encoder = fit(tuple(Number(name) for name in columns), columns=columns)
    found = encoder.columns(batch_of(**columns), labels=False)
    assert (found.numbers[:, 0].abs() < 1e-6).all()
    assert found.numbers[:, 1:].isnan().all()
    assert found.categories[0].tolist() == [2, 1, 1]
    assert encoder.layout.tables == {"a": 3, "b": 3, "c": 3}


def test_bins_hold_about_equal_numbers_of_training_rows():
    x = np.random.default_rng(0).lognormal(0, 3, 10_000)
    encoder = fit((Number("x", embedding="bins", bins=8),), columns={"x": x})
    ids = np.array(ids_of(encoder, x=x))
    assert np.bincount(ids).tolist() == [0, 0] + [1250] * 8
    order = np.argsort(x)
    assert (np.diff(ids[order]) >= 0).all()
    assert ids_of(encoder, x=[-5.0, None, 1e30]) == [2, 1, 9]
    assert encoder.layout.tables == {"x": 10}
    assert encoder.layout.numbers[0].embedding == "none"


def test_a_pile_of_zeros_takes_one_bin_and_the_rest_are_told_apart():
    x = np.concatenate([np.zeros(960), np.arange(1, 41)])
    edges = quantile_edges(x, 5)
    assert edges.tolist() == [1, 11, 21, 31]
    assert quantile_edges(np.repeat([1.0, 2.0, 7.0], [5, 900, 3]), 5).tolist() == [2, 7]


def test_piecewise_knots_are_quantiles_of_the_encoded_column():
    x = np.random.default_rng(0).lognormal(0, 1, 4000)
    encoder = fit((Number("x", embedding="piecewise", bins=4, transform="log", dim=3),), columns={"x": x})
    encoded = encoder.columns(batch_of(x=x), labels=False).numbers[:, 0].numpy()
    column = encoder.layout.numbers[0]
    assert (column.embedding, column.dim, len(column.edges)) == ("piecewise", 3, 5)
    assert np.allclose(column.edges, np.quantile(encoded, [0, 0.25, 0.5, 0.75, 1]), atol=2e-3)
    assert encoder.layout.categories == ()


def test_a_number_may_be_text():
    encoder = fit((Number("x"),), columns={"x": ["1", "3", "", None]})
    assert encoder.columns(batch_of(x=["2", "1e0"]), labels=False).numbers[:, 0].tolist() == [0.0, -1.0]
    with pytest.raises(DataError, match=r"column 'x', row 12: wanted a number, found 'old'"):
        encoder.columns(batch_of(x=["2", "old"]), labels=False, first_row=10)


def test_vectors_are_columns_of_their_own():
    rows = [[1.0, 2.0], None, [3.0, 6.0], [5.0, None]]
    for kind in (pa.list_(pa.float32()), pa.large_list(pa.float64()), pa.list_(pa.float64(), 2)):
        array = pa.array(rows, kind)
        encoder = fit((Vector("v", size=2), Number("x", embedding="none")), columns={"v": array, "x": [1, 2, 3, 4]})
        found = encoder.columns(batch_of(v=array, x=[1, 2, 3, 4]), labels=False).numbers
        sd = math.sqrt(8 / 3)
        assert found[:, 0].nan_to_num(9).tolist() == pytest.approx([-2 / sd, 9, 0, 2 / sd], abs=1e-6)
        assert found[:, 1].nan_to_num(9).tolist() == pytest.approx([-1, 9, 1, 9], abs=1e-6)
        assert [column.feature for column in encoder.layout.numbers] == ["v[0]", "v[1]", "x"]
        assert [column.of_vector for column in encoder.layout.numbers] == [True, True, False]
        assert [column.flag for column in encoder.layout.numbers] == ["v", "v", None]
    with pytest.raises(DataError, match="column 'v', row 1: wanted 2 numbers in a list, found 3"):
        encoder.columns(batch_of(v=[[1.0, 2.0, 3.0]], x=[1]), labels=False, first_row=0)


def test_vectors_of_encoders_written_before_keep_a_flag_for_each_number(tmp_path):
    """Models beside them have weights for those, and so do models that go on from theirs."""
    encoder = fit((Vector("v", size=2),), columns={"v": [[1.0, 2.0], [3.0, None]]})
    encoder.save(tmp_path / "new")
    assert Encoder.load(tmp_path / "new").fingerprint == encoder.fingerprint
    content = json.loads((tmp_path / "new" / "encoder.json").read_text())
    del content["flags_apart"]
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    (tmp_path / "old" / "encoder.json").write_text(json.dumps(content))
    old = Encoder.load(tmp_path / "old")
    assert [column.flag for column in old.layout.numbers] == ["", ""]
    assert old.fingerprint != encoder.fingerprint
    old.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "encoder.json").read_text()) == content
    for base in (old, encoder):
        grown = base.grown(base.schema, [batch_of(v=[[9.0, 9.0], [1.0, 2.0]], y=[1, 0])])
        assert [column.flag for column in grown.layout.numbers] == [column.flag for column in base.layout.numbers]


def test_what_was_never_missing_has_no_flag_for_it(tmp_path):
    """A flag that is 0 in every training row would have weights that nothing teaches. Biases are missing in training
    whatever their column holds."""
    features = (
        Number("whole"), Number("gaps"), Number("far"), Vector("v", size=2), Vector("w", size=2),
        Number("place", use="bias:y"),
    )  # fmt: skip
    columns = {"whole": [1, 2, 3], "gaps": [1, None, 3], "far": ["1", "1e300", "2"], "place": [1, 2, 3]}
    columns |= {"v": [[1, 2], [3, 4], [5, 6]], "w": [[1, 2], [3, None], [5, 6]], "y": [0, 1, 0]}
    encoder = fit(features, columns=columns)
    wanted = {"whole": None, "gaps": "", "far": "", "v[0]": None, "v[1]": None, "w[0]": "w", "w[1]": "w", "place": ""}
    assert {one.feature: one.flag for one in encoder.layout.numbers} == wanted
    encoder.save(tmp_path)
    assert Encoder.load(tmp_path).layout == encoder.layout
    assert Encoder.load(tmp_path).fingerprint == encoder.fingerprint

    gone = {name: pa.nulls(3) for name in ("whole", "v")}
    later = batch_of(**(columns | gone))
    grown = encoder.grown(encoder.schema, [later])
    assert grown.layout == encoder.layout, "a model that goes on has the width it had"
    assert grown.fitted.unflagged == (("whole", 3), ("v", 3))
    assert encoder.columns(later, labels=False).numbers[:, [0, 3, 4]].isnan().all()


def test_numbers_of_encoders_written_before_all_have_a_flag(tmp_path):
    encoder = fit((Number("x"), Number("z")), columns={"x": [1, 2, 3], "z": [1, None, 2], "y": [0, 1, 0]})
    encoder.save(tmp_path)
    content = json.loads((tmp_path / "encoder.json").read_text())
    assert content.pop("flagged") == ["z"]
    (tmp_path / "encoder.json").write_text(json.dumps(content))
    old = Encoder.load(tmp_path)
    assert [one.flag for one in old.layout.numbers] == ["", ""]
    assert encoder.as_known(old.fingerprint).layout == old.layout
    assert encoder.as_known("another") is encoder.as_known(None) is encoder
    old.save(tmp_path)
    assert json.loads((tmp_path / "encoder.json").read_text()) == content


# ---- time and bags


def test_time_is_read_as_hour_and_weekday():
    at = dt.datetime(2024, 5, 31, 17, 45)  # a Friday
    encoder = fit((Time("t", parts=("hour", "weekday", "day", "month")),), columns={"t": [at, None]})
    zone = dt.timezone(dt.timedelta(hours=9))
    since = (at - dt.datetime(1970, 1, 1)).total_seconds()
    columns = [
        pa.array([at], pa.timestamp("ns")), pa.array([at], pa.timestamp("s")), pa.array(["2024-05-31 17:45"]),
        pa.array([since]), pa.array([int(since * 1000)]), pa.array([int(since) * 10**9]),
        pa.array([at.replace(tzinfo=zone)], pa.timestamp("us", "+09:00")),
    ]  # fmt: skip
    for column in columns:
        assert encoder.columns(batch_of(t=column), labels=False).categories.tolist() == [[19, 6, 32, 6]]
    for cell in (at, at.isoformat(), since, int(since * 1e3), np.datetime64(at), at.replace(tzinfo=zone)):
        assert encoder.row({"t": cell}).categories.tolist() == [[19, 6, 32, 6]]
    assert encoder.columns(batch_of(t=[dt.date(1969, 12, 31)]), labels=False).categories.tolist() == [[2, 4, 32, 13]]
    assert encoder.columns(batch_of(t=pa.nulls(1)), labels=False).categories.tolist() == [[1, 1, 1, 1]]
    assert encoder.layout.tables == {"t:hour": 26, "t:weekday": 9, "t:day": 33, "t:month": 14}


def test_a_number_that_writes_a_day_is_that_day_in_every_door():
    """Not the second of August 1970 with this number; what is no date stays one."""
    encoder = fit((Time("t", parts=("hour", "weekday", "day", "month")),), columns={"t": [20240531, 20240601]})
    friday = [[2, 6, 32, 6]]
    for column in (pa.array([20240531]), pa.array([20240531.0]), pa.array(["20240531"]), pa.array(["2024-05-31"])):
        assert encoder.columns(batch_of(t=column), labels=False).categories.tolist() == friday
    for cell in (20240531, 20240531.0, np.int32(20240531), decimal.Decimal(20240531), "20240531", dt.date(2024, 5, 31)):
        assert encoder.row({"t": cell}).categories.tolist() == friday
    for seconds in (20240431, 20240531.5, 19000100, 21001232, 18991231, -20240531):
        at = dt.datetime(1970, 1, 1) + dt.timedelta(seconds=seconds)
        parts = [[2 + at.hour, 2 + at.weekday(), 1 + at.day, 1 + at.month]]
        assert encoder.row({"t": seconds}).categories.tolist() == parts
        assert encoder.columns(batch_of(t=[seconds]), labels=False).categories.tolist() == parts


def test_bags_are_lists_or_separated_text():
    encoder = fit((Bag("b"),), columns={"b": ["7,8", "7", "", None]})
    text = encoder.columns(batch_of(b=["8,7,9", None, "", ",", "7,,7", " 8"]), labels=False).bags[0]
    assert text.values.tolist() == [3, 2, 0, 1, 1, 1, 2, 2, 0]
    assert text.offsets.tolist() == [0, 3, 4, 5, 6, 8, 9]
    lists = [[8, 7, 9], None, [], [None], [7, None, 7], [123]]
    for kind in (pa.list_(pa.int8()), pa.large_list(pa.float64()), pa.list_(pa.string())):
        values = lists if kind.value_type != pa.string() else [one and [i and str(i) for i in one] for one in lists]
        found = encoder.columns(batch_of(b=pa.array(values, kind)), labels=False).bags[0]
        assert found.values.tolist() == text.values.tolist()
        assert found.offsets.tolist() == text.offsets.tolist()


def test_a_bag_may_be_hashed():
    encoder = fit((Bag("b", separator="|", buckets=50),), columns={"b": ["x|y", "z"]})
    wanted = [2 + xxhash.xxh64_intdigest(text.encode()) % 50 for text in "xq"]
    assert encoder.columns(batch_of(b=["x|q"]), labels=False).bags[0].values.tolist() == wanted
    assert encoder.layout.tables == {"b": 52}


# ---- labels


def labels_of(encoder, **columns):
    batch = encoder.columns(batch_of(**columns))
    return batch.labels, batch.known


@pytest.mark.parametrize(
    ("positive", "train", "score", "wanted"),
    [
        (None, [0, 1, None], [1, 0, None], [1, 0, None]),
        (None, [True, False], [1.0, 0.0, math.nan], [1, 0, None]),
        (None, ["0", "1"], ["true", "false", ""], [1, 0, None]),
        ("50000+.", ["50000+.", "- 50000."], ["50000+.", "new", None], [1, 0, None]),
        ((2, 3), [1, 2, 3], [1, 2, 3, 4], [0, 1, 1, 0]),
        (False, [True, False], [True, False], [0, 1]),
    ],
)
def test_binary_labels(positive, train, score, wanted):
    encoder = fit((Number("x"),), (Task("y", positive=positive),), {"x": [1] * len(train), "y": train})
    labels, known = labels_of(encoder, x=[1] * len(score), y=score)
    assert known[:, 0].tolist() == [one is not None for one in wanted]
    assert labels[:, 0].tolist() == [one or 0 for one in wanted]


def test_a_label_that_is_not_binary_proposes_positive():
    with pytest.raises(
        DataError, match=r"column 'y': wanted 0/1 .* task 'y', found 'yes'; name the value that means 1 as 'positive'"
    ):
        fit((Number("x"),), columns={"x": [1, 2], "y": ["yes", "no"]})


def test_regression_targets_are_standardised_and_come_back():
    y = np.random.default_rng(0).lognormal(2, 1, 500)
    tasks = (Task("a", kind="regression"), Task("b", kind="regression", transform="log1p"),
             Task("c", kind="regression", transform="none"))  # fmt: skip
    encoder = fit((Number("x"),), tasks, {"x": y, "a": y, "b": y, "c": y})
    labels, known = labels_of(encoder, x=y[:9], a=y[:9], b=y[:9], c=[*y[:7], None, math.nan])
    assert np.allclose(labels[:, 0], (y[:9] - y.mean()) / y.std(), atol=1e-5)
    logged = np.log1p(y)
    assert np.allclose(labels[:, 1], (logged[:9] - logged.mean()) / logged.std(), atol=1e-5)
    assert np.allclose(labels[:7, 2], y[:7])
    assert known[:, 2].tolist() == [True] * 7 + [False] * 2
    assert labels[7:, 2].tolist() == [0, 0]
    for task in (0, 1):
        assert np.allclose(encoder.decode(task, labels[:, task].numpy()), y[:9], rtol=1e-5)
    with pytest.raises(DataError, match=r"labels above -1 for log1p, found -2\.0"):
        fit((Number("x"),), tasks[1:2], {"x": [1, 2], "b": [3.0, -2.0]})


def test_classes_are_sorted_as_text_and_unseen_ones_unknown():
    task = Task("y", kind="multiclass")
    encoder = fit((Number("x"),), (task,), {"x": [1] * 5, "y": [10, 9, 9, None, 10.0]})
    assert encoder.classes(0) == ("10", "9")
    labels, known = labels_of(encoder, x=[1] * 4, y=["9", "10", "8", None])
    assert labels[:, 0].tolist() == [1, 0, 0, 0]
    assert known[:, 0].tolist() == [True, True, False, False]
    column = encoder.layout.tasks[0]
    assert (column.outputs, column.known_rate, column.class_rates) == (2, 0.8, (0.5, 0.5))
    declared = Task("y", kind="multiclass", classes=("low", "mid", "high"))
    encoder = fit((Number("x"),), (declared,), {"x": [1, 2, 3], "y": ["low", "high", "low"]})
    assert encoder.layout.tasks[0].class_rates == pytest.approx((2 / 3, 0, 1 / 3))
    with pytest.raises(DataError, match="wanted a class of task 'y', found 'hi'; did you mean 'high'"):
        fit((Number("x"),), (declared,), {"x": [1, 2], "y": ["low", "hi"]})


def funnel(rows_off=0, mode="strict"):
    """1,000 rows: 500 clicked, 250 of them bought; ``rows_off`` more bought without a click."""
    click = [1] * 500 + [0] * 500
    buy = [1] * 250 + [0] * 250 + [1] * rows_off + [None] * (500 - rows_off)
    tasks = (Task("buy", given="click"), Task("click"), Task("spent", kind="regression", where="buy"))
    spent = [float(i) for i in range(1000)]
    columns = {"x": [1] * 1000, "buy": buy, "click": click, "spent": spent}
    return fit((Number("x"),), tasks, columns, funnel=mode), columns


def test_a_parent_of_0_makes_a_null_child_0_and_where_hides_rows():
    encoder, columns = funnel()
    labels, known = labels_of(encoder, **columns)
    assert known.all(0).tolist() == [True, True, False]
    assert labels.sum(0)[:2].tolist() == [250, 500]
    assert known[:, 2].nonzero().flatten().tolist() == list(range(250))
    assert labels[:250, 2].mean().item() == pytest.approx(0, abs=1e-5)
    buy, click, spent = encoder.layout.tasks
    assert (buy.known_rate, buy.mean, click.mean, spent.known_rate) == (1.0, 0.25, 0.5, 0.25)


def test_a_broken_funnel_is_counted_and_refused_unless_loose():
    with pytest.raises(DataError, match=r"'buy' is given 'click', but 3 of its 253 .* \(1\.19%\).*funnel: loose"):
        funnel(3)
    encoder, columns = funnel(3, "loose")
    assert [(one.name, one.known, one.positives, one.violations) for one in encoder.stats] == [
        ("buy", 1000, 253, 3),
        ("click", 1000, 500, 0),
        ("spent", 253, 0, 0),
    ]
    labels, _ = labels_of(encoder, **columns)
    assert labels[500:503, 0].tolist() == [1, 1, 1]


def test_a_row_that_where_takes_away_breaks_no_funnel():
    tasks = (Task("click"), Task("seen"), Task("buy", given="click", where="seen"))
    columns = {"x": [1.0, 2.0, 3.0] * 100, "click": [1, 1, 0] * 100, "seen": [1, 1, 0] * 100, "buy": [1, 0, 1] * 100}
    encoder = fit((Number("x"),), tasks, columns)
    buy = encoder.stats[2]
    assert (buy.known, buy.positives, buy.violations) == (200, 100, 0)
    later = batch_of(**columns).filter(pa.array([False, True, True] * 100))  # no label of 1 is known among them
    buy = encoder.grown(encoder.schema, [later]).stats[2]
    assert (buy.known, buy.positives, buy.violations) == (100, 0, 0)
    with pytest.raises(DataError, match=r"'buy' is given 'click', but 100 of its 199 labels of 1"):
        fit((Number("x"),), tasks, columns | {"seen": [0, *[1] * 299]})


@pytest.mark.parametrize("kind", ["binary", "regression", "multiclass"])
def test_labels_that_teach_nothing_are_refused(kind):
    task = Task("y", kind=kind)
    with pytest.raises(DataError, match=r"column 'y': wanted different values .* found the same in all of them"):
        fit((Number("x"),), (task,), {"x": [1, 2, 3, 4], "y": [1, 1, 1, None]})
    with pytest.raises(DataError, match=r"column 'y': wanted known values of task 'y'.* found none"):
        fit((Number("x"),), (task,), {"x": [1, 2], "y": pa.nulls(2, pa.int64())})


def test_sample_weights():
    tasks = (Task("y", sample_weight="w"), Task("z"))
    columns = {"x": [1, 2], "y": [0, 1], "z": [0, 1]}
    encoder = fit((Number("x"),), tasks, columns | {"w": [0.5, 0]})
    assert encoder.columns(batch_of(**columns, w=[2, 3.5])).weights.tolist() == [[2, 1], [3.5, 1]]
    for bad, shown in ((None, "None"), (-1.0, "-1.0")):
        with pytest.raises(DataError, match=f"column 'w', row 2: wanted a weight of 0 or more .*, found {shown}"):
            encoder.columns(batch_of(**columns, w=[2, bad]), first_row=0)


def test_groups_are_hashes_of_the_text():
    encoder = fit((Number("x"),), columns={"x": [1, 2, 3], "u": [5, 6, None]}, group="u")
    found = encoder.columns(batch_of(x=[1, 2, 3], u=["5", "abc", None]), labels=False).groups
    wanted = [np.uint64(xxhash.xxh64_intdigest(text)).astype(np.int64) for text in (b"5", b"abc")]
    assert found.tolist() == [*wanted, 0]
    assert encoder.row({"x": 1, "u": 5}).groups.tolist() == found[:1].tolist()
    assert encoder.columns(batch_of(x=[1]), labels=False).groups.tolist() == [0]
    with pytest.raises(DataError, match="no column 'u'"):
        encoder.columns(batch_of(x=[1], y=[1]))


# ---- the table as a whole


def test_a_missing_column_is_named_and_further_ones_are_ignored():
    encoder = fit((Number("age"), Category("city")), columns={"age": [1, 2], "city": ["a", "b"]})
    with pytest.raises(DataError, match="no column 'age'; did you mean 'agee'"):
        encoder.columns(batch_of(agee=[1], city=["a"]), labels=False)
    with pytest.raises(DataError, match="no column 'city'; did you mean 'cities'"):
        encoder.row({"age": 1, "cities": "a"})
    with pytest.raises(DataError, match="no column 'y'"):
        encoder.columns(batch_of(age=[1], city=["a"]))
    batch = encoder.columns(batch_of(more=[[1]], city=["a"], age=[1]), labels=False)
    assert batch.labels.shape == batch.known.shape == batch.weights.shape == (1, 0)
    same(batch, encoder.row({"more": 3, "city": "a", "age": 1}))


DICTIONARY_OF_STRUCTS = pa.DictionaryArray.from_arrays(pa.array([0]), pa.array([{"left": 0, "right": 1}]))
"""As Arrow has the intervals that ``pandas.cut`` makes."""


@pytest.mark.parametrize(
    ("feature", "array", "words"),
    [
        (Number("f"), pa.array([dt.datetime(2024, 1, 1)]), "declare it a time"),
        (Number("f"), pa.array([[1.0]]), "only bags and vectors read lists"),
        (Category("f"), pa.array([["a"]]), "only bags and vectors read lists"),
        (Vector("f", size=2), pa.array([1.0]), "give lists"),
        (Category("f"), pa.array([pa.MonthDayNano([1, 2, 3])]), "wanted single values, found month_day_nano_interval"),
        (Category("f"), DICTIONARY_OF_STRUCTS, "give its fields columns of their own"),
        (Time("f"), pa.array(["noon"]), "found 'noon'; write it as ISO 8601"),
        (Time("f"), pa.array([True]), "wanted a time, found True"),
    ],
)
def test_a_column_of_the_wrong_kind_is_refused_in_both_doors(feature, array, words):
    encoder = fit((feature,), columns={"f": pa.nulls(2)})
    with pytest.raises(DataError, match=f"column 'f'.*{words}"):
        encoder.columns(batch_of(f=array), labels=False)
    with pytest.raises(DataError, match="column 'f'"):
        encoder.row({"f": array[0].as_py()})


def test_no_rows_at_all():
    encoder = fit(ALL, tasks=TASKS, columns=TRAIN.to_pydict(), group="group")
    empty = encoder.columns(TRAIN.slice(0, 0))
    assert empty.rows == 0
    assert empty.labels.shape == (0, 3)
    assert [bag.offsets.tolist() for bag in empty.bags] == [[0], [0]]
    with pytest.raises(DataError, match="wanted training rows"):
        Encoder.fit(encoder.schema, [TRAIN.slice(0, 0)])


ALL = (
    Number("number"), Number("log", transform="log", bins=3),
    Number("rank", transform="quantile", embedding="piecewise"), Number("wave", embedding="periodic"),
    Number("often", bins=4),
    Vector("vector", size=3), Time("time", parts=("month", "hour", "weekday", "day")),
    Category("category"), Category("rare", min_count=2), Hashed("hashed", buckets=11), Bag("bag"),
    Bag("hashed_bag", buckets=7, separator=" "),
)  # fmt: skip
TASKS = (Task("y"), Task("z", kind="regression", transform="log1p"), Task("k", kind="multiclass"))
_at = np.random.default_rng(3)
TRAIN = batch_of(
    number=_at.normal(size=300), log=_at.lognormal(size=300), rank=_at.integers(0, 50, 300).astype(float),
    wave=_at.integers(-5, 5, 300), vector=_at.normal(size=(300, 3)).tolist(),
    time=[dt.datetime(2020, 1, 1) + dt.timedelta(hours=int(h)) for h in _at.integers(0, 10**5, 300)],
    category=pa.array([str(i) if i else None for i in _at.integers(-3, 6, 300)]).dictionary_encode(),
    often=_at.integers(-3, 20, 300), rare=_at.integers(0, 200, 300),
    hashed=_at.integers(0, 200, 300), group=_at.integers(0, 9, 300),
    bag=[",".join(map(str, range(i))) or None for i in _at.integers(0, 5, 300)],
    hashed_bag=[["a b", "true", ""][:i] for i in _at.integers(0, 4, 300)],
    y=_at.integers(0, 2, 300), z=_at.lognormal(size=300), k=_at.integers(0, 4, 300),
)  # fmt: skip
ENCODER = Encoder.fit(Schema(features=ALL, tasks=TASKS, group="group"), [TRAIN])

floats = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from(
    [0.0, -0.0, 3.0, 1e300, 3.4e38, 3.5e38, 5e-324, -1e-310]
)
single_floats = st.floats(width=32) | st.sampled_from([0.1, 3.0]).map(np.float32).map(float)
ints = st.integers(-3, 6) | st.integers(-(2**63), 2**63 - 1)
words = st.sampled_from(["", "3", "3.0", "true", "nan", " 2", "é", "\0", "a\0", "🦄", "\ufeff"]) | st.text(
    st.characters(codec="utf-8"), max_size=4
)
moments = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59))
decimals = st.decimals(-1000, 1000, places=2)
SCALARS = [
    (pa.int8(), st.integers(-3, 6)), (pa.int64(), ints), (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float64(), floats), (pa.float32(), single_floats), (pa.bool_(), st.booleans()), (pa.null(), st.none()),
    (pa.decimal128(9, 2), decimals),
]  # fmt: skip
TEXTS = [(pa.string(), words), (pa.large_string(), words), (pa.dictionary(pa.int16(), pa.string()), words)]
NUMERALS = [(pa.string(), st.sampled_from(["", "1", "-2.5", "1e3", "inf", "nan", " 7 "]))]
TIMES = [
    (pa.timestamp("us"), moments), (pa.timestamp("ms", "UTC"), moments), (pa.date32(), st.dates()),
    (pa.string(), moments.map(str) | st.just("")), (pa.float64(), floats), (pa.null(), st.none()),
    (pa.int64(), ints | st.sampled_from([-7 * 10**10, -7 * 10**13, -6 * 10**10])),  # the years -248, -248 and 68
    # Arrow knows daylight saving time up to 2037 only
    (pa.timestamp("us", "America/New_York"), st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2037, 1, 1))),
]  # fmt: skip
OTHERS = [(pa.timestamp("us"), moments), (pa.date32(), st.dates()), (pa.binary(), st.binary(max_size=3))]
LISTS = [(kind, st.lists(value | st.none(), max_size=4)) for kind, value in SCALARS + TEXTS[:2]]
KINDS = {
    "number": SCALARS + NUMERALS, "log": SCALARS + NUMERALS, "rank": SCALARS + NUMERALS, "wave": SCALARS + NUMERALS,
    "often": SCALARS + NUMERALS,
    "vector": [(pa.list_(kind), st.lists(value | st.none(), min_size=3, max_size=3)) for kind, value in SCALARS],
    "time": TIMES, "category": SCALARS + TEXTS + OTHERS, "rare": SCALARS + TEXTS + OTHERS,
    "hashed": SCALARS + TEXTS + OTHERS, "group": SCALARS + TEXTS + OTHERS,
    "bag": [*SCALARS, *TEXTS, *[(pa.list_(kind), value) for kind, value in LISTS]],
    "hashed_bag": [*SCALARS, *TEXTS, *[(pa.large_list(kind), value) for kind, value in LISTS]],
}  # fmt: skip


@st.composite
def tables(draw):
    rows = draw(st.integers(1, 6))
    columns = {}
    for name, kinds in KINDS.items():
        kind, value = draw(st.sampled_from(kinds))
        values = draw(st.lists(value | st.none(), min_size=rows, max_size=rows))
        columns[name] = pa.array(values, kind)
    return pa.RecordBatch.from_pydict(columns)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables())
@example(TRAIN.slice(0, 50))
def test_one_row_and_many_rows_are_encoded_alike(table):
    whole = ENCODER.columns(table, labels=False)
    for at, row in enumerate(table.to_pylist()):
        same(cut(whole, at, at + 1), ENCODER.row(row))


@pytest.mark.parametrize("small", [0, 4096], ids=["many values", "few"])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (None, [-7, 0, 7, 70, 10**15 - 1, 10**15, 2**63 - 1]),
        ("int64", [-7, 0, 7, 70, 10**15 - 1, 10**15, 2**63 - 1]),
        ("double", [-7.0, 0.0, 7.5, 70.0, 1e15, 2.0**60]),
        ("bool", [True, False]),
        (None, ["007", "070", "-07"]),
        (None, ["7", "-7", "-0", "--7", "-", "+7", " 70", "7.0", "\N{ARABIC-INDIC DIGIT SEVEN}", "1e15"]),
    ],
    ids=["whole", "told whole", "floats", "truth", "codes", "texts"],
)
def test_a_whole_number_has_the_id_in_a_row_that_it_has_in_a_table(kind, values, small, monkeypatch):
    monkeypatch.setattr("multigate.data.vocabulary.SMALL", small)
    types = {} if kind is None else {"c": kind}
    encoder = fit((Category("c"),), columns={"c": values}, types=types)
    asked = [-7, -1, 0, 1, 7, 70, 77, 10**15 - 1, 10**15, 10**15 + 1, 2**60, 2**63 - 1]
    found = [encoder.row({"c": one}).categories.item() for one in asked]
    assert found == ids_of(encoder, c=asked)
    assert found == [encoder.row({"c": np.int64(one)}).categories.item() for one in asked]
    assert encoder.row({"c": 10**20}).categories.item() == UNSEEN
    assert encoder.row({"c": True}).categories.item() == ids_of(encoder, c=[True])[0]


DECIMALS = [f"{at / 100:g}" for at in range(1, 400, 3)]
FORMS = {
    "float64": pa.array(map(float, DECIMALS), pa.float64()),
    "float32": pa.array(map(np.float32, DECIMALS), pa.float32()),
    "text": pa.array(DECIMALS),
    "float32 made wide": pa.array(map(np.float32, DECIMALS), pa.float32()).cast(pa.float64()),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_decimal_is_one_number_whatever_the_width_of_its_column(form):
    columns = {"x": pa.concat_arrays([FORMS[form]] * 6), "y": LABEL * (3 * len(DECIMALS))}
    few, many = (
        Number("few", column="x", embedding="bins", bins=len(DECIMALS)),
        Number("many", column="x", embedding="bins", bins=8),
    )
    encoder = Encoder.fit(
        Schema(features=[few, many, Category("kind", column="x", min_count=1)], tasks=BINARY), [batch_of(**columns)]
    )
    wanted = encoder.columns(batch_of(x=FORMS["text"]), labels=False).categories
    assert wanted[:, 0].tolist() == list(range(2, 2 + len(DECIMALS)))  # a bin each, in their order
    assert wanted[:, 2].tolist() == list(range(2, 2 + len(DECIMALS)))  # a value each
    assert set(wanted[:, 3].tolist()) == set(range(2, 2 + len(DECIMALS)))
    for array in FORMS.values():
        assert torch.equal(encoder.columns(batch_of(x=array), labels=False).categories, wanted)
        for at, cell in enumerate([*array.to_pylist()[:40], *array.to_numpy(zero_copy_only=False)[:40]]):
            assert torch.equal(encoder.row({"x": cell}).categories[0], wanted[at % 40])


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_the_shortest_decimal_of_a_float32_is_the_one_that_numpy_prints(value):
    printed = value if value.is_integer() else float(str(np.float32(value)))
    assert shortest_of(value) == shortest(np.array([value]))[0]
    if abs(value) > 1e-37:  # smaller ones have fewer digits than the six that are tried first
        assert shortest_of(value) == printed


_places = np.random.default_rng(5).uniform(-180, 180, 120).round(9)
FINER = {
    "places": (_places, 48, 256),
    "places, a bin each": (_places, 120, 0),
    "whole numbers": (2.0**24 + np.arange(60), 8, 256),
    "only the values": (np.append(np.arange(40) / 4, [0.1234567891, 7.0000000123]), 4, 256),
}


@pytest.mark.parametrize("case", FINER)
def test_numbers_finer_than_a_float32_are_read_alike_in_a_row_and_in_a_column_of_float32s(case):
    values, bins, most = FINER[case]
    x = np.repeat(values, 6)
    encoder = fit(
        (Number("x", embedding="bins", bins=bins, values=most),), columns={"x": x, "y": LABEL * (len(x) // 2)}
    )
    single = pa.array(values.astype(np.float32))
    wanted = torch.cat([encoder.row({"x": cell}).categories for cell in single.to_pylist()])
    for array in (single, single.cast(pa.float64()), single.dictionary_encode()):
        assert torch.equal(encoder.columns(batch_of(x=array), labels=False).categories, wanted)


TYPED = {
    "member": "bool", "code": "int64", "share": "double", "x": "double", "many": "int64", "day": "timestamp[us]",
    "seen": "timestamp[us, tz=UTC]", "date": "date32[day]", "y": "int64",
}  # fmt: skip
TYPED_SCHEMA = Schema(
    features=[
        Category("member", min_count=1), Category("code", min_count=1), Hashed("share", buckets=99), Number("x"),
        Number("many"), Time("day"), Time("seen"), Time("date"),
    ],
    tasks=BINARY, group="code", types=TYPED,
)  # fmt: skip
_days = [dt.datetime(2026, 1, 1) + dt.timedelta(hours=31 * at) for at in range(40)]
TYPED_ROWS = pa.RecordBatch.from_pydict(
    {
        "member": [True, False] * 20, "code": list(range(20)) * 2, "share": [at / 4 for at in range(40)],
        "x": [at / 8 for at in range(40)], "many": list(range(40)), "day": pa.array(_days, pa.timestamp("us")),
        "seen": pa.array(_days, pa.timestamp("us", "UTC")), "date": [at.date() for at in _days], "y": LABEL * 20,
    }
)  # fmt: skip
TYPED_ENCODER = Encoder.fit(TYPED_SCHEMA, [TYPED_ROWS])
CELLS = [
    (
        "member",
        ["True", "TRUE", "true", True, 1, "1", 1.0, "1.0"],
        ["false", "False", 0, "0", False, "0.0"],
        ["yes", 2, "2", "2.0"],
    ),
    ("code", [7, "7", "07", " 7", "+7", 7.0, "7.0"], ["0", 0, "-0", False, "false"], ["abc", 70, "7.5", "1_0"]),
    ("share", [0.5, "0.5", ".50", " 5e-1"], [7, "7", "7.0", 7.0], []),
    ("share", [math.inf, "inf", " Infinity", np.inf], ["1e39", 1e39, "1.0e+39"], []),
    ("x", [1.5, "1.5", " 1.5", "1.5 ", "15e-1"], [2, "2", 2.0], []),
    ("many", [11, "11", "11.0", 11.0], [12.5, "12.5"], []),
    ("day", ["2026-01-05 10:00", "2026-01-05T10:00:00Z", "2026-01-05T10:30:00+05:00", "20260105T1015"], [], []),
    ("day", ["2026-01-05 10:00", " 2026-01-05 10:00", "2026-01-05T10:00:00Z "], ["", " ", "0000-05-01 10:00"], []),
    ("seen", ["2026-01-05 10:00", "2026-01-05T10:00:00Z", "2026-01-05T15:30:00+05:00", "20260105T1015"], [], []),
    (
        "seen",
        ["2026-01-05 10:00 ", " 2026-01-05T15:30+05:00\t", " 20260105T1015"],
        ["", "0000-05-01", "0000-05-01T10Z"],
        [],
    ),
    ("date", ["2026-01-04", "2026-01-04 00:00:00", "2026-01-04T00:00:00.000Z", "20260104", _days[3].date()], [], []),
    ("date", ["2026-01-04", " 2026-01-04", "2026-01-04 "], ["", "0000-02-29", "00000501"], []),
]


@pytest.mark.parametrize(("column", "alike", "others", "unseen"), CELLS, ids=[one[0] for one in CELLS])
def test_a_text_is_read_alike_in_a_row_in_a_table_and_in_a_file(column, alike, others, unseen, tmp_path):
    at = [feature.name for feature in TYPED_SCHEMA.features].index(column)
    row = {name: values[0] for name, values in TYPED_ROWS.to_pydict().items()}

    def ids(cell):
        """What the encoder makes of a cell, through every door."""
        doors = [TYPED_ENCODER.row(row | {column: cell})]
        tables = [{name: [value] for name, value in (row | {column: cell}).items()}]
        if isinstance(cell, str):
            path = tmp_path / "rows.csv"
            path.write_text(f'{column}\n"{cell}"\n')
            told = next(open_table(path, TYPED_SCHEMA.later_types()).batches())
            tables.append({name: [value] for name, value in row.items()} | {column: told.column(0)})
        for table in tables:
            batch = next(open_table(table, TYPED_SCHEMA.later_types()).batches())
            doors.append(TYPED_ENCODER.columns(batch, labels=False))
        for door in doors[1:]:
            same(door, doors[0])
        return doors[0].categories[0].tolist(), doors[0].numbers[0].tolist(), doors[0].groups.tolist()

    first = [ids(cell) for cell in alike]
    assert all(one == first[0] for one in first)
    rest = [ids(cell) for cell in others]
    assert all(one == rest[0] for one in rest)
    assert first[0] not in rest
    known = TYPED_ENCODER.row(row | {column: alike[0]}).categories[0, at].item() if at < 3 else 2
    assert known >= 2
    assert all(ids(cell)[0][at] == 0 for cell in unseen)


_moments = [dt.datetime(2026, 5, 1 + at, 17, at) for at in range(4)]
OF_TYPE = {
    "moments": (
        pa.array(_moments, pa.timestamp("us")),
        ["2026-05-01T17:00", "2026-05-01 17:00:00", _moments[0], 1_777_654_800_000, "1777654800", 1_777_654_800.0],
    ),
    "zoned": (
        pa.array(_moments, pa.timestamp("ms", "Europe/Berlin")),
        ["2026-05-01T19:00", "2026-05-02T00:00+07:00", 1_777_654_800, "1777654800000.0"],
    ),
    "days": (
        pa.array([at.date() for at in _moments], pa.date32()),
        ["2026-05-01", "20260501", " 2026-05-01", "2026-05-01 ", _moments[0].date(), 1_777_593_600_000, 20260501],
    ),
    "times of day": (
        pa.array([at.time() for at in _moments], pa.time64("us")),
        ["17:00:00", "17:00:00.000000", "17:00", " 17:00:00", _moments[0].time()],
    ),
    "decimals": (
        pa.array(map(decimal.Decimal, ("1.10", "2.50", "3.00", "0.01")), pa.decimal128(3, 2)),
        ["1.10", "1.1", " 1.1", 1.1, decimal.Decimal("1.10")],
    ),
}


@pytest.mark.parametrize("name", OF_TYPE)
def test_times_and_decimals_as_categories_are_found_again_by_their_text(name, tmp_path):
    array, cells = OF_TYPE[name]
    schema = Schema(features=[Category("c", min_count=1)], tasks=BINARY, types={"c": type_name(array.type)})
    encoder = Encoder.fit(schema, [batch_of(c=array, y=LABEL * 2)])
    wanted = encoder.columns(batch_of(c=array[:1]), labels=False).categories[0, 0].item()
    assert wanted >= 2
    for cell in cells:
        assert encoder.row({"c": cell}).categories.item() == wanted, cell
        tables = [{"c": [cell]}]
        if isinstance(cell, str):
            tables.append(tmp_path / "rows.csv")
            tables[-1].write_text(f'c\n"{cell}"\n')
        for one in tables:
            batch = next(open_table(one, schema.later_types()).batches())
            assert encoder.columns(batch, labels=False).categories.item() == wanted, cell
    for cell in ("2026-05-01T17:01", "9.99", "soon"):
        assert encoder.row({"c": cell}).categories.item() == 0


@pytest.mark.parametrize(
    ("column", "cell"), [("x", "1,5"), ("x", "1_000"), ("day", "05.01.2026"), ("seen", "soon"), ("day", "0000-02-30")]
)
def test_a_text_that_is_refused_in_a_row_is_refused_in_a_table(column, cell):
    row = {name: values[0] for name, values in TYPED_ROWS.to_pydict().items()} | {column: cell}
    with pytest.raises(DataError, match=f"column '{column}'"):
        TYPED_ENCODER.row(row)
    with pytest.raises(DataError, match=f"column '{column}'"):
        next(open_table({name: [value] for name, value in row.items()}, TYPED_SCHEMA.later_types()).batches())


@pytest.mark.parametrize(
    ("types", "later"),
    [
        ({}, ["39,12", "", "7"]),  # between semicolons, where such are numbers elsewhere
        ({"tags": "string"}, ["39,12", "", "7"]),
        ({"tags": "date32[day]"}, ["2026-05-01", "", "2026-05-03"]),
    ],
)
def test_a_bag_is_read_alike_in_training_and_later(types, later, tmp_path):
    schema = Schema(features=[Bag("tags"), Number("x")], tasks=BINARY, types=types)
    (tmp_path / "rows.csv").write_text("tags;x;y\n" + "".join(f"{one};{at},5;1\n" for at, one in enumerate(later)))
    batch = next(open_table(tmp_path / "rows.csv", schema.read_types()).batches())
    encoder = Encoder.fit(schema, [batch, batch_of(tags=[None], x=[1.0], y=[0])])
    items = sorted({item for one in later for item in one.split(",") if item})
    assert sorted(encoder.fitted.vocabularies["tags"].values) == items
    again = encoder.columns(next(open_table(tmp_path / "rows.csv", schema.later_types()).batches()), labels=False)
    assert min(again.bags[0].values.tolist()) == 1  # nothing is unseen
    for at, (one, row) in enumerate(zip(later, batch.to_pylist(), strict=True)):
        same(cut(again, at, at + 1), encoder.row({"tags": one, "x": row["x"]}))


@pytest.mark.parametrize("kind", ["double", "float", "int64", "decimal128(4, 2)"])
def test_numbers_with_decimal_commas_are_the_categories_and_the_group_that_they_were_in_training(kind, tmp_path):
    features = [Category("user"), Hashed("item", column="group", buckets=99), Category("text"), Number("x")]
    types = {"user": kind, "group": kind, "text": "string", "x": "double", "y": "int64"}
    schema = Schema(features=features, tasks=BINARY, group="group", types=types)
    rows = [(f"{at},0" if kind == "int64" else f"{at},25", f"{at},{at}") for at in range(2, 5)]
    lines = [f"{one};{one};{text};1;{at % 2},0" for at, (one, text) in enumerate([*rows, ("1e-05", "1.5"), ("", "")])]
    (tmp_path / "rows.csv").write_text("user;group;text;x;y\n" + "\n".join([*lines, ""]))
    number = {"int64": int, "double": float, "float": np.float32, "decimal128(4, 2)": decimal.Decimal}[kind]
    values = pa.array([number(float(one.replace(",", "."))) for one, _ in rows], parse_type(kind))
    texts = [text for _, text in rows]
    encoder = Encoder.fit(schema, [batch_of(user=values, group=values, text=texts, x=[1.0] * 3, y=[0, 1, 0])])
    source = open_table(tmp_path / "rows.csv", schema.later_types(), trained=types)
    found = encoder.columns(next(source.batches()))
    trained = encoder.columns(batch_of(user=values, group=values, text=texts, x=[1.0] * 3, y=[0, 1, 0]))
    same(cut(found, 0, 3), trained)
    assert found.categories[3:, [0, 2]].tolist() == [[0, 0], [1, 1]]
    assert trained.categories[:, [0, 2]].min() >= 2
    for at, value in enumerate(values.to_pylist()):
        row = encoder.row({"user": value, "group": value, "text": texts[at], "x": 1.0})
        assert torch.equal(row.categories[0], found.categories[at])
    assert encoder.row({"user": "2,25", "group": "", "text": "", "x": 1}).categories[0, 0] == 0  # no file told commas


def test_seconds_since_1970_may_have_become_fractional_by_a_null(tmp_path):
    seconds = [1_767_225_600 + 3600 * at for at in range(4)]
    schema = Schema(features=[Time("at")], tasks=BINARY, types={"at": "int64"})
    encoder = Encoder.fit(schema, [batch_of(at=seconds, y=LABEL * 2)])
    (tmp_path / "later.csv").write_text(f"at,n\n,1\n{seconds[1]}.0,1\n")
    batch = next(open_table(tmp_path / "later.csv", schema.later_types()).batches())
    assert encoder.columns(batch, labels=False).categories.tolist() == [[1, 1], [3, 5]]


@pytest.mark.parametrize("kind", ["int64", "double", "decimal128(12, 0)"])
def test_text_of_seconds_since_1970_is_read_in_a_row_as_in_a_table(kind):
    seconds = [1_767_225_600 + 3600 * at for at in range(4)]
    schema = Schema(features=[Time("at")], tasks=BINARY, types={"at": kind})
    encoder = Encoder.fit(schema, [batch_of(at=seconds, y=LABEL * 2)])
    for cell in (str(seconds[1]), f"{seconds[1]}.0", f" {seconds[1]}000", "20260101", ""):
        batch = next(open_table({"at": [cell, str(seconds[0])]}, schema.later_types()).batches())
        same(cut(encoder.columns(batch, labels=False), 0, 1), encoder.row({"at": cell}))
    assert encoder.row({"at": str(seconds[1])}).categories.tolist() == [[3, 5]]


@pytest.mark.parametrize("scale", [0, 2])
def test_long_ids_that_were_decimals_are_never_taken_for_others(scale, tmp_path):
    ids = [2**53, 2**53 + 1, 2**53 + 2, 7]
    kind = pa.decimal128(38, scale)
    values = pa.array(list(map(decimal.Decimal, ids))).cast(kind)
    schema = Schema(features=[Category("id")], tasks=BINARY, types={"id": str(kind)})
    encoder = Encoder.fit(schema, [batch_of(id=values, y=LABEL * 2)])
    known = [encoder.row({"id": decimal.Decimal(one)}).categories.item() for one in ids]
    assert sorted(known) == [2, 3, 4, 5]
    later = values.cast(pa.string())  # as they are written in CSV and JSON, with two zeros where there is a scale
    (tmp_path / "later.csv").write_text("\n".join(["id,n", *(f"{one},1" for one in later.to_pylist())]))
    for table in (tmp_path / "later.csv", {"id": later}):
        batch = next(open_table(table, schema.later_types()).batches())
        assert encoder.columns(batch, labels=False).categories[:, 0].tolist() == known
    assert [encoder.row({"id": one}).categories.item() for one in later.to_pylist()] == known
    assert encoder.row({"id": "7.0"}).categories.item() == known[-1]
    if not scale:
        for cell in (float(2**53 + 2), "9007199254740994.0"):
            with pytest.raises(DataError, match="wanted a whole number"):
                encoder.row({"id": cell})
    assert encoder.row({"id": "1e99999999999999999999"}).categories.item() == 0


def test_decimals_may_have_become_longer_ones(tmp_path):
    types = {"price": "decimal128(4, 2)", "code": "decimal128(4, 2)", "paid": "decimal128(4, 2)", "w": "int64"}
    task = Task("paid", kind="regression", transform="none", sample_weight="w")
    schema = Schema(features=[Number("price"), Category("code")], tasks=[task], types=types)
    values = pa.array(map(decimal.Decimal, ("1.10", "2.50", "3.00", "0.01")), pa.decimal128(4, 2))
    encoder = Encoder.fit(schema, [batch_of(price=values, code=values, paid=values, w=[1] * 4)])
    later = {
        "price": ["2.505", "1234.5"], "code": ["2.500", "1234.5"], "paid": ["41.980000000000004", "1e2"],
        "w": ["1.5", "2"],
    }  # fmt: skip
    lines = [",".join(row) for row in (later, *zip(*later.values(), strict=True))]
    (tmp_path / "later.csv").write_text("\n".join(lines))
    for table in (tmp_path / "later.csv", later):
        batch = encoder.columns(next(open_table(table, schema.later_types()).batches()))
        assert batch.labels.tolist() == [[np.float32(41.980000000000004)], [100.0]]
        assert batch.weights.tolist() == [[1.5], [2.0]]
        for at in range(2):
            row = encoder.row({name: cells[at] for name, cells in later.items()})
            assert torch.equal(batch.numbers[at], row.numbers[0])
            assert torch.equal(batch.categories[at], row.categories[0])
    assert min(batch.categories[0].tolist()) >= 2


@pytest.mark.parametrize(
    "later",
    [
        ["True", "False", ""], ["true", "false", "NA"], ["1.0", "0.0", "nan"], ["1", "0", ""], ["TRUE", "0", "None"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["int64", "bool"])
def test_labels_may_have_become_truth_values_or_0_and_1(later, kind, tmp_path):
    schema = Schema(features=[Category("c")], tasks=BINARY, types={"c": "int64", "y": kind})
    labels = pa.array([0, 1, None]).cast(parse_type(kind))
    encoder = Encoder.fit(schema, [pa.RecordBatch.from_pydict({"c": [1, 2, 3], "y": labels})])
    (tmp_path / "later.csv").write_text("c,y\n" + "".join(f"1,{one}\n" for one in later))
    for table in (tmp_path / "later.csv", {"c": [1] * 3, "y": [*later[:2], None]}):
        batch = encoder.columns(next(open_table(table, types=schema.later_types()).batches()))
        assert batch.known[:, 0].tolist() == [True, True, False]
        assert batch.labels[:2, 0].tolist() == [1, 0]
    (tmp_path / "wrong.csv").write_text("c,y\n1,maybe\n")
    with pytest.raises(DataError, match=r"wanted 0/1 or true/false as label of task 'y', found 'maybe'"):
        encoder.columns(next(open_table(tmp_path / "wrong.csv", types=schema.later_types()).batches()))


def test_classes_that_were_whole_numbers_may_have_become_fractional_by_a_null(tmp_path):
    for classes, wanted in ((("0", "1", "2"), "double"), ((str(2**60), str(2**60 + 1)), "int64"), ((), "int64")):
        task = Task("stars", kind="multiclass", classes=classes)
        schema = Schema(features=[Category("c")], tasks=[task], types={"stars": "int64"})
        assert schema.later_types()["stars"] == wanted  # no float64 holds the large ones
    schema = schema.with_(tasks=(Task("stars", kind="multiclass", classes=("0", "1", "2")),))
    encoder = Encoder.fit(schema, [batch_of(c=["a", "b"] * 2, stars=[0, 1, 2, 1])])
    (tmp_path / "later.csv").write_text("c,stars\na,2.0\nb,\na,0.0\n")
    batch = encoder.columns(next(open_table(tmp_path / "later.csv", schema.later_types()).batches()))
    assert batch.labels[:, 0].tolist() == [2, 0, 0]
    assert batch.known[:, 0].tolist() == [True, False, True]


surrogates = st.text(st.characters(), max_size=3) | st.sampled_from(["\ud800", "a\0b", "1\ud800", "9" * 5000, "1e400"])
NASTY = st.recursive(
    st.none() | st.booleans() | ints | floats | st.complex_numbers()
    | st.sampled_from([64, 1024, 20_000]).map(lambda x: -(2**x)) | surrogates
    | surrogates.map(lambda x: x.encode("utf-8", "surrogatepass")) | st.decimals() | st.fractions()
    | st.sampled_from([decimal.Decimal("1e999999"), decimal.Decimal("sNaN"), object(), int, Ellipsis])
    | st.sampled_from([np.timedelta64("NaT", "s"), np.complex64(1)])
    | st.datetimes(timezones=st.none() | st.timezones()) | st.dates() | st.times() | st.timedeltas() | st.uuids()
    | st.integers(-(2**63) + 1, 2**63 - 1).flatmap(lambda x: st.sampled_from("smunYDh").map(
        lambda unit: np.datetime64(x, {"m": "ms", "u": "us", "n": "ns"}.get(unit, unit))))
    | st.integers(-(2**63) + 1, 2**63 - 1).map(lambda x: np.timedelta64(x, "s")) | single_floats.map(np.float32)
    | ints.map(np.int64) | st.text(max_size=2).map(np.str_),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner, inner)
    | st.dictionaries(st.text(), inner, max_size=2) | st.lists(floats, max_size=3).map(np.array),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([feature.source for feature in ALL] + ["group"]), NASTY)
@example("time", np.int64(2**63 - 1).view("datetime64[Y]"))
@example("time", np.int64(2**63 - 1).view("datetime64[as]"))
def test_whatever_a_cell_holds_is_read_or_refused_kindly(column, value):
    row = dict.fromkeys([feature.source for feature in ALL]) | {column: value}
    told = ""
    try:
        batch = ENCODER.row(row)
    except DataError as error:
        told = str(error)
        told.encode()  # can be printed
    assert len(told) < 400
    assert not told or "; " in told
    if not told:
        sizes = [ENCODER.layout.tables[one.table] for one in ENCODER.layout.categories]
        assert (batch.categories >= 0).all()
        assert (batch.categories < torch.tensor(sizes)).all()
        assert not batch.numbers.isinf().any()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.none(), min_size=1, max_size=5),
    st.sampled_from([pa.timestamp(unit, zone) for unit in ("s", "ms", "us", "ns") for zone in (None, "UTC", "+05:30")]
                    + [pa.date64()]),
    st.sampled_from(["time", "category", "group"]),
)  # fmt: skip
def test_any_timestamp_is_read_or_missing(ticks, kind, column):
    nulls = {feature.source: pa.nulls(len(ticks)) for feature in ALL} | {"group": pa.nulls(len(ticks))}
    batch = batch_of(**nulls | {column: pa.array(ticks, pa.int64()).cast(kind, safe=False)})
    whole = ENCODER.columns(batch, labels=False)
    for at, tick in enumerate(ticks):
        same(cut(whole, at, at + 1), ENCODER.columns(batch.slice(at, 1), labels=False))
        if column == "time" and tick is not None and kind.equals(pa.timestamp("s")):
            read = -62_135_596_800 <= tick <= 253_402_300_799  # the years 1 to 9999
            assert bool((whole.categories[at] != 1).any()) == read


def test_numpy_cells_are_read_like_plain_ones():
    plain = TRAIN.slice(0, 20).to_pylist()
    kinds = {float: np.float64, int: np.int32, str: np.str_, list: np.array, dt.datetime: np.datetime64}
    for row in plain:
        cells = {name: kinds.get(type(value), lambda x: x)(value) for name, value in row.items()}
        cells["hashed_bag"] = row["hashed_bag"]
        same(ENCODER.row(row), ENCODER.row(cells))


def test_pandas_missing_values_are_missing():
    pandas = pytest.importorskip("pandas")
    row = TRAIN.slice(0, 1).to_pylist()[0]
    empty = dict.fromkeys(row)
    same(ENCODER.row(empty), ENCODER.row(empty | {"number": pandas.NA, "time": pandas.NaT, "category": pandas.NA}))


def test_a_duration_of_pandas_is_that_of_python():
    pandas = pytest.importorskip("pandas")
    found = [dt.timedelta(hours=at, microseconds=5) for at in range(3)]
    encoder = fit((Category("f", min_count=1),), columns={"f": pa.array(found, pa.duration("us"))})
    for at, one in enumerate(found):
        wanted = encoder.columns(batch_of(f=pa.array([one], pa.duration("us"))), labels=False)
        assert wanted.categories[0, 0] == at + 2
        same(encoder.row({"f": one}), wanted)
        same(encoder.row({"f": pandas.Timedelta(one)}), wanted)


def test_a_time_of_pandas_is_its_text_without_nanoseconds_in_a_row_and_in_a_table():
    found = [1_704_067_200_000_000_123, 1_704_067_200_250_000_999, None]
    table = batch_of(f=pa.array(found, pa.timestamp("ns")))
    encoder = fit((Category("f", min_count=1),), columns={"f": table.column("f")})
    whole = encoder.columns(table, labels=False)
    assert whole.categories[:, 0].tolist() == [2, 3, 1]
    for at, one in enumerate(table.to_pandas()["f"]):
        same(encoder.row({"f": one}), cut(whole, at, at + 1))


def test_a_day_of_pandas_is_a_time_in_a_row_and_in_a_table():
    pandas = pytest.importorskip("pandas")
    days = pandas.DataFrame({"f": pandas.period_range("2024-01-01", periods=9, freq="D")})
    record = next(open_table(days).batches())
    encoder = fit((Time("f"),), columns={"f": record.column(0)})
    whole = encoder.columns(record, labels=False)
    for at, one in enumerate(days["f"]):
        same(encoder.row({"f": one}), cut(whole, at, at + 1))
    with pytest.raises(DataError, match="found '2024-01'"):
        encoder.row({"f": pandas.Period("2024-01", "M")})


def test_names_that_are_no_text_are_those_of_the_columns():
    encoder = fit((Number("0"), Category("('a', 'b')")), columns={"0": [1.0, 2.0], "('a', 'b')": ["x", "y"]})
    wanted = encoder.row({"0": 2.0, "('a', 'b')": "y"})
    same(encoder.row({0: 2.0, ("a", "b"): "y"}), wanted)
    same(encoder.row({np.int64(0): 2.0, "('a', 'b')": "y", 7: None}), wanted)
    with pytest.raises(DataError, match="no column '0'; found: "):
        encoder.row({1: 2.0, ("a", "b"): "y"})


def test_a_vector_that_is_missing_is_so_however_pandas_writes_it():
    pandas = pytest.importorskip("pandas")
    encoder = fit((Vector("f", size=2),), columns={"f": pa.array([[1.0, 2.0], [3.0, 5.0]])})
    wanted = encoder.row({"f": None})
    for one in (math.nan, np.float32("nan"), pandas.NA, pandas.NaT):
        same(encoder.row({"f": one}), wanted)
    for array in (pa.array([math.nan]), pa.array([math.nan], pa.float32()), pa.array([None], pa.float64())):
        same(encoder.columns(batch_of(f=array), labels=False), wanted)
    with pytest.raises(DataError, match="give lists"):
        encoder.columns(batch_of(f=pa.array([math.nan, 1.0])), labels=False)


@pytest.mark.skipif(not hasattr(pa, "uuid"), reason="this Arrow has no UUIDs")
@pytest.mark.parametrize("feature", [Category("c", min_count=1), Hashed("c", buckets=99), Bag("c", min_count=1)])
def test_a_uuid_is_its_text_in_a_row_and_in_a_table(feature):
    found = [uuid.UUID(int=at * 7919**9) for at in range(6)]
    column = pa.array(found)
    encoder = fit((feature,), columns={"c": column}, group="c")
    coded = pa.DictionaryArray.from_arrays(pa.array(range(6)), column)
    wanted = encoder.columns(batch_of(c=list(map(str, found))), labels=False)
    assert len(set(wanted.groups.tolist())) == 6
    for array in (column, coded):
        whole = encoder.columns(batch_of(c=array), labels=False)
        same(whole, wanted)
        for at, one in enumerate(found):
            same(encoder.row({"c": one}), cut(whole, at, at + 1))
            same(encoder.row({"c": str(one)}), cut(whole, at, at + 1))
    assert encoder.row({"c": uuid.UUID(int=1)}).groups.item() not in wanted.groups


def test_a_label_does_not_depend_on_its_neighbours():
    whole = ENCODER.columns(TRAIN)
    same(whole, join([ENCODER.columns(TRAIN.slice(at, 7)) for at in range(0, 300, 7)]))


# ---- the fit


@pytest.mark.parametrize("size", [1, 13, 299])
def test_the_fit_does_not_depend_on_how_rows_come_in_batches(size):
    batches = [TRAIN.slice(at, size) for at in range(0, 300, size)]
    assert Encoder.fit(ENCODER.schema, batches).fingerprint == ENCODER.fingerprint


def test_vocabularies_do_not_depend_on_the_order_of_the_rows():
    turned = TRAIN.take(pa.array(np.random.default_rng(0).permutation(300)))
    found = Encoder.fit(ENCODER.schema, [turned])
    for table, vocabulary in ENCODER.fitted.vocabularies.items():
        assert found.fitted.vocabularies[table].values == vocabulary.values


def test_moments_and_sample_over_many_blocks():
    values = np.random.default_rng(0).normal(1e6, 1, (2, 300_000))
    values[1, ::3] = np.nan
    found = []
    for size in (1000, 77_777):
        moments, sample = Moments(2), Sample(2, size=10_000)
        for at in range(0, 300_000, size):
            moments.add(values[:, at : at + size])
            sample.add(values[:, at : at + size])
        found.append((*(one.tolist() for one in moments.finish()), sample.column(0).tolist()))
    assert found[0] == found[1]
    count, mean, sd, sampled = found[0]
    assert count == [300_000, 200_000]
    assert mean == pytest.approx(np.nanmean(values, axis=1), rel=1e-14)
    assert sd == pytest.approx(np.nanstd(values, axis=1), rel=1e-9)
    assert 5_000 < len(sampled) <= 10_000
    assert np.isin(sampled, values[0]).all()
    assert abs(np.median(sampled) - 1e6) < 0.06


# ---- on disk


def test_a_loaded_encoder_encodes_alike(tmp_path):
    ENCODER.save(tmp_path / "e")
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["encoder.json", "vocabularies.parquet"]
    loaded = Encoder.load(tmp_path / "e", ENCODER.schema)
    assert loaded.fingerprint == ENCODER.fingerprint
    assert loaded.layout == ENCODER.layout
    assert loaded.stats == ENCODER.stats
    same(loaded.columns(TRAIN), ENCODER.columns(TRAIN))
    with pytest.raises(DataError, match="another schema"):
        Encoder.load(tmp_path / "e", ENCODER.schema.with_(group=None))
    with pytest.raises(DataError, match="holds no saved encoder"):
        Encoder.load(tmp_path)


def test_the_fingerprint_sees_every_change():
    first = fit((Category("c"),), columns={"c": ["a", "b", "b"]})
    assert fit((Category("c"),), columns={"c": ["a", "b", "b"]}).fingerprint == first.fingerprint
    changed = [
        fit((Category("c"),), columns={"c": ["a", "c", "c"]}),
        fit((Hashed("c", buckets=9),), columns={"c": ["a", "b", "b"]}),
        fit((Category("c"),), columns={"c": ["a", "b", "b"], "y": [0, 1, 1]}),
    ]
    assert len({one.fingerprint for one in changed} | {first.fingerprint}) == 4


def test_another_process_gives_the_same_encoder(tmp_path):
    ENCODER.save(tmp_path / "encoder")
    script = (
        "from pathlib import Path; from multigate.data.encoder import Encoder;"
        "encoder = Encoder.load(Path('encoder'));"
        "cells = {feature.name: '7' for feature in encoder.schema.features};"
        "print(encoder.row(cells | {'vector': None, 'time': 0}).categories.tolist())"
    )
    done = run_program(script, tmp_path)
    assert done.code == 0, done.told
    cells = {feature.name: "7" for feature in ALL}
    assert json.loads(done.said) == ENCODER.row(cells | {"vector": None, "time": 0}).categories.tolist()


def test_census_is_encoded_fast_and_right(shared_data):
    import pyarrow.parquet as pq

    file = pq.ParquetFile(shared_data / "census-income" / "train.parquet", pre_buffer=False)
    names = [name for name in file.schema_arrow.names if name not in ("income_50k", "marital_stat", "instance_weight")]
    features = tuple(
        Number(name) if pa.types.is_integer(file.schema_arrow.field(name).type) else Category(name) for name in names
    )
    tasks = (
        Task("income", column="income_50k", positive="50000+."),
        Task("never", column="marital_stat", positive="Never married"),
    )
    batches = list(file.iter_batches(65_536))
    encoder = Encoder.fit(Schema(features=features, tasks=tasks), batches)
    started = time.thread_time()
    rows = [encoder.columns(batch) for batch in batches]
    assert sum(batch.rows for batch in rows) / (time.thread_time() - started) > 300_000
    assert encoder.layout.tasks[0].mean == pytest.approx(12_382 / 199_523)
    table = file.read(["hisp_origin"]).column(0).to_pylist()
    column = [one.feature for one in encoder.layout.categories].index("hisp_origin")
    values = encoder.fitted.vocabularies["hisp_origin"].values
    ids = join(rows).categories[:, column].tolist()
    assert [values[i - 2] for i in ids] == table
    assert "NA" in values


def test_frequent_values_have_an_id_of_their_own():
    """A number with more values than bins but few enough embeds each value seen five times; others are unseen."""
    ages = [float(age) for age in range(60) for _ in range(5)] + [60.0] * 4 + [None]
    encoder = fit((Number("age", embedding="bins", bins=8),), columns={"age": ages, "y": [0, 1] * 152 + [0]})
    names = [column.feature for column in encoder.layout.categories]
    assert names == ["age", "age:value"]
    assert encoder.layout.tables["age:value"] == 2 + 60
    batch = encoder.columns(batch_of(age=[0.0, 59.0, 60.0, 12.5, None]), labels=False)
    assert batch.categories[:, 1].tolist() == [2, 61, 0, 0, 1]
    for at, age in enumerate([0.0, 59.0, 60.0, 12.5, None]):
        same(cut(batch, at, at + 1), encoder.row({"age": age}))


AGES = [float(age) for age in range(80) for _ in range(100)]


@pytest.mark.parametrize(("feature", "values", "beside"), [
    (Number("x"), AGES, "bins"),
    (Number("x"), AGES[1:], "piecewise"),  # one row short of a hundred for each
    (Number("x", values=79), AGES, "piecewise"),
    (Number("x"), [0.0, 1.0] * 100, "bins"),
    (Number("x"), [0.0, 1.0] * 50, "piecewise"),
    (Number("x"), [float(x) for x in range(8_000)], "piecewise"),
    (Number("x"), [*(float(x) for x in range(8_000)), 1e30], "bins"),  # all but one are alike in float32 deviations
    (Number("x", transform="log"), [*(float(x) for x in range(8_000)), 1e30], "piecewise"),
    (Number("x"), [None] * 8_000, "bins"),
    (Number("x", embedding="bins"), [float(x) for x in range(8_000)], "bins"),
    (Number("x", embedding="piecewise"), AGES, "piecewise"),
    (Number("x", embedding="none"), AGES, "none"),
    (Number("x", embedding="periodic"), AGES, "periodic"),
])  # fmt: skip
def test_what_stands_beside_a_number_follows_from_how_often_its_values_are_seen(feature, values, beside, tmp_path):
    encoder = fit((feature,), columns={"x": pa.array(values, pa.float64()), "y": [i % 2 for i in range(len(values))]})
    encoder.save(tmp_path)
    for one in (encoder, Encoder.load(tmp_path, encoder.schema)):
        assert one.fitted.embeddings == {"x": beside}
        assert one.layout.numbers[0].embedding == ("none" if beside == "bins" else beside)
        assert bool(one.layout.categories) == (beside == "bins")
        same(one.columns(batch_of(x=[3.0]), labels=False), one.row({"x": 3.0}))


def test_an_encoder_written_before_auto_reads_as_it_did(tmp_path):
    x = [float(x) for x in range(500)]
    encoder = fit((Number("x", embedding="bins"), Number("z", column="x", embedding="none")), columns={"x": x})
    encoder.save(tmp_path)
    path = tmp_path / "encoder.json"
    content = json.loads(path.read_text())
    del content["embeddings"]
    path.write_text(json.dumps(content))
    again = Encoder.load(tmp_path, encoder.schema)
    assert again.layout == encoder.layout
    same(again.columns(batch_of(x=x), labels=False), encoder.columns(batch_of(x=x), labels=False))


@pytest.mark.parametrize(("feature", "distinct"), [
    (Number("x", embedding="bins", bins=64), 60), (Number("x", embedding="bins", bins=8, values=0), 60),
    (Number("x", embedding="bins", bins=8), 300),
])  # fmt: skip
def test_bins_alone_serve_where_they_tell_values_apart_or_there_are_too_many(feature, distinct):
    values = [float(x) for x in range(distinct) for _ in range(6)]
    encoder = fit((feature,), columns={"x": values, "y": [0, 1] * (len(values) // 2)})
    assert [column.feature for column in encoder.layout.categories] == ["x"]


def test_a_bag_of_very_many_items_is_read_whole():
    items = [str(at % 1000) for at in range(100_000)]
    encoder = fit((Bag("b"),), columns={"b": [items, ["7"]]})
    one, many = encoder.row({"b": items}), encoder.columns(batch_of(b=[["x"], items, [",".join(items)]]), labels=False)
    same(cut(many, 1, 2), one)
    assert one.bags[0].values.shape == (100_000,)
    text = encoder.columns(batch_of(b=[",".join(items)]), labels=False)
    assert torch.equal(text.bags[0].values, one.bags[0].values)


def test_ranks_of_numbers_next_to_zero_are_ranks():
    """Their gaps are so small that a slope would overflow."""
    tiny = [5e-324 * at for at in range(100)]
    encoder = fit((Number("x", transform="quantile", embedding="none"),), columns={"x": tiny})
    found = encoder.columns(batch_of(x=tiny), labels=False).numbers[:, 0]
    assert (found.diff() > 0).all()
    same(cut(encoder.columns(batch_of(x=tiny), labels=False), 7, 8), encoder.row({"x": tiny[7]}))


def test_weights_and_targets_that_overflow_are_refused():
    columns = {"x": [1, 2], "z": [1e20, 2e20], "w": [1e31, 1.0], "none": [0.0, 0.0]}
    target = Task("z", kind="regression", transform="none")
    with pytest.raises(DataError, match=r"column .z.: labels of task .z. are too large .*; use transform: standard"):
        fit((Number("x"),), (target,), columns)
    with pytest.raises(DataError, match=r"column .w.: wanted a weight of at most 1e.30 for task 'y', found 1e.31"):
        fit((Number("x"),), (Task("y", sample_weight="w"),), columns)
    with pytest.raises(DataError, match="column 'none': wanted a weight above 0 on some training row"):
        fit((Number("x"),), (Task("y", sample_weight="none"),), columns)
    assert fit((Number("x"),), (target.with_(transform="standard"),), columns).stats[0].sd == pytest.approx(5e19)


@pytest.mark.parametrize(("of_child", "by_weight"), [("w", True), (None, False), ("v", False)])
def test_the_rate_of_a_binary_task_goes_by_its_weights_where_a_chain_has_the_same(
    of_child: str | None, by_weight: bool
) -> None:
    random = np.random.default_rng(0)
    click, w = random.integers(0, 2, 500), random.gamma(1, 3, 500).round(3)
    buy = [bool(random.integers(0, 2)) if one else None for one in click]
    table = pa.table({"x": random.normal(size=500), "w": w, "v": w[::-1], "click": click, "buy": buy})
    tasks = [Task("click", sample_weight="w"), Task("buy", given="click", sample_weight=of_child)]
    schema = Schema(features=[Number("x")], tasks=tasks)
    whole, cut_up = (Encoder.fit(schema, table.to_batches(max_chunksize=rows)) for rows in (500, 7))
    assert whole.stats == cut_up.stats
    weights = w if by_weight else np.ones(500)
    expected = [np.average(np.array(one, dtype=bool), weights=weights) for one in (click, buy)]
    assert [one.average for one in whole.stats] == pytest.approx(expected, rel=1e-6)  # weights are float32


def test_classes_and_targets_start_at_what_their_weights_say() -> None:
    random = np.random.default_rng(0)
    kind, w, price = random.integers(0, 3, 500), random.gamma(1, 3, 500).round(3), random.normal(5, 2, 500).round(3)
    table = pa.table({"x": random.normal(size=500), "w": w, "kind": kind.astype(str), "price": price, "raw": price})
    tasks = [
        Task("kind", kind="multiclass", sample_weight="w"),
        Task("price", kind="regression", sample_weight="w"),
        Task("raw", kind="regression", transform="none", sample_weight="w"),
    ]
    schema = Schema(features=[Number("x")], tasks=tasks)
    whole, cut_up = (Encoder.fit(schema, table.to_batches(max_chunksize=rows)) for rows in (500, 7))
    assert whole.stats == cut_up.stats
    classes, standard, raw = whole.layout.tasks
    expected = [w[kind == one].sum() / w.sum() for one in range(3)]
    assert classes.class_rates == pytest.approx(expected, rel=1e-6)  # weights are float32
    assert whole.stats[1].mean == pytest.approx(price.mean())
    assert standard.mean == pytest.approx((np.average(price, weights=w) - price.mean()) / price.std(), rel=1e-5)
    assert raw.mean == pytest.approx(np.average(price, weights=w), rel=1e-6)
    start = Heads(whole.layout.tasks, (None, None, None), 8).bias.detach().numpy()
    assert np.exp(start[:3]) == pytest.approx(expected, rel=1e-5)
    assert start[3:] == pytest.approx([standard.mean, raw.mean], rel=1e-5)


def test_without_weights_an_encoder_is_written_as_before_there_were_shares() -> None:
    assert any(one.counts for one in ENCODER.stats)
    assert all("shares" not in one.model_dump(mode="json") for one in ENCODER.stats if not one.shares)


def test_codes_that_come_as_numbers_later_are_the_codes_that_they_were() -> None:
    table = pa.table({"zip": ["01023", "20095", None, "01024"], "y": [0, 1, 0, 1]})
    schema = Schema(features=(Category("zip"),), tasks=BINARY, types={"zip": "string", "y": "int64"})
    encoder = Encoder.fit(schema, table.to_batches())
    numbers = pa.array([1023, 20095, None, 1024])
    for zips in (numbers, numbers.cast(pa.float64()), numbers.cast(pa.string())):
        later = pa.record_batch({"zip": zips, "y": table["y"].combine_chunks()})
        assert torch.equal(encoder.columns(later).categories, encoder.columns(table.to_batches()[0]).categories)
    assert encoder.row({"zip": 1023}).categories.tolist() == encoder.row({"zip": "01023"}).categories.tolist()
