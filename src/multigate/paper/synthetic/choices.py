"""What the paper left open, one choice at a time: how much of a difference to it each can explain."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import pi
from typing import Any

import numpy as np

from multigate.analysis.intervals import resampled
from multigate.formats import bracketed
from multigate.paper.account import Account
from multigate.paper.ledger import Row
from multigate.paper.published import figure_4
from multigate.paper.synthetic.account import FAILED, TITLES, failed, final_counts, quantile_of, reached
from multigate.paper.synthetic.cells import Cell, cell
from multigate.paper.synthetic.toy import TICK, Training
from multigate.report.blocks import Table, Text
from multigate.sharing import Structure

COSINE = 0.5
EARLY = 500
"""Steps after which a loss is told beside the final one."""
RATES = (0.001, 0.01)
"""Each is told of by itself: which one a run was trained at is open too."""
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "as here": {},
    "biases": {"biases": True},
    "batch 128": {"batch": 128},
    "batch 256": {"batch": 256},
    "labels as they come": {"standardise": False},
    "10,000 rows, again and again": {"pool": 10_000},
    "weights as in TensorFlow": {"glorot": True},
    "m = 4, alpha = 2 pi i": {
        "scale": 0.305,
        "frequencies": tuple(2 * pi * i for i in range(1, 5)),
        "phases": (0.0,) * 4,
    },
    "m = 8, alpha = i": {
        "scale": 0.916,
        "frequencies": tuple(float(i) for i in range(1, 9)),
        "phases": tuple(pi * i / 2 for i in range(1, 9)),
    },
}
"""What is changed, of the training or of the generator. The last two meet Figure 2 as well as the default does."""
Found = Mapping[Cell, Sequence[Row]]


def cells(structures: Mapping[str, Structure], training: Training) -> list[Cell]:
    """Every choice with every structure, at cosine .5."""
    made = []
    for choice, changes in OTHERS.items():
        ours = {name: value for name, value in changes.items() if name in Training._fields}
        data = training.data.with_(
            correlations=(COSINE,), **{name: value for name, value in changes.items() if name not in ours}
        )
        for name, structure in structures.items():
            made.append(cell(choice, name, structure, training._replace(data=data, **ours)))
    return made


def tell(found: Found) -> list[Account]:
    """A line for each choice, rate and structure, below what the paper has."""
    names = list(dict.fromkeys(one.structure for one in found))
    steps = int(next(iter(found.values()))[0]["steps"])
    rows = [("the paper", "", *_flat(_printed(name, steps) for name in names))]
    for choice in OTHERS:
        those = {one.structure: runs for one, runs in found.items() if one.group == choice}
        for rate in RATES:
            own = {name: [row for row in runs if row["learning_rate"] == rate] for name, runs in those.items()}
            rows.append((choice, f"{rate:g}", *_flat(_ours(own[name]) for name in names)))
    of_each = [(f"{TITLES[name]}: at {EARLY}", "final", "median", f"from {FAILED:g} on") for name in names]
    head = ("choice", "learning rate", *_flat(of_each))
    return [
        Account(
            "choices",
            "What the paper left open",
            (
                Text(
                    f"Loss of one task at cosine {COSINE:g}: the mean over runs around step {EARLY}; the mean of final "
                    f"losses with its 95 % interval, their median, and the share of runs that end at {FAILED:g} or "
                    "more. One choice differs from ours in each line. The paper's final loss is that after "
                    f"{steps:,} steps, or at the last point of its curve before."
                ),
                Table("Choices, one at a time", head, tuple(rows), words=2),
            ),
        )
    ]


def _printed(name: str, steps: int) -> tuple[str, ...]:
    """The paper's losses after so many steps: where its runs are longer nothing is known of all of them there."""
    curve = figure_4(name, COSINE)
    early = f"{dict(curve)[EARLY]:.3f}" if _pass_early(steps) else ""
    final, counts = reached(curve, steps), final_counts(name, COSINE, steps)
    told = ("", "") if counts is None else (f"{quantile_of(counts, 0.5):.3f}", f"{failed(counts):.0%}")
    return early, "" if final is None else f"{final:.3f}", *told


def _pass_early(steps: int) -> bool:
    """Whether runs of so many steps have a tick on either side of ``EARLY``."""
    return steps > EARLY


def _ours(rows: Sequence[Row]) -> tuple[str, ...]:
    losses = np.array([row["loss"] for row in rows])
    if not np.isfinite(losses).all():
        return "", "diverged", "", ""
    tick = EARLY // TICK
    curves = np.array([row["curve"] for row in rows])
    early = f"{curves[:, tick - 1 : tick + 1].mean():.3f}" if _pass_early(int(rows[0]["steps"])) else ""
    low, high = resampled(lambda drawn: drawn.mean(1), losses.tolist())
    final = bracketed(losses.mean(), low, high, 3)
    return early, final, f"{np.median(losses):.3f}", f"{(losses >= FAILED).mean():.0%}"


def _flat(parts: Iterable[tuple[str, ...]]) -> Iterator[str]:
    return (one for part in parts for one in part)
