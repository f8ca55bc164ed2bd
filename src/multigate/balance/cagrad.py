"""CAGrad: near the mean gradient, the direction that helps the worst-off task most."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from multigate.balance.gramian import Array, GramianBalance, nonnegative

STEPS = 50
STATIONARY = 100
"""Where some mixture of the gradients is shorter than each of them by this factor, no direction helps all tasks."""


class CAGrad(GramianBalance):
    """max_d min_i <g_i, d> within |d - g_0| <= c |g_0|, g_0 the mean gradient (Liu et al. 2021, Algorithm 1).

    For a gain q of the worst-off task, the nearest d = g_0 + sum_i v_i g_i with <g_i, d> >= q is a quadratic program in
    v >= 0; q is then raised until d is c |g_0| away. c = 0 is the plain sum.
    """

    method: Literal["cagrad"] = "cagrad"
    of_weighted: ClassVar[bool] = True
    c: float = Field(default=0.4, ge=0, lt=1)

    def solve(self, gramian: Array) -> Array:
        n = len(gramian)
        along = gramian.mean(1)  # <g_i, g_0>
        square = along.mean()  # |g_0|^2
        v = np.full(n, self.c / n)
        for _ in range(STEPS):  # Dinkelbach's: q falls to the optimum, ever faster
            if v.sum() <= 0:
                break
            q = (2 * along @ v + v @ gramian @ v + self.c**2 * square) / (2 * v.sum())
            before, v = v, nonnegative(gramian, q - along)
            if np.abs(v - before).max() < 1e-9:
                break
        radius = self.c * np.sqrt(max(square, 0))  # |sum_i v_i g_i|
        shortest = np.sqrt(gramian.diagonal().min())
        return np.ones(n) if shortest * v.sum() > STATIONARY * radius else 1 + n * v
