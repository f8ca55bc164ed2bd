"""Training with a large vocabulary beside the tutorial's, and the cost of a step against the size of the vocabulary.

    python benchmarks/wide.py --rounds 3
    python benchmarks/wide.py --growth

26 id columns with 10^6 ids in all (Zipf), 13 numbers, two planted tasks; MMoE with embeddings of 16, 8 experts of
[128, 64], towers [32], batch 4096, one epoch at a learning rate of 1e-3. The tutorial has dense Adam; each of our sides
says what moves its embeddings, the network is moved by Adam. ``--growth`` hashes the ids into tables of 10^4 to 10^8
rows instead and times steps alone.
"""

import argparse
import gc
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

import multigate as mg
import roofline
import tutorial_wide
from machine import PRECISIONS, available_memory, describe
from memory import anonymous
from multigate.experiment import Optimizer
from multigate.nn.embed import Embedding
from multigate.score import score_table
from quiet import LEGEND, Watch, options, spread
from race import FOOT, HEAD, Folders, Trained, bound, line, trained, with_rate
from results import show, table
from steps import begun, first_batches, prepared_rows, step_ms
from zipf import Law, draw, schema

BATCH, DIM = 4096, 16
WAYS = {"dense": "dense Adam", "lazy_adam": "lazy Adam", "rowwise_adagrad": "row-wise Adagrad"}
"""What moves the embeddings."""
TABLES = {"dense": 4, "lazy_adam": 3, "rowwise_adagrad": 2}
"""Tables that must fit into memory at once: weights, dense gradients, moments; two while weights are drawn."""
LEFT = 0.85
"""Share of the available memory that is used at most."""


def experiment(law: Law, precision: str, way: str, *, buckets: int | None = None) -> mg.Experiment:
    """The tutorial's model, its embeddings moved in one of ``WAYS``."""
    return mg.Experiment(
        schema=schema(law, buckets),
        sharing=mg.MMoE(experts=8, hidden=(128, 64)),
        tower=(32,),
        embedding=Embedding(dim=DIM, dropout=0.0, unseen=0.0, scale=1.0),
        optimizer=Optimizer(name="adam", learning_rate=1e-3, weight_decay=0.0, schedule="constant", embedding=way),
        epochs=1,
        batch_size=BATCH,
        precision=precision,
    )


def step_work(multiply_adds: int, parameters: int, law: Law, touched: int, way: str) -> roofline.Work:
    """The work of a step: what moves the network, and the ``touched`` rows of the tables (or all, densely)."""
    tables = law.columns * law.ids * DIM
    moved = [roofline.adam_bytes(parameters - tables), roofline.embedding_bytes(BATCH * law.columns, DIM)]
    if way == "dense":
        moved += [roofline.adam_bytes(tables), (0, 4 * tables)]  # and a gradient of zeros
    elif way == "lazy_adam":
        moved += [roofline.adam_bytes(touched * DIM)]
    else:
        moved += [roofline.adagrad_bytes(touched * DIM, DIM)]
    return roofline.step_work(multiply_adds, BATCH, *moved)


def touched_rows(rows: pa.Table, law: Law) -> int:
    """Rows of the tables that a batch reads."""
    batch = rows.slice(0, BATCH)
    return sum(pc.count_distinct(batch[f"id_{c}"]).as_py() for c in range(law.columns))


