"""A search: the settings that make a number largest, found by a Gaussian process and kept in a database.

Names of ``optuna``, the extra ``tune``, are imported late.
"""

import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from multigate.errors import DiskError, MultigateError, RunError
from multigate.options import Options
from multigate.run import difference
from multigate.training.interrupts import Interrupted

Value = bool | int | float | str
Point = dict[str, Value]
"""A value for every setting."""
STARTUP = 8
"""Trials at points spread over the space, before the process has something to go by; none of them is stopped."""
RETRIES = 2
"""Times that a point which failed is tried again before it counts as hopeless."""
KILLS = 3
"""Times that a point whose process was killed is tried again: it may have taken more memory than there is."""
GONE = f"its process was killed {KILLS + 1} times; it may take more memory than there is"
FAILURES, KILLED = "failures", "killed"
"""Attributes of a trial: how often its point failed before, and how often its process was killed."""
SECONDS, METRICS, HOPELESS = "seconds", "metrics", "hopeless"
"""Attributes of a trial: how long it took, what else it came to, and why it has the value of hopeless points."""
BEAT, SILENCE = 30, 120
"""Seconds between signs of life of a trial in a database that several machines share, and without one until it counts
as dead."""


class Range(Options):
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False
    """Evenly spread in their logarithm."""
    whole: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> "Range":
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(f"a range goes up, and from above 0 with 'log'; found {self.low:g} to {self.high:g}")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"a range of whole numbers has whole ends; found {self.low:g} to {self.high:g}")
        return self

    def at(self, part: float) -> Value:
        """The number at a part in [0, 1) of the way."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        found = low * (high / low) ** part if self.log else low + part * (high - low)
        found = min(max(found, self.low), self.high)
        return round(found) if self.whole else found


class Choice(Options):
    """One of some values."""

    values: tuple[Value, ...] = Field(min_length=1)

    def at(self, part: float) -> Value:
        """The value at a part in [0, 1) of the way."""
        return self.values[int(part * len(self.values))]


Space = Mapping[str, Range | Choice]


class Stopped(Exception):
    """A trial is behind the others, and is not worth its end."""


class Hopeless(Exception):
    """A trial that cannot be, or came to nothing, and why: it has the value of the search's hopeless points."""


class Valued(NamedTuple):
    """The value of a trial, and what else it came to, to be kept beside it."""

    value: float
    metrics: Mapping[str, float]


Tell = Callable[[int, float], None]
"""Told how far a trial is, in steps that mean the same in all trials, and its value there; raises ``Stopped``."""
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


