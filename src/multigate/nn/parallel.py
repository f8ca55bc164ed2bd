"""n independent copies of a layer in one matmul: experts, gates and towers are the same thing."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.nn.chance import dropout
from multigate.nn.norm import ParallelBatchNorm, ParallelLayerNorm

Activation = Literal["relu", "silu", "gelu", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
}


class ParallelLinear(nn.Module):
    """n linear maps side by side. x (B, D), read by all, or (B, n, D), one each -> (B, n, H).

    Each copy is initialised like ``torch.nn.Linear``, from draws of its own.
    """

    def __init__(self, n: int, d_in: int, d_out: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(d_in, 1))
        self.weight = nn.Parameter(torch.empty(n, d_out, d_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, d_out).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        n, d_out, _ = self.weight.shape
        if x.dim() == 2:
            flat = functional.linear(x, self.weight.flatten(0, 1), None if self.bias is None else self.bias.flatten())
            return flat.view(-1, n, d_out)
        # (n, B, D) @ (n, D, H): views only, the copies lie in memory as the layer before left them
        x, weight = x.transpose(0, 1), self.weight.transpose(1, 2)
        if self.bias is None:
            return torch.bmm(x, weight).transpose(0, 1)
        return torch.baddbmm(self.bias.unsqueeze(1), x, weight).transpose(0, 1)

    def one(self, i: int, x: Tensor) -> Tensor:
        """Copy i alone. (B, D) -> (B, H)."""
        return functional.linear(x, self.weight[i], None if self.bias is None else self.bias[i])

    def multiply_adds(self) -> int:
        """Multiply-adds of one row through all copies."""
        return self.weight.numel()

    def extra_repr(self) -> str:
        n, d_out, d_in = self.weight.shape
        return f"{n} x ({d_in} -> {d_out}), bias={self.bias is not None}"


class ParallelMLP(nn.Module):
    """n multilayer perceptrons side by side. x (B, D) or (B, n, D) -> (B, n, hidden[-1]).

    Every layer is linear, then normalised if asked, activated, and dropped out if asked. With no hidden layer the
    copies pass their input on: (B, D) -> (B, n, D).
    """

    def __init__(
        self,
        n: int,
        d_in: int,
        hidden: Sequence[int],
        *,
        activation: Activation = "relu",
        dropout: float = 0.0,
        normalisation: Literal["none", "layer", "batch"] = "none",
    ) -> None:
        super().__init__()
        widths = (d_in, *hidden)
        self.n = n
        self.d_out = widths[-1]
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout
        self.layers = nn.ModuleList(ParallelLinear(n, a, b) for a, b in pairwise(widths))
        norm = {"none": None, "layer": ParallelLayerNorm, "batch": ParallelBatchNorm}[normalisation]
        self.norms = nn.ModuleList(norm(n, width) for width in hidden if norm is not None)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.norms:
                x = self.norms[i](x)
            x = dropout(self.activation(x), self.dropout, self.training)
        return x if x.dim() == 3 else x.unsqueeze(1).expand(-1, self.n, -1)

    def one(self, i: int, x: Tensor) -> Tensor:
        """Copy i alone, in evaluation. (B, D) -> (B, H)."""
        for at, layer in enumerate(self.layers):
            x = layer.one(i, x)  # type: ignore[operator]
            if self.norms:
                x = self.norms[at].one(i, x)  # type: ignore[operator]
            x = self.activation(x)
        return x

    def multiply_adds(self) -> int:
        """Multiply-adds of one row through all copies."""
        return sum(layer.multiply_adds() for layer in self.layers if isinstance(layer, ParallelLinear))
