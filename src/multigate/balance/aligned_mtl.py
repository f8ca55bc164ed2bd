"""Aligned-MTL: the gradients' principal directions get the same length."""

from typing import Literal

import numpy as np

from multigate.balance.gramian import SMALLEST, Array, GramianBalance


class AlignedMTL(GramianBalance):
    """a = sigma V Sigma^-1 V^T 1, with G = V Sigma^2 V^T (Senushkin et al. 2023, Algorithm 1).

    ``length`` is sigma, the length of every principal direction: the least of Sigma, as in the paper, the median, or
    the root of the mean square.
    """

    method: Literal["aligned_mtl"] = "aligned_mtl"
    length: Literal["least", "median", "mean"] = "least"

    def solve(self, gramian: Array) -> Array:
        values, vectors = np.linalg.eigh(gramian)
        real = values > SMALLEST * values[-1]
        values, vectors = values[real], vectors[:, real]
        lengths = np.sqrt(values)
        sigma = {
            "least": lengths.min,
            "median": lambda: np.median(lengths),
            "mean": lambda: np.sqrt(values.mean()),
        }[self.length]()
        return vectors @ (sigma / lengths * vectors.sum(0))
