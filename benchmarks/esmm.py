"""Who buys after a click, on rows that were never clicked: entire space, click space and counterfactual risks.

    OMP_NUM_THREADS=1 python benchmarks/esmm.py --seeds 5

A simulated feed knows p(buy | click) of every impression. The same MMoE learns it from all impressions (``given``:
ESMM), from clicked ones (``where``), and from all with a counterfactual risk (``risk``: ESCM2). A seed is that of the
data and of the models.
Figures of test rows; labels drawn from the truth are taken in expectation: a row is 1 with weight p and 0 with 1 - p.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

import multigate as mg
from machine import describe
from multigate.analysis.intervals import paired_difference, summary
from multigate.datasets.feed import Feed, feed_schema, write_feed
from multigate.metrics import auc

Floats = NDArray[np.float64]
BASE = "entire space"


def methods(weights: list[float]) -> dict[str, dict[str, object]]:
    """What the task ``buy`` is told, by method."""
    risks = {
        f"ESCM2-{risk.upper()} {weight:g}": {"given": "click", "risk": risk, "risk_weight": weight}
        for risk in ("ips", "dr")
        for weight in weights
    }
    return {BASE: {"given": "click"}, "click space": {"given": None, "where": "click"}} | risks


def predicted(folder: Path, buy: dict[str, object], seed: int) -> tuple[Floats, Floats]:
    """p(buy | click) and p(click) p(buy | click) of the test rows."""
    schema = feed_schema()
    tasks = [task.with_(**buy) if task.name == "buy" else task for task in schema.tasks]
    experiment = mg.Experiment(
        schema=schema.with_(tasks=tasks),
        train=str(folder / "train.parquet"),
        valid=str(folder / "valid.parquet"),
        sharing=mg.MMoE(experts=4, hidden=(32,)),
        tower=(16,),
        embedding={"dim": 8, "dropout": 0.1},
        optimizer={"learning_rate": 0.005},
        epochs=4,
        batch_size=512,
        precision="float32",
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as out:
        found = mg.train(experiment, Path(out, "run"), quiet=True).bundle().predict(folder / "test.parquet")
    conditional = found["buy|click" if buy["given"] else "buy"].astype(float)
    return conditional, conditional * found["click"].astype(float)


def expected_auc(score: Floats, truth: Floats) -> float:
    """AUC of labels drawn from the truth (R,), in expectation."""
    labels = np.repeat([1.0, 0.0], len(score))
    return auc(np.tile(score, 2), labels, np.concatenate([truth, 1 - truth]))


def excess(p: Floats, truth: Floats) -> float:
    """Log loss of labels drawn from the truth above that of the truth itself, in thousandths of a nat."""
    ratio = truth * np.log(truth / p) + (1 - truth) * np.log((1 - truth) / (1 - p))
    return float(1000 * ratio.mean())


def figures(
    conditional: Floats, joint: Floats, truth: dict[str, Floats], clicked: NDArray[np.bool_]
) -> dict[str, float]:
    found = {}
    for name, rows in (("all", np.ones_like(clicked)), ("clicked", clicked), ("never clicked", ~clicked)):
        p, q = conditional[rows], truth["p_buy_given_click"][rows]
        found[f"{name}: AUC"] = expected_auc(p, q)
        found[f"{name}: correlation with the truth"] = float(np.corrcoef(p, q)[0, 1])
        found[f"{name}: mean predicted / true"] = float(p.mean() / q.mean())
        found[f"{name}: log loss above the truth's, 1/1000"] = excess(p, q)
    found["p(buy): AUC"] = expected_auc(joint, truth["p_buy"])
    found["p(buy): log loss above the truth's, 1/1000"] = excess(joint, truth["p_buy"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--click-rate", type=float, default=0.3)
    parser.add_argument("--weights", type=float, nargs="*", default=[0.1, 1.0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe())
    feed = Feed(rows=arguments.rows, users=300, items=150, new=0, click_rate=arguments.click_rate, buy_rate=0.3)
    asked = methods(arguments.weights)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in asked}
    began = time.perf_counter()
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            write_feed(feed.with_(seed=seed), folder)
            table = pq.read_table(folder / "test_truth.parquet")
            truth = {name: table[name].to_numpy().astype(float) for name in ("p_buy_given_click", "p_buy")}
            clicked = pq.read_table(folder / "test.parquet", columns=["click"])["click"].to_numpy() == 1
            for name, buy in asked.items():
                found[name].append(figures(*predicted(folder, buy, seed), truth, clicked))
                print(f"seed {seed}  {name:<14} {time.perf_counter() - began:6.0f} s", flush=True)
    for metric in found[BASE][0]:
        print(f"\n{metric}")
        base = [one[metric] for one in found[BASE]]
        for name, values in found.items():
            own = [one[metric] for one in values]
            mean, gain = summary(own), paired_difference(own, base)
            apart = f"{gain.mean:+9.4f} [{gain.low:+.4f}, {gain.high:+.4f}]{' *' if gain.clear else ''}"
            print(f"  {name:<14} {mean.mean:9.4f}  sd {mean.sd:7.4f}   {'' if name == BASE else apart}")


if __name__ == "__main__":
    main()
