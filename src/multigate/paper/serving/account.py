"""What the serving study shows, beside what the paper says of cost."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

from multigate.paper.account import Account, Claim, claims
from multigate.paper.ledger import Row
from multigate.paper.recommender.bottoms import TITLES
from multigate.report.blocks import Block, Figure, Table, Text

BASE, ALONE = "shared_bottom", "single_task"
TWICE = (1.75, 2.25)
"""Times that count as "double"."""
LITTLE = 1.25
"""Times that count as no noticeable extra cost."""
FIGURES = {"multiply_adds": "multiply-adds", "row_ms": "time of one row", "batch_ms": "time of a batch"}


class Ratio(NamedTuple):
    """The median over rounds of one thing over another in the same round, the least and the greatest."""

    middle: float
    low: float
    high: float

    def text(self) -> str:
        return f"{self.middle:.2f}" + (f" ({self.low:.2f} to {self.high:.2f})" if self.low < self.high else "")


def ratio(one: Row, other: Row, figure: str) -> Ratio:
    """Of two structures for the same tasks, which were timed in turn."""
    above, below = (row[figure] if isinstance(row[figure], list) else [row[figure]] for row in (one, other))
    times = [a / b for a, b in zip(above, below, strict=True)]
    return Ratio(median(times), min(times), max(times))


def tell(rows: Sequence[Row]) -> list[Account]:
    """One chapter: counted and measured cost by number of tasks."""
    told = _Told(rows)
    return [Account("serving", "What serving costs, by number of tasks", tuple(told.blocks()), told.draw)]


class _Told:
    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.tasks = sorted({row["tasks"] for row in rows})
        self.names = [name for name in TITLES if any(row["structure"] == name for row in rows)]

    def row(self, name: str, tasks: int) -> Row:
        return next(row for row in self.rows if (row["structure"], row["tasks"]) == (name, tasks))

    def blocks(self) -> Iterator[Block]:
        first = self.rows[0]
        yield Text(
            f"{first['machine']}, {first['threads']} threads, {min(row['load'] for row in self.rows):.1f} to "
            f"{max(row['load'] for row in self.rows):.1f} processes wanting to compute meanwhile. Models as torch runs "
            f"them, from encoded rows to outputs, {len(first['row_ms'])} rounds in which all structures are timed in "
            "turn: the best round, and in brackets the median and the worst. Networks are equally wide; MMoE's top "
            "layer alone is a mixture. Single-task is a model for each task, run one after the other."
        )
        yield self._table("Multiply-adds of one row, for all tasks, in thousands", self._counted("multiply_adds"))
        yield self._table("Parameters without embeddings, in thousands", self._weights())
        yield self._table("Milliseconds of one row", self._measured("row_ms", 1.0))
        rows = {tasks: [_throughput(self.row(name, tasks)) for name in self.names] for tasks in self.tasks}
        yield self._table(f"Rows a second, in thousands, {first['batch']:,} at a time", rows)
        yield claims("What the paper says", list(self._claims()))

    def _table(self, caption: str, lines: dict[int, list[str]]) -> Table:
        head = ("tasks", *(TITLES[name] for name in self.names))
        return Table(caption, head, tuple((str(tasks), *cells) for tasks, cells in lines.items()))

    def _counted(self, figure: str) -> dict[int, list[str]]:
        return {tasks: [f"{self.row(name, tasks)[figure] / 1e3:,.0f}" for name in self.names] for tasks in self.tasks}

    def _weights(self) -> dict[int, list[str]]:
        return {tasks: [f"{_network(self.row(name, tasks)) / 1e3:,.0f}" for name in self.names] for tasks in self.tasks}

    def _measured(self, figure: str, factor: float) -> dict[int, list[str]]:
        return {
            tasks: [_rounds([factor * one for one in self.row(name, tasks)[figure]]) for name in self.names]
            for tasks in self.tasks
        }

    def _claims(self) -> Iterator[Claim]:
        two = 2 if 2 in self.tasks else self.tasks[-1]
        for name in ("soft", "cross_stitch"):
            for figure, said in FIGURES.items():
                here = ratio(self.row(name, two), self.row(BASE, two), figure)
                claim = f"{TITLES[name]} doubles the serving time: {said} over Shared-Bottom, {two} tasks"
                yield Claim(claim, "2", here.text(), _double(here.middle))
            weights = _network(self.row(name, two)) / _network(self.row(BASE, two))
            claim = f"{TITLES[name]} has roughly double the parameters (without embeddings), {two} tasks"
            yield Claim(claim, "2", f"{weights:.2f}", _double(weights))
        for figure, said in FIGURES.items():
            here = ratio(self.row("mmoe", two), self.row(BASE, two), figure)
            claim = f"MMoE adds no noticeable cost: {said} over Shared-Bottom, {two} tasks"
            yield Claim(claim, "1", here.text(), _little(here.middle))
        for figure, said in FIGURES.items():
            more = {name: self._one_more(name, figure) for name in ("mmoe", BASE, ALONE)}
            yield Claim(
                f"MMoE keeps the advantage of sharing: {said} that one more task adds, of what one more network does",
                '"largely"',
                f"{more['mmoe'] / more[ALONE]:.1%} (Shared-Bottom {more[BASE] / more[ALONE]:.1%})",
                "holds" if more["mmoe"] < 0.5 * more[ALONE] else "does not hold",
            )

    def _one_more(self, name: str, figure: str) -> float:
        """What a task adds, from the fewest to the most; of what was timed, by the best rounds."""
        low, high = self.tasks[0], self.tasks[-1]
        ends = [self.row(name, tasks)[figure] for tasks in (low, high)]
        first, last = (float(min(one) if isinstance(one, list) else one) for one in ends)
        return (last - first) / (high - low)

    def draw(self) -> Iterator[tuple[str, Figure]]:
        from multigate.report.charts import curve_chart

        charts = []
        for figure, (title, unit) in {
            "multiply_adds": ("Multiply-adds", "millions a row"),
            "row_ms": ("One row", "ms"),
            "batch_ms": ("Batch", "ms"),
        }.items():
            points = []
            for name in self.names:
                for tasks in self.tasks:
                    value = self.row(name, tasks)[figure]
                    if isinstance(value, list):
                        ends = {"value": median(value), "low": min(value), "high": max(value)}
                    else:
                        ends = {"value": value / 1e6, "low": None, "high": None}
                    points.append({"series": TITLES[name], "x": tasks, "dashed": False, **ends})
            told = f"{title} ({unit}) by number of tasks, of {len(self.names)} structures"
            charts.append(curve_chart(title, told, points, "tasks", unit, points=True))
        yield "serving", Figure("Cost by number of tasks: median of the rounds, from best to worst.", tuple(charts))


def _network(row: Row) -> int:
    return int(row["parameters"] - row["embedded"])


def _throughput(row: Row) -> str:
    thousands = sorted(row["batch"] / one for one in row["batch_ms"])
    return f"{thousands[-1]:,.1f} ({median(thousands):,.1f}, {thousands[0]:,.1f})"


def _rounds(values: Sequence[float]) -> str:
    return f"{min(values):.2f} ({median(values):.2f}, {max(values):.2f})"


def _double(times: float) -> str:
    if times < TWICE[0]:
        return "less"
    return "as in the paper" if times <= TWICE[1] else "more"


def _little(times: float) -> str:
    return "as in the paper" if times <= LITTLE else f"more than {LITTLE:g}"
