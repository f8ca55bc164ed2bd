"""Relatedness: do tasks agree, in their labels and in what they ask of the representation they share?"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
WIDE, FEW_TASKS = 2048, 8
"""Where x has more columns directions are compared row by row, on so many rows at most: by columns memory grows with
their square and time with their cube. So it is for up to so many tasks, and less for more, which have a matrix each."""

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
    overlap: Matrix
    """Whether two tasks read the same directions of x, 0 to 1, whatever they make of them; see ``Directions``."""
    rows: str
    """Which rows they are, for people."""


def relatedness(subject: Subject) -> Relatedness:
    """Correlation of labels over all rows; cosine and overlap of gradients over at most 20 batches of about 1,024 rows.

    A task's gradient is that of its loss at x, (B * D,), at the trained weights, in float32 without dropout and
    calibration: the gradient at the shared representation, where PCGrad takes that at the shared parameters (Yu et
    al. 2020, Definition 1). Below 0 two tasks would move the representation of the same rows in conflicting
    directions. A task without a known label in a batch has no direction there; the mean leaves such batches out.
    Tasks with embedding tables of their own have no x in common, and no overlap.

    Raises ``DataError`` where there are no rows.
    """
    if not subject.count:
        raise DataError(f"relatedness wants rows with labels, found none in {subject.rows}; name another table")
    tasks = subject.bundle.encoder.layout.tasks
    rows = join(subject.batches)
    with rows.labels.device:
        objective = Objective(tasks)
    directions = Directions()
    cosines = []
    for batch in _regrouped(rows):
        x, gradients = task_gradients(subject.bundle.model, objective, batch)
        cosines.append(cosines_of(gradients.flatten(1)))
        if x.dim() == 2:
            most = widest(len(tasks))
            every = -(-min(rows.rows, MOST * ROWS) // most) if x.shape[1] > most else 1
            directions.add(x[::every].contiguous(), gradients[:, ::every].contiguous())  # views would keep all rows
    overlap = directions.overlap() if directions.rows else np.full([len(tasks)] * 2, np.nan)
    return Relatedness(
        tasks=tuple(task.name for task in tasks),
        labels=as_matrix(label_correlations(tasks, rows.labels.numpy(), rows.known.numpy())),
        gradients=mean_matrix(np.stack(cosines)),
        gradients_sd=_over_batches(np.stack(cosines), partial(np.std, ddof=1), least=2),
        overlap=as_matrix(overlap),
        rows=subject.rows,
    )


def widest(tasks: int) -> int:
    """Columns or rows of a square matrix at most, of which there is one for each task."""
    return int(WIDE * min(1.0, (FEW_TASKS / tasks) ** 0.5))


def label_correlations(tasks: Sequence[TaskColumn], labels: NDArray[np.float32], known: NDArray[np.bool_]) -> Floats:
    """Pearson correlation of encoded labels (R, T) on the rows where both are known, (T, T); NaN where undefined."""
    labels = labels.astype(np.float64)
    ordered = [task.kind != "multiclass" or task.outputs == 2 for task in tasks]

    def correlation(i: int, j: int) -> float:
        both = known[:, i] & known[:, j]
        a, b = labels[both, i], labels[both, j]  # not of all the tasks, which would take a copy of the labels each time
        if not (ordered[i] and ordered[j] and len(a) and np.ptp(a) and np.ptp(b)):
            return np.nan
        return float(np.corrcoef(a, b)[0, 1])

    found = np.full([len(tasks)] * 2, np.nan)
    for i, j in combinations_with_replacement(range(len(tasks)), 2):
        found[i, j] = found[j, i] = correlation(i, j)
    return found


def _regrouped(rows: Batch) -> Iterator[Batch]:
    """Batches of about ``ROWS`` rows each, at most ``MOST`` of them, evenly spread."""
    count = max(1, round(rows.rows / ROWS))
    edges = np.linspace(0, rows.rows, count + 1).astype(int).tolist()
    for at in np.linspace(0, count - 1, min(count, MOST)).astype(int).tolist():
        yield cut(rows, edges[at], edges[at + 1])


def task_gradients(model: Model, objective: Objective, batch: Batch) -> tuple[Tensor, Tensor]:
    """x (B, D) and the gradients of the task losses there (T, B, D), in evaluation mode; nothing is left behind.

    With embedding tables of the tasks' own both have n inputs in place of one, (B, n, D) and (T, B, n, D).
    """
    training = model.training
    model.eval()
    with torch.enable_grad():
        seen = model.represent(batch.numbers, batch.categories, batch.bags)
        x = seen.x.detach().requires_grad_()
        logits = model.decide(seen._replace(x=x), calibrated=False).logits
        losses = objective(logits, batch.labels, batch.known, batch.weights)  # (T,)
        gradients = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses]
    model.train(training)
    return x.detach(), torch.stack(gradients)


class Directions:
    """Which directions of x each task reads, gathered over batches.

    C_t = E[g g'], (D, D), of a task's gradients g at x: the average gradient outer product of Radhakrishnan et al.
    (2024), with the loss in place of the prediction. Directions are measured in standard deviations of x, so that
    neither the scale of x nor a column that never changes counts: with S the covariance of x,
    <C_s, C_t> = tr(C_s S C_t S), which no invertible linear map of x alters.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sum = self._squares = self._moments = torch.zeros((), device="cpu")
        self._wide: list[tuple[Tensor, Tensor]] = []

    def add(self, x: Tensor, gradients: Tensor) -> None:
        """x (B, D) and gradients (T, B, D)."""
        self.rows += len(x)
        if x.shape[1] > widest(len(gradients)):
            self._wide.append((x, gradients))
            return
        self._sum = self._sum + x.sum(0).double()
        self._squares = self._squares + (x.T @ x).double()
        self._moments = self._moments + torch.stack([(one.T @ one).double() for one in gradients])

    def overlap(self) -> Floats:
        """The root of the cosine of C_s and C_t, (T, T), 0 to 1; NaN for a task without gradient.

        1 where two tasks read the same directions equally much, 0 where those that one reads are orthogonal to the
        other's, whatever the labels are. Of tasks that read one direction each, y_t = f_t(w_t . x), it is
        |cos(w_s, w_t)|.
        """
        products = (self._by_rows() if self._wide else self._by_columns()).cpu().numpy()
        sizes = np.sqrt(np.maximum(np.diag(products), 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = products / np.outer(sizes, sizes)
        return np.sqrt(np.clip(cosines, 0, 1))

    def _by_columns(self) -> Tensor:
        """<C_s, C_t> of all pairs, (T, T), by matrices (D, D)."""
        mean = self._sum / self.rows
        covariance = self._squares / self.rows - torch.outer(mean, mean)
        seen = (self._moments @ covariance).flatten(1)  # C_t S
        turned = (self._moments @ covariance).transpose(1, 2).flatten(1)  # tr(A B) is A . B'
        return seen @ turned.T

    def _by_rows(self) -> Tensor:
        """The same but for a factor, by matrices (N, N): with G the gradients and X the centred x of all N rows it is
        tr(G_s' G_s X' X G_t' G_t X' X)."""
        x = torch.cat([x for x, _ in self._wide])
        x = x - x.mean(0)
        of_tasks = zip(*(gradients for _, gradients in self._wide), strict=True)
        read = (torch.cat(of_batches) @ x.T for of_batches in of_tasks)
        moments = torch.stack([(one.T.double() @ one.double()).flatten() for one in read])
        return moments @ moments.T


def cosines_of(vectors: Tensor) -> Floats:
    """Cosines between vectors (T, N) -> (T, T); NaN for a vector of zeros."""
    stacked = vectors.double()
    unit = stacked / stacked.norm(dim=1, keepdim=True)  # 0 / 0 is NaN
    return (unit @ unit.T).clamp(-1, 1).cpu().numpy()


def mean_matrix(matrices: Floats) -> Matrix:
    """The mean of matrices (N, T, T), each pair over those that define it; None where none does."""
    return _over_batches(matrices, np.mean, least=1)


def error_matrix(matrices: Floats) -> Matrix:
    """The standard error of that mean, each pair over those that define it; None where fewer than two do."""
    return _over_batches(matrices, lambda values: np.std(values, ddof=1) / np.sqrt(len(values)), least=2)


def _over_batches(cosines: Floats, statistic: Callable[[Floats], np.floating], *, least: int) -> Matrix:
    """A statistic of each pair over the batches (N, T, T) that define it, where there are ``least`` of them."""

    def one(values: Floats) -> float | None:
        defined = values[~np.isnan(values)]
        return float(statistic(defined)) if len(defined) >= least else None

    tasks = range(cosines.shape[1])
    return tuple(tuple(one(cosines[:, i, j]) for j in tasks) for i in tasks)


def as_matrix(values: Floats) -> Matrix:
    """Nested tuples of (T, T), None in place of NaN."""
    return tuple(tuple(None if np.isnan(value) else float(value) for value in row) for row in values)
