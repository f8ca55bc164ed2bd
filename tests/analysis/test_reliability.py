"""Calibration curves against plain loops, a hand-written interval and simulated truth."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats

from multigate.analysis.reliability import reliability
from multigate.schema import Number, Schema, Task

Z = 1.959963984540054
FEATURES = (Number("x", embedding="none"),)
CHAIN = Schema(
    features=FEATURES,
    tasks=(
        Task("click"),
        Task("buy", given="click", sample_weight="worth"),
        Task("watch", kind="regression"),
        Task("topic", kind="multiclass"),
    ),
)
HEADS = {"click": [0.8], "buy": [-1.1], "watch": [1.0], "topic": [[0.1], [0.2]]}


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, dtype=np.float64)))


def table(rows, seed=0):
    """Labels whose probabilities are exactly those of ``HEADS``, x being all but standardised."""
    random = np.random.default_rng(seed)
    x = random.normal(size=rows)
    x = (x - x.mean()) / x.std()
    click = random.random(rows) < sigmoid(0.8 * x)
    buy = click & (random.random(rows) < sigmoid(-1.1 * x))
    return {
        "x": x,
        "click": click,
        "buy": buy,
        "worth": random.choice([0.0, 0.5, 1.0, 3.0], rows),
        "watch": random.normal(size=rows),
        "topic": random.choice(["a", "b"], rows),
    }


def wilson(ones, rows):
    """The two shares p at which the observed one lies z standard errors off."""
    share = ones / rows
    a, b, c = 1 + Z * Z / rows, -2 * share - Z * Z / rows, share * share
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def curve_by_loops(chances, labels, weights, bins):
    """Bins of equal count (no two predictions here are equal), each as (predicted, observed, low, high, rows)."""
    kept = sorted((p, y, w) for p, y, w in zip(chances, labels, weights, strict=True) if w > 0)
    curve, ece, whole = [], 0.0, sum(w for _, _, w in kept)
    start = 0
    for at in range(1, bins + 1):
        end = math.ceil(len(kept) * at / bins)
        inside = kept[start:end]
        start = end
        total = sum(w for _, _, w in inside)
        predicted = sum(w * p for p, _, w in inside) / total
        observed = sum(w * y for _, y, w in inside) / total
        worth = total**2 / sum(w * w for _, _, w in inside)
        curve.append((predicted, observed, *wilson(observed * worth, worth), len(inside)))
        ece += abs(predicted - observed) * total / whole
    return curve, ece


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_curves_equal_plain_loops(linear, bins):
    columns = table(1000)
    found = {one.target: one for one in reliability(linear(CHAIN, columns, HEADS), bins)}
    assert list(found) == ["click", "buy", "buy|click"]
    click, buy = sigmoid(0.8 * columns["x"]), sigmoid(-1.1 * columns["x"])
    clicked = columns["click"]
    expected = {
        "click": (click, columns["click"], np.ones(1000)),
        "buy": (click * buy, columns["buy"], columns["worth"]),
        "buy|click": (buy[clicked], columns["buy"][clicked], columns["worth"][clicked]),
    }
    for name, (chances, labels, weights) in expected.items():
        curve, ece = curve_by_loops(chances, labels.astype(float), weights, bins)
        one = found[name]
        bands = zip(one.predicted, one.observed, one.low, one.high, one.rows, strict=True)
        for band, loop in zip(bands, curve, strict=True):
            assert band == pytest.approx(loop, abs=1e-5)
        assert one.ece == pytest.approx(ece, abs=1e-5)
        assert one.calibration == pytest.approx((chances * weights).sum() / (labels * weights).sum(), abs=1e-5)


def test_the_interval_is_wilsons(linear):
    columns = table(300)
    (click, *_) = reliability(linear(CHAIN, columns, HEADS), 3)
    for observed, low, high, rows in zip(click.observed, click.low, click.high, click.rows, strict=True):
        expected = stats.binomtest(round(observed * rows), rows).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_rows_of_one_user_that_are_alike_are_one_row_to_the_interval(linear):
    """400 users of 5 equal rows each, 40 of them in a bin: variances of users over those of rows, both of n - 1."""
    schema = Schema(features=FEATURES, tasks=[Task("click")], group="user")
    one_each = {name: values[:400] for name, values in table(400).items() if name in ("x", "click")}
    columns = {name: np.repeat(values, 5) for name, values in one_each.items()} | {"user": np.arange(400).repeat(5)}
    (found,) = reliability(linear(schema, columns, HEADS), 10)
    assert found.rows == (200,) * 10
    (apart,) = reliability(linear(schema, columns | {"user": [None] * 2000}, HEADS), 10)  # rows of nobody
    for observed, *ends in zip(found.observed, found.low, found.high, apart.low, apart.high, strict=True):
        worth = 200 / (5 * (40 / 39) / (200 / 199))
        assert ends == pytest.approx([*wilson(worth * observed, worth), *wilson(200 * observed, 200)], abs=1e-6)


def test_intervals_over_users_cover_the_rates_as_often_as_they_say(linear):
    """60 users of 20 rows, whose rates differ about what is predicted; rows taken one by one hold them in .67."""
    schema = Schema(features=FEATURES, tasks=[Task("click")], group="user")
    random, held = np.random.default_rng(0), []
    users, nodes = np.arange(60).repeat(20), np.linspace(-4, 4, 81)
    for _ in range(40):
        x = random.normal(size=60)
        subject = linear(schema, {"x": x[users], "click": np.arange(1200) % 2, "user": users}, {"click": [1.0]}, 1200)
        z = subject.scored().logits[:, 0]
        # a user's logit is s + N(0, 1), of which the mean rate is what the model says
        spread = np.linspace(-12, 12, 1201)
        means = (sigmoid(spread[:, None] + nodes) * np.exp(-(nodes**2) / 2)).sum(1) / np.exp(-(nodes**2) / 2).sum()
        own = np.interp(sigmoid(z), means, spread) + random.normal(size=60)[users]
        labels = (random.random(1200) < sigmoid(own)).astype(np.float32)
        rows = tuple(batch._replace(labels=torch.from_numpy(labels)[:, None]) for batch in subject.batches)
        (curve,) = reliability(replace(subject, batches=rows), 10)
        held += [low <= p <= high for p, low, high in zip(curve.predicted, curve.low, curve.high, strict=True)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.04)


def test_equal_predictions_share_a_bin_and_few_rows_make_few_bins(linear):
    schema = Schema(features=FEATURES, tasks=[Task("click")])
    x = [-1.0] * 40 + [0.0] * 10 + [1.0] * 50
    labels = [1] * 10 + [0] * 30 + [1] * 4 + [0] * 6 + [1] * 36 + [0] * 14
    (few,) = reliability(linear(schema, {"x": x, "click": labels}, HEADS))
    assert few.rows == (40, 10, 50)
    assert few.observed == pytest.approx((0.25, 0.4, 0.72))
    (one,) = reliability(linear(schema, {"x": x, "click": labels}, {"click": [0.0]}))
    assert one.rows == (100,)
    assert (one.predicted, one.observed, one.ece, one.calibration) == ((0.5,), (0.5,), 0.0, 1.0)
    (small,) = reliability(linear(schema, {"x": [0.0, 1.0, 2.0], "click": [0, 1, 0]}, HEADS))
    assert small.rows == (1, 1, 1)
    assert small.observed == (0, 1, 0)
    assert small.low[0] == 0
    assert small.high[1] == 1
    assert small.high[0] == pytest.approx(Z**2 / (1 + Z**2))


def test_a_model_that_knows_the_truth_is_reliable_and_one_that_exaggerates_is_not(linear):
    columns = table(20_000)
    columns["worth"] = np.ones(20_000)
    held = total = 0
    for one in reliability(linear(CHAIN, columns, HEADS)):
        held += sum(low <= p <= high for p, low, high in zip(one.predicted, one.low, one.high, strict=True))
        total += len(one.rows)
        assert one.ece < 0.02
        assert one.calibration == pytest.approx(1, abs=0.05)
    assert held >= 0.85 * total
    (click, *_) = reliability(linear(CHAIN, columns, HEADS | {"click": [3.0]}))
    assert click.ece > 0.1
    assert click.predicted[0] < click.low[0] < click.high[-1] < click.predicted[-1]


def test_what_has_no_rows_or_no_weight_is_left_out(linear):
    subject = linear(CHAIN, table(200), HEADS)

    def targets(**changes):
        record = pa.table(table(200) | changes).to_batches()[0]
        rows = subject.bundle.encoder.columns(record)
        return {one.target: one for one in reliability(replace(subject, batches=(rows,)))}

    never = np.zeros(200, dtype=bool)
    assert list(targets(worth=np.zeros(200))) == ["click"]
    found = targets(click=never, buy=never)
    assert list(found) == ["click", "buy"]
    assert math.isnan(found["click"].calibration)
    assert reliability(replace(subject, batches=())) == ()
