"""Relatedness: do tasks agree, in their labels and in what they ask of the representation they share?"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from multigate.analysis.subject import Subject
from multigate.batch import Batch, TaskColumn
from multigate.data.rows import cut, join
from multigate.errors import DataError
from multigate.model import Model
from multigate.objective import Objective
from multigate.options import Options

ROWS = 1024
"""Rows whose gradient is one sample of a cosine, about."""
MOST = 20
"""Such samples at most."""

Matrix = tuple[tuple[float | None, ...], ...]
Floats = NDArray[np.float64]


class Relatedness(Options):
    """How T tasks relate, pair by pair. Matrices are (T, T), None where undefined."""

    tasks: tuple[str, ...]
    labels: Matrix
    """Pearson correlation of the encoded labels, unweighted, on the rows where both are known.

    Undefined where one of them does not vary, and for classes of three or more: their numbers have no order.
    """
    gradients: Matrix
    """Cosine between the gradients of two task losses at x, the embeddings' output; the mean over batches."""
    gradients_sd: Matrix
    """Standard deviation of one batch's cosine (n - 1); undefined for a single batch."""
    rows: str
    """Which rows they are, for people."""


def relatedness(subject: Subject) -> Relatedness:
    """Correlation of labels over all rows, and cosine of task gradients over at most 20 batches of about 1,024 rows.

    A task's gradient is that of its loss at x, (B * D,), at the trained weights, in float32 without dropout and
    calibration: the gradient at the shared representation, where PCGrad takes that at the shared parameters (Yu et
    al. 2020, Definition 1). Below 0 two tasks would move the representation of the same rows in conflicting
    directions. A task without a known label in a batch has no direction there; the mean leaves such batches out.

    Raises ``DataError`` where there are no rows.
    """
    if not subject.count:
        raise DataError(f"relatedness wants rows with labels, found none in {subject.rows}; name another table")
    tasks = subject.bundle.encoder.layout.tasks
    rows = join(subject.batches)
    objective = Objective(tasks)
    cosines = np.stack([_cosines(subject.bundle.model, objective, batch) for batch in _regrouped(rows)])
    return Relatedness(
        tasks=tuple(task.name for task in tasks),
        labels=_correlations(tasks, rows),
        gradients=_over_batches(cosines, np.mean, least=1),
        gradients_sd=_over_batches(cosines, partial(np.std, ddof=1), least=2),
        rows=subject.rows,
    )


def _correlations(tasks: Sequence[TaskColumn], rows: Batch) -> Matrix:
    labels, known = rows.labels.numpy().astype(np.float64), rows.known.numpy()
    ordered = [task.kind != "multiclass" or task.outputs == 2 for task in tasks]

    def correlation(i: int, j: int) -> float | None:
        a, b = labels[known[:, i] & known[:, j]][:, [i, j]].T
        if not (ordered[i] and ordered[j] and len(a) and np.ptp(a) and np.ptp(b)):
            return None
        return float(np.corrcoef(a, b)[0, 1])

    return tuple(tuple(correlation(i, j) for j in range(len(tasks))) for i in range(len(tasks)))


def _regrouped(rows: Batch) -> Iterator[Batch]:
    """Batches of about ``ROWS`` rows each, at most ``MOST`` of them, evenly spread."""
    count = max(1, round(rows.rows / ROWS))
    edges = np.linspace(0, rows.rows, count + 1).astype(int).tolist()
    for at in np.linspace(0, count - 1, min(count, MOST)).astype(int).tolist():
        yield cut(rows, edges[at], edges[at + 1])


def _cosines(model: Model, objective: Objective, batch: Batch) -> Floats:
    """Cosines between the gradients of the task losses at x, (T, T); NaN for a gradient of zero."""
    training = model.training
    model.eval()
    with torch.enable_grad():
        seen = model.represent(batch.numbers, batch.categories, batch.bags)
        x = seen.x.detach().requires_grad_()  # (B, D)
        logits = model.decide(seen._replace(x=x), calibrated=False).logits
        losses = objective(logits, batch.labels, batch.known, batch.weights)  # (T,)
        gradients = [torch.autograd.grad(loss, x, retain_graph=True)[0].flatten() for loss in losses]
    model.train(training)
    stacked = torch.stack(gradients).double()  # (T, B * D)
    unit = stacked / stacked.norm(dim=1, keepdim=True)  # 0 / 0 is NaN
    return (unit @ unit.T).clamp(-1, 1).numpy()


def _over_batches(cosines: Floats, statistic: Callable[[Floats], np.floating], *, least: int) -> Matrix:
    """A statistic of each pair over the batches (N, T, T) that define it, where there are ``least`` of them."""

    def one(values: Floats) -> float | None:
        defined = values[~np.isnan(values)]
        return float(statistic(defined)) if len(defined) >= least else None

    tasks = range(cosines.shape[1])
    return tuple(tuple(one(cosines[:, i, j]) for j in tasks) for i in tasks)
