"""Points on the way of a training: its model is looked at after so many rows, whatever its validation scores say."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from multigate.batch import Batch
from multigate.data.prepared import Prepared
from multigate.errors import RunError
from multigate.experiment import Experiment
from multigate.model import Model
from multigate.training.checkpoint import load_checkpoint
from multigate.training.fit import CHECKPOINT, Fit
from multigate.training.loop import fit
from multigate.training.progress import Reporter
from multigate.writing import write_text

LOOKS = "points.json"
Seen = dict[str, float]


class Point(NamedTuple):
    """What was seen of a model that has read so many training rows."""

    rows: int
    seen: Seen


class Watched(NamedTuple):
    """A training and its points. ``seconds`` are those of training alone."""

    points: tuple[Point, ...]
    parameters: int
    multiply_adds: int
    seconds: float


def train_to_points(
    experiment: Experiment,
    prepared: Prepared,
    folder: Path,
    look: Callable[[Model], Seen],
    *,
    points: int,
    device: torch.device,
    report: Reporter,
    tasks: Sequence[int] | None = None,
) -> Watched:
    """Train all epochs, and ``look`` at the model once after each of ``points`` equal parts of the steps.

    Its weights are those of the moment: nothing is chosen, and nothing stops early. With the same folder it goes on
    where it was, or, where it was killed, from the last point or epoch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    looks = _Looks(folder / LOOKS, look, points)
    experiment = experiment.with_(patience=None)
    fitted = fit(
        experiment, prepared, folder, device=device, report=report, tasks=tasks, resume=True, observe=looks.observe
    )
    tensors, state = load_checkpoint(folder / CHECKPOINT)  # ``fitted`` has the best weights, these are the last
    weights = {name.removeprefix("model/"): one for name, one in tensors.items() if name.startswith("model/")}
    fitted.model.load_state_dict(weights)
    looks.take(state["step"], fitted.model)
    rows, size = prepared.train.rows, experiment.batch(prepared.train.rows)
    return Watched(
        tuple(Point(rows_read(step, rows, size), seen) for step, seen in sorted(looks.taken.items())),
        sum(parameter.numel() for parameter in fitted.model.parameters()),
        fitted.model.multiply_adds(),
        fitted.seconds,
    )


class _Looks:
    """Looks taken so far, in a file of their own."""

    def __init__(self, path: Path, look: Callable[[Model], Seen], points: int) -> None:
        self.path, self.look, self.points = path, look, points
        kept: Any = _read(path) if path.is_file() else {"taken": {}}
        self.taken: dict[int, Seen] = {int(step): seen for step, seen in kept["taken"].items()}

    def observe(self, fitting: Fit, batch: Batch) -> None:
        """Before a step: look if this is a point, and save, so that no more than a part is lost if it is killed."""
        step = fitting.step_done
        if step in self.taken or step not in steps_of(fitting.steps, self.points):
            return
        fitting.save()
        self.take(step, fitting.model)

    def take(self, step: int, model: Model) -> None:
        if step not in self.taken:
            self.taken[step] = self.look(model)
            write_text(self.path, json.dumps({"taken": self.taken}))


def steps_of(steps: int, points: int) -> list[int]:
    """The steps after which each of so many equal parts is done."""
    return [steps * (part + 1) // points for part in range(points)]


def rows_read(step: int, rows: int, size: int) -> int:
    """Rows that so many steps have read, of epochs of ``rows`` in batches of ``size``, the last one of what is left."""
    epochs, more = divmod(step, math.ceil(rows / size))
    return epochs * rows + more * size


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise RunError(f"{path} is damaged ({why}); delete its folder, and the same command trains it again") from None
