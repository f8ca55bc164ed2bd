"""What experts serve: planted audiences are found, noise is not."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from multigate.analysis.audience import BINS, served_values, value_columns
from multigate.analysis.gates import level_gates
from multigate.data.encoder import Encoder
from multigate.schema import Bag, Category, Hashed, Number, Schema, Task, Time, Vector
from multigate.sharing import Level

ROWS = 4000
FEATURES = (
    Category("colour"),
    Category("rare"),
    Hashed("url", buckets=50),
    Bag("tags"),
    Number("age"),
    Number("price", transform="log", embedding="none"),
    Vector("v", size=2),
    Time("at", parts=("hour",)),
)


@pytest.fixture(scope="module")
def table():
    random = np.random.default_rng(0)
    return {
        "colour": random.choice(["red", "blue", "green", None], ROWS, p=[0.3, 0.4, 0.2, 0.1]),
        "rare": np.where(np.arange(ROWS) < 40, "few", random.choice(["many", "others"], ROWS)),
        "url": random.choice([f"u{i}" for i in range(9)], ROWS),
        "tags": [",".join(random.choice(["x", "y", "z", "w"], random.integers(0, 4))) for _ in range(ROWS)],
        "age": random.integers(18, 70, ROWS).astype(float),
        "price": np.where(random.random(ROWS) < 0.1, np.nan, np.exp(random.normal(size=ROWS))),
        "v": list(random.normal(size=(ROWS, 2))),
        "at": [f"2026-03-{1 + row % 28:02} {random.integers(0, 24):02}:30" for row in range(ROWS)],
        "y": random.integers(0, 2, ROWS),
    }


@pytest.fixture(scope="module")
def encoder(table):
    return Encoder.fit(Schema(features=FEATURES, tasks=[Task("y")]), [pa.RecordBatch.from_pydict(table)])


@pytest.fixture(scope="module")
def batch(table, encoder):
    return encoder.columns(pa.RecordBatch.from_pydict(table))


def serve(encoder, batch, weights):
    """Two experts of which the first weighs as told, read by one task alone and by another half as much."""
    first = np.asarray(weights, dtype=np.float32)
    gate = np.stack([np.stack([first, 1 - first], axis=1), np.stack([first / 2, 1 - first / 2], axis=1)], axis=1)
    level = Level(("a", "b"), ("first", "second"), ((True, True),) * 2)
    return served_values(encoder, batch, [level_gates(level, gate)], [gate])


def test_an_expert_that_serves_one_category(encoder, batch, table):
    red = table["colour"] == "red"
    found = serve(encoder, batch, np.where(red, 0.9, 0.1))
    first = [one for one in found if one.source == "first"]
    assert [(one.feature, one.value) for one in first] == [("colour", "red")]
    assert first[0].rows == red.sum()
    assert first[0].overall == pytest.approx(red.mean())
    weight = sum(0.9 if one else 0.1 for one in red)
    assert first[0].share == pytest.approx(0.9 * red.sum() / weight, rel=1e-5)
    assert first[0].lift == pytest.approx(first[0].share / first[0].overall)
    assert (first[0].level, found[-1].source, found[-1].feature) == (0, "second", "colour")


def planted(table, name):
    """Which rows, and what to call them."""
    if name == "tags":
        return np.array(["z" in cell.split(",") for cell in table["tags"]]), "z"
    if name == "at":
        return np.array([cell[11:13] == "21" for cell in table["at"]]), "hour 21"
    if name == "colour":
        return np.array([cell is None for cell in table["colour"]]), "missing"
    return np.isnan(table["price"]), "missing"


@pytest.mark.parametrize("name", ["tags", "at", "colour", "price"])
def test_items_times_and_what_is_missing_are_named(encoder, batch, table, name):
    rows, words = planted(table, name)
    first = next(one for one in serve(encoder, batch, np.where(rows, 0.8, 0.3)) if one.source == "first")
    assert (first.feature, first.value, first.rows) == (name, words, rows.sum())


def test_buckets_are_named_by_number(encoder, batch, table):
    rows = table["url"] == "u3"
    first = next(one for one in serve(encoder, batch, np.where(rows, 0.8, 0.3)) if one.source == "first")
    bucket = encoder.row(dict.fromkeys(table) | {"url": "u3"}).categories[0, 2].item() - 2
    assert (first.feature, first.value) == ("url", f"bucket {bucket}")


def test_numbers_are_told_as_ranges_in_their_own_unit(encoder, batch, table):
    age, price = table["age"], np.nan_to_num(table["price"], nan=1.0)
    first = next(one for one in serve(encoder, batch, np.where(age >= 60, 0.9, 0.1)) if one.source == "first")
    assert first.feature == "age"
    low = float(first.value.removeprefix("[").removeprefix("≥ ").split(",")[0])
    assert low >= 60
    assert first.rows == (age >= low).sum() if first.value.startswith("≥") else True
    cheap = next(one for one in serve(encoder, batch, np.where(price < 0.2, 0.9, 0.1)) if one.source == "first")
    assert cheap.feature == "price"
    assert cheap.value.startswith("< 0.2")


def test_a_row_counts_once_however_often_it_holds_an_item(encoder, batch, table):
    tags = next(column for column in value_columns(encoder, batch) if column.feature == "tags")
    expected = Counter(item for cell in table["tags"] for item in (set(cell.split(",")) - {""} or {"missing"}))
    assert Counter(tags.words(at) for at in tags.ids.tolist()) == expected


def test_ranges_hold_about_as_many_rows_each(encoder, batch):
    columns = {column.feature: column for column in value_columns(encoder, batch)}
    assert {"age", "price", "v[0]", "v[1]"} <= columns.keys()
    for name in ("age", "v[1]"):
        counts = np.bincount(columns[name].ids)[2:]
        assert len(counts) == BINS
        assert counts.max() < 2 * counts.min()


@pytest.mark.parametrize(("transform", "least"), [("log", 0), ("quantile", 0), ("standard", 1e7)])
def test_ranges_of_a_long_tail_are_apart(transform, least):
    bytes_sent = np.concatenate([np.zeros(100), np.arange(100) % 8 + 1.0, (np.arange(200) % 9 + 1) * 1e7])
    rows = pa.RecordBatch.from_pydict({"bytes": bytes_sent, "y": np.arange(400) % 2})
    feature = Number("bytes", transform=transform, embedding="none")
    one = Encoder.fit(Schema(features=[feature], tasks=[Task("y")]), [rows])
    column = next(value_columns(one, one.columns(rows)))
    said = [column.words(at) for at in column.ids]
    assert len(set(said)) == len(set(column.ids.tolist()))
    assert not {"< 0", "[0, 0)"} & set(said)
    for value, words in zip(bytes_sent, said, strict=True):
        low, _, high = words.strip("[≥<)").partition(",")
        if words.startswith("<"):
            assert value < float(low) * (1 + 1e-5)
        elif value >= least:
            assert float(low) * (1 - 1e-5) <= value <= float(high or "inf") * (1 + 1e-5)


def test_weights_that_look_at_nothing_serve_nobody(encoder, batch):
    random = np.random.default_rng(1)
    for spread in (0.0, 0.05, 0.4):
        assert serve(encoder, batch, 0.5 + spread * random.uniform(-1, 1, ROWS)) == ()


@pytest.fixture(scope="module")
def many_values():
    """20 columns of 60 values each in 5,000 rows, by name of the column."""
    cells = np.random.default_rng(0).integers(0, 60, (5_000, 20))
    columns = {f"c{at}": cells[:, at].astype(str) for at in range(20)}
    schema = Schema(features=[Category(name) for name in columns], tasks=[Task("y")])
    record = pa.RecordBatch.from_pydict(columns | {"y": cells[:, 0] % 2})
    encoder = Encoder.fit(schema, [record])
    return encoder, encoder.columns(record), columns


SHARES = (0.5, 0.2, 0.1, 0.08, 0.06, 0.03, 0.02, 0.01)


def chosen(draw, rows):
    """A gate that gives each row to one of eight experts, whatever is in it."""
    return np.eye(8, dtype=np.float32)[np.random.default_rng(draw).choice(8, (rows, 1), p=SHARES)]


def test_gates_that_choose_one_expert_by_lot_serve_nobody(many_values):
    """The weights of a rare expert are so skewed that a normal bound tells something of most draws."""
    encoder, batch, _ = many_values
    level = Level(("a",), tuple(f"expert {at}" for at in range(8)), ((True,) * 8,))
    draws = [chosen(draw, batch.rows) for draw in range(40)]
    gates = level_gates(level, draws[0])  # who is read at all is the same in each
    told = [bool(served_values(encoder, batch, [gates], [gate])) for gate in draws]
    assert sum(told) <= 4


def test_whom_a_rare_expert_serves_is_told_all_the_same(many_values):
    encoder, batch, columns = many_values
    level = Level(("a",), tuple(f"expert {at}" for at in range(8)), ((True,) * 8,))
    gate = chosen(0, batch.rows)
    rows = np.flatnonzero((columns["c7"] == "31") & (np.random.default_rng(1).random(batch.rows) < 0.3))
    gate[rows] = np.eye(8, dtype=np.float32)[6]
    found = served_values(encoder, batch, [level_gates(level, gate)], [gate])
    assert [(one.source, one.feature, one.value) for one in found] == [("expert 6", "c7", "31")]
    assert found[0].share == pytest.approx((columns["c7"][gate[:, 0, 6] == 1] == "31").mean())


def test_a_few_rows_are_no_audience(encoder, batch, table):
    weights = np.where(table["rare"] == "few", 0.9, 0.1)
    assert not [one for one in serve(encoder, batch, weights) if one.value == "few"]


def test_an_expert_that_hardly_anyone_reads_serves_nobody(encoder, batch, table):
    found = serve(encoder, batch, np.where(table["colour"] == "red", 0.09, 0.01))
    assert "first" not in {one.source for one in found}


@pytest.mark.parametrize("grouped", [True, False])
def test_what_a_gate_knows_of_few_users_is_not_told_of_their_age(grouped):
    """A gate that knows who it is, 60 users of 50 rows: of their ages, with which it has nothing to do, by chance some
    are read more. One that knows the age as well is found, and a store that is one user is told as it is."""
    random, users = np.random.default_rng(0), np.arange(60).repeat(50)
    schema = Schema(features=[Category("age"), Category("store")], tasks=[Task("y")], group="user" if grouped else None)
    told = []
    for _ in range(20):
        ages = random.integers(0, 6, 60)
        columns = {"age": ages[users].astype(str), "store": np.where(users == 7, "7", "else"), "user": users}
        record = pa.RecordBatch.from_pydict(columns | {"y": users % 2})
        encoder = Encoder.fit(schema, [record])
        own = np.exp(random.normal(-2, 0.4, 60))
        own[7] = 0.9
        for weights in (own, np.where(ages == 3, np.minimum(4 * own, 1), own)):
            found = serve(encoder, encoder.columns(record), weights[users])
            told.append({(one.feature, one.value) for one in found if one.source == "first"})
    assert all(("store", "7") in one for one in told)
    by_chance = np.mean([any(feature == "age" for feature, _ in one) for one in told[::2]])
    assert by_chance <= 0.1 if grouped else by_chance > 0.8, "rows one by one are no users"
    assert not grouped or np.mean([("age", "3") in one for one in told[1::2]]) > 0.5
