"""One training of the census study, as a process does it: a trial of the search, or a run with chosen values."""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
import xxhash
from pydantic import Field
from torch import Tensor

from multigate.analysis.boosting import boosting_baseline
from multigate.analysis.ranges import Point
from multigate.analysis.stopping import Tell
from multigate.analysis.trials import opened, trained
from multigate.batch import Batch
from multigate.bundle import ROWS
from multigate.data.prepared import Prepared
from multigate.data.rows import join, pick_tasks
from multigate.evaluate import forward
from multigate.experiment import Experiment, Optimizer
from multigate.metrics import auc
from multigate.model import Model, Tower
from multigate.nn.embed import Embedding
from multigate.options import Options
from multigate.paper.census.methods import BOOSTING, Training, boosting_settings, structure
from multigate.paper.census.one_hot import OneHot
from multigate.paper.census.rows import places
from multigate.paper.numbers import EMBEDDING
from multigate.training.cohort import fit_cohort
from multigate.training.diverged import Diverged
from multigate.training.loop import Fitted, choose_device, fit
from multigate.training.progress import Reporter
from multigate.training.stackable import FEWEST, why_apart

CHANCE = 0.5
"""AUC of a training that came to what is no number, and of a trial that fails again and again."""


class Choices(Options):
    """What the paper does not say: the same for all methods."""

    embedding: Embedding = EMBEDDING.with_(dim=8)
    tower: Tower = Tower()
    optimizer: Optimizer = Optimizer(intercepts="trained")
    """``learning_rate`` is tuned."""
    batch_size: int = Field(default=1024, ge=1)
    valid_rows: int = Field(default=500_000, ge=1)
    """Validation rows looked at after an epoch, at most."""


class Ground(NamedTuple):
    """What a training stands on: prepared rows, choices, and a place for what it is at."""

    prepared: Path
    choices: Choices
    work: Path
    device: str


def try_point(ground: Ground, training: Training, point: Point, tell: Tell) -> float:
    """A trial: the best validation AUC of the first task over the epochs."""
    if training.method == BOOSTING:
        return _boosted(ground, training, point, 0).valid
    prepared = opened(ground.prepared)
    experiment = experiment_of(training, point, ground.choices, prepared, seed=0)
    chosen = places(prepared, training.tasks)
    try:
        return trained(experiment, prepared, ground.work, choose_device(ground.device), tell, chosen).value
    except Diverged:
        return CHANCE


def run_point(ground: Ground, training: Training, point: Point, seed: int) -> dict[str, Any]:
    """A run with chosen values: its weights chosen on validation rows, and scored once on the test rows.

    Where it was begun before it goes on.
    """
    about = _about(training, point, seed)
    if training.method == BOOSTING:
        boosted = _boosted(ground, training, point, seed)
        found = {f"{training.tasks[0]}/auc": boosted.test}
        return about | {"valid": boosted.valid, "seconds": boosted.seconds} | found
    return about | _run(ground, training, point, seed, {"": _test_rows})


