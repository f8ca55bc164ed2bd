"""The page about which tasks belong together: what to do, what each pair gains, and the evidence as heat maps."""

from collections.abc import Callable, Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from multigate.analysis.relations import Estimate, Gain, Lookahead, Pair, Relations, Skill
from multigate.folders import at_home
from multigate.formats import interval, listed, number, signed
from multigate.report.blocks import Block, Figure, Listing, Table, Text
from multigate.report.page import Chapter, render, require_extra
from multigate.writing import write_text

Value = Callable[[Pair], float | None]


def write_relations(relations: Relations, out: str | Path) -> Path:
    """Write one HTML page about relations that opens offline, and return where it is.

    Raises ``MultigateError`` where the extra ``report`` is not installed, ``RunError`` where the disk refuses.
    """
    require_extra()
    target = at_home(out)
    chapters = [
        Chapter("advice", "What to do", (("", tuple(_advice(relations))),)),
        Chapter("gains", "What sharing gains", (("", tuple(_gains(relations))),)),
        Chapter("evidence", "How tasks relate", (("", tuple(_evidence(relations))),)),
        Chapter("skills", "What can be learnt at all", (("", tuple(_skills(relations))),)),
    ]
    about = f"multigate {version('multigate')}, {datetime.now():%d %B %Y}; {relations.rows}, {_seeds(relations)}."
    write_text(target, render(f"Which tasks belong together: {listed(relations.tasks)}", about, chapters))
    return target


def _advice(relations: Relations) -> Iterator[Block]:
    told = (
        "Measured gains on validation rows decide, where their intervals leave out 0; else whether two tasks read the "
        "same directions of x."
        if relations.measured
        else "No pair was trained: this is a guess from what each task reads of x."
    )
    yield Text(f"Share: one network for both. Share apart: experts that each task weighs by itself. {told}")
    yield Listing(tuple((f"{listed(one.tasks, most=len(one.tasks))}:", one.advice) for one in relations.groups))
    yield Table(
        "Every pair, the most related first",
        ("pair", "advice", "with", "why"),
        tuple((" + ".join(one.tasks), one.advice, one.structure or "", one.why) for one in relations.pairs),
        words=4,
    )


def _gains(relations: Relations) -> Iterator[Block]:
    from multigate.report.charts import dot_chart

    gains = [(pair, one) for pair in relations.pairs for one in pair.gains]
    if not gains:
        yield Text("Pairs were not trained, so that what sharing gains is not known.")
        return
    clear = sum(one.gain.side != 0 for _, one in gains)
    yield Text(
        "A model of two tasks against the best model of each task alone, paired by seed. "
        + (
            f"{clear} of {len(gains)} intervals leave out 0; about {0.05 * len(gains):.0f} would by chance alone."
            if relations.seeds > 1
            else "Of one seed there are no intervals: what is a gain and what is chance cannot be told apart."
        )
    )
    charts = []
    for metric in dict.fromkeys(one.metric for _, one in gains):
        rows = [
            {
                "name": f"{one.task}, with {_partner(pair, one)}",
                "series": one.structure,
                "value": one.gain.mean,
                "low": one.gain.mean if one.gain.low is None else one.gain.low,
                "high": one.gain.mean if one.gain.high is None else one.gain.high,
                "clear": one.gain.side != 0,
            }
            for pair, one in gains
            if one.metric == metric
        ]
        described = f"Gains in {metric} of each task from each partner, by structure"
        charts.append(
            dot_chart(f"{metric}: gain over a model of its own", described, rows, metric, at=0.0, hollow=True)
        )
    several = relations.seeds > 1
    drawn = "Means over seeds and their intervals; a dot is filled where the interval leaves out 0."
    yield Figure(drawn if several else "Dots are of one seed.", (*charts,), True)
    yield Table(
        f"The same as numbers{'; * the interval leaves out 0' if several else ''}",
        ("task", "with", "structure", "metric", "alone with", "alone", "gain", "interval"),
        tuple(
            (*_who(pair, one), one.metric, one.alone_with, number(one.alone), *_estimated(one.gain))
            for pair, one in gains
        ),
        words=5,
    )


