"""n independent copies of a layer in one matmul: experts, gates and towers are the same thing."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.nn.activation import ACTIVATIONS, Activation, activate
from multigate.nn.composition import composes
from multigate.nn.eager import eager, multiplied_in, pays, transformed, watched
from multigate.nn.layout import lies_last
from multigate.nn.linear_layers import LinearLayers, lies_by_rows, linear_layers
from multigate.nn.lookups import numbers, product, untouched
from multigate.nn.norm import ParallelBatchNorm, ParallelLayerNorm


class ParallelLinear(nn.Module):
    """n linear maps side by side. x (B, D), read by all, or (B, u, D), by n / u of them each in order -> (B, n, H).

    Each copy is initialised like ``torch.nn.Linear``, from draws of its own.
    """

    def __init__(self, n: int, d_in: int, d_out: int, *, bias: bool = True) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(d_in, 1))
        self.weight = nn.Parameter(torch.empty(n, d_out, d_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, d_out).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return parallel_linear(x, self.weight, self.bias)

    def plain(self, rows: int, inputs: int, numbers: int | None = None) -> bool:
        """Whether ``weight`` itself multiplies rows of so many inputs, and nobody hooks in or transforms it."""
        return type(self) is ParallelLinear and not (watched(self) or transformed(self.weight))

    def one(self, i: int, x: Tensor) -> Tensor:
        """Copy i alone. (B, D) -> (B, H)."""
        return functional.linear(x, self.weight[i], None if self.bias is None else self.bias[i])

    def multiply_adds(self) -> int:
        """Multiply-adds of one row through all copies."""
        return self.weight.numel()

    def extra_repr(self) -> str:
        n, d_out, d_in = self.weight.shape
        return f"{n} x ({d_in} -> {d_out}), bias={self.bias is not None}"


def parallel_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, D) or (B, u, D), by n maps of weight (n, H, D) and bias (n, H), as ``ParallelLinear`` -> (B, n, H)."""
    n, d_out, _ = weight.shape
    x = one_input(x)
    if x.dim() == 2:
        flat = functional.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
        return flat.view(-1, n, d_out)
    # what reads one input is one matmul; the inputs lie as the layer before left them, and so do the outputs
    u = x.shape[1]
    weight = weight.reshape(u, -1, weight.shape[2])  # (u, n / u H, D)
    if eager(x) and lies_last(x):
        last = x.permute(1, 2, 0)  # (u, D, B)
        bias = None if bias is None else bias.reshape(u, -1, 1)
        made = torch.bmm(weight, last) if bias is None else torch.baddbmm(bias, weight, last)
        return made.view(n, d_out, -1).permute(2, 0, 1)
    x, weight = x.transpose(0, 1), weight.transpose(1, 2)
    made = torch.bmm(x, weight) if bias is None else torch.baddbmm(bias.reshape(u, 1, -1), x, weight)
    return made.transpose(0, 1) if u == n else made.transpose(0, 1).reshape(-1, n, d_out)


def is_one(x: Tensor) -> bool:
    """Whether x (B, n, D) is one input, expanded."""
    return x.dim() == 3 and x.stride(1) == 0 and x.shape[1] > 1


def one_input(x: Tensor) -> Tensor:
    """The one input (B, D) of an x (B, n, D) that is expanded, with a gradient that lies as it does; else x."""
    if not is_one(x):
        return x
    return x.permute(1, 2, 0)[0].t() if x.stride(0) == 1 else x[:, 0]


def inputs(x: Tensor) -> int:
    """How many inputs x (B, D) or (B, u, D) holds."""
    return 1 if x.dim() == 2 or is_one(x) else x.shape[1]


