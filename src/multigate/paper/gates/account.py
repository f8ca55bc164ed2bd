"""What the gates study shows, beside Figure 6 of the paper."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multigate.analysis.gates import LevelGates, divergences, entropy, level_gates
from multigate.analysis.intervals import Summary, paired_difference, summary
from multigate.formats import bracketed, listed, plus_minus, share, signed
from multigate.paper.account import Account, Claim, claims
from multigate.paper.gates.matching import Floats, agreement, estranged, match_runs
from multigate.paper.ledger import Row
from multigate.paper.published import figure_6
from multigate.report.blocks import Block, Chart, Figure, Table, Text
from multigate.sharing.structure import Level, all_read_all, experts_named

NULLS = 20
"""Renumberings behind what matching makes of runs that share in ways of their own."""
TITLES = {
    "census_1": "the census, income and marital status",
    "census_2": "the census, education and marital status",
    "kuairand": "KuaiRand",
}


class Gathered(NamedTuple):
    """The gates of N runs on the same rows."""

    data: str
    tasks: tuple[str, ...]
    rates: tuple[float, ...]
    """Of positive labels among the training rows."""
    gates: Floats
    """(N, R, T, E), experts numbered as they came."""
    levels: tuple[LevelGates, ...]
    """Statistics of each run; none of them minds the numbers of experts but ``mean``."""


def tell(rows: Sequence[Row]) -> list[Account]:
    """What the paper's gates say, and then those of each data set."""
    found = [gather([row for row in rows if row["data"] == data]) for data in dict.fromkeys(r["data"] for r in rows)]
    return [_paper(), *(_account(one) for one in found)]


def gather(rows: Sequence[Row]) -> Gathered:
    """The runs on one data set."""
    first = rows[0]
    tasks = tuple(first["tasks"])
    gates = np.stack([np.reshape(row["gates"], row["shape"]) for row in rows]).astype(np.float64)
    sources = experts_named(gates.shape[-1])
    level = Level(tasks, sources, all_read_all(tasks, sources))
    levels = tuple(level_gates(level, one.astype(np.float32)) for one in gates)
    return Gathered(first["data"], tasks, tuple(first["label_rates"]), gates, levels)


def evenness(weights: NDArray[np.floating]) -> Floats:
    """Entropy of distributions (..., E) over the largest there can be: 0 one expert alone, 1 all alike."""
    found: Floats = entropy(weights) / np.log(weights.shape[-1])
    return found


def rank_correlation(rates: Sequence[float], values: Sequence[float]) -> float:
    """Spearman's, of label rates and something of each task; NaN of tasks that do not differ."""
    from scipy.stats import rankdata

    one, other = (rankdata(each) - (len(rates) + 1) / 2 for each in (rates, values))
    norm = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / norm) if norm > 0 else float("nan")


def _paper() -> Account:
    found = figure_6()
    focus = {task: float(evenness(np.array(weights))) for task, weights in found.items()}
    head = ("task", *(f"expert {at + 1}" for at in range(4)), "evenness")
    rows = tuple((task, *(f"{one:.3f}" for one in weights), f"{focus[task]:.2f}") for task, weights in found.items())
    return Account(
        "figure-6",
        "Figure 6: mean gate weights in the paper",
        (
            Text(
                "One model, as far as the paper tells. Its gate of satisfaction, the task with the sparser labels, is "
                "more focused on one expert. Evenness is the entropy of the mean weights over that of even ones: 0 is "
                f"one expert alone, 1 all alike. The two gates are {_paper_divergence():.3f} bits apart "
                "(Jensen-Shannon divergence)."
            ),
            Table("As read off the figure", head, rows),
        ),
        _draw_paper,
    )


def _paper_divergence() -> float:
    return float(divergences(np.array([list(figure_6().values())]))[0, 1])


def _account(found: Gathered) -> Account:
    matched = match_runs(found.gates).gates
    return Account(
        found.data.replace("_", "-"),
        f"Gates on {TITLES.get(found.data, found.data)}",
        tuple(_told(found, matched)),
        lambda: _draw(found, matched),
    )


def _told(found: Gathered, matched: Floats) -> Iterator[Block]:
    runs, rows, _, experts = found.gates.shape
    yield Text(
        f"{runs} runs of MMoE with {experts} experts, on the same {rows:,} test rows. Expert 1 of one run has nothing "
        "to do with expert 1 of another, so experts are first matched between runs (least squared difference of the "
        "gates, row by row), then averaged. ± is half the 95 % interval of a mean over runs."
    )
    means = matched.mean(1)  # (N, T, E)
    lines = [
        (task, share(rate), *(_spread(summary(means[:, at, expert])) for expert in range(experts)))
        for at, (task, rate) in enumerate(zip(found.tasks, found.rates, strict=True))
    ]
    head = ("task", "positive labels", *(f"expert {at + 1}" for at in range(experts)))
    yield Table("Mean gate weights, experts matched between runs", head, tuple(lines))
    yield _focus(found, matched)
    yield Text(
        "Agreement is the part of what gates have beyond even weights that is in their mean over runs: 1 where runs "
        "are alike, 1 / runs where they have nothing in common. Matching always raises it: how far is seen by runs "
        f"whose experts are renumbered task by task ({NULLS} times), so that no way of sharing is common to them."
    )
    yield claims("Figure 6's findings here", [*_claims(found, matched), _agreement(found, matched)])


