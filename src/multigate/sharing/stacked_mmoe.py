"""Stacked multi-gate mixtures: levels of experts, where each expert reads a mixture of those one level below."""

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from multigate.nn.dispatch import mix_experts, multiply_adds
from multigate.nn.gate import beside
from multigate.nn.layout import mean_of_copies
from multigate.nn.together import mixture
from multigate.sharing.levels import dealt
from multigate.sharing.mmoe import Mixture
from multigate.sharing.structure import Level, Shared, all_read_all


class StackedMMoE(Mixture):
    """u_j^{l+1} = sum_i g_j^l(v^l)_i f_i^l(u_i^l), read by expert j of level l + 1 and, at the last level, by task j.

    The ML-MMoE that others compare with (Ma et al. 2019, SNR; Tang et al. 2020, Fig. 1h), in which experts of the next
    level are readers like tasks. There all gates read x, which did worse than one level; here ``gates_read`` decides.
    """

    structure: Literal["stacked_mmoe"] = "stacked_mmoe"
    levels: int = Field(default=2, ge=1)
    """The layers ``hidden`` of an expert are dealt out to so many levels in order."""
    gates_read: Literal["level", "input"] = "level"
    """v^l: the mean of what the experts of the level read (at the first level x), or x at every level."""

    @model_validator(mode="after")
    def _layers_for_each_level(self) -> Self:
        dealt(self.hidden, self.levels)
        return self

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> "StackedSharing":
        return StackedSharing(self, d_in, tasks, d_context)


class StackedSharing(nn.Module):
    """x (B, D) -> z (B, T, H), gates ((B, E, E), ..., (B, T, E)), one for each level."""

    def __init__(self, options: StackedMMoE, d_in: int, tasks: tuple[str, ...], d_context: int) -> None:
        super().__init__()
        self.gates_read = options.gates_read
        named = [tuple(f"expert {level}.{i}" for i in range(options.experts)) for level in range(1, options.levels + 1)]
        self.wiring = tuple(
            Level(readers, sources, all_read_all(readers, sources)) for sources, readers in pairwise((*named, tasks))
        )
        self.bottom = options.parallel_mlp(1, d_in, options.bottom)
        self.levels = nn.ModuleList()
        read = d_in = self.bottom.d_out
        for level, hidden in zip(self.wiring, dealt(options.hidden, options.levels), strict=True):
            d_gate = (read if options.gates_read == "level" else d_in) + d_context
            self.levels.append(Mixed(options, hidden, len(level.readers), read, d_gate))
            read = hidden[-1]
        self.d_out = read

    def forward(self, x: Tensor, context: Tensor | None = None) -> Shared:
        if self.bottom.layers:
            x = self.bottom(x).squeeze(1)
        u, gates, penalty = x, (), x.new_zeros(())
        for level in self.levels:
            v = x if self.gates_read == "input" or u.dim() == 2 else mean_of_copies(u)
            u, gate, added = level(u, v, context)
            gates, penalty = (*gates, *gate), penalty + added
        return Shared(u, gates, penalty)

    def multiply_adds(self) -> int:
        levels = (level.multiply_adds() for level in self.levels if isinstance(level, Mixed))
        return self.bottom.multiply_adds() + sum(levels)


class Mixed(nn.Module):
    """A level: what its experts read, u (B, D) or (B, E, D), and its gates, v (B, D) -> (B, readers, H)."""

    def __init__(self, options: StackedMMoE, hidden: tuple[int, ...], readers: int, d_in: int, d_gate: int) -> None:
        super().__init__()
        self.experts = options.parallel_mlp(options.experts, d_in, hidden)
        self.gate = options.gate(readers, options.experts, d_gate)
        self.readers = readers

    def forward(self, u: Tensor, v: Tensor, context: Tensor | None) -> Shared:
        if u is v:
            z, (weights, penalty) = mixture(self.experts, self.gate, u, context)
        else:
            weights, penalty = self.gate(beside(v, context))
            z = mix_experts(weights, self.experts, u, sparse=self.gate.sparse)
        return Shared(z, (weights,), penalty)

    def multiply_adds(self) -> int:
        return self.gate.multiply_adds() + multiply_adds(self.experts, self.readers, self.gate.most_read())
