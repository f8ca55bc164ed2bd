"""From encoded columns to x (B, D), or (B, n, D): embedding tables, numbers and their embeddings, side by side."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from multigate.batch import BagIds, IdColumn, Layout, NumberColumn
from multigate.nn.chance import chance, dropout
from multigate.nn.compiled import Lookups
from multigate.nn.dropped_copies import Copies, copies_at
from multigate.nn.eager import pays
from multigate.nn.embedding_tables import Categories, StackedTables, is_plain
from multigate.nn.lookups import Embedded, Parts, can_look_up
from multigate.nn.number_embeddings import number_embeddings
from multigate.options import Options


class Embedding(Options):
    """How features become x."""

    dim: int = Field(default=16, ge=1)
    """Width of every embedding that the feature does not set itself."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """On x, in training."""
    drop_numbers: bool = False
    """Whether that includes the standardised values of numbers, and whether they are missing (vectors always)."""
    unseen: float = Field(default=0.01, ge=0, lt=1)
    """Share of ids replaced by 0 in training, so that "a value never seen" is learnt."""
    scale: float = Field(default=0.25, gt=0, allow_inf_nan=False)
    """Standard deviation of the initial embeddings."""
    tables: Literal["shared", "own"] = "shared"
    """own: every task has embeddings of its own (and what they share one more, where the structure reads such)."""


class Embed(nn.Module):
    """numbers (B, N), categories (B, C), bags -> x (B, D), of the columns with one ``use``.

    x holds, in this order: the numbers (missing as 0), their missing indicators, embeddings of the numbers, of the
    categories, and the mean embedding of each bag.
    """

    spared: Tensor | None

    def __init__(self, layout: Layout, options: Embedding, use: str = "shared") -> None:
        super().__init__()
        self.pick = Pick(layout, use)
        layout = self.pick.layout
        self.numbers = len(layout.numbers)
        self.embedded_numbers = nn.ModuleList(number_embeddings(layout.numbers, options.dim))
        self.tables = nn.ModuleDict()
        groups: dict[int, list[int]] = {}
        for i, column in enumerate(layout.categories):
            groups.setdefault(column.dim or options.dim, []).append(i)
        bag_dims = [bag.dim or options.dim for bag in layout.bags]
        self.categories = nn.ModuleList()
        stacked: dict[int, StackedTables] = {}
        for dim in sorted({*groups, *bag_dims}):
            used = [c for c in (*layout.categories, *layout.bags) if (c.dim or options.dim) == dim]
            stacked[dim] = StackedTables({c.table: layout.tables[c.table] for c in used}, dim, options.scale)
            self.tables[str(dim)] = stacked[dim]
        for dim, columns in sorted(groups.items()):
            self.categories.append(Categories(layout.categories, columns, stacked[dim]))
        self.bag_columns = [
            (str(dim), stacked[dim].start[bag.table]) for dim, bag in zip(bag_dims, layout.bags, strict=True)
        ]
        self.dropout = options.dropout
        kept = [not (options.drop_numbers or column.of_vector) for column in layout.numbers]
        self.register_buffer("spared", torch.tensor([*kept, *kept]) if any(kept) else None, persistent=False)
        self.unseen = options.unseen
        self.d_out = (
            2 * self.numbers
            + sum(part.d_out for part in self.embedded_numbers)  # type: ignore[misc]
            + sum(dim * len(columns) for dim, columns in groups.items())
            + sum(bag_dims)
        )

    @property
    def origins(self) -> tuple[int, ...]:
        """What each of the D columns of x is made of: a place among the layout's ``columns``."""
        numbers, categories, bags = self.pick.places
        origins = [*numbers, *numbers]
        parts = [(part, numbers) for part in self.embedded_numbers] + [(part, categories) for part in self.categories]
        for part, places in parts:
            columns: list[int] = part.columns.tolist()  # type: ignore[operator]
            each = part.d_out // len(columns)  # type: ignore[operator]
            origins += [places[column] for column in columns for _ in range(each)]
        for (dim, _), bag in zip(self.bag_columns, bags, strict=True):
            origins += [bag] * int(dim)
        return tuple(origins)

    def forward(
        self, numbers: Tensor, categories: Tensor, bags: Sequence[BagIds] = (), *, apart: bool = False
    ) -> Tensor:
        """With ``apart`` it may be an ``Embedded`` x, which layers read without it: nothing learns from x then."""
        copies = [self._copies(part, categories) for part in self.categories]
        before, looked_up, after, ids = self.parts(numbers, categories, bags, copies)
        if any(copies):
            before = [self._dropped(torch.cat(before, dim=1), self.spared)] if before else []
            each = zip(looked_up, copies, strict=True)
            looked_up = [made if of_it else self._dropped(made) for made, of_it in each]
            after = [self._dropped(made) for made in after]
            x = torch.cat([*before, *looked_up, *after], dim=1)
        else:
            x = self._dropped(torch.cat([*before, *looked_up, *after], dim=1), self.spared)
        if apart and self._may_be_apart(x, ids):
            return self._apart(x, before, looked_up, after, ids, copies)
        return x

    def parts(
        self,
        numbers: Tensor,
        categories: Tensor,
        bags: Sequence[BagIds] = (),
        copies: Sequence[Copies | None] | None = None,
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """What x is made of, side by side: what lies before categories, each width of those, bags; and the ids read.

        Of a width that has ``copies`` of its tables, those are read.
        """
        numbers, ids, bags = self.pick(numbers, categories, bags)
        missing = numbers.isnan()
        numbers = numbers.masked_fill(missing, 0.0)
        before = [numbers, missing.to(numbers.dtype)] if self.numbers else []
        before += [part(numbers) for part in self.embedded_numbers]
        ids = self._forget(ids)
        each = zip(self.categories, copies or [None] * len(self.categories), strict=True)
        looked_up = [part(ids, self.tables, of_it) for part, of_it in each]
        after = []
        for (dim, start), bag in zip(self.bag_columns, bags, strict=True):
            values = self._forget(bag.values) + start
            after.append(self.tables[dim](values, bag.offsets))
        return before, looked_up, after, ids

    def _copies(self, part: nn.Module, categories: Tensor) -> Copies | None:
        """Copies of the tables of one width to read in training, where so many rows have few values."""
        many = copies_at(self.dropout) if self.training else 0
        if not many:
            return None
        assert isinstance(part, Categories)
        held = self.tables[str(part.dim)]
        if not (part.small(held, len(categories), many) and is_plain(held)):
            return None
        return Copies.of(held.weight, self.dropout, (len(categories), len(self.pick.layout.categories)))

    def _dropped(self, x: Tensor, spared: Tensor | None = None) -> Tensor:
        return dropout(x, self.dropout, self.training, spared)

    def _may_be_apart(self, x: Tensor, ids: Tensor) -> bool:
        """Whether layers may read what x is made of in its place: many rows, computed now."""
        return ids.dtype == torch.int32 and (self.training or pays(x)) and can_look_up(x)

    def _apart(
        self,
        x: Tensor,
        before: list[Tensor],
        looked_up: list[Tensor],
        after: list[Tensor],
        ids: Tensor,
        copies: Sequence[Copies | None],
    ) -> Tensor:
        """x and what it is made of: columns of small tables to be looked up, the others dense."""
        place = sum(part.shape[1] for part in before)
        dense, runs = [x.new_empty((len(x), 0)), *before], [(0, place)]
        tables: list[Tensor] = []
        lookups: list[Lookups] = []
        for part, made, of_it in zip(self.categories, looked_up, copies, strict=True):
            assert isinstance(part, Categories)
            held, many = self.tables[str(part.dim)], of_it.many if of_it else 1
            each_its_own = self.training and self.dropout and not of_it
            columns = () if each_its_own else part.small(held, len(x), many)
            if columns and is_plain(held):
                tables.append(of_it.weight if of_it else held.weight)
                lookups.append(part.lookups(of_it.ids(ids) if of_it else ids, columns, place, many))
            for first, end in part.runs_without(columns):
                dense.append(made[:, first:end])
                runs.append((place + first, place + end))
            place += part.d_out
        if not lookups:
            return x
        runs.append((place, x.shape[1]))
        return Embedded.of(x, torch.cat([*dense, *after], dim=1), tables, Parts.of(runs, lookups))

    def _forget(self, ids: Tensor) -> Tensor:
        """Ids with a share replaced by 0 in training."""
        if not (self.training and self.unseen):
            return ids
        return ids.masked_fill(chance(ids.shape, self.unseen, ids.device), 0)


class OwnEmbeds(nn.Module):
    """n embeddings of the same columns, with no weight in common. numbers, categories, bags -> x (B, n, D).

    What tasks read, embedding tables included, is then theirs alone (Su et al. 2024, STEM).
    """

    def __init__(self, layout: Layout, options: Embedding, n: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(Embed(layout, options) for _ in range(n))
        self.d_out: int = self.each[0].d_out  # type: ignore[assignment]

    @property
    def origins(self) -> tuple[int, ...]:
        """Those of each of the n."""
        origins: tuple[int, ...] = self.each[0].origins  # type: ignore[assignment]
        return origins

    def forward(
        self, numbers: Tensor, categories: Tensor, bags: Sequence[BagIds] = (), *, apart: bool = False
    ) -> Tensor:
        """Whether or not it may be ``apart``, x is a plain tensor."""
        return torch.stack([embed(numbers, categories, bags) for embed in self.each], dim=1)


class Pick(nn.Module):
    """The columns with one ``use``: numbers (B, N), categories (B, C), bags -> the same of those columns alone."""

    numbers: Tensor
    categories: Tensor

    def __init__(self, layout: Layout, use: str) -> None:
        super().__init__()
        numbers, categories = _places(layout.numbers, use), _places(layout.categories, use)
        self.bags = _places(layout.bags, use)
        self.layout = layout.with_(
            numbers=tuple(layout.numbers[i] for i in numbers),
            categories=tuple(layout.categories[i] for i in categories),
            bags=tuple(layout.bags[i] for i in self.bags),
        )
        first_bag = len(layout.numbers) + len(layout.categories)
        self.places = (
            tuple(numbers),
            tuple(len(layout.numbers) + at for at in categories),
            tuple(first_bag + at for at in self.bags),
        )
        """Of those among all ``columns`` of the layout: numbers, categories, bags."""
        self.all = self.layout == layout
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.int64), persistent=False)
        self.register_buffer("categories", torch.tensor(categories, dtype=torch.int64), persistent=False)

    def forward(
        self, numbers: Tensor, categories: Tensor, bags: Sequence[BagIds] = ()
    ) -> tuple[Tensor, Tensor, Sequence[BagIds]]:
        if self.all:
            return numbers, categories, bags
        numbers, categories = numbers.index_select(1, self.numbers), categories.index_select(1, self.categories)
        return numbers, categories, [bags[i] for i in self.bags]


def _places(columns: Sequence[NumberColumn | IdColumn], use: str) -> list[int]:
    return [i for i, column in enumerate(columns) if column.use == use]
