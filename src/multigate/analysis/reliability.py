"""Reliability: are predicted probabilities the rates observed?"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from multigate.analysis.intervals import share_interval
from multigate.analysis.subject import Subject
from multigate.evaluate import Space, spaces
from multigate.metrics import calibration
from multigate.options import Options

Floats = NDArray[np.float64]


class Reliability(Options):
    """The calibration curve of one binary task or conditional, in bins by rising prediction.

    Means are weighted where the task's rows are.
    """

    target: str
    """"click", or "buy|click" on the rows where click is 1."""
    predicted: tuple[float, ...]
    """Mean predicted probability of each bin."""
    observed: tuple[float, ...]
    """Share of ones in each bin."""
    low: tuple[float, ...]
    """Wilson interval of the observed share at 95 %."""
    high: tuple[float, ...]
    rows: tuple[int, ...]
    ece: float
    """Expected calibration error: mean over rows of |predicted - observed| of their bin (Naeini et al. 2015, but with
    bins of equal count)."""
    calibration: float
    """Sum of predictions over sum of labels, over all rows: above 1 is over-prediction; NaN without a one."""


def reliability(subject: Subject, bins: int = 15) -> tuple[Reliability, ...]:
    """Calibration curves of every binary task, on its known rows, and every conditional, on rows whose parent is 1.

    Bins hold about equally many rows; equal predictions share one, so that there may be fewer than ``bins``. Rows of
    no weight do not count, and targets without rows are left out. Weighted rows are worth (sum w)^2 / sum w^2 rows to
    the interval (Kish 1965), and those of groups as many fewer as their groups make rates vary more than single rows.
    """
    if not subject.count:
        return ()
    bundle = subject.bundle
    found = spaces(bundle.schema, bundle.encoder, subject.scored())
    curves = [_curve(space, bins) for space in found if space.kind == "binary"]
    return tuple(curve for curve in curves if curve is not None)


def _curve(space: Space, bins: int) -> Reliability | None:
    weights = np.ones(len(space.labels)) if space.weights is None else space.weights.astype(np.float64)
    kept = np.flatnonzero(weights > 0)
    if not len(kept):
        return None
    chances = expit(space.outputs.astype(np.float64))
    order = kept[np.argsort(chances[kept], kind="stable")]
    p, y, w = chances[order], space.labels[order].astype(np.float64), weights[order]
    lasts = -(-len(p) * np.arange(1, bins + 1) // bins) - 1  # of bins of equal count
    ends = np.unique(np.searchsorted(p, p[lasts], side="right"))  # moved behind the predictions equal to it
    starts = np.append(0, ends[:-1])
    total, squares, predicted, observed = (np.add.reduceat(one, starts) for one in (w, w * w, w * p, w * y))
    predicted, observed = predicted / total, observed / total
    bins_of = np.repeat(np.arange(len(starts)), ends - starts)
    alike = 1.0 if space.groups is None else _design_effect(space.groups[order], bins_of, y, w, observed)
    low, high = share_interval(observed, total**2 / squares / alike)
    return Reliability(
        target=space.name,
        predicted=tuple(predicted.tolist()),
        observed=tuple(observed.tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        rows=tuple((ends - starts).tolist()),
        ece=float(np.average(np.abs(predicted - observed), weights=total)),
        calibration=calibration(space.outputs, space.labels, space.weights),
    )


def _design_effect(groups: NDArray[np.int64], bins: NDArray[np.int64], y: Floats, w: Floats, observed: Floats) -> float:
    """How many times more the observed shares vary than if rows were drawn one by one and not in their groups, over all
    bins; at least 1. Rows (R,) with their bins, of which ``observed`` (bins,) are the shares of ones."""
    cells, cell_of = np.unique(np.stack([bins, groups]), axis=1, return_inverse=True)
    off = np.bincount(cell_of.ravel(), w * (y - observed[bins]))
    many, rows = np.bincount(cells[0]), np.bincount(bins)
    told = many > 1  # of one group alone nobody knows how it differs from others
    many, rows, share = many[told], rows[told], observed[told]
    by_group = (np.bincount(cells[0], off**2)[told] * many / (many - 1)).sum()
    by_row = (np.bincount(bins, w**2)[told] * share * (1 - share) * rows / (rows - 1)).sum()
    return max(1.0, float(by_group / by_row)) if by_row > 0 else 1.0
