"""Why a task cannot be scored on some rows: AUC wants labels of two classes, R² labels that vary."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from multigate.evaluate import Space
from multigate.metrics import PRIMARY

NO_NUMBERS = "not every prediction is a number"
"""The one reason that lies with the model and not with the rows."""


def unscored(found: Iterable[Space], metrics: Mapping[str, float]) -> dict[str, str]:
    """The tasks and conditionals whose main metric is NaN, by name, and why, in words."""
    return {space.name: why(space) for space in found if math.isnan(metrics[f"{space.name}/{PRIMARY[space.kind]}"])}


def why(space: Space) -> str:
    """What is wrong with the rows of a task whose main metric is NaN there."""
    labels = space.labels
    if not len(labels):
        return "no label is known"
    if space.weights is not None:
        labels = labels[space.weights > 0]
        if not len(labels):
            return "all known labels have weight 0"
    if np.ptp(labels) == 0:
        alike = "of one class" if space.kind == "multiclass" else f"{labels[0]:g}"
        return f"all {len(labels):,} known labels are {alike}" if len(labels) > 1 else "there is one known label only"
    return NO_NUMBERS


def listed_reasons(reasons: Mapping[str, str], most: int = 3) -> str:
    """Names with their reasons, as a sentence has them."""
    told = [f"task {name!r} ({reason})" for name, reason in reasons.items()]
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "")
