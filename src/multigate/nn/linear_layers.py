"""Linear layers of n copies with their gradients written out: what autograd does, in a layout that it would not choose.

The batch lies last, (n, H, B), in all that the layers make and in their gradients. So every matmul, forwards and
backwards, is one call on memory that lies as it should, and the copies that read one input are its neighbouring rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from multigate.nn.compiled import plain
from multigate.nn.inputs_alone import inputs_alone
from multigate.nn.kernels import kernels_for
from multigate.nn.lookups import Parts, product, untouched

WIDTH = 16
"""Numbers that a processor multiplies at once."""


class LinearLayers(torch.autograd.Function):
    """x (B, D), or (B, u, D), and weights (n, H, D) and biases (n, H) of layer after layer -> (B, n, H), batch last.

    With ``relu`` it stands behind each of them; without there is a single one.

    Each of u inputs is read by n / u copies in order, which the first layer computes as one. With weights ``beside``
    (m, D) the first matmul also gives (m, B), their products with each row of x (B, D), which are no layer's.

    Everything is computed in ``dtype``, gradients of weights come in theirs. Rows (B, D) have a 1 beside them, whose
    factors are the biases, and zeros up to a multiple of 16: the matmul over the batch that the gradient of the first
    weights is then runs at full speed and has that of the biases in it. Gradients between layers are masked in place.

    With ``parts``, x (B, K) are the dense columns alone, and tables of what is looked up come before the parameters.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dtype: torch.dtype,
        relu: bool,
        beside: Tensor | None,
        parts: Parts | None,
        *tensors: Tensor,
    ) -> Any:
        many = 0 if parts is None else len(parts.lookups)
        tables, parameters = tensors[:many], tensors[many:]
        rows, (n, d_out, d_in) = len(x), parameters[0].shape
        ctx.shape, ctx.of_rows, ctx.kept = parameters[0].shape, x.dim() == 2, parameters[0].dtype
        ctx.padded, ctx.parts, ctx.relu = parts is not None or lies_by_rows(x), parts, relu
        ctx.beside = 0 if beside is None else len(beside)
        ctx.weights_are_leaves = all(parameter.is_leaf for parameter in parameters)
        read_by = [parameters[0].flatten(0, 1), *([] if beside is None else [beside])]  # all that x is multiplied by
        if parts is not None:
            read_by = [plain(weight) for weight in read_by]
        few = parts is not None and parts.few
        if few:
            read, first, made = x, None, x.new_empty((sum(map(len, read_by)), rows), dtype=dtype)
        elif ctx.padded:
            read = _padded((x,), dtype)
            read[:, x.shape[1]] = 1
            first = _padded(read_by if parts is None else [parts.dense_of(weight) for weight in read_by], dtype)
            first[: n * d_out, x.shape[1]] = parameters[1].flatten()
            made = torch.mm(first, read.t())
        else:
            x = x.to(dtype) if x.dim() == 3 else x.to(dtype).unsqueeze(1)
            u = x.shape[1]
            read, first = x.permute(1, 2, 0), parameters[0].to(dtype).reshape(u, -1, d_in)  # (u, D, B)
            made = torch.baddbmm(parameters[1].to(dtype).reshape(u, -1, 1), first, read).view(n * d_out, rows)
        active = made[: n * d_out]
        if parts is not None:
            dense, bias = (x, plain(parameters[1].flatten())) if few else (None, None)
            parts.add_(active, read_by[0], tables, dense, n * d_out if relu else 0, bias)
            if beside is not None:
                parts.add_(made[n * d_out :], read_by[1], tables, dense)
        elif relu:
            _relu_(active)
        layers = [active.view(n, d_out, rows)]
        weights = [weight.to(dtype) for weight in parameters[2::2]]
        for weight, bias in zip(weights, parameters[3::2], strict=True):
            layers.append(_relu_(torch.baddbmm(bias.to(dtype).unsqueeze(2), weight, layers[-1])))
        ctx.many = len(weights)
        ctx.save_for_backward(read, first, *weights, *layers, *([] if parts is None else [*read_by, *tables]))
        out = layers[-1].permute(2, 0, 1)
        return out if beside is None else (out, made[n * d_out :])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        read, first, *saved = ctx.saved_tensors
        weights, layers, looked_up = saved[: ctx.many], saved[ctx.many : 2 * ctx.many + 1], saved[2 * ctx.many + 1 :]
        wants_x = ctx.needs_input_grad[0]
        x_alone = wants_x and ctx.parts is None and ctx.weights_are_leaves and inputs_alone()
        flat, later = _behind_first(ctx, gradients, weights, layers, x_alone)
        if x_alone:
            of_x = (flat.t() @ first)[:, : ctx.shape[2]] if ctx.padded else _of_inputs(ctx, read, first, flat)
            return of_x, *[None] * (len(ctx.needs_input_grad) - 1)
        if not ctx.padded:
            found = _of_apart(ctx, flat, read, first, wants_x)
        elif ctx.parts is not None and ctx.parts.few:
            found = _of_few(ctx, flat, read, looked_up, wants_x)
        else:
            found = _of_padded(ctx, flat, read, first, looked_up, wants_x)
        weight, bias = found.weight.view(ctx.shape), found.bias.view(ctx.shape[:2])
        return found.x, None, None, found.beside, None, *found.tables, weight, bias, *later


