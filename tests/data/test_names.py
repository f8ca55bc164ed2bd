"""What columns and ids mean, held against what the encoder makes of raw values."""

import datetime as dt
import math

import numpy as np
import pyarrow as pa
import pytest

from multigate.data.encoder import Encoder
from multigate.data.names import feature_columns, range_words, raw_values
from multigate.schema import Bag, Category, Hashed, Number, Schema, Task, Time, Vector

ROWS = 600
FEATURES = (
    Time("at", parts=("hour", "weekday", "day", "month")),
    Number("age", embedding="bins", bins=8, values=100),
    Category("colour"),
    Vector("v", size=3),
    Bag("tags"),
    Hashed("url", buckets=7),
    Number("price", embedding="none", transform="log"),
    Bag("words", buckets=5),
    Number("rank", embedding="piecewise", transform="quantile"),
    Category("other_colour", column="colour2", table="colour"),
    Number("few", embedding="bins", bins=48),
)


@pytest.fixture(scope="module")
def table():
    random = np.random.default_rng(0)
    start = dt.datetime(2026, 1, 1)
    return {
        "at": [start + dt.timedelta(hours=int(hours)) for hours in random.integers(0, 8000, ROWS)],
        "age": random.integers(18, 60, ROWS).astype(float),
        "colour": random.choice(["red", "blue", "green"], ROWS),
        "v": list(random.normal(size=(ROWS, 3))),
        "tags": [",".join(random.choice(["x", "y", "z"], 2)) for _ in range(ROWS)],
        "url": random.choice(["u1", "u2", "u3"], ROWS),
        "price": np.exp(random.normal(size=ROWS)),
        "words": random.choice(["x", "y", "z"], ROWS),
        "rank": random.exponential(size=ROWS),
        "colour2": random.choice(["red", "blue"], ROWS),
        "few": random.choice([0.0, 1.0, 2.5], ROWS),
        "y": random.integers(0, 2, ROWS),
    }


@pytest.fixture(scope="module")
def encoder(table):
    schema = Schema(features=FEATURES, tasks=[Task("y")])
    return Encoder.fit(schema, [pa.RecordBatch.from_pydict(table)])


@pytest.fixture(scope="module")
def batch(table, encoder):
    return encoder.columns(pa.RecordBatch.from_pydict(table))


def test_columns_are_those_of_the_layout(encoder):
    layout = encoder.layout
    for columns in feature_columns(encoder):
        name = columns.feature.name
        for group, places in (
            (layout.numbers, columns.numbers), (layout.categories, columns.categories), (layout.bags, columns.bags)
        ):  # fmt: skip
            own = [i for i, one in enumerate(group) if one.feature.split(":")[0].split("[")[0] == name]
            assert list(places) == own, name


def words_of(encoder, name):
    return next(columns for columns in feature_columns(encoder) if columns.feature.name == name)


def said(encoder, batch, name, place=0):
    """What the ids of one column stand for, row by row."""
    columns = words_of(encoder, name)
    return [columns.words[place](at) for at in batch.categories[:, columns.categories[place]].tolist()]


def test_categories_times_and_buckets_are_named(encoder, batch, table):
    assert said(encoder, batch, "colour") == list(table["colour"])
    assert said(encoder, batch, "other_colour") == list(table["colour2"]), "a shared vocabulary"
    assert said(encoder, batch, "at", 0) == [f"hour {one.hour}" for one in table["at"]]
    assert said(encoder, batch, "at", 1) == [one.strftime("%A") for one in table["at"]]
    assert said(encoder, batch, "at", 2) == [f"day {one.day}" for one in table["at"]]
    assert said(encoder, batch, "at", 3) == [one.strftime("%B") for one in table["at"]]
    assert said(encoder, batch, "age", 1) == [f"{one:g}" for one in table["age"]]
    assert {one.split()[0] for one in said(encoder, batch, "url")} == {"bucket"}
    assert max(int(one.split()[1]) for one in said(encoder, batch, "url")) < 7


