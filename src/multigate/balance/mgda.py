"""MGDA: the shortest vector between the gradients."""

from typing import Literal

import numpy as np

from multigate.balance.gramian import Array, GramianBalance, nonnegative


class MGDA(GramianBalance):
    """min |sum_t a_t g_t| over a >= 0 with sum a = 1 (Desideri 2012; Sener and Koltun 2018, Eq. 3)."""

    method: Literal["mgda"] = "mgda"

    def solve(self, gramian: Array) -> Array:
        a = nonnegative(gramian, np.ones(len(gramian)))  # the same up to its scale, by the conditions of both optima
        return len(a) * a / a.sum()
