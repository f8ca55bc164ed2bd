"""n independent copies of a layer in one matmul: experts, gates and towers are the same thing."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.nn.chance import dropout
from multigate.nn.layout import stacked
from multigate.nn.norm import ParallelBatchNorm, ParallelLayerNorm

Activation = Literal["relu", "silu", "gelu", "tanh"]
Elementwise = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Elementwise] = {
    "relu": torch.relu_,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
}


WIDTH = 16
"""Numbers that a processor multiplies at once."""
PADDED = 1 << 16
"""Numbers in a weight from which on it pays to pad it to such a width."""


def unchanged(x: Tensor) -> Tensor:
    """x."""
    return x


class ParallelLinear(nn.Module):
    """n linear maps side by side. x (B, D), read by all, or (B, n, D), one each -> (B, n, H).

    Each copy is initialised like ``torch.nn.Linear``, from draws of its own. In memory the rows of the batch come last
    in what is made of x that lies so, and of one input where ``rows_last`` says so (``nn/layout.py``). ``activation``
    may work in place.
    """

    def __init__(self, n: int, d_in: int, d_out: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(d_in, 1))
        self.weight = nn.Parameter(torch.empty(n, d_out, d_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, d_out).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, *, rows_last: bool = False, activation: Elementwise = unchanged) -> Tensor:
        n, d_out, _ = self.weight.shape
        if x.dim() == 3 and x.stride(1) == 0 and n > 1:
            x = x[:, 0]  # one input, expanded
        if x.dim() == 2:
            weight, bias = self.weight.flatten(0, 1), None if self.bias is None else self.bias.flatten()
            if rows_last and not stacked(x):
                return activation(self._last(x, weight, bias)).view(n, d_out, -1).permute(2, 0, 1)
            return activation(functional.linear(x, weight, bias)).view(-1, n, d_out)
        last = x.permute(1, 2, 0)
        if last.is_contiguous():
            return activation(_product(self.bias, -1, self.weight, last)).permute(2, 0, 1)
        # (n, B, D) @ (n, D, H): views only
        return activation(_product(self.bias, 1, x.transpose(0, 1), self.weight.transpose(1, 2))).transpose(0, 1)

    def _last(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, D) -> (n H, B), with the bias among the weights, as the factor of a 1 beside x, and widths a
        multiple of 16: then matmuls for gradients run at full speed, and that of the bias needs no pass of its own."""
        width = -(x.shape[1] + 1) % WIDTH
        if bias is None or weight.numel() < PADDED:
            return weight @ x.t() if bias is None else torch.addmm(bias.unsqueeze(1), weight, x.t())
        weight = torch.cat((weight, functional.pad(bias.unsqueeze(1), (0, width))), dim=1)
        ones = functional.pad(x.new_ones(x.shape[0], 1), (0, width))
        return weight @ torch.cat((x, ones), dim=1).t()

    def one(self, i: int, x: Tensor) -> Tensor:
        """Copy i alone. (B, D) -> (B, H)."""
        return functional.linear(x, self.weight[i], None if self.bias is None else self.bias[i])

    def multiply_adds(self) -> int:
        """Multiply-adds of one row through all copies."""
        return self.weight.numel()

    def extra_repr(self) -> str:
        n, d_out, d_in = self.weight.shape
        return f"{n} x ({d_in} -> {d_out}), bias={self.bias is not None}"


def _product(bias: Tensor | None, axis: int, left: Tensor, right: Tensor) -> Tensor:
    """left @ right + bias (n, H), which lies along H: ``axis`` is the one it lacks."""
    return torch.bmm(left, right) if bias is None else torch.baddbmm(bias.unsqueeze(axis), left, right)


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
            if self.norms:
                x = self.activation(self.norms[i](layer(x)))
            else:
                x = layer(x, rows_last=self.training and len(self.layers) > 1, activation=self.activation)
            x = dropout(x, self.dropout, self.training)
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
