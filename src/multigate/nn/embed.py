"""From encoded columns to x (B, D), or (B, n, D): embedding tables, numbers and their embeddings, side by side."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from multigate.batch import BagIds, IdColumn, Layout, NumberColumn
from multigate.nn.chance import chance, dropout
from multigate.nn.dropped_copies import copies_at
from multigate.nn.eager import pays
from multigate.nn.embedding_tables import Categories, StackedTables
from multigate.nn.lookups import Embedded, Parts, can_look_up
from multigate.nn.number_embeddings import number_embeddings
from multigate.nn.small_tables import Run, Small
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

    def idle(self) -> Mapping[str, str]:
        return {} if self.dropout else {"drop_numbers": "dropout is 0"}


class Embed(nn.Module):
    """numbers (B, N), categories (B, C), bags -> x (B, D), of the columns with one ``use``.

    x holds, in this order: the numbers (missing as 0), the missing indicators there are (of a vector, the share of it
    that is missing), embeddings of the numbers, of the categories, and the mean embedding of each bag.
    """

    spared: Tensor | None
    watched: Tensor
    """The numbers that a flag for being missing is of, alone or with others."""

    def __init__(self, layout: Layout, options: Embedding, use: str = "shared") -> None:
        super().__init__()
        self.pick = Pick(layout, use)
        layout = self.pick.layout
        self.numbers = len(layout.numbers)
        watched = [i for i, column in enumerate(layout.numbers) if column.flag is not None]
        self.register_buffer("watched", torch.tensor(watched, dtype=torch.int64), persistent=False)
        self.flags = tuple(_flags_of([layout.numbers[i] for i in watched]))
        self._flagged = tuple(watched[at] for one in self.flags for at in one.told)
        """The number, or the first of the numbers, that each flag is of."""
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
        kept = [not (options.drop_numbers or column.of_vector) for column in layout.numbers]
        kept += [kept[place] for place in self._flagged]
        self.register_buffer("spared", torch.tensor(kept) if any(kept) else None, persistent=False)
        self.unseen = options.unseen
        self.d_out = (
            self.numbers
            + len(self._flagged)
            + sum(part.d_out for part in self.embedded_numbers)  # type: ignore[misc]
            + sum(dim * len(columns) for dim, columns in groups.items())
            + sum(bag_dims)
        )
        self.dropout = 0 if len(kept) == self.d_out and all(kept) else options.dropout

    @property
    def origins(self) -> tuple[int, ...]:
        """What each of the D columns of x is made of: a place among the layout's ``columns``."""
        numbers, categories, bags = self.pick.places
        origins = [*numbers, *(numbers[place] for place in self._flagged)]
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
        numbers, ids, bags = self.pick(numbers, categories, bags)
        ids, apart = self._forget(ids), apart and self._may_be_apart(numbers, ids)
        small = [self._small(part, ids, apart) for part in self.categories]
        if not any(small):
            return self._dropped([*self._before(numbers), *self._embedded(ids), *self._after(bags)])
        return self._divided(numbers, ids, bags, small, apart)

    def parts(
        self, numbers: Tensor, categories: Tensor, bags: Sequence[BagIds] = ()
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """What x is made of where nothing is dropped, side by side: what lies before categories, each width of those,
        bags; and the ids read."""
        numbers, ids, bags = self.pick(numbers, categories, bags)
        return self._before(numbers), self._embedded(ids), self._after(bags), ids

    def _before(self, numbers: Tensor) -> list[Tensor]:
        missing = numbers.isnan()
        numbers = numbers.masked_fill(missing, 0.0)
        before = [numbers, *self._flags(missing, numbers.dtype)] if self.numbers else []
        return before + [part(numbers) for part in self.embedded_numbers]

    def _flags(self, missing: Tensor, dtype: torch.dtype) -> list[Tensor]:
        if not self.flags:
            return []
        if len(self.watched) < self.numbers:
            missing = missing.index_select(1, self.watched)
        missing = missing.to(dtype)
        if len(self.flags) == 1 and not self.flags[0].one:
            return [missing]
        parts = [(missing[:, first:end], one) for first, end, one in self.flags]
        return [part.mean(1, keepdim=True) if one else part for part, one in parts]

    def _embedded(self, ids: Tensor) -> list[Tensor]:
        return [part(ids, self.tables) for part in self.categories]

    def _after(self, bags: Sequence[BagIds]) -> list[Tensor]:
        each = zip(self.bag_columns, bags, strict=True)
        return [self.tables[dim](self._forget(bag.values) + start, bag.offsets) for (dim, start), bag in each]

    def _dropped(self, parts: Sequence[Tensor]) -> Tensor:
        """Side by side, with dropout where it is due."""
        return dropout(torch.cat([*parts], dim=1), self.dropout, self.training, self.spared)

    def _may_be_apart(self, numbers: Tensor, ids: Tensor) -> bool:
        """Whether layers may read what x is made of in its place: many rows, computed now."""
        return ids.dtype == torch.int32 and (self.training or pays(numbers)) and can_look_up(numbers)

    def _small(self, part: nn.Module, ids: Tensor, apart: bool) -> tuple[int, ...]:
        """The columns of one width that are read from small tables: for layers to look them up, or, in training, to
        drop their embeddings as where layers do."""
        assert isinstance(part, Categories)
        copies = copies_at(self.dropout) if self.training and self.dropout else int(apart)
        return part.small(self.tables[str(part.dim)], ids, copies) if copies else ()

    def _divided(
        self, numbers: Tensor, ids: Tensor, bags: Sequence[BagIds], small: Sequence[tuple[int, ...]], apart: bool
    ) -> Tensor:
        """x, of the columns of small tables and of the others, which are dense."""
        dense = self._before(numbers)
        place = sum(part.shape[1] for part in dense)
        runs, looked_up = [(0, place)], []
        for part, columns in zip(self.categories, small, strict=True):
            assert isinstance(part, Categories)
            tables, rate = self.tables[str(part.dim)], self.dropout if self.training else 0
            if columns:
                assert isinstance(tables, StackedTables)
                division = part.divided(columns, tables, place)
                pulls = tables.pulls if self.training and tables.sparse else None
                others, of_small = division.read(tables.weight, ids, rate, pulls)
                dense.append(others.flatten(1))
                runs += division.others.runs
                looked_up.append(of_small)
            else:
                dense.append(part(ids, self.tables))
                runs.append((place, place + part.d_out))
            place += part.d_out
        runs.append((place, self.d_out))
        rest = self._dropped([*dense, *self._after(bags)])
        if not apart:
            return _in_order(rest, runs, looked_up)
        learns = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(learns):  # so that x counts what is written into it
            x = _in_order(rest, runs, looked_up)
        parts = Parts.of(runs, [one.lookups() for one in looked_up])
        return Embedded.of(x, rest, [one.table for one in looked_up], parts)

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


class Flags(NamedTuple):
    """Of those watched, ``first`` to ``end``, without it, that have ``one`` flag for being missing, or one each."""

    first: int
    end: int
    one: bool

    @property
    def told(self) -> range:
        """One for each flag."""
        return range(self.first, self.first + 1 if self.one else self.end)


def _flags_of(columns: Sequence[NumberColumn]) -> Iterable[Flags]:
    end = 0
    for name, some in groupby(columns, lambda column: column.flag):
        first, end = end, end + len([*some])
        yield Flags(first, end, bool(name))


def _places(columns: Sequence[NumberColumn | IdColumn], use: str) -> list[int]:
    return [i for i, column in enumerate(columns) if column.use == use]


def _in_order(rest: Tensor, runs: Sequence[Run], looked_up: Sequence[Small]) -> Tensor:
    """x (B, D), of what is at some ``runs`` of it, and of columns of small tables."""
    pieces = list(_cut(rest, runs))
    for one in looked_up:
        pieces += _cut(one.embedded().flatten(1), one.side.runs)
    return torch.cat([piece for _, piece in sorted(pieces, key=lambda one: one[0])], dim=1)


def _cut(x: Tensor, runs: Sequence[Run]) -> Iterable[tuple[int, Tensor]]:
    """The parts of x, side by side, that are as wide as each run, by where it begins."""
    parts = torch.split(x, [end - first for first, end in runs], dim=1)
    return zip((first for first, _ in runs), parts, strict=True)
