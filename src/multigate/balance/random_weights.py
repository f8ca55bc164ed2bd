"""Random weights, drawn anew at each step: the litmus test of balances."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from multigate.balance.balance import Balance, Balancer, shares
from multigate.schema import Task


class RandomWeights(Balance):
    """T softmax(n), n standard normal and new at each step (Lin et al. 2022, RLW, Algorithm 2)."""

    method: Literal["random"] = "random"

    def build(self, tasks: Sequence[Task]) -> "RandomBalancer":
        return RandomBalancer(tasks)


class RandomBalancer(Balancer):
    """Draws from torch's global generator, whose state is in every checkpoint; that of the CPU on every device."""

    recordable = False

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        return shares(torch.randn(len(losses)).to(losses.device), active)
