"""The boosting baseline against its own definition in plain loops, scikit-learn on raw columns, and planted labels."""

import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from multigate import metrics
from multigate.analysis import boosting
from multigate.analysis.boosting import boosting_baseline
from multigate.data.encoder import Encoder
from multigate.data.rows import cut
from multigate.errors import MultigateError
from multigate.schema import Bag, Category, Number, Schema, Task

SCHEMA = Schema(
    features=(
        Number("age", embedding="bins"),
        Number("height", embedding="bins"),
        Category("user"),
        Category("town"),
        Bag("tags"),
    ),
    tasks=(
        Task("click"),
        Task("buy", given="click"),
        Task("watch", kind="regression", where="click"),
        Task("mood", kind="multiclass"),
    ),
)


def encoded(rows=3000, seed=0):
    """Labels that depend on a frequent user, a tag and a number; many users, so that most fall into one bucket."""
    random = np.random.default_rng(seed)
    user = (random.pareto(0.6, rows) * 10).astype(int) % 2000
    tags = [random.choice(60, random.integers(0, 4), replace=False).tolist() for _ in range(rows)]
    age = random.normal(40, 10, rows)
    logit = 3.0 * (user < 5) - 1.5 + np.array([2.0 * (7 in bag or 3 in bag) for bag in tags]) + (age - 40) / 10
    click = random.random(rows) < 1 / (1 + np.exp(-logit))
    buy = click & (random.random(rows) < 1 / (1 + np.exp(40 - age)))
    watch = np.where(click, age + random.normal(0, 1, rows), 0)
    mood = np.where(age > 45, "old", np.where(user < 5, "keen", "calm"))
    hidden = random.random(rows) < 0.1
    table = pa.table({
        "age": pa.array(age, mask=random.random(rows) < 0.05), "height": random.integers(100, 200, rows), "user": user,
        "town": random.integers(0, 3, rows), "tags": pa.array(tags, pa.list_(pa.int64())), "click": click.astype(int),
        "buy": pa.array(buy.astype(int), mask=hidden), "watch": watch, "mood": mood,
    })  # fmt: skip
    encoder = Encoder.fit(SCHEMA, table.to_batches())
    return encoder, encoder.columns(table.to_batches()[0]), table


@pytest.fixture(scope="module")
def feed():
    return encoded()


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch):
    monkeypatch.setattr(boosting, "SETTINGS", boosting.SETTINGS | {"max_iter": 15})


def parts(batch):
    return cut(batch, 0, 2000), cut(batch, 2000, 2500), cut(batch, 2500, 3000)


def test_columns_are_what_the_docstring_says(feed):
    encoder, batch, table = feed
    # Bins of both numbers and the values of one stand beside the two categories; they are left out.
    made = ["age", "height", "height:value"]
    assert [column.feature for column in encoder.layout.categories] == [*made, "user", "town"]
    columns = boosting._Columns(encoder.layout, batch)
    x = columns.read(batch)
    users = Counter(table["user"].to_pylist())
    tags = Counter(tag for bag in table["tags"].to_pylist() for tag in bag)
    # Ids follow falling counts; ties in text order, which is the encoder's.
    frequent_users = sorted(users, key=lambda user: (-users[user], str(user)))[: boosting.CATEGORIES]
    frequent_tags = sorted(tags, key=lambda tag: (-tags[tag], str(tag)))[: boosting.ITEMS]
    assert len(users) > boosting.CATEGORIES
    assert len(tags) > boosting.ITEMS
    assert x.shape == (3000, 2 + 1 + 33 + 2)
    assert columns.categorical == [False] * 36 + [True] * 2
    for row, raw in enumerate(table.slice(0, 300).to_pylist()):
        assert np.isnan(x[row, 0]) == (raw["age"] is None)
        assert x[row, 2] == pytest.approx(np.log1p(users[raw["user"]]))
        assert x[row, 3] == len(raw["tags"])
        assert x[row, 4:36].tolist() == [float(tag in raw["tags"]) for tag in frequent_tags]
        place = frequent_users.index(raw["user"]) if raw["user"] in frequent_users else boosting.CATEGORIES
        assert x[row, 36] == place


def test_every_kind_of_task_is_learnt(feed):
    encoder, batch, table = feed
    train, valid, test = parts(batch)
    found = boosting_baseline(encoder.layout, train, valid, test)
    assert list(found.test) == list(found.valid) == list(found.trees) == ["click", "buy", "watch", "mood"]
    assert all(0 < trees <= 15 for trees in found.trees.values())
    assert found.test["mood"].shape == (500, 3)
    known, labels = test.known.numpy(), test.labels.numpy()
    score = {
        task.name: metrics.score_task(task.kind, found.test[task.name][known[:, t]], labels[known[:, t], t])
        for t, task in enumerate(encoder.layout.tasks)
    }
    assert score["click"]["auc"] > 0.8
    assert score["click"]["ne"] < 0.85
    assert score["buy"]["auc"] > 0.85
    assert score["watch"]["r2"] > 0.8
    assert score["mood"]["accuracy"] > 0.9
    seconds = encoder.decode(2, found.test["watch"])[known[:, 2]]
    truth = np.array(table["watch"].slice(2500))[known[:, 2]]
    assert metrics.r2(seconds, truth) == pytest.approx(score["watch"]["r2"], abs=1e-4)


