"""Cells of the synthetic experiments: a structure on tasks of some relatedness, trained many times at its best rate."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multigate.analysis.gates import divergences
from multigate.analysis.workers import Workers
from multigate.paper.ledger import Row
from multigate.paper.study import Site
from multigate.paper.synthetic.toy import Trained, Training, train_toys
from multigate.sharing import Structure

PILOT_SEEDS = 1_000_000
"""Seeds from here on are for choosing learning rates: no run that is told of has one of them."""


class Cell(NamedTuple):
    """What is trained, by the names it has in results. ``training`` lacks seeds and rates."""

    group: str
    structure: str
    cosine: float
    tasks: int
    training: Training

    @property
    def name(self) -> str:
        return f"{_plain(self.group)}-{self.structure}-{self.cosine:g}-{self.tasks}"

    @property
    def work(self) -> int:
        """What a run of it costs, about: weights of its first layer by steps and rows."""
        return self.training.multiply_adds() * self.training.steps * self.training.batch


def cell(group: str, name: str, structure: Structure, training: Training) -> Cell:
    """The cell of a structure trained so; its cosine is that of the first two tasks."""
    gram = training.data.gram()
    return Cell(group, name, float(gram[0, 1]), len(gram), training._replace(structure=structure))


def choose_rates(
    cells: Sequence[Cell], rates: Sequence[float], runs: int, site: Site, workers: Workers
) -> dict[str, float]:
    """The learning rate of each cell by its name, after ``runs`` of each rate, where there is a choice.

    Seeds are their own.
    """
    if len(rates) == 1:
        return {one.name: rates[0] for one in cells}
    seeds = range(PILOT_SEEDS, PILOT_SEEDS + runs)
    found = train_cells("pilot", {one: with_runs(one, seeds, rates) for one in cells}, site, workers)
    return {one.name: best_rate(rows) for one, rows in found.items()}


def run_cells(
    cells: Sequence[Cell], rates: Mapping[str, float], runs: int, site: Site, workers: Workers
) -> dict[Cell, list[Row]]:
    """A row for each of ``runs`` trainings of every cell, at the rate of its name."""
    return train_cells("runs", {one: with_runs(one, range(runs), [rates[one.name]]) for one in cells}, site, workers)


def best_rate(pilot: Sequence[Row]) -> float:
    """The learning rate with the least mean of held-out losses, all tasks together; one that diverged is none."""

    def mean(rate: float) -> float:
        found = np.mean([row["losses"] for row in pilot if row["learning_rate"] == rate])
        return float(found) if np.isfinite(found) else np.inf

    return min(dict.fromkeys(row["learning_rate"] for row in pilot), key=mean)


def with_runs(one: Cell, seeds: Iterable[int], rates: Sequence[float]) -> Training:
    """Every seed with every rate, as one stack."""
    seeds = tuple(seeds)
    return one.training._replace(seeds=seeds * len(rates), rates=tuple(rate for rate in sorted(rates) for _ in seeds))


def train_cells(what: str, trainings: Mapping[Cell, Training], site: Site, workers: Workers) -> dict[Cell, list[Row]]:
    """Rows of every cell; those that the ledger lacks are trained, the costly ones first."""
    parts = {one: f"{one.name}-{what}" for one in trainings}
    due = sorted((one for one in trainings if not site.ledger.has(parts[one])), key=lambda one: -one.work)
    jobs = (
        partial(_rows, one, trainings[one], site.ledger.place(parts[one], ".checkpoint"), site.device) for one in due
    )
    stage, total = f"{what} (models)", sum(len(training.seeds) for training in trainings.values())
    over = total - sum(len(trainings[one].seeds) for one in due)
    site.report(stage, over, total)
    for place, rows in workers.run(jobs):
        one = due[place]
        site.ledger.keep(parts[one], rows)
        over += len(rows)
        site.report(stage, over, total)
        site.report.line(_line(what, one, rows))
    return {one: list(site.ledger.rows(part)) for one, part in parts.items()}


def _plain(words: str) -> str:
    """Fit for the name of a file."""
    return "".join(sign if sign.isalnum() else "_" for sign in words)


def _line(what: str, one: Cell, rows: Sequence[Row]) -> str:
    losses = [row["losses"] for row in rows]
    seconds = sum(row["seconds"] for row in rows)
    tasks = f" {one.tasks} tasks" if one.tasks != 2 else ""
    return (
        f"{what:7}  {one.group:10}  {one.structure:13} cosine {one.cosine:g}{tasks}  {len(rows)} models  "
        f"median loss {np.median(losses):.4f}  {seconds:.0f} s"
    )


def _rows(one: Cell, training: Training, checkpoint: Path, device: torch.device) -> list[Row]:
    """Train a stack in the process that is told to; a row for each of its runs."""
    return list(_told(one, training, train_toys(training, checkpoint, device)))


def _told(one: Cell, training: Training, trained: Trained) -> Iterator[Row]:
    divergence = gate_divergence(trained.gates[-1]) if trained.gates else [None] * len(training.seeds)
    for at, (seed, rate) in enumerate(zip(training.seeds, training.rates, strict=True)):
        yield {
            "group": one.group,
            "structure": one.structure,
            "cosine": one.cosine,
            "tasks": one.tasks,
            "seed": seed,
            "learning_rate": rate,
            "steps": training.steps,
            "batch": training.batch,
            "loss": float(trained.losses[at, 0]),
            "losses": trained.losses[at].tolist(),
            "curve": trained.curves[at, :, 0].tolist(),
            "gate_divergence": divergence[at],
            "seconds": trained.seconds / len(training.seeds),
        }


def gate_divergence(gates: Tensor) -> list[float | None]:
    """Jensen-Shannon divergence in bits between tasks, averaged over rows and pairs: (R, rows, readers, sources) -> R.

    None where a single gate speaks for all tasks.
    """
    readers = gates.shape[2]
    if readers == 1:
        return [None] * len(gates)
    pairs = np.triu_indices(readers, 1)
    return [float(divergences(one.numpy())[pairs].mean()) for one in gates]
