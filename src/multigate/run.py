"""A run: the folder one training leaves."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from shlex import quote
from typing import Any

from multigate.bundle import Bundle, load
from multigate.errors import ExperimentError, MultigateError, RunError, shortage
from multigate.experiment import Experiment, make_experiment, with_balance, with_structures
from multigate.folders import EXPERIMENT, MEMBERS, SUMMARY, TRAININGS, TRIALS, at_home, other_than_a_model
from multigate.lock import LOCK, locked
from multigate.options import Options
from multigate.sharing import Structures, listed
from multigate.writing import disk_errors, is_leftover, remove, remove_leftovers, write_text
from multigate.yaml_text import read_yaml

METRICS = "metrics.jsonl"
ENTRY = {"epoch": int, "step": int, "train": dict, "valid": dict}
"""What every line of it holds, among others."""
SUMMED = {
    "best": dict,
    "epochs": int,
    "seconds": int | float,
    "rows_per_second": int | float,
    "rows": dict,
    "parameters": int,
    "multiply_adds": int,
    "device": str,
    "versions": dict,
}
"""What every summary holds, among others."""


def strict(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics as JSON has them: null where undefined."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


class Run:
    """A finished run. ``best`` are the validation metrics of the weights kept, by ``<task>/<metric>``.

    ``structures`` names structures of your own that it may use; one that was just trained knows its own.
    """

    def __init__(self, folder: Path, structures: Structures = ()) -> None:
        self.folder = folder
        self.structures = listed(structures)
        self.summary = _read_summary(folder / SUMMARY)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __fspath__(self) -> str:
        """Its folder: a run may be given wherever the path of one is."""
        return str(self.folder)

    @property
    def best(self) -> dict[str, float]:
        return {name: math.nan if value is None else value for name, value in self.summary["best"].items()}

    @property
    def history(self) -> list[dict[str, Any]]:
        """One entry per evaluation: step, losses, metrics, seconds."""
        return read_history(self.folder / METRICS)

    @property
    def experiment(self) -> Experiment:
        """What it was trained from, every default as it was then."""
        values = with_structures(with_balance(stored_values(self.folder)), self.structures)
        return make_experiment(values, name=str(self.folder / EXPERIMENT))

    def bundle(self) -> Bundle:
        return load(self.folder, structures=self.structures)


def bundle_of(model: Bundle | Run | str | PathLike[str]) -> Bundle:
    """A bundle as it is; that of a run; one that is named by its folder, or by that of its run, loaded."""
    if isinstance(model, Run):
        return model.bundle()
    return model if isinstance(model, Bundle) else load(model)


def open_run(path: str | PathLike[str], *, structures: Structures = ()) -> Run:
    """The run in a folder, which may use ``structures`` of your own.

    Raises ``RunError`` where there is none, or one that did not finish.
    """
    if not isinstance(path, str | PathLike):
        raise RunError(
            f"the folder of a run is wanted, found {type(path).__name__}; name the --out folder of a training"
        )
    folder = at_home(path)
    if (folder / SUMMARY).is_file():
        return Run(folder, structures)
    raise RunError(
        other_than_a_model(folder)
        or f"there is no run in {folder}: it has no {SUMMARY}; name the --out folder of a training"
    )


def read_history(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics file; a last line that a killed process left torn is none.

    Raises ``RunError`` where it cannot be read or another line is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}; train again in another folder") from None
    entries = []
    for number, line in enumerate(lines, 1):
        entry = None
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
        lacking = _lacking(entry, ENTRY) if isinstance(entry, dict) else ""
        if isinstance(entry, dict) and not lacking:
            entries.append(entry)
        elif lacking or number < len(lines):
            raise RunError(
                f"{path}, line {number}{lacking} is damaged; restore the file or train again in another folder"
            )
    return entries


def keep_history(path: Path, step: int, epoch: int) -> None:
    """Drop entries written after ``step`` and ``epoch``, those of the checkpoint which is gone back to."""
    if path.is_file():
        kept = [one for one in read_history(path) if one["step"] <= step and one["epoch"] <= epoch]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))


@contextmanager
def claimed(folder: Path, experiment: Experiment, *, resume: bool, progress: str) -> Iterator[None]:
    """Make a folder this experiment's own, and this process's alone, while it is worked on.

    What a killed process left half-written there is removed. If an error ends the work before the file or folder
    ``progress`` is there, nothing is left behind. Raises ``RunError`` where something else is in the folder already,
    or another process.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; a run wants a folder of its own, so choose another name")
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    fresh = False
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            fresh = _claim(folder, experiment, resume=resume, progress=progress)
            try:
                yield
            except Exception as error:
                told = isinstance(error, MultigateError) or shortage(error) is not None  # a fault is looked into
                if told and fresh and not (folder / progress).exists():
                    for path in {*folder.iterdir()} - {folder / LOCK}:
                        remove(path)
                raise
    finally:
        with suppress(OSError):  # they go only where nothing is in them
            for place in missing:
                place.rmdir()


