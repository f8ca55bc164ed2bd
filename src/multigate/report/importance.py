"""What features are worth to each task."""

from collections.abc import Iterator
from itertools import groupby

from multigate.analysis.inspection import Importance
from multigate.formats import SMALLEST, listed
from multigate.report.blocks import Block, Chart, Figure, Text
from multigate.report.charts import bar_chart
from multigate.report.trained import Trained

MOST_FEATURES = 12


def worth(one: Trained) -> Iterator[Block]:
    """Permutation importance of the features for each target."""
    found = [(target, list(rows)) for target, rows in groupby(one.inspection.importance, key=lambda it: it.target)]
    if found:
        best = listed(f"{_most(rows) or 'nothing clear'} for {target}" for target, rows in found)
        yield Figure(
            f"What a task's metric loses when one feature is shuffled between rows (mean, and a standard deviation "
            f"over the repeats); the {MOST_FEATURES} that matter most. Features that say the same share what they "
            f"are worth, so that each looks less important. Most important here: {best}.",
            tuple(_bars(target, rows) for target, rows in found),
        )
    for note in filter(None, (one.inspection.unknown, one.inspection.untried)):
        yield Text(f"{note}.", kind="note")


def _most(rows: list[Importance]) -> str | None:
    """The feature whose loss is the greatest of those that exceed what one shuffle differs by from the next."""
    clear = [it for it in rows if it.loss > max(it.sd, SMALLEST)]
    return max(clear, key=lambda it: it.loss).feature if clear else None


def _bars(target: str, rows: list[Importance]) -> Chart:
    metric = rows[0].metric
    ranked = sorted(rows, key=lambda it: -it.loss)[:MOST_FEATURES]
    told = ", ".join(f"{it.feature} {it.loss:.4f}" for it in ranked[:3])
    drawn = [{"name": it.feature, "value": it.loss, "low": it.loss - it.sd, "high": it.loss + it.sd} for it in ranked]
    return bar_chart(target, f"Loss of {metric} of {target} by shuffled feature: {told}", drawn, f"loss of {metric}")
