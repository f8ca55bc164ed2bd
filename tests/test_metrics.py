"""Metrics against scikit-learn, closed forms, plain loops and repeated rows; intervals against simulated truth."""

import math
import tracemalloc
from statistics import NormalDist

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from scipy.special import log_softmax
from sklearn import metrics as reference

from multigate import metrics
from multigate.metrics import bootstrap, score_task

SEEDS = range(4)


def binary(seed, rows=400, ties=False, groups=30):
    random = np.random.default_rng(seed)
    labels = (random.random(rows) < 0.3).astype(np.float32)
    logits = random.normal(size=rows) + 1.2 * labels - 0.7
    logits = (np.round(logits, 1) if ties else logits).astype(np.float32)
    return logits, labels, random.integers(0, 4, rows) + random.random(rows), random.integers(-groups, groups, rows)


def sigmoid(logits):
    return 1 / (1 + np.exp(-logits.astype(np.float64)))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_binary_metrics_equal_scikit_learn(seed, weighted, ties):
    logits, labels, weights, _ = binary(seed, ties=ties)
    weights = weights if weighted else None
    p = sigmoid(logits)
    rate = np.average(labels.astype(np.float64), weights=weights)
    expected = {
        "auc": reference.roc_auc_score(labels, logits, sample_weight=weights),
        "log_loss": reference.log_loss(labels, p, sample_weight=weights),
        "ne": reference.log_loss(labels, p, sample_weight=weights)
        / reference.log_loss(labels, np.full(len(p), rate), sample_weight=weights),
        "calibration": np.average(p, weights=weights) / rate,
        "pr_auc": reference.average_precision_score(labels, logits, sample_weight=weights),
    }
    found = score_task("binary", logits, labels, weights)
    assert list(found) == list(expected)
    assert_allclose(list(found.values()), list(expected.values()), rtol=1e-9)


def test_many_classes_take_no_memory_beside_their_logits():
    """No copy of all of them, nor the order of the rows by each class, at once; more are scored than are at a time."""
    random = np.random.default_rng(0)
    labels, logits = random.integers(0, 1_500, 4_000), random.normal(size=(4_000, 1_500)).astype(np.float32)
    tracemalloc.start()
    try:
        found = score_task("multiclass", logits, labels)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < logits.nbytes / 2
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    assert found["log_loss"] == pytest.approx(-log_p[np.arange(4_000), labels].mean(), rel=1e-9)
    assert found["accuracy"] == (log_p.argmax(1) == labels).mean()
    one_by_one = [metrics.auc(log_p[:, k], labels == k) for k in np.unique(labels)]
    assert found["auc"] == pytest.approx(np.mean(one_by_one), rel=1e-9)


def test_only_amounts_have_a_calibration():
    """A total about 0 has no ratio to speak of."""
    values, labels, weights = [3.0, 0.0, 4.0], [1.0, 0.0, 9.0], [2.0, 5.0, 1.0]
    assert score_task("regression", values, labels, weights)["calibration"] == pytest.approx(10 / 11)
    assert "calibration" not in score_task("regression", values, [1.0, -0.1, 9.0], weights)
    assert "calibration" not in bootstrap("regression", values, [1.0, -0.1, 9.0], weights)
    assert math.isnan(score_task("regression", values, [0.0, 0.0, 0.0])["calibration"])


