"""How well outputs fit labels: exact, weighted, one task at a time, with bootstrap intervals.

Shapes: R rows, K classes, B weightings of the same rows. Outputs are logits (R,) of a binary task, logits (R, K) of a
multiclass task, or values (R,) in the label's own unit of a regression. Labels (R,) are 0/1, class indices or values;
rows with an unknown label are left out by the caller. Weights (R,) are not negative; none means 1. What is
undefined (one class only, no rows, NaN outputs) is NaN; nothing here raises.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

PRIMARY = {"binary": "auc", "regression": "r2", "multiclass": "auc"}
"""The metric by which weights of each kind of task are chosen."""
LOSS = {"binary": "log_loss", "regression": "rmse", "multiclass": "log_loss"}
"""The metric that says how far off predictions are where labels are all alike, and the main metric is undefined."""

HIGHER_IS_BETTER: dict[str, bool] = {
    "auc": True,
    "log_loss": False,
    "ne": False,
    "pr_auc": True,
    "gauc": True,
    "rmse": False,
    "mae": False,
    "r2": True,
    "accuracy": True,
}
"""Direction of each metric. Calibration has none: its best value is 1."""
POSSIBLE = {
    **dict.fromkeys(("auc", "pr_auc", "gauc", "accuracy"), (0.0, 1.0)),
    **dict.fromkeys(("log_loss", "ne", "rmse", "mae"), (0.0, math.inf)),
    "r2": (-math.inf, 1.0),
}
"""Between what values each metric lies."""
BY_KIND = {
    "binary": ("auc", "log_loss", "ne", "pr_auc", "gauc"),
    "regression": ("r2", "rmse", "mae"),
    "multiclass": ("auc", "accuracy", "log_loss"),
}
"""Those that a task of each kind has; gauc where there are groups."""

FEWEST = 6
"""Rows, groups or runs that a 95 % interval wants: all that n of them span holds the median of what they are drawn from
in 1 - 2^(1 - n) of the cases, of five in less than 95 %."""
BLOCK = 2**18
"""Weights held at once by the bootstrap: 2 MB, so that its passes stay in the cache."""


class _Curve:
    """Rows of a binary task sorted once by falling score, to be counted under many weightings."""

    def __init__(self, scores: ArrayLike, labels: ArrayLike) -> None:
        scores, labels = _floats(scores), _floats(labels)
        self.order = np.argsort(-scores)
        falling = scores[self.order]
        # NaN spreads from here into every sum, so that a diverged model scores NaN and not some number.
        self.positive = np.where(np.isnan(falling), np.nan, labels[self.order])
        self.ends = _last_of_equal(falling)

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Weights (..., R) -> weight of positives and of negatives at or above each distinct score, (..., G) both."""
        weights = weights[..., self.order]
        of_ones = weights * self.positive
        positives = np.cumsum(of_ones, axis=-1)[..., self.ends]
        # summed by themselves: beside far heavier positives they would be what is left of rounding
        return positives, np.cumsum(weights - of_ones, axis=-1)[..., self.ends]


def _auc(positives: Floats, negatives: Floats) -> Floats:
    """Area under the curve through the counts (..., G), ties joined by straight lines -> (...)."""
    heights = positives.copy()
    heights[..., 1:] += positives[..., :-1]  # twice the mean of both ends of a step
    area = np.einsum("...g,...g->...", _steps(negatives), heights)
    return _ratio(area, 2 * _total(positives) * _total(negatives))


def _pr_auc(positives: Floats, negatives: Floats) -> Floats:
    """Mean precision over the positives, counts (..., G) -> (...)."""
    precision = np.divide(positives, positives + negatives, out=np.zeros_like(positives), where=positives != 0)
    return _ratio(np.einsum("...g,...g->...", _steps(positives), precision), _total(positives))


def auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Chance that a positive row outscores a negative one, a tie counting half; NaN when there is one class only.

    Scores (R,) in any unit that keeps their order, or multiclass logits (R, K): then the mean over classes of
    one-against-rest AUC of the softmax, classes without (or with only) positive rows left out. O(R log R), exact.
    """
    weights = _weights(weights, labels)
    if np.ndim(scores) == 1:
        return float(_auc(*_Curve(scores, labels).counts(weights)))
    return float(_macro([_auc(*curve.counts(weights)) for curve in _one_vs_rest(scores, labels)]))


def pr_auc(scores: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Average precision: mean over positive rows of the precision at their score, without interpolation."""
    return float(_pr_auc(*_Curve(scores, labels).counts(_weights(weights, labels))))


