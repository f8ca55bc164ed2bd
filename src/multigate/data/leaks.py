"""Columns that tell a label suspiciously well on their own, found on a sample of rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from multigate.data import arrow
from multigate.data.types import is_moment, is_number

MOST_AUC, MOST_R2 = 0.99, 0.98
FEWEST = 10
"""Positives and negatives (or rows) a score wants; fewer say nothing."""
_BINS, _CLASSES = 256, 50
_IN_BIN = 10
"""Rows that a bin of a small table has: of one or two nothing can be guessed."""


@dataclass(frozen=True, eq=False)
class Target:
    """A label on the sampled rows: 0/1, a number, or the index of a class, NaN where unknown (R,) float64; and what
    of it is the same for all columns."""

    task: str
    kind: str
    values: np.ndarray

    @cached_property
    def known(self) -> np.ndarray:
        """(R,)"""
        return ~np.isnan(self.values)

    @cached_property
    def y(self) -> np.ndarray:
        """(K,) known values."""
        return self.values[self.known]

    @cached_property
    def distinct(self) -> int:
        return len(np.unique(self.y))

    @cached_property
    def ranks(self) -> np.ndarray:
        """(K,)"""
        return _ranks(self.y)

    @cached_property
    def half(self) -> np.ndarray:
        """(K,) which half of the known rows, 0 or 1, each belongs to."""
        return np.random.default_rng(0).permutation(len(self.y)) % 2

    @cached_property
    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """The known rows of either half."""
        return np.flatnonzero(self.half == 0), np.flatnonzero(self.half)


def leaks(array: pa.Array, column: str, targets: Sequence[Target]) -> Iterator[str]:
    """Why the column looks like a leak, once for every label it gives away.

    Binary: AUC of the label's mean over rows with the same value, taken from the other half of the rows (numbers in
    quantile bins), or of the numbers themselves where few labels are known. Multiclass: the mean of that over the
    classes, each against the rest. Regression: R2 of the same, or the squared correlation of values or of ranks. Any
    kind: every value of the column goes with one value of the label and the reverse.
    """
    codes, x = _codes(array, column)
    binned = codes if x is None else _binned(x)
    ordered = len(codes) < _IN_BIN * _BINS or any(target.kind == "regression" for target in targets)
    ranks = _ranks(x) if ordered and x is not None and not np.isnan(x).any() else None
    for target in targets:
        known, y, rows = target.known, target.y, len(target.y)
        if rows < FEWEST or target.distinct == 1:
            continue
        values = codes[known]
        if np.count_nonzero(np.bincount(values)) == target.distinct and _recoded(values, y):
            yield f"says the same as the label of task {target.task!r} in other words, on all {rows:,} sampled rows"
        else:
            measure, most = ("R2", MOST_R2) if target.kind == "regression" else ("AUC", MOST_AUC)
            shares = binned[known]
            if target.kind == "regression":
                found = _r2(shares, None if x is None else x[known], target, ranks if rows == len(known) else None)
            elif target.kind == "binary":
                found = _auc(shares, y, target)
                if x is not None and rows < _IN_BIN * _BINS:
                    found = max(found, _auc_of_order(x[known], y, ranks if rows == len(known) else None))
            else:
                found = _mean_auc(shares, target)
            if found > most:
                yield (
                    f"alone predicts task {target.task!r} with {measure} {found:.3f} on {rows:,} sampled rows; "
                    "leave it out if it is only known afterwards"
                )


def _auc(codes: np.ndarray, y: np.ndarray, target: Target) -> float:
    """Of the guesses for all rows, through how often each is made of a 0 and of a 1; ``y`` of one class, or all."""
    positives = float(y.sum())
    if min(positives, len(y) - positives) < FEWEST:
        return 0.0
    _, guess, count, total = _out_of_fold(codes, y, target)
    made = count > 0
    _, place = np.unique(guess[made], return_inverse=True)
    many, ones = (np.bincount(place, weights=of[made]) for of in (count, total))
    ranks = np.cumsum(many) - (many - 1) / 2
    return _area(float((ranks * ones).sum()), positives, len(y))


def _mean_auc(codes: np.ndarray, target: Target) -> float:
    """Over the most frequent classes, those of some rows; 0 as soon as it cannot come out above ``MOST_AUC``."""
    classes, many = np.unique(target.y, return_counts=True)
    classes = classes[np.argsort(-many)][: min(_CLASSES, int((many >= FEWEST).sum()))]
    lacking = 0.0
    for one in classes:
        lacking += 1 - _auc(codes, (target.y == one).astype(np.float64), target)
        if lacking >= (1 - MOST_AUC) * len(classes):
            return 0.0
    return 1 - lacking / len(classes) if len(classes) else 0.0


def _r2(codes: np.ndarray, x: np.ndarray | None, target: Target, ranks: np.ndarray | None) -> float:
    """``ranks`` are those of x, where they are known already."""
    y = target.y
    key, guess, _, _ = _out_of_fold(codes, y, target)
    found = float(1 - ((y - guess[key]) ** 2).sum() / ((y - y.mean()) ** 2).sum())
    if x is None:
        return found
    if ranks is not None:
        return max(found, _squared_correlation(x, y), _squared_correlation(ranks, target.ranks))
    known = ~np.isnan(x)
    if known.sum() < max(FEWEST, 0.5 * len(x)):
        return found
    x, y = x[known], y[known]
    return max(found, _squared_correlation(x, y), _squared_correlation(_ranks(x), _ranks(y)))


def _auc_of_order(x: np.ndarray, y: np.ndarray, ranks: np.ndarray | None) -> float:
    """Of the numbers that are there, whichever way they go; ``ranks`` are theirs, where they are known already."""
    there = ~np.isnan(x)
    if 2 * np.count_nonzero(there) < len(x):
        return 0.0
    y = y[there]
    positives = float(y.sum())
    if min(positives, len(y) - positives) < FEWEST:
        return 0.0
    found = _area(float(((_ranks(x[there]) if ranks is None else ranks) * y).sum()), positives, len(y))
    return max(found, 1 - found)


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Chance that a 1 scores above a 0, ties counting half."""
    return _area(float(_ranks(scores)[labels == 1].sum()), float(labels.sum()), len(labels))


