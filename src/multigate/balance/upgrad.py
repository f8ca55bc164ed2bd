"""Jacobian descent: a step that lowers every loss, by projection on the cone of such steps."""

from typing import ClassVar, Literal

import numpy as np

from multigate.balance.gramian import Array, GramianBalance, nonnegative


class UPGrad(GramianBalance):
    """sum_t P(g_t), P the projection on the cone {d: <d, g_i> >= 0 for all i} (Quinton and Rey 2024)."""

    method: Literal["upgrad"] = "upgrad"
    of_weighted: ClassVar[bool] = True

    def solve(self, gramian: Array) -> Array:
        return np.sum([projected(gramian, one) for one in np.eye(len(gramian))], axis=0)


class DualProj(GramianBalance):
    """P(sum_t g_t), P the projection on the same cone (Lopez-Paz and Ranzato 2017, GEM, Eq. 11)."""

    method: Literal["dualproj"] = "dualproj"
    of_weighted: ClassVar[bool] = True

    def solve(self, gramian: Array) -> Array:
        return projected(gramian, np.ones(len(gramian)))


def projected(gramian: Array, mixture: Array) -> Array:
    """The mixture (n,) of gradients that is the projection of this one: the shortest of those that add to it."""
    return mixture + nonnegative(gramian, -gramian @ mixture)
