"""Cross-stitch: a network per task, and after each layer every task reads a learned mixture of all of theirs."""

from itertools import pairwise
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from multigate.nn.layout import batch_last
from multigate.nn.mixture import combine
from multigate.nn.parallel import ParallelMLP
from multigate.sharing.structure import Level, Shared, Structure, all_read_all


class CrossStitch(Structure):
    """x~_t = sum_j a_tj x_j after each hidden layer, a_tj one learned number (Misra et al. 2016, Eq. 1)."""

    structure: Literal["cross_stitch"] = "cross_stitch"
    own: float = Field(default=0.9, ge=0, le=1)
    """First weight of a task's own units, the rest of 1 being spread over the others'. Weights that all start at 1, as
    some libraries have them, make every task read the same sum, T times as large after each layer."""
    subspaces: int = Field(default=1, ge=1)
    """Parts of each layer's units that are read apart, each with weights of its own, as in sluice networks
    (Ruder et al. 2019). Widths are multiples of it."""

    @model_validator(mode="after")
    def _whole_subspaces(self) -> Self:
        for width in self.hidden:
            if width % self.subspaces:
                raise ValueError(
                    f"{self.subspaces} subspaces want widths that are multiples of {self.subspaces}, found {width}"
                )
        return self

    def build(self, d_in: int, tasks: tuple[str, ...]) -> "CrossStitchSharing":
        return CrossStitchSharing(self, d_in, tasks)

    def inputs(self, tasks: int) -> int | None:
        return tasks

    def widened(self, factor: float) -> Self:
        s = self.subspaces
        return self.with_(hidden=tuple(s * max(1, round(width * factor / s)) for width in self.hidden))


class CrossStitchSharing(nn.Module):
    """x (B, D) or (B, T, D) -> z (B, T, H), and the weights a (B, T s, T s) after each layer, of s subspaces."""

    def __init__(self, options: CrossStitch, d_in: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            options.parallel_mlp(len(tasks), before, (after,)) for before, after in pairwise((d_in, *options.hidden))
        )
        readers = parted(tasks, options.subspaces)
        sources = parted(tuple(f"network of {task}" for task in tasks), options.subspaces)
        self.stitches = nn.ParameterList(near_identity(len(readers), options.own) for _ in options.hidden)
        self.wiring = tuple(
            Level(readers, sources, all_read_all(readers, sources), distribution=False) for _ in options.hidden
        )
        self.subspaces = options.subspaces
        self.d_out = options.hidden[-1]

    def forward(self, x: Tensor) -> Shared:
        gates = []
        for network, stitch in zip(self.networks, self.stitches, strict=True):
            last = batch_last(network(x))  # (T, H, B)
            parts = last.view(len(stitch), last.shape[1] // self.subspaces, -1)  # (T s, H / s, B)
            x = combine(stitch, parts).view(last.shape).permute(2, 0, 1)  # (B, T, H)
            # a view of a parameter would want gradients even in inference mode
            gates.append(stitch.clone().expand(x.shape[0], -1, -1))
        return Shared(x, tuple(gates), penalty=x.new_zeros(()))

    def multiply_adds(self) -> int:
        layers = [network for network in self.networks if isinstance(network, ParallelMLP)]
        return sum(
            layer.multiply_adds() + stitch.numel() * layer.d_out // self.subspaces
            for layer, stitch in zip(layers, self.stitches, strict=True)
        )


def near_identity(n: int, own: float) -> Tensor:
    """Weights of n readers: ``own`` of the source in their own place, the rest of 1 spread over the others. (n, n)."""
    others = (1 - own) / max(n - 1, 1)
    return torch.full((n, n), others).fill_diagonal_(own if n > 1 else 1.0)


def parted(names: tuple[str, ...], parts: int) -> tuple[str, ...]:
    """Each name once for each of its parts."""
    return names if parts == 1 else tuple(f"{name}, part {part}" for name in names for part in range(1, parts + 1))
