"""Paired differences against plain loops over the same draws, and against the unpaired look."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from multigate.analysis.paired import paired_differences
from multigate.errors import MultigateError
from multigate.metrics import bootstrap, paired_bootstrap, score_task
from multigate.schema import Number, Schema, Task

FEATURES = (Number("x", embedding="none"), Number("noise", embedding="none"))
TASKS = (
    Task("click"),
    Task("buy", given="click"),
    Task("watch", kind="regression", sample_weight="worth"),
    Task("topic", kind="multiclass"),
)
SCHEMA = Schema(features=FEATURES, tasks=TASKS)
GROUPED = Schema(features=FEATURES, tasks=TASKS, group="user")
GOOD = {"click": [1.0, 0.0], "buy": [1.0, 0.0], "watch": [1.0, 0.0], "topic": [[0, 0], [1.0, 0], [2.0, 0]]}
NOISY = {"click": [1.0, 0.4], "buy": [1.0, 0.4], "watch": [1.0, 0.4], "topic": [[0, 0], [1.0, 0.4], [2.0, -0.3]]}


def table(rows=600, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=rows).clip(-3, 3)
    click = random.random(rows) < 1 / (1 + np.exp(-x))
    return {
        "x": x,
        "noise": random.normal(size=rows).clip(-3, 3),
        "user": random.integers(0, 60, rows),
        "click": click,
        "buy": click & (random.random(rows) < 1 / (1 + np.exp(-x))),
        "watch": [None if random.random() < 0.2 else 10 + 3 * (one + float(random.normal())) for one in x],
        "worth": random.random(rows),
        "topic": np.array(["low", "mid", "top"])[np.digitize(x + random.normal(size=rows), [-0.5, 0.5])],
    }


def ends(level, many):
    """Of percentiles over so many units, as wide as Student's t asks."""
    low = stats.norm.cdf(stats.t.ppf((1 - level) / 2, many - 1) * math.sqrt(many / (many - 1)))
    return [low, 1 - low]


def draws(units, rows, replicates, seed):
    """Rows of each replicate, and for each row which draw brought it."""
    random = np.random.default_rng(seed)
    for _ in range(replicates):
        drawn = random.integers(0, units.max() + 1, units.max() + 1)
        parts = [np.flatnonzero(units == unit) for unit in drawn]
        yield np.concatenate(parts), np.concatenate([np.full(len(part), copy) for copy, part in enumerate(parts)])


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", ["binary", "regression", "multiclass"])
def test_the_paired_bootstrap_equals_scoring_both_on_each_draw(kind, grouped):
    random = np.random.default_rng(3)
    labels = random.integers(0, 2, 300).astype(float)
    a, b = (labels + random.normal(size=300) for _ in range(2))
    if kind == "multiclass":
        a, b = (np.stack([-one, one], axis=1) for one in (a, b))
    weights, groups = random.random(300), random.integers(0, 40, 300)
    units = np.unique(groups, return_inverse=True)[1] if grouped else np.arange(300)
    differences = []
    for rows, copies in draws(units, 300, 40, seed=5):
        rest = (labels[rows], weights[rows], copies if grouped else None)
        one, other = (score_task(kind, outputs[rows], *rest) for outputs in (a, b))
        differences.append({name: other[name] - one[name] for name in one})
    found = paired_bootstrap(kind, a, b, labels, weights, groups if grouped else None, replicates=40, seed=5, level=0.8)
    assert list(found) == list(differences[0])
    sizes = np.bincount(units, weights)
    mixed = [len(np.unique(labels[units == unit])) > 1 for unit in np.unique(units)]
    for name, interval in found.items():
        of_units = sizes[mixed] if name == "gauc" else sizes
        many = of_units.sum() ** 2 / (of_units**2).sum()
        expected = np.quantile([difference[name] for difference in differences], ends(0.8, many))
        assert interval == pytest.approx(tuple(expected), abs=1e-9), name


def test_differences_equal_scores_of_each_model_and_a_loop_over_users(linear):
    columns = table()
    a, b = linear(GROUPED, columns, GOOD, rows=250), linear(GROUPED, columns, NOISY)
    found = {(one.target, one.metric): one for one in paired_differences(a, b, replicates=30, seed=7)}
    assert {target for target, _ in found} == {"click", "buy", "buy|click", "watch", "topic"}
    assert {metric for target, metric in found if target == "watch"} == {"rmse", "mae", "r2"}
    labels = columns["click"].astype(float)
    numbers = np.concatenate([batch.numbers.numpy() for batch in a.batches]).astype(np.float64)
    hashes = np.concatenate([batch.groups.numpy() for batch in a.batches])
    users = np.unique(hashes, return_inverse=True)[1]
    outputs = [numbers @ head["click"] for head in (GOOD, NOISY)]
    aucs = [score_task("binary", one, labels)["auc"] for one in outputs]
    looped = []
    for rows, _ in draws(users, 600, 30, seed=7):
        one, other = (score_task("binary", some[rows], labels[rows])["auc"] for some in outputs)
        looped.append(other - one)
    auc = found["click", "auc"]
    assert (auc.a, auc.b) == pytest.approx(aucs, abs=1e-6)
    assert auc.difference == auc.b - auc.a
    sizes = np.bincount(users)
    many = sizes.sum() ** 2 / (sizes**2).sum()
    assert (auc.low, auc.high) == pytest.approx(np.quantile(looped, ends(0.95, many)), abs=1e-6)
    assert auc.clear
    assert auc.high < 0, "noise costs accuracy"
    turned = {(one.target, one.metric): one for one in paired_differences(b, a, replicates=30, seed=7)}["click", "auc"]
    assert turned.clear
    assert turned.low > 0


