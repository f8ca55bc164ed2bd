"""The rows of a batch last in memory: where the same small matrix multiplies all of them, that is one matmul."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multigate.nn.eager import eager


class Transposed(torch.autograd.Function):
    """x (M, N) -> x^T (N, M), written out anew, as its gradient is: a strided one slows down what comes before."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.t().contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].t().contiguous()


def batch_last(x: Tensor) -> Tensor:
    """(B, n, H) -> (n, H, B), contiguous."""
    last = x.permute(1, 2, 0)
    if last.is_contiguous() or not x.is_contiguous():
        return last.contiguous()
    turned: Tensor = Transposed.apply(x.flatten(1))  # type: ignore[no-untyped-call]
    return turned.view(last.shape)


def turned(x: Tensor) -> Tensor:
    """x (B, D), laid out anew with the batch last where a processor computes it now: for what reads it so, and would
    each turn it, and for sums of their gradients."""
    if not eager(x) or x.device.type != "cpu":
        return x
    last: Tensor = Transposed.apply(x)  # type: ignore[no-untyped-call]
    return last.t()


def side_by_side(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Parts (B, n, H) concatenated along 1 or -1; the batch lies where it lies in the first."""
    if eager(parts[0]) and parts[0].stride(0) == 1:
        return torch.cat([part.permute(1, 2, 0) for part in parts], dim % 3 - 1).permute(2, 0, 1)
    return torch.cat(tuple(parts), dim)


def mean_of_copies(x: Tensor) -> Tensor:
    """(B, n, H) -> (B, H), wherever the batch lies."""
    # divided last: the gradient of a mean is otherwise divided once for each copy
    return (x.permute(1, 2, 0).sum(0) / x.shape[1]).t() if lies_last(x) else x.mean(1)


def lies_last(x: Tensor) -> bool:
    """Whether the batch of x (B, n, H) lies last."""
    return x.permute(1, 2, 0).is_contiguous() and not x.is_contiguous()


def units(x: Tensor, places: Tensor) -> Tensor:
    """Units (m,) of x (B, n, D), some of them more than once -> (B, m, D); the batch lies where it lay."""
    if eager(x) and lies_last(x):
        return x.permute(1, 2, 0).index_select(0, places).permute(2, 0, 1)
    return x.index_select(1, places)


def for_each(x: Tensor, n: int) -> Tensor:
    """x (B, 1, D), or (B, n, D) as it is, for each of n readers -> (B, n, D), expanded; its gradient lies as x does."""
    if eager(x) and lies_last(x):
        return x.permute(1, 2, 0).expand(n, -1, -1).permute(2, 0, 1)
    return x.expand(-1, n, -1)


def neighbours(x: Tensor, first: int, end: int) -> Tensor:
    """Units ``first`` to ``end``, without it, of x (B, n, D) -> (B, end - first, D), whose gradient lies as x does."""
    if eager(x) and lies_last(x):
        return x.permute(1, 2, 0)[first:end].permute(2, 0, 1)
    return x[:, first:end]