def test_it_is_as_good_as_scikit_learn_on_raw_columns(feed):
    encoder, batch, table = feed
    train, valid, test = parts(batch)
    found = boosting_baseline(encoder.layout, train, valid, test).test["click"]
    raw = table.to_pandas()
    x = raw[["age", "height", "town"]].assign(
        user=raw.user.map(raw.user.value_counts().rank(ascending=False, method="first")).clip(upper=255) - 1,
        few=raw.tags.map(len),
        **{f"tag{tag}": raw.tags.map(lambda bag, tag=tag: tag in bag).astype(float) for tag in range(60)},
    )
    model = HistGradientBoostingClassifier(max_iter=15, categorical_features=["user", "town"], random_state=0)
    model.fit(x[:2000], raw.click[:2000])
    reference = metrics.auc(model.decision_function(x[2500:]), raw.click[2500:])
    assert metrics.auc(found, test.labels[:, 0].numpy()) == pytest.approx(reference, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_rare_labels_are_learnt(seed):
    """60 ones in 20,000 rows that two numbers tell: an unchecked Newton step sends the leaves to infinity."""
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(2, 20_000))
    rate = np.exp(1.5 * x + y)
    click = (random.random(20_000) < 60 * rate / rate.sum()).astype(int)
    table = pa.table({"age": x, "height": y, "click": click})
    schema = Schema(features=(Number("age"), Number("height")), tasks=(Task("click"),))
    encoder = Encoder.fit(schema, table.to_batches())
    batch = encoder.columns(table.combine_chunks().to_batches()[0])
    test = cut(batch, 16_000, 20_000)
    found = boosting_baseline(encoder.layout, cut(batch, 0, 12_000), cut(batch, 12_000, 16_000), test).test["click"]
    best = metrics.auc(rate[16_000:], click[16_000:])
    assert metrics.auc(found, click[16_000:]) > best - 0.15
    assert np.abs(found).max() < 15, "no row is certain, of so few labels"


def test_unknown_labels_do_not_count(feed):
    encoder, batch, _ = feed
    train, valid, test = parts(batch)
    clean = boosting_baseline(encoder.layout, train, valid, test)
    spoilt = [one._replace(labels=torch.where(one.known, one.labels, 1.0)) for one in (train, valid)]
    assert not train.known.all()
    dirty = boosting_baseline(encoder.layout, *spoilt, test)
    for task in clean.test:
        np.testing.assert_array_equal(clean.test[task], dirty.test[task])
    shown = boosting_baseline(encoder.layout, spoilt[0]._replace(known=torch.ones_like(train.known)), valid, test)
    assert not np.array_equal(shown.test["buy"], clean.test["buy"])


@pytest.mark.parametrize("size", [2.0**-20, 2.0**10])
def test_weights_are_relative(feed, size):
    encoder, batch, _ = feed
    random = np.random.default_rng(1)
    weighted = batch._replace(weights=torch.from_numpy(random.uniform(0.5, 2, batch.weights.shape)).float())
    found, scaled = (
        boosting_baseline(encoder.layout, *parts(weighted._replace(weights=weighted.weights * by))) for by in (1, size)
    )
    assert scaled.trees == found.trees
    for task, outputs in found.test.items():
        np.testing.assert_allclose(scaled.test[task], outputs, rtol=1e-4, atol=1e-4)


def test_conditionals_are_learnt_where_the_parent_is_one(feed):
    encoder, batch, _ = feed
    train, valid, test = parts(batch)
    found = boosting_baseline(encoder.layout, train, valid, test, parents=SCHEMA.parents())
    assert list(found.test) == list(found.valid) == list(found.trees) == ["click", "buy", "watch", "mood", "buy|click"]
    alone = boosting_baseline(encoder.layout, *(clicked(one) for one in (train, valid)), test)
    np.testing.assert_array_equal(found.test["buy|click"], alone.test["buy"])
    np.testing.assert_array_equal(found.valid["buy|click"], alone.valid["buy"])
    assert not np.array_equal(found.test["buy|click"], found.test["buy"])
    without = boosting_baseline(encoder.layout, train, valid, test)
    for name, outputs in without.test.items():
        np.testing.assert_array_equal(found.test[name], outputs)


def clicked(batch):
    """The batch with buy known on clicked rows alone."""
    known = batch.known.clone()
    known[:, 1] &= batch.labels[:, 0] == 1
    return batch._replace(known=known)


