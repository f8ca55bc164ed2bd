"""Affinity: how tasks get along while they are trained together, watched every few steps."""

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

from multigate.analysis.relatedness import Matrix, cosines_of, error_matrix, mean_matrix
from multigate.batch import Batch
from multigate.model import Model
from multigate.objective import Objective
from multigate.options import Options
from multigate.training.fit import Fit
from multigate.training.optimizers import rate_at

OBSERVATIONS = 64
"""Looks at a training of full length, about; fewer where it stops early."""
OWN = ("towers.", "heads.", "biases.", "imputation.")
"""Parts of a model that belong to single tasks. Everything else counts as shared."""

Floats = NDArray[np.float64]


class Affinity(Options):
    """How T tasks got along: means over the observations of one training, (T, T), None where undefined."""

    tasks: tuple[str, ...]
    gradients: Matrix
    """Cosine between the gradients of two task losses at x."""
    lookahead: Matrix
    """Z of row i and column j: the share of j's loss that a step for i alone takes away (``look``)."""
    lookahead_error: Matrix
    """Standard error of those means over the observations; None for a single one."""
    observations: int


class Watch:
    """Looks at a training every few steps without disturbing it: pass it to ``fit`` as ``observe``.

    In evaluation mode, so that no dropout comes between, on the batch of the step that follows.
    """

    def __init__(self, observations: int = OBSERVATIONS) -> None:
        self.observations = observations
        self.tasks: tuple[str, ...] = ()
        self._seen: list[tuple[Floats, Floats]] = []

    def __call__(self, fitting: Fit, batch: Batch) -> None:
        """Take a look, if it is time for one."""
        if fitting.step_done % max(1, fitting.steps // self.observations) == 0:
            self.tasks = fitting.schema.task_names
            rate = rate_at(fitting.experiment.optimizer, fitting.step_done, fitting.steps)
            training = fitting.model.training
            fitting.model.eval()
            self._seen.append(look(fitting.model, fitting.objective, batch, rate))
            fitting.model.train(training)

    def affinity(self) -> Affinity:
        """The means of what was seen so far."""
        cosines, lookaheads = (np.stack(one) for one in zip(*self._seen, strict=True))
        return Affinity(
            tasks=self.tasks,
            gradients=mean_matrix(cosines),
            lookahead=mean_matrix(lookaheads),
            lookahead_error=error_matrix(lookaheads),
            observations=len(self._seen),
        )


def look(model: Model, objective: Objective, batch: Batch, rate: float) -> tuple[Floats, Floats]:
    """Cosines of task gradients at x, and lookahead affinities, both (T, T), NaN where undefined.

    Z_ij = 1 - L_j(theta - rate * grad L_i) / L_j(theta), theta all parameters but those of towers (Fifty et al. 2021,
    TAG, Eq. 1): above 0 a step for i helps j. What only i reads, such as its gate, moves too, and changes nothing for
    j. A task without a known label in the batch has neither a direction nor a loss: NaN.

    In float64, on a copy of the model: a small step takes a share away that float32 losses are too coarse to tell.
    """
    model, batch = copy.deepcopy(model).double(), _exact(batch)
    seen = model.represent(batch.numbers, batch.categories, batch.bags)
    x = seen.x if seen.x.requires_grad else seen.x.requires_grad_()  # nothing may be embedded
    shared = {name: p for name, p in model.named_parameters() if not name.startswith(OWN)}
    before = _losses(model.decide(seen).logits, objective, batch)
    at_x, lookahead = [], []
    for loss in before:
        first, *rest = torch.autograd.grad(
            loss, [x, *shared.values()], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        at_x.append(first.flatten())
        with torch.no_grad():
            moved = {name: p - rate * gradient for (name, p), gradient in zip(shared.items(), rest, strict=True)}
            outputs = functional_call(model, moved, (batch.numbers, batch.categories, batch.bags))
            after = _losses(outputs.logits, objective, batch)
            lookahead.append(1 - after / before.detach())  # 0 / 0 is NaN
    known = (batch.known & (batch.weights > 0)).any(0).cpu().numpy()
    affinities = torch.stack(lookahead).cpu().numpy()
    return cosines_of(torch.stack(at_x)), np.where(np.outer(known, known), affinities, np.nan)


def _exact(batch: Batch) -> Batch:
    """The batch with float64 in place of float32."""
    return batch._replace(numbers=batch.numbers.double(), labels=batch.labels.double(), weights=batch.weights.double())


def _losses(logits: Tensor, objective: Objective, batch: Batch) -> Tensor:
    losses: Tensor = objective(logits, batch.labels, batch.known, batch.weights)
    return losses
