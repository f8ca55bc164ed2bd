"""Columns of x that are rows of small tables: a linear map multiplies the tables in place of x, and adds up the rows.

Of a table that has fewer rows than the batch, W e[id] is computed once for each row of the table in place of once for
each row of the batch; what is left of the product are sums of c numbers in place of c * dim products. Compiled code
keeps those of 16 units in the nearest cache, so that a first layer takes a fraction of its matmul's time, forwards and
backwards.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from multigate.nn.eager import eager, multiplied_in
from multigate.nn.kernels import Lookups, kernels

LEAST_DIM = {torch.float32: 4, torch.bfloat16: 16}
"""Of the embeddings, by what matmuls are computed in: the sums of narrower ones cost what the matmul does (measured)."""
ROWS_EACH = 4
"""Rows that a batch must have for each row of a column's table."""
PAIRS = 64
"""Of the values of two columns that are read as one, at most: half as many sums, and all still in the nearest cache."""


class Wiring(NamedTuple):
    """What x (B, D) is made of: dense columns, by where each run of them begins and ends, and those looked up."""

    runs: tuple[tuple[int, int], ...]
    lookups: tuple[Lookups, ...]

    def dense_of(self, weight: Tensor) -> Tensor:
        """The columns of a weight (m, D) that the dense ones are multiplied by, (m, K)."""
        return torch.cat([weight[:, first:end] for first, end in self.runs], dim=1)

    def add_(self, made: Tensor, weight: Tensor, tables: Sequence[Tensor], active: int = 0) -> Tensor:
        """made (m, B) + weight (m, D) @ x^T of what is looked up, and ReLU of the first ``active`` rows, in place."""
        found, last = kernels(), len(self.lookups) - 1
        assert found is not None
        for at, (table, lookups) in enumerate(zip(tables, self.lookups, strict=True)):
            found.add_looked_up_(made, weight, table, lookups, active if at == last else 0)
        return made

    def pull_(self, pull: Tensor, weight: Tensor, tables: Sequence[Tensor], grown: Tensor) -> list[Tensor]:
        """The gradient of each table from that of ``add_``, (m, B); that of the weight goes into ``grown`` (m, D)."""
        found = kernels()
        assert found is not None
        pairs = zip(tables, self.lookups, strict=True)
        return [found.of_looked_up_(pull, weight, table, lookups, grown) for table, lookups in pairs]


class Embedded(Tensor):
    """x (B, D) that knows what it is made of: for layers that do not ask a plain tensor, as all that is made of it.

    ``dense`` (B, K), its dense columns side by side; ``tables``, one (rows, dim) for each of the ``wiring``'s lookups.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl

    dense: Tensor
    tables: tuple[Tensor, ...]
    wiring: Wiring

    @classmethod
    def of(cls, x: Tensor, dense: Tensor, tables: Sequence[Tensor], wiring: Wiring) -> "Embedded":
        """x, which is left as it is, and knows."""
        made = x.as_subclass(cls)
        made.dense, made.tables, made.wiring = dense, tuple(tables), wiring
        return made


def can_look_up(x: Tensor) -> bool:
    """Whether rows like x (B, ...) may be multiplied so: float32 on a processor, computed now, by compiled code."""
    return eager(x) and x.device.type == "cpu" and x.dtype == torch.float32 and kernels() is not None


def least_dim(x: Tensor) -> float:
    """Width from which on an embedding of rows like x is better looked up than multiplied."""
    return LEAST_DIM.get(multiplied_in(x), torch.inf)


def product(weight: Tensor, x: Embedded, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """weight (m, D) @ x^T (m, B), computed in ``dtype``, without gradients; with a ``bias`` (m,) ReLU of their sum."""
    dense, factors = x.dense.to(dtype), x.wiring.dense_of(weight).to(dtype)
    if bias is None:
        made = torch.mm(factors, dense.t())
    else:
        made = torch.addmm(bias.to(dtype).unsqueeze(1), factors, dense.t())
    return x.wiring.add_(made, weight, x.tables, 0 if bias is None else len(made))


def paired(sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``first``, ``one``, ``other`` and ``value`` of ``Lookups`` whose columns have so many values: the largest that
    finds one takes the largest other column that leaves them ``PAIRS`` pairs."""
    left, terms = sorted(range(len(sizes)), key=lambda k: sizes[k]), []
    while left:
        one = left.pop()
        fitting = [k for k in left if sizes[k] * sizes[one] <= PAIRS]
        if fitting:
            left.remove(fitting[-1])
        terms.append((one, fitting[-1] if fitting else -1))
    many = [sizes[one] * (sizes[other] if other >= 0 else 1) for one, other in terms]
    first, value = ([0, *accumulate(each)] for each in (many, sizes))
    return (
        torch.tensor(first),
        torch.tensor([one for one, _ in terms]),
        torch.tensor([k for _, k in terms]),
        torch.tensor(value),
    )
