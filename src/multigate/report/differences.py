"""Is one model better than another on the same rows?"""

from collections.abc import Iterator, Sequence
from math import isfinite

from multigate.analysis.paired import Difference, paired_differences
from multigate.analysis.subject import Subject
from multigate.formats import directed, listed, number, signed_number
from multigate.metrics import HIGHER_IS_BETTER
from multigate.report.blocks import Block, Figure, Table
from multigate.report.charts import dot_chart


def between(a: Subject, b: Subject, names: tuple[str, str], main: Sequence[str]) -> Iterator[Block]:
    """Model b minus model a: a picture of the main metrics, then all of them as a table."""
    found = paired_differences(a, b)
    drawn = [
        {
            "name": f"{it.target}/{it.metric}",
            "series": "difference",
            "value": it.difference,
            "low": it.low,
            "high": it.high,
            "clear": it.clear,
        }
        for it in found
        if f"{it.target}/{it.metric}" in main
    ]
    yield Figure(
        f"{names[1]} minus {names[0]}, both on the same {b.rows}. Right of the dashed line {names[1]} is higher. A dot "
        "is filled where the 95 % interval leaves out 0. Rows are drawn anew for it, training seeds are not: of two "
        f"runs of the same experiment some differences would be clear, too. {_told(found, main, names)}",
        (
            dot_chart(
                "",
                f"Differences of main metrics, {names[1]} minus {names[0]}",
                drawn,
                "difference",
                at=0.0,
                hollow=True,
            ),
        ),
        wide=True,
    )
    yield Table(
        "Every metric; * the interval leaves out 0 (↑ higher is better, ↓ lower)",
        ("task", "metric", *names, "difference", "95 % interval"),
        tuple(_row(it) for it in found),
        words=2,
    )


def _row(it: Difference) -> tuple[str, ...]:
    beside = max(abs(it.a), abs(it.b))
    difference, low, high = (signed_number(one, beside) for one in (it.difference, it.low, it.high))
    return (
        it.target,
        directed(it.metric),
        number(it.a),
        number(it.b),
        difference,
        f"{low} to {high}{' *' if it.clear else ''}" if isfinite(it.low + it.high) else "",
    )


def _told(found: Sequence[Difference], main: Sequence[str], names: tuple[str, str]) -> str:
    clear = [it for it in found if it.clear and f"{it.target}/{it.metric}" in main]
    if not clear:
        return "None of the main metrics differs clearly."
    better = [f"{names[(it.difference > 0) == HIGHER_IS_BETTER[it.metric]]} on {it.target}/{it.metric}" for it in clear]
    return f"Clearly better: {listed(better)}."
