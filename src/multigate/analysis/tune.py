"""Tuning an experiment: trials of its settings on the same rows, and the best of them as an experiment file."""

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from multigate.analysis.chance import chance, constants
from multigate.analysis.database import in_file, require_extra
from multigate.analysis.ranges import Point, Space
from multigate.analysis.retries import Hopeless
from multigate.analysis.search import Search, Trial, Valued, begin, finished
from multigate.analysis.space import (
    RATE,
    Spec,
    applied,
    combinations,
    described,
    experiment_at,
    in_vain,
    known_by,
    point_of,
    read_space,
    usual_space,
)
from multigate.analysis.stopping import Stopped, Tell
from multigate.analysis.trials import Sought, make_trials, opened, trained
from multigate.analysis.tuning import Goal, Tuning, shown
from multigate.analysis.workers import Workers
from multigate.cores import usable_cores
from multigate.data.prepared import thinned
from multigate.data.split import PARTS
from multigate.errors import ExperimentError, RunError, is_memory_gone
from multigate.evaluate import Monitor, scores
from multigate.experiment import Experiment, Paths, as_experiment
from multigate.folders import BEST, TRIALS, folder_named
from multigate.run import claimed
from multigate.training.diverged import Diverged
from multigate.training.interrupts import interruptible
from multigate.training.loop import choose_device
from multigate.training.progress import Reporter
from multigate.training.same_rows import prepare_same
from multigate.training.train import open_sources
from multigate.unscored import listed_reasons, unscored
from multigate.writing import remove, write_text

SAMPLE, WORK = "sample", "work"
"""Where a share of the training rows is, and what trials under way have written."""


class Ground(NamedTuple):
    """What trials stand on: the experiment as given and its point, prepared rows, and a place for what they are at."""

    experiment: Experiment
    given: Point
    prepared: Path
    work: Path
    device: str


