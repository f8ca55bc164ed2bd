"""Statistics over seeds: a metric's mean with its Student-t interval, alone or as a difference of matched runs."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multigate.errors import ExperimentError
from multigate.metrics import FEWEST, widened

Floats = NDArray[np.float64]
ROUNDING = 1e-12
"""Share of values within which they are the same."""


class Summary(NamedTuple):
    """A mean over ``n`` seeds, the standard deviation of one seed, and the interval of the mean."""

    mean: float
    sd: float
    low: float
    high: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def summary(values: Sequence[float], level: float = 0.95) -> Summary:
    """Mean, standard deviation (n - 1) and two-sided Student-t interval of ``values``, one from each seed.

    One value has no deviation and no interval, nor have infinite ones; none has no mean: NaN, as in any sum with a NaN
    in it. Nor have values that are all the same an interval: they do not tell how seeds differ, and it would have no
    width.
    """
    n = len(values)
    if n == 0 or any(math.isnan(value) for value in values):
        return Summary(math.nan, math.nan, math.nan, math.nan, n)
    mean = sum(values) / n if any(map(math.isinf, values)) else statistics.fmean(values)
    if n == 1 or not math.isfinite(mean):
        return Summary(mean, math.nan, math.nan, math.nan, n)
    from scipy.special import stdtrit

    sd = statistics.stdev(values, mean)
    if max(values) - min(values) <= ROUNDING * max(map(abs, values)):
        return Summary(mean, 0.0, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, (1 + level) / 2)) * sd / math.sqrt(n)
    return Summary(mean, sd, mean - half, mean + half, n)


def paired_difference(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Summary:
    """Summary of ``a - b``, seed by seed: what both runs of a seed share (data order, split) cancels out.

    Raises ``ExperimentError`` unless there is one value in ``b`` for each in ``a``.
    """
    if len(a) != len(b):
        raise ExperimentError(
            f"a paired difference wants the same seeds on both sides, found {len(a)} and {len(b)} runs; "
            "train the missing seeds or leave out those without a partner"
        )
    return summary([x - y for x, y in zip(a, b, strict=True)], level)


def resampled(
    statistic: Callable[..., Floats], *samples: Sequence[float], draws: int = 2_000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of a statistic of runs, by the bootstrap: runs are drawn again with replacement.

    Samples of one length are of the same seeds in order, and those are drawn: what two runs of a seed share cancels
    out of a difference or ratio. ``statistic`` takes one array (draws, runs) for each sample -> (draws,). Of few runs
    the interval is as wide as Student's t asks (``metrics.widened``); NaN for fewer than ``FEWEST``.
    """
    random = np.random.default_rng(seed)
    values = [np.asarray(sample, dtype=np.float64) for sample in samples]
    if min(map(len, values)) < FEWEST:
        return math.nan, math.nan
    picked = random.integers(0, len(values[0]), (draws, len(values[0])))
    found = statistic(*(value[picked] for value in values))
    level = widened(level, len(values[0]))
    low, high = np.quantile(found, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def share_interval(share: Floats, rows: Floats) -> tuple[Floats, Floats]:
    """The score interval at 95 % of a share seen in so many rows or runs (Wilson 1927): wide at 0 and at 1 too."""
    z = statistics.NormalDist().inv_cdf(0.975)
    centre = share + z**2 / (2 * rows)
    half = z * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    scale = 1 + z**2 / rows
    return np.clip((centre - half) / scale, 0, share), np.clip((centre + half) / scale, share, 1)


def mtl_gain(multi: Sequence[float], single: Sequence[float], higher_is_better: bool) -> Summary:
    """What a task gains from being trained with others, paired by seed (Tang et al. 2020, PLE, Eq. 11).

    ``multi - single`` of a metric, reversed for one of which less is better: positive is always a gain.
    """
    return paired_difference(multi, single) if higher_is_better else paired_difference(single, multi)
