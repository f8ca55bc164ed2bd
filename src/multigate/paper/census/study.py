"""Census-Income (Ma et al. 2018, section 6.3): seven methods tuned alike, and what became of them. Tables 1 and 2."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from multigate.analysis.boosting import available
from multigate.analysis.database import in_file, require_extra
from multigate.analysis.ranges import Point
from multigate.analysis.search import Search, Trial, begin, best, finished
from multigate.analysis.trials import Sought, make_trials
from multigate.analysis.workers import Job, Workers
from multigate.cores import usable_cores
from multigate.data.prepared import Prepared
from multigate.errors import MultigateError, nearest
from multigate.options import Options
from multigate.paper.account import Account
from multigate.paper.census.account import Found, tell
from multigate.paper.census.methods import BOOSTING, CAP, METHODS, Training, space, trainings
from multigate.paper.census.one_hot import OneHot
from multigate.paper.census.rows import (
    AUXILIARY,
    MAINS,
    Tables,
    label_correlation,
    prepare_education,
    prepare_one_hot,
    prepare_raw_weight,
    prepare_runs,
    prepare_search,
    prepare_weight,
    read_tables,
    sampled,
)
from multigate.paper.census.training import CHANCE, Choices, Ground, run_one_hot, run_point, run_points, try_point
from multigate.paper.ledger import Row
from multigate.paper.parts import run_parts, run_together
from multigate.paper.study import Site, Study
from multigate.progress import Progress
from multigate.writing import remove

DATA = "census-income"
STACK = 15
"""Runs that a GPU trains as one; a processor is filled by one alone."""
ON_A_GPU = 4
"""Processes that share a GPU: a training of this size leaves it idle for the most part."""
Group = Literal[1, 2]
Run = Callable[[Ground, Training, Point, int], dict[str, Any]]


class CensusStudy(Options):
    """Settings of the study; what the paper does not say is a choice of ours."""

    groups: tuple[Group, ...] = Field(default=(1, 2), min_length=1)
    methods: tuple[str, ...] = Field(default=(*METHODS, BOOSTING), min_length=1)
    trials: int = Field(default=60, ge=2)
    """Of the search of each method; the paper made thousands. May grow: the search goes on."""
    runs: int = Field(default=15, ge=2)
    """Of each method with the values chosen; the paper's 400. May grow."""
    traps: int = Field(default=10, ge=0)
    """Runs with each of the well-known mistakes; may grow."""
    share: float = Field(default=0.3, gt=0, le=1)
    """Of the training rows, which the search is on; the runs are on all."""
    rows: int | None = Field(default=None, ge=1_000)
    """Training rows at most; null is all."""
    units: int = Field(default=CAP, ge=16, le=CAP)
    """Hidden units of a layer at most, all its parallel parts together, for every method."""
    epochs: int = Field(default=12, ge=1)
    """The longest training."""
    choices: Choices = Choices()
    workers: int | None = Field(default=None, ge=1)
    """Processes; null is one for each core, and on a GPU at most four."""
    storage: str | None = None
    """URL of the trials' database, such as ``postgresql://...``, for machines that search together; null is a file in
    the folder of results, for this one alone."""

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        known = (*METHODS, BOOSTING)
        for name in methods:
            if name not in known:
                raise ValueError(f"there is no method {name!r}; {nearest(name, known)}")
        return tuple(dict.fromkeys(methods))

    @field_validator("groups")
    @classmethod
    def _once(cls, groups: tuple[Group, ...]) -> tuple[Group, ...]:
        return tuple(dict.fromkeys(groups))

    @property
    def mains(self) -> tuple[str, ...]:
        return tuple(MAINS[group] for group in self.groups)


QUICK: Mapping[str, Any] = {
    "trials": 9,
    "runs": 2,
    "traps": 2,
    "share": 0.5,
    "rows": 15_000,
    "units": 256,
    "epochs": 4,
    "choices": {"valid_rows": 10_000},
}


class Trap(NamedTuple):
    """A mistake: how its rows are prepared, and what a run with it is."""

    prepare: Callable[[Tables, Path, Progress], Prepared]
    run: Run


def run(settings: CensusStudy, site: Site) -> list[Account]:
    """Run the parts that are not there yet, and tell what was found."""
    require_extra()
    if BOOSTING in settings.methods and not available():
        raise MultigateError("gradient boosting wants scikit-learn: pip install 'multigate[boost]'")
    tables = read_tables(site.data / DATA)
    correlations = {main: _correlation(tables, main, site) for main in settings.mains}
    rows = sampled(tables, settings.rows or tables.train.num_rows)
    wanted = trainings(settings.mains, AUXILIARY, settings.methods)
    processes = min(usable_cores(), ON_A_GPU) if site.device.type == "cuda" else usable_cores()
    with Workers(settings.workers or processes) as workers:
        trials = _tune(settings, site, wanted, rows, workers)
        chosen = {name: best(found).point for name, found in trials.items()}
        _drop_others(site, chosen)
        runs = _runs(settings, site, wanted, chosen, rows, workers)
        traps = _traps(settings, site, chosen, tables, rows, workers)
    remove(site.ledger.folder / "work")
    return tell(Found(correlations, wanted, trials, runs, traps))


def _correlation(tables: Tables, main: str, site: Site) -> float:
    part = f"labels-{main}"
    if not site.ledger.has(part):
        site.ledger.keep(part, [{"main": main, "label_correlation": label_correlation(tables, main)}])
    return float(site.ledger.rows(part)[0]["label_correlation"])


