"""The synthetic tasks of the MMoE paper: regressions whose relatedness is set exactly (Ma et al. 2018, section 3.2).

Row by row, for tasks t = 0 .. T - 1::

    x   ~ N(0, I)                                                                               x in R^d
    y_t = w_t . x + sum_i sin(alpha_i w_t . x + beta_i) + N(0, noise)                           (Eq. 3 and 4)

with w_t of length c. Two tasks are w_0 = c u_0 and w_1 = c (p u_0 + sqrt(1 - p^2) u_1) for orthogonal unit vectors u
(Eq. 2), so that cos(w_0, w_1) = p: the "task correlation" of the paper. T tasks with cosines G are w = c L u, where
L L' = G is the Cholesky decomposition, of which Eq. 2 is the case T = 2.

The correlation of two labels is another, smaller number (``label_correlation``). The paper does not give c, alpha and
beta. The defaults are ours: they meet the nine points of its Figure 2 within .01.

Randomness is drawn in blocks of 8,192 rows, each from a generator of its own keyed by seed and block number: a longer
table begins with the shorter one.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import pi
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, field_validator, model_validator

from multigate.options import Options
from multigate.schema import Schema, Task, Vector
from multigate.writing import writing

Floats = NDArray[np.float64]

BLOCK = 8_192
FEATURE = "x"
ROUNDING = 1e-9


class Synthetic(Options):
    """What to simulate: T tasks over ``size`` normal inputs. The defaults are two tasks of the paper, p = .9."""

    rows: int = Field(default=30_000, ge=10)
    size: int = Field(default=100, ge=1)
    """d, the inputs: at least as many as there are tasks."""
    correlations: tuple[float, ...] = (0.9,)
    """cos(w_0, w_t) for t = 1 .. T - 1, each -1 to 1; the others' among themselves are the products of these."""
    cosines: tuple[tuple[float, ...], ...] | None = None
    """cos(w_s, w_t) of every pair (T, T), in place of ``correlations``: symmetric, positive semi-definite, ones on the
    diagonal."""
    noise_tasks: int = Field(default=0, ge=0)
    """Tasks more whose labels have nothing to do with x, as large as the others': ``noise0`` and so on."""
    scale: float = Field(default=0.638, gt=0)
    """c, the length of every w."""
    frequencies: tuple[float, ...] = (2.0, 4.0, 6.0, 8.0, 10.0, 12.0)
    """alpha_i; none of them makes the tasks linear."""
    phases: tuple[float, ...] = tuple(pi * i / 2 for i in range(1, 7))
    """beta_i, as many."""
    noise: float = Field(default=0.01, ge=0)
    """Variance of what is added to every label."""
    known: tuple[float, ...] = ()
    """Share of rows whose label is known, of each task in order; 1 for those not told."""
    seed: int = Field(default=0, ge=0)

    @field_validator("correlations")
    @classmethod
    def _are_cosines(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            if not -1 <= value <= 1:
                raise ValueError(f"a correlation is a cosine, between -1 and 1; found {value:g}")
        return values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if len(self.frequencies) != len(self.phases):
            raise ValueError(
                f"every sine has a frequency and a phase; found {len(self.frequencies)} and {len(self.phases)}"
            )
        if len(self.known) > len(self.task_names) or not all(0 < share <= 1 for share in self.known):
            raise ValueError(f"'known' wants shares above 0, one for each of {len(self.task_names)} tasks at most")
        gram = self.gram()
        if gram.shape != (len(gram), len(gram)) or not np.array_equal(gram, gram.T) or not (np.diag(gram) == 1).all():
            raise ValueError("cosines want a symmetric square with ones on its diagonal")
        least = np.linalg.eigvalsh(gram)[0]
        if least < -ROUNDING:
            raise ValueError(
                f"no vectors have these cosines: not positive semi-definite (least eigenvalue {least:.3g}); "
                "bring them nearer to 0"
            )
        if len(gram) > self.size:
            raise ValueError(f"{len(gram)} tasks want as many inputs at least; found size {self.size}")
        return self

    def gram(self) -> Floats:
        """cos(w_s, w_t) of every pair, (T, T), noise tasks left out: the truth about who is related."""
        if self.cosines is not None:
            width = max(len(row) for row in self.cosines)
            return np.array([(*row, *[np.nan] * (width - len(row))) for row in self.cosines], dtype=np.float64)
        to_first = np.array((1.0, *self.correlations))
        gram = np.outer(to_first, to_first)
        np.fill_diagonal(gram, 1.0)
        return gram

    @property
    def task_names(self) -> tuple[str, ...]:
        """y0, y1 and so on, then the noise tasks."""
        own = len(self.gram())
        return (*(f"y{at}" for at in range(own)), *(f"noise{at}" for at in range(self.noise_tasks)))


def task_weights(options: Synthetic) -> Floats:
    """w, (T, d): c L u (Ma et al. 2018, Eq. 2)."""
    gram = options.gram()
    random = np.random.default_rng([options.seed, 0])
    u = np.linalg.qr(random.standard_normal((options.size, len(gram))))[0].T  # (T, d), orthonormal
    return options.scale * _factor(gram) @ u


def signal(options: Synthetic, x: ArrayLike) -> Floats:
    """Labels before noise, x (R, d) -> (R, T), noise tasks left out."""
    return _shape(options, np.asarray(x, dtype=np.float64) @ task_weights(options).T)


def label_correlation(options: Synthetic, cosine: float) -> float:
    """Pearson correlation of the labels of two tasks with cos(w_s, w_t) = ``cosine``, in closed form.

    w . x is normal, and so the expectations of products of sines of it are Gaussian integrals. For linear tasks it is
    ``cosine`` but for the noise.
    """
    return _covariance(options, cosine) / (_covariance(options, 1.0) + options.noise)


def label_moments(options: Synthetic) -> tuple[float, float]:
    """Mean and standard deviation of a label, its noise included, in closed form."""
    alpha, beta = np.array(options.frequencies), np.array(options.phases)
    mean = (np.sin(beta) * np.exp(-((alpha * options.scale) ** 2) / 2)).sum()
    return float(mean), (_covariance(options, 1.0) + options.noise) ** 0.5


def synthetic_schema(options: Synthetic) -> Schema:
    """One vector of inputs, a regression for every task."""
    return Schema(
        features=(Vector(FEATURE, size=options.size),),
        tasks=tuple(Task(name, kind="regression") for name in options.task_names),
    )


def synthetic_table(options: Synthetic) -> pa.Table:
    """All rows as one table in memory: a column of lists ``x``, and one for each task."""
    return pa.Table.from_batches(synthetic_batches(options))


def synthetic_batches(options: Synthetic) -> Iterator[pa.RecordBatch]:
    """The rows in order, at most 8,192 at a time."""
    weights = task_weights(options)
    spread = (_covariance(options, 1.0) + options.noise) ** 0.5
    tasks = len(options.task_names)
    known = np.array((*options.known, *[1.0] * (tasks - len(options.known))))
    for first in range(0, options.rows, BLOCK):
        random = np.random.default_rng([options.seed, 1, first // BLOCK])
        # whole blocks are drawn, so that the last one begins like a whole one
        x = random.standard_normal((BLOCK, options.size), dtype=np.float32)
        labels = _shape(options, x.astype(np.float64) @ weights.T)
        labels += options.noise**0.5 * random.standard_normal(labels.shape)
        nothing = spread * random.standard_normal((BLOCK, options.noise_tasks))
        hidden = random.random((BLOCK, tasks)) >= known
        rows = min(BLOCK, options.rows - first)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(x[:rows].reshape(-1)), options.size)
        columns = np.concatenate([labels, nothing], axis=1)[:rows].astype(np.float32)
        cells = [pa.array(one, mask=mask) for one, mask in zip(columns.T, hidden[:rows].T, strict=True)]
        yield pa.record_batch([lists, *cells], names=[FEATURE, *options.task_names])


def write_synthetic(options: Synthetic, folder: Path) -> None:
    """Write train, valid and test.parquet: 80, 10 and 10 % of the rows."""
    table = synthetic_table(options)
    bounds = (0, options.rows * 8 // 10, options.rows * 9 // 10, options.rows)
    for name, (low, high) in zip(("train", "valid", "test"), pairwise(bounds), strict=True):
        with writing(folder / f"{name}.parquet") as temporary:
            pq.write_table(table.slice(low, high - low), temporary)


def _shape(options: Synthetic, projection: Floats) -> Floats:
    """s + sum_i sin(alpha_i s + beta_i), elementwise."""
    labels = projection.copy()
    for alpha, beta in zip(options.frequencies, options.phases, strict=True):
        labels += np.sin(alpha * projection + beta)
    return labels


def _covariance(options: Synthetic, p: float) -> float:
    """Cov of two labels without noise, at cosine p."""
    square = options.scale**2
    alpha, beta = np.array(options.frequencies), np.array(options.phases)
    damped = np.exp(-(alpha**2) * square / 2)
    a, b = alpha[:, None], beta[:, None]
    sines = np.cos(b - beta) * np.exp(-(a**2 + alpha**2 - 2 * p * a * alpha) * square / 2)
    sines -= np.cos(b + beta) * np.exp(-(a**2 + alpha**2 + 2 * p * a * alpha) * square / 2)
    mean = (np.sin(beta) * damped).sum()
    return float(square * p * (1 + 2 * (alpha * np.cos(beta) * damped).sum()) + sines.sum() / 2 - mean**2)


def _factor(gram: Floats) -> Floats:
    """L (T, T), lower triangular, with L L' = gram; a task that others already span has 0 on the diagonal."""
    factor = np.zeros_like(gram)
    for t in range(len(gram)):
        for s in range(t):
            rest = gram[t, s] - factor[t, :s] @ factor[s, :s]
            factor[t, s] = rest / factor[s, s] if factor[s, s] > 0 else 0.0
        left = 1 - (factor[t, :t] ** 2).sum()
        factor[t, t] = left**0.5 if left > ROUNDING else 0.0
    return factor
