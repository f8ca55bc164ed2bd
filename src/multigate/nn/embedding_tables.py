"""Embedding tables, and the columns of ids that read them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from multigate.batch import IdColumn
from multigate.nn.compiled import Columns, Lookups
from multigate.nn.dropped_copies import Copies
from multigate.nn.eager import eager, pays, watched
from multigate.nn.kernels import kernels
from multigate.nn.lookups import small


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
        ctx.shape = weight.shape

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        rows, dim = ctx.shape
        ids, gradient = ctx.saved_tensors[0], gradients[0]
        places = ids.long().unsqueeze(-1) * dim + torch.arange(dim, device=ids.device)
        flat = gradient.new_zeros(rows * dim).scatter_add(0, places.flatten(), gradient.flatten())
        return flat.view(rows, dim), None


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
        pull = gradients[0]
        if not pull[:1].is_contiguous():
            pull = pull.contiguous()
        return kernels().add_up(pull, ids, starts, owners, ctx.rows), None, None, None  # type: ignore[union-attr]


class StackedTables(nn.Module):
    """Embedding tables of one width, one under the other in a single weight (rows, dim)."""

    def __init__(self, sizes: dict[str, int], dim: int, scale: float) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.start: dict[str, int] = {}
        rows = 0
        for table, size in sizes.items():
            self.start[table] = rows
            rows += size
        self.dim = dim
        self.weight = nn.Parameter(torch.randn(rows, dim).mul_(scale))
        self.sparse = False
        """Whether gradients hold the rows of the batch alone, for an optimiser that moves no others."""

    @torch.no_grad()
    def begin_with(self, old: "StackedTables") -> None:
        """Take over the rows of smaller tables of the same names; rows beyond them become row 0, the "unseen" one."""
        for table, start in self.start.items():
            first, known = old.start[table], old.sizes[table]
            self.weight[start : start + known] = old.weight[first : first + known]
            self.weight[start + known : start + self.sizes[table]] = old.weight[first]

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        """ids (B, C) -> (B, C, dim); ids (V,) of bags at ``offsets`` (B + 1,) -> (B, dim), the mean of each bag.

        A bag is never empty: one without items holds the id of "missing".
        """
        sparse = self.sparse and self.training
        if offsets is not None:
            return functional.embedding_bag(
                ids, self.weight, offsets.to(ids.dtype), mode="mean", sparse=sparse, include_last_offset=True
            )
        if self.training and not sparse and self.weight.device.type == "cpu":
            return Lookup.apply(self.weight, ids)  # type: ignore[no-untyped-call]
        return functional.embedding(ids, self.weight, sparse=sparse)


class Categories(nn.Module):
    """The id columns of one width. categories (B, C) -> (B, columns * dim)."""

    starts: Tensor
    owners: Tensor
    columns: Tensor

    def __init__(self, layout: Sequence[IdColumn], columns: Sequence[int], tables: StackedTables) -> None:
        super().__init__()
        self.dim = tables.dim
        self.d_out = self.dim * len(columns)
        self.sizes = [tables.sizes[layout[i].table] for i in columns]
        self._looked_up: dict[tuple[tuple[int, ...], int], tuple[Columns, int]] = {}
        self.all = list(columns) == list(range(len(layout)))
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        starts = [tables.start[layout[i].table] for i in columns]
        owners = {start: owner for owner, start in enumerate(dict.fromkeys(starts))}
        self.register_buffer("starts", torch.tensor(starts), persistent=False)
        self.register_buffer("owners", torch.tensor([owners[start] for start in starts]), persistent=False)

    def forward(self, categories: Tensor, tables: nn.ModuleDict, copies: Copies | None = None) -> Tensor:
        """Of ``copies`` of the tables, if there are any."""
        held, weight, starts = tables[str(self.dim)], None, self.starts
        if copies is not None:
            categories, weight, starts = copies.ids(categories), copies.weight, starts * copies.many
        ids = categories if self.all else categories.index_select(1, self.columns)
        if self._by_kernels(held, ids):
            read = held.weight if weight is None else weight
            looked_up = LookedUp.apply(read, ids.contiguous(), starts, self.owners)  # type: ignore[no-untyped-call]
        elif weight is not None:
            looked_up = Lookup.apply(weight, ids + starts)  # type: ignore[no-untyped-call]
        else:
            starts = self.starts if ids.device.type == "cpu" else self.starts.to(ids.dtype)  # sorted in half the time
            looked_up = held(ids + starts)
        embedded: Tensor = looked_up.flatten(1)
        return embedded

    def _by_kernels(self, tables: nn.Module, ids: Tensor) -> bool:
        """Whether to take ``LookedUp``: in training or of many rows, on a CPU, where nobody hooks into the tables."""
        if not (self.training or pays(ids)) or ids.dtype != torch.int32:
            return False
        return is_plain(tables) and not tables.sparse and eager(ids) and kernels() is not None

    def small(self, tables: nn.Module, rows: int, copies: int = 1) -> tuple[int, ...]:
        """Columns, by their places among these, that so many rows had better look up, of tables that are there so many
        times over: see ``Lookups``."""
        if not is_plain(tables) or (self.training and tables.sparse):
            return ()
        columns = small(self.sizes, self.dim, rows, copies)
        # where the weight is larger than what is read of it, another gradient of all of it costs more than is saved
        too_large = self.training and copies * tables.weight.numel() > len(columns) * self.dim * rows
        return () if too_large else columns

    def runs_without(self, columns: Sequence[int]) -> list[tuple[int, int]]:
        """Where what others make begins and ends in what these make."""
        edges = [-1, *columns, len(self.sizes)]
        return [((a + 1) * self.dim, b * self.dim) for a, b in pairwise(edges) if b - a > 1]

    def lookups(self, categories: Tensor, columns: tuple[int, ...], place: int, copies: int = 1) -> Lookups:
        """Columns of categories (B, C), by their places among these, what these make beginning at ``place`` of x; of
        tables that are there so many times over."""
        if (columns, copies) not in self._looked_up:
            chosen = torch.tensor(columns)
            starts, sizes = self.starts[chosen] * copies, torch.tensor(self.sizes)[chosen] * copies
            read = Columns(self.columns[chosen], starts, sizes, chosen * self.dim + place)
            self._looked_up[columns, copies] = read, int(sizes.sum())
        found = kernels()
        assert found is not None
        return found.number_terms(categories.contiguous(), *self._looked_up[columns, copies])


def is_plain(tables: nn.Module) -> TypeGuard[StackedTables]:
    """Whether compiled code may read tables: in float32 on a processor, where nobody hooks into them."""
    if not isinstance(tables, StackedTables) or watched(tables):
        return False
    weight = tables.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous() and eager(weight)
