"""The methods of the census comparison, and what is tuned of each (Ma et al. 2018, section 6.3)."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from multigate.analysis.ranges import Choice, Point, Range, Space
from multigate.sharing import CGC, PLE, CrossStitch, MMoE, OMoE, SharedBottom, SingleTask, Soft, Structure, TensorFactor

TASKS = 2
CAP = 2048
"""Hidden units of a layer at most, all parallel parts of it together: the paper's cap, for every method."""


class Method(NamedTuple):
    """A method: its name in the paper's tables, knobs of its own, and the structure for a point of its space."""

    title: str
    knobs: Space
    build: Callable[[Point], Structure]


def space(method: str, most_units: int, most_epochs: int) -> Space:
    """What is tuned of a method: size, learning rate and length of the training as of all others, and its own knobs.

    ``units`` are those of the first layer, of all its parts together: networks of the tasks, or experts. ``second`` is
    the width of a second layer as a part of the first's; there is none at 0.
    """
    if method == BOOSTING:
        return BOOSTING_SPACE
    return {
        "units": Range(low=min(64, most_units), high=most_units, log=True, whole=True),
        "second": Choice(values=(0, 0.25, 0.5, 1)),
        "learning_rate": Range(low=2e-4, high=2e-2, log=True),
        "epochs": Range(low=min(2, most_epochs), high=most_epochs, log=True, whole=True),
        **METHODS[method].knobs,
    }


def structure(method: str, point: Point) -> Structure:
    """The structure of a method at a point of its space."""
    return METHODS[method].build(point)


def _layers(point: Point, parts: int) -> tuple[int, ...]:
    """Widths of each of so many parallel parts."""
    width = max(1, int(point["units"]) // parts)
    second = float(point["second"])
    return (width, max(1, int(width * second))) if second else (width,)


def _single(point: Point) -> Structure:
    return SingleTask(hidden=_layers(point, 1))


def _bottom(point: Point) -> Structure:
    return SharedBottom(hidden=_layers(point, 1))


def _soft(point: Point) -> Structure:
    return Soft(hidden=_layers(point, TASKS), strength=float(point["strength"]))


def _stitched(point: Point) -> Structure:
    return CrossStitch(hidden=_layers(point, TASKS), own=float(point["own"]))


def _factorised(point: Point) -> Structure:
    return TensorFactor(hidden=_layers(point, TASKS), rank=float(point["rank"]))


def _omoe(point: Point) -> Structure:
    experts = int(point["experts"])
    return OMoE(experts=experts, hidden=_layers(point, experts))


def _mmoe(point: Point) -> Structure:
    experts = int(point["experts"])
    return MMoE(experts=experts, hidden=_layers(point, experts))


def _ple(point: Point) -> Structure:
    own, shared = int(point["experts"]), int(point["shared"])
    hidden = _layers(point, TASKS * own + shared)
    if len(hidden) == 1:
        return CGC(experts=own, shared=shared, hidden=hidden)
    return PLE(experts=own, shared=shared, hidden=hidden, levels=2)


_EXPERTS = {"experts": Range(low=2, high=16, log=True, whole=True)}

SINGLE, BOOSTING = "single_task", "boosting"
METHODS: Mapping[str, Method] = {
    SINGLE: Method("Single-Task", {}, _single),
    "shared_bottom": Method("Shared-Bottom", {}, _bottom),
    "soft": Method("L2-Constrained", {"strength": Range(low=1e-6, high=1e-1, log=True)}, _soft),
    "cross_stitch": Method("Cross-Stitch", {"own": Range(low=0.5, high=1.0)}, _stitched),
    "tensor_factor": Method("Tensor-Factorization", {"rank": Range(low=0.05, high=1.0, log=True)}, _factorised),
    "omoe": Method("OMoE", _EXPERTS, _omoe),
    "mmoe": Method("MMoE", _EXPERTS, _mmoe),
    "ple": Method(
        "PLE", {"experts": Range(low=1, high=4, whole=True), "shared": Range(low=1, high=4, whole=True)}, _ple
    ),
}
"""The seven of the paper, and PLE, which came after it."""

BOOSTING_SPACE: Space = {
    "learning_rate": Range(low=0.02, high=0.3, log=True),
    "max_leaf_nodes": Range(low=8, high=128, log=True, whole=True),
    "min_samples_leaf": Range(low=5, high=200, log=True, whole=True),
    "l2_regularization": Range(low=1e-3, high=1e2, log=True),
    "max_features": Range(low=0.2, high=1.0),
}
"""Of gradient boosting, a model a task; the number of trees is found by stopping early."""
TREES = {"max_iter": 600, "n_iter_no_change": 20}


def boosting_settings(point: Point) -> dict[str, Any]:
    """What scikit-learn is told."""
    return {**TREES, **point}


class Training(NamedTuple):
    """What is tuned and then trained with many seeds: a method, and its tasks, the first of which it is tuned for."""

    method: str
    tasks: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.tasks[0]}-{self.method}"


def trainings(mains: tuple[str, ...], auxiliary: str, methods: tuple[str, ...]) -> list[Training]:
    """All there are; a method that has a model a task has one of the auxiliary task too, for both groups."""
    alone = [name for name in methods if name in (SINGLE, BOOSTING)]
    return [
        *(Training(name, (main,) if name in alone else (main, auxiliary)) for main in mains for name in methods),
        *(Training(name, (auxiliary,)) for name in alone),
    ]
