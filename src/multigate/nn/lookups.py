"""Columns of x that are rows of small tables: a linear map multiplies the tables in place of x, and adds up the rows.

Of a table that has fewer rows than the batch, W e[id] is computed once for each row of the table in place of once for
each row of the batch; what is left of the product are sums of c numbers in place of c * dim products. Compiled code
keeps those of a few units in the nearest cache, so that a first layer takes a fraction of its matmul's time, forwards
and backwards.
"""

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from multigate.nn.compiled import NAMES, Dense, Lookups, plain
from multigate.nn.eager import eager, multiplied_in
from multigate.nn.kernels import kernels

PAIR, NARROW = 2, 4
"""Numbers that compiled code multiplies at once, at least, of which widths of embeddings are multiples; and the least
width that pays (measured)."""
EACH = 64
"""Numbers that the batch's embeddings of a column must have for each row of its table: then sums take clearly less time
than the matmul (measured)."""
EACH_OF_COPIES = 32
"""The same for each row of a table's copies, without which all of x is multiplied by masks (measured)."""
VALUES = 1 << 14
"""Rows of all tables together: what the cache holds."""
LEAST = 1 << 14
"""Numbers of x below which asking costs as much as it saves."""
FEW = 32
"""Dense columns, at most, that are multiplied where the others are added up: of 64 the matmul is as fast (measured)."""


class Parts(NamedTuple):
    """What x (B, D) is made of: K dense columns, by where each run of them begins and ends and one by one, (K,) int64,
    and those looked up."""

    runs: tuple[tuple[int, int], ...]
    places: Tensor
    lookups: tuple[Lookups, ...]

    @classmethod
    def of(cls, runs: Sequence[tuple[int, int]], lookups: Sequence[Lookups]) -> "Parts":
        runs = tuple((first, end) for first, end in runs if first < end)
        return cls(runs, _places(runs), tuple(lookups))

    @property
    def few(self) -> bool:
        """Whether so few columns are dense that they are multiplied with those that are looked up."""
        return len(self.places) <= FEW

    def dense_of(self, weight: Tensor) -> Tensor:
        """The columns of a weight (m, D) that the dense ones are multiplied by, (m, K)."""
        return torch.cat([weight[:, first:end] for first, end in self.runs], dim=1)

    def add_(
        self,
        made: Tensor,
        weight: Tensor,
        tables: Sequence[Tensor],
        dense: Tensor | None = None,
        active: int = 0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """made (m, B) + weight (m, D) @ x^T of what is looked up + bias (m,), and ReLU of the first ``active`` rows, in
        place; with the ``dense`` columns (B, K) that of all of x, whatever ``made`` held."""
        found = kernels()
        assert found is not None
        for at, (table, lookups) in enumerate(zip(tables, self.lookups, strict=True)):
            last = at == len(tables) - 1
            end = (active, bias) if last else (0, None)
            found.add_looked_up_(made, weight, table, lookups, self._first(at, dense), *end)
        return made

    def pull_(
        self,
        pull: Tensor,
        weight: Tensor,
        tables: Sequence[Tensor],
        grown: Tensor,
        dense: Tensor | None = None,
        of_bias: Tensor | None = None,
    ) -> list[Tensor]:
        """The gradient of each table from that of ``add_``, (m, B); that of the weight goes into ``grown`` (m, D), that
        of the bias into ``of_bias`` (m,)."""
        found = kernels()
        assert found is not None
        return [
            found.of_looked_up_(pull, weight, table, lookups, grown, self._first(at, dense), None if at else of_bias)
            for at, (table, lookups) in enumerate(zip(tables, self.lookups, strict=True))
        ]

    def _first(self, at: int, dense: Tensor | None) -> Dense | None:
        """Dense columns are the first table's to multiply."""
        return None if at or dense is None else Dense(dense, self.places)


@cache
def _places(runs: tuple[tuple[int, int], ...]) -> Tensor:
    return torch.tensor([place for first, end in runs for place in range(first, end)], dtype=torch.int64, device="cpu")


class Embedded(Tensor):
    """x (B, D) that knows what it is made of: for layers that do not ask a plain tensor, as all that is made of it.

    ``dense`` (B, K), its dense columns side by side; ``tables``, one (rows, dim) for each of the ``parts``' lookups.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    dense: Tensor
    tables: tuple[Tensor, ...]
    parts: Parts
    version: int

    @classmethod
    def of(cls, x: Tensor, dense: Tensor, tables: Sequence[Tensor], parts: Parts) -> "Embedded":
        """x, which is left as it is, and knows."""
        made = x.as_subclass(cls)
        made.dense, made.tables, made.parts = dense.float(), tuple(tables), parts
        made.version = made._version
        return made


def untouched(x: Tensor) -> TypeGuard[Embedded]:
    """Whether layers may read what x is made of in its place: nobody wrote into it, nor waits for its gradient, and
    products are of a kind that compiled code knows."""
    if not isinstance(x, Embedded) or multiplied_in(x) not in NAMES:
        return False
    return x._version == x.version and not (x._backward_hooks or x.retains_grad)


def numbers(x: Tensor) -> int:
    """How many numbers of a row each unit of a first layer takes: all, but of what is looked up its terms."""
    if not untouched(x):
        return x.shape[-1]
    return len(x.parts.places) + sum(lookups.at.shape[1] for lookups in x.parts.lookups)


def can_look_up(x: Tensor) -> bool:
    """Whether rows like x (B, ...) may be multiplied so: float32 on a processor, computed now, by compiled code.

    Products may be made in bfloat16, but for a processor that multiplies it by tiles (AMX), faster than it adds up.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not eager(x):
        return False
    within = multiplied_in(x)
    pays = within == torch.float32 or (within == torch.bfloat16 and not torch.cpu._is_amx_tile_supported())
    return pays and kernels() is not None


def small(sizes: Sequence[int], dim: int, rows: int, copies: int = 1) -> tuple[int, ...]:
    """Columns that so many rows had better look up, by the rows of their tables, which are there so many times over,
    and the width of their embeddings."""
    if dim % PAIR or dim < NARROW:
        return ()
    each = EACH if copies == 1 else EACH_OF_COPIES
    rising = sorted((size * copies, at) for at, size in enumerate(sizes) if size * copies * each <= rows * dim)
    ends = accumulate(size for size, _ in rising)
    columns = [at for (_, at), end in zip(rising, ends, strict=True) if end <= VALUES]
    return tuple(sorted(columns)) if len(columns) * dim * rows >= LEAST else ()


def product(weight: Tensor, x: Embedded, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """weight (m, D) @ x^T (m, B) + bias (m,), without gradients; with ``relu`` ReLU of that."""
    parts, active, weight = x.parts, len(weight) if relu else 0, plain(weight)
    bias = None if bias is None else plain(bias)
    if parts.few:
        made = weight.new_empty((len(weight), len(x)), dtype=multiplied_in(x))
        return parts.add_(made, weight, x.tables, x.dense, active, bias)
    made = torch.mm(parts.dense_of(weight), x.dense.t())
    return parts.add_(made, weight, x.tables, None, active, bias)
