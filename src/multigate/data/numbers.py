"""Number columns: what the training rows say of them, and how they are put on one scale."""

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np

from multigate.options import Options

BLOCK, BLOCK_VALUES = 65_536, 1 << 24
"""Rows that are summed together, fewer of a wide table: at most so many values."""
TILE = 1 << 16
"""Numbers that are worked on at a time."""
SAMPLE, SAMPLE_VALUES = 200_000, 1 << 26
"""Rows of a sample, fewer of a wide table: at most so many values (512 MB)."""
KNOTS = 1001
"""Of a quantile scale, at most."""
TIMES = 5
"""That a value of a binned number is seen at least, to have an id of its own."""
CLIP = 10.0
"""Encoded values stay within +-10 deviations: one absurd value at predict time must not saturate a network."""


class Scale(Options):
    """How one number column is put on one scale: ``transform``, then (x - mean) / sd, then clipped."""

    transform: Literal["standard", "log", "quantile"] = "standard"
    mean: float = 0.0
    sd: float = 1.0
    knots: tuple[float, ...] = ()
    """Quantiles of the raw values and ..."""
    scores: tuple[float, ...] = ()
    """... the normal scores of their ranks, for ``quantile``."""


class Scales:
    """The scales of all N number columns as arrays; one row and many rows go through the same arithmetic."""

    def __init__(self, scales: Sequence[Scale]) -> None:
        self.scales = tuple(scales)
        self._mean = np.array([[scale.mean] for scale in scales], dtype=np.float64).reshape(-1, 1)
        self._sd = np.array([[scale.sd] for scale in scales], dtype=np.float64).reshape(-1, 1)
        self._log = {at for at, scale in enumerate(scales) if scale.transform == "log"}
        self._logs = np.array(sorted(self._log), dtype=np.int64)
        self._ranked = {
            at: Ranks(np.array(scale.knots), np.array(scale.scores))
            for at, scale in enumerate(scales)
            if scale.transform == "quantile"
        }

    def row(self, raw: list[float]) -> np.ndarray:
        """Raw numbers of one row -> (1, N) float32: the same as ``encode``, with few calls."""
        x = np.array(raw, dtype=np.float64)
        if self._log:
            x[self._logs] = signed_log(x[self._logs])
        for column, ranks in self._ranked.items():
            x[column : column + 1] = ranks.scores_of(x[column : column + 1])
        x -= self._mean[:, 0]
        x /= self._sd[:, 0]
        np.minimum(np.maximum(x, -CLIP, out=x), CLIP, out=x)
        return x.astype(np.float32)[None]

    def encode(self, raw: Sequence[np.ndarray] | np.ndarray, columns: Sequence[int] | None = None) -> np.ndarray:
        """Raw numbers (R,) float64 of all columns, or of those at K places -> (K, R) float32, NaN where missing."""
        columns = range(len(self.scales)) if columns is None else columns
        rows = len(raw[0]) if len(raw) else 0
        encoded = np.empty((len(columns), rows), np.float32)
        for part in tiles(len(columns), rows):
            x = np.empty((part.stop - part.start, rows))
            for row, at in enumerate(columns[part], part.start):
                if at in self._log:
                    x[row - part.start] = signed_log(raw[row])
                elif at in self._ranked:
                    x[row - part.start] = self._ranked[at].scores_of(raw[row])
                else:
                    x[row - part.start] = raw[row]
            x -= self._mean[columns[part]]
            x /= self._sd[columns[part]]
            encoded[part] = np.clip(x, -CLIP, CLIP, out=x)
        return encoded


