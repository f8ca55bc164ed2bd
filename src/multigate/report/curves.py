"""How training went: losses and validation metrics by epoch."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

from multigate.errors import RunError
from multigate.evaluate import Monitor
from multigate.experiment import Experiment
from multigate.formats import listed, number
from multigate.report.blocks import Block, Chart, Figure, Text
from multigate.report.charts import line_chart
from multigate.report.trained import Trained
from multigate.run import METRICS, read_history

Entry = dict[str, Any]
"""What an epoch left: epoch, step, seconds, train and valid."""
Histories = Mapping[str, Sequence[Entry]]
"""Entries of each training, by the name the page calls it by."""


def of_runs(trained: Sequence[Trained]) -> Iterator[Block]:
    """Curves of one run, or of several over each other."""
    histories, lost = _read({one.name: one.folder for one in trained})
    yield from lost
    trained = [one for one in trained if one.name in histories]
    best = {one.name: best_epoch(histories[one.name], one.experiment) for one in trained}
    losses = dict.fromkeys(f"train/{task}/loss" for one in trained for task in one.experiment.schema.task_names)
    metrics = dict.fromkeys(f"valid/{metric}" for one in trained for metric in one.main_metrics)
    yield from _figure(
        f"Training loss of each task, averaged over an epoch{_ring(best)}", list(losses), histories, best
    )
    told = (
        "Main metrics on the validation rows after each epoch. Where they fall while the loss above still does, a "
        "task overfits."
    )
    yield from _figure(told, list(metrics), histories, best)


def of_comparison(one: Trained) -> Iterator[Block]:
    """Validation metrics of the joint structures' runs with seed 0, where there are such structures."""
    if not one.joint:
        return
    histories, lost = _read({name: one.folder / "runs" / f"{name}-0" for name in one.joint})
    yield from lost
    best = {name: best_epoch(history, one.experiment) for name, history in histories.items()}
    told = (
        "Main metrics on the validation rows after each epoch, for the run with seed 0 of each structure that trains "
        f"all tasks together{_ring(best)}"
    )
    yield from _figure(told, [f"valid/{metric}" for metric in one.main_metrics], histories, best)


def _read(folders: Mapping[str, Path]) -> tuple[Histories, list[Block]]:
    """The histories that can be read, and notes on the others. Raises ``RunError`` where none can."""
    histories, errors = {}, {}
    for name, folder in folders.items():
        try:
            histories[name] = read_history(folder / METRICS)
        except RunError as error:
            errors[name] = error
    if errors and not histories:
        raise next(iter(errors.values()))
    return histories, [
        Text(f"The curves of {name} are missing: {error}", kind="note") for name, error in errors.items()
    ]


def best_epoch(history: Sequence[Entry], experiment: Experiment) -> int:
    """The epoch whose weights were kept: the first at which the monitored value is highest; 0 where there is none."""
    monitor = Monitor(experiment.monitor, experiment.schema)

    def value(entry: Entry) -> float:
        metrics = {name.removeprefix("valid/"): nan if it is None else it for name, it in entry["valid"].items()}
        found = monitor.choice(metrics)
        return found if isfinite(found) else float("-inf")

    return int(max(history, key=value)["epoch"]) if history else 0


def _figure(told: str, names: Sequence[str], histories: Histories, best: Mapping[str, int]) -> Iterator[Block]:
    """A chart for each name that has a value after some epoch; the others are said to have none."""
    drawn = [name for name in names if any(_value(it, name) is not None for one in histories.values() for it in one)]
    without = listed(name.partition("/")[2] for name in names if name not in drawn)
    if without:
        told += f" Undefined after every epoch: {without}."
    yield Figure(told, tuple(_chart(name, histories, best) for name in drawn))


def _value(entry: Entry, name: str) -> float | None:
    """Of an epoch, by a name that begins with the part."""
    found = entry[name.partition("/")[0]].get(name)
    return None if found is None else float(found)


def _chart(name: str, histories: Histories, best: Mapping[str, int]) -> Chart:
    shown = name.partition("/")[2]
    rows = [
        {
            "series": series,
            "epoch": entry["epoch"],
            "value": _value(entry, name),
            "best": entry["epoch"] == best[series],
        }
        for series, history in histories.items()
        for entry in history
    ]
    ends = [f"{series} ends at {number(_value(it[-1], name))}" for series, it in histories.items() if it]
    return line_chart(shown, f"{shown} by epoch: {', '.join(ends)}", rows, shown.rpartition("/")[2])


def _ring(best: Mapping[str, int]) -> str:
    """The end of a sentence that says which weights were kept."""
    kept = listed(f"epoch {epoch}{f' of {name}' if len(best) > 1 else ''}" for name, epoch in best.items())
    return f". A ring marks the weights that were kept, best on the validation rows: {kept}."