def race(arguments: argparse.Namespace, folder: Path) -> None:
    law = Law(vocabulary=arguments.vocabulary)
    rows = draw(law, arguments.rows, every_id=True)
    pq.write_table(rows, folder / "train.parquet")
    test = draw(law, max(1_000, arguments.rows // 8), seed=1)
    pq.write_table(test, folder / "test.parquet")
    touched = touched_rows(rows, law)
    watch, fresh = Watch(arguments.patience), Folders(folder)
    machines: list[roofline.Machine] = []
    seeds = count()

    def look() -> Trained:
        machines.append(roofline.measure())
        return Trained(0.0, (), BATCH)

    def yardstick() -> Trained:
        found = tutorial_wide.train(folder, threads=arguments.threads, seed=next(seeds))
        seconds = found["seconds_to_load"] + found["seconds"]
        return Trained(found["rows_per_s"], tuple(found["auc"]), BATCH, None, seconds)

    def side(precision: str, way: str) -> Callable[[], Trained]:
        tables = {"train": str(folder / "train.parquet"), "valid": str(folder / "test.parquet")}
        one, numbers = experiment(law, precision, way).with_(**tables), count()

        def work() -> Trained:
            run, seconds = trained(one.with_(seed=next(numbers)), fresh)
            metrics, _ = score_table(run.bundle(), test, replicates=0)
            summary = run.summary
            done = step_work(summary["multiply_adds"], summary["parameters"], law, touched, way)
            aucs = tuple(metrics[f"{name}/auc"] for name in law.task_names)
            return Trained(summary["rows_per_second"], aucs, BATCH, done, seconds)

        return with_rate(precision, work)

    sides: dict[str, Callable[[], Trained]] = {"machine": look, "tutorial, dense Adam, float32": yardstick}
    for way in arguments.ways:
        sides |= {f"multigate, {WAYS[way]}, {precision}": side(precision, way) for precision in PRECISIONS}
    found = watch.in_turn(sides, arguments.rounds)
    machine = roofline.best(machines)
    del found["machine"]
    speed = spread(found["tutorial, dense Adam, float32"], lambda one: one.rows_per_second).middle
    counted = next(runs for name, runs in found.items() if name.startswith("multigate"))[0].value
    lines = [line(name, runs, machine, name.rpartition(" ")[2], speed) for name, runs in found.items()]
    lines += [bound(counted, machine, precision, speed) for precision in PRECISIONS]
    show(
        "wide",
        f"{arguments.rows:,} rows; a batch reads {touched:,} of {law.columns * law.ids:,} rows of the tables.",
        table(HEAD, lines),
        f"{roofline.told(machine)} {FOOT}",
        *([LEGEND] if any(run.disturbed for runs in found.values() for run in runs) else []),
    )


def growth(arguments: argparse.Namespace, folder: Path) -> None:
    """A step against the rows of the tables."""
    watch, lines, disturbed = Watch(arguments.patience), [], False
    for size in arguments.sizes:
        law = Law(vocabulary=int(size))
        rows, buckets = draw(law, BATCH * (arguments.steps + 2)), law.ids - 2
        prepared = None
        cells = [f"{law.columns * law.ids:,}", f"{touched_rows(rows, law):,}"]
        for way in arguments.ways:
            needed = 4 * DIM * law.columns * law.ids * TABLES[way]
            if needed > LEFT * available_memory():
                cells.append(f"does not fit: {needed / 1e9:.1f} GB")
                continue
            one = experiment(law, arguments.precision, way, buckets=buckets)
            if prepared is None:
                prepared = prepared_rows(one, folder / str(size), {"train": rows, "valid": rows.slice(0, 2_000)})
            before = anonymous()
            fit = begun(one, prepared, folder / f"{size}-{way}")
            batches = first_batches(fit, arguments.steps + 2)
            step_ms(fit, batches[:2])
            timed = partial(step_ms, fit, batches[2:])
            found = spread([watch.take(timed) for _ in range(arguments.rounds)], float)
            disturbed |= found.disturbed
            cells.append(f"{found.text(1)}; {(anonymous() - before) / 1e3:.1f} GB")
            del fit, batches, timed
            gc.collect()
        lines.append(cells)
    show(
        "vocabulary",
        f"Milliseconds of a step in {arguments.precision}, and memory taken.",
        table(["rows of the tables", "read by a batch", *(WAYS[way] for way in arguments.ways)], lines),
        *([LEGEND] if disturbed else []),
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--vocabulary", type=int, default=1_000_000, help="ids of all columns together")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS), help="what moves the embeddings")
    parser.add_argument("--growth", action="store_true", help="time a step at several sizes of the vocabulary instead")
    parser.add_argument("--sizes", type=float, nargs="+", default=[10**n for n in range(4, 9)], help="those sizes")
    parser.add_argument("--steps", type=int, default=10, help="steps timed at each size")
    parser.add_argument(
        "--precision", default="auto", choices=["auto", "float32", "bfloat16"], help="of the steps by size"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe())
    with tempfile.TemporaryDirectory() as text:
        (growth if arguments.growth else race)(arguments, Path(text))


if __name__ == "__main__":
    main()
