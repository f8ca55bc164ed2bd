"""Embedding tables, and the columns of ids that read them."""

from collections.abc import Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.batch import IdColumn
from multigate.nn.eager import eager, pays, watched
from multigate.nn.lookups import small
from multigate.nn.small_tables import Column, Division
from multigate.nn.table_rows import Lookup, Pull, Pulled, kernels_of, look_up


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
        """Whether gradients are ``pulls`` of the rows of the batch, for an optimiser that moves no others."""
        self.pulls: list[Pull] = []

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
        if self.sparse and self.training:
            return Pulled.apply(self.weight, ids, offsets, self.pulls)  # type: ignore[no-untyped-call]
        if offsets is not None:
            return functional.embedding_bag(
                ids, self.weight, offsets.to(ids.dtype), mode="mean", include_last_offset=True
            )
        if self.training and self.weight.device.type == "cpu":
            return Lookup.apply(self.weight, ids)  # type: ignore[no-untyped-call]
        return functional.embedding(ids, self.weight)


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
        self._divisions: dict[tuple[int, ...], Division] = {}
        self.all = list(columns) == list(range(len(layout)))
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        starts = [tables.start[layout[i].table] for i in columns]
        owners = {start: owner for owner, start in enumerate(dict.fromkeys(starts))}
        self.register_buffer("starts", torch.tensor(starts), persistent=False)
        self.register_buffer("owners", torch.tensor([owners[start] for start in starts]), persistent=False)

    def forward(self, categories: Tensor, tables: nn.ModuleDict) -> Tensor:
        held = tables[str(self.dim)]
        ids = categories if self.all else categories.index_select(1, self.columns)
        if self._by_kernels(held, ids):
            looked_up = look_up(held.weight, ids, self.starts, self.owners)
        else:
            starts = self.starts if ids.device.type == "cpu" else self.starts.to(ids.dtype)  # sorted in half the time
            looked_up = held(ids + starts)
        embedded: Tensor = looked_up.flatten(1)
        return embedded

    def _by_kernels(self, tables: nn.Module, ids: Tensor) -> TypeGuard[StackedTables]:
        """Whether compiled code looks up: in training or of many rows, on a CPU, where nobody hooks into the tables."""
        if not (self.training or pays(ids)):
            return False
        return is_plain(tables) and not tables.sparse and kernels_of(ids) is not None

    def small(self, tables: nn.Module, ids: Tensor, copies: int = 1) -> tuple[int, ...]:
        """Columns, by their places among these, that rows of ids had better look up, of tables that are there so many
        times over: see ``Lookups``."""
        return small(self.sizes, self.dim, len(ids), copies) if is_plain(tables) and not watched(self) else ()

    def divided(self, small: tuple[int, ...], tables: StackedTables, place: int) -> Division:
        """The small columns, by their places among these, apart from the others; these lie in x from a place on, which
        is the same each time."""
        if small not in self._divisions:
            each = zip(self.columns.tolist(), self.starts.tolist(), self.sizes, strict=True)
            self._divisions[small] = Division.of([Column(*one) for one in each], small, tables.weight, place)
        return self._divisions[small]


def is_plain(tables: nn.Module) -> TypeGuard[StackedTables]:
    """Whether compiled code may read tables: in float32 on a processor, where nobody hooks into them."""
    if not isinstance(tables, StackedTables) or watched(tables):
        return False
    weight = tables.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous() and eager(weight)