@pytest.mark.parametrize("schema", [SCHEMA, GROUPED], ids=["rows", "groups"])
def test_a_model_does_not_differ_from_itself(linear, schema):
    columns = table()
    for one in paired_differences(linear(schema, columns, NOISY), linear(schema, columns, NOISY, rows=100)):
        assert (one.a, one.difference, one.low, one.high, one.clear) == (one.b, 0, 0, 0, False), one


def test_a_paired_interval_is_narrower_than_two_unpaired_ones():
    random = np.random.default_rng(0)
    labels = (random.random(2000) < 0.3).astype(float)
    a = random.normal(size=2000) + labels
    b = a + 0.1 * random.normal(size=2000)
    for name, (low, high) in paired_bootstrap("binary", a, b, labels).items():
        alone = [bootstrap("binary", one, labels, seed=seed)[name] for seed, one in enumerate((a, b))]
        unpaired = math.hypot(*(one_high - one_low for one_low, one_high in alone))
        assert high - low < 0.5 * unpaired, name


def test_intervals_cover_a_known_difference_as_often_as_they_say():
    # Scores with noise of variance 1 and 1 + 3: AUC = Phi(d / sqrt(2 v)), d = 1.
    truth = (1 + math.erf(1 / math.sqrt(8) / math.sqrt(2))) / 2 - (1 + math.erf(1 / math.sqrt(2) / math.sqrt(2))) / 2
    random = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        labels = random.random(300) < 0.5
        a = random.normal(size=300) + labels
        b = a + math.sqrt(3) * random.normal(size=300)
        low, high = paired_bootstrap("binary", a, b, labels, seed=seed)["auc"]
        held += low <= truth <= high
    assert held / 200 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 200))


def test_only_what_both_models_have_is_compared(linear):
    columns = table()
    alone = SCHEMA.only(["buy", "watch"])
    found = paired_differences(linear(SCHEMA, columns, GOOD), linear(alone, columns, NOISY), replicates=5)
    assert {one.target for one in found} == {"buy", "watch"}


def test_encoders_fitted_on_other_rows_are_no_obstacle(linear):
    columns = table()
    a, fitted = linear(SCHEMA, columns, GOOD), linear(SCHEMA, table(900, seed=4), NOISY)
    b = replace(fitted, batches=tuple(batch for batch, _ in fitted.bundle.batches(columns, labels=True)))
    found = {one.metric: one for one in paired_differences(a, b, replicates=20) if one.target == "watch"}
    again = {one.metric: one for one in paired_differences(b, a, replicates=20) if one.target == "watch"}
    for metric, one in found.items():
        assert (one.difference, one.low, one.high) == pytest.approx(
            (-again[metric].difference, -again[metric].high, -again[metric].low), rel=1e-4, abs=1e-6
        )


def changed(column, row, value):
    columns = {name: list(values) for name, values in table().items()}
    columns[column][row] = value
    return columns


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (table(599), "600 and 599 rows"),
        (changed("click", 17, not table()["click"][17]), "row 18 has another label or weight of task 'click'"),
        (changed("watch", 3, 99.0), "row 4 has another label or weight of task 'watch'"),
        (changed("watch", 599, None), "row 600 has another label or weight of task 'watch'"),
        (changed("worth", 0, 7.0), "row 1 has another label or weight of task 'watch'"),
        (changed("topic", 9, "new"), "task 'topic' has another kind or other classes"),
        (changed("user", 40, 1000), "row 41 has another group"),
    ],
)
def test_other_rows_are_refused_in_one_sentence(linear, columns, message):
    a = linear(GROUPED, table(), GOOD)
    heads = GOOD | {"topic": [[0, 0]] * len(set(columns["topic"]))}
    with pytest.raises(MultigateError, match="look at both with the same table") as caught:
        paired_differences(a, linear(GROUPED, columns, heads))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_that_make_up_for_unknown_labels_in_another_way_are_refused(linear):
    """Whichever came first would say what labels count, and which of the two is better."""
    columns = table()
    late = np.random.default_rng(1).random(600) < 0.5
    clicked, bought = np.array(columns["click"]), np.array(columns["buy"])
    columns["buy"] = [None if gone else bool(one) for one, gone in zip(bought, clicked & late, strict=True)]
    plain = SCHEMA.with_(tasks=(Task("click"), Task("buy"), *TASKS[2:]))
    one, other = linear(SCHEMA, columns, GOOD), linear(plain, columns, NOISY)
    for pair in ((one, other), (other, one)):
        with pytest.raises(MultigateError, match="task 'buy' that are known make up for unknown ones in another way"):
            paired_differences(*pair)
    assert paired_differences(linear(SCHEMA, table(), GOOD), linear(plain, table(), NOISY)), "where all are known"


def test_models_without_a_common_task_and_subjects_without_rows_are_refused(linear):
    one, other = (linear(SCHEMA.only([name]), table(), GOOD) for name in ("click", "watch"))
    with pytest.raises(MultigateError, match="no task in common"):
        paired_differences(one, other)
    with pytest.raises(MultigateError, match="0 and 0 rows"):
        paired_differences(replace(one, batches=()), replace(one, batches=()))
