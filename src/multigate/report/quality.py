"""How good each model is: every metric with its interval, on validation rows and on test rows."""

from collections.abc import Iterator, Sequence
from math import isfinite, nan
from typing import Any

from multigate.evaluate import forward, intervals, scores, spaces
from multigate.formats import directed, interval, listed, number
from multigate.metrics import HIGHER_IS_BETTER
from multigate.report.blocks import Block, Chart, Figure, Table
from multigate.report.charts import dot_chart
from multigate.report.trained import Trained

Found = dict[str, tuple[dict[str, float], dict[str, tuple[float, float]]]]
"""Metrics and their intervals, by which rows they are of."""


def metrics(one: Trained) -> Iterator[Block]:
    """A picture of the main metrics, then all of them as a table."""
    found: Found = {}
    for part in one.parts:
        subject = one.looked_at if part == "valid" else one.subject(part)
        model, schema, encoder = subject.bundle.model, subject.bundle.schema, subject.bundle.encoder
        scored = spaces(schema, encoder, forward(model, subject.batches, next(model.parameters()).device))
        found[subject.rows] = scores(scored), intervals(scored)
    by_metric: dict[str, list[str]] = {}
    for name in one.main_metrics:
        by_metric.setdefault(name.rpartition("/")[2], []).append(name)
    yield Figure(
        "A dot is a task's main metric, its line the 95 % interval from drawing the rows anew. "
        "How much it depends on the training seed is not in it. " + _told(one.main_metrics, found),
        tuple(_chart(metric, names, found) for metric, names in by_metric.items() if _is_known(names, found)),
    )
    head = ("task", "metric", *(cell for rows in found for cell in (rows, "95 % interval")))
    names = list(dict.fromkeys(name for values, _ in found.values() for name in values))
    tasks = [name.rpartition("/")[0] for name in names]
    names.sort(key=lambda name: tasks.index(name.rpartition("/")[0]))  # a metric that only test rows have, by its task
    yield Table("Every metric (↑ higher is better, ↓ lower)", head, tuple(_row(name, found) for name in names), words=2)


def _is_known(names: Sequence[str], found: Found) -> bool:
    """Whether any rows can tell any of the metrics: of none there is nothing to draw."""
    return any(isfinite(values[name]) for values, _ in found.values() for name in names)


def _chart(metric: str, names: Sequence[str], found: Found) -> Chart:
    rows: list[dict[str, Any]] = [
        {"name": name.rpartition("/")[0], "series": rows, "value": values[name], "low": low, "high": high}
        for name in names
        for rows, (values, bounds) in found.items()
        for low, high in [bounds[name]]
    ]
    better = f"{'higher' if HIGHER_IS_BETTER[metric] else 'lower'} is better"
    told = ", ".join(f"{row['name']} {number(row['value'])} on {row['series']}" for row in rows)
    return dot_chart(metric, f"{metric} of each task with 95 % intervals: {told}", rows, better)


def _row(name: str, found: Found) -> tuple[str, ...]:
    task, _, metric = name.rpartition("/")
    cells = []
    for values, bounds in found.values():  # calibration of a regression is there where its labels are amounts
        cells += [number(values.get(name, nan)), interval(*bounds.get(name, (nan, nan)))]
    return task, directed(metric), *cells


def _told(names: Sequence[str], found: Found) -> str:
    """The last part's figures in words."""
    rows, (values, _) = list(found.items())[-1]
    return f"On {rows}: {listed((f'{name} {number(values[name])}' for name in names if name in values), most=8)}."
