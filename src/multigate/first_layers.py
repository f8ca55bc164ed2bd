"""First layers of one row: what a linear map makes of an embedding is read, not multiplied again for every row.

A first layer's weights are most of what a single answer reads of memory, and each is read for one product. What they
make of the rows of small tables, made once where a graph is loaded, is a row of numbers for each column instead.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, groupby
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from multigate.batch import Batch
from multigate.model import Model
from multigate.nn.eager import watched
from multigate.nn.embed import Embed
from multigate.nn.embedding_tables import Categories, StackedTables

LEAST = 1 << 16
"""Weights that are not read, at least, for which a graph of its own pays: 256 kB."""
MOST = 1 << 22
"""Numbers that are made of tables for all linear maps of a model, at most, and that they are made of: 16 MB."""
NARROW = 4
"""Numbers of an embedding, at least: of fewer, what is read in their place is hardly less."""


class Column(NamedTuple):
    """A column of ids: its place among them, its rows of a table (``start`` to ``start + size``), and its first column
    of x."""

    ids: int
    start: int
    size: int
    table: StackedTables
    first: int


class FirstLayers(TorchFunctionMode):
    """Within it every linear map of all that a model embeds reads what it makes of the rows of small tables."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.spared = 0
        """Weights that are not read for a row any more."""
        self._left = MOST
        self._columns = {embed: _columns(embed) for embed in model.modules() if isinstance(embed, Embed)}
        self._hooks: list[RemovableHandle] = []
        self._embedded: list[tuple[Tensor, Embed, Sequence[Any]]] = []

    def __enter__(self) -> Self:
        self._hooks = [embed.register_forward_hook(self._remember) for embed in self._columns]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *about: object) -> None:
        super().__exit__(*about)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self._embedded.clear()

    def _remember(self, embed: Embed, inputs: Sequence[Any], x: Tensor) -> None:
        self._embedded.append((x, embed, inputs))

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is functional.linear and len(args) > 1 and args[1].dim() == 2:
            for x, embed, inputs in self._embedded:
                if args[0] is x:
                    return self._read(embed, inputs, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _read(
        self, embed: Embed, inputs: Sequence[Any], x: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """x (B, D) @ weight (m, D)^T + bias (m,) -> (B, m)."""
        chosen = _chosen(self._columns[embed], self._left // max(weight.shape))
        if not chosen:
            return functional.linear(x, weight, bias)
        before, embedded, after, ids = embed.parts(*inputs)
        made = [_made(list(of_one), weight) for _, of_one in groupby(chosen, key=lambda column: id(column.table))]
        columns, sizes = [column.ids for column in chosen], [column.size for column in chosen]
        self._left -= sum(sizes) * len(weight)
        if columns != list(range(ids.shape[1])):
            ids = ids.index_select(1, torch.tensor(columns, device=ids.device))
        at = ids + torch.tensor([0, *accumulate(sizes[:-1])], dtype=ids.dtype, device=ids.device)
        read = functional.embedding(at, torch.cat(made))  # (B, columns, m)
        summed = (read.new_ones(1, len(chosen)) @ read).squeeze(1)  # adding up takes the runtime twice as long
        runs = _without(chosen, x.shape[1])
        self.spared += len(weight) * (x.shape[1] - sum(end - first for first, end in runs))
        if not runs:
            return summed if bias is None else summed + bias
        dense = torch.cat(list(_cut([*before, *embedded, *after], runs)), 1)
        return summed + functional.linear(dense, torch.cat([weight[:, first:end] for first, end in runs], 1), bias)


def worth_reading(model: Model, sample: Batch) -> bool:
    """Whether first layers of a model read so much less within ``FirstLayers`` that an answer to one row is faster."""
    with torch.no_grad(), FirstLayers(model) as layers:
        model(sample.numbers, sample.categories, sample.bags)
    return layers.spared >= LEAST


def _columns(embed: Embed) -> list[Column]:
    """Those that may be read, of the smallest tables first."""
    columns, place = [], embed.d_out - sum(int(dim) for dim, _ in embed.bag_columns)
    for part in reversed(embed.categories):
        assert isinstance(part, Categories)
        place -= part.d_out
        table = embed.tables[str(part.dim)]
        if part.dim >= NARROW and isinstance(table, StackedTables) and not watched(table):
            each = zip(part.columns.tolist(), part.starts.tolist(), part.sizes, strict=True)
            columns += [Column(*one, table, place + at * part.dim) for at, one in enumerate(each)]
    return sorted(columns, key=lambda column: (column.size, column.first))


def _chosen(columns: Sequence[Column], rows: int) -> list[Column]:
    """Those of the smallest tables, which have so many rows together at most, in their order in x."""
    ends = accumulate(column.size for column in columns)
    chosen = (column for column, end in zip(columns, ends, strict=True) if end <= rows)
    return sorted(chosen, key=lambda column: column.first)


def _made(columns: Sequence[Column], weight: Tensor) -> Tensor:
    """What a weight (m, D) makes of the rows of columns of one table, one column after the other (rows, m).

    As one product of the weight's columns with rows that hold zeros in all columns but their own: written out column by
    column it is a graph of hundreds of operators.
    """
    table, dim = columns[0].table, columns[0].table.dim
    rows = [row for column in columns for row in range(column.start, column.start + column.size)]
    owner = [at for at, column in enumerate(columns) for _ in range(column.size)]
    # constants all of them, in place of an ``arange``, which ONNX Runtime would make again for every row
    constant = partial(torch.tensor, device=weight.device)
    own = constant(owner).unsqueeze(1) == constant(list(range(len(columns))))  # (rows, columns)
    places = [place for column in columns for place in range(column.first, column.first + dim)]
    each = table.weight.index_select(0, constant(rows)).unsqueeze(1) * own.unsqueeze(2)  # (rows, columns, dim)
    return each.flatten(1) @ weight.index_select(1, constant(places)).t()


def _without(chosen: Sequence[Column], width: int) -> list[tuple[int, int]]:
    """Where the others of so many columns of x begin and end."""
    gone = sorted((column.first, column.first + column.table.dim) for column in chosen)
    edges = [0, *(edge for run in gone for edge in run), width]
    return [(first, end) for first, end in zip(edges[::2], edges[1::2], strict=True) if first < end]


def _cut(pieces: Sequence[Tensor], runs: Sequence[tuple[int, int]]) -> Iterator[Tensor]:
    """Those columns of what lies side by side."""
    place = 0
    for piece in pieces:
        width = piece.shape[1]
        for first, end in runs:
            if max(first, place) < min(end, place + width):
                yield piece[:, max(first - place, 0) : min(end - place, width)]
        place += width
