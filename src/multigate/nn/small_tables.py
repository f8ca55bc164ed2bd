"""Columns of few values, whose tables are small, apart from those that they share a weight with."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from multigate.nn.compiled import Columns, Lookups
from multigate.nn.dropped_copies import Copies
from multigate.nn.kernels import kernels
from multigate.nn.table_rows import Divided, Pull, look_up

Run = tuple[int, int]
"""Where neighbouring columns of x begin and end."""


class Column(NamedTuple):
    """A column of ids: its place among those of a batch, and the first row and the size of its table."""

    read: int
    start: int
    size: int


class Side(NamedTuple):
    """c columns of one width: numbers of each ``Column``, all (c,) int64, but by runs those that are read; ``owners``,
    the same for columns of a table; where in x they lie, one by one (c,) and by runs; ``which`` they are of the c."""

    read: tuple[Run, ...]
    starts: Tensor
    sizes: Tensor
    owners: Tensor
    places: Tensor
    which: Tensor
    runs: tuple[Run, ...]
    rows: int
    """Of their tables, those of two columns counted twice."""

    @classmethod
    def of(cls, columns: dict[int, Column], dim: int, place: int) -> "Side":
        """Of columns by their places among those of the width, the first of which lies at a ``place`` of x."""
        read, starts, sizes = zip(*columns.values(), strict=True) if columns else ((), (), ())
        owners = {start: owner for owner, start in enumerate(dict.fromkeys(starts))}
        places = [place + at * dim for at in columns]
        numbers = (starts, sizes, [owners[start] for start in starts], places, range(len(columns)))
        runs = tuple((place + first * dim, place + end * dim) for first, end in _runs([*columns]))
        each = (torch.tensor(one, dtype=torch.int64) for one in numbers)
        return cls._make([_runs(read), *each, runs, sum(sizes)])

    def times(self, many: int) -> "Side":
        """The same of tables that are there so many times over, every row beside its copies."""
        return self._replace(starts=self.starts * many, sizes=self.sizes * many, rows=self.rows * many)

    def ids(self, ids: Tensor) -> Tensor:
        """These columns' of all (B, C); of whole runs, which takes a tenth of the time of one by one."""
        if not self.read:
            return ids[:, :0]
        each = [ids[:, first:end] for first, end in self.read]
        return torch.cat(each, dim=1) if len(each) > 1 else each[0].contiguous()


def _runs(places: Sequence[int]) -> tuple[Run, ...]:
    """Where neighbours that follow one another begin and end."""
    begin = [at for at, place in enumerate(places) if not at or place != places[at - 1] + 1]
    return tuple((places[a], places[b - 1] + 1) for a, b in pairwise([*begin, len(places)]))


class Division(NamedTuple):
    """Columns of a weight: the small ones, of ``rows`` (V,) int64 of it as a weight of their own, and the others."""

    small: Side
    others: Side
    rows: Tensor
    whole: bool
    """Whether these rows are all that the weight has, and nobody else reads them."""

    @classmethod
    def of(cls, columns: Sequence[Column], chosen: Sequence[int], weight: Tensor, place: int) -> "Division":
        """Of a weight (rows, dim) and the columns of its width, which lie in x from a ``place`` on, and of which the
        ``chosen`` are small."""
        rows, dim = weight.shape
        kept: list[int] = []
        begin: dict[int, int] = {}
        for start, size in sorted({columns[at][1:] for at in chosen}):
            begin[start] = len(kept)
            kept += range(start, start + size)
        small = {at: columns[at]._replace(start=begin[columns[at].start]) for at in chosen}
        others = {at: column for at, column in enumerate(columns) if at not in chosen}
        # read by compiled code, which takes whatever stands at an address: never where the caller wants new tensors
        with weight.device, torch.inference_mode(False):  # made in an evaluation, they are there for a training too
            whole = not others and len(kept) == rows
            return cls(Side.of(small, dim, place), Side.of(others, dim, place), torch.tensor(kept), whole)

    def read(self, weight: Tensor, ids: Tensor, rate: float, pulls: list[Pull] | None) -> tuple[Tensor, "Small"]:
        """What the other columns read, (B, others, dim), and the small ones; ``Copies`` of them at a rate of dropout.

        The gradient of the weight (rows, dim) goes into ``pulls``, if given.
        """
        table, own = weight, self.small.ids(ids)
        others = weight.new_empty((len(ids), 0, weight.shape[1]))
        if pulls is not None or not self.whole:
            rest, side = self.others.ids(ids), self.others
            seen = None if pulls is None else self._seen(own)
            given = (rest, side.starts, side.owners, self.rows, seen, pulls)
            read, table = Divided.apply(weight, *given)  # type: ignore[no-untyped-call]
            others = read if self.others.runs else others  # of no columns, nobody is to ask for a gradient
        if not rate:
            return others, Small(table, own, self.small)
        copies = Copies.of(table, rate, own.shape)
        return others, Small(copies.weight, copies.ids(own), self.small.times(copies.many))

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

    def lookups(self) -> Lookups:
        """For first layers."""
        found, side = kernels(), self.side
        assert found is not None
        return found.number_terms(self.ids, Columns(side.which, side.starts, side.sizes, side.places), side.rows)
