"""What readers make of their sources: a weighted sum for each."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multigate.nn.eager import eager
from multigate.nn.kernels import kernels, kernels_for
from multigate.nn.layout import by_rows, lies_last


def mix(gate: Tensor, sources: Tensor) -> Tensor:
    """sum_e gate[b, t, e] sources[b, e, :] (Ma et al. 2018, Eq. 7). (B, T, E), (B, E, H) -> (B, T, H)."""
    if not (eager(sources) and lies_last(sources)):
        return torch.bmm(gate, sources)
    if kernels_for(sources) is not None:
        mixed: Tensor = Mixture.apply(gate, sources)  # type: ignore[no-untyped-call]
        return mixed
    return torch.bmm(gate, by_rows(sources))


class Mixture(torch.autograd.Function):
    """``mix`` of sources (B, E, H) whose batch lies last, by compiled code; so lie the result and both gradients."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, sources: Tensor) -> Tensor:
        weights = gate.permute(1, 2, 0).float().contiguous()  # (T, E, B)
        read = sources.permute(1, 2, 0)  # (E, H, B)
        ctx.save_for_backward(weights, read)
        ctx.dtype = gate.dtype
        return kernels().mix(weights, read).permute(2, 0, 1)  # type: ignore[union-attr]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        weights, read = ctx.saved_tensors
        pull = gradients[0].permute(1, 2, 0).contiguous()  # (T, H, B)
        of_weights, of_sources = kernels().unmix(weights, read, pull)  # type: ignore[union-attr]
        return of_weights.to(ctx.dtype).permute(2, 0, 1), of_sources.permute(2, 0, 1)
