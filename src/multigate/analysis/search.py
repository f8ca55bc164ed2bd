"""A search: the settings that make a number largest, found trial by trial and kept in a database.

Names of ``optuna``, the extra ``tune``, are imported late.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

from multigate.analysis.database import HOPELESS, METRICS, SECONDS, STOPPED, in_state, opened
from multigate.analysis.ranges import Point, Space
from multigate.analysis.retries import RETRIES, Attempts, Hopeless, is_hopeless, lose
from multigate.analysis.sampling import STARTUP, sampler, spread
from multigate.analysis.stopping import Course, Stopped, Tell, rule
from multigate.errors import RunError
from multigate.run import difference


class Valued(NamedTuple):
    """The value of a trial, and what else it came to, to be kept beside it."""

    value: float
    metrics: Mapping[str, float]


Objective = Callable[[Point, Tell], Valued | float]
"""What is to be made large. It lets ``Stopped`` pass."""


class Trial(NamedTuple):
    """A trial that is over. The value of one that was stopped is what it would have come to (see ``try_one``)."""

    number: int
    point: Point
    value: float
    steps: dict[int, float]
    stopped: bool
    seconds: float
    metrics: Mapping[str, float] = {}
    """What else it came to; nothing where it was stopped."""
    hopeless: str = ""
    """Why it has the value of hopeless points; empty for others."""


class Search(NamedTuple):
    """A search of a space, kept under its name in a database (``storage``, such as ``sqlite:///trials.db``).

    ``about`` is what else decides the values: a search of that name about something else is refused. A database that is
    not ``shared`` is one process's and those it starts: trials that nobody ended are then dead.
    """

    name: str
    storage: str
    space: Space
    about: str = ""
    seed: int = 0
    shared: bool = False
    hopeless: float | None = None
    """The value of a point that raises ``Hopeless`` or fails again and again; None where it is tried for ever."""
    known_by: Callable[[Point], str] | None = None
    """The same text for points that come to the same, of which one alone is tried; None where no two do."""


def begin(search: Search, first: Sequence[Point] = ()) -> list[Point]:
    """Make the search's place in the database, or go on with the one there is: what a killed process was at comes next.

    Points that are to be tried ``first`` are, in their order, each once. Gives back the points that are hopeless from
    now on, for that came ``KILLS`` times before.

    Raises ``RunError`` where the search there is about something else.
    """
    with _study(search) as study:
        from optuna.trial import TrialState

        lost = [] if search.shared else in_state(study, "RUNNING")
        for trial in lost:
            lose(search.hopeless, study, trial)  # first, or its point is gone where this process is killed in between
            study.tell(trial.number, state=TrialState.FAIL)
        for point in first:
            study.enqueue_trial(point, skip_if_exists=True)
        return [trial.params for trial in lost if is_hopeless(search.hopeless, trial)]


def try_one(search: Search, objective: Objective, most: int | None = None) -> Trial | None:
    """One more trial, at the point that promises most; None where ``most`` trials are over or under way elsewhere.

    A point that comes to what one before it did has that one's value.

    A trial is stopped where the best it has told so far is below the median of the trials before it at the same step.
    Its value is then what it had, and what trials that were not stopped gained from there to their end, in the median:
    the process learns from it, and is not misled. A trial that raises anything else does not count, and its point is
    the next one's; one that failed, and was not asked to stop nor met a full disk, ``RETRIES`` times over has the value
    ``hopeless``, as one has whose process was killed ``KILLS`` times over.
    """
    number = -1

    def value(trial: Any) -> float:
        nonlocal number
        number = trial.number
        return _value(study, trial, search, objective)

    with _study(search) as study:
        place = len(in_state(study, "COMPLETE", "RUNNING"))
        if most is not None and place >= most:
            return None
        study.sampler = sampler(search.seed, place)
        if place < STARTUP and not in_state(study, "WAITING"):
            study.enqueue_trial(spread(search.space, search.seed, place), skip_if_exists=True)
        study.optimize(value, n_trials=1)
        return next(one for one in _finished(study, search) if one.number == number)


def finished(search: Search, first: int | None = None) -> list[Trial]:
    """The trials that are over, or the ``first`` so many of them, in their order."""
    with _study(search) as study:
        return _finished(study, search)[:first]


def best(trials: list[Trial]) -> Trial:
    """The best of the trials that were not stopped; the first of equals."""
    return max((trial for trial in trials if not trial.stopped), key=lambda trial: trial.value)


def _value(study: Any, trial: Any, search: Search, objective: Objective) -> float:
    """Run a trial: its value, or what it would have come to."""
    point = {name: one.suggested(trial, name) for name, one in search.space.items()}
    same = _same(study, search, point)
    if same is not None:
        for name, one in ((METRICS, same.metrics), (SECONDS, 0.0), (HOPELESS, same.hopeless)):
            trial.set_user_attr(name, one)
        return same.value
    before, course = Attempts.before(trial), Course(trial)
    began = time.perf_counter()
    try:
        told = objective(point, course.tell)
        found = told if isinstance(told, Valued) else Valued(told, {})
        if not math.isfinite(found.value):
            raise RunError(f"a trial came to {found.value}, from which nothing can be learnt; its point was {point}")
        trial.set_user_attr(METRICS, {name: one for name, one in found.metrics.items() if math.isfinite(one)})
        return found.value
    except Stopped:
        return course.stop(study)
    except BaseException as error:
        attempts = before.after(error)
        if search.hopeless is not None and (isinstance(error, Hopeless) or attempts.failures > RETRIES):
            trial.set_user_attr(HOPELESS, str(error))
            return search.hopeless
        study.enqueue_trial(point, user_attrs=attempts.attributes())
        raise
    finally:
        trial.set_user_attr(SECONDS, time.perf_counter() - began)


def _same(study: Any, search: Search, point: Point) -> Trial | None:
    """A trial that went to its end at a point that comes to the same."""
    if search.known_by is None:
        return None
    known = search.known_by(point)
    over = (trial for trial in _finished(study, search) if not trial.stopped)
    return next((trial for trial in over if search.known_by(trial.point) == known), None)


def _finished(study: Any, search: Search) -> list[Trial]:
    return [
        Trial(
            number=trial.number,
            point={name: trial.params[name] for name in search.space},
            value=trial.value,
            steps=dict(trial.intermediate_values),
            stopped=STOPPED in trial.user_attrs,
            seconds=trial.user_attrs[SECONDS],
            metrics=trial.user_attrs.get(METRICS, {}),
            hopeless=trial.user_attrs.get(HOPELESS, ""),
        )
        for trial in in_state(study, "COMPLETE")
    ]


@contextmanager
def _study(search: Search) -> Iterator[Any]:
    """The search in its database."""
    with opened(search.storage, search.shared, partial(lose, search.hopeless)) as storage:
        import optuna

        study = optuna.create_study(
            study_name=search.name,
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            sampler=sampler(search.seed, 0),
            pruner=rule(),
        )
        _check_same(study, search)
        yield study


def _check_same(study: Any, search: Search) -> None:
    space = {name: one.to_dict(full=True) for name, one in search.space.items()}
    now = {"about": search.about, "seed": search.seed, "space": space}
    kept = study.user_attrs.get("search")
    if kept is None:
        study.set_user_attr("search", json.dumps(now))
        return
    changed = difference(json.loads(kept), now)
    if changed:
        raise RunError(
            f"{unquote(search.storage)} holds a search {search.name!r} about something else ({changed}); choose "
            "another folder or storage"
        )
