import hashlib
import math
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from multigate.datasets.feed import (
    BLOCK,
    Feed,
    World,
    feed_batches,
    feed_schema,
    feed_table,
    feed_truth,
    write_feed,
)
from multigate.errors import SettingError
from multigate.schema import Schema
from processes import run_program

EXAMPLES = Path(__file__).parents[2] / "examples"
LARGE = Feed(rows=200_000, seed=3)


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    """Columns of a large feed and of its truth; nulls are NaN."""
    tables = (feed_table(LARGE), feed_truth(LARGE))
    return {
        name: table[name].to_numpy()
        for table in tables
        for name in table.column_names
        if not pa.types.is_dictionary(table.schema.field(name).type)
    }


def plain(table: pa.Table) -> pa.Table:
    """With texts instead of dictionaries, which may differ and mean the same."""
    columns = [column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column for column in table.columns]
    return pa.table(columns, names=table.column_names)


def test_the_same_in_another_process(tmp_path):
    script = (
        "from multigate.datasets.feed import *; import hashlib;"
        "t = feed_table(Feed(rows=3000, seed=5));"
        "print(hashlib.sha256(repr(t.to_pydict()).encode()).hexdigest())"
    )
    here = hashlib.sha256(repr(feed_table(Feed(rows=3000, seed=5)).to_pydict()).encode()).hexdigest()
    assert run_program(script, tmp_path).said == f"{here}\n"
    assert feed_table(Feed(rows=3000, seed=5)) != feed_table(Feed(rows=3000, seed=6))


def test_any_range_of_rows_is_that_of_the_whole():
    feed = Feed(rows=BLOCK + 20_000, seed=1)
    whole, truth = feed_table(feed), feed_truth(feed)
    assert whole.num_rows == truth.num_rows == feed.rows
    cuts = [0, 1, 777, BLOCK - 1, BLOCK + 1, feed.rows - 5, feed.rows]
    for low, high in pairwise(cuts):
        assert plain(feed_table(feed, low, high)) == plain(whole.slice(low, high - low))
        assert feed_truth(feed, low, high) == truth.slice(low, high - low)
    assert feed_table(feed, 5, 5).num_rows == 0
    assert feed_table(feed, feed.rows - 2, feed.rows + 100).num_rows == 2


def test_the_laws_are_those_of_the_docstring():
    feed = Feed(rows=1_000, users=50, items=40, seed=2)
    world = World(feed)
    rows = world.rows(np.random.default_rng(0), np.linspace(0, 0.999, 60))
    truth = world.truth(rows)
    c, b, like = world.intercepts
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    for r in range(60):
        u, i = rows.user[r], rows.item[r]
        interest = sum(world.interest_of_user[u, k] * world.interest_of_item[i, k] for k in range(4)) / 2
        taste = sum(world.taste_of_user[u, k] * world.taste_of_item[i, k] for k in range(4)) / 2
        lure, quality, curiosity = world.lure[i], world.quality[i], world.curiosity[u]
        hour = (rows.seconds[r] % 86_400) / 3_600
        evening = math.cos(2 * math.pi * (hour - 21) / 24) if rows.device[r] == 0 else 0.0
        dear = (math.log(world.price[i]) - 3) / 1.3 if world.price_known[i] else 0.0
        click = sigmoid(
            c + 0.6 * interest + 0.7 * lure + 0.6 * curiosity - 0.3 * math.log(rows.position[r]) + 0.3 * evening
        )
        buy = sigmoid(b + 0.6 * interest - 0.7 * lure - 0.7 * curiosity - 0.3 * dear + 0.3 * quality)
        wanted = (
            click,
            buy,
            sigmoid(like + 0.3 * interest + 0.8 * taste + 0.5 * quality),
            3 + 0.6 * taste + 0.3 * quality - 0.2 * lure,
        )
        found = (truth.p_click[r], truth.p_buy_given_click[r], truth.p_like[r], truth.watch_mean[r])
        assert found == pytest.approx(wanted, rel=2e-3, abs=1e-5)  # the price is rounded to cents


