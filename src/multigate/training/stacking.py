"""Operations in the form that is fast where R models are stacked: what ``vmap`` makes of the usual forms is not.

With an axis in front a matmul is R matmuls, whose weight gradient is copied in the end unless it comes as the weight
lies; and small matmuls or short softmaxes, one a row, cost more than what they compute. With the rows of the batch last
in memory neither happens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

MANY, SMALL = 32, 4096
"""At least so many matmuls, of at most so many multiply-adds each, are computed side by side, not one by one."""
SHORT = 64
"""Softmaxes of at most so many entries are."""


class Stacking(TorchFunctionMode):
    """While entered, some operations take the forms below."""

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        form = FORMS.get(func, func)
        return form(*args, **(kwargs or {}))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (B, D), weight (H, D) -> (B, H), laid out (H, B): the weight's gradient then comes as it lies."""
    if x.dim() != 2:
        return functional.linear(x, weight, bias)
    out = torch.mm(weight, x.t())
    return (out if bias is None else out + bias.unsqueeze(1)).t()


def bmm(left: Tensor, right: Tensor) -> Tensor:
    """A mixture (B, T, E), (B, E, H) -> (B, T, H): a sum over few E as one, row by row else.

    Copies (n, B, D), (n, D, H) -> (n, B, H) by weights (n, H, D) seen the other way round, as ``linear`` does them.
    """
    (rows, readers, sources), width = left.shape, right.shape[2]
    if right.mT.is_contiguous() and min(sources, width) > 1:
        return torch.bmm(right.mT, left.mT).mT
    if rows < MANY or readers * sources * width > SMALL:
        return torch.bmm(left, right)
    left, right = left.permute(1, 2, 0), right.permute(1, 2, 0)
    return (left.unsqueeze(2) * right).sum(1).permute(2, 0, 1)


def baddbmm(added: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The same with something added."""
    return added + bmm(left, right)


def softmax(x: Tensor, dim: int) -> Tensor:
    """Over the last axis of (B, ..., E), with the rows B last in memory."""
    if dim % x.dim() != x.dim() - 1 or x.dim() < 2 or x.shape[-1] > SHORT:
        return torch.softmax(x, dim)
    return torch.softmax(x.movedim(0, -1), -2).movedim(-1, 0)


FORMS = {functional.linear: linear, torch.bmm: bmm, torch.baddbmm: baddbmm, torch.softmax: softmax}