def gauc(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean of the AUC within each group, weighted by the group's impressions (Zhu et al. 2017, KDD).

    Groups (R,) integers; a group's impressions are the sum of its weights, groups with one class are skipped.
    """
    aucs, impressions = _group_aucs(scores, labels, groups, _weights(weights, labels))
    return float(_ratio((aucs * impressions).sum(), impressions.sum()))


def log_loss(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean negative log likelihood in nats, from binary (R,) or multiclass (R, K) logits of any size."""
    return _mean(_losses(logits, labels), _weights(weights, labels))


def normalised_entropy(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Log loss over that of predicting the base rate of these rows (He et al. 2014); below 1 is of use."""
    weights = _weights(weights, labels)
    base = _ratio((_floats(labels) * weights).sum(), weights.sum())
    return float(_ratio(np.asarray(log_loss(logits, labels, weights)), _entropy(base)))


def calibration(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Predicted positives over actual ones: above 1 is over-prediction."""
    weights = _weights(weights, labels)
    return float(_ratio((_sigmoid(logits) * weights).sum(), (_floats(labels) * weights).sum()))


def total_calibration(values: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Predicted total of amounts over the actual one: above 1 is over-prediction. For labels of 0 or more."""
    weights = _weights(weights, labels)
    return float(_ratio((_floats(values) * weights).sum(), (_floats(labels) * weights).sum()))


def rmse(values: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Root of the mean squared error, in the label's unit."""
    return float(np.sqrt(_mean((_floats(values) - _floats(labels)) ** 2, _weights(weights, labels))))


def mae(values: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean absolute error, in the label's unit."""
    return _mean(np.abs(_floats(values) - _floats(labels)), _weights(weights, labels))


def r2(values: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of the labels' variance explained, at most 1; NaN where all labels are equal."""
    return score_task("regression", values, labels, weights)["r2"]


def accuracy(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of rows whose largest logit (R, K) is the label's class."""
    return _mean(_hits(logits, labels), _weights(weights, labels))


def score_task(
    kind: str,
    outputs: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
) -> dict[str, float]:
    """Every metric of a task of ``kind`` by name.

    Binary: auc, log_loss, ne (normalised entropy), calibration, pr_auc and, with groups (R,), gauc.
    Regression: rmse, mae, r2 and, of labels that are all 0 or more, calibration. Multiclass: accuracy, log_loss, auc.
    """
    units = _Units(_weights(weights, labels), groups)
    with np.errstate(invalid="ignore", over="ignore"):
        metrics = _scorer(kind, outputs, labels, units, once=True)(np.ones((1, units.count)))
    return {name: float(value[0]) for name, value in metrics.items()}


def bootstrap(
    kind: str,
    outputs: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    replicates: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile interval of every metric of ``score_task``, by drawing rows or, with two groups or more, groups.

    Rows of one user are not independent, hence the groups. Of few it is as wide as Student's t asks (``widened``),
    that of gauc of few groups with both classes; unequal weights and sizes of groups make them fewer (``_worth``).
    NaN for fewer than ``FEWEST`` of weight above 0, for fewer than 20 replicates (at 95 %), and where more of them
    leave a metric undefined than the interval may leave out: what the others say is no interval then.
    Scores are sorted once; time is O(replicates R), memory that of ``BLOCK`` weights or one replicate.
    """
    units, (drawn,) = _replicates(kind, [outputs], labels, weights, groups, replicates, seed)
    return {name: _interval(values, level, units[name]) for name, values in drawn.items()}


def paired_bootstrap(
    kind: str,
    a: ArrayLike,
    b: ArrayLike,
    labels: ArrayLike,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    *,
    replicates: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile interval of every metric of outputs ``b`` less that of outputs ``a``, drawn as in ``bootstrap``.

    Each replicate scores both on the same draw: what the rows do to both alike cancels.
    """
    units, (drawn_a, drawn_b) = _replicates(kind, [a, b], labels, weights, groups, replicates, seed)
    return {name: _interval(drawn_b[name] - drawn_a[name], level, units[name]) for name in drawn_a}


def widened(level: float, units: float) -> float:
    """The level of a percentile interval of draws of so many units that holds the truth as often as ``level`` says.

    What is drawn anew from n varies by (n - 1) / n of what n vary by, and its quantiles are those of a normal law where
    Student's t has longer ends: of the mean of ten 95 % hold it in 90 % (Hesterberg 2015, expanded percentiles).
    """
    from scipy.special import ndtr, stdtrit

    half = stdtrit(units - 1, (1 + level) / 2) * (units / (units - 1)) ** 0.5
    return float(2 * ndtr(half) - 1)


def _replicates(
    kind: str,
    outputs: Sequence[ArrayLike],
    labels: ArrayLike,
    weights: ArrayLike | None,
    groups: ArrayLike | None,
    replicates: int,
    seed: int,
) -> tuple[dict[str, float], list[dict[str, Floats]]]:
    """How many units those of weight above 0 are worth, of gauc those of both classes, and metrics (replicates,), both
    by name, for each of several outputs scored on the same draws."""
    replicates = max(1, replicates)  # one draw tells the names, and no interval
    units = _Units(_weights(weights, labels), groups)
    block = max(1, BLOCK // max(1, np.size(labels)))
    with np.errstate(invalid="ignore", over="ignore"):
        scores = [_scorer(kind, one, labels, units) for one in outputs]
        blocks = [[score(drawn) for score in scores] for drawn in _draws(units.count, replicates, seed, block)]
    many = dict.fromkeys(blocks[0][0], units.weighted()) if blocks else {}
    if "gauc" in many and units.of_row is not None:
        many["gauc"] = units.mixed(_floats(labels))
    return {name: _worth(those) for name, those in many.items()}, [
        {
            name: np.concatenate([block[name] for block in found])
            if len(those) >= FEWEST
            else np.full(replicates, np.nan)
            for name, those in many.items()
        }
        for found in zip(*blocks, strict=True)
    ]


class _Units:
    """Weighted rows, and what is drawn as one: each row, or each of U groups of rows (two groups or more)."""

    def __init__(self, weights: Floats, groups: ArrayLike | None) -> None:
        self.weights = weights
        self.groups = groups
        self.of_row: NDArray[np.intp] | None = None
        self.count = len(weights)
        if groups is not None:
            found, inverse = np.unique(np.asarray(groups), return_inverse=True)
            if len(found) > 1:
                self.of_row, self.count = inverse, len(found)

    def weighted(self) -> Floats:
        """Weights of the units that have one above 0."""
        found = self.sums(np.ones(len(self.weights)))[:, 0]
        return found[found > 0]

    def mixed(self, labels: Floats) -> Floats:
        """Weights of the groups of both classes, from labels 0/1 (R,)."""
        found = self.sums(labels, 1 - labels)
        return found[(found > 0).all(axis=1)].sum(axis=1)

    def spread(self, drawn: Floats) -> Floats:
        """Times each unit was drawn (B, U) -> weights of the rows (B, R)."""
        return (drawn if self.of_row is None else drawn[:, self.of_row]) * self.weights

    def sums(self, *columns: Floats) -> Floats:
        """Weighted sum of S columns (R,) in each unit, (U, S): ``drawn @ sums`` is their sum in each replicate."""
        if self.of_row is None:
            return np.stack(columns, axis=1) * self.weights[:, None]
        return np.stack([np.bincount(self.of_row, column * self.weights, self.count) for column in columns], axis=1)


_Score = Callable[[Floats], dict[str, Floats]]
"""Times each unit was drawn (B, U) -> metrics (B,) by name."""


def _scorer(kind: str, outputs: ArrayLike, labels: ArrayLike, units: _Units, *, once: bool = False) -> _Score:
    """``once``: it will be called a single time, and need not keep what it sorted."""
    if kind == "binary":
        return _score_binary(outputs, labels, units)
    if kind == "regression":
        return _score_regression(outputs, labels, units)
    return _score_multiclass(outputs, labels, units, once)


def _score_binary(logits: ArrayLike, labels: ArrayLike, units: _Units) -> _Score:
    curve = _Curve(logits, labels)
    sums = units.sums(_losses(logits, labels), _sigmoid(logits), _floats(labels), np.ones(len(units.weights)))
    grouped = None
    if units.groups is not None and units.of_row is not None:
        grouped = _group_aucs(logits, labels, units.groups, units.weights)

    def score(drawn: Floats) -> dict[str, Floats]:
        loss, predicted, positive, total = (drawn @ sums).T
        counts = curve.counts(units.spread(drawn))
        metrics = {
            "auc": _auc(*counts),
            "log_loss": _ratio(loss, total),
            "ne": _ratio(_ratio(loss, total), _entropy(_ratio(positive, total))),
            "calibration": _ratio(predicted, positive),
            "pr_auc": _pr_auc(*counts),
        }
        if grouped is not None:  # a group drawn twice is two groups of the same AUC
            aucs, impressions = grouped
            metrics["gauc"] = _ratio(drawn @ (aucs * impressions), drawn @ impressions)
        elif units.groups is not None:
            metrics["gauc"] = metrics["auc"]
        return metrics

    return score


def _score_regression(values: ArrayLike, labels: ArrayLike, units: _Units) -> _Score:
    values, labels = _floats(values), _floats(labels)
    # Centred, as sum y^2 - (sum y)^2 / n would cancel; by the median, which is exact for constant labels.
    counted = labels[units.weights > 0]
    centred = labels - (np.median(counted) if len(counted) else 0)
    error = values - labels
    sums = units.sums(error**2, np.abs(error), centred, centred**2, np.ones(len(labels)), values, labels)
    # a label of 0 that was scaled in float32 and back may be a little less
    amounts = bool(np.all(labels >= -1e-5 * np.abs(labels).mean())) if len(labels) else True

    def score(drawn: Floats) -> dict[str, Floats]:
        squared, absolute, first, second, total, predicted, observed = (drawn @ sums).T
        around_mean = second - _ratio(first**2, total)
        around_mean = np.where(around_mean < 1e-12 * second, 0, around_mean)  # equal labels, up to rounding
        metrics = {
            "rmse": np.sqrt(_ratio(squared, total)),
            "mae": _ratio(absolute, total),
            "r2": 1 - _ratio(squared, around_mean),
        }
        if amounts:  # other totals may be anything, 0 included
            metrics["calibration"] = _ratio(predicted, observed)
        return metrics

    return score


def _score_multiclass(logits: ArrayLike, labels: ArrayLike, units: _Units, once: bool) -> _Score:
    curves = _one_vs_rest(logits, labels)
    if not once:
        curves = list(curves)  # 24 bytes for each row and class
    sums = units.sums(_hits(logits, labels), _losses(logits, labels), np.ones(len(units.weights)))

    def score(drawn: Floats) -> dict[str, Floats]:
        hits, loss, total = (drawn @ sums).T
        weights = units.spread(drawn)
        return {
            "accuracy": _ratio(hits, total),
            "log_loss": _ratio(loss, total),
            "auc": _macro([_auc(*curve.counts(weights)) for curve in curves]),
        }

    return score


def _draws(units: int, replicates: int, seed: int, block: int) -> Iterator[Floats]:
    """How often each unit is drawn in each of up to ``block`` replicates, (B, U): U draws with replacement."""
    random = np.random.default_rng(seed)
    for start in range(0, replicates, block):
        size = min(block, replicates - start)
        drawn = random.integers(0, max(1, units), (size, units)) + units * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * units).reshape(size, units).astype(np.float64)


def _group_aucs(scores: ArrayLike, labels: ArrayLike, groups: ArrayLike, weights: Floats) -> tuple[Floats, Floats]:
    """AUC and impressions of every group by rising group value; both 0 for a group with one class."""
    scores, labels, groups = _floats(scores), _floats(labels), np.asarray(groups)
    if len(scores) == 0:
        return np.zeros(0), np.zeros(0)
    order = np.lexsort((-scores, groups))
    scores, groups, weights = scores[order], groups[order], weights[order]
    positive = np.where(np.isnan(scores), np.nan, labels[order])
    ends = np.flatnonzero(np.append((groups[1:] != groups[:-1]) | (scores[1:] != scores[:-1]), True))  # of ties, (G,)
    lasts = np.flatnonzero(np.append(groups[ends][1:] != groups[ends][:-1], True))  # of those the last of its group
    firsts = np.append(0, lasts[:-1] + 1)
    positives = np.cumsum(weights * positive)[ends]
    negatives = np.cumsum(weights * (1 - positive))[ends]  # no subtraction: a group without any must have exactly 0
    before = np.append(0.0, positives[lasts[:-1]]).repeat(lasts - firsts + 1)  # positives of the groups before
    heights = 2 * (positives - before) - _steps(positives)
    areas = np.add.reduceat(_steps(negatives) * heights, firsts)
    pairs = 2 * _steps(positives[lasts]) * _steps(negatives[lasts])
    mixed = pairs != 0
    impressions = np.where(mixed, _steps((positives + negatives)[lasts]), 0)
    return np.divide(areas, pairs, out=np.zeros_like(areas), where=mixed), impressions


def _one_vs_rest(logits: ArrayLike, labels: ArrayLike) -> Iterable[_Curve]:
    """Of each class that a label has: others have no AUC. Of no rows that of the first class."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    largest, log_total = _log_sums(logits)
    found = np.unique(labels).astype(np.intp) if len(labels) else [0]
    return (_Curve(_floats(logits[:, k]) - largest - log_total, labels == k) for k in found)


def _macro(aucs: list[Floats]) -> Floats:
    """Mean over the classes whose AUC is defined."""
    stacked = np.stack(aucs)
    defined = ~np.isnan(stacked)
    return _ratio(np.where(defined, stacked, 0).sum(axis=0), defined.sum(axis=0))


def _losses(logits: ArrayLike, labels: ArrayLike) -> Floats:
    """Negative log likelihood of each row in nats, (R,)."""
    if np.ndim(logits) == 1:
        return np.logaddexp(0, (1 - 2 * _floats(labels)) * _floats(logits))
    logits = np.asarray(logits)
    largest, log_total = _log_sums(logits)
    of_label = _floats(logits[np.arange(len(logits)), np.asarray(labels).astype(np.intp)])
    return -(of_label - largest - log_total)


def _log_sums(logits: NDArray[Any]) -> tuple[Floats, Floats]:
    """What makes log probabilities of logits (R, K): logit - largest - log sum exp(logit - largest), (R,) both.

    Few rows at a time: of many classes a copy in float64 would take more memory than all else.
    """
    largest = _floats(logits.max(axis=1))
    log_total = np.empty(len(logits))
    rows = max(1, BLOCK // logits.shape[1])
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        log_total[part] = np.log(np.exp(_floats(logits[part]) - largest[part, None]).sum(axis=1))
    return largest, log_total


def _hits(logits: ArrayLike, labels: ArrayLike) -> Floats:
    logits = np.asarray(logits)
    hits = logits.argmax(axis=1) == np.asarray(labels)
    return np.where(np.isnan(logits.max(axis=1)), np.nan, hits)


def _sigmoid(logits: ArrayLike) -> Floats:
    return np.exp(-np.logaddexp(0, -_floats(logits)))


def _entropy(rate: Floats) -> Floats:
    """Log loss of predicting the base rate, in nats; 0 for one class."""
    other = 1 - rate
    return -(rate * np.log(np.where(rate > 0, rate, 1)) + other * np.log(np.where(other > 0, other, 1)))


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)


def _weights(weights: ArrayLike | None, labels: ArrayLike) -> Floats:
    return np.ones(np.shape(labels)[0]) if weights is None else _floats(weights)


def _mean(values: Floats, weights: Floats) -> float:
    return float(_ratio((values * weights).sum(), weights.sum()))


def _ratio(above: Floats, below: Floats) -> Floats:
    """``above / below``, NaN where that is undefined."""
    below = np.asarray(below, dtype=np.float64)
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below != 0)


def _steps(cumulative: Floats) -> Floats:
    """The amounts that were summed up, (..., G)."""
    return np.diff(cumulative, axis=-1, prepend=0)


def _total(cumulative: Floats) -> Floats:
    return cumulative[..., -1] if cumulative.shape[-1] else np.zeros(cumulative.shape[:-1])


def _last_of_equal(ordered: NDArray[Any]) -> NDArray[np.intp]:
    """Index of the last of each run of equal values."""
    return np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)[: len(ordered)])


def _worth(weights: Floats) -> float:
    """As many units of one weight as vary as much as these (n,) do: (sum w)^2 / sum w^2 (Kish 1965)."""
    if not len(weights):
        return 0.0
    shares = weights / weights.max()
    return float(shares.sum() ** 2 / (shares**2).sum())


def _interval(values: Floats, level: float, units: float) -> tuple[float, float]:
    """The middle ``level``, ``widened``, of the values that are defined; NaN where more than the rest are not, or where
    the rest of so few is less than one."""
    defined = values[~np.isnan(values)]
    too_few = round(len(values) * (1 - level), 9) < 1
    if too_few or len(defined) < level * len(values):
        return float("nan"), float("nan")
    level = widened(level, max(2.0, units))  # one unit that outweighs all others has no t
    with np.errstate(invalid="ignore"):  # between two infinite values there is none
        low, high = np.quantile(defined, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