@pytest.mark.parametrize(
    ("label", "probability"),
    [("click", "p_click"), ("buy", "p_buy_given_click"), ("like", "p_like")],
)
def test_labels_come_from_the_truth_in_every_decile(columns, label, probability):
    known = ~np.isnan(columns[label])
    y, p = columns[label][known], columns[probability][known].astype(np.float64)
    tenths = np.array_split(np.argsort(p), 10)
    for tenth in tenths:
        error = math.sqrt(np.sum(p[tenth] * (1 - p[tenth]))) / tenth.size
        assert abs(y[tenth].mean() - p[tenth].mean()) < 4 * error
    assert p[tenths[-1]].mean() > 3 * p[tenths[0]].mean()


def test_watch_time_comes_from_the_truth_in_every_decile(columns):
    clicked = columns["click"] == 1
    ratio = columns["watch_seconds"][clicked] / columns["expected_watch_seconds"][clicked]
    for tenth in np.array_split(np.argsort(columns["expected_watch_seconds"][clicked]), 10):
        assert abs(ratio[tenth].mean() - 1) < 4 * ratio[tenth].std() / math.sqrt(tenth.size)


def test_the_rates_asked_for_are_met(columns):
    assert columns["click"].mean() == pytest.approx(0.15, abs=0.004)
    assert np.nanmean(columns["buy"]) == pytest.approx(0.10, abs=0.008)
    assert np.nanmean(columns["like"]) == pytest.approx(0.25, abs=0.006)
    assert np.isnan(columns["like"]).mean() == pytest.approx(0.3, abs=0.005)
    rare = feed_truth(Feed(rows=60_000, click_rate=0.01, buy_rate=0.5, like_rate=0.9, unknown=0.0))
    assert rare["p_click"].to_numpy().mean() == pytest.approx(0.01, rel=0.05)
    assert rare["p_like"].to_numpy().mean() == pytest.approx(0.9, rel=0.02)


def test_the_best_possible_aucs(columns):
    clicked, asked = columns["click"] == 1, ~np.isnan(columns["like"])
    assert 0.74 < roc_auc_score(columns["click"], columns["p_click"]) < 0.81
    assert 0.74 < roc_auc_score(columns["buy"][clicked], columns["p_buy_given_click"][clicked]) < 0.82
    assert 0.70 < roc_auc_score(columns["like"][asked], columns["p_like"][asked]) < 0.78


def test_the_funnel_is_respected(columns):
    clicked = columns["click"] == 1
    assert np.array_equal(np.isnan(columns["buy"]), ~clicked)
    assert np.array_equal(np.isnan(columns["watch_seconds"]), ~clicked)
    assert np.nanmin(columns["watch_seconds"]) > 0
    product = columns["p_click"] * columns["p_buy_given_click"]
    assert columns["p_buy"] == pytest.approx(product, rel=1e-6)
    bought = np.where(clicked, np.nan_to_num(columns["buy"]), 0)
    assert bought.mean() == pytest.approx(product.mean(), abs=4 * math.sqrt(product.mean() / product.size))


def test_clicked_rows_are_not_like_the_rest(columns):
    clicked = columns["click"] == 1
    over_all = columns["p_buy_given_click"].mean()
    assert over_all > 1.2 * columns["p_buy_given_click"][clicked].mean()


def test_unknown_likes_are_unknown_at_random(columns):
    hidden = np.isnan(columns["like"])
    p = columns["p_like"]
    error = p.std() * math.sqrt(1 / hidden.sum() + 1 / (~hidden).sum())
    assert abs(p[hidden].mean() - p[~hidden].mean()) < 4 * error


