"""A tuning: what the trials of an experiment's settings came to, and the best of them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Group
from rich.table import Table
from rich.text import Text

from multigate.analysis.ranges import Choice, Space
from multigate.analysis.search import Trial
from multigate.analysis.space import applied, experiment_at, own_value
from multigate.errors import RunError
from multigate.evaluate import Monitor
from multigate.experiment import Experiment
from multigate.formats import listed
from multigate.metrics import HIGHER_IS_BETTER, PRIMARY
from multigate.writing import writing
from multigate.yaml_text import dump_yaml

RESULTS = "trials.parquet"
NAMED = 3
"""Metrics that a goal names: of tens of tasks it would be no name."""


class Goal:
    """The number that trials are judged by: what chooses the best weights in a training, on validation rows.

    ``metrics`` are of any predictions of these rows: what they cannot tell is NaN or not there, and in no mean.
    """

    def __init__(self, monitor: Monitor, metrics: Mapping[str, float]) -> None:
        names = monitor.counted(metrics) or monitor.main
        several = " and ".join(names) if len(names) <= NAMED else listed(names, NAMED)
        self.name = names[0] if len(names) == 1 else f"mean of {several}"
        self.rises = HIGHER_IS_BETTER[names[0].rpartition("/")[2]]
        """Whether a higher one is better."""

    def __call__(self, value: float) -> float:
        """The number, of the value that a search makes large."""
        return value if self.rises else -value


class Tried(NamedTuple):
    """One trial. ``settings`` are the values of the fields tried, None of those that its structure has not.

    ``goal`` is None where it failed. Of one that was stopped it is what it would have come to: what it had, and what
    others gained from there. ``metrics`` are those of its best epoch.
    """

    settings: dict[str, Any]
    goal: float | None
    metrics: dict[str, float]
    seconds: float
    stopped: bool
    failed: str


class Tuning:
    """Trials of an experiment's settings; the first is the experiment as given.

    Raises ``RunError`` where no trial came to anything.
    """

    def __init__(self, folder: Path, given: Experiment, space: Space, trials: Sequence[Trial]) -> None:
        self.folder, self.given, self.space = folder, given, space
        whole = [trial for trial in trials if not trial.stopped and not trial.hopeless]
        if not whole:
            raise RunError(f"no trial came to anything: {trials[0].hopeless}")
        best = max(whole, key=lambda trial: trial.value)
        self.goal = Goal(Monitor(given.monitor, given.schema), best.metrics)
        self.trials = [
            Tried(
                applied(given, trial.point) if trial.point else {key: own_value(given, key) for key in space},
                None if trial.hopeless else self.goal(trial.value),
                dict(trial.metrics),
                trial.seconds,
                trial.stopped,
                trial.hopeless,
            )
            for trial in trials
        ]
        self.best = self.trials[list(trials).index(best)]
        """The best trial that ran to its end; the first of equals."""
        self.experiment = experiment_at(given, best.point)
        """The experiment with the values of the best trial."""

    def __repr__(self) -> str:
        return f"<Tuning in {self.folder}: {len(self.trials)} trials of {', '.join(self.space)}>"

    @property
    def gain(self) -> float | None:
        """What the best trial has over the experiment as given, above 0 where it is better; None where that failed."""
        before, after = self.trials[0].goal, self.best.goal
        if before is None or after is None:
            return None
        return after - before if self.goal.rises else before - after

    def table(self) -> Group:
        """Settings as given and chosen, and what they come to on the validation rows."""
        given, best = self.trials[0], self.best
        table = Table(title=Text(f"Best of {len(self.trials)} trials", style="table.title"), title_justify="left")
        for name in ("", "as given", "best"):
            table.add_column(name, justify="right" if name else "left", overflow="fold")
        for key in self.space:
            table.add_row(Text(key), *(Text(shown(one.settings[key])) for one in (given, best)))
        table.add_section()
        for name in best.metrics if len(best.metrics) < MOST else self.main:
            if name == self.goal.name:
                continue
            table.add_row(Text(name), *(Text(_number(one.metrics.get(name))) for one in (given, best)))
        table.add_section()
        table.add_row(Text(self.goal.name), *(Text(_number(one.goal)) for one in (given, best)))
        return Group(table, Text(self.verdict))

    @cached_property
    def main(self) -> list[str]:
        """The main metric of each task, whichever of them is the goal: what one gains another may pay for."""
        return [f"{task.name}/{PRIMARY[task.kind]}" for task in self.given.schema.tasks]

    @property
    def verdict(self) -> str:
        """What to make of it, in words."""
        if self.best is self.trials[0]:
            return "No trial was better on the validation rows than the experiment as given."
        gain = (
            "The experiment as given failed."
            if self.gain is None
            else f"A gain of {_number(self.gain)} on the validation rows."
        )
        return (
            f"{gain} The best of {len(self.trials)} trials is flattered by the rows that chose it. To see "
            "what it is worth, train it and the experiment as given with several seeds, and score both on test rows."
        )

    def write(self) -> None:
        """One row for each trial, in ``trials.parquet``."""
        rows = [
            {
                "trial": at,
                **{key: _cell(one.settings[key], isinstance(kind, Choice)) for key, kind in self.space.items()},
                "goal": one.goal,
                "seconds": one.seconds,
                "stopped": one.stopped,
                "failed": one.failed or None,
                **one.metrics,
            }
            for at, one in enumerate(self.trials, 1)
        ]
        names = dict.fromkeys(name for row in rows for name in row)
        with writing(self.folder / RESULTS) as temporary:
            pq.write_table(pa.Table.from_pylist([dict.fromkeys(names) | row for row in rows]), temporary)


MOST = 12
"""Metrics that a table has room for; of more the main one of each task is shown."""


def shown(value: Any) -> str:
    """A setting's value, for people."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else dump_yaml(value, one_line=True).strip()


def _cell(value: Any, as_text: bool) -> Any:
    """A setting's value for a column: choices as text, for one may be a list and another a name."""
    return dump_yaml(value, one_line=True).strip() if as_text and value is not None else value


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
