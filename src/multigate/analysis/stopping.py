"""Trials that are behind the others are stopped, and count for what they would have come to."""

import math
import statistics
from collections.abc import Callable
from typing import Any

from multigate.analysis.database import STOPPED, in_state
from multigate.analysis.sampling import STARTUP

Tell = Callable[[int, float], None]
"""Told how far a trial is, in steps that mean the same in all trials, and its value there; raises ``Stopped``."""


class Stopped(Exception):
    """A trial is behind the others, and is not worth its end."""


def rule() -> Any:
    """Behind is a trial whose best so far is below the median of the trials before it at the same step."""
    import optuna

    return optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_min_trials=STARTUP // 2)


class Course:
    """How far a trial is: its last step, and the best value that it has told."""

    def __init__(self, trial: Any) -> None:
        self.trial = trial
        self.step, self.best = 0, -math.inf

    def tell(self, step: int, value: float) -> None:
        self.step, self.best = step, max(self.best, value)
        self.trial.report(value, step)
        if self.trial.should_prune():
            raise Stopped

    def stop(self, study: Any) -> float:
        """Mark the trial as stopped; its value is what it had, and what others gained from there to their end."""
        self.trial.set_user_attr(STOPPED, True)
        return self.best + _gain(study, self.step)


def _gain(study: Any, step: int) -> float:
    """What trials that were not stopped gained from a step to their end, in the median."""
    whole = [one for one in in_state(study, "COMPLETE") if STOPPED not in one.user_attrs]
    gains = [one.value - one.intermediate_values[step] for one in whole if step in one.intermediate_values]
    return statistics.median(gains) if gains else 0.0
