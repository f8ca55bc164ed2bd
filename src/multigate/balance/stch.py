"""Smooth Tchebycheff: the largest weighted loss counts most."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from multigate.balance.balance import Balance, Balancer, shares
from multigate.schema import Task


class STCH(Balance):
    """Down mu log sum_t exp(w_t L_t / (T mu)): near the largest weighted loss for a small mu (Lin et al. 2024).

    The ideal point is 0, and T counts the tasks with labels in the batch.
    """

    method: Literal["stch"] = "stch"
    mu: float = Field(default=0.1, gt=0, allow_inf_nan=False)

    def build(self, tasks: Sequence[Task]) -> "STCHBalancer":
        return STCHBalancer(self, tasks)


class STCHBalancer(Balancer):
    """T softmax(w L / (T mu)), times w."""

    def __init__(self, options: STCH, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.mu = options.mu

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        return shares(self.declared * losses / (active.sum() * self.mu), active)
