"""Quality on Census-Income with defaults, beside gradient boosting on the same features.

    MULTIGATE_DATA=... python benchmarks/quality.py --seeds 5

Trains on the training file; chooses weights on validation rows; touches the test rows once a seed. Group 1: income
and never-married; group 2: education (at least an Associate's degree) and never-married (Ma et al. 2018, section 6.3).
"""

import argparse
import tempfile
from pathlib import Path

import torch
from rich.console import Console

import multigate as mg
from machine import describe
from multigate.analysis.compare import compare
from multigate.datasets.census_income import census_schema
from multigate.datasets.fetch import fetch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--structures", default="mmoe")
    parser.add_argument("--groups", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--out", type=Path, help="keep the runs here, and go on with them when called again")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    print(describe())
    with tempfile.TemporaryDirectory() as text:
        out = arguments.out or Path(text)
        tables = fetch("census-income", out)
        for group in arguments.groups:
            experiment = mg.Experiment(
                schema=census_schema(group),
                train=str(tables / "train.parquet"),
                valid=str(tables / "valid.parquet"),
                test=str(tables / "test.parquet"),
            )
            structures = arguments.structures.split(",")
            comparison = compare(experiment, out / f"group{group}", structures=structures, seeds=arguments.seeds)
            Console(width=200).print(comparison.table())


if __name__ == "__main__":
    main()
