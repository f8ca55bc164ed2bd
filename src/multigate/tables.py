"""Tables for the terminal."""

from collections.abc import Mapping
from itertools import groupby

from rich.table import Table

Intervals = Mapping[str, tuple[float, float]]


def metric_table(title: str, metrics: Mapping[str, float], intervals: Intervals | None = None) -> Table:
    """One row per metric of every task (or conditional), with its interval where there are any."""
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    table.add_column("metric")
    table.add_column("value", justify="right")
    if intervals:
        table.add_column("95 % interval", justify="right")
    for task, names in groupby(metrics, key=lambda name: name.rpartition("/")[0]):
        for place, name in enumerate(names):
            cells = ["" if place else task, name.rpartition("/")[2], _number(metrics[name])]
            if intervals:
                low, high = intervals.get(name, (float("nan"), float("nan")))
                cells.append(f"{_number(low)} to {_number(high)}")
            table.add_row(*cells)
        table.add_section()
    return table


def _number(value: float) -> str:
    """Four digits after the point for shares and the like, fewer for large quantities."""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
