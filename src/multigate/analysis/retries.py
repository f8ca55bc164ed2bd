"""Points that failed, or whose process was killed: each is the next one's, until it counts as hopeless."""

from typing import Any, NamedTuple

from multigate.analysis.database import FAILURES, HOPELESS, KILLED, SECONDS
from multigate.errors import DiskError
from multigate.training.interrupts import Interrupted

RETRIES = 2
"""Times that a point which failed is tried again before it counts as hopeless."""
KILLS = 3
"""Times that a point whose process was killed is tried again: it may have taken more memory than there is."""
GONE = f"its process was killed {KILLS + 1} times; it may take more memory than there is"


class Hopeless(Exception):
    """A trial that cannot be, or came to nothing, and why: it has the value of the search's hopeless points."""


class Attempts(NamedTuple):
    """How often a point failed before, and how often its process was killed."""

    failures: int
    killed: int

    @classmethod
    def before(cls, trial: Any) -> "Attempts":
        """As the attributes of a trial at it tell."""
        return cls(trial.user_attrs.get(FAILURES, 0), trial.user_attrs.get(KILLED, 0))

    def after(self, error: BaseException) -> "Attempts":
        """As many, and the one that ended so: what was asked to stop, or met a full disk, has not failed."""
        failed = isinstance(error, Exception) and not isinstance(error, Interrupted | DiskError | OSError)
        return self._replace(failures=self.failures + failed)

    def attributes(self) -> dict[str, int]:
        return {FAILURES: self.failures, KILLED: self.killed}


def lose(hopeless: float | None, study: Any, trial: Any) -> None:
    """Have the point of a trial that nobody ended tried next, or count it as hopeless; once, however often called."""
    point = _point(trial)
    before = Attempts.before(trial)
    if not point or any(
        Attempts.before(one) > before and one.number > trial.number and _point(one) == point
        for one in study.get_trials(deepcopy=False)
    ):
        return
    now = before._replace(killed=before.killed + 1)
    if not is_hopeless(hopeless, trial):
        study.enqueue_trial(point, user_attrs=now.attributes())
        return
    from optuna.trial import create_trial

    study.add_trial(
        create_trial(
            params=trial.params,
            distributions=trial.distributions,
            value=hopeless,
            user_attrs={**now.attributes(), SECONDS: 0.0, HOPELESS: GONE},
        )
    )


def _point(trial: Any) -> dict[str, Any]:
    """What a trial is at; one that waits, or was killed before it was at all, has what it was queued with."""
    return dict(trial.system_attrs.get("fixed_params", {}) | trial.params)


def is_hopeless(hopeless: float | None, trial: Any) -> bool:
    """Whether the point of a trial that was killed is not worth another."""
    return hopeless is not None and Attempts.before(trial).killed >= KILLS