def run_points(ground: Ground, training: Training, point: Point, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Such a run of each seed, all trained as one where that may be and none diverges."""
    if training.method == BOOSTING:
        return [run_point(ground, training, point, seed) for seed in seeds]
    prepared, device = opened(ground.prepared), choose_device(ground.device)
    experiments = [experiment_of(training, point, ground.choices, prepared, seed) for seed in seeds]
    tasks = places(prepared, training.tasks)
    if len(seeds) < FEWEST or why_apart(experiments, prepared, device, tasks):
        return [run_point(ground, training, point, seed) for seed in seeds]
    folder = ground.work / f"{_name(training, point)}-{seeds[0]}-{seeds[-1]}"
    folders = [folder / str(seed) for seed in seeds]
    for one in folders:
        one.mkdir(parents=True, exist_ok=True)
    try:
        fits = fit_cohort(
            experiments, prepared, folders, folder / "all.safetensors",
            device=device, report=Reporter(quiet=True), tasks=tasks,
        )  # fmt: skip
    except Diverged:
        shutil.rmtree(folder)
        return [run_point(ground, training, point, seed) for seed in seeds]
    rows = [
        _about(training, point, seed) | _row(fitted, prepared, training, {"": _test_rows}, device)
        for seed, fitted in zip(seeds, fits, strict=True)
    ]
    shutil.rmtree(folder)
    return rows


def run_one_hot(ground: Ground, training: Training, point: Point, seed: int, data: Path) -> dict[str, Any]:
    """A run on one-hot columns, scored on the test rows with their columns in place, and shifted."""
    columns = OneHot(pq.read_table(data / "train.parquet"))
    shifted = columns.shifted(pq.read_table(data / "test.parquet"))

    def encoded(prepared: Prepared) -> Iterator[Batch]:
        return map(prepared.encoder.columns, shifted.to_batches(ROWS))

    return _about(training, point, seed) | _run(ground, training, point, seed, {"": _test_rows, SHIFTED: encoded})


SHIFTED = "shifted "
"""Before the name of a metric: of the same weights on rows whose columns are shifted."""
Rows = Callable[[Prepared], Iterable[Batch]]


def _about(training: Training, point: Point, seed: int) -> dict[str, Any]:
    return {"method": training.method, "main": training.tasks[0], "seed": seed, "point": json.dumps(point)}


def _test_rows(prepared: Prepared) -> Iterable[Batch]:
    assert prepared.test is not None
    return prepared.test.batches(ROWS)


def _run(ground: Ground, training: Training, point: Point, seed: int, scored_on: Mapping[str, Rows]) -> dict[str, Any]:
    """Train, or go on, and score: what it cost, and metrics under the names of what they are on."""
    prepared, device = opened(ground.prepared), choose_device(ground.device)
    folder = ground.work / f"{_name(training, point)}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        fitted = fit(
            experiment_of(training, point, ground.choices, prepared, seed), prepared, folder,
            device=device, report=Reporter(quiet=True), tasks=places(prepared, training.tasks), resume=True,
        )  # fmt: skip
    except Diverged:
        shutil.rmtree(folder)
        failed = {f"{what}{name}/auc": CHANCE for what in scored_on for name in training.tasks}
        return failed | {"valid": CHANCE, "seconds": math.nan}
    row = _row(fitted, prepared, training, scored_on, device)
    shutil.rmtree(folder)
    return row


def _name(training: Training, point: Point) -> str:
    """Of the folder of a run, but for its seed."""
    return f"{training.name}-{xxhash.xxh3_64_hexdigest(json.dumps(point).encode())}"


def _row(
    fitted: Fitted, prepared: Prepared, training: Training, scored_on: Mapping[str, Rows], device: torch.device
) -> dict[str, Any]:
    """What a run cost, and its metrics."""
    row = {
        "valid": fitted.best[f"{training.tasks[0]}/auc"],
        "epochs": fitted.epochs,
        "parameters": sum(p.numel() for p in fitted.model.parameters()),
        "multiply_adds": fitted.model.multiply_adds(),
        "seconds": fitted.seconds,
    }
    for what, rows in scored_on.items():
        found = _scores(fitted.model, prepared, training.tasks, rows(prepared), device)
        row |= {f"{what}{name}": value for name, value in found.items()}
    return row


def _scores(
    model: Model, prepared: Prepared, tasks: tuple[str, ...], rows: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """AUC of each task."""
    chosen = places(prepared, tasks)
    scored = forward(model, (pick_tasks(batch, chosen) for batch in rows), device)
    return {f"{name}/auc": auc(scored.logits[:, at], scored.labels[:, at]) for at, name in enumerate(tasks)}


def experiment_of(training: Training, point: Point, choices: Choices, prepared: Prepared, seed: int) -> Experiment:
    """The experiment of a point: the whole length is trained, and the best epoch kept."""
    return Experiment(
        schema=prepared.encoder.schema,
        sharing=structure(training.method, point),
        tower=choices.tower,
        embedding=choices.embedding,
        optimizer=choices.optimizer.with_(learning_rate=float(point["learning_rate"])),
        epochs=int(point["epochs"]),
        batch_size=choices.batch_size,
        valid_rows=choices.valid_rows,
        monitor=f"{training.tasks[0]}/auc",
        patience=None,
        seed=seed,
    )


class _Boosted(NamedTuple):
    valid: float
    test: float
    seconds: float


def _boosted(ground: Ground, training: Training, point: Point, seed: int) -> _Boosted:
    prepared = opened(ground.prepared)
    began = time.perf_counter()
    chosen, name = places(prepared, training.tasks), training.tasks[0]
    train, valid = (pick_tasks(join(list(part.batches(ROWS))), chosen) for part in (prepared.train, prepared.valid))
    test = None if prepared.test is None else pick_tasks(join(list(prepared.test.batches(ROWS))), chosen)
    layout = prepared.layout.model_copy(update={"tasks": tuple(prepared.layout.tasks[at] for at in chosen)})
    outputs = boosting_baseline(layout, train, valid, test, seed, settings=boosting_settings(point))
    tested = math.nan if test is None else _auc(outputs.test[name], test.labels)
    return _Boosted(_auc(outputs.valid[name], valid.labels), tested, time.perf_counter() - began)


def _auc(outputs: np.ndarray, labels: Tensor) -> float:
    return auc(outputs, labels[:, 0].numpy())