def _tune(
    settings: CensusStudy, site: Site, wanted: Sequence[Training], rows: Tables, workers: Workers
) -> dict[str, list[Trial]]:
    """As many trials of each training as all others have, however often the study is stopped on the way."""
    rows = sampled(rows, round(settings.share * rows.train.num_rows))
    remove(site.ledger.folder / "work" / "search")  # what killed trials left
    ground = _ground(settings, site, "search", prepare_search(rows, _rows_of(site, "search"), site.report))
    searches = {training: _search(settings, site, training, rows.train.num_rows) for training in wanted}
    for training, search in searches.items():
        for point in begin(search):
            site.report.line(
                f"{training.name}: hopeless, for its process was killed time and again: {json.dumps(point)}"
            )
    sought = [Sought(search, partial(try_point, ground, one), settings.trials) for one, search in searches.items()]
    for place, trial in make_trials(sought, workers, site.report):
        state = "stopped" if trial.stopped else f"{trial.value:.4f}"
        site.report.detail(f"{wanted[place].name:<28} trial {trial.number:>3}  {state:>8}  {trial.seconds:.0f} s")
    trials = {one.name: finished(search, settings.trials) for one, search in searches.items()}
    site.ledger.keep("trials", [_trial_row(one, trial) for one in wanted for trial in trials[one.name]])
    return trials


def _search(settings: CensusStudy, site: Site, training: Training, rows: int) -> Search:
    return Search(
        name=training.name,
        storage=settings.storage or in_file((site.ledger.folder / "trials.db").resolve()),
        space=space(training.method, settings.units, settings.epochs),
        about=f"{rows} rows, {json.dumps(settings.choices.to_dict(full=True))}",
        shared=settings.storage is not None,
        hopeless=CHANCE,
    )


def _trial_row(training: Training, trial: Trial) -> dict[str, Any]:
    told = {name: getattr(trial, name) for name in ("number", "value", "stopped", "seconds")}
    point, steps = json.dumps(trial.point), list(trial.steps.values())
    return {"method": training.method, "main": training.tasks[0], **told, "point": point, "steps": steps}


def _runs(
    settings: CensusStudy,
    site: Site,
    wanted: Sequence[Training],
    chosen: Mapping[str, Point],
    rows: Tables,
    workers: Workers,
) -> dict[str, list[dict[str, Any]]]:
    """Of each training the runs with seeds 0 .. runs - 1; those of values that are no longer chosen are run again."""
    ground = _ground(settings, site, "runs", prepare_runs(rows, _rows_of(site, "runs"), site.report))
    together = STACK if site.device.type == "cuda" else 1
    due: dict[tuple[str, ...], Job] = {}
    for first in range(0, settings.runs, together):
        for one in wanted:
            seeds = range(first, min(first + together, settings.runs))
            names = {seed: _run_name(one, seed) for seed in seeds}
            left = [seed for seed in seeds if not site.ledger.has(names[seed])]
            if left:
                due[tuple(names[seed] for seed in left)] = partial(run_points, ground, one, chosen[one.name], left)
    run_together(site, "runs (runs)", due, workers, partial(_kept, site), of=settings.runs * len(wanted))
    return {one.name: [site.ledger.rows(_run_name(one, seed))[0] for seed in range(settings.runs)] for one in wanted}


def _run_name(training: Training, seed: int) -> str:
    return f"run-{training.name}-{seed:03d}"


def _traps(
    settings: CensusStudy, site: Site, chosen: Mapping[str, Point], tables: Tables, rows: Tables, workers: Workers
) -> dict[str, list[dict[str, Any]]]:
    """Runs of MMoE on the first group with each mistake; none where that is not among the methods and groups."""
    training = Training("mmoe", (MAINS[1], AUXILIARY))
    if training.name not in chosen:
        return {}
    traps = {
        "education": Trap(prepare_education, run_point),
        "weight": Trap(prepare_weight, run_point),
        "raw_weight": Trap(prepare_raw_weight, run_point),
        "one_hot": Trap(
            partial(prepare_one_hot, OneHot(tables.train)), partial(run_one_hot, data=(site.data / DATA).resolve())
        ),
    }
    parts: dict[str, Job] = {}
    for name, trap in traps.items() if settings.traps else ():
        ground = _ground(settings, site, name, trap.prepare(rows, _rows_of(site, name), site.report))
        for seed in range(settings.traps):
            parts[f"trap-{name}-{seed:03d}"] = partial(trap.run, ground, training, chosen[training.name], seed)
    run_parts(site, "traps (runs)", parts, workers, partial(_kept, site))
    return {name: [site.ledger.rows(f"trap-{name}-{seed:03d}")[0] for seed in range(settings.traps)] for name in traps}


def _drop_others(site: Site, chosen: Mapping[str, Point]) -> None:
    """Remove the runs of values that are no longer chosen: also those that are not to be run again, where fewer are."""
    for part in (*site.ledger.parts("run-*"), *site.ledger.parts("trap-*")):
        (row,) = site.ledger.rows(part)
        point = chosen.get(f"{row['main']}-{row['method']}")
        if point is not None and row["point"] != json.dumps(point):
            site.ledger.drop(part)


def _kept(site: Site, part: str, row: Row) -> None:
    site.report.detail(f"{part:<36} {row[row['main'] + '/auc']:.4f}  {row['seconds']:.0f} s")


def _rows_of(site: Site, name: str) -> Path:
    return site.ledger.folder / "rows" / name


def _ground(settings: CensusStudy, site: Site, name: str, prepared: Prepared) -> Ground:
    folder = site.ledger.folder.resolve()
    return Ground(prepared.folder.resolve(), settings.choices, folder / "work" / name, site.device.type)


STUDY = Study(
    "Census-Income: methods tuned alike",
    CensusStudy,
    QUICK,
    run,
    may_change=("groups", "methods", "trials", "runs", "traps", "workers", "storage"),
)
