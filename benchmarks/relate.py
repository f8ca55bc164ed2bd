"""Do scores and gains of pairs of tasks tell how related the tasks are? The synthetic tasks of the MMoE paper know.

    OMP_NUM_THREADS=1 python benchmarks/relate.py --out runs/relate-truth

First, seven tasks whose cosine with the first is 0 to 1, two that are mirrored, and one of noise, each data set anew:
rank correlation of every kind of evidence with the cosines. On the first data set pairs are trained too. Then a linear
task with few labels beside some with many: what it gains, and the advice.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from scipy.stats import spearmanr

import multigate as mg
from machine import describe
from multigate.analysis.relations import Estimate, Pair, Relations
from multigate.datasets.synthetic import Synthetic, synthetic_schema, synthetic_table

COSINES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
MIRRORED = (-0.5, -1.0)
FEW = (0.0, 0.5, 0.9, 1.0)
HIDDEN, FEW_HIDDEN = (32, 16), (16, 8)

Evidence = Callable[[Pair], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each model")
    parser.add_argument("--data", type=int, default=3, help="data sets")
    parser.add_argument("--out", type=Path, help="keep the runs here, and go on with them when called again")
    arguments = parser.parse_args()
    print(describe())
    began = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as text:
        out = arguments.out or Path(text)
        whole = Synthetic(rows=16_000, correlations=COSINES + MIRRORED, noise_tasks=1)
        found = []
        for at in range(1, arguments.data + 1):
            partners = [*range(1, 8)] if at == 1 else []
            options = whole.with_(seed=at)
            tables = {"train": synthetic_table(options)}
            found.append(related(options, tables, out / f"data-{at}", arguments.seeds, partners, HIDDEN, 0.01))
        ranks(found)
        verdicts("All labels known, data set 1", found[0], COSINES)
        few = Synthetic(
            rows=8_000, size=50, correlations=FEW, noise_tasks=1, known=(0.05,), seed=1,
            frequencies=(), phases=(), scale=1, noise=0.25,
        )  # fmt: skip
        tables = {"train": synthetic_table(few)[:6_000], "valid": synthetic_table(few.with_(known=()))[6_000:]}
        partners = [*range(1, len(few.task_names))]
        found_few = related(few, tables, out / "few", arguments.seeds, partners, FEW_HIDDEN, 0.005)
        verdicts("Linear tasks, one label in twenty of y0 known", found_few, (*FEW, "noise"))
    print(f"\n{time.perf_counter() - began[0]:.0f} s, {time.process_time() - began[1]:.0f} s of processor time")


def related(
    options: Synthetic,
    tables: dict[str, pa.Table],
    out: Path,
    seeds: int,
    partners: list[int],
    hidden: tuple[int, ...],
    learning_rate: float,
) -> Relations:
    """Relations of the tasks, y0 trained with each of its partners."""
    structures = (mg.SharedBottom(hidden=hidden), mg.MMoE(experts=4, hidden=hidden))
    experiment = mg.Experiment(
        schema=synthetic_schema(options),
        sharing=structures[1],
        tower=(8,),
        embedding={"dropout": 0.0},
        optimizer={"learning_rate": learning_rate},
        epochs=10,
        precision="float32",
    )
    names = options.task_names
    return mg.relate(
        experiment,
        out,
        structures=structures,
        side_by_side=mg.SingleTask(hidden=hidden),
        pairs=[(names[0], names[at]) for at in partners],
        train=bool(partners),
        seeds=seeds,
        tables=tables,
    )


def ranks(found: list[Relations]) -> None:
    """Spearman's rank correlation of each kind of evidence on (y0, y_p) with p from 0 to 1, and mean values by p."""
    kinds: dict[str, Evidence] = {
        "overlap": lambda pair: mean(pair.overlap),
        "label correlation": lambda pair: pair.labels or 0.0,
        "gradient cosine": lambda pair: mean(pair.gradients),
        "lookahead (TAG)": lambda pair: (mean(pair.lookahead[0]) + mean(pair.lookahead[1])) / 2,
        "gates alike": lambda pair: -mean(pair.gates),
        "gain, shared_bottom": lambda pair: gain(pair, "shared_bottom"),
        "gain, mmoe": lambda pair: gain(pair, "mmoe"),
    }
    print(f"\nevidence on pairs (y0, y_p): Spearman with p on each data set; means by p = {COSINES + MIRRORED}, noise")
    for name, evidence in kinds.items():
        values = np.array([[evidence(pair_of(one, at)) for at in range(1, 11)] for one in found])
        kept = values[[not np.isnan(row[:7]).any() for row in values]]
        rhos = " ".join(f"{spearmanr(row[:7], COSINES)[0]:.2f}" for row in kept)
        shown = " ".join(f"{value:.2g}" for value in kept.mean(axis=0))
        print(f"  {name:<20} {rhos:<16} {shown}")


def verdicts(title: str, relations: Relations, cosines: tuple[object, ...]) -> None:
    """Gains of y0 and its partner, and the advice, for each pair that was trained."""
    print(f"\n{title}: gains in R² of y0 and its partner, ± half an interval")
    for at, cosine in enumerate(cosines, 1):
        pair = pair_of(relations, at)
        told = "  ".join(
            f"{one.structure} {one.task} {one.gain.mean:+.3f} ±{((one.gain.high or 0) - (one.gain.low or 0)) / 2:.3f}"
            for one in pair.gains
        )
        print(f"  p {cosine:<5} {pair.advice:<12} {pair.structure or '':<14} {told}")
    print("  groups:", "; ".join(f"{' '.join(one.tasks)}: {one.advice}" for one in relations.groups))


def pair_of(relations: Relations, at: int) -> Pair:
    return relations.pair(relations.tasks[0], relations.tasks[at])


def mean(one: Estimate | None) -> float:
    return float("nan") if one is None else one.mean


def gain(pair: Pair, structure: str) -> float:
    """Mean over both tasks."""
    gains = [one.gain.mean for one in pair.gains if one.structure == structure]
    return float(np.mean(gains)) if gains else float("nan")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
