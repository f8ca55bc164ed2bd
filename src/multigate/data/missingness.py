"""Labels that are unknown on a part of the rows where their parent is 1, and what the known ones count for.

On rows without a click ``buy`` is known to be 0. Where clicked rows have a known one only in part, these are too few
beside the others, and p(buy) is learnt too low. So each counts 1 / (the share that is known) there, and speaks for
those that are not: inverse probability weighting (Horvitz and Thompson 1952). That is right where it is a matter of
chance which are unknown. Labels known beside an unknown parent speak for themselves.
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
        counts = np.zeros((5, len(schema.tasks)), dtype=np.int64)
        self._ones, self.known, self.positives, self._apart, self.strays = counts

    def add(self, labels: Labels, known: Known) -> None:
        """Labels and known (T, R)."""
        for child, parent in self._chains:
            ones = known[parent] & (labels[parent] == 1)
            self._ones[child] += np.count_nonzero(ones)
            reached = ones & known[child]
            self.known[child] += np.count_nonzero(reached)
            self.positives[child] += np.count_nonzero(reached & (labels[child] == 1))
            self._apart[child] += np.count_nonzero(~known[parent])
            self.strays[child] += np.count_nonzero(known[child] & ~known[parent])

    def shares(self) -> dict[int, float]:
        """Known shares where the parent is 1, by the places of the tasks that the unknown make a difference to."""
        found: dict[int, float] = {}
        for child, parent in self._chains:
            if self.known[child]:
                share = float(self.known[child] / self._ones[child])
                if share < 1 or parent in found:
                    found[child] = share
        return found

    def beside(self) -> dict[int, float]:
        """Of these tasks, known shares where the parent is unknown; none of those that are never known there."""
        return {at: float(self.strays[at] / self._apart[at]) for at in self.shares() if self.strays[at]}

    def by_name(self, shares: Mapping[int, float]) -> dict[str, float]:
        return {self.schema.tasks[at].name: share for at, share in shares.items()}


def weighed(schema: Schema, shares: Mapping[str, float], beside: Mapping[str, float], rows: Batch) -> Batch:
    """Rows whose known labels speak for the unknown, of what ``Followed`` counted, by name."""
    named, apart = (
        {at: found[task.name] for at, task in enumerate(schema.tasks) if task.name in found}
        for found in (shares, beside)
    )
    weights = _weights(schema, named, apart, rows.labels.numpy(), rows.known.numpy(), rows.weights.numpy())
    return rows._replace(weights=torch.from_numpy(weights))


def weights_of(schema: Schema, labels: Labels, known: Known, weights: Weights) -> Weights:
    """Weights (R, T) of all the rows that something is made of, with labels and known (R, T); those that prepared rows
    have already stay as they are.
    """
    followed = Followed(schema)
    followed.add(labels.T, known.T)
    plain = {
        at: share
        for at, share in followed.shares().items()
        if schema.tasks[at].sample_weight is not None or (weights[:, at] == 1).all()
    }
    return _weights(schema, plain, followed.beside(), labels, known, weights) if plain else weights


def _weights(
    schema: Schema,
    shares: Mapping[int, float],
    beside: Mapping[int, float],
    labels: Labels,
    known: Known,
    weights: Weights,
) -> Weights:
    counts = np.ones_like(weights)
    for child, parent in chains(schema):
        if child in shares:
            here = np.where(labels[:, parent] == 1, np.float32(1 / shares[child]), np.float32(1))
            of_parent = counts[:, parent]
            if child in beside:  # what the parent speaks for speaks for itself there, in part
                shared = 1 + (of_parent - 1) * np.float32(1 - beside[child])
                of_parent = np.where(known[:, parent], shared, np.float32(1))
            counts[:, child] = of_parent * here
    counts[:, [task.sample_weight is not None for task in schema.tasks]] = 1  # which may make up for it itself
    return weights * counts