def test_items_of_bags_are_named(encoder, batch, table):
    columns = words_of(encoder, "tags")
    bag = batch.bags[columns.bags[0]]
    for row in range(20):
        ids = bag.values[bag.offsets[row] : bag.offsets[row + 1]].tolist()
        assert [columns.words[0](at) for at in ids] == table["tags"][row].split(",")
    assert words_of(encoder, "words").words[0](4) == "bucket 2"


def test_unseen_and_missing_are_named(encoder):
    none = dict.fromkeys(encoder.schema.columns(labels=False)) | {"colour": "violet"}
    row = encoder.row(none)
    assert said(encoder, row, "colour") == ["unseen"]
    assert said(encoder, row, "age") == said(encoder, row, "at") == ["missing"]
    assert words_of(encoder, "tags").words[0](int(row.bags[0].values[0])) == "missing"


def holds(words, value):
    """Whether a number lies where the words say."""
    if words.startswith("["):
        low, high = (float(one) for one in words[1:-1].split(","))
        return low <= value < high
    sign, edge = words.split()
    return value < float(edge) if sign == "<" else value >= float(edge)


@pytest.mark.parametrize("name", ["age", "few"])
def test_bins_are_the_ranges_they_are_called(encoder, batch, table, name):
    said_of = said(encoder, batch, name)
    assert all(holds(words, value) for words, value in zip(said_of, table[name], strict=True))
    assert len(set(said_of)) == len(encoder.fitted.edges[name]) + 1


@pytest.mark.parametrize("name", ["age", "price", "rank", "few"])
def test_numbers_come_back_in_their_own_unit(encoder, batch, table, name):
    at = words_of(encoder, name).numbers[0]
    raw = raw_values(encoder.fitted.scales[at], batch.numbers[:, at].numpy())
    assert raw == pytest.approx(table[name], rel=1e-5, abs=1e-5)
    assert math.isnan(raw_values(encoder.fitted.scales[at], np.array([math.nan]))[0])


LONG = [0.0, *(digit * 10.0**power for power in range(8) for digit in range(1, 6))]


def test_bins_of_a_long_tail_are_the_ranges_they_are_called():
    feature = Number("x", transform="log", embedding="bins", bins=30)
    rows = pa.RecordBatch.from_pydict({"x": LONG * 2, "y": [0, 1] * len(LONG)})
    encoder = Encoder.fit(Schema(features=[feature], tasks=[Task("y")]), [rows])
    said_of = said(encoder, encoder.columns(rows), "x")
    assert all(holds(words, value) for words, value in zip(said_of, LONG * 2, strict=True))
    assert len(set(said_of)) == 30


@pytest.mark.parametrize("transform", ["standard", "log", "quantile"])
@pytest.mark.parametrize("values", [LONG, [-one for one in LONG], [0.0, 1e-3, 2e-3, 0.1], [7.0, 0.0], [0.0]])
def test_a_0_comes_back_as_0_and_what_is_next_to_it_does_not(transform, values):
    rows = pa.RecordBatch.from_pydict({"x": values * 20, "y": [0, 1] * (10 * len(values))})
    feature = Number("x", transform=transform, embedding="none")
    encoder = Encoder.fit(Schema(features=[feature], tasks=[Task("y")]), [rows])
    raw = raw_values(encoder.fitted.scales[0], encoder.columns(rows).numbers[:, 0].numpy())[: len(values)]
    least = 1e-6 * max(map(abs, values)) if transform == "standard" else 0  # nearer ones are no float32s apart
    for one, found in zip(values, raw.tolist(), strict=True):
        assert found == 0 if one == 0 else found != 0 or abs(one) < least


def test_words_of_ranges():
    words = range_words([1e-12, 2.5, 1_234_567.0])
    assert [words(at) for at in range(6)] == [
        "unseen", "missing", "< 1e-12", "[1e-12, 2.5)", "[2.5, 1234570)", "≥ 1234570"
    ]  # fmt: skip
    assert range_words([-0.0])(2) == "< 0"
    assert range_words([])(2) == "known"
