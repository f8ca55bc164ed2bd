"""Fixed weights: the ones the tasks declare."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from multigate.balance.balance import Balance, Balancer
from multigate.schema import Task


class Fixed(Balance):
    """sum_t w_t L_t, w the declared weights."""

    method: Literal["fixed"] = "fixed"

    def build(self, tasks: Sequence[Task]) -> "FixedBalancer":
        return FixedBalancer(tasks)


class FixedBalancer(Balancer):
    """Every task counts with its declared weight."""

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        return torch.ones_like(losses)