def _claim(folder: Path, experiment: Experiment, *, resume: bool, progress: str) -> bool:
    """Whether the folder was empty and is now this experiment's; False where the experiment is gone on with."""
    fresh = all(path.name == LOCK or is_leftover(path) for path in folder.iterdir())
    if not fresh:
        if not (folder / EXPERIMENT).is_file():
            raise RunError(f"{folder} is not empty and holds no run; choose another folder")
        if progress in (MEMBERS, TRAININGS, TRIALS) and ((folder / SUMMARY).exists() or (folder / METRICS).exists()):
            raise RunError(f"{folder} holds one run, made by 'multigate train'; choose another folder for others")
        if progress != MEMBERS and (folder / MEMBERS).is_dir():
            raise RunError(f"{folder} holds a comparison; choose another folder, or go on with it by multigate compare")
        if progress != TRAININGS and (folder / TRAININGS).is_dir():
            raise RunError(f"{folder} holds related tasks; choose another folder, or go on with it by multigate relate")
        if progress != TRIALS and (folder / TRIALS).exists():
            raise RunError(f"{folder} holds trials; choose another folder, or go on with them by multigate tune")
        if not resume:
            raise RunError(f"{folder} holds a run already; choose another folder, or go on with it by --resume")
        changed = difference(completed(stored_values(folder), experiment), experiment.to_dict(full=True))
        if changed:
            raise RunError(f"{folder} was started with another experiment ({changed}); choose another folder")
    remove_leftovers(folder)
    if fresh:
        write_text(folder / EXPERIMENT, experiment.to_yaml(full=True))
    return fresh


def stored_values(folder: Path) -> dict[str, Any]:
    """The plain values of the experiment a run was started with, every default spelled out.

    Raises ``RunError`` where its file is missing or damaged.
    """
    try:
        data = read_yaml(folder / EXPERIMENT)
    except ExperimentError as error:
        raise RunError(f"{error}; restore the file, or start again in another folder") from None
    if not isinstance(data, dict):
        raise RunError(f"{folder / EXPERIMENT} holds no experiment; start again in another folder")
    return data


def completed(before: Any, now: Options) -> Any:
    """Plain values that options had, with what was not known of then, where ``now`` has it at its default."""
    return _completed(before, now.to_dict(full=True), now.to_dict())


def _completed(before: Any, now: Any, chosen: Any) -> Any:
    if isinstance(before, dict) and isinstance(now, dict):
        own = chosen if isinstance(chosen, dict) else {}
        later = {name: value for name, value in now.items() if name not in before and name not in own}
        return later | {name: _completed(value, now.get(name), own.get(name)) for name, value in before.items()}
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        each = chosen if isinstance(chosen, list) else [None] * len(now)
        return [_completed(*one) for one in zip(before, now, each, strict=True)]
    return before


def difference(before: Any, now: Any, place: str = "") -> str:
    """Where two trees of plain values differ first, as "sharing.experts: 8, now 4"; empty where they do not."""
    if isinstance(before, dict) and isinstance(now, dict):
        parts = {name: (before.get(name), now.get(name)) for name in {**before, **now}}
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        parts = {str(at): both for at, both in enumerate(zip(before, now, strict=True))}
    else:
        return "" if before == now else f"{place}: {_short(before)}, now {_short(now)}"
    found = (difference(*both, f"{place}.{name}" if place else name) for name, both in parts.items())
    return next((one for one in found if one), "")


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _lacking(found: dict[str, Any], wanted: Mapping[str, Any]) -> str:
    """What should be there and is not, or is something else, to stand behind a name; empty where all is there."""
    names = [name for name, kind in wanted.items() if not isinstance(found.get(name), kind)]
    return f" (without {', '.join(names)})" if names else ""


def _are_numbers(metrics: dict[str, Any]) -> bool:
    return all(value is None or isinstance(value, int | float) for value in metrics.values())


def _read_summary(path: Path) -> dict[str, Any]:
    lacking = ""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        lacking = _lacking(summary, SUMMED)
        if not lacking and _are_numbers(summary["best"]):
            return summary
    except PermissionError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); ask its owner for it") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass
    raise RunError(
        f"{path}{lacking} is damaged; restore it, or delete it and train again: multigate train --resume --out "
        f"{quote(str(path.parent))}"
    )
