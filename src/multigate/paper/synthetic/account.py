"""What the synthetic experiments show, beside Figures 2 to 5 of the paper."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from multigate.analysis.intervals import Floats, resampled, share_interval, summary
from multigate.datasets.synthetic import Synthetic, label_correlation
from multigate.formats import bracketed
from multigate.metrics import FEWEST
from multigate.paper.account import Account, Claim, claims
from multigate.paper.ledger import Row
from multigate.paper.published import BIN, Curve, figure_2, figure_3, figure_4, figure_5
from multigate.paper.synthetic.toy import TICK
from multigate.report.blocks import Chart, Figure, Table, Text

TITLES = {
    "small_bottom": "Shared-Bottom (16)",
    "shared_bottom": "Shared-Bottom",
    "omoe": "OMoE",
    "mmoe": "MMoE",
}
FAILED = 0.4
"""Final loss from which on a run has failed: the second mode of Figure 5."""
TOO_FEW = "too few runs"
"""The verdict where so few runs have no interval ..."""
DIVERGED = "a run diverged"
"""... and where enough have none, for the loss of one of them is no number."""
Runs = Mapping[tuple[str, float], Sequence[Row]]
"""Rows of the runs of a structure, by its name and the cosine of its tasks."""


def tell(data: Synthetic, trials: Sequence[Row], runs: Runs) -> list[Account]:
    """Figures 2 to 5."""
    return [_figure_2(data, trials), _figure_3(runs), _figure_4(runs), _figure_5(runs)]


def _figure_2(data: Synthetic, trials: Sequence[Row]) -> Account:
    paper = figure_2()
    own = {p: np.array([row["label_correlation"] for row in trials if row["cosine"] == p]) for p in paper.cosines}
    found = []
    for cosine, mean, low, high in zip(*paper, strict=True):
        here, exact = own[cosine], label_correlation(data, cosine)
        found.append(
            Claim(
                f"cosine {cosine:g}",
                bracketed(mean, low, high),
                f"{here.mean():.4f} ± {2 * here.std(ddof=1):.4f} (closed form {exact:.4f})",
                "within its bars" if low <= here.mean() <= high else "outside its bars",
            )
        )

    def draw() -> Iterator[tuple[str, Figure]]:
        from multigate.report.charts import curve_chart

        rows = [
            {"series": "paper", "x": p, "value": mean, "low": low, "high": high, "dashed": True}
            for p, mean, low, high in zip(*paper, strict=True)
        ]
        for p, here in own.items():
            mean, spread = here.mean(), 2 * here.std(ddof=1)
            rows.append(
                {"series": "here", "x": p, "value": mean, "low": mean - spread, "high": mean + spread, "dashed": False}
            )
        chart = curve_chart(
            "", _said("label correlation", found), rows, "cosine of weights", "label correlation", points=True
        )
        yield "figure2", Figure("Mean of the trials, with bars of two standard deviations.", (chart,))

    return Account(
        "figure-2",
        "Figure 2: how correlated labels are",
        (
            Text("Two tasks of cosine p have labels that are correlated far less than p."),
            claims("Correlation of the labels: mean and two standard deviations of a trial", found),
        ),
        draw,
    )


def _figure_3(runs: Runs) -> Account:
    shown = {cosine: runs["small_bottom", cosine] for name, cosine in runs if name == "small_bottom"}
    rows = [
        (
            f"{cosine:g}",
            _loss(reached(figure_3(cosine), _steps(those))),
            _mean(_losses(those)),
            f"{those[0]['learning_rate']:g}",
        )
        for cosine, those in shown.items()
    ]

    def draw() -> Iterator[tuple[str, Figure]]:
        from multigate.report.charts import curve_chart

        points = []
        for cosine, those in shown.items():
            points += _curve(f"cosine {cosine:g}", those)
            points += _printed(f"cosine {cosine:g}", figure_3(cosine), _steps(those))
        chart = curve_chart("", "Loss by step of the Shared-Bottom model of 16 units", points, "step", "loss")
        yield "figure3", Figure(f"Mean loss of one task, with its 95 % interval. {DASHED}", (chart,), wide=True)

    return Account(
        "figure-3",
        "Figure 3: a shared bottom and how related its tasks are",
        (
            Text("A Shared-Bottom model of 16 units; in the paper its loss grows as its tasks are less related."),
            Table(
                _caption(runs),
                ("cosine", "paper", "here", "learning rate"),
                tuple(rows),
            ),
            claims("Orderings", list(_bottom_claims(shown))),
        ),
        draw,
    )


def _bottom_claims(shown: Mapping[float, Sequence[Row]]) -> Iterator[Claim]:
    pairs = [(0.5, 0.9), (0.9, 1.0)]
    for less, more in pairs:
        if less in shown and more in shown:
            paper = [reached(figure_3(cosine), _steps(shown[cosine])) for cosine in (less, more)]
            yield _ratio(f"loss at cosine {less:g} / {more:g}", paper, _losses(shown[less]), _losses(shown[more]))


def _figure_4(runs: Runs) -> Account:
    cosines = sorted({cosine for _, cosine in runs})
    rows, found = [], []
    for cosine in cosines:
        own = {name: _losses(runs[name, cosine]) for name in MODELS}
        paper = {name: reached(figure_4(name, cosine), _steps(runs[name, cosine])) for name in MODELS}
        for name, losses in own.items():
            rate = f"{runs[name, cosine][0]['learning_rate']:g}"
            rows.append((f"{cosine:g}", TITLES[name], _loss(paper[name]), _mean(losses), rate))
        for above, below in (("shared_bottom", "omoe"), ("omoe", "mmoe"), ("shared_bottom", "mmoe")):
            words = f"{TITLES[above]} / {TITLES[below]} at {cosine:g}"
            found.append(_ratio(words, (paper[above], paper[below]), own[above], own[below]))

    def draw() -> Iterator[tuple[str, Figure]]:
        from multigate.report.charts import curve_chart

        charts = []
        for cosine in cosines:
            points = []
            for name in MODELS:
                points += _curve(TITLES[name], runs[name, cosine])
                points += _printed(TITLES[name], figure_4(name, cosine), _steps(runs[name, cosine]))
            charts.append(
                curve_chart(f"cosine {cosine:g}", f"Loss by step at cosine {cosine:g}", points, "step", "loss")
            )
        yield "figure4", Figure(f"Mean loss of one task, with its 95 % interval. {DASHED}", tuple(charts))

    head = ("cosine", "model", "paper", "here", "learning rate")
    return Account(
        "figure-4",
        "Figure 4: Shared-Bottom, OMoE and MMoE",
        (
            Table(_caption(runs), head, tuple(rows), words=2),
            claims("Ratios of mean final losses", found),
        ),
        draw,
    )


def _figure_5(runs: Runs) -> Account:
    cosines = sorted({cosine for _, cosine in runs})
    rows, compared = [], True
    for name in MODELS:
        for cosine in cosines:
            those = runs[name, cosine]
            counts = final_counts(name, cosine, _steps(those))
            rows.append((TITLES[name], f"{cosine:g}", *_spread(_losses(those), counts)))
            compared = compared and counts is not None

    def draw() -> Iterator[tuple[str, Figure]]:
        yield (
            "figure5",
            Figure(
                f"Final losses of the runs: bars here{', lines in the paper' if compared else ''}; those above .7 are "
                "in the last bin.",
                tuple(_histogram(name, cosine, runs[name, cosine]) for name in MODELS for cosine in cosines),
            ),
        )

    head = ("model", "cosine", "median", "paper", "90 % below", "paper", f"share from {FAILED:g} on", "paper")
    return Account(
        "figure-5",
        "Figure 5: how much luck there is in a run",
        (
            *(() if compared else (Text("These runs are shorter than the paper's, whose final losses are not told."),)),
            Table(
                "Final losses of one task; 95 % intervals, by the bootstrap and of shares by Wilson's score",
                head,
                tuple(rows),
                words=1,
            ),
        ),
        draw,
    )


MODELS = ("shared_bottom", "omoe", "mmoe")
DASHED = "The dashed lines are the paper's."


def _spread(own: Sequence[float], counts: Sequence[int] | None) -> Iterator[str]:
    for share in (0.5, 0.9):
        low, high = resampled(lambda drawn, share=share: np.quantile(drawn, share, axis=1), own)
        yield bracketed(np.quantile(own, share), low, high, 3)
        yield "" if counts is None else f"{quantile_of(counts, share):.3f}"
    share = float(np.mean(~(np.array(own) < FAILED)))  # a loss that is no number has failed as well
    # draws of runs that all end well end well: the bootstrap has no interval for a share of 0
    (low,), (high,) = share_interval(np.array([share]), np.array([float(len(own))]))
    yield f"{share:.1%}" + (f" [{low:.1%}, {high:.1%}]" if len(own) >= FEWEST else "")
    yield "" if counts is None else f"{failed(counts):.1%}"


def quantile_of(counts: Sequence[int], share: float) -> float:
    """The quantile of a histogram from 0 on in bins of ``BIN``, its counts evenly spread within a bin."""
    total = np.concatenate([[0], np.cumsum(counts)])
    return float(np.interp(share * total[-1], total, BIN * np.arange(len(total))))


def failed(counts: Sequence[int]) -> float:
    """The share of such a histogram from ``FAILED`` on."""
    return sum(counts[round(FAILED / BIN) :]) / sum(counts)


def reached(curve: Curve, steps: int) -> float | None:
    """The paper's loss after so many steps, or at the last of its points before; None where it has none so early."""
    return next((loss for step, loss in reversed(curve) if step <= steps), None)


