"""ReLU layers of n copies with their gradients written out: what autograd does, in a layout that it would not choose.

The batch lies last, (n, H, B), in all that the layers make and in their gradients. So every matmul, forwards and
backwards, is one call on memory that lies as it should, and the copies that read one input are its neighbouring rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multigate.nn.kernels import kernels_for

WIDTH = 16
"""Numbers that a processor multiplies at once."""


class ReluLayers(torch.autograd.Function):
    """x (B, D), or (B, u, D), and weights (n, H, D) and biases (n, H) of layer after layer -> (B, n, H), batch last.

    Each of u inputs is read by n / u copies in order, which the first layer computes as one. With weights ``beside``
    (m, D) the first matmul also gives (m, B), their products with each row of x (B, D), which are no layer's.

    Everything is computed in ``dtype``, gradients of weights come in theirs. Rows (B, D) have a 1 beside them, whose
    factors are the biases, and zeros up to a multiple of 16: the matmul over the batch that the gradient of the first
    weights is then runs at full speed and has that of the biases in it. Gradients between layers are masked in place.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, beside: Tensor | None, *parameters: Tensor) -> Any:
        rows, (n, d_out, d_in) = len(x), parameters[0].shape
        ctx.shape, ctx.of_rows, ctx.kept = parameters[0].shape, x.dim() == 2, parameters[0].dtype
        ctx.padded = lies_by_rows(x)
        if ctx.padded:
            read = _padded((x,), dtype)
            read[:, d_in] = 1
            first = _padded((parameters[0].flatten(0, 1), *([] if beside is None else [beside])), dtype)
            first[: n * d_out, d_in] = parameters[1].flatten()
            made = torch.mm(first, read.t())
        else:
            x = x.to(dtype) if x.dim() == 3 else x.to(dtype).unsqueeze(1)
            u = x.shape[1]
            read, first = x.permute(1, 2, 0), parameters[0].to(dtype).view(u, -1, d_in)  # (u, D, B)
            made = torch.baddbmm(parameters[1].to(dtype).view(u, -1, 1), first, read).view(n * d_out, rows)
        layers = [_relu_(made[: n * d_out]).view(n, d_out, rows)]
        weights = [weight.to(dtype) for weight in parameters[2::2]]
        for weight, bias in zip(weights, parameters[3::2], strict=True):
            layers.append(_relu_(torch.baddbmm(bias.to(dtype).unsqueeze(2), weight, layers[-1])))
        ctx.save_for_backward(read, first, *weights, *layers)
        out = layers[-1].permute(2, 0, 1)
        return out if beside is None else (out, made[n * d_out :])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        read, first, *saved = ctx.saved_tensors
        weights, layers = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        (n, d_out, d_in), rows = ctx.shape, layers[-1].shape[2]
        beside = len(first) - n * d_out if ctx.padded else 0
        flat = layers[0].new_empty((n * d_out + beside, rows))
        below = flat[: n * d_out].view(layers[0].shape)  # of what the first layer makes; the rest of what is beside it
        at = torch.empty_like(layers[-1]) if weights else below
        torch.ops.aten.threshold_backward.grad_input(gradients[0].permute(1, 2, 0), layers[-1], 0, grad_input=at)
        found: list[Tensor | None] = []
        for i in range(len(weights) - 1, -1, -1):
            found = [torch.bmm(at, layers[i].transpose(1, 2)).to(ctx.kept), at.sum(2).to(ctx.kept), *found]
            out = below if i == 0 else torch.empty_like(layers[i])
            at = torch.bmm(weights[i].transpose(1, 2), at, out=out)
            _mask_(at, layers[i])
        wants_x = ctx.needs_input_grad[0]
        if not ctx.padded:
            u = len(read)
            flat = flat.view(u, n * d_out // u, rows)
            of_weight = torch.bmm(flat, read.transpose(1, 2)).to(ctx.kept)
            found = [of_weight.view(ctx.shape), at.sum(2).to(ctx.kept), *found]
            return _of_inputs(read, first, flat, ctx.of_rows) if wants_x else None, None, None, *found
        if beside:
            flat[n * d_out :] = gradients[1]
        of_first = flat @ read
        of_weight = torch.empty(ctx.shape, dtype=ctx.kept, device=first.device)
        of_weight.view(n * d_out, d_in).copy_(of_first[: n * d_out, :d_in])
        found = [of_weight, of_first[: n * d_out, d_in].to(ctx.kept).view(n, d_out), *found]
        of_beside = of_first[n * d_out :, :d_in].to(ctx.kept) if beside else None
        return (flat.t() @ first)[:, :d_in] if wants_x else None, None, of_beside, *found


def relu_layers(x: Tensor, dtype: torch.dtype, *parameters: Tensor) -> Tensor:
    """What ``ReluLayers`` computes, where no gradient is wanted: rows need nothing beside them, and a bias is added
    where ReLU reads what it is added to."""
    n, d_out, d_in = parameters[0].shape
    first, x = parameters[0].to(dtype), x.to(dtype)
    if x.dim() == 2:
        made = torch.mm(first.view(-1, d_in), x.t())
    else:
        made = torch.bmm(first.view(x.shape[1], -1, d_in), x.permute(1, 2, 0))
    made = _relu_of_sum_(made.view(n, d_out, -1), parameters[1])
    for weight, bias in zip(parameters[2::2], parameters[3::2], strict=True):
        made = _relu_of_sum_(torch.bmm(weight.to(dtype), made), bias)
    return made.permute(2, 0, 1)


def _padded(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Matrices of one width one under the other, and zeros beside them: at least one column, up to a multiple of 16."""
    width, heights = parts[0].shape[1], [len(part) for part in parts]
    padded = parts[0].new_zeros((sum(heights), width + 1 + -(width + 1) % WIDTH), dtype=dtype)
    for part, place in zip(parts, torch.split(padded, heights), strict=True):
        place[:, :width] = part
    return padded


def _of_inputs(read: Tensor, first: Tensor, flat: Tensor, of_rows: bool) -> Tensor:
    """The gradient of inputs read as (u, D, B), which lies as they do: (B, u, D), or (B, D)."""
    if read.stride(2) == 1:
        of_x = torch.bmm(first.transpose(1, 2), flat).permute(2, 0, 1)
    else:
        of_x = torch.bmm(flat.transpose(1, 2), first).transpose(0, 1)
    return of_x.squeeze(1) if of_rows else of_x


def _relu_(x: Tensor) -> Tensor:
    """max(x, 0), in place."""
    found = kernels_for(x)
    return x.relu_() if found is None else found.relu_(x)


def _relu_of_sum_(x: Tensor, bias: Tensor) -> Tensor:
    """max(x + bias, 0) of x (n, H, B) and bias (n, H), in place."""
    found, bias = kernels_for(x), bias.to(x.dtype).contiguous()
    return x.add_(bias.unsqueeze(2)).relu_() if found is None else found.relu_of_sum_(x, bias)


def _mask_(pull: Tensor, x: Tensor) -> None:
    """The gradient of what x was before ``_relu_``, in place of that of x."""
    found = kernels_for(x)
    if found is None:
        torch.ops.aten.threshold_backward.grad_input(pull, x, 0, grad_input=pull)
    else:
        found.mask_(pull, x)


def lies_by_rows(x: Tensor) -> bool:
    """Whether x is one input (B, D) of which not the batch lies last."""
    return x.dim() == 2 and (x.stride(1) == 1 or x.stride(0) != 1)
