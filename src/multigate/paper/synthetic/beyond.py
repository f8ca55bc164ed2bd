"""Beyond the paper's figures: all cosines from -1 to 1, more structures, more tasks, and what gates do meanwhile."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from multigate.analysis.budget import matched
from multigate.analysis.intervals import Floats, resampled
from multigate.datasets.synthetic import Synthetic
from multigate.formats import bracketed
from multigate.paper.account import Account, Claim, claims
from multigate.paper.ledger import Row
from multigate.paper.synthetic.account import undecided
from multigate.paper.synthetic.cells import Cell, cell
from multigate.paper.synthetic.toy import Training
from multigate.report.blocks import Figure, Table, Text
from multigate.sharing import CGC, MMoE, OMoE, SharedBottom, SingleTask, Soft, Structure

AXIS = (-1.0, -0.9, -0.5, 0.0, 0.5, 0.9, 1.0)
"""Cosines of two tasks."""
MANY = (2, 4, 8, 16)
"""Numbers of tasks, of cosine ``AMONG`` each with each."""
AMONG = 0.5
ALONE, PAPER = "single_task", "mmoe"
TITLES = {
    "single_task": "single task",
    "shared_bottom": "Shared-Bottom",
    "soft": "soft (L2)",
    "omoe": "OMoE",
    "mmoe": "MMoE",
    "mmoe_top_k": "MMoE, top 2",
    "cgc": "CGC (PLE)",
}
FEW = ("single_task", "shared_bottom", "mmoe", "cgc")
"""Those that are trained on many tasks."""
Found = Mapping[Cell, Sequence[Row]]


def structures(experts: int, units: int) -> dict[str, Structure]:
    """Structures by name, of any width; ``cells`` makes them equally large."""
    hidden = (units,)
    return {
        "single_task": SingleTask(hidden=hidden),
        "shared_bottom": SharedBottom(hidden=hidden),
        "soft": Soft(hidden=hidden),
        "omoe": OMoE(experts=experts, hidden=hidden),
        "mmoe": MMoE(experts=experts, hidden=hidden),
        "mmoe_top_k": MMoE(experts=experts, hidden=hidden, gating="top_k", k=2),
        "cgc": CGC(experts=experts // 2 - 1, shared=2, hidden=hidden),
    }


def cells(mmoe: MMoE, training: Training) -> list[Cell]:
    """Cells of all cosines and of all numbers of tasks, every structure with the multiply-adds of ``mmoe``, within 2 %
    where whole widths allow it.

    ``training`` says how they are trained.
    """
    made = []
    for name, structure in structures(mmoe.experts, mmoe.hidden[0]).items():
        pairs = [training.data.with_(correlations=(cosine,)) for cosine in AXIS]
        sized = _sized(structure, mmoe, training, pairs[0])  # no cosine changes what two tasks cost
        made += [cell("axis", name, sized, training._replace(data=data)) for data in pairs]
        for tasks in MANY if name in FEW else ():
            data = training.data.with_(cosines=alike(tasks, AMONG))
            made.append(cell("tasks", name, _sized(structure, mmoe, training, data), training._replace(data=data)))
    return made


def alike(tasks: int, cosine: float) -> tuple[tuple[float, ...], ...]:
    """Cosines of tasks that are all equally related."""
    return tuple(tuple(1.0 if s == t else cosine for s in range(tasks)) for t in range(tasks))


def pilots(made: Sequence[Cell]) -> list[Cell]:
    """The cells whose learning rates all cells of their structure take: those of two tasks of cosine .5."""
    return [one for one in made if one.group == "axis" and one.cosine == AMONG]


def rates_of(made: Sequence[Cell], chosen: Mapping[str, float]) -> dict[str, float]:
    """The rate of every cell by its name, from those of the pilots by theirs."""
    of_structure = {one.structure: chosen[one.name] for one in pilots(made)}
    return {one.name: of_structure[one.structure] for one in made}


def _sized(structure: Structure, mmoe: MMoE, training: Training, data: Synthetic) -> Structure:
    def cost(one: Structure) -> int:
        return training._replace(structure=one, data=data).multiply_adds()

    return matched(structure, cost(mmoe), cost)


def tell(found: Found) -> list[Account]:
    """What relatedness, gates and the number of tasks have to do with one another."""
    axis = {(one.structure, one.cosine): rows for one, rows in found.items() if one.group == "axis"}
    tasks = {(one.structure, float(one.tasks)): rows for one, rows in found.items() if one.group == "tasks"}
    return [_axis(axis), _gates(axis), _tasks(tasks)]


By = Mapping[tuple[str, float], Sequence[Row]]
"""Rows by structure and by what is varied."""


def _axis(rows: By) -> Account:
    return Account(
        "beyond-cosines",
        "Beyond the paper: cosines from -1 to 1",
        (
            Text(
                "Two tasks, every structure with as many multiply-adds as MMoE, its learning rate chosen at cosine .5. "
                "Tasks of cosine -1 are functions of the same projection of the inputs, as those of 1 are."
            ),
            _table("Mean final loss of all tasks", "cosine", rows),
            claims("What sharing gains: loss of single task over that of the structure", list(_gains(rows, "cosine"))),
        ),
        lambda: _drawn("beyond_cosines", rows, _mean_losses, "cosine of weights", "final loss"),
    )


def _gates(rows: By) -> Account:
    gated = {key: those for key, those in rows.items() if those[0]["gate_divergence"] is not None}
    names = dict.fromkeys(name for name, _ in gated)
    head = ("structure", *(f"{cosine:g}" for cosine in AXIS))
    table = [(TITLES[name], *(_interval(_divergences(gated[name, at])) for at in AXIS)) for name in names]
    found = []
    for name in names:
        apart, alike_ = _divergences(gated[name, 0.0]), _divergences(gated[name, 1.0])
        low, high = resampled(lambda a, b: a.mean(1) - b.mean(1), apart, alike_)
        here = bracketed(float(np.mean(apart) - np.mean(alike_)), low, high, 3, sign=True)
        verdict = "holds" if low > 0 else "does not hold" if high < 0 else _open(low, apart)
        found.append(Claim(f"{TITLES[name]}: divergence at cosine 0 less that at 1", "above 0", here, verdict))
    return Account(
        "beyond-gates",
        "What gates do as tasks have less in common",
        (
            Text(
                "Jensen-Shannon divergence in bits between the gates of two tasks, row by row and averaged: 0 where "
                "both read the same mixture, 1 where they read different experts."
            ),
            Table("Mean over runs, with its 95 % interval", head, tuple(table)),
            claims("When tasks are little related the gates part", found),
        ),
        lambda: _drawn("beyond_gates", gated, _divergences, "cosine of weights", "divergence (bits)"),
    )


def _tasks(rows: By) -> Account:
    return Account(
        "beyond-tasks",
        "Beyond the paper: more tasks",
        (
            Text(f"Tasks of cosine {AMONG:g} each with each; every structure as large as the MMoE of as many tasks."),
            _table("Mean final loss of all tasks", "tasks", rows),
            claims("What sharing gains: loss of single task over that of the structure", list(_gains(rows, "tasks"))),
        ),
        lambda: _drawn("beyond_tasks", rows, _mean_losses, "tasks", "final loss"),
    )


def _table(caption: str, what: str, rows: By) -> Table:
    values = sorted({value for _, value in rows})
    names = dict.fromkeys(name for name, _ in rows)
    cells_ = [(TITLES[name], *(_interval(_mean_losses(rows[name, value])) for value in values)) for name in names]
    return Table(f"{caption}, by {what}; 95 % intervals", (what, *(f"{value:g}" for value in values)), tuple(cells_))


def _gains(rows: By, what: str) -> Iterator[Claim]:
    def ratio(alone: Floats, shared: Floats) -> Floats:
        return alone.mean(1) / shared.mean(1)

    for (name, value), those in rows.items():
        if name in ("shared_bottom", PAPER):
            alone, shared = _mean_losses(rows[ALONE, value]), _mean_losses(those)
            low, high = resampled(ratio, alone, shared)
            verdict = "gains" if low > 1 else "loses" if high < 1 else _open(low, alone)
            here = bracketed(float(np.mean(alone) / np.mean(shared)), low, high, 2)
            yield Claim(f"{TITLES[name]}, {what} {value:g}", "", here, verdict)


def _open(low: float, runs: Sequence[float]) -> str:
    """The verdict of an interval of these runs that decides nothing."""
    return "not clear" if math.isfinite(low) else undecided(runs)


def _mean_losses(rows: Sequence[Row]) -> list[float]:
    """Of each run, over its tasks."""
    return [float(np.mean(row["losses"])) for row in rows]


def _divergences(rows: Sequence[Row]) -> list[float]:
    return [row["gate_divergence"] for row in rows]


def _interval(values: Sequence[float]) -> str:
    low, high = resampled(lambda drawn: drawn.mean(1), values)
    return bracketed(float(np.mean(values)), low, high, 3)


def _drawn(name: str, rows: By, values: Any, x: str, y: str) -> Iterator[tuple[str, Figure]]:
    from multigate.report.charts import curve_chart

    points = []
    for (structure, value), those in rows.items():
        own = values(those)
        low, high = resampled(lambda drawn: drawn.mean(1), own)
        middle = float(np.mean(own))
        points.append(
            {"series": TITLES[structure], "x": value, "value": middle, "low": low, "high": high, "dashed": False}
        )
    said = "; ".join(f"{one['series']} at {one['x']:g}: {one['value']:.3f}" for one in points)
    yield name, Figure("Mean of the runs with its 95 % interval.", (curve_chart("", said, points, x, y, points=True),))