def final_counts(name: str, cosine: float, steps: int) -> list[int] | None:
    """The paper's histogram of final losses; None beside runs that are shorter than its own."""
    return figure_5(name, cosine) if steps >= figure_4(name, cosine)[-1][0] else None


def _histogram(name: str, cosine: float, those: Sequence[Row]) -> Chart:
    from multigate.report.charts import histogram_chart

    bins, counts = len(figure_5(name, cosine)), final_counts(name, cosine, _steps(those))
    own = np.fmin(np.array(_losses(those)) / BIN, bins - 1).astype(int)
    series = {"here": (np.bincount(own, minlength=bins) / len(those)).tolist()}
    if counts is not None:
        series["paper"] = (np.array(counts) / sum(counts)).tolist()
    title = f"{TITLES[name]}, cosine {cosine:g}"
    return histogram_chart(title, f"Final losses of {title}", series, BIN, "final loss", "share of runs")


def _losses(rows: Iterable[Row]) -> list[float]:
    return [row["loss"] for row in rows]


def _steps(rows: Sequence[Row]) -> int:
    return int(rows[0]["steps"])


def _curve(series: str, rows: Sequence[Row]) -> list[dict[str, object]]:
    """Mean loss at every tick with its interval."""
    curves = np.array([row["curve"] for row in rows])  # (runs, ticks)
    return [
        {"series": series, "x": (at + 1) * TICK, "value": it.mean, "low": it.low, "high": it.high, "dashed": False}
        for at, it in enumerate(summary(tick.tolist()) for tick in curves.T)
    ]


