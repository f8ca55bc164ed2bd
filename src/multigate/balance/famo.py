"""FAMO: all losses fall at the same rate, by looking at how far each step lowered them."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from multigate.balance.adam import Adam
from multigate.balance.balance import Balance, Balancer, shares
from multigate.schema import Task

EPSILON = 1e-8


class FAMO(Balance):
    """Down sum_t z_t ln L_t, z = softmax(xi), where xi grows for tasks whose loss fell little in the last step.

    Liu et al. 2023, Algorithms 1 and 2. Each step looks at its batch once more, without gradients, with the same
    dropout masks.
    """

    method: Literal["famo"] = "famo"
    learning_rate: float = Field(default=0.025, gt=0, allow_inf_nan=False)
    """Of Adam on xi."""
    decay: float = Field(default=1e-3, ge=0, allow_inf_nan=False)
    """Pulls xi to 0 and so the weights together."""

    def build(self, tasks: Sequence[Task]) -> "FAMOBalancer":
        return FAMOBalancer(self, tasks)


class FAMOBalancer(Balancer):
    """Weights proportional to z_t / L_t."""

    logits: Tensor

    def __init__(self, options: FAMO, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.rate, self.decay, self.looks_back = options.learning_rate, options.decay, len(tasks) > 1
        self.register_buffer("logits", torch.zeros(len(tasks)))
        self.adam = Adam(len(tasks))

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        ratios = torch.where(active, shares(self.logits, active) / losses.clamp_min(EPSILON), 0.0)
        return active.sum() * ratios / ratios.sum()

    def after_step(self, before: Tensor, after: Tensor, present: Tensor) -> None:
        active = present & (self.declared > 0)
        fall = torch.where(active, _log(before) - _log(after), 0.0)
        z = torch.softmax(self.logits.masked_fill(~active, -torch.inf), dim=0)
        gradient = z * (fall - (z * fall).sum()) + self.decay * self.logits  # of z . fall, so the slow ones gain
        self.adam.step(self.logits, gradient, self.rate, active)


def _log(losses: Tensor) -> Tensor:
    return losses.clamp_min(EPSILON).log()
