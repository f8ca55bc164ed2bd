"""Columns of x that are rows of small tables: a linear map multiplies the tables in place of x, and adds up the rows.

Of a table that has fewer rows than the batch, W e[id] is computed once for each row of the table in place of once for
each row of the batch; what is left of the product are sums of c numbers in place of c * dim products. Compiled code
keeps those of 16 units in the nearest cache, so that a first layer takes a fraction of its matmul's time, forwards and
backwards.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from multigate.nn.eager import eager, multiplied_in
from multigate.nn.kernels import Lookups, Pairs, kernels

EIGHT = 8
"""Numbers that compiled code multiplies at once: embeddings are multiples of that wide."""
EACH = 64
"""Numbers that the batch's embeddings of a column must have for each row of its table: then sums take clearly less time
than the matmul, which bfloat16's never does (measured)."""
VALUES = 1 << 14
"""Rows of all tables together: what the cache holds."""
LEAST = 1 << 14
"""Numbers of x below which asking costs as much as it saves."""
PAIRS = 64
"""Of the values of two columns that are read as one, at most: half as many sums, and all still in the nearest cache."""


class Parts(NamedTuple):
    """What x (B, D) is made of: dense columns, by where each run of them begins and ends, and those looked up."""

    runs: tuple[tuple[int, int], ...]
    lookups: tuple[Lookups, ...]

    def dense_of(self, weight: Tensor) -> Tensor:
        """The columns of a weight (m, D) that the dense ones are multiplied by, (m, K)."""
        return torch.cat([weight[:, first:end] for first, end in self.runs], dim=1)

    def add_(
        self, made: Tensor, weight: Tensor, tables: Sequence[Tensor], active: int = 0, bias: Tensor | None = None
    ) -> Tensor:
        """made (m, B) + weight (m, D) @ x^T of what is looked up + bias (m,), and ReLU of the first ``active`` rows, in
        place."""
        found = kernels()
        assert found is not None
        for table, lookups in zip(tables[:-1], self.lookups[:-1], strict=True):
            found.add_looked_up_(made, weight, table, lookups)
        return found.add_looked_up_(made, weight, tables[-1], self.lookups[-1], active, bias)

    def pull_(self, pull: Tensor, weight: Tensor, tables: Sequence[Tensor], grown: Tensor) -> list[Tensor]:
        """The gradient of each table from that of ``add_``, (m, B); that of the weight goes into ``grown`` (m, D)."""
        found = kernels()
        assert found is not None
        pairs = zip(tables, self.lookups, strict=True)
        return [found.of_looked_up_(pull, weight, table, lookups, grown) for table, lookups in pairs]


class Embedded(Tensor):
    """x (B, D) that knows what it is made of: for layers that do not ask a plain tensor, as all that is made of it.

    ``dense`` (B, K), its dense columns side by side; ``tables``, one (rows, dim) for each of the ``parts``' lookups.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    dense: Tensor
    tables: tuple[Tensor, ...]
    parts: Parts

    @classmethod
    def of(cls, x: Tensor, dense: Tensor, tables: Sequence[Tensor], parts: Parts) -> "Embedded":
        """x, which is left as it is, and knows."""
        made = x.as_subclass(cls)
        made.dense, made.tables, made.parts = dense, tuple(tables), parts
        return made


def can_look_up(x: Tensor) -> bool:
    """Whether rows like x (B, ...) may be multiplied so: float32 on a processor, computed now, by compiled code."""
    plain = x.device.type == "cpu" and x.dtype == multiplied_in(x) == torch.float32
    return plain and eager(x) and kernels() is not None


def small(sizes: Sequence[int], dim: int, rows: int) -> tuple[int, ...]:
    """Columns that so many rows had better look up, by the rows of their tables and the width of their embeddings."""
    if dim % EIGHT:
        return ()
    rising = sorted((size, at) for at, size in enumerate(sizes) if size * EACH <= rows * dim)
    ends = accumulate(size for size, _ in rising)
    columns = [at for (_, at), end in zip(rising, ends, strict=True) if end <= VALUES]
    return tuple(sorted(columns)) if len(columns) * dim * rows >= LEAST else ()


def product(weight: Tensor, x: Embedded, bias: Tensor | None = None) -> Tensor:
    """weight (m, D) @ x^T (m, B), without gradients; with a ``bias`` (m,) ReLU of their sum."""
    made = torch.mm(x.parts.dense_of(weight), x.dense.t())
    return x.parts.add_(made, weight, x.tables, 0 if bias is None else len(made), bias)


def paired(sizes: Sequence[int]) -> Pairs:
    """Columns of so many values each as terms: the largest one left takes the largest other that leaves them ``PAIRS``
    pairs, if there is one."""
    rising: list[int] = sorted(range(len(sizes)), key=lambda k: sizes[k])
    terms: list[tuple[int, int | None]] = []
    while rising:
        one = rising.pop()
        fitting = bisect_right(rising, PAIRS // sizes[one], key=lambda k: sizes[k])
        terms.append((one, rising.pop(fitting - 1) if fitting else None))
    pairs = [sizes[one] * (1 if other is None else sizes[other]) for one, other in terms]
    ones, others = [one for one, _ in terms], [-1 if other is None else other for _, other in terms]
    return Pairs(*map(torch.tensor, ([0, *accumulate(pairs)], ones, others, [0, *accumulate(sizes)])))
