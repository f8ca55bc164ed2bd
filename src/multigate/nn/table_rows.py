"""Rows of embedding tables, and their gradients: by compiled code, or by torch's operators in a fraction of the time of
its own gradient."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from multigate.nn.compiled import Kernels
from multigate.nn.eager import eager
from multigate.nn.kernels import kernels


class Lookup(torch.autograd.Function):
    """Rows ``ids`` (B, C) of a table (rows, dim) -> (B, C, dim), with a gradient that is added up element by element.

    On a CPU that takes a fifth of the time of the gradient that ``torch.nn.functional.embedding`` has.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, ids: Tensor) -> Tensor:
        return functional.embedding(ids, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        weight, ids = inputs
        ctx.save_for_backward(ids)
        ctx.rows = len(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _added_up(gradients[0], ctx.saved_tensors[0], ctx.rows), None


class LookedUp(torch.autograd.Function):
    """Rows of a table (rows, dim) for ids (B, C) int32 of columns that start at ``starts`` (C,), by compiled code."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, starts: Tensor, owners: Tensor) -> Tensor:
        ctx.save_for_backward(ids, starts, owners)
        ctx.rows = len(weight)
        return kernels().look_up(weight, ids, starts)  # type: ignore[union-attr]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        ids, starts, owners = ctx.saved_tensors
        found = kernels()
        assert found is not None
        return _added_up_by(found, gradients[0], ids, starts, owners, ctx.rows), None, None, None


class Pull(NamedTuple):
    """A part of a table's gradient: that of its ``rows`` (V,), which may be there more than once, is that of ``which``
    (V,) of some others (n, dim), or theirs in order."""

    rows: Tensor
    gradient: Tensor
    which: Tensor | None = None


class Pulled(torch.autograd.Function):
    """Rows ids (B, C) of a table (rows, dim) -> (B, C, dim), or the means (B, dim) of bags of ids (V,) at ``offsets``
    (B + 1,). The gradient of the table goes into ``pulls``, for what moves the rows of the batch alone.

    As torch's own sparse one it would have a row for each item of a bag, and be copied for each reader of the table.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, offsets: Tensor | None, pulls: list[Pull]) -> Tensor:
        ctx.save_for_backward(ids, offsets)
        ctx.pulls = pulls
        if offsets is None:
            return functional.embedding(ids, weight)
        return functional.embedding_bag(ids, weight, offsets.to(ids.dtype), mode="mean", include_last_offset=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        (ids, offsets), (gradient,) = ctx.saved_tensors, gradients
        if offsets is None:
            ctx.pulls.append(Pull(ids.flatten(), gradient.flatten(0, -2)))
        else:
            sizes = offsets.diff()
            bags = torch.arange(len(sizes), dtype=torch.int32, device=ids.device)
            which = bags.repeat_interleave(sizes, output_size=len(ids))
            ctx.pulls.append(Pull(ids, gradient / sizes.unsqueeze(1), which))
        return None, None, None, None


class Divided(torch.autograd.Function):
    """``LookedUp``, with or without compiled code, and ``rows`` (V,) int64 of the table as one of their own (V, dim).

    Both have one gradient of the table together. Where ``seen`` (V,) bool says which of these rows a batch reads, it
    goes into ``pulls``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        ids: Tensor,
        starts: Tensor,
        owners: Tensor,
        rows: Tensor,
        seen: Tensor | None,
        pulls: list[Pull],
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(ids, starts, owners, rows, seen)
        ctx.pulls, ctx.many, found = pulls, len(weight), kernels_of(ids)
        read = functional.embedding(ids + starts, weight) if found is None else found.look_up(weight, ids, starts)
        return read, weight.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_read, of_rows = gradients
        ids, starts, owners, rows, seen = ctx.saved_tensors
        if seen is not None:
            ctx.pulls += Pull((ids + starts).flatten(), of_read.flatten(0, 1)), Pull(rows[seen], of_rows[seen])
            return None, None, None, None, None, None, None
        found = kernels_of(ids)
        if found is None:
            made = _added_up(of_read, ids + starts, ctx.many)
        else:
            made = _added_up_by(found, of_read, ids, starts, owners, ctx.many)
        made.index_add_(0, rows, of_rows)
        return made, None, None, None, None, None, None


def kernels_of(ids: Tensor) -> Kernels | None:
    """Compiled code, where it can read rows of tables for such ids."""
    return kernels() if ids.dtype == torch.int32 and eager(ids) else None


def look_up(table: Tensor, ids: Tensor, starts: Tensor, owners: Tensor) -> Tensor:
    """Rows of a table (rows, dim) for ids (B, C) of columns that start at ``starts`` (C,) -> (B, C, dim).

    ``owners`` (C,): columns that may meet in a row have the same.
    """
    made: Tensor
    if kernels_of(ids) is not None:
        made = LookedUp.apply(table, ids.contiguous(), starts, owners)  # type: ignore[no-untyped-call]
    else:
        made = Lookup.apply(table, ids + starts)  # type: ignore[no-untyped-call]
    return made


def _added_up(pull: Tensor, ids: Tensor, rows: int) -> Tensor:
    dim = pull.shape[-1]
    places = ids.long().unsqueeze(-1) * dim + torch.arange(dim, device=ids.device)
    return pull.new_zeros(rows * dim).scatter_add(0, places.flatten(), pull.flatten()).view(rows, dim)


def _added_up_by(found: Kernels, pull: Tensor, ids: Tensor, starts: Tensor, owners: Tensor, rows: int) -> Tensor:
    return found.add_up(pull if pull[:1].is_contiguous() else pull.contiguous(), ids, starts, owners, rows)
