"""An epoch of training beside other programs, each of which keeps a core busy: the tutorial's, and multigate's.

    MULTIGATE_DATA=... python benchmarks/beside.py --others 0 1 2

The tutorial's model on Census-Income, as ``train.py`` has it. multigate trains twice: as it does by itself, and with
threads that wait for each other as OpenMP has them, which is what it does where ``GOMP_SPINCOUNT`` is set.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

import multigate as mg
import tutorial
from census import BATCH, experiment, need_data
from machine import describe
from multigate.datasets.fetch import fetch
from quiet import Taken, options, spread
from race import Folders
from results import show, table

BUSY = "while True: sum(range(100_000))"


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--others", nargs="*", type=int, default=[0, 1, 2], help="numbers of other programs")
    arguments = parser.parse_args()
    need_data()
    torch.set_num_threads(arguments.threads)
    print(describe())
    with tempfile.TemporaryDirectory() as text:
        measure(arguments, Path(text))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    tables, fresh = fetch("census-income", folder), Folders(folder)
    one = experiment(tables, "float32")
    mg.train(one.with_(train=one.valid), fresh(), quiet=True)  # compiled code is there from now on

    def trained(*, as_openmp: bool) -> float:
        with as_openmp_waits() if as_openmp else ExitStack():
            return float(mg.train(one, fresh(), quiet=True).summary["rows_per_second"])

    sides = {
        "tutorial": lambda: float(tutorial.train(epochs=1, threads=arguments.threads, seed=0)["rows_per_s"]),
        "multigate, threads wait as OpenMP has them": lambda: trained(as_openmp=True),
        "multigate": lambda: trained(as_openmp=False),
    }
    lines = []
    for others in arguments.others:
        found: dict[str, list[Taken[float]]] = {name: [] for name in sides}
        with beside(others):
            for _ in range(arguments.rounds):
                for name, side in sides.items():
                    found[name].append(Taken(side(), 0.0, 0.0))
                    print(f"{others} others, {name}: {found[name][-1].value:,.0f} rows/s", flush=True)
        yardstick = spread(found["tutorial"], float).middle
        for name, runs in found.items():
            speed = spread(runs, float)
            milliseconds, times = 1e3 * BATCH / speed.middle, speed.middle / yardstick
            lines.append([str(others), name, speed.text(), f"{milliseconds:.1f}", f"{times:.2f}"])
    show("beside", table(["other programs", "", "rows/s", "ms a step", "x tutorial"], lines))


@contextmanager
def beside(others: int) -> Iterator[None]:
    """While entered, so many other programs are busy."""
    with ExitStack() as stack:
        for _ in range(others):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", BUSY]))
            stack.callback(process.kill)
        yield


@contextmanager
def as_openmp_waits() -> Iterator[None]:
    """While entered, trainings leave alone how threads wait; OpenMP itself has read the variable long ago."""
    os.environ["GOMP_SPINCOUNT"] = "left alone"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


if __name__ == "__main__":
    main()
