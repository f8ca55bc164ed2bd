"""Columns of few values, whose tables are small, apart from those that they share a weight with."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multigate.nn.compiled import Columns, Lookups
from multigate.nn.dropped_copies import Copies
from multigate.nn.kernels import kernels
from multigate.nn.table_rows import Divided, look_up

Run = tuple[int, int]
"""Where neighbouring columns of x begin and end."""


class Column(NamedTuple):
    """A column of ids: its place among those of a batch, and the first row and the size of its table."""

    read: int
    start: int
    size: int


class Side(NamedTuple):
    """c columns of one width: numbers of each ``Column``, all (c,) int64; ``owners``, the same for columns of a table;
    and where in x they lie, from their width's first column on, one by one, (c,), and by runs."""

    read: Tensor
    starts: Tensor
    sizes: Tensor
    owners: Tensor
    places: Tensor
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, columns: dict[int, Column], dim: int) -> "Side":
        """Of columns by their places among those of the width."""
        read, starts, sizes = zip(*columns.values(), strict=True) if columns else ((), (), ())
        owners = {start: owner for owner, start in enumerate(dict.fromkeys(starts))}
        first = [at for at in columns if at - 1 not in columns]
        end = [at + 1 for at in columns if at + 1 not in columns]
        runs = tuple((a * dim, b * dim) for a, b in zip(first, end, strict=True))
        each = (read, starts, sizes, [owners[start] for start in starts], [at * dim for at in columns])
        return cls._make([*(torch.tensor(numbers, dtype=torch.int64) for numbers in each), runs])


class Division(NamedTuple):
    """Columns of a weight: the small ones, of ``rows`` (V,) int64 of it as a weight of their own, and the others."""

    small: Side
    others: Side
    rows: Tensor
    whole: bool
    """Whether these rows are all that the weight has, and nobody else reads them."""

    @classmethod
    def of(cls, columns: Sequence[Column], chosen: Sequence[int], weight: Tensor) -> "Division":
        """Of a weight (rows, dim) and the columns of its width, of which the ``chosen`` are small."""
        rows, dim = weight.shape
        kept: list[int] = []
        begin: dict[int, int] = {}
        for start, size in sorted({columns[at][1:] for at in chosen}):
            begin[start] = len(kept)
            kept += range(start, start + size)
        small = {at: columns[at]._replace(start=begin[columns[at].start]) for at in chosen}
        others = {at: column for at, column in enumerate(columns) if at not in chosen}
        with torch.inference_mode(False):  # made in an evaluation, they are there for a training too
            whole = not others and len(kept) == rows
            return cls(Side.of(small, dim), Side.of(others, dim), torch.tensor(kept), whole)

    def read(self, weight: Tensor, ids: Tensor, sparse: bool, rate: float) -> tuple[Tensor, "Small"]:
        """What the other columns read, (B, others, dim), and the small ones; ``Copies`` of them at a rate of dropout.

        The gradient of the weight (rows, dim) is ``sparse`` or not.
        """
        table, own = weight, ids.index_select(1, self.small.read)
        others = weight.new_empty((len(ids), 0, weight.shape[1]))
        if sparse or not self.whole:
            rest, side = ids.index_select(1, self.others.read), self.others
            given = (rest, side.starts, side.owners, self.rows, self._seen(own) if sparse else None)
            read, table = Divided.apply(weight, *given)  # type: ignore[no-untyped-call]
            others = read if self.others.runs else others  # of no columns, nobody is to ask for a gradient
        if not rate:
            return others, Small(table, own, self.small)
        copies = Copies.of(table, rate, own.shape)
        starts, sizes = self.small.starts * copies.many, self.small.sizes * copies.many
        return others, Small(copies.weight, copies.ids(own), self.small._replace(starts=starts, sizes=sizes))

    def _seen(self, ids: Tensor) -> Tensor:
        """Which of the rows some ids (B, c) of the small ones read, (V,) bool."""
        return torch.zeros_like(self.rows, dtype=torch.bool).scatter_(0, (ids + self.small.starts).flatten(), True)


class Small(NamedTuple):
    """Columns of few values: their tables, one under the other (V, dim), ids (B, c) in each one's own, and which."""

    table: Tensor
    ids: Tensor
    side: Side

    def embedded(self) -> Tensor:
        """(B, c, dim)"""
        return look_up(self.table, self.ids, self.side.starts, self.side.owners)

    def lookups(self, place: int) -> Lookups:
        """For first layers, by where in x the columns of this width begin."""
        found, side = kernels(), self.side
        assert found is not None
        columns = Columns(torch.arange(len(side.read)), side.starts, side.sizes, side.places + place)
        return found.number_terms(self.ids, columns, int(side.sizes.sum()))
