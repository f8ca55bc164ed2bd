"""Several structures on the same rows, seeds and budget: what does sharing gain?"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from multigate.analysis.boosting import available, boosting_baseline
from multigate.analysis.budget import TOLERANCE, multiply_adds, within_budget
from multigate.analysis.comparison import (
    ALL,
    BASELINE,
    BOOSTING,
    RESULT,
    RUNS,
    UNSCORED,
    Comparison,
    Row,
    main_metrics,
    read_result,
    remembered,
)
from multigate.batch import Batch
from multigate.bundle import ROWS
from multigate.data.prepared import Prepared
from multigate.data.rows import join, pick_tasks
from multigate.errors import ExperimentError, nearest
from multigate.evaluate import Scored, forward, scores, spaces
from multigate.experiment import Experiment, as_experiment
from multigate.folders import MEMBERS, folder_named
from multigate.run import claimed, strict
from multigate.schema import Task
from multigate.sealed import sealed
from multigate.sharing import Structure, known_as, listed, structure_named
from multigate.training.cohort import fit_cohort
from multigate.training.fit import CHECKPOINT
from multigate.training.interrupts import interruptible
from multigate.training.loop import Fitted, choose_device, fit
from multigate.training.progress import Reporter
from multigate.training.same_rows import prepare_same
from multigate.training.stackable import FEWEST, why_apart
from multigate.training.train import open_sources, prepare_sources
from multigate.unscored import unscored
from multigate.writing import remove, write_text, writing

UNCHOSEN = "no validation row tells which weights of its own model are best"
UNTRAINED = "its weight is 0, with which a model of its own learns nothing"
"""Why a model of one task, or of a conditional, is not trained."""
REACHED = "reached"
"""The prepared rows of conditionals: labels known only where the parent is 1."""
COHORTS = "cohorts"
"""Where runs that are trained together keep their checkpoints until they are finished."""
LONGEST = 200
"""Bytes of a task's name: its models alone are kept in folders and files of that name, which may have 255 with more."""


def compare(
    experiment: Experiment,
    out: str | Path,
    *,
    structures: str | Sequence[str] = ("single_task", "shared_bottom", "omoe", "mmoe"),
    seeds: int = 5,
    device: str = "auto",
    tables: Mapping[str, Any] | None = None,
    boosting: bool = True,
    quiet: bool = False,
) -> Comparison:
    """Train each structure with seeds 0 .. seeds - 1 and score it on the test rows (validation rows without any).

    Every structure gets the multiply-adds per row of the experiment's own (sharing and towers, within 2 %) by one
    factor on its widths; a structure of one's own is compared under the name in its ``structure`` tag where it is the
    experiment's. ``single_task`` is T separate models: own embeddings, own early stopping, the full budget each; a task
    with a ``given`` parent has one more, trained on the rows where the parent is 1. Weights are chosen on validation
    rows alone. Outputs are scored as they were trained, without curves. Called again with the same folder it goes on
    where it stopped; ``runs.parquet`` there has one row per run. A gradient-boosting row per task is added where
    scikit-learn is there.

    Raises ``ExperimentError`` for structures, seeds or an experiment that cannot be compared, ``DataError`` for tables
    that cannot be read, ``RunError`` where the folder holds something else.
    """
    experiment, chosen = as_experiment(experiment), choose_device(device)
    names = _checked(experiment, ALL if structures == "all" else listed(structures), seeds)
    folder = folder_named(out)
    sources = open_sources(experiment, tables)
    with (
        interruptible(lambda: "the same command goes on from here"),
        claimed(folder, experiment, resume=True, progress=MEMBERS),
        Reporter(quiet=quiet, detail=False) as report,
    ):
        fresh = not (folder / MEMBERS).is_dir()
        prepared = prepare_same(experiment, sources, folder, report, fresh=fresh)
        reached = None
        if BASELINE in names and any(task.given and not task.where for task in experiment.schema.tasks):
            reached = prepare_sources(_reached(experiment), sources, folder / REACHED, report, replace=fresh)
        report.lines(experiment.set_in_vain())
        budget = multiply_adds(experiment.sharing, experiment, prepared.encoder)
        ground = Ground(experiment, budget, prepared, reached, folder, chosen, report)
        apart: dict[str, str] = {}
        rows: list[Row] = []
        for seed in range(seeds):
            # boosting does not depend on the seed: the rows are the same
            for name in (*names, *([BOOSTING] if seed == 0 and boosting and available() else [])):
                if remembered(_place(folder, name, seed)) is None:
                    due = [seed] if name == BOOSTING else _due(ground, name, range(seed, seeds), apart)
                    found = [_boost(prepared, experiment, seed)] if name == BOOSTING else _train(ground, name, due)
                    _keep(ground, name, dict(zip(due, found, strict=True)))
                row = remembered(_place(folder, name, seed))
                assert row is not None, name  # it was just written
                rows.append(row)
        _write_rows(folder)  # a process killed after its last result had no time to
    return Comparison(folder, experiment.schema, rows)


