"""Trials of searches: what each of them trains, and all of them, made by as many processes as there are workers."""

import time
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from multigate.analysis.database import BEAT
from multigate.analysis.search import Objective, Search, Trial, Valued, finished, try_one
from multigate.analysis.stopping import Tell
from multigate.analysis.workers import Workers
from multigate.data.prepared import Prepared
from multigate.evaluate import Monitor
from multigate.experiment import Experiment
from multigate.progress import Progress
from multigate.training.loop import fit
from multigate.training.progress import Reporter

QUARTERS = 4
"""A trial tells its value after each quarter of its own length: there all are at the same place of their schedule."""


class Sought(NamedTuple):
    """A search, what a trial of it does, and how many of them are wanted."""

    search: Search
    objective: Objective
    trials: int


def make_trials(wanted: Sequence[Sought], workers: Workers, progress: Progress) -> Iterator[tuple[int, Trial]]:
    """The trials that are not there yet, as they are done, each with the place of its search among those wanted.

    A trial of each search comes first, then a second of each, and so on. Those that other machines are at are waited
    for. Searches were begun.
    """
    total = sum(one.trials for one in wanted)
    while due := _due(wanted):
        jobs = [partial(try_one, one.search, one.objective, one.trials) for one in (wanted[place] for place in due)]
        here, over = 0, total - len(due)
        progress("tuning (trials)", over, total)
        for number, (job, trial) in enumerate(workers.run(jobs), over + 1):
            if trial is not None:
                here += 1
                yield due[job], trial
            progress("tuning (trials)", number, total)
        if not here:
            time.sleep(BEAT)  # the last trials are other machines'


def _due(wanted: Sequence[Sought]) -> list[int]:
    """The place of the search of each trial that is still to be made."""
    done = [len(finished(one.search, one.trials)) for one in wanted]
    most = max((one.trials for one in wanted), default=0)
    return [at for turn in range(most) for at, one in enumerate(wanted) if done[at] <= turn < one.trials]


def trained(
    experiment: Experiment,
    prepared: Prepared,
    work: Path,
    device: torch.device,
    tell: Tell,
    tasks: Sequence[int] | None = None,
) -> Valued:
    """What a training comes to: the number that chooses its best weights, higher is better, and their metrics.

    ``tasks`` are the places of those to train among the prepared; all if None. Nothing is left in ``work``.

    Raises ``Diverged`` where the loss or predictions stop being numbers, and what ``tell`` raises.
    """
    schema, epochs = experiment.schema, experiment.epochs
    monitor = Monitor(
        experiment.monitor, schema if tasks is None else schema.only([schema.tasks[at].name for at in tasks])
    )

    def watch(epoch: int, metrics: dict[str, float]) -> None:
        quarter = QUARTERS * epoch // epochs
        if epoch < epochs and quarter > QUARTERS * (epoch - 1) // epochs:
            tell(quarter, monitor.choice(metrics))

    work.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=work) as folder:
        fitted = fit(
            experiment, prepared, Path(folder), device=device, report=Reporter(quiet=True), tasks=tasks, watch=watch
        )
    return Valued(monitor.choice(fitted.best), fitted.best)


@cache
def opened(folder: Path) -> Prepared:
    """Prepared rows, mapped into memory once for each process."""
    return Prepared(folder)