def tune(
    experiment: Experiment,
    space: Mapping[str, Spec] | None = None,
    *,
    out: str | Path,
    trials: int = 30,
    goal: str | None = None,
    share: float = 1.0,
    workers: int | None = None,
    device: str = "auto",
    tables: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Tuning:
    """Try values of an experiment's settings, and keep the best of them as ``best.yaml`` in the folder ``out``.

    ``space`` has the values of each field to try, by the name that ``--set`` has for it: text as ``--try`` takes it
    (``"1e-4..1e-2"``, ``"mmoe,ple"``), two ends of a range, or a list of choices. Without it rate, dropout, decay and
    sizes around the experiment's own are tried. The first trial is the experiment as given. All have its seed, and are
    judged on the validation rows by what chooses the best weights: ``goal``, or the experiment's ``monitor``. One that
    is below the median of those before it at the same quarter of its training is stopped.

    ``share`` is the part of the training rows that trials learn from. ``workers`` are processes; None is one for each
    core, and one alone on a GPU. Called again with the same folder it goes on; ``trials`` may grow.

    Raises ``ExperimentError`` for fields and values that cannot be, ``RunError`` where the folder holds something else,
    ``MultigateError`` where the extra ``tune`` is not installed.
    """
    require_extra()
    experiment, chosen = as_experiment(experiment), choose_device(device)
    given = experiment if goal is None else experiment.with_(monitor=goal)
    monitor = Monitor(given.monitor, given.schema)  # refused before any table is read
    if given.warm_start is not None:
        raise ExperimentError("every trial starts anew; leave warm_start out")
    _check(trials, workers, share)
    tried = usual_space(given) if space is None else read_space(given, space)
    if not tried:
        raise ExperimentError("there is nothing to try; name a field and its values, or leave 'space' out")
    folder = folder_named(out)
    sources = open_sources(given, tables)
    with (
        interruptible(lambda: "the same command goes on from here"),
        claimed(folder, given, resume=True, progress=TRIALS),
        Reporter(quiet=quiet) as report,
    ):
        fresh = not (folder / TRIALS).is_file()
        prepared = prepare_same(given, sources, folder, report, fresh=fresh)
        if share < 1:
            prepared = thinned(prepared, share, folder / SAMPLE)
        remove(folder / WORK)  # what killed trials left
        if RATE in tried:  # then a number in every trial, and the best one is good for batches of its size alone
            given = given.settled(prepared.train.rows)
        nothing = constants(given, prepared)
        metrics = scores(nothing)
        told = Goal(monitor, metrics)
        ground = Ground(given, {}, prepared.folder.resolve(), (folder / WORK).resolve(), chosen.type)
        plan = _plan(ground, tried, trials, f"share {share:g}", chance(given, metrics), folder)
        many = sum(one.trials for one in plan.sought)
        report.lines(in_vain(given, tried))
        reasons = {name: why for name, why in unscored(nothing, metrics).items() if name in monitor.averaged}
        if reasons:
            report.line(f"the validation rows cannot score {listed_reasons(reasons)}")
        _tell(report, told, tried, many, whole=many < trials)
        done = [trial for one in plan.sought for trial in finished(one.search)]
        with Workers(workers or (1 if chosen.type == "cuda" else usable_cores())) as processes:
            for _, trial in make_trials(plan.sought, processes, report):
                done.append(trial)
                settings = {} if trial.point == plan.given else applied(given, trial.point)
                report.line(_line(told, trial, settings, len(done), many))
                if _is_enough(plan, done):
                    _keep(_tuning(folder, given, tried, plan, done))
        remove(folder / WORK)
        tuning = _tuning(folder, given, tried, plan, done)
        _keep(tuning)
        return tuning


def _check(trials: int, workers: int | None, share: float) -> None:
    wholes = (trials, 1 if workers is None else workers)
    if (
        any(isinstance(one, bool) for one in (*wholes, share))
        or not all(isinstance(one, Integral) and one >= 1 for one in wholes)
        or not (isinstance(share, Real) and 0 < share <= 1)
    ):
        raise ExperimentError(
            f"trials and workers are 1 or more, share is above 0 and at most 1; found {trials!r}, "
            f"{workers!r} and {share!r}"
        )


def try_point(ground: Ground, point: Point, tell: Tell) -> Valued:
    """One trial; that of the experiment as given is never stopped, for the others are held against it."""
    as_given = point == ground.given
    try:
        experiment = ground.experiment if as_given else experiment_at(ground.experiment, point)
        return trained(
            experiment,
            opened(ground.prepared),
            ground.work,
            choose_device(ground.device),
            partial(_tell_unheeded, tell) if as_given else tell,
        )
    except (Diverged, ExperimentError) as error:
        if as_given and isinstance(error, ExperimentError):
            raise
        raise Hopeless(str(error)) from None
    except (MemoryError, RuntimeError) as error:
        if not is_memory_gone(error):
            raise
        raise Hopeless("there is not enough memory") from None


def _tell_unheeded(tell: Tell, step: int, value: float) -> None:
    with suppress(Stopped):
        tell(step, value)


class _Plan(NamedTuple):
    """The searches, begun, and the point of the trial that is the experiment as given."""

    sought: list[Sought]
    given: Point


def _plan(ground: Ground, space: Space, trials: int, about: str, hopeless: float, folder: Path) -> _Plan:
    """A search of the space; before it, where the experiment as given is outside the space, one of that alone.

    A space of no more points than trials is tried whole.
    """
    given = point_of(ground.experiment, space)
    many = trials - (given is None)
    search = Search(
        name="settings",
        storage=in_file((folder / TRIALS).resolve()),
        space=space,
        about=about,
        seed=ground.experiment.seed,
        hopeless=hopeless,
        known_by=partial(known_by, ground.experiment),
    )
    inside = partial(try_point, ground if given is None else ground._replace(given=given))
    every = combinations(ground.experiment, space, trials) or []
    before = finished(search)
    tried = {known_by(ground.experiment, trial.point) for trial in before}
    first = [*([] if given is None else [given]), *(point for point in every if point != given)]
    first = [point for point in first if known_by(ground.experiment, point) not in tried]
    sought = [Sought(search, inside, min(many, len(before) + len(first)) if every else many)]
    if given is None:
        alone = search._replace(name="as given", space={})
        sought.insert(0, Sought(alone, partial(try_point, ground), 1))
        begin(alone)
    begin(search, first)
    return _Plan(sought, given or {})


def _tell(report: Reporter, goal: Goal, space: Space, trials: int, *, whole: bool) -> None:
    """What is going to be tried."""
    every = ", the others all combinations there are" if whole else ""
    report.line(f"{trials} trials, the first the experiment as given{every}, by {goal.name} on the validation rows, of")
    width = max(map(len, space))
    for key, one in space.items():
        report.line(f"  {key:<{width}}  {described(one)}")


def _line(goal: Goal, trial: Trial, settings: Mapping[str, Any], number: int, trials: int) -> str:
    """A trial that is over."""
    state = "failed" if trial.hopeless else "stopped" if trial.stopped else f"{goal(trial.value):.4f}"
    had = {key: value for key, value in settings.items() if value is not None or trial.point[key] == "null"}
    values = "  ".join(f"{_short(key, settings)}={shown(value)}" for key, value in had.items())
    why = f"  {trial.hopeless}" if trial.hopeless else ""
    return f"trial {number}/{trials}  {state:>8}  {trial.seconds:.0f} s  {values or 'as given'}{why}"


def _short(key: str, others: Mapping[str, Any]) -> str:
    """The last part of a field's name, where that is enough to know it by."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in others) == 1 else key


def _is_enough(plan: _Plan, done: list[Trial]) -> bool:
    """Whether the experiment as given was tried, and any trial came to something."""
    whole = any(not trial.stopped and not trial.hopeless for trial in done)
    return whole and any(trial.point == plan.given for trial in done)


def _tuning(folder: Path, given: Experiment, space: Space, plan: _Plan, done: list[Trial]) -> Tuning:
    """The trials, that of the experiment as given first, the others as they were begun."""
    first = [trial for trial in done if trial.point == plan.given][:1]
    if not first:
        raise RunError(f"the experiment as given is not yet among the trials in {folder}; ask for more trials")
    others = sorted((trial for trial in done if trial is not first[0]), key=lambda trial: trial.number)
    return Tuning(folder, given, space, [*first, *others])


def _keep(tuning: Tuning) -> None:
    """Write down the trials so far, and the best of them as an experiment file that finds its tables from anywhere."""
    tuning.write()
    best, before = tuning.experiment, tuning.trials[0].goal
    best = best.with_(**{name: _absolute(getattr(best, name)) for name in PARTS})
    told = (
        f"The best of {len(tuning.trials)} trials by {tuning.goal.name} on the validation rows: {tuning.best.goal:.4f}"
    )
    told += "" if before is None else f"; as given {before:.4f}"
    write_text(tuning.folder / BEST, f"# {told}.\n\n{best.to_yaml()}")


def _absolute(paths: Paths | None) -> Paths | None:
    """Paths from the root on; none and empty ones are left as they are."""
    if not paths:
        return paths
    if isinstance(paths, tuple):
        return tuple(os.path.abspath(os.path.expanduser(one)) for one in paths)
    return os.path.abspath(os.path.expanduser(paths))