def _printed(series: str, curve: Curve, last: int) -> list[dict[str, object]]:
    return [
        {"series": f"{series}, paper", "like": series, "x": step, "value": loss, "low": None, "dashed": True}
        for step, loss in curve
        if 0 < step <= last
    ]


def _caption(runs: Runs) -> str:
    steps = _steps(next(iter(runs.values())))
    return (
        f"Mean loss of one task after {steps:,} steps, with its 95 % interval; the paper's there, or at the last point "
        "of its curve before"
    )


def _mean(losses: Sequence[float]) -> str:
    low, high = resampled(lambda drawn: drawn.mean(1), losses)
    return bracketed(float(np.mean(losses)), low, high)


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _ratio(words: str, papers: Sequence[float | None], above: Sequence[float], below: Sequence[float]) -> Claim:
    """A ratio of mean losses, beside that of the ``papers`` two: reproduced where that is in the interval, in shape
    where the interval is on the same side of 1, open where so few runs have none."""

    def ratio(first: Floats, second: Floats) -> Floats:
        return first.mean(1) / second.mean(1)

    low, high = resampled(ratio, above, below)
    here = bracketed(float(np.mean(above) / np.mean(below)), low, high, 2)
    first, second = papers
    if first is None or second is None:
        return Claim(words, "", here, "not compared")
    paper = first / second
    if low <= paper <= high:
        verdict = "reproduced"
    elif not math.isfinite(low):
        verdict = undecided(above)
    elif (low > 1) == (paper > 1) and (low > 1 or high < 1):
        verdict = "in shape"
    else:
        verdict = "not reproduced"
    return Claim(words, f"{paper:.2f}", here, verdict)


def undecided(runs: Sequence[float]) -> str:
    """The verdict where these runs have no interval."""
    return TOO_FEW if len(runs) < FEWEST else DIVERGED


def _said(what: str, found: Sequence[Claim]) -> str:
    return f"{what}: {'; '.join(f'{one.claim}: {one.here}' for one in found)}"