def test_late_rows_hold_users_and_items_that_early_rows_do_not(columns):
    cut = LARGE.rows * 9 // 10
    for name in ("user", "item"):
        new = ~np.isin(columns[name][cut:], columns[name][: LARGE.rows * 8 // 10])
        assert 0.005 < new.mean() < 0.2
    still = feed_table(Feed(rows=100_000, users=100, items=100, new=0.0))
    assert not set(still["user"][80_000:].to_pylist()) - set(still["user"][:80_000].to_pylist())


@pytest.mark.parametrize("zipf", [0.6, 1.0])
def test_popularity_follows_the_power_law(zipf):
    shown = feed_table(Feed(rows=200_000, items=2_000, item_zipf=zipf, new=0.0))["item"].to_numpy()
    counts = np.sort(np.unique(shown, return_counts=True)[1])[::-1]
    ranks = np.arange(5, 300)
    slope = np.polyfit(np.log(ranks + 1), np.log(counts[ranks]), 1)[0]
    assert slope == pytest.approx(-zipf, abs=0.07)


def test_rows_are_in_order_of_time_and_unique(columns):
    seconds = columns["time"].astype("datetime64[ms]").astype(np.int64) / 1000
    assert np.all(np.diff(seconds) >= 0)
    assert np.array_equal(columns["row_id"], np.arange(LARGE.rows))
    assert 0 < seconds[-1] - seconds[0] < 28 * 86_400
    hours = np.bincount((seconds % 86_400 // 3_600).astype(int), minlength=24)
    assert hours[20] > 5 * hours[8]


def test_what_belongs_to_an_item_or_user_does_not_change():
    table = feed_table(Feed(rows=20_000, users=300, items=200))
    for key, names in (("item", ("category", "publisher", "tags", "price")), ("user", ("age", "country"))):
        for name in names:
            pairs = set(zip(table[key].to_pylist(), table[name].to_pylist(), strict=True))
            assert len(pairs) == len(set(table[key].to_pylist()))
    for name in ("tags", "price", "age"):
        assert 0 < table[name].null_count < 0.4 * table.num_rows
    bags = [text.split(",") for text in table["tags"].to_pylist() if text is not None]
    assert all(1 <= len(set(bag)) == len(bag) <= 4 for bag in bags)
    prices = np.array([price for price in table["price"].to_pylist() if price is not None])
    assert prices.min() > 0
    assert prices.mean() > 1.5 * np.median(prices)
    assert set(table["position"].to_pylist()) == set(range(1, 11))


def test_written_splits_are_the_rows_in_order_and_hold_no_truth(tmp_path):
    feed = Feed(rows=BLOCK + 9_001, seed=4)
    told: list[tuple[str, int, int | None]] = []
    write_feed(feed, tmp_path, lambda *progress: told.append(progress))
    assert told[-1][1:] == (feed.rows, feed.rows)
    assert len(told) == 2
    names = ("train", "valid", "test")
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}{suffix}.parquet" for name in names for suffix in ("", "_truth")
    }
    tables = [pq.read_table(tmp_path / f"{name}.parquet") for name in names]
    truths = [pq.read_table(tmp_path / f"{name}_truth.parquet") for name in names]
    assert [table.num_rows for table in tables] == [int(feed.rows * 0.8), 7_454, 7_454]
    assert plain(pa.concat_tables(tables)) == plain(feed_table(feed))
    assert pa.concat_tables(truths) == feed_truth(feed)
    assert not any(name.startswith(("p_", "expected")) for name in tables[0].column_names)


def test_an_interrupted_write_leaves_nothing_half_written(tmp_path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_feed(Feed(rows=2_000), tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_two_that_write_at_once_are_not_in_each_others_way(tmp_path):
    feed = Feed(rows=2_000, seed=4)

    def write_too(*_: object) -> None:
        write_feed(feed, tmp_path / "together")

    write_feed(feed, tmp_path / "together", write_too)
    write_feed(feed, tmp_path / "alone")
    together, alone = (
        {path.name: path.read_bytes() for path in (tmp_path / one).iterdir()} for one in ("together", "alone")
    )
    assert together == alone


def test_memory_does_not_grow_with_the_rows():
    def peak(rows: int) -> int:
        tracemalloc.start()
        try:
            arrow = max(pa.total_allocated_bytes() for _ in feed_batches(Feed(rows=rows)))
            return arrow + tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(6 * BLOCK) < 1.2 * peak(2 * BLOCK)


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"click_rate": 1.0}, {"unknown": -0.1}, {"user": 3}])
def test_impossible_feeds_are_refused(wrong):
    with pytest.raises(SettingError):
        Feed(**wrong)


def test_the_example_reads_what_is_written():
    schema = Schema.model_validate(yaml.safe_load((EXAMPLES / "feed.yaml").read_text())["schema"])
    assert schema == feed_schema()
    table = feed_table(Feed(rows=10))
    assert set(table.column_names) == set(schema.columns())
