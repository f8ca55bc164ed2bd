"""A run: the folder one training leaves."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from multigate.bundle import Bundle, load
from multigate.errors import MultigateError, RunError
from multigate.experiment import Experiment, make_experiment

EXPERIMENT, METRICS, SUMMARY = "experiment.yaml", "metrics.jsonl", "summary.json"


def strict(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has them: null where undefined."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


class Run:
    """A finished run. ``best`` are the validation metrics of the weights kept, by ``<task>/<metric>``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))

    @property
    def best(self) -> dict[str, float]:
        return {name: math.nan if value is None else value for name, value in self.summary["best"].items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per evaluation: step, losses, metrics, seconds."""
        lines = (self.folder / METRICS).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @property
    def experiment(self) -> Experiment:
        """What it was trained from, every default as it was then."""
        return make_experiment(stored_values(self.folder), name=str(self.folder / EXPERIMENT))

    def bundle(self) -> Bundle:
        return load(self.folder)


def open_run(path: str | Path) -> Run:
    """The run in a folder. Raises ``RunError`` where there is none, or one that did not finish."""
    folder = Path(path)
    if (folder / SUMMARY).is_file():
        return Run(folder)
    if (folder / EXPERIMENT).is_file():
        raise RunError(f"the run in {folder} did not finish; go on with: multigate train --resume --out {folder}")
    raise RunError(f"there is no run in {folder}: it has no {SUMMARY}")


@contextmanager
def claimed(folder: Path, experiment: Experiment, *, resume: bool, progress: str) -> Iterator[None]:
    """Make a folder this experiment's own while it is worked on.

    If an error ends the work before the file or folder ``progress`` is there, nothing is left behind. Raises
    ``RunError`` where something else is in the folder already.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    fresh = _claim(folder, experiment, resume=resume)
    try:
        yield
    except MultigateError:
        if fresh and not (folder / progress).exists():
            shutil.rmtree(missing[-1] if missing else folder)
            if not missing:
                folder.mkdir()
        raise


def _claim(folder: Path, experiment: Experiment, *, resume: bool) -> bool:
    """Whether the folder was empty and is now this experiment's; False where the experiment is gone on with."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; a run wants a folder of its own")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / EXPERIMENT).is_file():
            raise RunError(f"{folder} is not empty and holds no run; choose another folder")
        if not resume:
            raise RunError(f"{folder} holds a run already; choose another folder, or go on with it by --resume")
        if stored_values(folder) != experiment.to_dict(full=True):
            raise RunError(f"the run in {folder} was started with another experiment; choose another folder")
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / EXPERIMENT).write_text(experiment.to_yaml(full=True), encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}") from None
    return True


def stored_values(folder: Path) -> dict[str, Any]:
    """The plain values of the experiment a run was started with, every default spelled out."""
    try:
        data = yaml.safe_load((folder / EXPERIMENT).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise RunError(f"{folder / EXPERIMENT} cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise RunError(f"{folder / EXPERIMENT} holds no experiment; start again in another folder")
    return data
