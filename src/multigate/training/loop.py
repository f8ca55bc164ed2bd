"""The training loop: fit a model to prepared rows, keep the best weights, and go on exactly where it stopped."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from multigate.batch import Batch
from multigate.bundle import Bundle
from multigate.data.prepared import Prepared
from multigate.data.rows import to_device
from multigate.errors import ExperimentError
from multigate.experiment import EPOCHS, Experiment
from multigate.model import Model
from multigate.run import METRICS
from multigate.training.allocator import keep_freed_memory
from multigate.training.board import Board
from multigate.training.contention import Cores
from multigate.training.diverged import Diverged, diverged
from multigate.training.fit import CHECKPOINT, Fit
from multigate.training.history import (
    entry_of,
    line_of,
    named,
    tell,
    tell_of_cores,
    tell_of_precision,
    tensorboard,
    warn,
)
from multigate.training.interrupts import Interrupts
from multigate.training.progress import Reporter
from multigate.training.randomness import devices
from multigate.training.sleeping import asleep_beside_others
from multigate.training.subnormal import flushed
from multigate.training.undisturbed import undisturbed
from multigate.training.warm_start import start_from

CHECK_EVERY = 64
"""Steps between looks at whether the loss is still a number (a look waits for the device)."""


class Fitted(NamedTuple):
    """What a training leaves: the model with its best weights, their validation metrics, and the way there."""

    model: Model
    best: dict[str, float]
    epochs: int
    rows_per_second: float
    seconds: float


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises ``ExperimentError`` for a device that is not there."""
    if name not in ("cpu", "cuda", "auto"):
        raise ExperimentError(f"device {name!r}: choose cpu, cuda or auto")
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ExperimentError("device 'cuda': no CUDA device is available here; use --device cpu")
    return torch.device("cuda", torch.cuda.current_device())  # by its number: threads have a current one of their own


Observe = Callable[[Fit, Batch], None]
"""Looks at a training before a step, with the batch of that step on its device; the seconds it takes do not count."""
Watch = Callable[[int, dict[str, float]], None]
"""Told the epochs that are done and the validation metrics after the last of them."""


def fit(
    experiment: Experiment,
    prepared: Prepared,
    folder: Path,
    *,
    device: torch.device,
    report: Reporter,
    tasks: Sequence[int] | None = None,
    start: Bundle | None = None,
    resume: bool = False,
    observe: Observe | None = None,
    watch: Watch | None = None,
) -> Fitted:
    """Train, keeping checkpoint, metrics and best weights in ``folder``; the caller's random state is left alone.

    Where another thread is training, it waits until that is done.

    The weights of ``start``, if given, are where training begins, and the first that may be kept. ``observe`` is called
    before each step with the training and the batch; what it draws does not count, and it changes nothing. ``watch`` is
    called after each epoch; what it raises ends the training.

    Raises ``Interrupted`` after saving where a signal asked to stop, ``Diverged`` where the loss or the
    predictions of validation rows stop being numbers.
    """
    with undisturbed(device), asleep_beside_others(), Interrupts() as interrupts, ExitStack() as left_open:
        torch.manual_seed(experiment.seed)
        keep_freed_memory()
        fitting = Fit(experiment, prepared, folder, device, tasks)
        _tell_of_idle(fitting, report)
        tell_of_precision(fitting, report)
        if resume and (folder / CHECKPOINT).is_file():
            fitting.restore()
        else:
            (folder / METRICS).unlink(missing_ok=True)
            if start is not None:
                _begin_with(start, fitting, report)
        board: Board | None = None
        opened, cores = False, Cores.of(threading.get_native_id())
        fitting.model.train()
        while not fitting.finished:
            with _heard(fitting, interrupts, Diverged):
                _run_epoch(fitting, report, interrupts, observe)
                scored = fitting.evaluate()
            if fitting.epoch == 0:
                warn(fitting, report)
            entry = entry_of(fitting, scored)
            tell(fitting, entry)
            fitting.balance.after_epoch(fitting.mean_losses)
            if not opened:
                board, opened = left_open.enter_context(tensorboard(folder)), True
            if board is not None:
                board.draw({**entry["train"], **entry["valid"]}, fitting.step_done)
            fitting.epoch += 1
            fitting.losses.zero_()
            fitting.save()
            report.detail(line_of(fitting, scored))
            tell_of_cores(cores, report)
            if watch is not None:
                with _heard(fitting, interrupts, Exception):
                    watch(fitting.epoch, scored)
            if interrupts.asked:
                raise fitting.stopped()
        fitting.finish()
        if start is not None and fitting.stale == fitting.epoch:
            report.line("no epoch was better on the validation rows than the weights it began with; those are kept")
        elif fitting.stale == 0 and experiment.epochs == EPOCHS:
            report.detail(f"the last epoch was the best; more may do better still: set epochs={2 * EPOCHS}")
        rows = prepared.train.rows * fitting.step_done / len(fitting.loader)
        rows_per_second = rows / max(fitting.seconds, 1e-9)
        return Fitted(fitting.model, fitting.best, fitting.epoch, rows_per_second, fitting.seconds)


