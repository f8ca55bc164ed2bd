"""Calibration: from a tower's output to one that is true to size, along a rising curve through knots."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor, nn

from multigate.batch import TaskColumn, output_columns
from multigate.options import Options

Method = Literal["none", "platt", "isotonic"]
BINS = 100
"""Bins of equal weight that rows are gathered in before the isotonic fit: as many knots at most."""
FURTHEST = 1.0
"""How far, in logits, an isotonic curve is moved at most so that it is true in total."""

Floats = NDArray[np.float64]


class Curve(Options):
    """A rising curve over a logit: straight between its knots, and beyond them with slope ``slope``."""

    at: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    """Knots, increasing."""
    to: tuple[float, ...] = Field(default=(0.0,), min_length=1)
    """The calibrated logit at each."""
    slope: float = 1.0
    thinned: tuple[tuple[str, float], ...] = ()
    """Tasks ``given`` this one, and the share of their labels of 0 that was kept: rows with label 1 went with the rest,
    and this one's odds are divided by what was kept of them, which its children's probabilities tell."""

    @model_serializer(mode="wrap")
    def _without_empty_thinned(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = serialise(self)
        return values if self.thinned else {name: value for name, value in values.items() if name != "thinned"}

    @model_validator(mode="after")
    def _rises(self) -> Self:
        pairs = list(zip(self.at, self.at[1:], strict=False))
        if len(self.at) != len(self.to) or any(a >= b for a, b in pairs):
            raise ValueError("a curve wants as many values as knots, and knots that increase")
        return self

    def shifted(self, offset: float) -> "Curve":
        """The curve with ``offset`` added to every calibrated logit."""
        return self.with_(to=tuple(value + offset for value in self.to))

    def over(self, logits: Floats) -> Floats:
        """The calibrated logits (R,)."""
        beyond = logits - np.clip(logits, self.at[0], self.at[-1])
        return np.interp(logits, self.at, self.to) + self.slope * beyond


class Calibration(nn.Module):
    """Tower logits (B, O) -> calibrated logits (B, O), in float32; outputs without a curve pass unchanged."""

    knots: Tensor
    origin: Tensor
    value: Tensor
    slope: Tensor

    def __init__(self, tasks: Sequence[TaskColumn], curves: Mapping[str, Curve]) -> None:
        super().__init__()
        spans = output_columns(tasks)
        columns = [Curve()] * (spans[-1][1] if spans else 0)
        for task, (start, _) in zip(tasks, spans, strict=True):
            columns[start] = curves.get(task.name, Curve())
        most = max((len(curve.at) for curve in columns), default=1)
        knots = torch.full((len(columns), most), torch.inf)
        # segment i lies between knots i - 1 and i; the first and the last reach beyond all knots
        origin, value, slope = (torch.zeros(len(columns), most + 1) for _ in range(3))
        for i, curve in enumerate(columns):
            at, to = np.array(curve.at), np.array(curve.to)
            count = len(at)
            knots[i, :count] = torch.from_numpy(at)
            rises = [curve.slope, *(np.diff(to) / np.diff(at)), *[curve.slope] * (most + 1 - count)]
            nearest = [0, *range(count), *[count - 1] * (most - count)]  # an infinite logit is beyond infinite knots
            origin[i], value[i] = torch.from_numpy(at[nearest]), torch.from_numpy(to[nearest])
            slope[i] = torch.tensor(rises, dtype=torch.float64)
        places = {task.name: start for task, (start, _) in zip(tasks, spans, strict=True)}
        under = {name: curve.thinned for name, curve in curves.items() if curve.thinned}

        def levels(name: str) -> int:
            return 1 + max((levels(child) for child, _ in under.get(name, ())), default=0)

        self.thinned = [
            (places[name], [(places[child], share) for child, share in under[name]])
            for name in sorted(under, key=levels)  # children first
        ]
        for name, tensor in (("knots", knots), ("origin", origin), ("value", value), ("slope", slope)):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        segment = (logits.unsqueeze(-1) >= self.knots).sum(-1)  # (B, O)
        origin, value, slope = (
            table.expand(logits.shape[0], -1, -1).gather(2, segment.unsqueeze(-1)).squeeze(-1)
            for table in (self.origin, self.value, self.slope)
        )
        calibrated = value + slope * (logits - origin)
        return self._of_all_rows(calibrated) if self.thinned else calibrated

    def _of_all_rows(self, logits: Tensor) -> Tensor:
        """Of tasks whose rows with label 1 were thinned with a child's: their odds over the share that was kept."""
        columns = list(logits.unbind(1))
        kept: dict[int, Tensor] = {}
        for place, children in self.thinned:
            shares = []
            for child, of_zeros in children:
                p = torch.sigmoid(columns[child])
                shares.append(p * kept.get(child, torch.ones_like(p)) + (1 - p) * of_zeros)
            kept[place] = torch.stack(shares).prod(0)
            columns[place] = columns[place] - kept[place].log()
        return torch.stack(columns, dim=1)


