"""GradNorm: gradients of one length, longer for tasks that lag behind."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from multigate.balance.adam import Adam
from multigate.balance.balance import Balance, Balancer
from multigate.schema import Task

LEAST = 1e-3
"""What a weight may fall to."""
EPSILON = 1e-8


class GradNorm(Balance):
    """Weights v down sum_t |v_t |g_t| - m r_t^alpha|, scaled to a mean of 1 (Chen et al. 2018, Algorithm 1).

    m is the mean of v_t |g_t|, and r_t = (L_t / L_t(0)) over its mean, L_t(0) the loss of the first batch with labels.
    The gradients are taken at x, where the paper takes those of the last shared layer's weights.
    """

    method: Literal["gradnorm"] = "gradnorm"
    alpha: float = Field(default=1.5, ge=0, allow_inf_nan=False)
    """How much faster than the others a lagging task is to learn; 0 evens out the gradients."""
    learning_rate: float = Field(default=0.025, gt=0, allow_inf_nan=False)
    """Of Adam on the weights."""
    every: int = Field(default=1, ge=1)
    """Steps between two looks at the gradients; the weights stay in between."""

    def build(self, tasks: Sequence[Task]) -> "GradNormBalancer":
        return GradNormBalancer(self, tasks)


class GradNormBalancer(Balancer):
    """Keeps the weights (T,), Adam's moments and the first losses (T,), 0 where none was seen yet."""

    learnt: Tensor
    first: Tensor

    def __init__(self, options: GradNorm, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.options, self.needs_gramian, self.every = options, len(tasks) > 1, options.every
        self.register_buffer("learnt", torch.ones(len(tasks)))
        self.register_buffer("first", torch.zeros(len(tasks)))
        self.adam = Adam(len(tasks))

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        now = self.learnt.clone()
        if gramian is not None:
            self._learn(losses, gramian.diagonal().sqrt(), active)
        return now

    def _learn(self, losses: Tensor, norms: Tensor, active: Tensor) -> None:
        self.first.copy_(torch.where(active & (self.first == 0), losses, self.first))
        count = active.sum().clamp_min(1)
        lengths = torch.where(active, self.learnt * norms, 0.0)
        left = torch.where(active, losses.clamp_min(0) / (self.first + EPSILON), 0.0)
        behind = left * count / (left.sum() + EPSILON)
        target = lengths.sum() / count * behind**self.options.alpha
        gradient = norms * torch.sign(lengths - target)
        before = torch.where(active, self.learnt, 0.0).sum()  # of the tasks that are there: others pay nothing
        self.adam.step(self.learnt, gradient, self.options.learning_rate, active & gradient.isfinite())
        self.learnt.clamp_(min=LEAST)
        now = torch.where(active, self.learnt, 0.0).sum()
        self.learnt.copy_(torch.where(active, self.learnt * before / now, self.learnt))