class ParallelMLP(nn.Module):
    """n multilayer perceptrons side by side. x (B, D) or (B, u, D), as ``ParallelLinear`` -> (B, n, hidden[-1]).

    Every layer is linear, then normalised if asked, activated, and dropped out if asked. With no hidden layer the
    copies pass their input on: (B, D) -> (B, n, D). ``first`` (n, H, D), if given, is multiplied in place of the first
    layer's weight.
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
        self.activation = activation
        self.dropout = dropout
        self.layers = nn.ModuleList(ParallelLinear(n, a, b) for a, b in pairwise(widths))
        norm = {"none": None, "layer": ParallelLayerNorm, "batch": ParallelBatchNorm}[normalisation]
        self.norms = nn.ModuleList(norm(n, width) for width in hidden if norm is not None)

    def forward(self, x: Tensor, first: Tensor | None = None) -> Tensor:
        if self._written_out(x):
            made: Tensor = self._linear_layers(x, first)
            return made
        for i, layer in enumerate(self.layers):
            x = layer(x) if i or first is None else parallel_linear(x, first, layer.bias)  # type: ignore[arg-type]
            x = self._after(i, x)
        if x.dim() == 2:
            x = x.unsqueeze(1)
        return x if x.shape[1] == self.n else x.repeat_interleave(self.n // x.shape[1], dim=1)

    def through(self, x: Tensor, maps: Tensor) -> Tensor:
        """The copies, each of what its own of the maps (n, D, K) makes of x (B, K) -> (B, n, hidden[-1]).

        A map and a first layer, both linear, are made one where that takes fewer multiply-adds.
        """
        first = self.layers[0]
        weight: Tensor = first.weight  # type: ignore[assignment]
        making = weight.numel() * maps.shape[2]
        if not watched(first) and composes(x.shape[0], *self._first_through(maps.shape[2]), making):
            made: Tensor = self(x, weight @ maps)
            return made
        read = (maps.flatten(0, 1) @ x.t()).view(*maps.shape[:2], -1)  # (n, D, B)
        made = self(read.permute(2, 0, 1))
        return made

    def _first_through(self, numbers: int) -> tuple[int, int]:
        """Multiply-adds of one row through maps from so many numbers and the first layer, apart and as one."""
        n, d_out, d_in = self.layers[0].weight.shape  # type: ignore[misc]
        return n * d_in * (numbers + d_out), n * d_out * numbers

    def _after(self, i: int, x: Tensor) -> Tensor:
        """What stands behind layer i."""
        norm: Any = self.norms[i] if self.norms else None
        return activate(x, norm, self.activation, self.dropout, self.training)

    @property
    def _relu_alone(self) -> bool:
        """Whether nothing but ReLU stands behind layers."""
        return self.activation == "relu" and not (self.norms or (self.dropout and self.training))

    def _written_out(self, x: Tensor) -> bool:
        """Whether to take ``LinearLayers``, or of many rows without gradients ``linear_layers``: eagerly, on a CPU, or
        anywhere where nothing but ReLU stands between."""
        if not (len(self.layers) and (self.training or pays(x)) and eager(x)):
            return False
        if not self._relu_alone and (x.device.type != "cpu" or not lies_by_rows(one_input(x))):
            return False  # layers that read as many inputs as they are have one matmul each way as they are
        return all(
            layer.plain(len(x), self.n) if i else layer.plain(len(x), inputs(x), numbers(x))  # type: ignore[operator]
            for i, layer in enumerate(self.layers)
        )

    def with_products(self, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]] | None:
        """The copies of x (B, D), and weight @ x^T (m, B) for each of the weights (m, D), from one matmul in training.

        None where that takes more than one: see ``LinearLayers``.
        """
        if watched(self) or not (lies_by_rows(x) and self._written_out(x)):
            return None
        if any(weight.shape[-1] != x.shape[-1] for weight in weights):
            return None  # whoever multiplies by them says what is wrong
        flat = [weight.flatten(0, -2) for weight in weights]
        if not self.training:
            x = x if untouched(x) else x.to(multiplied_in(x))
            return self._linear_layers(x), [self._product(weight, x) for weight in flat]
        made, products = self._linear_layers(x, beside=flat[0] if len(flat) == 1 else torch.cat(flat))
        return made, list(products.split([weight.shape[:-1].numel() for weight in weights]))

    def _linear_layers(self, x: Tensor, first: Tensor | None = None, beside: Tensor | None = None) -> Any:
        weights = [first if first is not None and i == 0 else layer.weight for i, layer in enumerate(self.layers)]
        biases = (layer.bias for layer in self.layers)
        parameters: list[Any] = [parameter for pair in zip(weights, biases, strict=True) for parameter in pair]
        x, dtype, relu = one_input(x), multiplied_in(x), self._relu_alone
        given, read = x.shape[-1], parameters[0].shape[-1]
        if given != read:  # which a matmul may not see: rows are padded, and what is looked up is at places of its own
            raise RuntimeError(f"layers that read {read} columns cannot read {given}")
        parameters = parameters if relu else parameters[:2]
        if self.training:
            x, parts, tables = (x.dense, x.parts, x.tables) if untouched(x) else (x, None, ())
            made = LinearLayers.apply(x, dtype, relu, beside, parts, *tables, *parameters)  # type: ignore[no-untyped-call]
        else:
            made = linear_layers(x, dtype, relu, *parameters)
        if relu:
            return made
        made, *products = made if isinstance(made, tuple) else (made,)
        made = self._after(0, made)
        for i, layer in enumerate(self.layers[1:], 1):
            made = self._after(i, layer(made))
        return (made, *products) if products else made

    @staticmethod
    def _product(weight: Tensor, x: Tensor) -> Tensor:
        """weight (m, D) @ x^T (m, B), without gradients."""
        if untouched(x):
            return product(weight, x)
        return torch.mm(weight.to(x.dtype), x.t())

    def one(self, i: int, x: Tensor) -> Tensor:
        """Copy i alone, in evaluation. (B, D) -> (B, H)."""
        for at, layer in enumerate(self.layers):
            x = layer.one(i, x)  # type: ignore[operator]
            if self.norms:
                x = self.norms[at].one(i, x)  # type: ignore[operator]
            x = ACTIVATIONS[self.activation](x)
        return x

    def multiply_adds(self) -> int:
        """Multiply-adds of one row through all copies."""
        return sum(layer.multiply_adds() for layer in self.layers if isinstance(layer, ParallelLinear))

    def multiply_adds_through(self, numbers: int) -> int:
        """Multiply-adds of one row, among many, through maps from so many numbers and all copies."""
        return min(self._first_through(numbers)) + self.multiply_adds() - self.layers[0].multiply_adds()  # type: ignore[operator]
