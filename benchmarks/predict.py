"""Prediction speed from raw rows beside the tutorial's, which starts from rows encoded by hand.

MULTIGATE_DATA=... python benchmarks/predict.py --rounds 3
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

import multigate as mg
import tutorial
from machine import describe
from multigate.datasets.fetch import fetch
from train import experiment

SINGLE = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(2)
    print(describe())
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tables = fetch("census-income", folder)
        run = mg.train(experiment(tables, "auto"), folder / "run", quiet=True)
        bundle = run.bundle()
        test = pq.read_table(tables / "test.parquet")
        single = test.slice(0, SINGLE).to_pylist()
        for _ in range(rounds):
            result = tutorial.train(epochs=1)
            figures.setdefault("tutorial, encoded rows, rows/s", []).append(result["predict_rows_per_s"])
            figures.setdefault("tutorial, one encoded row, p50 ms", []).append(result["single_row_p50_ms"])
            began = time.perf_counter()
            bundle.predict(test)
            figures.setdefault("multigate, raw rows, rows/s", []).append(test.num_rows / (time.perf_counter() - began))
            times = []
            for row in single:
                began = time.perf_counter()
                bundle.predict(row)
                times.append(1000 * (time.perf_counter() - began))
            figures.setdefault("multigate, one raw row, p50 ms", []).append(float(np.median(times)))
            figures.setdefault("multigate, one raw row, p99 ms", []).append(float(np.quantile(times, 0.99)))
    print("| | median (min to max) |")
    print("|---|---|")
    for name, values in figures.items():
        digits = 0 if name.endswith("rows/s") else 3
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"| {name} | {middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f}) |")


if __name__ == "__main__":
    main()
