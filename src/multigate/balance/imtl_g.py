"""IMTL-G: a step as far along every task's gradient as along any other."""

from typing import Literal

import numpy as np

from multigate.balance.gramian import SMALLEST, Array, GramianBalance, cosines


class IMTLG(GramianBalance):
    """d = sum_t a_t g_t with the same <d, g_t> / |g_t| for all t (Liu et al. 2021, gradient balance).

    The paper's sum a = 1 is sum |a| = 1 here: the same where no weight is negative, and bounded, and never uphill,
    where one is. Dependent gradients are met by the least-norm solution.
    """

    method: Literal["imtl_g"] = "imtl_g"

    def solve(self, gramian: Array) -> Array:
        unit, lengths = cosines(gramian)
        a = np.linalg.pinv(unit, rcond=SMALLEST, hermitian=True).sum(1) / lengths
        return len(a) * a / np.abs(a).sum()
