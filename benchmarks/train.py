"""Training speed beside the tutorial's, and of every structure at the tutorial's budget, with the limit of each.

    MULTIGATE_DATA=... python benchmarks/train.py --rounds 3
    MULTIGATE_DATA=... python benchmarks/train.py --profile

Model: embedding 8, 8 experts of [128, 64], towers [32], batch 1024, Adam 1e-3, one epoch of Census-Income. Both sides
time their training epochs alone, as their own loops run them: loading batches included, reading and encoding not. The
structures have as many multiply-adds a row as that MMoE (within 2 %, or what it says). All are scored on the whole
test file after that one epoch. ``--profile`` tells what a step of the MMoE is made of instead.
"""

import argparse
import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

import multigate as mg
import roofline
import tutorial
from census import BATCH, DIM, aucs, experiment, need_data, scored_rows
from machine import PRECISIONS, describe
from multigate.analysis.budget import multiply_adds, within_budget
from multigate.datasets.fetch import fetch
from multigate.sharing import STRUCTURES, Structure, structure_named
from quiet import LEGEND, Watch, options, spread
from race import FOOT, HEAD, Folders, Trained, bound, line, trained, with_rate
from results import show, table
from step_profile import profile
from steps import begun, first_batches, prepared_rows


def train_tutorial(threads: int, seed: int) -> Trained:
    found = tutorial.train(epochs=1, threads=threads, seed=seed)
    seconds = found["seconds_to_load"] + found["seconds"]
    return Trained(found["rows_per_s"], (found["auc_income"], found["auc_never_married"]), BATCH, None, seconds)


def train_multigate(one: mg.Experiment, folders: Folders, rows: pa.Table) -> Trained:
    run, seconds = trained(one, folders)
    summary = run.summary
    look_ups = BATCH * sum(feature.kind == "category" for feature in one.schema.features)
    moved = roofline.adam_bytes(summary["parameters"]), roofline.embedding_bytes(look_ups, DIM)
    work = roofline.step_work(summary["multiply_adds"], BATCH, *moved)
    return Trained(summary["rows_per_second"], aucs(run, rows), BATCH, work, seconds)


def main() -> None:
    parser = options(__doc__)
    every = [name for name in STRUCTURES if name != "mmoe"]
    parser.add_argument("--structures", nargs="*", default=every, help="those to train at the MMoE's budget (all)")
    parser.add_argument("--structure-rounds", type=int, default=1, help="runs of each of them")
    parser.add_argument("--limit-rows", type=int, help="train on the first rows alone (to try the script)")
    parser.add_argument("--profile", action="store_true", help="what a step is made of, and nothing else")
    parser.add_argument("--steps", type=int, default=40, help="steps that are looked at for the profile")
    arguments = parser.parse_args()
    need_data()
    torch.set_num_threads(arguments.threads)
    print(describe())
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tables = fetch("census-income", folder)
        if arguments.limit_rows:
            shorten(tables / "train.parquet", arguments.limit_rows)
        (show_profile if arguments.profile else race)(arguments, folder, tables)


def shorten(path: Path, rows: int) -> None:
    pq.write_table(pq.read_table(path).slice(0, rows), path)


def race(arguments: argparse.Namespace, folder: Path, tables: Path) -> None:
    watch, fresh, rows = Watch(arguments.patience), Folders(folder), scored_rows(tables)
    machines: list[roofline.Machine] = []
    tutorials = count()

    def look() -> Trained:
        machines.append(roofline.measure())
        return Trained(0.0, (), BATCH)

    def side(precision: str, sharing: Structure | None = None) -> Callable[[], Trained]:
        one, seeds = experiment(tables, precision, sharing), count()
        return with_rate(precision, lambda: train_multigate(one.with_(seed=next(seeds)), fresh, rows))

    sides = {"machine": look, "tutorial, float32": lambda: train_tutorial(arguments.threads, next(tutorials))}
    sides |= {f"multigate MMoE, {precision}": side(precision) for precision in PRECISIONS}
    found = watch.in_turn(sides, arguments.rounds)
    base = experiment(tables, "float32")
    encoder = prepared_rows(base, folder / "prepared").encoder
    budget = multiply_adds(base.sharing, base, encoder)
    others: dict[str, Callable[[], Trained]] = {}
    for name in arguments.structures:
        sharing = within_budget(structure_named(name), budget, base, encoder)
        others |= {f"{name}, {precision}": side(precision, sharing) for precision in PRECISIONS}
    found |= watch.in_turn(others | {"machine": look}, arguments.structure_rounds) if others else {}
    machine = roofline.best(machines)
    del found["machine"]
    speed = spread(found["tutorial, float32"], lambda one: one.rows_per_second).middle
    counted = found["multigate MMoE, float32"][0].value
    lines = [line(name, runs, machine, name.rpartition(" ")[2], speed) for name, runs in found.items()]
    lines[3:3] = [bound(counted, machine, precision, speed) for precision in PRECISIONS]
    show(
        "train",
        table(HEAD, lines),
        f"{roofline.told(machine)} {FOOT} AUC: income, never married.",
        *([LEGEND] if any(run.disturbed for runs in found.values() for run in runs) else []),
    )


def show_profile(arguments: argparse.Namespace, folder: Path, tables: Path) -> None:
    watch, machine, parts = Watch(arguments.patience), roofline.measure(), []
    prepared = prepared_rows(experiment(tables, "float32"), folder / "prepared")
    for precision in PRECISIONS:
        fit = begun(experiment(tables, precision), prepared, folder / precision)
        batches = first_batches(fit, arguments.steps)
        work = roofline.step_work(fit.model.multiply_adds(), BATCH)
        found = watch.take(lambda fit=fit, batches=batches: profile(fit, batches))
        limit = roofline.limit(work, machine, precision).gemm
        parts += [f"\nMMoE, {precision}: " + found.value.told(limit) + (f" {LEGEND}" if found.disturbed else "")]
        parts += [found.value.groups(), found.value.operators()]
    show("profile", *parts, roofline.told(machine))


if __name__ == "__main__":
    main()
