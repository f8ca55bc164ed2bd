"""Gradient surgery: a gradient that conflicts with another loses the part along it (PCGrad), or more (GradVac)."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from multigate.balance.gramian import Array, GramianBalance, GramianBalancer
from multigate.schema import Task


class PCGrad(GramianBalance):
    """sum_i g_i', where g_i' is g_i projected, for each j in random order, off every g_j that it then conflicts with.

    Yu et al. 2020, Algorithm 1.
    """

    method: Literal["pcgrad"] = "pcgrad"
    of_weighted: ClassVar[bool] = True

    def solve(self, gramian: Array) -> Array:
        total = np.zeros(len(gramian))
        for i in range(len(gramian)):
            mixed = np.eye(len(gramian))[i]  # g_i' as a mixture of the gradients
            for j in torch.randperm(len(gramian)).tolist():
                product = gramian[j] @ mixed
                if j != i and product < 0:
                    mixed[j] -= product / gramian[j, j]
            total += mixed
        return total


class GradVac(GramianBalance):
    """sum_i g_i', where g_i' is g_i turned, for each j in random order, to at least the usual cosine with g_j.

    What is usual is a moving average of the cosines (Wang et al. 2021, Algorithm 1); it begins with 0.
    """

    method: Literal["gradvac"] = "gradvac"
    of_weighted: ClassVar[bool] = True
    beta: float = Field(default=0.01, gt=0, le=1)
    """How much of a new cosine goes into the average."""

    def build(self, tasks: Sequence[Task]) -> "GradVacBalancer":
        return GradVacBalancer(self, tasks)

    def solve(self, gramian: Array) -> Array:
        """Without a history, every usual cosine is 0."""
        return turned(gramian, np.zeros_like(gramian), self.beta)


class GradVacBalancer(GramianBalancer):
    """Keeps the usual cosines (T, T)."""

    usual: Tensor

    def __init__(self, options: GradVac, tasks: Sequence[Task]) -> None:
        super().__init__(options, tasks)
        self.beta = options.beta
        self.register_buffer("usual", torch.zeros(len(tasks), len(tasks), dtype=torch.float64))

    def solve(self, gramian: Array, among: NDArray[np.intp]) -> Array:
        usual = self.usual.cpu().numpy().copy()
        here = usual[np.ix_(among, among)]
        weights = turned(gramian, here, self.beta)
        usual[np.ix_(among, among)] = here
        self.usual.copy_(torch.from_numpy(usual))
        return weights


def turned(gramian: Array, usual: Array, beta: float) -> Array:
    """Weights (n,); the usual cosines (n, n) are brought up to date in place."""
    norms = np.sqrt(np.diagonal(gramian))
    total = np.zeros(len(gramian))
    for i in range(len(gramian)):
        mixed = np.eye(len(gramian))[i]
        for j in torch.randperm(len(gramian)).tolist():
            if j == i:
                continue
            norm = np.sqrt(max(mixed @ gramian @ mixed, 1e-12))
            cosine = float(np.clip(gramian[j] @ mixed / (norm * norms[j]), -1, 1))
            wanted = usual[i, j]
            if cosine < wanted:
                sine, wanted_sine = np.sqrt(1 - cosine**2), np.sqrt(1 - wanted**2)
                mixed[j] += norm * (wanted * sine - cosine * wanted_sine) / (norms[j] * max(wanted_sine, 1e-6))
            usual[i, j] += beta * (cosine - wanted)
        total += mixed
    return total
