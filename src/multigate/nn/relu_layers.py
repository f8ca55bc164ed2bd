"""ReLU layers of n copies with their gradients written out: what autograd does, in layouts that it would not choose.

Between layers the rows of a copy lie together, (n, B, H); behind a first layer that reads one input for all, where one
matmul makes every copy's row, the batch lies last, (n, H, B). So every matmul, forwards and backwards, is one call on
memory that lies as it should. The result lies by rows, (B, n, H), which is how mixtures read it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

WIDTH = 16
"""Numbers that a processor multiplies at once."""


class ReluLayers(torch.autograd.Function):
    """x (B, D), or (B, u, D), and weights (n, H, D) and biases (n, H) of layer after layer -> (B, n, H).

    Each of u inputs is read by n / u copies in order, which the first layer computes as one.

    Everything is computed in ``dtype``, gradients of weights come in theirs. One input for all has a 1 beside it, whose
    factors are the biases, and zeros up to a multiple of 16: the matmul over the batch that the gradient of the first
    weights is then runs at full speed and has that of the biases in it. Gradients between layers are masked in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        weights = [weight.to(dtype) for weight in parameters[::2]]
        biases = [bias.to(dtype).unsqueeze(1) for bias in parameters[1::2]]  # (n, 1, H)
        n, d_out, d_in = weights[0].shape
        ctx.one_input, ctx.shape, ctx.kept = x.dim() == 2, weights[0].shape, parameters[0].dtype
        if ctx.one_input:
            extra = 1 + -(d_in + 1) % WIDTH
            x = functional.pad(x.to(dtype), (0, extra))
            x[:, d_in] = 1
            first = functional.pad(weights[0].view(n * d_out, d_in), (0, extra))
            first[:, d_in] = biases[0].flatten()
            if len(weights) == 1:
                rows = torch.mm(x, first.t()).relu_().view(-1, n, d_out)
                ctx.save_for_backward(x, first, rows)
                return rows
            last = torch.mm(first, x.t()).relu_().view(n, d_out, -1)
            read, weights[0] = [x, last.transpose(1, 2)], first
        else:
            u = x.shape[1]
            read = [x.to(dtype).transpose(0, 1).contiguous()]
            weights[0], biases[0] = weights[0].view(u, -1, d_in), biases[0].view(u, 1, -1)
        for weight, bias in zip(weights[len(read) - 1 : -1], biases[len(read) - 1 : -1], strict=True):
            read.append(_regrouped(torch.baddbmm(bias, read[-1], weight.transpose(1, 2)).relu_(), n))
        made = torch.baddbmm(biases[-1], read[-1], weights[-1].transpose(1, 2)).transpose(0, 1)
        rows = torch.clamp_min(made, 0, out=torch.empty(made.shape, dtype=made.dtype, device=made.device))
        ctx.save_for_backward(*read, *weights, rows)
        return rows.view(rows.shape[0], n, rows.shape[1] * rows.shape[2] // n)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *saved, rows = ctx.saved_tensors
        read, weights = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        n, d_out, d_in = ctx.shape
        found: list[Tensor] = []
        if len(read) == 1 and ctx.one_input:
            flat = torch.ops.aten.threshold_backward(gradients[0], rows, 0).reshape(-1, n * d_out).t()
        else:
            at = torch.empty((rows.shape[1], rows.shape[0], rows.shape[2]), dtype=rows.dtype, device=rows.device)
            given = gradients[0].reshape(rows.shape)
            torch.ops.aten.threshold_backward.grad_input(given, rows, 0, grad_input=at.transpose(0, 1))
            for layer in range(len(read) - 1, int(ctx.one_input) - 1, -1):
                below, weight = read[layer], weights[layer]
                at = _regrouped(at, len(below))
                of_weight = torch.bmm(below.transpose(1, 2), at).transpose(1, 2)  # (n, H, D), or (u, n / u H, D)
                of_weight, of_bias = of_weight.to(ctx.kept).contiguous(), at.sum(1).to(ctx.kept)
                found = [of_weight.view(n, -1, of_weight.shape[2]), of_bias.view(n, -1), *found]
                if layer == 0:
                    of_x = torch.bmm(at, weight).transpose(0, 1).contiguous() if ctx.needs_input_grad[0] else None
                    return of_x, None, *found
                if layer == 1 and ctx.one_input:  # (n, H, B), and made so
                    at = torch.bmm(weight.transpose(1, 2), at.transpose(1, 2))
                    below = below.transpose(1, 2)
                else:
                    at = torch.bmm(at, weight)
                torch.ops.aten.threshold_backward.grad_input(at, below, 0, grad_input=at)
            flat = at.view(n * d_out, -1)
        x, first = read[0], weights[0]
        of_first = (flat @ x).to(ctx.kept)
        found = [of_first[:, :d_in].reshape(n, d_out, d_in), of_first[:, d_in].reshape(n, d_out), *found]
        of_x = (flat.t() @ first)[:, :d_in] if ctx.needs_input_grad[0] else None
        return of_x, None, *found


def _regrouped(x: Tensor, n: int) -> Tensor:
    """What n copies make, (n, B, H), of what is made in other groups of the same copies, (u, B, n / u H); or back."""
    u, rows, width = x.shape
    if u == n:
        return x
    if u < n:
        k = n // u
        return x.view(u, rows, k, width // k).transpose(1, 2).reshape(n, rows, width // k)
    k = u // n
    return x.view(n, k, rows, width).transpose(1, 2).reshape(n, rows, k * width)
