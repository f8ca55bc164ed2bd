"""Predicting from raw rows, by engine: one row at a time, and a million rows beside the limit of the machine.

    MULTIGATE_DATA=... python benchmarks/predict.py --rounds 3

The tutorial's MMoE on Census-Income, trained for an epoch and exported. The tutorial itself starts from rows that
somebody encoded by hand; multigate from a dict of 40 strings and numbers, or from a Parquet file of them. The limit is
what counted multiply-adds allow at the measured rate of fp32 matmuls.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import multigate as mg
import roofline
import tutorial
from census import experiment, need_data, scored_rows
from machine import PRECISIONS, describe
from multigate.datasets.fetch import fetch
from quiet import LEGEND, Taken, Watch, options, spread
from results import show, table

LOADED: dict[str, dict[str, Any]] = {
    "torch": {},
    **({"torch, bfloat16": {"precision": "bfloat16"}} if "bfloat16" in PRECISIONS else {}),
    "onnx": {"engine": "onnx"},
}
"""Each as it is loaded."""
FOR_ONE_ROW = ("torch", "onnx")
"""Of which bfloat16 is none."""
SINGLE = 2_000
"""Rows that are predicted one by one, each another."""
ENCODED = 24
"""Batches that are kept encoded, to time the forward pass alone."""

Figures = dict[str, float]


def latencies(answer: Callable[[Any], object], rows: Iterable[Any]) -> Figures:
    """Milliseconds of one answer, after a hundred that are not timed."""
    rows = list(rows)
    for row in rows[:100]:
        answer(row)
    times = []
    for row in rows:
        began = time.perf_counter()
        answer(row)
        times.append(1e3 * (time.perf_counter() - began))
    return {"p50": float(np.median(times)), "p99": float(np.quantile(times, 0.99))}


def rate(parts: Iterable[Any], rows: int) -> Figures:
    """Rows a second, where going through ``parts`` is the work."""
    began = time.perf_counter()
    for _ in parts:
        pass
    return {"rows/s": rows / (time.perf_counter() - began)}


def by_tutorial(threads: int) -> Figures:
    found = tutorial.train(epochs=1, threads=threads)
    return {"p50": found["single_row_p50_ms"], "rows/s": found["predict_rows_per_s"]}


def repeated(rows: pa.Table, times: int, path: Path) -> Path:
    """The same rows again and again in one file."""
    with pq.ParquetWriter(path, rows.schema) as writer:
        for _ in range(times):
            writer.write_table(rows)
    return path


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table, at least")
    parser.add_argument("--no-tutorial", action="store_true", help="leave the tutorial out, which trains in each round")
    arguments = parser.parse_args()
    need_data()
    torch.set_num_threads(arguments.threads)
    print(describe())
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tables = fetch("census-income", folder)
        mg.train(experiment(tables, "float32"), folder / "run", quiet=True).bundle().export(folder / "exported")
        rows = scored_rows(tables)
        times = -(-arguments.rows // rows.num_rows)
        many, count = repeated(rows, times, folder / "many.parquet"), times * rows.num_rows
        single = rows.slice(0, SINGLE).to_pylist()
        bundles = {name: mg.load(folder / "exported", **options) for name, options in LOADED.items()}
        chosen = mg.load(folder / "exported", engine="auto").engines
        encoded = list(islice(bundles["torch"].batches(many), ENCODED))
        encoded_rows = sum(batch.rows for batch, _ in encoded)
        machines: list[roofline.Machine] = []

        def look() -> Figures:
            machines.append(roofline.measure())
            return {}

        sides: dict[str, Callable[[], Figures]] = {"machine": look}
        if not arguments.no_tutorial:
            sides["tutorial"] = lambda: by_tutorial(arguments.threads)
        sides["one row: encoded"] = lambda: latencies(bundles["torch"].encoder.arrays, single)
        sides["many: encoded"] = lambda: rate(bundles["torch"].batches(many), count)
        for name, bundle in bundles.items():
            if name in FOR_ONE_ROW:
                sides[f"one row: {name}"] = lambda bundle=bundle: latencies(bundle.predict, single)
            sides[f"many: {name}"] = lambda bundle=bundle: rate(bundle.predict_batches(many), count)
            sides[f"forward: {name}"] = lambda bundle=bundle: rate(bundle.engines.table.over(encoded), encoded_rows)
        found = Watch(arguments.patience).in_turn(sides, arguments.rounds)
        forward = bundles["torch"].model.multiply_adds()
    machine = roofline.best(machines)
    limit = machine.rates["float32"] / forward

    def milliseconds(name: str, runs: list[Taken[Figures]]) -> list[str]:
        p99 = spread(runs, lambda one: one["p99"]).text(3) if "p99" in runs[0].value else ""
        return [name, spread(runs, lambda one: one["p50"]).text(3), p99]

    def speeds(name: str, runs: list[Taken[Figures]], *, multiplies: bool = True) -> list[str]:
        speed = spread(runs, lambda one: one["rows/s"])
        return [name, speed.text(), f"{speed.middle / limit:.0%}" if multiplies else ""]

    by_hand = {"tutorial, a row encoded by hand": found["tutorial"]} if "tutorial" in found else {}
    ones = by_hand | {"encoding alone": found["one row: encoded"]}
    ones |= {f"multigate, a raw row, {name}": found[f"one row: {name}"] for name in FOR_ONE_ROW}
    lines = [speeds("tutorial, rows encoded by hand", found["tutorial"])] if by_hand else []
    lines.append(speeds("reading and encoding alone", found["many: encoded"], multiplies=False))
    for name in LOADED:
        lines.append(speeds(f"encoded rows, {name}", found[f"forward: {name}"]))
        lines.append(speeds(f"multigate, raw rows, {name}", found[f"many: {name}"]))
    disturbed = any(run.disturbed for runs in found.values() for run in runs)
    show(
        "predict",
        table(["one row", "p50, ms", "p99, ms"], [milliseconds(name, runs) for name, runs in ones.items()]),
        table([f"{count:,} rows", "rows/s", "of the limit"], lines),
        f"The limit is {limit:,.0f} rows/s: {forward:,} multiply-adds a row at {2e-9 * machine.rates['float32']:,.0f} "
        f"GFLOP/s in float32. Engine auto takes {chosen.row.name} for one row and {chosen.table.name} for many. Over "
        f"{SINGLE:,} rows, and medians of {arguments.rounds} rounds.",
        *([LEGEND] if disturbed else []),
    )


if __name__ == "__main__":
    main()
