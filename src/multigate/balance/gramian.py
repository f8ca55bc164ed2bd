"""Balances that look at the tasks' gradients: at their inner products, where x comes out of the embeddings."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from multigate.balance.balance import Balance, Balancer
from multigate.nn.inputs_alone import of_inputs_alone
from multigate.schema import Task

Array = NDArray[np.float64]

SMALLEST = 1e-6
"""Eigenvalues below this share of the largest are rounding (Gramians are summed in float32)."""
FAINTEST = 1e-12
"""A squared gradient below this share of the largest is no gradient."""


def task_gramian(losses: Tensor, x: Tensor) -> Tensor:
    """Inner products (T, T) of the gradients of losses (T,) at x, in float32; a backward pass each, the graph stays."""
    with of_inputs_alone():
        gradients = [
            torch.autograd.grad(loss, x, retain_graph=True, materialize_grads=True)[0].flatten() for loss in losses
        ]
    stacked = torch.stack(gradients).float()
    return stacked @ stacked.T


class GramianBalance(Balance):
    """Options of a balance that finds weights from the Gramian G of the tasks' gradients."""

    of_weighted: ClassVar[bool] = False
    """G is of w_t L_t, w the declared weights. False where the method would undo weights by evening tasks out, so that
    G is of L_t; in both cases weights multiply what the method says."""

    every: int = Field(default=1, ge=1)
    """Steps between two Gramians; the weights stay in between."""
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """How much of the last weights stays in the next (Zhou et al. 2022, CR-MOGM), beginning with 1 each."""

    def build(self, tasks: Sequence[Task]) -> "GramianBalancer":
        return GramianBalancer(self, tasks)

    @abstractmethod
    def solve(self, gramian: Array) -> Array:
        """Weights (n,) of n >= 2 tasks; 1 each is the plain sum. The mean of G's diagonal is 1, and none of it 0."""


class GramianBalancer(Balancer):
    """Keeps the weights found last (T,). A task without gradient at x, or alone in its batch, gets 1.

    Where no weights can be found, as for gradients that are not finite, all get 1.
    """

    found: Tensor

    def __init__(self, options: GramianBalance, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.options = options
        self.needs_gramian, self.every, self.smoothing = len(tasks) > 1, options.every, options.smoothing
        self.register_buffer("found", torch.ones(len(tasks)))

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        if gramian is not None:
            found = torch.from_numpy(self._find(gramian, active)).to(self.found)
            self.found.copy_(torch.where(active, torch.lerp(found, self.found, self.smoothing), self.found))
        return self.found

    def _find(self, gramian: Tensor, active: Tensor) -> Array:
        if self.options.of_weighted:
            gramian = gramian * torch.outer(self.declared, self.declared)
        products: Array = gramian.double().cpu().numpy()
        weights = np.ones(len(products))
        squares = np.diagonal(products) * active.cpu().numpy()
        among = np.flatnonzero(squares > FAINTEST * squares.max(initial=0.0))
        if len(among) > 1 and np.isfinite(products).all():
            try:
                found = self.solve(products[np.ix_(among, among)] / squares[among].mean(), among)
            except (RuntimeError, np.linalg.LinAlgError):  # a solver that gave up
                return weights
            if np.isfinite(found).all():
                weights[among] = found
        return weights

    def solve(self, gramian: Array, among: NDArray[np.intp]) -> Array:
        """Weights of the tasks at these places."""
        return self.options.solve(gramian)


def eigen(gramian: Array) -> tuple[Array, Array]:
    """Eigenvalues, none below the smallest that is not rounding, and eigenvectors in columns."""
    values, vectors = np.linalg.eigh(gramian)
    return np.maximum(values, SMALLEST * values[-1]), vectors


def cosines(gramian: Array) -> tuple[Array, Array]:
    """Cosines (n, n) between gradients, and their lengths (n,): what is rounding is told from these, or a gradient
    that is a thousand times as short as another would pass for it."""
    lengths = np.sqrt(np.diagonal(gramian))
    return gramian / np.outer(lengths, lengths), lengths


def nonnegative(gramian: Array, linear: Array) -> Array:
    """The v >= 0 (n,) that is least in v G v / 2 - linear . v."""
    from scipy.optimize import nnls

    unit, lengths = cosines(gramian)
    values, vectors = eigen(unit)
    sides = np.sqrt(values)
    target = (linear / lengths) @ vectors / sides
    v: Array = nnls(sides[:, None] * vectors.T, target, maxiter=100 * len(linear))[0]
    return v / lengths