class _OfFirst(NamedTuple):
    """Gradients of the first layer's weight (n H, D) and bias (n H,), of the weights beside it, of tables, and of x."""

    weight: Tensor
    bias: Tensor
    x: Tensor | None
    beside: Tensor | None = None
    tables: Sequence[Tensor] = ()


def _behind_first(
    ctx: Any, gradients: Sequence[Tensor], weights: Sequence[Tensor], layers: Sequence[Tensor], x_alone: bool
) -> tuple[Tensor, list[Tensor | None]]:
    """The gradient of all that the first matmul makes (m, B), and those of the weights and biases behind it; none of
    these where that of x alone is wanted."""
    n, d_out, _ = ctx.shape
    flat = layers[0].new_empty((n * d_out + ctx.beside, layers[0].shape[2]))
    below = flat[: n * d_out].view(layers[0].shape)
    at, pull = torch.empty_like(layers[-1]) if weights else below, gradients[0].permute(1, 2, 0)
    if ctx.relu:
        torch.ops.aten.threshold_backward.grad_input(pull, layers[-1], 0, grad_input=at)
    else:
        at.copy_(pull)
    found: list[Tensor | None] = []
    for i in range(len(weights) - 1, -1, -1):
        if not x_alone:
            found = [torch.bmm(at, layers[i].transpose(1, 2)).to(ctx.kept), at.sum(2).to(ctx.kept), *found]
        out = below if i == 0 else torch.empty_like(layers[i])
        at = torch.bmm(weights[i].transpose(1, 2), at, out=out)
        _mask_(at, layers[i])
    if ctx.beside:
        flat[n * d_out :] = gradients[1]
    return flat, found


def _of_apart(ctx: Any, flat: Tensor, read: Tensor, first: Tensor, wants_x: bool) -> _OfFirst:
    """Of copies that read inputs of their own, read (u, D, B) and first (u, n / u H, D)."""
    by_input = flat.view(*first.shape[:2], read.shape[2])
    weight = torch.bmm(by_input, read.transpose(1, 2)).to(ctx.kept)
    bias = flat.view(*ctx.shape[:2], read.shape[2]).sum(2).to(ctx.kept)
    return _OfFirst(weight, bias, _of_inputs(ctx, read, first, flat) if wants_x else None)


def _of_few(ctx: Any, flat: Tensor, dense: Tensor, looked_up: Sequence[Tensor], wants_x: bool) -> _OfFirst:
    """Of rows that are looked up but for a few ``dense`` columns (B, K), which no matmul reads."""
    read_by = looked_up[: 2 if ctx.beside else 1]
    of_read_by = [torch.empty_like(weight) for weight in read_by]
    bias = read_by[0].new_empty(len(read_by[0]))
    tables = _of_tables(ctx.parts, flat, looked_up, of_read_by, dense, bias)
    of_x = None
    if wants_x:
        of_x = flat.t() @ torch.cat([ctx.parts.dense_of(weight) for weight in read_by]).to(flat.dtype)
        of_x = of_x[:, : dense.shape[1]]
    return _OfFirst(of_read_by[0], bias, of_x, of_read_by[1] if ctx.beside else None, tables)


def _of_padded(
    ctx: Any, flat: Tensor, read: Tensor, first: Tensor, looked_up: Sequence[Tensor], wants_x: bool
) -> _OfFirst:
    """Of rows with a 1 and zeros beside them, read (B, K) and first (m, K); some columns may be looked up."""
    parts, (n, d_out, d_in) = ctx.parts, ctx.shape
    runs = ((0, d_in),) if parts is None else parts.runs
    width = sum(end - start for start, end in runs)
    of_first = flat @ read
    halves = torch.split(of_first, [n * d_out, *([ctx.beside] if ctx.beside else [])])
    kept = ctx.kept if parts is None else torch.float32
    of_read_by = [_placed(half, runs, d_in).to(kept) for half in halves]
    tables = _of_tables(parts, flat, looked_up, of_read_by)
    bias = of_first[: n * d_out, width].to(ctx.kept)
    of_x = (flat.t() @ first)[:, :width] if wants_x else None
    return _OfFirst(of_read_by[0], bias, of_x, of_read_by[1] if ctx.beside else None, tables)


