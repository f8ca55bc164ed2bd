"""Two orders in memory of what is (B, n, H): by rows, for mixtures, and batch last, in which copies are fastest.

With the rows of the batch last every matmul of n copies side by side, forwards and backwards, is one call on memory
that lies as it should. What reads a row at a time wants the numbers of a row together. Values are the same in either.
"""

from typing import Any

import torch
from torch import Tensor


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


def stacked(x: Tensor) -> bool:
    """Whether ``vmap`` hides an axis of replicas in front of x: there batches are small, and laying out anew is not."""
    return torch._C._functorch.is_batchedtensor(x)


def by_rows(x: Tensor) -> Tensor:
    """(B, n, H) with the numbers of a row together; itself where they are, or where replicas are stacked."""
    if x.is_contiguous() or stacked(x):
        return x
    last = x.permute(1, 2, 0)
    if not last.is_contiguous():
        return x.contiguous()
    rows: Tensor = Transposed.apply(last.flatten(0, 1))  # type: ignore[no-untyped-call]
    return rows.view(x.shape)


def batch_last(x: Tensor) -> Tensor:
    """(B, n, H) -> (n, H, B), contiguous."""
    last = x.permute(1, 2, 0)
    if last.is_contiguous() or not x.is_contiguous():
        return last.contiguous()
    turned: Tensor = Transposed.apply(x.flatten(1))  # type: ignore[no-untyped-call]
    return turned.view(last.shape)
