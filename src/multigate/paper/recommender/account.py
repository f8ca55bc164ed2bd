"""What the recommender study shows, beside Tables 3 and 4 of the paper."""

import math
from collections.abc import Iterator, Sequence

from multigate.analysis.intervals import Summary, paired_difference, summary
from multigate.formats import bracketed, plus_minus, signed
from multigate.paper.account import Account, Claim, claims
from multigate.paper.ledger import Row
from multigate.paper.published import Lift, table_3, table_4
from multigate.paper.recommender.bottoms import TITLES
from multigate.paper.recommender.sources import Source
from multigate.report.blocks import Block, Figure, Table, Text

PARTS = ("one third", "two thirds", "all")
BASE = "shared_bottom"
PROTOCOL = (
    "AUC and R2 after a third, two thirds and all of the training, at the same number of rows for all; means over "
    "seeds with half their 95 % interval. R2 is 1 - sum (y - p)^2 / sum (y - mean y)^2; the paper does not say which "
    "R2 it has. {rates}; test rows were scored once at each point, and nothing was chosen by them. Of differences that "
    "are none, one interval in twenty leaves out 0 (*)."
)


def tell(source: Source, rows: Sequence[Row], rates: Sequence[float]) -> list[Account]:
    """Engagement by point, as Table 3; satisfaction, and what each structure costs.

    ``rates`` are the learning rates that each structure had to choose from.
    """
    if len(rates) > 1:
        chosen = "Learning rates were chosen on validation rows"
    else:
        chosen = f"All structures have one learning rate, {rates[0]:g}, which was not tuned"
    told = _Told(source, rows)
    return [
        Account(
            f"{source.name}-engagement",
            f"Table 3 on {source.title}: engagement",
            (Text(f"{source.about}. {PROTOCOL.format(rates=chosen)}"), *told.engagement()),
            told.curves,
        ),
        Account(
            f"{source.name}-satisfaction",
            f"Table 4 on {source.title}: satisfaction, and cost",
            tuple(told.satisfaction()),
            told.differences,
        ),
    ]


