"""What dropout, normalised layers and other activations cost in training, beside the tutorial's, which has ReLU alone.

    MULTIGATE_DATA=... python benchmarks/layer_options.py --rounds 3

The tutorial's model on Census-Income, as ``train.py`` has it, one epoch, the sides in turn: multigate's MMoE as it is,
and with one option or two of its experts and towers.
"""

import argparse
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch

import multigate as mg
import tutorial
from census import BATCH, experiment, need_data
from machine import describe
from multigate.datasets.fetch import fetch
from quiet import LEGEND, Watch, options, spread
from race import Folders
from results import show, table

OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "dropout .1": {"dropout": 0.1},
    "layers normalised": {"normalisation": "layer"},
    "SiLU": {"activation": "silu"},
    "GELU": {"activation": "gelu"},
    "tanh": {"activation": "tanh"},
    "dropout .1, layers normalised": {"dropout": 0.1, "normalisation": "layer"},
}


def main() -> None:
    arguments = options(__doc__).parse_args()
    need_data()
    torch.set_num_threads(arguments.threads)
    print(describe())
    with tempfile.TemporaryDirectory() as text:
        measure(arguments, Path(text))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    tables, fresh = fetch("census-income", folder), Folders(folder)
    base = experiment(tables, "float32")
    mg.train(base.with_(train=base.valid), fresh(), quiet=True)  # compiled code is there from now on

    def side(changes: dict[str, Any]) -> Callable[[], float]:
        one, seeds = base.with_(sharing=base.sharing.with_(**changes)), count()
        return lambda: float(mg.train(one.with_(seed=next(seeds)), fresh(), quiet=True).summary["rows_per_second"])

    sides = {"tutorial": lambda: float(tutorial.train(epochs=1, threads=arguments.threads, seed=0)["rows_per_s"])}
    found = Watch(arguments.patience).in_turn(
        sides | {f"multigate MMoE, {name}": side(changes) for name, changes in OPTIONS.items()}, arguments.rounds
    )
    yardstick = spread(found["tutorial"], float).middle
    lines = []
    for name, runs in found.items():
        speed = spread(runs, float)
        lines.append([name, speed.text(), f"{1e3 * BATCH / speed.middle:.2f}", f"{speed.middle / yardstick:.2f}"])
    legend = [LEGEND] if any(run.disturbed for runs in found.values() for run in runs) else []
    show("layer_options", table(["", "rows/s", "ms a step", "x tutorial"], lines), *legend)


if __name__ == "__main__":
    main()
