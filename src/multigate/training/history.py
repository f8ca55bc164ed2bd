"""What a training writes down and says after each epoch."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from multigate.precision import warning
from multigate.run import METRICS, strict
from multigate.training.board import Board
from multigate.training.contention import Cores
from multigate.training.fit import Fit
from multigate.training.progress import Reporter
from multigate.unscored import listed_reasons
from multigate.writing import disk_errors

JUDGED, WORTH_TELLING = 2.0, 0.15
"""Seconds of a training before anything is said of how it waits for cores, and the share of them that is told of. Alone
a training waits for its own other threads, .06 of its time at most (measured)."""


def entry_of(fitting: Fit, metrics: dict[str, float]) -> dict[str, Any]:
    """What an epoch leaves in metrics.jsonl."""
    losses = fitting.mean_losses.tolist()
    return {
        "epoch": fitting.epoch + 1,
        "step": fitting.step_done,
        "seconds": round(fitting.seconds, 3),
        "train": {f"train/{task.name}/loss": loss for task, loss in zip(fitting.schema.tasks, losses, strict=True)},
        "valid": named(metrics),
    }


def named(metrics: dict[str, float]) -> dict[str, float | None]:
    """Validation metrics as ``metrics.jsonl`` names them."""
    return {f"valid/{name}": value for name, value in strict(metrics).items()}


def tell(fitting: Fit, entry: dict[str, Any]) -> None:
    """Add a line to ``metrics.jsonl``."""
    path = fitting.folder / METRICS
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def line_of(fitting: Fit, metrics: dict[str, float]) -> str:
    """What an epoch says on the terminal; epoch 0 is where a warm start begins."""
    shown = "  ".join(f"{name} {metrics[name]:.4f}" for name in fitting.monitor.main)
    mark = "  best" if fitting.stale == 0 else ""
    rate = fitting.prepared.train.rows * fitting.epoch / max(fitting.seconds, 1e-9)
    speed = f"  {rate:,.0f} rows/s" if fitting.epoch else ""
    return f"epoch {fitting.epoch:>2}/{fitting.experiment.epochs}  {shown}{speed}{mark}"


def tell_of_precision(fitting: Fit, report: Reporter) -> None:
    """Say so where bfloat16 was asked for and the processor takes much longer to multiply it."""
    slow = warning(fitting.precision, fitting.device)
    if slow is not None:
        report.once(slow)


def tell_of_cores(before: Cores | None, report: Reporter) -> None:
    """Say so where this thread has waited long for cores that other programs hold, since it had those."""
    now = Cores.of(threading.get_native_id())
    share = now.waiting_since(before, JUDGED) if now is not None and before is not None else 0.0
    if share >= WORTH_TELLING:
        line = f"other programs hold this machine's cores: this training waits for them {share:.0%} of its time"
        report.once(line, about="cores")


def warn(fitting: Fit, report: Reporter) -> None:
    """Say which tasks the validation rows cannot score, where weights are chosen by the mean of all."""
    main = fitting.monitor.averaged
    reasons = {task: why for task, why in fitting.unscored.items() if task in main}
    if not reasons:
        return
    told = f"the validation rows cannot score {listed_reasons(reasons)}"
    if len(reasons) < len(main):
        report.detail(f"{told}: the mean that weights are chosen by leaves that out")
    else:
        report.line(f"{told}: weights are chosen by {' and '.join(fitting.monitor.counted(fitting.best))}")


@contextmanager
def tensorboard(folder: Path) -> Iterator[Board | None]:
    """Where curves are drawn if TensorBoard is installed, else None; closed however a training ends."""
    try:
        board = Board(folder / "tensorboard")
    except ImportError:
        yield None
        return
    try:
        yield board
    finally:
        board.close()