def require_extra() -> None:
    """Raise ``MultigateError`` where what tunes is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise MultigateError("tuning needs optuna, which is not installed: pip install 'multigate[tune]'") from None


def in_file(path: Path) -> str:
    """The ``storage`` that a file is; signs that URLs have a use for, such as ``?`` and ``%``, are part of its name.

    Raises ``RunError`` where the installed SQLAlchemy or Optuna cannot name it.
    """
    require_extra()
    from sqlalchemy.engine import URL, make_url

    storage = URL.create("sqlite", database=str(path)).render_as_string()
    if make_url(storage).database != str(path) or "{" in storage:  # before SQLAlchemy 2.1 nothing is quoted
        raise RunError(
            f"no trials can be kept in {path}: its name holds a sign that is none here; choose another folder"
        )
    return storage


def begin(search: Search, first: Sequence[Point] = ()) -> list[Point]:
    """Make the search's place in the database, or go on with the one there is: what a killed process was at comes next.

    Points that are to be tried ``first`` are, in their order, each once. Gives back the points that are hopeless from
    now on, for that came ``KILLS`` times before.

    Raises ``RunError`` where the search there is about something else.
    """
    with _study(search) as study:
        lost = [] if search.shared else _in_state(study, "RUNNING")
        for trial in lost:
            study.tell(trial.number, state=_state("FAIL"))
            _again(search, study, trial)
        for point in first:
            study.enqueue_trial(point, skip_if_exists=True)
        return [trial.params for trial in lost if _is_hopeless(search, trial)]


def try_one(search: Search, objective: Objective, most: int | None = None) -> Trial | None:
    """One more trial, at the point that promises most; None where ``most`` trials are over or under way elsewhere.

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
        place = len(_in_state(study, "COMPLETE", "RUNNING"))
        if most is not None and place >= most:
            return None
        study.sampler = _sampler(search.seed, place)
        if place < STARTUP and not _in_state(study, "WAITING"):
            study.enqueue_trial(_spread(search, place), skip_if_exists=True)
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
    point = {name: _suggested(trial, name, one) for name, one in search.space.items()}
    failures, killed = _failures(trial)
    reached, at = -math.inf, 0

    def tell(step: int, value: float) -> None:
        nonlocal reached, at
        reached, at = max(reached, value), step
        trial.report(value, step)
        if trial.should_prune():
            raise Stopped

    began = time.perf_counter()
    try:
        told = objective(point, tell)
        found = told if isinstance(told, Valued) else Valued(told, {})
        if not math.isfinite(found.value):
            raise RunError(f"a trial came to {found.value}, from which nothing can be learnt; its point was {point}")
        trial.set_user_attr(METRICS, {name: one for name, one in found.metrics.items() if math.isfinite(one)})
        return found.value
    except Stopped:
        trial.set_user_attr("stopped", True)
        return reached + _gain(study, at)
    except BaseException as error:
        failures += isinstance(error, Exception) and not isinstance(error, Interrupted | DiskError | OSError)
        if search.hopeless is not None and (isinstance(error, Hopeless) or failures > RETRIES):
            trial.set_user_attr(HOPELESS, str(error))
            return search.hopeless
        study.enqueue_trial(point, user_attrs={FAILURES: failures, KILLED: killed})
        raise
    finally:
        trial.set_user_attr(SECONDS, time.perf_counter() - began)


def _gain(study: Any, step: int) -> float:
    """What trials that were not stopped gained from a step to their end, in the median."""
    whole = [one for one in _in_state(study, "COMPLETE") if "stopped" not in one.user_attrs]
    gains = [one.value - one.intermediate_values[step] for one in whole if step in one.intermediate_values]
    return statistics.median(gains) if gains else 0.0


def _finished(study: Any, search: Search) -> list[Trial]:
    return [
        Trial(
            number=trial.number,
            point={name: trial.params[name] for name in search.space},
            value=trial.value,
            steps=dict(trial.intermediate_values),
            stopped="stopped" in trial.user_attrs,
            seconds=trial.user_attrs[SECONDS],
            metrics=trial.user_attrs.get(METRICS, {}),
            hopeless=trial.user_attrs.get(HOPELESS, ""),
        )
        for trial in _in_state(study, "COMPLETE")
    ]


def _suggested(trial: Any, name: str, one: Range | Choice) -> Value:
    if isinstance(one, Choice):
        return trial.suggest_categorical(name, one.values)
    if one.whole:
        return int(trial.suggest_int(name, int(one.low), int(one.high), log=one.log))
    return float(trial.suggest_float(name, one.low, one.high, log=one.log))


def _spread(search: Search, place: int) -> Point:
    """One of the ``STARTUP`` points that are tried first."""
    parts = _filling(len(search.space), search.seed)[place] if search.space else ()
    return {name: one.at(float(part)) for (name, one), part in zip(search.space.items(), parts, strict=True)}


@cache
def _filling(dimensions: int, seed: int) -> NDArray[np.float64]:
    """Points (``STARTUP``, dimensions) in [0, 1): one in each eighth of every dimension, and no two dimensions alike.

    A Latin hypercube of low centred discrepancy. Sequences that go on for ever lie near a diagonal where they begin.
    """
    from scipy.stats import qmc

    points: NDArray[np.float64] = qmc.LatinHypercube(dimensions, rng=seed, optimization="random-cd").random(STARTUP)
    return points


