"""What each balance adds to the cost of a training step: four tasks of the simulated feed, as ratios to the plain sum.

    python benchmarks/balance.py --rounds 7

Model: MMoE, towers and embedding at their defaults, batches of 1024, on the CPU. Every round times some steps of each
balance in turn, after steps that are not timed; the ratio is that of the medians over the rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

import multigate as mg
from machine import describe
from multigate.balance import BALANCES, Balance, GramianBalance
from multigate.datasets.feed import Feed, feed_schema, write_feed
from multigate.training.fit import Fit
from multigate.training.progress import Reporter
from multigate.training.train import open_sources, prepare_sources


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each balance in a round")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe())
    balances: dict[str, Balance] = {name: kind() for name, kind in BALANCES.items()}
    balances["upgrad, every 10"] = BALANCES["upgrad"]().with_(every=10)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_feed(Feed(rows=arguments.rows), folder)
        experiment = mg.Experiment(
            schema=feed_schema(),
            train=str(folder / "train.parquet"),
            valid=str(folder / "valid.parquet"),
            batch_size=1024,
            precision="float32",
        )
        with Reporter(quiet=True) as report:
            prepared = prepare_sources(experiment, open_sources(experiment, {}), folder / "prepared", report)
        cpu = torch.device("cpu")
        fits = {name: Fit(experiment.with_(balance=one), prepared, folder, cpu, None) for name, one in balances.items()}
        loader = next(iter(fits.values())).loader.epoch(0)
        batches = [next(loader) for _ in range(arguments.steps)]
        loader.close()
        times: dict[str, list[float]] = {name: [] for name in fits}
        for number in range(arguments.rounds + 1):
            for name, fit in fits.items():
                began = time.perf_counter()
                for batch in batches:
                    fit.step(batch)
                if number:  # the first round warms up
                    times[name].append((time.perf_counter() - began) / len(batches) * 1e3)
    yardstick = statistics.median(times["fixed"])
    print("| balance | looks at | ms a step (min to max) | x fixed |")
    print("|---|---|---|---|")
    for name, values in times.items():
        middle = statistics.median(values)
        spread = f"{middle:.1f} ({min(values):.1f} to {max(values):.1f})"
        print(f"| {name} | {looks_at(balances[name])} | {spread} | {middle / yardstick:.2f} |")


def looks_at(balance: Balance) -> str:
    balancer = balance.build(feed_schema().tasks)
    if balancer.looks_back:
        return "losses, twice"
    if not balancer.needs_gramian:
        return "losses"
    return "gradients" if isinstance(balance, GramianBalance) else "lengths of gradients"


if __name__ == "__main__":
    main()