def _checked(experiment: Experiment, structures: Sequence[str], seeds: int) -> tuple[str, ...]:
    """The structures, each once. Raises ``ExperimentError`` where they, seeds or experiment cannot be compared."""
    if isinstance(seeds, bool) or not isinstance(seeds, Integral) or seeds < 1:
        raise ExperimentError(
            f"seeds={seeds!r}: a comparison wants one at least, a whole number, and two or more for intervals"
        )
    if not structures:
        raise ExperimentError("a comparison wants one structure at least; name some, such as single_task and mmoe")
    known = {*ALL, known_as(experiment.sharing)}
    for name in structures:
        if not isinstance(name, str):
            raise ExperimentError(
                f"structures are compared by their names, found {type(name).__name__}; name them, and give options of "
                "one as the experiment's 'sharing'"
            )
        if name not in known:
            raise ExperimentError(f"there is no structure {name!r}; {nearest(name, known)}")
        experiment.with_(sharing=structure_named(name) or experiment.sharing)  # refused now, not when its turn comes
    for task in experiment.schema.task_names if BASELINE in structures else ():
        if len(task.encode()) > LONGEST:
            raise ExperimentError(
                f"task {task[:20] + '...'!r}: a comparison keeps its own model under its name, which may have "
                f"{LONGEST} bytes and has {len(task.encode())}; choose a shorter one and give this one as 'column'"
            )
    if experiment.warm_start is not None:
        raise ExperimentError("a comparison trains every model from the start; leave warm_start out")
    return tuple(dict.fromkeys(structures))


class Ground(NamedTuple):
    """What all runs of a comparison stand on."""

    experiment: Experiment
    budget: int
    prepared: Prepared
    reached: Prepared | None
    folder: Path
    device: torch.device
    report: Reporter


def _due(ground: Ground, name: str, seeds: Sequence[int], apart: dict[str, str]) -> list[int]:
    """The seeds to train next: the first one, and with it those that follow and may be trained together with it.

    Runs that were begun are gone on with as they were begun. ``apart`` keeps why structures are trained seed by seed.
    """
    for begun in _cohorts(ground.folder, name):
        if seeds[0] in begun:
            return list(begun)
    due = list(takewhile(lambda seed: _untouched(ground.folder, name, seed), seeds))
    if len(due) < FEWEST:
        return [seeds[0]]
    if name not in apart:
        experiments = [ground.experiment.with_(seed=seed) for seed in due]
        apart[name] = next(filter(None, (_why_apart(ground, experiments, one) for one in _trainings(ground, name))), "")
        if apart[name]:
            ground.report.line(f"{name}: one seed after the other, because {apart[name]}")
    return [seeds[0]] if apart[name] else due


def _why_apart(ground: Ground, experiments: Sequence[Experiment], training: "Training") -> str:
    changed = [one.with_(sharing=training.structure) for one in experiments]
    return why_apart(changed, ground.prepared, ground.device, training.places)


def _untouched(folder: Path, name: str, seed: int) -> bool:
    """Whether nothing of a run is there, neither its result nor what it had reached."""
    place = _place(folder, name, seed)
    return remembered(place) is None and not any(place.rglob(CHECKPOINT))


def _cohorts(folder: Path, name: str) -> list[range]:
    """The seeds that were begun to be trained together and are not finished."""
    found = []
    for path in folder.glob(f"{COHORTS}/*"):
        if whose := re.fullmatch(rf"{re.escape(name)}-(\d+)-(\d+)", path.name):  # systems leave files of their own
            found.append(range(int(whose[1]), int(whose[2]) + 1))
    return found


def _cohort(folder: Path, name: str, seeds: Sequence[int]) -> Path:
    return folder / COHORTS / f"{name}-{seeds[0]}-{seeds[-1]}"


def _place(folder: Path, name: str, seed: int) -> Path:
    return folder / MEMBERS / f"{name}-{seed}"


