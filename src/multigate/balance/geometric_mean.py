"""The geometric mean of the losses: the same factor off any of them counts alike."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from multigate.balance.balance import Balance, Balancer
from multigate.schema import Task

EPSILON = 1e-8


class GeometricMean(Balance):
    """Down W (prod_t L_t^w_t)^(1/W), W the sum of the declared weights w (Chennupati et al. 2019, with all w 1)."""

    method: Literal["geometric_mean"] = "geometric_mean"

    def build(self, tasks: Sequence[Task]) -> "GeometricMeanBalancer":
        return GeometricMeanBalancer(tasks)


class GeometricMeanBalancer(Balancer):
    """The gradient of W times the mean m: w_t m / L_t."""

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        logs = losses.clamp_min(EPSILON).log()
        declared = self.declared * active
        mean = torch.where(active, declared * logs, 0.0).sum() / declared.sum()
        return torch.exp(mean - logs)
