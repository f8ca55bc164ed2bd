"""How long it takes to begin: the command's help, the import, and the first batch of a run whose rows are prepared.

    python benchmarks/startup.py --rounds 5

Each is a process of its own. Times of the import are told by that process, without the interpreter's own start; the
first batch counts from the start of the process (200,000 rows, 33 id columns, 7 numbers, defaults throughout), and once
more from the end of the imports.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from quiet import LEGEND, Watch, options, spread

NAMES = ("train", "Experiment", "MMoE", "load")
"""What a first script uses."""
IMPORT = f"""
import time
began = time.perf_counter()
import torch
torch_there = time.perf_counter()
import multigate
there = time.perf_counter()
for name in {NAMES}:
    getattr(multigate, name)
print(torch_there - began, there - torch_there, time.perf_counter() - torch_there)
"""


def told(command: Sequence[str]) -> list[float]:
    """The numbers a process prints."""
    return [float(word) for word in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


def seconds(command: Sequence[str]) -> list[float]:
    """How long a process lives."""
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return [time.perf_counter() - began]


def first_batch(folder: Path, began: float, threads: int) -> tuple[float, float, float]:
    """Seconds since ``began`` to the first batch and to the end of the first step; of the batch, since the imports."""
    import torch

    from multigate.experiment import read_experiment
    from steps import begun, prepared_rows

    imported = time.time()
    torch.set_num_threads(threads)
    experiment = read_experiment(folder / "experiment.yaml")
    fit = begun(experiment, prepared_rows(experiment, folder / "prepared"), folder / "run")
    batch = next(fit.loader.epoch(0))
    there = time.time()
    fit.step(batch)
    return there - began, time.time() - began, there - imported


def prepare(folder: Path, rows: int) -> None:
    """A table, an experiment file, and the rows prepared."""
    import pyarrow.parquet as pq

    import multigate as mg
    from steps import prepared_rows
    from zipf import Law, draw, schema

    law = Law(columns=33, vocabulary=5_000, numbers=7)
    pq.write_table(draw(law, rows, every_id=True), folder / "train.parquet")
    pq.write_table(draw(law, max(rows // 10, 1_000), seed=1), folder / "valid.parquet")
    tables = {name: str(folder / f"{name}.parquet") for name in ("train", "valid")}
    experiment = mg.Experiment(schema=schema(law), **tables)
    (folder / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    prepared_rows(experiment, folder / "prepared")


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    from machine import describe
    from results import show, table

    print(describe())
    prepare(folder, arguments.rows)
    command = Path(sys.executable).with_name("multigate")
    script = [sys.executable, str(Path(__file__)), "--threads", str(arguments.threads)]

    def first() -> list[float]:
        return told([*script, "--first", str(folder), str(time.time())])

    sides: dict[str, Callable[[], list[float]]] = {
        "help": partial(seconds, [str(command), "--help"]),
        "import": partial(told, [sys.executable, "-c", IMPORT]),
        "first": first,
    }
    for work in sides.values():
        work()  # the files are then in the system's cache
    found = Watch(arguments.patience).in_turn(sides, arguments.rounds)
    lines = [
        ("`multigate --help`", "help", 0),
        ("`import torch`", "import", 0),
        ("`import multigate`, torch being there", "import", 1),
        (f"the same and {', '.join(f'`mg.{name}`' for name in NAMES)}", "import", 2),
        ("first batch of a prepared run, from the start of the process", "first", 0),
        ("and the first step", "first", 1),
        ("first batch of a prepared run, from the end of the imports", "first", 2),
    ]
    show(
        "startup",
        table(
            ["", "seconds"],
            [[name, spread(found[side], lambda values, at=at: values[at]).text(3)] for name, side, at in lines],
        ),
        *([LEGEND] if any(run.disturbed for runs in found.values() for run in runs) else []),
    )


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--first", nargs=2, metavar=("FOLDER", "BEGAN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.first:
        print(*first_batch(Path(arguments.first[0]), float(arguments.first[1]), arguments.threads))
        return
    with tempfile.TemporaryDirectory() as text:
        measure(arguments, Path(text))


if __name__ == "__main__":
    main()
