"""From encoded columns to x (B, D), or (B, n, D): embedding tables, numbers and their embeddings, side by side."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeGuard

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from multigate.batch import BagIds, IdColumn, Layout, NumberColumn
from multigate.nn.chance import chance, dropout
from multigate.nn.eager import eager, pays, watched
from multigate.nn.kernels import Lookups, Pairs, kernels
from multigate.nn.lookups import Embedded, Parts, can_look_up, paired, small
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
        self.embedded_numbers = nn.ModuleList(_number_embeddings(layout.numbers, options))
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
        numbers, categories, bags = self.pick(numbers, categories, bags)
        missing = numbers.isnan()
        numbers = numbers.masked_fill(missing, 0.0)
        before = [numbers, missing.to(numbers.dtype)] if self.numbers else []
        before += [part(numbers) for part in self.embedded_numbers]
        categories = self._forget(categories)
        looked_up = [part(categories, self.tables) for part in self.categories]
        after = []
        for (dim, start), bag in zip(self.bag_columns, bags, strict=True):
            values = self._forget(bag.values) + start
            after.append(self.tables[dim](values, bag.offsets))
        x = torch.cat([*before, *looked_up, *after], dim=1)
        if apart and self._may_be_apart(x, categories):
            return self._apart(x, before, looked_up, after, categories)
        return dropout(x, self.dropout, self.training, self.spared)

    def _may_be_apart(self, x: Tensor, ids: Tensor) -> bool:
        """Whether layers may read what x is made of in its place: many rows, of which nothing is dropped."""
        if (self.training and self.dropout) or ids.dtype != torch.int32:
            return False
        return (self.training or pays(x)) and can_look_up(x)

    def _apart(
        self, x: Tensor, before: list[Tensor], looked_up: list[Tensor], after: list[Tensor], ids: Tensor
    ) -> Tensor:
        """x and what it is made of: columns of small tables to be looked up, the others dense."""
        place = sum(part.shape[1] for part in before)
        dense, runs = [x.new_empty((len(x), 0)), *before], [(0, place)]
        tables: list[Tensor] = []
        lookups: list[Lookups] = []
        for part, made in zip(self.categories, looked_up, strict=True):
            assert isinstance(part, Categories)
            held, columns = self.tables[str(part.dim)], tuple[int, ...]()
            if _is_plain(held):
                columns = small(part.sizes, part.dim, len(x))
                if self.training and (held.sparse or held.weight.numel() > len(columns) * part.dim * len(x)):
                    columns = ()  # their gradient would be another one of the whole weight
            if columns:
                weight: Tensor = held.weight  # type: ignore[assignment]
                tables.append(weight)
                lookups.append(part.lookups(ids, columns, place))
            for first, end in part.runs_without(columns):
                dense.append(made[:, first:end])
                runs.append((place + first, place + end))
            place += part.d_out
        if not lookups:
            return x
        runs.append((place, x.shape[1]))
        return Embedded.of(x, torch.cat([*dense, *after], dim=1), tables, Parts(tuple(runs), tuple(lookups)))

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
        self._looked_up: dict[tuple[int, ...], Chosen] = {}
        self.all = list(columns) == list(range(len(layout)))
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        starts = [tables.start[layout[i].table] for i in columns]
        owners = {start: owner for owner, start in enumerate(dict.fromkeys(starts))}
        self.register_buffer("starts", torch.tensor(starts), persistent=False)
        self.register_buffer("owners", torch.tensor([owners[start] for start in starts]), persistent=False)

    def forward(self, categories: Tensor, tables: nn.ModuleDict) -> Tensor:
        ids = categories if self.all else categories.index_select(1, self.columns)
        held = tables[str(self.dim)]
        if self._by_kernels(held, ids):
            looked_up = LookedUp.apply(held.weight, ids.contiguous(), self.starts, self.owners)  # type: ignore[no-untyped-call]
        else:
            starts = self.starts if ids.device.type == "cpu" else self.starts.to(ids.dtype)  # sorted in half the time
            looked_up = held(ids + starts)
        embedded: Tensor = looked_up.flatten(1)
        return embedded

    def _by_kernels(self, tables: nn.Module, ids: Tensor) -> bool:
        """Whether to take ``LookedUp``: in training or of many rows, on a CPU, where nobody hooks into the tables."""
        if not (self.training or pays(ids)) or ids.dtype != torch.int32:
            return False
        return _is_plain(tables) and not tables.sparse and eager(ids) and kernels() is not None

    def runs_without(self, columns: Sequence[int]) -> list[tuple[int, int]]:
        """Where what others make begins and ends in what these make."""
        edges = [-1, *columns, len(self.sizes)]
        return [((a + 1) * self.dim, b * self.dim) for a, b in pairwise(edges) if b - a > 1]

    def lookups(self, categories: Tensor, columns: tuple[int, ...], place: int) -> Lookups:
        """Columns of categories (B, C), by their places among these, what these make beginning at ``place`` of x."""
        if columns not in self._looked_up:
            chosen = torch.tensor(columns)
            numbered = paired([self.sizes[at] for at in columns])
            self._looked_up[columns] = Chosen(self.columns[chosen], numbered, self.starts[chosen], chosen * self.dim)
        read, pairs, starts, places = self._looked_up[columns]
        found = kernels()
        assert found is not None
        at = found.number_pairs(categories.contiguous(), read, pairs)
        return Lookups(at, pairs, starts, places + place)


class Chosen(NamedTuple):
    """Columns that are looked up: which ids they read, their pairs, where their tables begin, and their part of x."""

    read: Tensor
    pairs: Pairs
    starts: Tensor
    places: Tensor


def _is_plain(tables: nn.Module) -> TypeGuard[StackedTables]:
    """Whether compiled code may read tables: in float32 on a processor, where nobody hooks into them."""
    if not isinstance(tables, StackedTables) or watched(tables):
        return False
    weight = tables.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous() and eager(weight)


class Piecewise(nn.Module):
    """Piecewise-linear number embeddings (Gorishniy et al. 2022, section 3.2). numbers (B, N) -> (B, n * dim).

    The value is written as how far it has come through each interval between neighbouring quantiles, then a linear
    map and ReLU of each feature's own.
    """

    low: Tensor
    width: Tensor
    columns: Tensor

    def __init__(self, columns: Sequence[int], edges: Sequence[Sequence[float]], dim: int) -> None:
        super().__init__()
        intervals = max(len(one) for one in edges) - 1
        low = torch.zeros(len(edges), intervals)
        width = torch.full((len(edges), intervals), torch.inf)  # an interval that is not there is never entered
        for i, one in enumerate(edges):
            knots = torch.tensor(one, device="cpu")  # on the meta device a difference would import the compiler
            low[i, : len(one) - 1] = knots[:-1]
            width[i, : len(one) - 1] = knots[1:] - knots[:-1]
        bound = 1 / math.sqrt(intervals)
        self.weight = nn.Parameter(torch.empty(len(edges), intervals, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(edges), dim).uniform_(-bound, bound))
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("low", low, persistent=False)
        self.register_buffer("width", width, persistent=False)
        self.d_out = len(edges) * dim

    def forward(self, numbers: Tensor) -> Tensor:
        x = numbers.index_select(1, self.columns).unsqueeze(-1)
        # (B, n, Q), the widest tensor there is, made in place; vmap has these two, but no clamp_
        progress = (x - self.low).div_(self.width).clamp_min_(0).clamp_max_(1)
        return functional.relu(torch.einsum("bnq,nqd->bnd", progress, self.weight) + self.bias).flatten(1)


class Periodic(nn.Module):
    """Periodic number embeddings, frequencies learnt (Gorishniy et al. 2022, section 3.3). (B, N) -> (B, n * dim)."""

    columns: Tensor

    def __init__(self, columns: Sequence[int], dim: int, frequencies: int = 16, scale: float = 0.1) -> None:
        super().__init__()
        n, bound = len(columns), 1 / math.sqrt(2 * frequencies)
        self.frequency = nn.Parameter(torch.randn(n, frequencies).mul_(scale))
        self.weight = nn.Parameter(torch.empty(n, 2 * frequencies, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n, dim).uniform_(-bound, bound))
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.d_out = n * dim

    def forward(self, numbers: Tensor) -> Tensor:
        angle = (
            2 * math.pi * numbers.index_select(1, self.columns).unsqueeze(-1) * self.frequency
        )  # (B, n, frequencies)
        waves = torch.cat((angle.cos(), angle.sin()), dim=-1)
        return functional.relu(torch.einsum("bnq,nqd->bnd", waves, self.weight) + self.bias).flatten(1)


def _places(columns: Sequence[NumberColumn | IdColumn], use: str) -> list[int]:
    return [i for i, column in enumerate(columns) if column.use == use]


def _number_embeddings(numbers: Sequence[NumberColumn], options: Embedding) -> list[Piecewise | Periodic]:
    """One module per kind and width of number embedding asked for."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, column in enumerate(numbers):
        if column.embedding == "periodic" or (column.embedding == "piecewise" and len(column.edges) > 1):
            groups.setdefault((column.embedding, column.dim or options.dim), []).append(i)
    return [
        Periodic(columns, dim) if kind == "periodic" else Piecewise(columns, [numbers[i].edges for i in columns], dim)
        for (kind, dim), columns in groups.items()
    ]
