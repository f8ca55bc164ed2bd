"""Several runs, or the structures of a comparison, side by side."""

import math
from collections.abc import Iterator, Sequence

from multigate.analysis.comparison import BASELINE, Comparison, spread
from multigate.analysis.intervals import Summary
from multigate.formats import directed, interval, listed, number, signed
from multigate.metrics import HIGHER_IS_BETTER, POSSIBLE
from multigate.report.blocks import Block, Chart, Figure, Table, Text
from multigate.report.charts import dot_chart
from multigate.report.trained import Trained

COSTS = {
    "parameters": "parameters",
    "multiply_adds": "multiply-adds a row",
    "rows_per_second": "training rows a second",
}


def runs(trained: Sequence[Trained]) -> Iterator[Block]:
    """Validation metrics of several runs, a column each."""
    best = {one.name: one.run.best for one in trained if one.run}
    names = list(dict.fromkeys(name for values in best.values() for name in values))
    corrected = [one.name for one in trained if one.experiment.corrects]
    before = (
        f" Metrics of {listed(corrected)} are from before the curves that correct predictions." if corrected else ""
    )
    yield Text(
        "Metrics of the weights each run kept, on its own validation rows: single runs, so that seeds differ too. "
        f"Differences on the same rows are at the end of this page.{before}"
    )
    rows = tuple((*_split(name), *(number(values.get(name)) for values in best.values())) for name in names)
    yield Table("Validation metrics", ("task", "metric", *best), rows, words=2)


def structures(one: Trained) -> Iterator[Block]:
    """Means over seeds with intervals and gains, as pictures and as a table; then what each structure costs."""
    if one.comparison:
        yield from _structures(one.comparison)


def _structures(comparison: Comparison) -> Iterator[Block]:
    first = comparison.rows[0]
    seeds = comparison.seeds().values()
    names = [
        name for name in comparison.metrics() if any(comparison.values(one, name) for one in comparison.structures)
    ]
    drawn = (
        "Dots are single runs of one seed, so there are no intervals"
        if max(seeds) == 1
        else f"Dots are means over {spread(seeds)} seeds, lines their 95 % intervals, as far as values are possible"
    )
    for note in comparison.notes():
        yield Text(f"{note}.", kind="note")
    if names:
        yield Figure(
            f"Scored on {first['rows']:,} {first['part']} rows. {drawn}; the dashed line is the mean of the "
            f"single-task models, where there are any. {_told(comparison, names)}",
            tuple(_chart(comparison, name) for name in names),
        )
    head = ("metric", "structure", "mean", "sd", "95 % interval", "MTL gain", "its interval")
    rows = tuple(
        (name if i == 0 else "", one, *_summary(comparison.summary(one, name)), *_gain(comparison.gain(one, name)))
        for name in comparison.metrics()
        for i, one in enumerate(_with(comparison, name, also_blank=True))
    )
    yield Table(
        "Main metrics. MTL gain: what sharing adds to the single-task models of the same seeds, positive is better; "
        "* the interval leaves out 0.",
        head,
        rows,
        words=2,
    )
    yield Table(
        "Cost, means over seeds; single-task models are one for each task, summed",
        ("structure", *COSTS.values()),
        tuple(
            (one, *(f"{sum(values) / len(values):,.0f}" for values in costs))
            for one in comparison.structures
            if all(costs := [list(comparison.values(one, column).values()) for column in COSTS])
        ),
    )


def _chart(comparison: Comparison, metric: str) -> Chart:
    found = {one: comparison.summary(one, metric) for one in _with(comparison, metric)}
    kind = metric.rpartition("/")[2]
    least, most = POSSIBLE[kind]
    rows = [  # NaN, of a single seed, stays none: the first of two is kept then
        {"name": one, "series": "mean", "value": it.mean, "low": max(it.low, least), "high": min(it.high, most)}
        for one, it in found.items()
    ]
    better = "higher" if HIGHER_IS_BETTER[kind] else "lower"
    told = ", ".join(f"{one} {number(it.mean)}" for one, it in found.items())
    at = found[BASELINE].mean if BASELINE in found else None
    return dot_chart(metric, f"{metric} by structure: {told}", rows, f"{better} is better", at=at)


def _with(comparison: Comparison, metric: str, *, also_blank: bool = False) -> list[str]:
    """Structures that have the metric: single-task models have no conditional of a task with ``where``.

    ``also_blank`` adds those that would have it, if the rows could tell it.
    """
    return [
        one
        for one in comparison.structures
        if comparison.values(one, metric) or (also_blank and comparison.lacks(one, metric))
    ]


def _told(comparison: Comparison, metrics: Sequence[str]) -> str:
    """Which gains and losses have an interval that leaves out 0."""
    gains = [(one, name, comparison.gain(one, name)) for name in metrics for one in comparison.structures]
    known = [(one, name, gain) for one, name, gain in gains if gain is not None and gain.n > 1]
    if not known:
        return "Whether sharing gains anything cannot be said from one seed, or without single-task models."
    clear = [(gain.mean, f"{one} on {name} ({signed(gain.mean)})") for one, name, gain in known if gain.clear]
    if not clear:
        return "No structure's gain over the single-task models has an interval that leaves out 0."
    better, worse = [told for mean, told in clear if mean > 0], [told for mean, told in clear if mean < 0]
    return "".join(
        (
            f"Better than the single-task models: {listed(better)}. " if better else "",
            f"Worse than the single-task models: {listed(worse)}. " if worse else "",
            f"Of {len(known)} intervals about {0.05 * len(known):.0f} leave out 0 by chance alone.",
        )
    )


def _summary(one: Summary) -> tuple[str, str, str]:
    if not one.n:
        return "-", "", ""
    return number(one.mean), "" if one.n == 1 else number(one.sd), interval(one.low, one.high)


def _gain(gain: Summary | None) -> tuple[str, str]:
    if gain is None:
        return "", ""
    star = " *" if gain.clear else ""
    return signed(gain.mean), "" if math.isnan(gain.low) else f"{signed(gain.low)} to {signed(gain.high)}{star}"


def _split(name: str) -> tuple[str, str]:
    task, _, metric = name.rpartition("/")
    return task, directed(metric)
