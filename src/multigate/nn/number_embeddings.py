"""Numbers as vectors: piecewise linear, or periodic."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.batch import NumberColumn


class Piecewise(nn.Module):
    """Piecewise-linear number embeddings (Gorishniy et al. 2022, section 3.2). numbers (B, N) -> (B, n * dim).

    The value is written as how far it has come through each interval between neighbouring quantiles, then a linear
    map and ReLU of each feature's own.
    """

    low: Tensor
    width: Tensor
    columns: Tensor

    def __init__(self, columns: Sequence[int], edges: Sequence[Sequence[float]], dim: int) -> None:
        super().__init__()
        intervals = max(len(one) for one in edges) - 1
        low = torch.zeros(len(edges), intervals)
        width = torch.full((len(edges), intervals), torch.inf)  # an interval that is not there is never entered
        for i, one in enumerate(edges):
            knots = torch.tensor(one, device="cpu")  # on the meta device a difference would import the compiler
            low[i, : len(one) - 1] = knots[:-1]
            width[i, : len(one) - 1] = knots[1:] - knots[:-1]
        bound = 1 / math.sqrt(intervals)
        self.weight = nn.Parameter(torch.empty(len(edges), intervals, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(edges), dim).uniform_(-bound, bound))
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("width", width, persistent=False)
        self.d_out = len(edges) * dim

    def forward(self, numbers: Tensor) -> Tensor:
        x = numbers.index_select(1, self.columns).unsqueeze(-1)
        # (B, n, Q), the widest tensor there is, made in place; vmap has these two, but no clamp_
        progress = (x - self.low).div_(self.width).clamp_min_(0).clamp_max_(1)
        return functional.relu(torch.einsum("bnq,nqd->bnd", progress, self.weight) + self.bias).flatten(1)


class Periodic(nn.Module):
    """Periodic number embeddings, frequencies learnt (Gorishniy et al. 2022, section 3.3). (B, N) -> (B, n * dim)."""

    columns: Tensor

    def __init__(self, columns: Sequence[int], dim: int, frequencies: int = 16, scale: float = 0.1) -> None:
        super().__init__()
        n, bound = len(columns), 1 / math.sqrt(2 * frequencies)
        self.frequency = nn.Parameter(torch.randn(n, frequencies).mul_(scale))
        self.weight = nn.Parameter(torch.empty(n, 2 * frequencies, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, dim).uniform_(-bound, bound))
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.d_out = n * dim

    def forward(self, numbers: Tensor) -> Tensor:
        angle = (
            2 * math.pi * numbers.index_select(1, self.columns).unsqueeze(-1) * self.frequency
        )  # (B, n, frequencies)
        waves = torch.cat((angle.cos(), angle.sin()), dim=-1)
        return functional.relu(torch.einsum("bnq,nqd->bnd", waves, self.weight) + self.bias).flatten(1)


def number_embeddings(numbers: Sequence[NumberColumn], dim: int) -> list[Piecewise | Periodic]:
    """One module per kind and width of number embedding asked for, ``dim`` where a column has none of its own."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, column in enumerate(numbers):
        if column.embedding == "periodic" or (column.embedding == "piecewise" and len(column.edges) > 1):
            groups.setdefault((column.embedding, column.dim or dim), []).append(i)
    return [
        Periodic(columns, width)
        if kind == "periodic"
        else Piecewise(columns, [numbers[i].edges for i in columns], width)
        for (kind, width), columns in groups.items()
    ]