def _focus(found: Gathered, matched: Floats) -> Table:
    lines = []
    for at, task in enumerate(found.tasks):
        own, by_row = (summary([getattr(one, name)[at] for one in found.levels]) for name in ("entropy", "row_entropy"))
        largest = summary([max(one.mean[at]) for one in found.levels])
        together = (evenness(gates.mean((0, 1))[at]) for gates in (matched, found.gates))
        lines.append((task, *map(_spread, (own, by_row, largest)), *(f"{float(one):.2f}" for one in together)))
    head = (
        "task",
        "a run's mean weights",
        "single rows",
        "largest mean weight",
        "matched average",
        "unmatched average",
    )
    return Table(
        "Evenness (0 one expert alone, 1 all alike), and the weight of each run's favourite", head, tuple(lines)
    )


def _agreement(found: Gathered, matched: Floats) -> Claim:
    """Whether runs divide the tasks among experts in one way, beyond what matching makes of any runs."""
    chance = [agreement(match_runs(estranged(found.gates, seed)).gates) for seed in range(NULLS)]
    here = agreement(matched)
    return Claim(
        "runs share in one way: agreement once matched",
        "n/a",
        f"{here:.2f}; as numbered {agreement(found.gates):.2f}; renumbered by task and matched {np.mean(chance):.2f}, "
        f"at most {max(chance):.2f}",
        "they do" if here > max(chance) else "no more than by chance",
    )


def _claims(found: Gathered, matched: Floats) -> Iterator[Claim]:
    focus = {task: float(evenness(np.array(weights))) for task, weights in figure_6().items()}
    rare, frequent = int(np.argmin(found.rates)), int(np.argmax(found.rates))
    own = np.array([one.entropy for one in found.levels])  # (N, T)
    here = paired_difference(own[:, rare].tolist(), own[:, frequent].tolist())
    yield Claim(
        f"the sparser task's gate is more focused: evenness of {found.tasks[rare]} less {found.tasks[frequent]}'s",
        signed(focus["satisfaction"] - focus["engagement"], 2),
        _interval(here),
        _sign(here, -1),
    )
    by_row = np.array([one.row_entropy for one in found.levels])
    here = paired_difference(by_row[:, rare].tolist(), by_row[:, frequent].tolist())
    yield Claim("the same of single rows", "n/a", _interval(here), _sign(here, -1))
    if len(found.tasks) > 2:
        here = summary([rank_correlation(found.rates, one) for one in own])
        yield Claim("rank correlation of label rate and evenness, over tasks", "+1", _interval(here), _sign(here, 1))
    for name, claim, paper in (
        ("divergence", "tasks read different mixtures: divergence of mean weights, bits", f"{_paper_divergence():.3f}"),
        ("row_divergence", "the same of single rows", "n/a"),
    ):
        pairs = list(combinations(range(len(found.tasks)), 2))
        here = summary([float(np.mean([getattr(one, name)[i][j] for i, j in pairs])) for one in found.levels])
        yield Claim(claim, paper, bracketed(here.mean, here.low, here.high), "")
    within = float(own.mean())
    apart, together = (float(evenness(gates.mean((0, 1))).mean()) for gates in (found.gates, matched))
    yield Claim(
        "averaged without matching, gates look even: evenness of the average, mean over tasks",
        "n/a",
        f"{apart:.2f} unmatched, {together:.2f} matched, {within:.2f} within a run",
        "they do" if apart > max(together, within) else "they do not",
    )


def _sign(one: Summary, paper: int) -> str:
    if not one.clear:
        return "not clear"
    return "as in the paper" if one.mean * paper > 0 else "the other way"


def _draw(found: Gathered, matched: Floats) -> Iterator[tuple[str, Figure]]:
    from multigate.report.charts import gate_chart

    means = matched.mean(1)  # (N, T, E)
    spread = np.quantile(means, (0.05, 0.25, 0.5, 0.75, 0.95), axis=0)  # (5, T, E)
    sources = [f"expert {at + 1}" for at in range(means.shape[-1])]
    charts: list[Chart] = []
    for at, task in enumerate(found.tasks):
        told = ", ".join(f"{name} {one:.2f}" for name, one in zip(sources, means[:, at].mean(0), strict=True))
        quantiles = spread[:, at].T.tolist()
        mean = means[:, at].mean(0).tolist()
        ends = (0.0, float(spread[-1].max()))
        charts.append(gate_chart(task, f"Mean gate weights of {task}: {told}", sources, mean, quantiles, ends, at))
    says = (
        "Mean gate weights over the runs, experts matched (bar), the middle half of the runs (thick line) and 5 to "
        f"95 % of them (thin line), of {listed(found.tasks)}."
    )
    yield f"gates-{found.data}", Figure(says, tuple(charts))


def _draw_paper() -> Iterator[tuple[str, Figure]]:
    from multigate.report.charts import gate_chart

    charts = []
    for at, (task, weights) in enumerate(figure_6().items()):
        sources = [f"expert {expert + 1}" for expert in range(len(weights))]
        told = ", ".join(f"{name} {one:.2f}" for name, one in zip(sources, weights, strict=True))
        quantiles = [[one] * 5 for one in weights]
        charts.append(gate_chart(task, f"Paper, {task}: {told}", sources, weights, quantiles, (0.0, 0.8), at))
    yield "figure6-paper", Figure("Figure 6 of the paper, as read off.", tuple(charts))


def _spread(one: Summary) -> str:
    return plus_minus(one.mean, one.low, one.high, 2)


def _interval(one: Summary) -> str:
    return f"{bracketed(one.mean, one.low, one.high, 2, sign=True)}{' *' if one.clear else ''}"
