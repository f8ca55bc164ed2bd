"""Adaptive task-to-task fusion: every task reads the experts of all, and its own once more, level by level."""

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from multigate.nn.gate import beside
from multigate.nn.mixture import mix
from multigate.nn.ownership import dealt_inputs
from multigate.nn.together import together
from multigate.sharing.levels import dealt, experts_of, shared_experts, through
from multigate.sharing.ple import SHARED, not_shared
from multigate.sharing.structure import GatedStructure, Level, Shared, all_read_all


class AdaTT(GatedStructure):
    """x_t^l = softmax(W_t^l x_t^{l-1}) E^l + sum_m v_{t,m}^l E_{t,m}^l, with E^l the experts of all tasks, E_{t,m}^l
    those of task t, which read x_t^{l-1}, and constants v that are learnt (Li et al. 2023).

    Where every unit has a single expert, v is 1. With ``shared`` experts it is the general AdaTT: they form one more
    unit, which all tasks read, and which reads all at every level but the last; without it is AdaTT-sp.
    """

    structure: Literal["adatt"] = "adatt"
    levels: int = Field(default=2, ge=1)
    """The layers ``hidden`` of an expert are dealt out to so many levels in order."""
    experts: int = Field(default=2, ge=1)
    """Of each task."""
    shared: int = Field(default=0, ge=0)
    """Experts of no task."""

    @model_validator(mode="after")
    def _layers_for_each_level(self) -> Self:
        dealt(self.hidden, self.levels)
        return self

    def check(self, tasks: tuple[str, ...]) -> None:
        if self.shared and self.levels > 1:
            not_shared(tasks)

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> "AdaTTSharing":
        return AdaTTSharing(self, d_in, tasks, d_context)

    def inputs(self, tasks: int) -> int | None:
        return tasks + (self.shared > 0)


class AdaTTSharing(nn.Module):
    """x (B, D), or (B, n, D) of n units -> z (B, T, H), gates (B, readers, E) of each level.

    Gates are all that a reading weighs, softmax and constant together, and so no distribution.
    """

    def __init__(self, options: AdaTT, d_in: int, tasks: tuple[str, ...], d_context: int) -> None:
        super().__init__()
        units = (*tasks, SHARED) if options.shared else tasks
        sources = (*experts_of(tasks, options.experts), *shared_experts(options.shared))
        self.levels = nn.ModuleList()
        wiring = []
        for level, hidden in enumerate(dealt(options.hidden, options.levels), 1):
            readers = tasks if level == options.levels else units
            self.levels.append(Fusion(options, hidden, d_in, d_context, len(tasks), len(readers)))
            wiring.append(Level(readers, sources, all_read_all(readers, sources), distribution=False))
            d_in = hidden[-1]
        self.wiring = tuple(wiring)
        self.d_out = d_in

    def forward(self, x: Tensor, context: Tensor | None = None) -> Shared:
        return through(self.levels, x, context)

    def multiply_adds(self) -> int:
        return sum(level.multiply_adds() for level in self.levels if isinstance(level, Fusion))


class Fusion(nn.Module):
    """A level: x (B, D) or (B, n, D) -> (B, readers, H)."""

    own: Tensor

    def __init__(
        self, options: AdaTT, hidden: tuple[int, ...], d_in: int, d_context: int, tasks: int, readers: int
    ) -> None:
        super().__init__()
        self.tasks, self.m, self.shared = tasks, options.experts, options.shared
        of = [task for task in range(tasks) for _ in range(self.m)] + [tasks] * self.shared
        self.experts = options.parallel_mlp(len(of), d_in, hidden)
        self.gate = options.gate(readers, len(of), d_in + d_context)
        own = [[unit == reader for unit in of] for reader in range(readers)]
        self.register_buffer("own", torch.tensor(own), persistent=False)
        counts = [sum(row) for row in own]
        v = torch.empty(sum(counts))
        for part in torch.split(v, counts):
            part.uniform_(-1, 1).div_(math.sqrt(len(part)))
        learnt = self.m > 1 or self.shared > 1
        self.v = nn.Parameter(v) if learnt else None

    def forward(self, x: Tensor, context: Tensor | None) -> Shared:
        if x.dim() == 2:
            experts, (gate,) = together(self.experts, [self.gate], x, context)  # weights (B, readers, E)
        else:
            many = [*[self.m] * self.tasks, *([self.shared] if self.shared else [])]
            experts = self.experts(dealt_inputs(x, many))
            gate = self.gate(beside(x, context)[:, : len(self.own)])
        native = self.own if self.v is None else self.own * functional.pad(self.v, (0, self.experts.n - len(self.v)))
        weights = gate.weights + native
        return Shared(mix(weights, experts), (weights,), gate.penalty)

    def multiply_adds(self) -> int:
        mixing = self.own.numel() * self.experts.d_out
        return self.experts.multiply_adds() + self.gate.multiply_adds() + mixing
