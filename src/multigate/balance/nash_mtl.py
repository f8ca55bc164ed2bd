"""Bargaining: tasks share the step so that no one's relative gain costs others more of theirs (Nash), or fairly."""

from typing import Literal

import numpy as np
from pydantic import Field

from multigate.balance.gramian import Array, GramianBalance, cosines, eigen

STEPS = 100


class NashMTL(GramianBalance):
    """G a = 1 / a, the Nash bargaining solution (Navon et al. 2022, Claim 3.1), scaled to a mean of 1."""

    method: Literal["nash_mtl"] = "nash_mtl"

    def solve(self, gramian: Array) -> Array:
        return fair(gramian, 1.0)


class FairGrad(GramianBalance):
    """G a = a^(-1 / alpha), alpha-fair shares (Ban and Ji 2024, Eq. 4), scaled to a mean of 1.

    alpha = 1 is Nash-MTL; the larger it is, the more the worst-off task counts.
    """

    method: Literal["fairgrad"] = "fairgrad"
    alpha: float = Field(default=2.0, ge=0.1, le=100)

    def solve(self, gramian: Array) -> Array:
        return fair(gramian, self.alpha)


def fair(gramian: Array, alpha: float) -> Array:
    """a > 0 with G a = a^(-1 / alpha), by Newton's method on the convex function whose gradient is their difference."""
    unit, lengths = cosines(gramian)
    values, vectors = eigen(unit)
    gramian = (vectors * values) @ vectors.T * np.outer(lengths, lengths)
    power = 1 / alpha

    def height(a: Array) -> float:
        barrier = np.log(a) if power == 1 else a ** (1 - power) / (1 - power)
        return float(a @ gramian @ a / 2 - barrier.sum())

    a = np.diagonal(gramian) ** (-1 / (1 + power))  # exact where the gradients are orthogonal
    for _ in range(STEPS):
        slope = gramian @ a - a**-power
        if np.abs(slope * a**power).max() < 1e-9:
            break
        move = -np.linalg.solve(gramian + np.diag(power * a ** (-power - 1)), slope)
        falling = (move < 0) & (move < -a)
        length = min(1.0, 0.9 * (a[falling] / -move[falling]).min(initial=np.inf))  # a stays positive
        while length > 1e-12 and height(a + length * move) > height(a) + 1e-4 * length * (slope @ move):
            length /= 2
        a = a + length * move
    return len(a) * a / a.sum()
