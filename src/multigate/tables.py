"""Tables for the terminal."""

from collections.abc import Mapping

from rich.table import Table


def metric_table(
    title: str, metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]] | None = None
) -> Table:
    """One row per task (or conditional), one column per metric, intervals in brackets."""
    names = [name.rpartition("/") for name in metrics]
    tasks = list(dict.fromkeys(task for task, _, _ in names))
    columns = list(dict.fromkeys(metric for _, _, metric in names))
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    for column in columns:
        table.add_column(column, justify="right")
    for task in tasks:
        table.add_row(task, *(_cell(f"{task}/{column}", metrics, intervals or {}) for column in columns))
    return table


def _cell(name: str, metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> str:
    if name not in metrics:
        return ""
    text = f"{metrics[name]:.4f}"
    if name in intervals:
        low, high = intervals[name]
        text += f" [{low:.4f}, {high:.4f}]"
    return text