def _sampler(seed: int, place: int) -> Any:
    """A Gaussian process that has no memory but the database: a search that goes on draws what it would have drawn."""
    import optuna

    own = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
    return optuna.samplers.GPSampler(seed=own, n_startup_trials=2, warn_independent_sampling=False)


def _again(search: Search, study: Any, trial: Any) -> None:
    """Have the point of a trial that nobody ended tried next, or count it as hopeless."""
    point = trial.system_attrs.get("fixed_params", {}) | trial.params  # it may have been killed before it was at all
    if not point:
        return
    failures, killed = _failures(trial)
    if not _is_hopeless(search, trial):
        study.enqueue_trial(point, user_attrs={FAILURES: failures, KILLED: killed + 1})
        return
    from optuna.trial import create_trial

    study.add_trial(
        create_trial(
            params=trial.params,
            distributions=trial.distributions,
            value=search.hopeless,
            user_attrs={FAILURES: failures, KILLED: killed + 1, SECONDS: 0.0, HOPELESS: GONE},
        )
    )


def _is_hopeless(search: Search, trial: Any) -> bool:
    """Whether the point of a trial that was killed is not worth another."""
    return search.hopeless is not None and _failures(trial)[1] >= KILLS


def _failures(trial: Any) -> tuple[int, int]:
    """How often the point of a trial failed before, and how often its process was killed."""
    return trial.user_attrs.get(FAILURES, 0), trial.user_attrs.get(KILLED, 0)


def _in_state(study: Any, *names: str) -> list[Any]:
    return study.get_trials(deepcopy=False, states=tuple(_state(name) for name in names))


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


@contextmanager
def _study(search: Search) -> Iterator[Any]:
    """The search in its database."""
    require_extra()
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats
        storage = _storage(search)
        try:
            study = optuna.create_study(
                study_name=search.name,
                storage=storage,
                direction="maximize",
                load_if_exists=True,
                sampler=_sampler(search.seed, 0),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP, n_min_trials=STARTUP // 2),
            )
            _check_same(study, search)
            yield study
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:  # damaged, locked, a full disk
            raise _refused(search, error) from error
        finally:
            storage.remove_session()
            storage.engine.dispose()


def _storage(search: Search, tries: int = 5) -> Any:
    import optuna
    from sqlalchemy.exc import IntegrityError, SQLAlchemyError
    from sqlalchemy.pool import NullPool

    in_file = search.storage.startswith("sqlite")
    try:
        storage = optuna.storages.RDBStorage(
            search.storage,
            # no pool: where the database is refused nobody could close what waits in one
            engine_kwargs={"connect_args": {"timeout": SILENCE}, "poolclass": NullPool} if in_file else None,
            heartbeat_interval=BEAT if search.shared else None,
            grace_period=SILENCE if search.shared else None,
            heartbeat_stale_trial_callback=partial(_again, search),
        )
        if in_file:
            _take_turns(storage.engine)
        return storage
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, ImportError) as error:  # no URL, driver, database
        made_elsewhere = isinstance(error, IntegrityError) or "already exists" in str(error)
        if not made_elsewhere or tries == 1:
            raise _refused(search, error) from None
    time.sleep(0.2)  # another process is making the tables of a new database
    return _storage(search, tries - 1)


def _take_turns(engine: Any) -> None:
    """Have a transaction of SQLite lock its file from its beginning on.

    By default it does so once it writes, so that two processes may read that a trial waits, and both begin it.
    """
    from sqlalchemy import event

    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # or the driver begins transactions of its own

    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()
    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin)


def _refused(search: Search, error: Exception) -> RunError:
    """What a database says that keeps no trials."""
    reason = str(error.__cause__ or error).partition("\n")[0]
    place = unquote(search.storage.rpartition("@")[2])  # behind user and password
    return RunError(f"no trials can be kept in {place!r}: {reason}; mend that or choose another place")


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
