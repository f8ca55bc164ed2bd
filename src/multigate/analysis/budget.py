"""One budget for all: structures made equally wide in multiply-adds, so that a comparison is about sharing."""

from collections.abc import Callable, Sequence
from functools import cache

from multigate.assembly import outline
from multigate.data.encoder import Encoder
from multigate.experiment import Experiment
from multigate.sharing import Structure

TOLERANCE = 0.02


def multiply_adds(
    structure: Structure, experiment: Experiment, encoder: Encoder, tasks: Sequence[int] | None = None
) -> int:
    """Multiply-adds of one row through sharing and towers, for all tasks or some. Nothing is allocated."""
    return outline(experiment.with_(sharing=structure), encoder, tasks).multiply_adds()


def within_budget(
    structure: Structure,
    budget: int,
    experiment: Experiment,
    encoder: Encoder,
    tasks: Sequence[int] | None = None,
) -> Structure:
    """The structure with its widths multiplied so that in this experiment it costs ``budget`` (``matched``)."""
    return matched(structure, budget, lambda one: multiply_adds(one, experiment, encoder, tasks))


def matched(structure: Structure, budget: int, cost: Callable[[Structure], int]) -> Structure:
    """The structure with its widths multiplied by one factor, found by bisection, so that it costs ``budget``.

    Within 2 % where whole widths allow it, else the closest there is.
    """

    @cache
    def costs(factor: float) -> int:
        return cost(structure.widened(factor))

    def distance(factor: float) -> float:
        return abs(costs(factor) - budget)

    if abs(cost(structure) - budget) <= TOLERANCE * budget:
        return structure
    low, high = 1 / 1024, 1.0
    while costs(high) < budget:
        low, high = high, 2 * high
    best = min(low, high, key=distance)
    while distance(best) > TOLERANCE * budget and high - low > 1e-4 * high:
        middle = (low + high) / 2
        best = min(best, middle, key=distance)
        low, high = (middle, high) if costs(middle) < budget else (low, middle)
    return structure.widened(best)