@contextmanager
def _heard(fitting: Fit, interrupts: Interrupts, end: type[Exception]) -> Iterator[None]:
    """Where a signal asked to stop and the training then ends by itself, the signal counts: a search takes such an end
    for that of a trial, and would go on with the next one."""
    try:
        yield
    except end:
        if interrupts.asked:
            raise fitting.stopped() from None
        raise


def _tell_of_idle(fitting: Fit, report: Reporter) -> None:
    """Say so where something is set that moves nothing, such as a learning rate of tables where all are dense."""
    for told in fitting.experiment.set_in_vain():
        report.detail(told)
    if fitting.experiment.optimizer.embedding_rate is not None and not fitting.tables.weights:
        report.detail("optimizer.embedding_rate moves nothing: all tables are dense; set optimizer.embedding")


def _begin_with(start: Bundle, fitting: Fit, report: Reporter) -> None:
    """Take weights over; how good they are is told as epoch 0, which later epochs have to be better than."""
    start_from(fitting.model, start)
    if fitting.average is not None:
        fitting.average.begin()
    scored = fitting.evaluate()
    fitting.start_value = fitting.best_value
    tell(fitting, {"epoch": 0, "step": 0, "seconds": 0.0, "train": {}, "valid": named(scored)})
    report.detail(line_of(fitting, scored))


@flushed()
def _run_epoch(fitting: Fit, report: Reporter, interrupts: Interrupts, observe: Observe | None) -> None:
    """The rest of the current epoch, from the step the run has reached."""
    experiment, rows = fitting.experiment, fitting.prepared.train.rows
    per_epoch = len(fitting.loader)
    start = fitting.step_done - fitting.epoch * per_epoch
    stage = f"epoch {fitting.epoch + 1}/{experiment.epochs}"
    began = time.perf_counter()
    batches = fitting.loader.epoch(fitting.epoch, start=start)
    try:
        for number, batch in enumerate(batches, start + 1):
            if observe is not None:
                fitting.seconds += time.perf_counter() - began  # so far, for who saves while looking
                with torch.random.fork_rng(devices=devices(fitting.device)):
                    observe(fitting, to_device(batch, fitting.device))
                began = time.perf_counter()
            loss = fitting.step(batch)
            if number % CHECK_EVERY == 0 or number == per_epoch:
                if not math.isfinite(loss.item()):
                    raise diverged(f"the loss is no longer a number at step {fitting.step_done}", experiment)
                report(stage, min(number * fitting.loader.batch_size, rows), rows)
            if interrupts.asked:
                break
    finally:
        batches.close()
    fitting.seconds += time.perf_counter() - began
    if interrupts.asked:
        fitting.save()
        raise fitting.stopped()