def _keep(ground: Ground, name: str, found: Mapping[int, Row]) -> None:
    """Write down the results of finished runs."""
    for seed, values in found.items():
        row = {"structure": name, "seed": seed, **values}
        place = _place(ground.folder, name, seed)
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / RESULT, json.dumps(sealed(row), indent=1))
        for checkpoint in list(place.rglob(CHECKPOINT)):  # kept until now, for a run may be several models
            checkpoint.unlink()
        _write_rows(ground.folder)
        shown = (
            f"{metric} {row[metric]:.4f}"
            for metric in main_metrics(ground.experiment.schema)
            if row.get(metric) is not None
        )
        ground.report.line(f"seed {seed}  {name:<14} {'  '.join(shown)}  {row['seconds']:.0f} s")
    remove(_cohort(ground.folder, name, list(found)))
    with suppress(OSError):  # it goes only where nothing is in it
        (ground.folder / COHORTS).rmdir()


class Training(NamedTuple):
    """One of the models that make up a run: of all tasks, or of those at some places."""

    structure: Structure
    places: list[int] | None


def _trainings(ground: Ground, name: str) -> list[Training]:
    """A structure at the budget; ``single_task`` as one model for each task."""
    experiment = ground.experiment
    own = experiment.sharing if known_as(experiment.sharing) == name else structure_named(name)
    assert own is not None, name  # names were checked before anything was trained
    each = [[task] for task in range(len(experiment.schema.tasks))] if name == BASELINE else [None]
    encoder = ground.prepared.encoder
    return [Training(within_budget(own, ground.budget, experiment, encoder, places), places) for places in each]


def _train(ground: Ground, name: str, seeds: Sequence[int]) -> list[Row]:
    """One structure, one seed or several together: the cost and the metrics of each.

    ``single_task`` sums the cost of its T models, those of conditionals not counted: they answer another question.
    """
    experiment, prepared, report = ground.experiment, ground.prepared, ground.report
    seeded = [experiment.with_(seed=seed) for seed in seeds]
    part = prepared.test or prepared.valid
    about: Row = {"part": "test" if prepared.test else "validation", "rows": part.rows}
    costs = [{"parameters": 0, "multiply_adds": 0, "seconds": 0.0, "epochs": 0} for _ in seeds]
    metrics: list[dict[str, float]] = [{} for _ in seeds]
    without: dict[str, str] = {}
    models = 0
    for structure, places in _trainings(ground, name):
        cost = multiply_adds(structure, experiment, prepared.encoder, places)
        if abs(cost - ground.budget) > TOLERANCE * ground.budget:
            report.line(
                f"{name}: no width comes within {TOLERANCE:.0%} of {ground.budget:,} multiply-adds; it has {cost:,}"
            )
        task = None if places is None else experiment.schema.tasks[places[0]]
        if places is not None and task is not None:
            labelled = prepared.valid.labelled(places[0])
            if task.weight == 0 or not labelled:
                without[task.name] = UNCHOSEN if task.weight else UNTRAINED
                continue
        models += 1
        runs = [one.with_(sharing=structure) for one in seeded]
        folders = [_place(ground.folder, name, seed) / (task.name if task else "") for seed in seeds]
        checkpoint = _cohort(ground.folder, name, seeds) / f"{task.name if task else 'all'}.safetensors"
        for at, (fitted, found, reasons) in enumerate(_fit(ground, runs, prepared, places, folders, checkpoint)):
            metrics[at] |= found
            without |= reasons
            costs[at]["parameters"] += sum(p.numel() for p in fitted.model.parameters())
            costs[at]["multiply_adds"] += fitted.model.multiply_adds()
            costs[at]["seconds"] += fitted.seconds
            costs[at]["epochs"] += fitted.epochs
        if places is None:
            about["sharing"] = json.dumps(structure.to_dict(full=True))
        if ground.reached is not None and task is not None and task.given and not task.where:
            for at, (found, reasons) in enumerate(_given(ground, ground.reached, task, runs, folders, checkpoint)):
                metrics[at] |= found
                without |= reasons
    about |= _left_blank(without)
    rows = []
    for spent, values in zip(costs, metrics, strict=True):
        speed = prepared.train.rows * spent["epochs"] / max(spent["seconds"], 1e-9) / max(models, 1)
        rows.append(about | spent | {"rows_per_second": speed} | strict(values))
    return rows


def _given(
    ground: Ground,
    reached: Prepared,
    task: Task,
    experiments: Sequence[Experiment],
    folders: Sequence[Path],
    checkpoint: Path,
) -> Iterator[tuple[dict[str, float], dict[str, str]]]:
    """Of each seed the metrics of ``task|parent``, by a model of rows where the parent is 1, and why it has none."""
    name = f"{task.name}|{task.given}"
    place = ground.experiment.schema.task_names.index(task.name)
    if not reached.valid.labelled(place):
        yield {}, {name: UNCHOSEN}
        return
    experiments = [_reached(one) for one in experiments]
    folders = [folder / "given" for folder in folders]
    checkpoint = checkpoint.parent / "given" / checkpoint.name
    for _, found, reasons in _fit(ground, experiments, reached, [place], folders, checkpoint):
        because = {name: reasons[task.name]} if task.name in reasons else {}
        yield {f"{name}/{metric.rpartition('/')[2]}": value for metric, value in found.items()}, because