def _placed(x: Tensor, runs: Sequence[tuple[int, int]], width: int) -> Tensor:
    """The first columns of x (m, K) as the ``runs`` of (m, width), whose others are not written."""
    if runs == ((0, width),):
        return x[:, :width].contiguous()
    placed, start = x.new_empty((len(x), width)), 0
    for begin, end in runs:
        placed[:, begin:end] = x[:, start : start + end - begin]
        start += end - begin
    return placed


def _of_tables(
    parts: Parts | None,
    flat: Tensor,
    looked_up: Sequence[Tensor],
    of_read_by: Sequence[Tensor],
    dense: Tensor | None = None,
    of_bias: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of tables, of what is looked up; those of the weights that read it go into their places, with ``dense``
    columns of x (B, K) those of theirs too, and that of the first one's bias."""
    if parts is None:
        return []
    read_by, tables = looked_up[: len(of_read_by)], looked_up[len(of_read_by) :]
    pulls, biases = torch.split(flat, [len(weight) for weight in read_by]), (of_bias, None)
    each = [
        parts.pull_(pull, weight, tables, grown, dense, bias)
        for pull, weight, grown, bias in zip(pulls, read_by, of_read_by, biases, strict=False)
    ]
    return [sum(of_one[1:], of_one[0]) for of_one in zip(*each, strict=True)]


def linear_layers(x: Tensor, dtype: torch.dtype, relu: bool, *parameters: Tensor) -> Tensor:
    """What ``LinearLayers`` compute, where no gradient is wanted: rows need nothing beside them, and a bias is added
    where ReLU reads what it is added to."""
    n, d_out, d_in = parameters[0].shape
    if untouched(x):
        made = product(parameters[0].flatten(0, 1), x, parameters[1].flatten(), relu=relu).view(n, d_out, -1)
    else:
        first, x = parameters[0].to(dtype), x.to(dtype)
        if x.dim() == 2:
            made = torch.mm(first.reshape(-1, d_in), x.t())
        else:
            made = torch.bmm(first.reshape(x.shape[1], -1, d_in), x.permute(1, 2, 0))
        made = made.view(n, d_out, -1)
        bias = parameters[1].to(dtype)
        made = _relu_of_sum_(made, bias) if relu else made.add_(bias.unsqueeze(2))
    for weight, bias in zip(parameters[2::2], parameters[3::2], strict=True):
        made = _relu_of_sum_(torch.bmm(weight.to(dtype), made), bias.to(dtype))
    return made.permute(2, 0, 1)


def _padded(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Matrices of one width one under the other, and zeros beside them: at least one column, up to a multiple of 16."""
    width, heights = parts[0].shape[1], [len(part) for part in parts]
    padded = parts[0].new_zeros((sum(heights), width + 1 + -(width + 1) % WIDTH), dtype=dtype)
    for part, place in zip(parts, torch.split(padded, heights), strict=True):
        place[:, :width] = part
    return padded


def _of_inputs(ctx: Any, read: Tensor, first: Tensor, flat: Tensor) -> Tensor:
    """The gradient of inputs read as (u, D, B), which lies as they do: (B, u, D), or (B, D)."""
    flat = flat.view(*first.shape[:2], read.shape[2])
    if read.stride(2) == 1:
        of_x = torch.bmm(first.transpose(1, 2), flat).permute(2, 0, 1)
    else:
        of_x = torch.bmm(flat.transpose(1, 2), first).transpose(0, 1)
    return of_x.squeeze(1) if ctx.of_rows else of_x


def _relu_(x: Tensor) -> Tensor:
    """max(x, 0), in place."""
    found = kernels_for(x)
    return x.relu_() if found is None else found.relu_(x)


def _relu_of_sum_(x: Tensor, bias: Tensor) -> Tensor:
    """max(x + bias, 0) of x (n, H, B) and bias (n, H), in place."""
    found = kernels_for(x)
    return x.add_(bias.unsqueeze(2)).relu_() if found is None else found.relu_of_sum_(x, bias.contiguous())


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
