"""Labels that are unknown on a part of the rows where their parent is 1, and what the known ones count for.

On rows without a click ``buy`` is known to be 0. Where clicked rows have a known one only in part, these are too few
beside the others, and p(buy) is learnt too low. So each counts 1 / (the share that is known) there, and speaks for
those that are not: inverse probability weighting (Horvitz and Thompson 1952). That is right where it is a matter of
chance which are unknown. Orphans, rows whose parent is unknown, speak for themselves where their label is known.

Two shares say it for each task: ``followed``, how many of the rows where the parent is 1 have a known label, and
``beside``, how many of the orphans have one. A known label then counts (with w for what the parent's counts)

    w / followed            where the parent is 1,
    w                       where the parent is 0,
    1                       where the parent is unknown,

and where there are known orphans, w is 1 + (w - 1) (1 - beside): of the orphans that a parent speaks for, those with
a label of their own do so themselves.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from multigate.batch import Batch
from multigate.schema import Schema

Labels = NDArray[np.floating]
Known = NDArray[np.bool_]
Weights = NDArray[np.float32]


def chains(schema: Schema) -> Sequence[tuple[int, int]]:
    """Places of tasks with a ``given`` and of their parents, parents first, whose ``where`` is the same."""
    parents = schema.parents()
    return [
        (at, parent)
        for at in schema.order()
        if (parent := parents[at]) is not None and schema.tasks[at].where == schema.tasks[parent].where
    ]


class Followed:
    """Counts, over rows in batches, how often tasks are known where their parent is 1, and where it is unknown."""

    def __init__(self, schema: Schema) -> None:
        self.schema, self._chains = schema, chains(schema)
        self._under_1, self._known_under_1, self._ones_under_1, self._orphans, self._known_orphans = np.zeros(
            (5, len(schema.tasks)), dtype=np.int64
        )

    def add(self, labels: Labels, known: Known) -> None:
        """Labels and known (T, R)."""
        for child, parent in self._chains:
            under_1 = known[parent] & (labels[parent] == 1)
            self._under_1[child] += np.count_nonzero(under_1)
            known_under_1 = under_1 & known[child]
            self._known_under_1[child] += np.count_nonzero(known_under_1)
            self._ones_under_1[child] += np.count_nonzero(known_under_1 & (labels[child] == 1))
            self._orphans[child] += np.count_nonzero(~known[parent])
            self._known_orphans[child] += np.count_nonzero(known[child] & ~known[parent])

    def shares(self) -> dict[int, float]:
        """``followed`` by the places of the tasks that the unknown make a difference to."""
        found: dict[int, float] = {}
        for child, parent in self._chains:
            if self._known_under_1[child]:
                share = float(self._known_under_1[child] / self._under_1[child])
                if share < 1 or parent in found:
                    found[child] = share
        return found

    def beside(self) -> dict[int, float]:
        """``beside`` of these tasks, where it is above 0."""
        return {
            at: float(self._known_orphans[at] / self._orphans[at]) for at in self.shares() if self._known_orphans[at]
        }

    def mean(self, child: int, of_parent: float, zeros_and_ones: NDArray[np.int64], ones_under_0: int) -> float:
        """About the mean label of one of these tasks as its weights make it, given that of its parent.

        That is (1 - s) (p q1 + (1 - p) q0) + s q, with p the mean of the parent; q1, q0 and q the shares of 1 among
        the known labels where the parent is 1, where it is 0 (``ones_under_0`` of them), and in all; and s the share
        of the known labels that are orphans.
        """
        known, ones = zeros_and_ones.sum(), zeros_and_ones[1]
        known_under_1, orphans = self._known_under_1[child], self._known_orphans[child]
        known_under_0 = max(known - known_under_1 - orphans, 1)
        chained = of_parent * self._ones_under_1[child] / known_under_1 + (1 - of_parent) * ones_under_0 / known_under_0
        return float(chained + orphans / known * (ones / known - chained))

    def by_name(self, shares: Mapping[int, float]) -> dict[str, float]:
        return {self.schema.tasks[at].name: share for at, share in shares.items()}


def weighed(schema: Schema, followed: Mapping[str, float], beside: Mapping[str, float], rows: Batch) -> Batch:
    """Rows whose known labels speak for the unknown, given both shares by the names of tasks."""
    at_followed, at_beside = (
        {at: shares[task.name] for at, task in enumerate(schema.tasks) if task.name in shares}
        for shares in (followed, beside)
    )
    weights = _weights(schema, at_followed, at_beside, rows.labels.numpy(), rows.known.numpy(), rows.weights.numpy())
    return rows._replace(weights=torch.from_numpy(weights))


def weights_of(schema: Schema, labels: Labels, known: Known, weights: Weights) -> Weights:
    """Weights (R, T) of all the rows that something is made of, with labels and known (R, T); those that prepared rows
    have already stay as they are.
    """
    counted = Followed(schema)
    counted.add(labels.T, known.T)
    followed = {
        at: share
        for at, share in counted.shares().items()
        if schema.tasks[at].sample_weight is not None or (weights[:, at] == 1).all()
    }
    return _weights(schema, followed, counted.beside(), labels, known, weights) if followed else weights


def _weights(
    schema: Schema,
    followed: Mapping[int, float],
    beside: Mapping[int, float],
    labels: Labels,
    known: Known,
    weights: Weights,
) -> Weights:
    """Weights (R, T) times what each label counts, given both shares by the places of tasks."""
    counts = np.ones_like(weights)
    for child, parent in chains(schema):
        if child in followed:
            of_parent = counts[:, parent]
            if child in beside:
                in_part = 1 + (of_parent - 1) * np.float32(1 - beside[child])
                of_parent = np.where(known[:, parent], in_part, np.float32(1))
            speaks_for = np.where(labels[:, parent] == 1, np.float32(1 / followed[child]), np.float32(1))
            counts[:, child] = of_parent * speaks_for
    counts[:, [task.sample_weight is not None for task in schema.tasks]] = 1  # which may make up for it itself
    return weights * counts
