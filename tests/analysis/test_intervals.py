"""Student-t intervals against published quantiles, SciPy's tests and simulated truth."""

import math
import random

import numpy as np
import pytest
from scipy import stats

from multigate.analysis.intervals import mtl_gain, paired_difference, resampled, summary
from multigate.errors import ExperimentError

# Two-sided 95 % quantiles of Student's t as printed in tables, by degrees of freedom.
T_TABLE = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 29: 2.045}


@pytest.mark.parametrize("freedom", T_TABLE)
def test_the_half_width_is_that_of_the_t_table(freedom):
    n = freedom + 1
    found = summary([float(i) for i in range(n)])
    sd = math.sqrt(n * (n + 1) / 12)  # of 0, 1, ..., n - 1
    assert (found.mean, found.sd, found.n) == pytest.approx(((n - 1) / 2, sd, n))
    assert (found.high - found.low) / 2 == pytest.approx(T_TABLE[freedom] * sd / math.sqrt(n), rel=1e-3)
    assert (found.high + found.low) / 2 == pytest.approx(found.mean)


def test_one_value_has_a_mean_only():
    found = summary([0.7])
    assert (found.mean, found.n) == (0.7, 1)
    assert all(math.isnan(value) for value in (found.sd, found.low, found.high))
    assert not found.clear


@pytest.mark.parametrize("values", [[0.7, 0.7], [0.1] * 3, [0.9 - 0.8, 0.8 - 0.7], [-0.2] * 20, [0.0, 0.0]])
def test_equal_values_do_not_tell_how_seeds_differ(values):
    """An AUC of few rows takes few values: two seeds that have the same one are no proof of anything."""
    found = summary(values)
    assert found.mean == pytest.approx(values[0])
    assert found.sd == 0
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert not found.clear


@pytest.mark.parametrize(("values", "mean"), [([0.5, math.inf], math.inf), ([-math.inf], -math.inf)])
def test_an_infinite_value_has_no_interval(values, mean):
    found = summary(values)
    assert found.mean == mean
    assert all(math.isnan(value) for value in (found.sd, found.low, found.high))
    assert not found.clear


@pytest.mark.parametrize("values", [[], [0.5, math.nan, 0.7], [math.inf, -math.inf]])
def test_no_values_or_an_undefined_one_give_nan(values):
    found = summary(values)
    assert found.n == len(values)
    assert all(math.isnan(value) for value in found[:4])


def test_intervals_cover_the_mean_as_often_as_they_say():
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        found = summary([draw.gauss(0.9, 0.01) for _ in range(4)], level=0.9)
        held += found.low <= 0.9 <= found.high
    assert held / 2000 == pytest.approx(0.9, abs=3 * math.sqrt(0.9 * 0.1 / 2000))


def test_paired_difference_equals_scipys_paired_test():
    draw = random.Random(1)
    seeds = [draw.gauss(0, 1) for _ in range(8)]
    a = [seed + draw.gauss(0.1, 0.05) for seed in seeds]
    b = [seed + draw.gauss(0.0, 0.05) for seed in seeds]
    found = paired_difference(a, b, level=0.9)
    expected = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.clear
    assert paired_difference(b, a).clear
    # What the seeds share would hide the difference from an unpaired look.
    assert not summary([x - b[i - 1] for i, x in enumerate(a)], level=0.9).clear


def test_a_gain_is_positive_whichever_way_the_metric_points():
    better, worse = [0.92, 0.93, 0.95], [0.90, 0.92, 0.91]
    assert mtl_gain(better, worse, higher_is_better=True).mean == pytest.approx(0.07 / 3)
    assert mtl_gain(worse, better, higher_is_better=False).mean == pytest.approx(0.07 / 3)
    assert mtl_gain(worse, better, higher_is_better=True).mean == pytest.approx(-0.07 / 3)


def test_unmatched_seeds_are_refused():
    with pytest.raises(ExperimentError, match="found 3 and 2 runs"):
        paired_difference([1, 2, 3], [1, 2])


def test_resampled_runs_of_one_seed_are_drawn_together():
    """Against a loop over draws: with both samples on the same seeds, what these share leaves no trace."""
    draw, random_ = random.Random(2), np.random.default_rng(5)
    seeds = [draw.gauss(0, 1) for _ in range(8)]
    a, b = ([seed + draw.gauss(0, 0.05) for seed in seeds] for _ in range(2))
    looped = []
    for picked in random_.integers(0, 8, (300, 8)).tolist():
        looped.append(sum(a[i] for i in picked) / 8 - sum(b[i] for i in picked) / 8)
    found = resampled(lambda one, other: one.mean(1) - other.mean(1), a, b, draws=300, seed=5, level=0.8)
    end = stats.norm.cdf(stats.t.ppf(0.1, 7) * math.sqrt(8 / 7))  # as wide as Student's t asks
    assert found == pytest.approx(np.quantile(looped, [end, 1 - end]))
    assert found[1] - found[0] < 0.1
    low, high = resampled(lambda one: one.mean(1), a, seed=5)
    assert high - low > 0.5
    assert low < sum(a) / 8 < high


@pytest.mark.parametrize(("runs", "least"), [(6, 0.91), (10, 0.93), (30, 0.92)])
def test_resampled_intervals_of_few_runs_cover_the_mean_as_often_as_they_say(runs, least):
    """Plain percentiles do in .86 of the cases of six runs, and in .90 of ten."""
    random, held = np.random.default_rng(3), 0
    for seed in range(500):
        low, high = resampled(lambda drawn: drawn.mean(1), random.normal(size=runs).tolist(), draws=500, seed=seed)
        held += low <= 0 <= high
    assert least < held / 500 < 0.98


@pytest.mark.parametrize(("runs", "told"), [(5, False), (6, True)])
def test_few_runs_give_no_resampled_interval(runs, told):
    many, few = [float(i) for i in range(8)], [float(i) for i in range(runs)]
    assert math.isfinite(resampled(lambda drawn: drawn.mean(1), few)[0]) == told
    assert math.isfinite(resampled(lambda one, other: one.mean(1), few, many[:runs])[1]) == told
