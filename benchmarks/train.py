"""Training speed beside the tutorial's: the same MMoE on Census-Income, in turn, as ratios of medians.

    MULTIGATE_DATA=... python benchmarks/train.py --rounds 3

Model: embedding 8, 8 experts of [128, 64], towers [32], batch 1024, Adam 1e-3, one epoch. Both sides time their
training epochs alone, as their own loops run them: loading batches included, reading and encoding not.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

import multigate as mg
import tutorial
from machine import describe
from multigate.datasets.census_income import census_schema
from multigate.datasets.fetch import fetch
from multigate.experiment import Optimizer
from multigate.nn.embed import Embedding
from multigate.score import score_table


def experiment(tables: Path, precision: str) -> mg.Experiment:
    """The tutorial's model and optimiser."""
    schema = census_schema(1)
    features = [
        feature.with_(embedding="none", transform="standard") if feature.kind == "number" else feature
        for feature in schema.features
    ]
    return mg.Experiment(
        schema=schema.with_(features=features),
        train=str(tables / "train.parquet"),
        valid=str(tables / "valid.parquet"),
        sharing=mg.MMoE(experts=8, hidden=(128, 64)),
        tower=(32,),
        embedding=Embedding(dim=8, dropout=0.0, unseen=0.0),
        optimizer=Optimizer(name="adam", learning_rate=1e-3, weight_decay=0.0, schedule="constant"),
        epochs=1,
        precision=precision,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe())
    speeds: dict[str, list[float]] = {"tutorial": [], "float32": [], "bfloat16": []}
    aucs: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        tables = fetch("census-income", Path(folder))
        for number in range(arguments.rounds):
            result = tutorial.train(epochs=1, threads=arguments.threads, seed=number)
            speeds["tutorial"].append(result["rows_per_s"])
            aucs["tutorial"] = f"{result['auc_income']:.4f} {result['auc_never_married']:.4f}"
            for precision in ("float32", "bfloat16"):
                out = Path(folder) / f"{precision}-{number}"
                run = mg.train(experiment(tables, precision), out, quiet=True)
                speeds[precision].append(run.summary["rows_per_second"])
                metrics, _ = score_table(run.bundle(), tables / "test.parquet", replicates=0)
                aucs[precision] = f"{metrics['income/auc']:.4f} {metrics['never_married/auc']:.4f}"
    yardstick = statistics.median(speeds["tutorial"])
    print("| | rows/s (min to max) | x tutorial | test AUC after one epoch |")
    print("|---|---|---|---|")
    for name, values in speeds.items():
        middle = statistics.median(values)
        spread = f"{middle:,.0f} ({min(values):,.0f} to {max(values):,.0f})"
        print(f"| {name} | {spread} | {middle / yardstick:.2f} | {aucs[name]} |")


if __name__ == "__main__":
    main()