def _evidence(relations: Relations) -> Iterator[Block]:
    yield from _map(
        relations,
        "Overlap: whether networks of their own read the same directions of x. 1: the same; 0: nothing in common. It "
        "ranks pairs best where the truth is known.",
        lambda pair: _mean(pair.overlap),
        own=1.0,
    )
    yield from _map(
        relations,
        "Correlation of labels on training rows. Orange: one is high where the other is low, which is no conflict: "
        "towers turn signs.",
        lambda pair: pair.labels,
        own=1.0,
    )
    yield from _map(
        relations,
        "Cosine of the gradients of two tasks' losses at x, over a training of all tasks. Below 0 (orange) a step for "
        "one is a step back for the other.",
        lambda pair: _mean(pair.gradients),
        own=1.0,
    )
    ways = [one for pair in relations.pairs for one in pair.lookahead if one is not None]
    largest = max((abs(one.mean) for one in ways if one.clear), default=0.0)
    if ways and not largest:
        yield Text(
            "Lookahead (TAG), what a step for one task does to the loss of another, cannot be told from 0 for any "
            "pair: it is less than two standard errors over the looks at the training."
        )
    if largest:
        yield from _map(
            relations,
            f"Lookahead (TAG): what a step for the task of a row does to the loss of the task of a column, as a share "
            f"of the largest, {largest:.2g} of the loss. Above 0 it helps; n/a where it cannot be told from 0, being "
            "less than two standard errors over the looks at the training.",
            lambda pair: _share(pair.lookahead[0], largest),
            lambda pair: _share(pair.lookahead[1], largest),
        )
    if any(pair.gates is not None for pair in relations.pairs):
        yield from _map(
            relations,
            "How far the tasks' gates are apart by row in a model of all tasks: Jensen-Shannon divergence in bits. "
            "Gates may be alike in tasks that have little in common, and the other way round.",
            lambda pair: _mean(pair.gates),
            own=0.0,
            is_signed=False,
            digits=3,
        )


def _map(
    relations: Relations,
    says: str,
    value: Value,
    back: Value | None = None,
    *,
    own: float | None = None,
    is_signed: bool = True,
    digits: int = 2,
) -> Iterator[Block]:
    """A heat map of what every pair has; ``back`` is that of the second task towards the first."""
    from multigate.report.charts import heat_chart

    tasks = relations.tasks
    values = [[own for _ in tasks] for _ in tasks]
    for pair in relations.pairs:
        i, j = (tasks.index(name) for name in pair.tasks)
        values[i][j], values[j][i] = value(pair), (back or value)(pair)
    chart = heat_chart("", says, tasks, tasks, values, signed=is_signed, digits=digits)
    yield Figure(says, (chart,), wide=True)


def _skills(relations: Relations) -> Iterator[Block]:
    yield Text(
        "The best of a model of its own, networks side by side and one model of all tasks. A task that is not three "
        "standard errors (over rows) above chance has nothing to share."
    )
    rows = tuple(
        (one.task, one.metric, *map(number, (one.value, one.chance, one.error)), _learnt(one))
        for one in relations.skills
    )
    yield Table("Tasks", ("task", "metric", "value", "chance", "standard error", ""), rows, words=2)


def _learnt(one: Skill) -> str:
    if one.unscored:
        return f"cannot be scored: {one.unscored}"
    return "" if one.learnt else "nothing learnt"


def _who(pair: Pair, gain: Gain) -> tuple[str, str, str]:
    return gain.task, _partner(pair, gain), gain.structure


def _partner(pair: Pair, gain: Gain) -> str:
    return pair.tasks[1] if gain.task == pair.tasks[0] else pair.tasks[0]


def _estimated(one: Estimate) -> tuple[str, str]:
    if one.low is None or one.high is None:
        return signed(one.mean), ""
    return signed(one.mean), interval(one.low, one.high) + (" *" if one.side else "")


def _mean(one: Estimate | None) -> float | None:
    return None if one is None else one.mean


def _share(one: Lookahead | None, whole: float) -> float | None:
    return one.mean / whole if one is not None and one.clear else None


def _seeds(relations: Relations) -> str:
    return f"{relations.seeds} seed{'s' if relations.seeds > 1 else ''}"
