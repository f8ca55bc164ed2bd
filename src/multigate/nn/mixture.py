"""What readers make of their sources: a weighted sum for each."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multigate.nn.eager import MANY, eager, multiplied_in
from multigate.nn.kernels import kernels_for
from multigate.nn.layout import batch_last, lies_last

FEW = 32
"""Readers times sources up to which sums take less time than laying out anew does."""


def mix(gate: Tensor, sources: Tensor) -> Tensor:
    """sum_e gate[b, t, e] sources[b, e, :] (Ma et al. 2018, Eq. 7). (B, T, E), (B, E, H) -> (B, T, H)."""
    fit = gate.shape[::2] == sources.shape[:2]  # or torch says what is wrong
    if not (fit and eager(sources) and lies_last(sources)):
        if gate.dtype != sources.dtype and not torch.is_autocast_enabled(sources.device.type):
            gate = gate.to(sources.dtype)  # sparse gates weigh in float32 where all else is in half precision
        return torch.bmm(gate, sources)
    mixed: Tensor = Mixture.apply(gate, sources)  # type: ignore[no-untyped-call]
    return mixed


def combine(weights: Tensor, last: Tensor) -> Tensor:
    """sum_s weights[t, s] last[s, :, :], by weights that are the same for all rows. (T, S), (S, H, B) -> (T, H, B).

    That is one matmul, but of the shape that multiplies half precision worst: few of these are mixed instead.
    """
    few = last.dtype == torch.bfloat16 and weights.numel() <= FEW
    if few and eager(last) and (last.requires_grad or last.shape[2] >= MANY) and kernels_for(last) is not None:
        return batch_last(mix(weights.expand(last.shape[2], -1, -1), last.permute(2, 0, 1)))
    return (weights @ last.flatten(1)).view(len(weights), *last.shape[1:])


class Mixture(torch.autograd.Function):
    """``mix`` of sources (B, E, H) whose batch lies last; so lie the result and both gradients.

    By compiled code. Without it by sums over what lies there, where they are few, or by matmuls of each row, for which
    all is laid out by rows and back: a batched matmul of anything else takes twenty times as long.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, sources: Tensor) -> Tensor:
        ctx.kept, ctx.found = (gate.dtype, sources.dtype), kernels_for(sources)
        ctx.by_rows = ctx.found is None and gate.shape[1] * gate.shape[2] > FEW
        if ctx.by_rows:
            kind = multiplied_in(sources)  # as gradients come, which no autocast casts
            weights, read = _by_rows(gate.to(kind)), _by_rows(sources.to(kind))
            ctx.save_for_backward(weights, read)
            return batch_last(torch.bmm(weights, read)).permute(2, 0, 1)
        exact = torch.float32 if ctx.found is not None else sources.dtype
        weights, read = batch_last(gate.to(exact)), sources.permute(1, 2, 0)  # (T, E, B), (E, H, B)
        ctx.save_for_backward(weights, read)
        mixed = (weights.unsqueeze(2) * read).sum(1) if ctx.found is None else ctx.found.mix(weights, read)
        return mixed.permute(2, 0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        weights, read = ctx.saved_tensors
        of_gates, of_experts = ctx.kept
        if ctx.by_rows:
            pull = _by_rows(gradients[0])
            of_gate, of_read = torch.bmm(pull, read.transpose(1, 2)), torch.bmm(weights.transpose(1, 2), pull)
            made = of_gate.to(of_gates), of_read.to(of_experts)
            return batch_last(made[0]).permute(2, 0, 1), batch_last(made[1]).permute(2, 0, 1)
        pull = batch_last(gradients[0])  # (T, H, B)
        if ctx.found is not None:
            of_weights, of_sources = ctx.found.unmix(weights, read, pull)
        else:
            of_weights = (pull.unsqueeze(1) * read).sum(2)
            of_sources = weights[0].unsqueeze(1) * pull[0]
            for weight, one in zip(weights[1:], pull[1:], strict=True):
                of_sources.addcmul_(weight.unsqueeze(1), one)
        return of_weights.to(of_gates).permute(2, 0, 1), of_sources.permute(2, 0, 1)


def _by_rows(x: Tensor) -> Tensor:
    """(B, n, H), contiguous. Matrices are transposed quickly, anything else slowly."""
    return x.permute(1, 2, 0).flatten(0, 1).t().contiguous().view(x.shape) if lies_last(x) else x.contiguous()
