"""What stands behind a linear layer of n copies: a normaliser, an activation and dropout, in one pass over memory."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from multigate.nn.chance import bytes_of, dropout, level_of
from multigate.nn.compiled import Normalised
from multigate.nn.eager import eager, watched
from multigate.nn.kernels import kernels_for
from multigate.nn.layout import lies_last
from multigate.nn.norm import ParallelBatchNorm, ParallelLayerNorm

Activation = Literal["relu", "silu", "gelu", "tanh"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "tanh": torch.tanh,
}
KINDS: dict[type, str] = {type(None): "none", ParallelLayerNorm: "layer", ParallelBatchNorm: "batch"}
"""What compiled code calls a normaliser."""


def activate(
    x: Tensor, norm: ParallelLayerNorm | ParallelBatchNorm | None, activation: str, rate: float, training: bool
) -> Tensor:
    """x (B, n, H), what ``norm`` makes of it, if any, activated; in training elements are dropped with a rate."""
    rate = rate if training else 0.0
    if _in_one_pass(x, norm, rate):
        made: Tensor
        scale, shift = (None, None) if norm is None else (norm.weight, norm.bias)
        made, mean, variance = Activated.apply(x, type(norm), scale, shift, activation, rate)  # type: ignore[no-untyped-call]
        if isinstance(norm, ParallelBatchNorm):
            norm.follow(mean, variance, x.shape[0])
        return made
    if norm is not None:
        x = norm(x)
    return dropout(ACTIVATIONS[activation](x), rate, training)


def _in_one_pass(x: Tensor, norm: torch.nn.Module | None, rate: float) -> bool:
    """Whether there is compiled code for it: batch last, on a CPU, computed now."""
    if not (eager(x) and lies_last(x)) or kernels_for(x) is None:
        return False
    if isinstance(norm, ParallelBatchNorm):
        return norm.by_batch(x) and not watched(norm)
    if norm is None:
        return rate > 0
    return type(norm) is ParallelLayerNorm and not watched(norm)


class Activated(torch.autograd.Function):
    """x (B, n, H), batch last, and where it is normalised a scale and a shift (n, H) -> the same activated, batch last,
    and mean and variance of what was normalised: (n, B) of layers, (n, H) of batches."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: type, scale: Tensor | None, shift: Tensor | None, activation: str, rate: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        last, found = x.permute(1, 2, 0), kernels_for(x)
        assert found is not None
        (n, h, b), kind = last.shape, KINDS[norm]
        each = {"none": 0, "layer": b, "batch": h}[kind]
        moments = torch.empty((2, n, each), dtype=torch.float32, device="cpu")
        kept = bytes_of(last.shape, x.device) if rate else None
        of = Normalised(kind, _float(scale), _float(shift), moments[0], moments[1], kept, level_of(1 - rate))
        made = found.activate(last, of, activation)
        ctx.found, ctx.kinds = found, (kind, activation, of.level)
        ctx.dtypes = tuple(None if one is None else one.dtype for one in (scale, shift))
        ctx.save_for_backward(last, of.scale, of.shift, of.mean, of.variance, kept)
        ctx.mark_non_differentiable(of.mean, of.variance)
        return made.permute(2, 0, 1), of.mean, of.variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        last, scale, shift, mean, variance, kept = ctx.saved_tensors
        kind, activation, level = ctx.kinds
        of = Normalised(kind, scale, shift, mean, variance, kept, level)
        pull = gradients[0].permute(1, 2, 0).to(last.dtype).contiguous()
        of_last, of_scale, of_shift = ctx.found.of_activated(last, of, activation, pull)
        parameters = [
            None if dtype is None else one.to(dtype)
            for one, dtype in zip((of_scale, of_shift), ctx.dtypes, strict=True)
        ]
        return of_last.permute(2, 0, 1), None, *parameters, None, None


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().contiguous()
