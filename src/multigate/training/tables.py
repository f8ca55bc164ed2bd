"""Optimisers of large embedding tables: a step costs what the rows of its batch cost, however many rows there are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.experiment import Optimizer
from multigate.nn.compiled import Moments
from multigate.nn.embedding_tables import StackedTables
from multigate.nn.kernels import kernels_for
from multigate.nn.table_rows import Pull
from multigate.training.allocator import in_large_pages

LARGE = 1 << 22
"""Numbers in a table from which on ``auto`` is ``lazy_adam``: a dense update then takes as long as all else."""
BETAS, EPSILON = (0.9, 0.999), 1e-8
ADAGRAD_RATE = 20.0
"""Adam's rate times this is that of ``rowwise_adagrad`` where none is set."""


class Touched(NamedTuple):
    """Rows of a table that a batch has read, ``rows`` (U,), each once, and their ``gradient`` (U, dim)."""

    rows: Tensor
    gradient: Tensor


class TableOptimizer:
    """Updates those rows of its tables that have a gradient.

    ``lazy_adam`` is Adam with decoupled decay whose moments stand still while a row is not read; its correction for the
    start counts the steps of a row, so that a row met late moves as any does at first. ``rowwise_adagrad`` keeps one
    number a row, the sum of the mean squares of its gradients (Duchi et al. 2011; rows as in Naumov et al. 2019, DLRM).
    Decay, too, befalls rows that are read alone.
    """

    def __init__(self, tables: Sequence[StackedTables], options: Optimizer) -> None:
        self.tables = tuple(tables)
        self.weights = [table.weight for table in tables]
        self.adam = options.embedding != "rowwise_adagrad"
        self.decay = options.decay
        highest = options.embedding_rate or options.rate() * (1.0 if self.adam else ADAGRAD_RATE)
        self.factor = highest / options.rate()
        """The rate over that of the other weights, whose schedule it follows."""
        for table in tables:
            table.sparse = True
        self.state = [self._start(weight) for weight in self.weights]
        for weight, state in zip(self.weights, self.state, strict=True):
            in_large_pages(weight, written=True)
            for tensor in state.values():
                in_large_pages(tensor, written=False)

    def touched(self) -> list[Touched | None]:
        """Takes the gradients away from the tables; None where a batch has read nothing."""
        return [_taken(table) for table in self.tables]

    @torch.no_grad()
    def step(self, touched: Sequence[Touched | None], rate: float) -> None:
        """One step down; ``rate`` is that of the other weights."""
        rate *= self.factor
        for weight, state, seen in zip(self.weights, self.state, touched, strict=True):
            if seen is None:
                continue
            kept, found = 1 - rate * self.decay, kernels_for(weight)
            if self.adam and found is not None:
                moments = Moments(**state, betas=BETAS, epsilon=EPSILON)
                found.lazy_adam_(weight, moments, seen.rows, seen.gradient, rate, kept)
                continue
            own = functional.embedding(seen.rows, weight)
            if self.decay:
                own.mul_(kept)
            (self._adam if self.adam else self._adagrad)(own, state, seen, rate)
            weight.index_copy_(0, seen.rows, own)

    def tensors(self) -> dict[str, Tensor]:
        """The state, by name."""
        return {f"{at}/{name}": tensor for at, state in enumerate(self.state) for name, tensor in state.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` gave; raises ``KeyError`` or ``RuntimeError`` where it is that of other tables."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def _start(self, weight: Tensor) -> dict[str, Tensor]:
        rows = weight.new_zeros(weight.shape[0])
        if not self.adam:
            return {"squares": rows}
        return {"first": torch.zeros_like(weight), "second": torch.zeros_like(weight), "steps": rows}

    def _adam(self, own: Tensor, state: dict[str, Tensor], seen: Touched, rate: float) -> None:
        """Moves ``own``, the rows' weights (U, dim)."""
        rows, gradient = seen
        steps = state["steps"].index_select(0, rows).add_(1)
        first = functional.embedding(rows, state["first"]).lerp_(gradient, 1 - BETAS[0])
        second = functional.embedding(rows, state["second"]).mul_(BETAS[1])
        second.addcmul_(gradient, gradient, value=1 - BETAS[1])
        for name, moment in (("steps", steps), ("first", first), ("second", second)):
            state[name].index_copy_(0, rows, moment)
        # corrections as factors of a row: (m / c1) / (sqrt(v / c2) + e) = (sqrt(c2) / c1) m / (sqrt(v) + e sqrt(c2))
        of_first, of_second = ((1 - beta**steps).unsqueeze(1) for beta in BETAS)
        root = of_second.sqrt_()
        own.addcdiv_(first.mul_(root / of_first), second.sqrt_().add_(root, alpha=EPSILON), value=-rate)

    def _adagrad(self, own: Tensor, state: dict[str, Tensor], seen: Touched, rate: float) -> None:
        """Moves ``own``, the rows' weights (U, dim)."""
        squares = state["squares"].index_select(0, seen.rows).add_(seen.gradient.square().mean(1))
        state["squares"].index_copy_(0, seen.rows, squares)
        own.addcdiv_(seen.gradient, squares.sqrt_().add_(EPSILON).unsqueeze(1), value=-rate)


def large_tables(model: nn.Module, options: Optimizer) -> list[StackedTables]:
    """The tables of a model that are to have an optimiser of their own."""
    tables = [module for module in model.modules() if isinstance(module, StackedTables)]
    if options.embedding == "auto":
        return [table for table in tables if table.weight.numel() >= LARGE]
    return [] if options.embedding == "dense" else tables


def _taken(table: StackedTables) -> Touched | None:
    """What pulls at the rows of a table, added up for each."""
    pulls = list(table.pulls)
    table.pulls.clear()
    if not pulls:
        return None
    ids = torch.cat([pull.rows for pull in pulls])
    if len(table.weight) <= torch.iinfo(torch.int32).max:
        ids = ids.int()  # sorted in half the time
    ids, order = torch.sort(ids, stable=True)
    starts = torch.cat((ids.new_ones(min(len(ids), 1), dtype=torch.bool), ids[1:] != ids[:-1])).nonzero().squeeze(1)
    ends = torch.cat((starts, starts.new_tensor([len(ids)])))
    # sums of neighbours in a table of gradients are what an embedding bag is
    gradients = torch.cat([pull.gradient for pull in pulls])
    if any(pull.which is not None for pull in pulls):
        order = _places(pulls).index_select(0, order)
    sums = functional.embedding_bag(order, gradients, ends, mode="sum", include_last_offset=True)
    return Touched(ids[starts].long(), sums)


def _places(pulls: Sequence[Pull]) -> Tensor:
    """Where the gradient of each row stands among those of all pulls."""
    places, begin = [], 0
    for rows, gradient, which in pulls:
        own = torch.arange(len(rows), device=rows.device) if which is None else which
        places.append(own + begin)
        begin += len(gradient)
    return torch.cat(places)
