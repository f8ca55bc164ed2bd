"""Trainings side by side: what one is known by, and its line in a table with the limit of what it computes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import multigate as mg
import roofline
from quiet import Taken, spread
from steps import prepared_rows

HEAD = (
    "", "rows/s", "ms a step", "limit, ms", "share", "bytes, ms", "x tutorial", "AUC", "M mult-adds a row", "s from raw"
)  # fmt: skip
FOOT = (
    "Limit and share are of the matmuls alone, were every row multiplied (what first layers make of features with few "
    "values is looked up), at the best rate just before and after a run, for the machine's pace moves; bytes: of "
    "optimiser and embeddings, were nothing in a cache; "
    "s from raw: seconds from the raw file to the end of the epoch."
)


class Trained(NamedTuple):
    """One training: its speed, the test AUC of its tasks, and the work of a step where it is counted."""

    rows_per_second: float
    aucs: tuple[float, ...]
    batch: int
    work: roofline.Work | None = None
    """Of a step of ``batch`` rows."""
    seconds: float = 0.0
    """From the raw file to the end of the epoch."""
    rate: float = 0.0
    """Multiply-adds a second that the machine reached just before or after it."""

    @property
    def limit(self) -> float:
        """The least milliseconds of a step's matmuls then."""
        assert self.work is not None
        return 1e3 * self.work.multiply_adds / self.rate

    @property
    def share(self) -> float:
        """That, of the milliseconds which a step took."""
        return self.limit * self.rows_per_second / (1e3 * self.batch)


def with_rate(precision: str, work: Callable[[], Trained]) -> Callable[[], Trained]:
    """The work with the machine's rate beside it, for its pace moves within minutes."""

    def both() -> Trained:
        before = roofline.rate(precision)
        done = work()
        return done._replace(rate=max(before, roofline.rate(precision)))

    return both


def trained(one: mg.Experiment, folders: "Folders") -> tuple[mg.Run, float]:
    """A run of one epoch, and the seconds that preparing its rows (once more, by itself) and that epoch took."""
    began = time.perf_counter()
    prepared_rows(one, folders())
    prepared = time.perf_counter() - began
    run = mg.train(one, folders(), quiet=True)
    return run, prepared + run.summary["seconds"]


class Folders:
    """A fresh folder at every call."""

    def __init__(self, inside: Path) -> None:
        self.inside, self.used = inside, 0

    def __call__(self) -> Path:
        self.used += 1
        return self.inside / f"run-{self.used}"


def line(
    name: str, runs: list[Taken[Trained]], machine: roofline.Machine, precision: str, yardstick: float
) -> list[str]:
    """The cells of ``HEAD`` for some runs of one side; ``yardstick`` is the tutorial's rows a second."""
    speed, one = spread(runs, lambda run: run.rows_per_second), runs[0].value
    milliseconds = 1e3 * one.batch / speed.middle
    limits = [""] * 3
    if one.work is not None:
        memory = roofline.limit(one.work, machine, precision).memory
        limit, share = spread(runs, lambda run: run.limit), spread(runs, lambda run: run.share)
        limits = [f"{limit.middle:.2f}", f"{share.middle:.0%}", f"{memory:.2f}"]
    aucs = [spread(runs, lambda run, at=at: run.aucs[at]).middle for at in range(len(one.aucs))]
    return [
        name,
        speed.text(),
        f"{milliseconds:.2f}",
        *limits,
        f"{speed.middle / yardstick:.2f}",
        " ".join(f"{auc:.4f}".lstrip("0") for auc in aucs),
        f"{one.work.multiply_adds / one.batch / 3e6:.3f}" if one.work is not None else "",
        spread(runs, lambda run: run.seconds).text(1),
    ]


def bound(one: Trained, machine: roofline.Machine, precision: str, yardstick: float) -> list[str]:
    """The same cells of the limit itself: what the matmuls of that training's steps would allow."""
    assert one.work is not None
    gemm = roofline.limit(one.work, machine, precision).gemm
    speed = 1e3 * one.batch / gemm
    name = f"limit of its matmuls, {precision}"
    return [name, f"{speed:,.0f}", f"{gemm:.2f}", "", "", "", f"{speed / yardstick:.2f}", "", "", ""]
