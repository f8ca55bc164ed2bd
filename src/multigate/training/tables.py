"""Optimisers of large embedding tables: a step costs what the rows of its batch cost, however many rows there are."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from multigate.experiment import Optimizer
from multigate.nn.embed import StackedTables

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
        self.weights = [table.weight for table in tables]
        self.adam = options.embedding != "rowwise_adagrad"
        self.decay = options.weight_decay
        highest = options.embedding_rate or options.learning_rate * (1.0 if self.adam else ADAGRAD_RATE)
        self.factor = highest / options.learning_rate
        """The rate over that of the other weights, whose schedule it follows."""
        for table in tables:
            table.sparse = True
        self.state = [self._start(weight) for weight in self.weights]

    def touched(self) -> list[Touched | None]:
        """Takes the gradients away from the tables; None where a batch has read nothing."""
        return [_taken(weight) for weight in self.weights]

    @torch.no_grad()
    def step(self, touched: Sequence[Touched | None], rate: float) -> None:
        """One step down; ``rate`` is that of the other weights."""
        rate *= self.factor
        for weight, state, seen in zip(self.weights, self.state, touched, strict=True):
            if seen is not None:
                way = self._adam(state, seen) if self.adam else self._adagrad(state, seen)
                kept = weight.index_select(0, seen.rows).mul_(1 - rate * self.decay)
                weight.index_copy_(0, seen.rows, kept.sub_(way, alpha=rate))

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

    def _adam(self, state: dict[str, Tensor], seen: Touched) -> Tensor:
        rows, gradient = seen
        steps = state["steps"].index_select(0, rows).add_(1)
        first = state["first"].index_select(0, rows).lerp_(gradient, 1 - BETAS[0])
        second = state["second"].index_select(0, rows).lerp_(gradient.square(), 1 - BETAS[1])
        for name, moment in (("steps", steps), ("first", first), ("second", second)):
            state[name].index_copy_(0, rows, moment)
        correction = [(1 - beta**steps).unsqueeze(1) for beta in BETAS]
        return first.div_(correction[0]).div_(second.div_(correction[1]).sqrt_().add_(EPSILON))

    def _adagrad(self, state: dict[str, Tensor], seen: Touched) -> Tensor:
        squares = state["squares"].index_select(0, seen.rows).add_(seen.gradient.square().mean(1))
        state["squares"].index_copy_(0, seen.rows, squares)
        return seen.gradient / squares.sqrt().add_(EPSILON).unsqueeze(1)


def large_tables(model: nn.Module, options: Optimizer) -> list[StackedTables]:
    """The tables of a model that are to have an optimiser of their own."""
    tables = [module for module in model.modules() if isinstance(module, StackedTables)]
    if options.embedding == "auto":
        return [table for table in tables if table.weight.numel() >= LARGE]
    return [] if options.embedding == "dense" else tables


def _taken(weight: nn.Parameter) -> Touched | None:
    """A sparse gradient with each row once."""
    gradient, weight.grad = weight.grad, None
    if gradient is None:
        return None
    ids, values = gradient._indices()[0], gradient._values()
    rows, place = torch.unique(ids, return_inverse=True)
    return Touched(rows, values.new_zeros(len(rows), values.shape[1]).index_add_(0, place, values))