def _area(ranks: float, positives: float, rows: int) -> float:
    """AUC from the sum of the ranks of the positives."""
    return (ranks - positives * (positives + 1) / 2) / (positives * (rows - positives))


def _codes(array: pa.Array, column: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Index of each row's value (missing has one too), and the values where they are numbers or times."""
    if is_number(array.type):
        x = arrow.numbers(array, column)
        return np.unique(x, return_inverse=True)[1], x
    if is_moment(array.type):
        moments = arrow.moments(array, column)
        return np.unique(moments, return_inverse=True)[1], np.where(
            moments == arrow.NO_MOMENT, np.nan, moments.astype(np.float64)
        )
    return arrow.codes(array, column)[0].astype(np.int64), None


def _binned(x: np.ndarray) -> np.ndarray:
    """(R,) index of the quantile bin; missing has its own, and so has a value that is an edge, as 0 is of amounts that
    few rows have."""
    known = x[~np.isnan(x)]
    bins = _BINS
    if len(known) < _IN_BIN * _BINS and _IN_BIN * len(np.unique(known)) > 2 * len(known):  # few values stay as they are
        bins = max(2, len(known) // _IN_BIN)
    edges = np.unique(np.quantile(known, np.linspace(0, 1, bins + 1)[1:-1])) if len(known) else known
    place = np.searchsorted(edges, x, side="left") + np.searchsorted(edges, x, side="right")
    return np.where(np.isnan(x), 2 * len(edges) + 1, place)


def _out_of_fold(
    codes: np.ndarray, y: np.ndarray, target: Target
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The mean label of the other half's rows with the same code, drawn towards the overall mean by one row.

    A key of each row (R,), and for each key the guess, how many rows have it, and the sum of their labels (K,).
    """
    size = int(codes.max()) + 1
    key = codes + size * target.half
    count = np.bincount(key, minlength=2 * size).reshape(2, size)
    total = np.bincount(key, weights=y, minlength=2 * size).reshape(2, size)
    means = np.array([[y[rows].mean()] for rows in target.halves])
    guess = (total[::-1] + means[::-1]) / (count[::-1] + 1)
    return key, guess.ravel(), count.ravel(), total.ravel()


def _squared_correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x**2).sum()) * np.sqrt((y**2).sum()))
    return float((x * y).sum() / size) ** 2 if size > 0 and np.isfinite(size) else 0.0


def _ranks(x: np.ndarray) -> np.ndarray:
    """(R,) from 1, the mean rank where values are equal."""
    _, place, many = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(many) - (many - 1) / 2)[place]


def _recoded(codes: np.ndarray, y: np.ndarray) -> bool:
    """One value of the column for each of the label, and the reverse; each repeated, or it says nothing."""
    values = np.count_nonzero(np.bincount(codes))
    if values > len(y) / 2 or values != len(np.unique(y)):
        return False
    classes, place = np.unique(y, return_inverse=True)
    return bool(len(np.unique(codes.astype(np.int64) * len(classes) + place)) == values)