class _Told:
    def __init__(self, source: Source, rows: Sequence[Row]) -> None:
        self.source, self.rows = source, sorted(rows, key=lambda row: row["seed"])
        self.main = source.engagement[0]
        self.names = [name for name in TITLES if any(row["structure"] == name for row in rows)]

    def values(self, name: str, task: str, metric: str, point: int) -> list[float]:
        """By seed, of the joint model or of the one that learns the task alone."""
        own = [row for row in self.rows if row["structure"] == name and row["task"] in ("", task)]
        return [row[f"test/{task}/{metric}"][point] for row in own]

    def mean(self, name: str, task: str, metric: str, point: int) -> Summary:
        return summary(self.values(name, task, metric, point))

    def over(self, name: str, base: str, task: str, metric: str, point: int) -> Summary:
        """The paired difference of two structures."""
        return paired_difference(self.values(name, task, metric, point), self.values(base, task, metric, point))

    def engagement(self) -> Iterator[Block]:
        for task in self.source.engagement:
            for metric, title in (("auc", "AUC"), ("r2", "R2")):
                lines = [
                    (TITLES[name], *(_spread(self.mean(name, task, metric, at)) for at in range(len(PARTS))))
                    for name in self.names
                ]
                yield Table(f"{title} of {task}", ("", *PARTS), tuple(lines))
        printed = [
            (TITLES[name], *(f"{value:.4f}" for value in found["auc"]), *(f"{value:.5f}" for value in found["r2"]))
            for name, found in table_3().items()
        ]
        head = ("", *(f"{title}, {steps} M" for title in ("AUC", "R2") for steps in (2, 4, 6)))
        yield Table("Paper, Table 3: engagement after so many steps", head, tuple(printed))
        for metric, title in (("auc", "AUC"), ("r2", "R2")):
            found = [*self._best(metric), *self._over_base(metric)]
            yield claims(f"{title} of {self.main}, over Shared-Bottom", found)
        mcfadden = [(TITLES[name], _spread(self.mean(name, self.main, "mcfadden", -1))) for name in self.names]
        head = ("", "1 - log loss / that of the base rate")
        yield Table(f"{self.main}: the other R2 (McFadden's), at the end", head, tuple(mcfadden))

    def _best(self, metric: str) -> Iterator[Claim]:
        paper = {name: values[metric] for name, values in table_3().items() if name in self.names}
        for at, part in enumerate(PARTS):
            printed = max(paper, key=lambda name: paper[name][at])
            means = {name: self.mean(name, self.main, metric, at).mean for name in paper}
            here = max(means, key=means.__getitem__)
            same = "the same" if here == printed else "another"
            yield Claim(f"best mean, {part}", TITLES[printed], TITLES[here], same)

    def _over_base(self, metric: str) -> Iterator[Claim]:
        paper = table_3()
        for name in self.names:
            if name in paper and name != BASE:
                for at, part in enumerate(PARTS):
                    printed = paper[name][metric][at] - paper[BASE][metric][at]
                    here = self.over(name, BASE, self.main, metric, at)
                    yield Claim(
                        f"{TITLES[name]}, {part}", signed(printed, 5), _difference(here), verdict(printed, here)
                    )

    def satisfaction(self) -> Iterator[Block]:
        """What the paper could only see live: its offline labels were too noisy."""
        lines = []
        for task in self.source.satisfaction:
            for name in self.names:
                rows = [_middle(self.values(name, task, end, -1)) for end in ("low", "high")]
                over = "" if name == BASE else _difference(self.over(name, BASE, task, "auc", -1))
                own = _spread(self.mean(name, task, "auc", -1))
                ends = f"{rows[0]:.3f} to {rows[1]:.3f}" if math.isfinite(sum(rows)) else "n/a"
                lines.append((task, TITLES[name], own, ends, over))
        counts = ", ".join(f"{task} {self._positives(task):,}" for task in self.source.satisfaction)
        weights = ", ".join(f"{task.name} {task.weight:g}" for task in self.source.schema.tasks)
        yield Text(
            f"Positive labels in the test rows: {counts}. One model's AUC of labels so few depends on the rows more "
            "than on the seed: the interval over users is that of one model when its users are drawn again (mean of "
            "the seeds' ends). Differences are paired by seed, on the same rows. The paper's live single-task model "
            "knew engagement alone: its lift of satisfaction is what a second objective does, not sharing. Losses are "
            f"weighed: {weights}."
        )
        head = ("task", "", "AUC at the end", "interval over users", "over Shared-Bottom")
        yield Table("Satisfaction", head, tuple(lines), words=2)
        yield claims("Live experiments: their sign against that of AUC here", list(self._live()))
        yield self._cost()

    def _positives(self, task: str) -> int:
        return int(self.values(BASE, task, "positives", -1)[0])

    def _live(self) -> Iterator[Claim]:
        for pair, kinds in table_4().items():
            name, base = pair.split(" over ")
            for kind, lift in kinds.items():
                for task in getattr(self.source, kind):
                    here = self.over(name, base, task, "auc", -1)
                    claim = f"{TITLES[name]} over {TITLES[base]}, {kind}: {task}"
                    yield Claim(claim, _lift(lift), _difference(here), verdict(lift.percent, here))

    def _cost(self) -> Table:
        seeds = len({row["seed"] for row in self.rows})
        sums = {
            name: [
                sum(row[key] for row in self.rows if row["structure"] == name) / seeds
                for key in ("parameters", "multiply_adds", "seconds")
            ]
            for name in self.names
        }
        lines = []
        for name, (parameters, multiply_adds, seconds) in sums.items():
            times = multiply_adds / sums[BASE][1]
            cells = (f"{parameters:,.0f}", f"{multiply_adds:,.0f}", f"{times:.2f}", f"{seconds:,.0f}")
            lines.append((TITLES[name], *cells))
        head = ("", "parameters", "multiply-adds a row", "of Shared-Bottom's", "seconds of a training")
        return Table("Cost; single-task models are one for each task, summed", head, tuple(lines))

    def curves(self) -> Iterator[tuple[str, Figure]]:
        from multigate.report.charts import curve_chart

        charts = []
        for task in self.source.engagement:
            points = []
            for name in self.names:
                for at, rows in enumerate(self.rows[0]["rows"]):
                    here = self.mean(name, task, "auc", at)
                    ends = {"low": here.low, "high": here.high, "dashed": name == "single_task"}
                    points.append({"series": TITLES[name], "x": rows, "value": here.mean, **ends})
            told = f"AUC of {task} by training rows, of {len(self.names)} structures"
            charts.append(curve_chart(task, told, points, "training rows", "AUC", points=True))
        yield f"{self.source.name}-engagement", Figure("Test AUC, means over seeds, 95 % intervals.", tuple(charts))

    def differences(self) -> Iterator[tuple[str, Figure]]:
        from multigate.report.charts import dot_chart

        charts = []
        for task in (*self.source.engagement, *self.source.satisfaction):
            found = {name: self.over(name, BASE, task, "auc", -1) for name in self.names if name != BASE}
            rows = [
                {"name": TITLES[name], "series": "AUC", "value": it.mean, "low": it.low, "high": it.high}
                for name, it in found.items()
            ]
            told = ", ".join(f"{TITLES[name]} {signed(it.mean)}" for name, it in found.items())
            charts.append(dot_chart(task, f"AUC of {task} over Shared-Bottom: {told}", rows, "AUC", at=0.0))
        says = "AUC at the end over that of Shared-Bottom, paired by seed, with 95 % intervals."
        yield f"{self.source.name}-differences", Figure(says, tuple(charts))


def verdict(paper: float, here: Summary) -> str:
    """Whether a difference has the sign that the paper's has."""
    if not here.clear:
        return "not clear"
    return "the same sign" if (here.mean > 0) == (paper > 0) else "the other sign"


def _spread(one: Summary) -> str:
    return plus_minus(one.mean, one.low, one.high)


def _difference(one: Summary) -> str:
    return f"{bracketed(one.mean, one.low, one.high, sign=True)}{' *' if one.clear else ''}"


def _lift(lift: Lift) -> str:
    return f"{lift.percent:+.2f} % ({lift.confidence} %)"


def _middle(values: Sequence[float]) -> float:
    return sum(values) / len(values)
