"""Weights learnt with the model: as the precision of the labels (uncertainty), or to even out the losses (IMTL-L)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from multigate.balance.balance import Balance, Balancer
from multigate.schema import Task


class Uncertainty(Balance):
    """sum_t w_t (1/2 exp(-s_t) L_t + 1/2 s_t), s learnt from 0 (Kendall, Gal, Cipolla 2018), w the declared weights."""

    method: Literal["uncertainty"] = "uncertainty"

    def build(self, tasks: Sequence[Task]) -> "UncertaintyBalancer":
        return UncertaintyBalancer(tasks)


class UncertaintyBalancer(Balancer):
    """A task with no known label in the batch moves neither its variance nor the model."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        return 0.5 * torch.exp(-self.log_variance)

    def penalty(self, present: Tensor) -> Tensor:
        return (0.5 * self.log_variance * self.declared * present).sum()


class IMTLL(Balance):
    """sum_t w_t (exp(s_t) L_t - s_t), s learnt from 0 (Liu et al. 2021, loss balance), w the declared weights.

    At its minimum over s every exp(s_t) L_t is 1. It is twice uncertainty weighting at -s, so it differs in the
    weights it starts from and in how fast s moves.
    """

    method: Literal["imtl_l"] = "imtl_l"

    def build(self, tasks: Sequence[Task]) -> "IMTLLBalancer":
        return IMTLLBalancer(tasks)


class IMTLLBalancer(Balancer):
    """A task with no known label in the batch moves neither its scale nor the model."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.log_scale = nn.Parameter(torch.zeros(len(tasks)))

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        return torch.exp(self.log_scale)

    def penalty(self, present: Tensor) -> Tensor:
        return -(self.log_scale * self.declared * present).sum()
