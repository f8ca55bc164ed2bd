"""A training brought to where its steps can be timed by themselves, on batches that are in memory."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import multigate as mg
from multigate.batch import Batch
from multigate.data.prepared import Prepared
from multigate.training.allocator import keep_freed_memory
from multigate.training.fit import Fit
from multigate.training.progress import Reporter
from multigate.training.subnormal import flushed
from multigate.training.train import open_sources, prepare_sources

CPU = torch.device("cpu")


def prepared_rows(experiment: mg.Experiment, folder: Path, tables: Mapping[str, Any] | None = None) -> Prepared:
    """The experiment's rows, encoded in ``folder``."""
    with Reporter(quiet=True) as report:
        return prepare_sources(experiment, open_sources(experiment, tables or {}), folder, report)


def begun(experiment: mg.Experiment, prepared: Prepared, folder: Path, device: torch.device = CPU) -> Fit:
    """A training before its first step."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(experiment.seed)
    keep_freed_memory()
    fit = Fit(experiment, prepared, folder, device, None)
    fit.model.train()
    return fit


def first_batches(fit: Fit, many: int) -> list[Batch]:
    """The first full batches of an epoch."""
    batches = fit.loader.epoch(0)
    found = [batch for batch, _ in zip(batches, range(many), strict=False)]
    batches.close()
    return [batch for batch in found if batch.rows == fit.loader.batch_size] or found


@flushed()
def step_ms(fit: Fit, batches: list[Batch]) -> float:
    """Milliseconds of a step, mean over the batches."""
    began = time.perf_counter()
    for batch in batches:
        fit.step(batch)
    return 1e3 * (time.perf_counter() - began) / len(batches)