def test_early_stopping_looks_at_the_valid_rows(feed, monkeypatch):
    encoder, batch, _ = feed
    monkeypatch.setattr(boosting, "SETTINGS", boosting.SETTINGS | {"max_iter": 60, "n_iter_no_change": 3})
    train, valid, _ = parts(batch)
    flipped = valid._replace(labels=1 - valid.labels)
    assert boosting_baseline(encoder.layout, train, valid).trees["click"] > 10
    assert boosting_baseline(encoder.layout, train, flipped).trees["click"] < 10


def test_a_number_without_a_value_among_the_rows_of_a_task_is_none(feed):
    """Known in later rows alone, or nowhere that a label is known: scikit-learn cannot bin it."""
    encoder, batch, _ = feed
    train, valid, test = parts(batch)
    click, buy = (encoder.layout.tasks[at].name for at in range(2))
    numbers = train.numbers.clone()
    clicked = train.known[:, 1] & (train.labels[:, 0] == 1)
    numbers[clicked, 0] = torch.nan  # of those that buy|click is learnt on
    numbers[:, 1] = torch.nan
    blank = train._replace(numbers=numbers)
    found = boosting_baseline(encoder.layout, blank, valid, test, parents=SCHEMA.parents())
    assert all(np.isfinite(logits).all() for logits in found.test.values())
    numbers = torch.where(numbers.isnan(), 0, numbers)
    numbers[~clicked, 0] = train.numbers[~clicked, 0]
    zero = boosting_baseline(encoder.layout, train._replace(numbers=numbers), valid, test, parents=SCHEMA.parents())
    assert np.array_equal(found.test[f"{buy}|{click}"], zero.test[f"{buy}|{click}"])
    few = numbers.clone()
    few[:, 1] = torch.nan
    few[:15, 1] = 1.0  # no leaf holds so few rows
    few = boosting_baseline(encoder.layout, train._replace(numbers=few), valid, test, parents=SCHEMA.parents())
    assert np.array_equal(few.test[click], zero.test[click])


def test_labels_without_a_difference_give_a_constant(feed):
    encoder, batch, _ = feed
    train, valid, _ = parts(batch)
    same = train._replace(labels=torch.ones_like(train.labels))
    found = boosting_baseline(encoder.layout, same, valid)
    assert found.trees == {"click": 0, "buy": 0, "watch": 0, "mood": 0}
    assert found.test == {}
    for name, expected in (("click", np.log(2000.5 / 0.5)), ("watch", 1.0)):
        np.testing.assert_allclose(found.valid[name], expected)
    assert (found.valid["mood"].argmax(axis=1) == 1).all()


def test_a_class_absent_from_training_keeps_its_column(feed):
    encoder, batch, _ = feed
    train, valid, test = parts(batch)
    without = train._replace(known=train.known & (train.labels != 1))
    found = boosting_baseline(encoder.layout, without, valid, test).test["mood"]
    assert found.shape == (500, 3)
    assert (found[:, 1] == boosting.UNSEEN_CLASS).all()
    assert (found.max(axis=1) == 0).all()
    other = test.labels[:, 3].numpy()
    rows = other != 1
    assert metrics.accuracy(found[rows], other[rows]) > 0.9


def test_at_most_max_rows_are_used(feed):
    encoder, batch, _ = feed
    train, valid, test = parts(batch)
    few = boosting_baseline(encoder.layout, train, valid, test, max_rows=300).test
    again = boosting_baseline(encoder.layout, train, valid, test, max_rows=300).test
    other = boosting_baseline(encoder.layout, train, valid, test, 1, max_rows=300).test
    np.testing.assert_array_equal(few["click"], again["click"])
    assert not np.array_equal(few["click"], other["click"])


def test_without_scikit_learn_the_error_says_what_to_install(feed, monkeypatch):
    encoder, batch, _ = feed
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert not boosting.available()
    with pytest.raises(MultigateError, match=r"pip install 'multigate\[boost\]'"):
        boosting_baseline(encoder.layout, batch, batch)


def test_census_income_is_predicted_well_from_few_rows(shared_data):
    rows = pq.read_table(shared_data / "census-income" / "train.parquet").slice(0, 24_000).combine_chunks()
    left_out = {"education", "marital_stat", "instance_weight", "income_50k"}
    schema = Schema(
        features=tuple(
            Number(name) if name in ("age", "weeks_worked", "capital_gains") else Category(name)
            for name in rows.column_names
            if name not in left_out
        ),
        tasks=(Task("income", column="income_50k", positive="50000+."),),
    )
    encoder = Encoder.fit(schema, rows.slice(0, 16_000).to_batches())
    train, valid, test = (
        encoder.columns(rows.slice(at, size).to_batches()[0])
        for at, size in ((0, 16_000), (16_000, 4_000), (20_000, 4_000))
    )
    found = boosting_baseline(encoder.layout, train, valid, test)
    assert metrics.auc(found.test["income"], test.labels[:, 0].numpy()) > 0.9
