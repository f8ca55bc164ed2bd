"""Trainings that came to what is no number, and what helps."""

from multigate.errors import RunError
from multigate.experiment import Experiment


class Diverged(RunError):
    """The loss, or predictions, stopped being numbers."""


def diverged(found: str, experiment: Experiment) -> Diverged:
    """The error for what was ``found``, with what to change."""
    return Diverged(
        f"{found}; lower optimizer.learning_rate (now {experiment.optimizer.rate():g}), or set optimizer.clip=1 "
        "or precision=float32"
    )