@pytest.mark.parametrize("weighted", [False, True])
def test_regression_metrics_equal_scikit_learn(weighted):
    random = np.random.default_rng(1)
    labels = random.normal(50, 3, 300)
    values = labels + random.normal(0, 2, 300)
    weights = random.random(300) if weighted else None
    found = score_task("regression", values, labels, weights)
    expected = {
        "rmse": reference.root_mean_squared_error(labels, values, sample_weight=weights),
        "mae": reference.mean_absolute_error(labels, values, sample_weight=weights),
        "r2": reference.r2_score(labels, values, sample_weight=weights),
        "calibration": np.average(values, weights=weights) / np.average(labels, weights=weights),
    }
    assert list(found) == list(expected)
    assert_allclose(list(found.values()), list(expected.values()), rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_multiclass_metrics_equal_scikit_learn(weighted):
    random = np.random.default_rng(2)
    labels = random.integers(0, 4, 500)
    logits = random.normal(size=(500, 4)) + 1.5 * np.eye(4)[labels]
    weights = random.random(500) if weighted else None
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = score_task("multiclass", logits, labels, weights)
    expected = {
        "accuracy": reference.accuracy_score(labels, p.argmax(axis=1), sample_weight=weights),
        "log_loss": reference.log_loss(labels, p, sample_weight=weights),
        "auc": reference.roc_auc_score(labels, p, multi_class="ovr", average="macro", sample_weight=weights),
    }
    assert list(found) == list(expected)
    assert_allclose(list(found.values()), list(expected.values()), rtol=1e-9)


def test_a_class_absent_from_the_rows_is_left_out_of_the_mean():
    random = np.random.default_rng(3)
    labels = random.integers(0, 2, 200)
    logits = np.concatenate([random.normal(size=(200, 2)) + np.eye(2)[labels], np.full((200, 1), -40.0)], axis=1)
    two = score_task("binary", logits[:, 1] - logits[:, 0], labels)["auc"]
    assert metrics.auc(logits, labels) == pytest.approx(two, abs=1e-12)


@pytest.mark.parametrize("kind", ["binary", "regression", "multiclass"])
def test_each_function_says_what_score_task_says(kind):
    logits, labels, weights, groups = binary(5, ties=True)
    outputs = np.stack([logits, -logits, 0 * logits], axis=1) if kind == "multiclass" else logits
    functions = vars(metrics) | {"ne": metrics.normalised_entropy}
    if kind == "regression":
        functions["calibration"] = metrics.total_calibration
    for name, value in score_task(kind, outputs, labels, weights, groups).items():
        given = (outputs, labels, groups, weights) if name == "gauc" else (outputs, labels, weights)
        assert functions[name](*given) == pytest.approx(value, rel=1e-12)


def auc_by_pairs(scores, labels, weights):
    won = paired = 0.0
    for i in np.flatnonzero(labels == 1):
        for j in np.flatnonzero(labels == 0):
            pair = weights[i] * weights[j]
            paired += pair
            won += pair * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return won / paired if paired else math.nan


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_auc_and_gauc_equal_a_loop_over_pairs(seed, weighted):
    logits, labels, weights, groups = binary(seed, rows=150, ties=True, groups=15)
    weights = weights if weighted else np.ones(len(labels))
    assert metrics.auc(logits, labels, weights) == pytest.approx(auc_by_pairs(logits, labels, weights), rel=1e-10)
    above = below = 0.0
    skipped = 0
    for group in set(groups.tolist()):
        rows = groups == group
        within = auc_by_pairs(logits[rows], labels[rows], weights[rows])
        skipped += math.isnan(within)
        if not math.isnan(within):
            above += within * weights[rows].sum()
            below += weights[rows].sum()
    assert skipped > 0
    assert metrics.gauc(logits, labels, groups, weights) == pytest.approx(above / below, rel=1e-10)


def test_groups_with_one_class_are_skipped_whatever_their_weights():
    weights = np.array([0.1, 0.2, 0.3, 0.7, 0.1, 0.1])
    assert metrics.gauc([1, 2, 3, 1, 2, 3], [0, 1, 0, 1, 1, 1], [7, 7, 7, 9, 9, 9], weights) == pytest.approx(0.25)
    assert math.isnan(metrics.gauc([1, 2, 3, 4], [1, 1, 0, 0], [1, 1, 2, 2]))


def test_one_group_is_the_whole():
    logits, labels, _, _ = binary(0)
    zeros = np.zeros(len(labels), np.int64)
    assert metrics.gauc(logits, labels, zeros) == pytest.approx(metrics.auc(logits, labels), rel=1e-12)
    interval = bootstrap("binary", logits, labels, groups=zeros)
    assert interval["gauc"] == interval["auc"] == bootstrap("binary", logits, labels)["auc"]


@pytest.mark.parametrize("kind", ["binary", "regression", "multiclass"])
def test_a_weight_of_three_is_three_rows(kind):
    logits, labels, _, groups = binary(6, ties=True)
    outputs = np.stack([logits, -logits], axis=1) if kind == "multiclass" else logits
    times = np.random.default_rng(0).integers(0, 4, len(labels))
    weighted = score_task(kind, outputs, labels, times, groups)
    repeated = score_task(kind, outputs.repeat(times, axis=0), labels.repeat(times), None, groups.repeat(times))
    assert weighted == pytest.approx(repeated, rel=1e-10)


def test_known_values():
    assert metrics.auc([3, 1, 2, 0], [1, 1, 0, 0]) == 0.75
    assert metrics.auc([0, 0, 0], [1, 0, 0]) == 0.5
    assert metrics.pr_auc([3, 2, 1], [1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.log_loss([0.0, 0.0], [1, 0]) == pytest.approx(math.log(2))
    assert metrics.normalised_entropy([math.log(0.25 / 0.75)] * 4, [1, 0, 0, 0]) == pytest.approx(1)
    assert metrics.calibration([0.0] * 4, [1, 0, 0, 0]) == pytest.approx(2)
    assert metrics.r2([2, 2, 2], [1, 2, 3]) == pytest.approx(0)
    assert metrics.rmse([1, 5], [1, 1]) == pytest.approx(math.sqrt(8))
    assert metrics.mae([1, 5], [1, 1]) == pytest.approx(2)
    assert metrics.accuracy([[1, 0], [0, 1]], [0, 0]) == 0.5


def test_large_logits_lose_nothing():
    assert metrics.log_loss([800.0, -800.0], [1, 0]) == 0
    assert metrics.log_loss([800.0, -800.0], [0, 1]) == pytest.approx(800)
    assert metrics.log_loss([[1000.0, 0.0]], [1]) == pytest.approx(1000)
    # Probabilities of both are 1 in float64; logits still order them.
    assert metrics.auc(np.array([50.0, 40.0]), [1, 0]) == 1
    assert score_task("binary", np.array([math.inf, -math.inf]), [1, 0])["log_loss"] == 0


def test_heavy_ones_do_not_blur_auc():
    """Zeros that weigh 1e-16 of the ones: the same AUC as where all weigh 1."""
    logits, labels, _, _ = binary(0, ties=True)
    weights = np.where(labels == 1, 1e8 / 3, 1e-8 / 3)
    found = score_task("binary", logits, labels, weights)
    assert found["auc"] == pytest.approx(reference.roc_auc_score(labels, logits), rel=1e-9)
    assert found["pr_auc"] == pytest.approx(1)


def test_labels_of_no_weight_do_not_blur_r2():
    """Most lie far from those that count, as 0 where a time is not known: centred there, squares would cancel."""
    random = np.random.default_rng(0)
    times = 1.7e9 + 1_000 * random.standard_normal(160)
    labels, weights = np.concatenate([np.zeros(240), times]), np.repeat([0.0, 1.0], [240, 160])
    values = labels + 600 * random.standard_normal(400)
    wanted = reference.r2_score(labels, values, sample_weight=weights)
    assert 0.4 < wanted < 0.8
    assert metrics.r2(values, labels, weights) == pytest.approx(wanted, rel=1e-6)
    assert score_task("regression", values, labels, weights)["r2"] == pytest.approx(wanted, rel=1e-6)


def test_an_offset_does_not_blur_r2():
    random = np.random.default_rng(0)
    labels = random.normal(size=100)
    values = labels + random.normal(size=100)
    assert metrics.r2(values + 1e8, labels + 1e8) == pytest.approx(metrics.r2(values, labels), rel=1e-6)


UNDEFINED = {
    "one class": ([0.1, 0.2, 0.3], [1, 1, 1]),
    "the other class": ([0.1, 0.2, 0.3], [0, 0, 0]),
    "no rows": ([], []),
    "NaN": ([math.nan, 1, 2], [0, 1, 0]),
}


@pytest.mark.parametrize("case", UNDEFINED)
def test_undefined_is_nan_and_never_an_error(case):
    scores, labels = (np.array(values, dtype=np.float32) for values in UNDEFINED[case])
    groups = np.zeros(len(labels), np.int64)
    for grouped in (None, groups, np.arange(len(labels))):
        for name in ("auc", "ne", "gauc"):
            assert math.isnan(score_task("binary", scores, labels, None, grouped).get(name, math.nan))
        low, high = bootstrap("binary", scores, labels, None, grouped, replicates=5)["auc"]
        assert math.isnan(low)
        assert math.isnan(high)
    logits = np.stack([scores, -scores], axis=1)
    assert math.isnan(score_task("multiclass", logits, labels)["auc"])
    bootstrap("multiclass", logits, labels, replicates=5)
    none = bootstrap("binary", scores, labels, replicates=0)
    assert none.keys() == score_task("binary", scores, labels).keys()
    assert np.isnan(list(none.values())).all()


def test_one_prediction_that_is_no_number_leaves_no_metric_of_its_rows():
    labels, groups = np.array([0, 1, 0, 1, 0, 1]), np.array([3, 3, 5, 5, 8, 8])
    for row in range(6):
        logits = np.arange(6.0)
        logits[row] = math.nan
        assert math.isnan(metrics.gauc(logits, labels, groups))
        found = score_task("binary", logits, labels, None, groups)
        assert all(math.isnan(found[name]) for name in set(found) - {"calibration"}), found
        logits = np.stack([np.arange(6.0), logits, np.zeros(6)], axis=1)
        found = score_task("multiclass", logits, labels)
        assert math.isnan(found["accuracy"])
        assert math.isnan(found["log_loss"])


@pytest.mark.parametrize("constant", [0.1, 1e9 / 3])
def test_r2_of_equal_labels_is_nan(constant):
    labels = np.full(7, constant)
    assert math.isnan(metrics.r2(labels + 1, labels))
    assert bootstrap("regression", labels + 1, labels)["rmse"] == pytest.approx((1, 1))


def test_every_metric_but_calibration_has_a_direction():
    logits, labels, _, groups = binary(0)
    names = set(score_task("binary", logits, labels, None, groups)) | set(score_task("regression", logits, labels))
    names |= set(score_task("multiclass", np.stack([logits, -logits], axis=1), labels))
    assert names - set(metrics.HIGHER_IS_BETTER) == {"calibration"}
    # Outputs that know more must be better in the direction told.
    better = logits + 2 * (labels - 0.5)
    for kind, pair in {"binary": (logits, better), "regression": (logits, (logits + labels) / 2)}.items():
        assert metrics.HIGHER_IS_BETTER[metrics.PRIMARY[kind]]
        worse, good = (score_task(kind, outputs, labels, None, groups) for outputs in pair)
        for name in set(worse) - {"calibration"}:
            assert (good[name] > worse[name]) == metrics.HIGHER_IS_BETTER[name], name


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("kind", ["binary", "regression", "multiclass"])
def test_bootstrap_equals_scoring_drawn_rows_one_replicate_at_a_time(kind, grouped):
    logits, labels, weights, groups = binary(7, ties=True)
    outputs = np.stack([logits, -logits, 0.1 * logits], axis=1) if kind == "multiclass" else logits
    units = np.unique(groups, return_inverse=True)[1] if grouped else np.arange(len(labels))
    random = np.random.default_rng(11)
    replicates = []
    for _ in range(50):
        drawn = random.integers(0, units.max() + 1, units.max() + 1)
        rows = np.concatenate([np.flatnonzero(units == unit) for unit in drawn])
        copies = np.concatenate([np.full((units == unit).sum(), copy) for copy, unit in enumerate(drawn)])
        again = copies if grouped else None
        replicates.append(score_task(kind, outputs[rows], labels[rows], weights[rows], again))
    found = bootstrap(kind, outputs, labels, weights, groups if grouped else None, replicates=50, seed=11, level=0.8)
    sizes = np.bincount(units, weights)
    mixed = [len(np.unique(labels[units == unit])) > 1 for unit in np.unique(units)]
    for name, interval in found.items():
        of_units = sizes[mixed] if name == "gauc" else sizes
        many = of_units.sum() ** 2 / (of_units**2).sum()
        expected = np.quantile([replicate[name] for replicate in replicates], expanded(0.8, many))
        assert_allclose(interval, expected, rtol=1e-9, err_msg=name)


def test_bootstrap_is_the_same_in_blocks_of_any_size(monkeypatch):
    logits, labels, weights, groups = binary(8)
    whole = bootstrap("binary", logits, labels, weights, groups, replicates=37)
    monkeypatch.setattr(metrics, "BLOCK", 1000)
    for name, interval in bootstrap("binary", logits, labels, weights, groups, replicates=37).items():
        assert interval == pytest.approx(whole[name], rel=1e-12)
    assert bootstrap("binary", logits, labels, weights, groups, replicates=37, seed=1)["auc"] != whole["auc"]


@pytest.mark.parametrize(("level", "fewest"), [(0.95, 20), (0.9, 10), (0.8, 5)])
def test_draws_of_which_none_may_be_left_out_are_no_interval(level, fewest):
    """The middle 95 % of one draw is that draw, and no interval."""
    values, labels = np.random.default_rng(0).standard_normal((2, 40))
    for replicates in (1, 2, fewest - 1, fewest):
        low, high = bootstrap("regression", values, labels, replicates=replicates, level=level)["mae"]
        assert np.isnan([low, high]).tolist() == [replicates < fewest] * 2, replicates
        assert low < high or replicates < fewest
        paired = metrics.paired_bootstrap("regression", values, -values, labels, replicates=replicates, level=level)
        assert np.isnan(paired["mae"]).tolist() == [replicates < fewest] * 2, replicates


def mixed_groups(random, mixed, groups=100, rows=6):
    """Scores, labels and groups; so many of the groups have a label of 1 beside those of 0."""
    labels = np.zeros((groups, rows))
    labels[:mixed, 0] = 1
    return random.normal(size=groups * rows) + labels.ravel(), labels.ravel(), np.repeat(np.arange(groups), rows)


def test_gauc_has_an_interval_of_the_groups_it_is_the_mean_of():
    """Groups of one class tell nothing of it: of 100 with five mixed ones there are five, too few for an interval."""
    random = np.random.default_rng(0)
    for mixed, known in ((5, False), (6, True)):
        scores, labels, groups = mixed_groups(random, mixed)
        found = bootstrap("binary", scores, labels, None, groups)
        paired = metrics.paired_bootstrap("binary", scores, -scores, labels, None, groups)
        for one in (found, paired):
            assert np.isfinite(one["gauc"]).tolist() == [known] * 2
            assert np.isfinite(one["log_loss"]).all()
    truth = NormalDist().cdf(0.5**0.5)
    held = 0
    for seed in range(200):
        scores, labels, groups = mixed_groups(random, 8)
        low, high = bootstrap("binary", scores, labels, None, groups, seed=seed)["gauc"]
        held += low <= truth <= high
    assert held / 200 > 0.9


def test_replicates_that_define_nothing_are_left_out():
    # Four positives in forty rows: one replicate in seventy has none.
    falling = np.arange(40.0, 0, -1)
    assert bootstrap("binary", falling, falling > 36)["auc"] == (1, 1)
    # Nine equal labels of twelve: one replicate in thirty has no others, whose variance is 0 but for rounding.
    labels = np.array([0.1] * 9 + [0.37, 0.5, 0.73])
    low, high = bootstrap("regression", labels + 0.01, labels, np.arange(3, 15) / 10, replicates=500, level=0.9)["r2"]
    assert -1 < low < high < 1


def test_what_few_rows_or_groups_say_has_no_interval():
    def ends(scores, labels, groups=None):
        other = -np.asarray(scores)
        paired = metrics.paired_bootstrap("binary", scores, other, labels, None, groups)
        return [bootstrap("binary", scores, labels, None, groups), paired]

    falling, weights = np.arange(100.0, 0, -1), np.arange(100) < 5
    for found in ends(falling, falling > 99):  # one positive: a third of the replicates have none
        assert np.isnan([found[name] for name in ("auc", "ne", "calibration", "pr_auc")]).all()
        assert np.isfinite(found["log_loss"]).all()
    for some, told in ((5, False), (6, True)):
        labels = falling[:some] % 2
        for found in (*ends(falling[:some], labels), *ends(falling, falling % 2, np.arange(100) % some)):
            assert np.isfinite(found["log_loss"]).all() == told
    assert np.isnan(bootstrap("regression", falling, falling + 1, weights)["mae"]).all()


def expanded(level, units):
    """Both ends of Hesterberg's expanded percentile interval."""
    low = stats.norm.cdf(stats.t.ppf((1 - level) / 2, units - 1) * math.sqrt(units / (units - 1)))
    return low, 1 - low


def coverage(data, truth, sets=400, **options):
    """Share of simulated data sets whose interval of the AUC holds the true one."""
    random = np.random.default_rng(0)
    held = 0
    for seed in range(sets):
        logits, labels, groups = data(random)
        low, high = bootstrap("binary", logits, labels, groups=groups, seed=seed, **options)["auc"]
        held += low <= truth <= high
    return held / sets


def test_intervals_cover_the_true_auc_as_often_as_they_say():
    # Scores N(0, 1) and N(1, 1): AUC = Phi(1 / sqrt 2).
    def rows(random):
        labels = random.random(300) < 0.4
        return random.normal(size=300) + labels, labels, None

    truth = NormalDist().cdf(1 / math.sqrt(2))
    for level in (0.95, 0.7):
        error = 3 * math.sqrt(level * (1 - level) / 400)
        assert coverage(rows, truth, level=level) == pytest.approx(level, abs=error)


def test_intervals_over_groups_cover_where_those_over_rows_do_not():
    # 60 users of 5 rows; label and an offset N(0, 1) are the user's: AUC = Phi(1 / sqrt(2 (1 + 1))).
    def users(random):
        groups = np.arange(60).repeat(5)
        labels = (random.random(60) < 0.5).repeat(5)
        return random.normal(size=300) + random.normal(size=60).repeat(5) + labels, labels, groups

    def ungrouped(random):
        return *users(random)[:2], None

    truth = NormalDist().cdf(0.5)
    assert coverage(users, truth) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 400))
    assert coverage(ungrouped, truth, sets=100) < 0.85


@pytest.mark.parametrize(("groups", "least"), [(6, 0.9), (10, 0.93), (30, 0.92)])
def test_intervals_over_few_groups_cover_the_truth_as_often_as_they_say(groups, least):
    """Groups of 4 rows, all of one error 9 + N(0, 1): the MAE is 9. Plain percentiles hold it in .86 and .90."""
    random, held, of_row = np.random.default_rng(2), 0, np.arange(groups).repeat(4)
    for seed in range(400):
        errors = 9 + random.normal(size=groups)[of_row]
        low, high = bootstrap("regression", errors, np.zeros(len(of_row)), groups=of_row, seed=seed)["mae"]
        held += low <= 9 <= high
    assert least < held / 400 < 0.985


@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_cover_the_truth_where_a_few_rows_or_groups_outweigh_the_others(grouped):
    """Errors of 9 + N(0, 1) of 30 rows or groups of long-tailed weights or sizes: .91 and .925 by their count."""
    random, held = np.random.default_rng(4), 0
    for seed in range(400):
        tail = np.exp(2 * random.normal(size=30))
        of_row = np.arange(30).repeat(np.ceil(tail).astype(int) if grouped else 1)
        errors = 9 + random.normal(size=30)[of_row]
        options = {"groups": of_row} if grouped else {"weights": tail}
        low, high = bootstrap("regression", errors, np.zeros(len(of_row)), seed=seed, **options)["mae"]
        held += low <= 9 <= high
    assert 0.94 < held / 400 < 0.985


def test_infinite_predictions_have_metrics_and_intervals_without_a_warning() -> None:
    """A regression that diverged (warnings are errors here)."""
    labels = np.arange(20.0)
    values = np.where(labels < 3, np.inf, labels)
    assert score_task("regression", values, labels)["rmse"] == np.inf
    large = np.where(labels < 3, 1e200, labels)  # their squares are infinite
    assert score_task("regression", large, labels)["r2"] == -np.inf
    assert np.isfinite(score_task("regression", large, labels)["mae"])
    assert not np.isfinite(bootstrap("regression", large, labels, replicates=50)["rmse"][1])
    low, high = bootstrap("regression", values, labels, replicates=50)["rmse"]
    assert not np.isfinite(high)
    assert low >= 0 or np.isnan(low)