def platt(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Curve | None:
    """The line a logit + b of least log loss (Platt 1999), labels drawn towards their means as he advises.

    Logits, labels 0/1 and weights (R,), which are relative: rows weigh 1 in the mean. None where there is one class
    only, or where the fitted line does not rise.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    logits, labels, weights = _known(logits, labels, weights)
    if len(np.unique(labels)) < 2:
        return None
    ones, zeros = (float((weights * one).sum()) for one in (labels, 1 - labels))
    # counts of rows, whatever the size of the weights: what is added to them is a row
    positives, negatives = ones / weights.mean(), zeros / weights.mean()
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # minimise is content with slopes of 1e-5: they are those of standardised logits, per row of the rarer class
    centre = float(np.average(logits, weights=weights))
    spread = float(np.sqrt(np.average((logits - centre) ** 2, weights=weights))) if np.ptp(logits) else 1.0
    standard, rarer = (logits - centre) / spread, min(ones, zeros)

    def loss(line: Floats) -> tuple[float, Floats]:
        found = line[0] * standard + line[1]
        off = weights * (expit(found) - targets) / rarer
        value = float((weights * (np.logaddexp(0, found) - targets * found)).sum() / rarer)
        return value, np.array([(off * standard).sum(), off.sum()])

    steep, shift = minimize(loss, np.array([spread, centre]), jac=True, method="BFGS").x
    slope = steep / spread
    return Curve(at=(0.0,), to=(float(shift - slope * centre),), slope=float(slope)) if slope > 0 else None


def isotonic(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Curve | None:
    """Centred isotonic regression of the label on the logit (Oron and Flournoy 2017).

    Rows are gathered in at most 100 bins of about equal weight, neighbours that fall are pooled, and the curve is
    drawn through the centres of what results; it rises everywhere, so rows keep their order. Logits, labels 0/1 and
    weights (R,). None where there is one class only.
    """
    from scipy.optimize import isotonic_regression

    logits, labels, weights = _known(logits, labels, weights)
    order = np.argsort(logits, kind="stable")
    logits, labels, weights = logits[order], labels[order], weights[order]
    reached = np.cumsum(weights)
    if len(np.unique(labels)) < 2:  # sums would tell it but for rounding
        return None
    # equal logits belong to one bin: that of the first of them
    first = np.searchsorted(logits, logits)
    bins = np.minimum((BINS * (reached - weights)[first] / reached[-1]).astype(int), BINS - 1)
    _, bins = np.unique(bins, return_inverse=True)
    many, ones, sums = (np.bincount(bins, one) for one in (weights, weights * labels, weights * logits))
    blocks = isotonic_regression(ones / many, weights=many).blocks[:-1]
    many, ones, sums = (np.add.reduceat(one, blocks) for one in (many, ones, sums))
    # an end that holds one class alone joins its neighbour: its log-odds would be infinite
    low = np.flatnonzero(ones > 0)[0]
    high = np.flatnonzero(ones < many)[-1]
    starts = np.array([0, *range(low + 1, high + 1)])
    many, ones, sums = (np.add.reduceat(one, starts) for one in (many, ones, sums))
    rates = ones / many
    return Curve(at=tuple((sums / many).tolist()), to=tuple(np.log(rates / (1 - rates)).tolist()))


def isotonic_in_total(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> Curve | None:
    """``isotonic``, moved so that the probabilities of these rows add up to the labels.

    Knots hold the rates of their rows at the centre of these, and where rates are low a curve that rises in the logit
    has more on average: 3 % more of 100 positives among 20,000 rows, 1 % of 1,000 among 100,000 (simulated).
    """
    from scipy.optimize import brentq
    from scipy.special import expit

    curve = isotonic(logits, labels, weights)
    if curve is None:
        return None
    logits, labels, weights = _known(logits, labels, weights)
    found = curve.over(logits)

    def off(shift: float) -> float:
        return float(weights @ (expit(found + shift) - labels) / weights.sum())

    return curve.shifted(brentq(off, -FURTHEST, FURTHEST)) if off(-FURTHEST) < 0 < off(FURTHEST) else curve


FITS = {"platt": platt, "isotonic": isotonic_in_total}


def true_in_total(values: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float | None:
    """What to add to log(1 + value) so that 1 + value add up to what 1 + label do.

    The mean of a logarithm, brought back, lies below the mean. (Duan 1983 takes the mean of exp(residual) instead, in
    which the rows that are told far too low count for most.) Values and labels above -1, weights (R,). None without
    rows, or where a sum is beyond float64.
    """
    values, labels, weights = _known(values, labels, weights)
    with np.errstate(over="ignore", invalid="ignore"):
        predicted, observed = (float((weights * (1 + one)).sum()) for one in (values, labels))
    return float(np.log(observed / predicted)) if 0 < predicted < np.inf and 0 < observed < np.inf else None


def _known(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    """As float64, without rows that weigh nothing."""
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    weights = np.ones(len(logits)) if weights is None else np.asarray(weights, np.float64)
    kept = weights > 0
    return logits[kept], labels[kept], weights[kept]
