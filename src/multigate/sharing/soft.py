"""Soft sharing: a network per task, and a penalty that draws their weights together."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from multigate.nn.parallel import ParallelMLP
from multigate.nn.ties import PairDistance, TraceNorm, TuckerNorm
from multigate.sharing.structure import Level, Shared, Structure


class Soft(Structure):
    """y_k = h^k(f(x; theta_k)), and strength * penalty(theta_1, ..., theta_T) in the loss.

    ``l2`` is ||theta_j - theta_k||^2 of every pair of tasks (Duong et al. 2015; Ma et al. 2018, section 6.1). ``trace``
    is the trace norm, layer by layer, of the matrix of one row per task; ``tucker`` sums the trace norms of all three
    unfoldings of each layer's tensor of weights (Yang and Hospedales 2016).
    """

    structure: Literal["soft"] = "soft"
    penalty: Literal["l2", "trace", "tucker"] = "l2"
    strength: float = Field(default=1e-4, ge=0)
    """Of the penalty in the loss. The pairs of ``l2`` pull T times as hard on each of T tasks; the trace norms pull all
    alike, and cut to 0 the network of a task whose own gradient is smaller."""
    alike: float = Field(default=0.9, ge=0, le=1)
    """Part of the variance of first weights that tasks have in common. Units of networks that start apart have nothing
    to do with one another, and to be drawn together costs them what they have learnt."""
    every: int = Field(default=10, ge=1)
    """Training steps for which ``tucker`` keeps a subgradient, which costs about a step to take."""

    def idle(self) -> Mapping[str, str]:
        return {} if self.penalty == "tucker" else {"every": f"it is of penalty 'tucker', this one is {self.penalty!r}"}

    def build(self, d_in: int, tasks: tuple[str, ...]) -> "SoftSharing":
        return SoftSharing(self, d_in, tasks)

    def tie(self, layer: nn.Module) -> nn.Module:
        """The penalty of the weights and biases of one layer."""
        if self.penalty == "tucker":
            weight, _ = layer.parameters()
            return TuckerNorm(weight.shape, self.every)
        return TraceNorm() if self.penalty == "trace" else PairDistance()

    def inputs(self, tasks: int) -> int | None:
        return tasks


class SoftSharing(nn.Module):
    """x (B, D) or (B, T, D) -> z (B, T, H), each task's from its own network; the penalty ties their layers."""

    def __init__(self, options: Soft, d_in: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.networks = options.parallel_mlp(len(tasks), d_in)
        self.start_alike(options.parallel_mlp(1, d_in), options.alike)
        self.d_out = self.networks.d_out
        own = tuple(tuple(reader == source for source in tasks) for reader in tasks)
        self.wiring = (Level(tasks, tuple(f"network of {task}" for task in tasks), own),)
        self.strength = options.strength
        self.ties = nn.ModuleList(options.tie(layer) for layer in self.networks.layers)

    @torch.no_grad()
    def start_alike(self, common: ParallelMLP, part: float) -> None:
        """Mix the first weights of one network into all others', keeping their variance."""
        for own, shared in zip(self.networks.layers.parameters(), common.layers.parameters(), strict=True):
            own.mul_(math.sqrt(1 - part)).add_(shared.mul_(math.sqrt(part)))

    def forward(self, x: Tensor) -> Shared:
        penalty = self.penalty() if self.training and self.strength else x.new_zeros(())
        return Shared(self.networks(x), gates=(), penalty=penalty)

    def penalty(self) -> Tensor:
        """What the networks' layers pay for being apart; a layer without biases has zeros for them."""
        each = []
        for tie, layer in zip(self.ties, self.networks.layers, strict=True):
            weight, bias = layer.weight, layer.bias
            each.append(tie(weight, weight.new_zeros(weight.shape[:2]) if bias is None else bias))
        return self.strength * torch.stack(each).sum()

    def multiply_adds(self) -> int:
        return self.networks.multiply_adds()
