"""Experts of different runs, put in one order: an expert's number means nothing, so that only matched gates add up.

Shapes: N runs, R rows, T tasks (readers), E experts (sources).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Floats = NDArray[np.float64]
Orders = NDArray[np.intp]
MOST_ROUNDS = 100


class Matched(NamedTuple):
    """Gates of N runs on the same rows with their experts in one order."""

    orders: Orders
    """(N, E): the expert of each run that stands in each place."""
    gates: Floats
    """(N, R, T, E) in that order."""


def match_runs(gates: NDArray[np.floating]) -> Matched:
    """Put the experts of each run (N, R, T, E) in the order in which their gates are most like the other runs'.

    First like those of the medoid, the run that all others can be brought closest to, then like the mean of the matched
    runs, again and again until nothing moves: squared differences over rows and tasks never grow. Places are then
    sorted by what the first task reads of them. Runs that have nothing in common are matched too, as well as chance
    allows: ``agreement`` says how well, and should be held against that of ``estranged`` gates.
    """
    runs: Floats = gates.astype(np.float64)
    costs = np.array([[_distance(one, other) for other in runs] for one in runs])
    reference: Floats = runs[costs.sum(axis=0).argmin()]
    orders = np.zeros((len(runs), runs.shape[-1]), np.intp)
    for _ in range(MOST_ROUNDS):
        before = orders
        orders = np.stack([best_order(one, reference) for one in runs])
        if (orders == before).all():
            break
        reference = in_order(runs, orders).mean(axis=0)
    place = np.argsort(-reference[:, 0].mean(axis=0), kind="stable")
    orders = orders[:, place]
    return Matched(orders, in_order(runs, orders))


def best_order(gates: Floats, reference: Floats) -> Orders:
    """The order of the experts of gates (R, T, E) that brings them closest to a reference (R, T, E) -> (E,)."""
    _, order = linear_sum_assignment(_differences(reference, gates))
    return np.asarray(order)


def in_order(gates: Floats, orders: Orders) -> Floats:
    """Gates (N, R, T, E) with the experts of each run in its order (N, E)."""
    return np.take_along_axis(gates, orders[:, None, None, :], axis=-1)


def agreement(gates: Floats) -> float:
    """How much of the gates (N, R, T, E) is in their mean over runs: 1 where all runs are alike.

    Of what gates have beyond even weights, the square of the mean over the mean of the squares; runs that have nothing
    to do with each other have 1 / N, and more once they are matched.
    """
    beyond = gates - 1 / gates.shape[-1]
    whole = np.square(beyond).mean()
    return float(np.square(beyond.mean(axis=0)).mean() / whole) if whole > 0 else 1.0


def estranged(gates: NDArray[np.floating], seed: int = 0) -> Floats:
    """The same gates without what runs have in common in how tasks share: experts are renumbered task by task.

    Each task of each run keeps its own weights, row by row.
    """
    random = np.random.default_rng(seed)
    runs, _, tasks, experts = gates.shape
    found = gates.astype(np.float64)
    for run in range(runs):
        for task in range(tasks):
            found[run, :, task] = found[run][:, task, random.permutation(experts)]
    return found


def _distance(one: Floats, other: Floats) -> float:
    """The least sum of squared differences that an order of experts leaves."""
    costs = _differences(other, one)
    return float(costs[linear_sum_assignment(costs)].sum())


def _differences(one: Floats, other: Floats) -> Floats:
    """Sum over rows and tasks of the squared difference of each expert of one and each of the other, (E, E)."""
    a, b = (gates.reshape(-1, gates.shape[-1]) for gates in (one, other))
    found: Floats = np.square(a).sum(0)[:, None] + np.square(b).sum(0)[None] - 2 * a.T @ b
    return found