def _fit(
    ground: Ground,
    experiments: Sequence[Experiment],
    prepared: Prepared,
    places: list[int] | None,
    folders: Sequence[Path],
    checkpoint: Path,
) -> list[tuple[Fitted, dict[str, float], dict[str, str]]]:
    """A model of all tasks or of those at some places, one for each seed, and its metrics on the rows to compare on.

    Last come the tasks and conditionals that those rows cannot score, and why.
    """
    schema, device, report = ground.experiment.schema, ground.device, ground.report
    chosen = list(range(len(schema.tasks)))
    if places is not None:
        schema, chosen = schema.only([schema.tasks[at].name for at in places]), places
        # chosen on its own task, whatever the joint ones are chosen on
        experiments = [one.with_(monitor="mean") for one in experiments]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    if len(experiments) == 1:
        fits = [fit(experiments[0], prepared, folders[0], device=device, report=report, tasks=places, resume=True)]
    else:
        fits = fit_cohort(experiments, prepared, folders, checkpoint, device=device, report=report, tasks=places)
    results = []
    for fitted in fits:
        batches = (pick_tasks(batch, chosen) for batch in _scored_rows(ground, reached=prepared is ground.reached))
        found = spaces(schema, prepared.encoder, forward(fitted.model, batches, device), chosen)
        metrics = scores(found)
        results.append((fitted, metrics, unscored(found, metrics)))
    return results


def _scored_rows(ground: Ground, *, reached: bool) -> Iterator[Batch]:
    """The rows to compare on; with ``reached`` children are known there as their conditionals are by all others, on
    rows whose parent is known and 1, and with the same weights, which hang on all of the chain."""
    parents = [(at, parent) for at, parent in enumerate(ground.experiment.schema.parents()) if parent is not None]
    for batch in (ground.prepared.test or ground.prepared.valid).batches(ROWS):
        known = batch.known.clone()
        for child, parent in parents if reached else ():
            known[:, child] &= batch.known[:, parent] & (batch.labels[:, parent] == 1)
        yield batch._replace(known=known)


def _reached(experiment: Experiment) -> Experiment:
    """The experiment with labels known only where their ``given`` parent is 1: the rows that conditionals are about."""
    tasks = (
        task.with_(given=None, risk="joint", where=task.given) if task.given else task
        for task in experiment.schema.tasks
    )
    return experiment.with_(schema=experiment.schema.with_(tasks=tuple(tasks), outputs=()))


def _boost(prepared: Prepared, experiment: Experiment, seed: int) -> Row:
    """Gradient boosting on the same encoded rows, one model per task and conditional."""
    part = prepared.test or prepared.valid
    train, valid, scored = (join(list(one.batches(ROWS))) for one in (prepared.train, prepared.valid, part))
    began = time.perf_counter()
    parents = experiment.schema.parents()
    outputs = boosting_baseline(prepared.layout, train, valid, scored, seed, parents=parents).test
    seconds = time.perf_counter() - began
    tasks = experiment.schema.tasks
    logits = _side_by_side([outputs[task.name] for task in tasks])
    conditionals = _side_by_side([outputs[f"{task.name}|{task.given}" if task.given else task.name] for task in tasks])
    labels = (one.numpy() for one in (scored.labels, scored.known, scored.weights, scored.groups))
    found = spaces(experiment.schema, prepared.encoder, Scored(logits, conditionals, *labels))
    metrics = scores(found)
    about = {"part": "test" if prepared.test else "validation", "rows": scored.rows, "seconds": seconds}
    return about | _left_blank(unscored(found, metrics)) | strict(metrics)


def _left_blank(reasons: Mapping[str, str]) -> Row:
    """What the result of a run says of tasks that the rows cannot score."""
    return {UNSCORED: json.dumps(reasons, ensure_ascii=False)} if reasons else {}


def _side_by_side(outputs: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Outputs (R,) or (R, K) of each task as columns (R, O)."""
    return np.concatenate([one.reshape(len(one), -1) for one in outputs], axis=1).astype(np.float32)


def _write_rows(folder: Path) -> None:
    """All finished runs as Parquet, one row each; a metric a run does not have is null."""
    rows = [read_result(file) for file in sorted(folder.glob(f"{MEMBERS}/*/{RESULT}"))]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with writing(folder / RUNS) as temporary:
        pq.write_table(table, temporary, write_page_checksum=True)