def tiles(columns: int, rows: int) -> Iterator[slice]:
    """Columns of so many rows, a few at a time: what is made of their numbers then stays in the processor's cache."""
    many = max(1, TILE // max(rows, 1))
    return (slice(first, min(first + many, columns)) for first in range(0, columns, many))


def signed_log(x: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|)."""
    return np.copysign(np.log1p(np.abs(x)), x)


class Ranks:
    """Normal score of a value's rank, linear between knots; written out, so that one and many agree to the bit."""

    def __init__(self, knots: np.ndarray, scores: np.ndarray) -> None:
        self.knots, self.scores = knots, scores
        self._rise, self._gap = np.diff(scores), np.diff(knots)

    def scores_of(self, x: np.ndarray) -> np.ndarray:
        """(R,) -> (R,)."""
        if len(self.knots) < 2:
            return np.where(np.isnan(x), x, 0.0)
        x = np.clip(x, self.knots[0], self.knots[-1])
        at = np.clip(np.searchsorted(self.knots, x, side="right") - 1, 0, len(self._gap) - 1)
        # a fraction of the gap, for a slope overflows where knots are 1e-310 apart
        return self.scores[at] + self._rise[at] * ((x - self.knots[at]) / self._gap[at])


def fit_ranks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``KNOTS`` knots of a sample (any order, no NaN) and the normal scores of their middle ranks."""
    distinct, counts = counted(values)
    if len(distinct) < 2:
        return distinct, np.zeros(len(distinct))
    share = (np.cumsum(counts) - counts / 2) / counts.sum()
    if len(distinct) > KNOTS:
        kept = np.unique(np.searchsorted(share, np.linspace(share[0], share[-1], KNOTS)))
        distinct, share = distinct[kept], share[kept]
    normal = NormalDist()
    return distinct, np.array([normal.inv_cdf(float(one)) for one in share])


def counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values, rising, and how often each occurs; whole numbers close together are counted unsorted."""
    if len(values) and values.min() >= 0 and values.max() <= 4 * len(values) and not np.signbit(values).any():
        whole = values.astype(np.int64)
        if (whole == values).all():
            counts = np.bincount(whole)
            found = np.flatnonzero(counts)
            return found.astype(np.float64), counts[found]
    return np.unique(values, return_counts=True)


def quantile_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Lower edges of the second to last of at most ``bins`` bins of about equal weight, each a value that occurs.

    A value heavier than a bin counts for one bin only, so that what lies beside a pile of zeros is still told apart.
    """
    return edges_of(*counted(values), bins)


def edges_of(distinct: np.ndarray, counts: np.ndarray, bins: int) -> np.ndarray:
    """``quantile_edges`` of distinct values, rising, and how often each occurs."""
    if len(distinct) <= bins:
        return distinct[1:]
    weight = counts.astype(np.float64)
    for _ in range(bins):
        capped = np.minimum(weight, weight.sum() / bins)
        if (capped == weight).all():
            break
        weight = capped
    before = np.concatenate([[0.0], np.cumsum(weight)[:-1]])
    cuts = np.searchsorted(before, np.arange(1, bins) * (weight.sum() / bins) * (1 - 1e-12))
    cuts = np.unique(np.clip(cuts, 1, len(distinct) - 1))
    return distinct[cuts]


def frequent_values(distinct: np.ndarray, counts: np.ndarray, bins: int, most: int) -> np.ndarray:
    """The values seen at least ``TIMES`` times, rising; none where bins tell them apart or there are too many."""
    return distinct[counts >= TIMES] if bins < len(distinct) <= most else distinct[:0]


def value_ids(x: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(R,) raw numbers -> (R,) int32: 0 a value that is not among ``values``, 1 missing, then 2 + its place."""
    at = np.minimum(np.searchsorted(values, x), len(values) - 1)
    found = np.where(values[at] == x, at + 2, 0).astype(np.int32)
    found[np.isnan(x)] = 1
    return found


def bin_ids(x: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(R,) raw values -> (R,) int32: 1 missing, then 2 + the bin."""
    found = np.searchsorted(edges, x, side="right").astype(np.int32) + 2
    found[np.isnan(x)] = 1
    return found


class Moments:
    """Count, mean and deviation of columns in one pass, NaN left out.

    Values are gathered into blocks of a fixed number of rows before anything is summed, so the result does not
    depend on how the rows came.
    """

    def __init__(self, columns: int) -> None:
        self._rows = max(1, min(BLOCK, BLOCK_VALUES // max(columns, 1)))
        self._block = np.empty((columns, self._rows))
        self._filled = 0
        self.count = np.zeros(columns)
        self.mean = np.zeros(columns)
        self._squares = np.zeros(columns)

    def add(self, values: np.ndarray) -> None:
        """Values (N, R)."""
        at = 0
        while at < values.shape[1]:
            many = min(self._rows - self._filled, values.shape[1] - at)
            self._block[:, self._filled : self._filled + many] = values[:, at : at + many]
            self._filled, at = self._filled + many, at + many
            if self._filled == self._rows:
                self._reduce()

    def _reduce(self) -> None:
        count, mean, squares = (np.empty(len(self.count)) for _ in range(3))
        for part in tiles(len(self.count), self._filled):
            block = self._block[part, : self._filled]
            known = ~np.isnan(block)
            count[part] = known.sum(axis=1)
            mean[part] = np.where(known, block, 0.0).sum(axis=1) / np.maximum(count[part], 1)
            squares[part] = (np.where(known, block - mean[part, None], 0.0) ** 2).sum(axis=1)
        total = np.maximum(self.count + count, 1)
        step = mean - self.mean
        # Chan, Golub and LeVeque 1979
        self._squares += squares + step**2 * self.count * count / total
        self.mean += step * count / total
        self.count += count
        self._filled = 0

    def finish(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Counts, means and standard deviations, each (N,); the deviation of a constant column is 0."""
        if self._filled:
            self._reduce()
        sd = np.sqrt(self._squares / np.maximum(self.count, 1))
        return self.count, self.mean, np.where(sd <= 1e-12 * np.abs(self.mean), 0.0, sd)


class Sample:
    """The same rows of every column, between half and all of ``size`` of them, chosen by hash of the row's number.

    A row is kept while its hash is below a limit that halves whenever too many are kept: the rows kept at the end
    depend on nothing but how many there were.
    """

    def __init__(self, columns: int, size: int = SAMPLE) -> None:
        size = max(1, min(size, SAMPLE_VALUES // max(columns, 1)))
        self._size, self._limit, self._rows, self._many = size, np.uint64(2**64 - 1), 0, 0
        self._kept: list[np.ndarray] = [np.empty((columns, 0))]
        self._hashes: list[np.ndarray] = [np.empty(0, dtype=np.uint64)]

    def add(self, values: np.ndarray) -> None:
        """Values (N, R), which may be kept as they are: nobody writes into them any more."""
        hashes = row_hashes(self._rows, values.shape[1], seed=0x5A)
        self._rows += len(hashes)
        chosen = hashes <= self._limit
        self._kept.append(values if chosen.all() else values[:, chosen])
        self._hashes.append(hashes[chosen])
        self._many += len(self._hashes[-1])
        while self._many > self._size:
            self._limit >>= np.uint64(1)
            kept, hashes = np.concatenate(self._kept, axis=1), np.concatenate(self._hashes)
            chosen = hashes <= self._limit
            self._kept, self._hashes = [kept[:, chosen]], [hashes[chosen]]
            self._many = int(chosen.sum())

    def column(self, at: int) -> np.ndarray:
        """The known sampled values of one column."""
        values = np.concatenate([part[at] for part in self._kept])
        return values[~np.isnan(values)]


def row_hashes(first: int, rows: int, seed: int) -> np.ndarray:
    """A pseudo-random uint64 for each row number (splitmix64: Steele, Lea and Flood 2014), (R,)."""
    with np.errstate(over="ignore"):
        x = np.arange(first, first + rows, dtype=np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
        x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
