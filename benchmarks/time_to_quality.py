"""Test AUC against seconds from the raw file: the default MMoE after each epoch, beside gradient boosting.

    MULTIGATE_DATA=... python benchmarks/time_to_quality.py --rounds 1

Census-Income group 1. Both sides start from Parquet files and the clock holds all they do: reading, preparing,
training, looking at validation rows. The MMoE is trained with every default. Boosting is scikit-learn's
HistGradientBoostingClassifier on the same columns, one model a task, stopped early by the same validation rows. Test
rows are scored when the clock has stopped, and nothing is chosen by them.
"""

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

import multigate as mg
from census import TASKS, need_data
from machine import describe
from multigate.analysis.boosting import SETTINGS
from multigate.batch import Batch
from multigate.bundle import Bundle
from multigate.datasets.census_income import QUANTITIES, census_schema
from multigate.datasets.fetch import fetch
from multigate.run import METRICS, read_history
from multigate.score import score_table
from multigate.training.fit import Fit
from multigate.training.loop import fit
from multigate.training.progress import Reporter
from multigate.training.train import open_sources, prepare_sources
from quiet import LEGEND, Watch, options, spread
from results import show, table

LABELS = {"income": ("income_50k", "50000+."), "never_married": ("marital_stat", "Never married")}


class Reached(NamedTuple):
    """How far a side had come: seconds from the raw file, AUCs of the tasks on validation rows and on test rows."""

    what: str
    seconds: float
    valid: tuple[float, ...]
    test: tuple[float, ...]


class Clock:
    """Seconds since it was made, but for those it was held."""

    def __init__(self) -> None:
        self.began, self.held = time.perf_counter(), 0.0

    def __call__(self) -> float:
        return time.perf_counter() - self.began - self.held


def network(tables: Path, folder: Path, epochs: int | None) -> list[Reached]:
    """After preparing, after each epoch, and with the best weights at the end."""
    experiment = mg.Experiment(
        schema=census_schema(1), train=str(tables / "train.parquet"), valid=str(tables / "valid.parquet")
    )
    if epochs is not None:
        experiment = experiment.with_(epochs=epochs)
    folder.mkdir()
    states: list[tuple[float, dict[str, Any]]] = []
    clock = Clock()

    def look(fitting: Fit, batch: Batch) -> None:
        if fitting.epoch > len(states):  # the first step of the next epoch
            keep(fitting.model)

    def keep(model: torch.nn.Module) -> None:
        held = time.perf_counter()
        states.append((clock(), copy.deepcopy(model.state_dict())))
        clock.held += time.perf_counter() - held

    with Reporter(quiet=True) as report:
        prepared = prepare_sources(experiment, open_sources(experiment, {}), folder / "prepared", report)
        seconds_to_prepare = clock()
        fitted = fit(experiment, prepared, folder, device=torch.device("cpu"), report=report, observe=look)
    keep(fitted.model)
    history = read_history(folder / METRICS)
    best = max(history, key=lambda one: sum(one["valid"][f"valid/{task}/auc"] for task in TASKS))
    names = [f"epoch {number}" for number in range(1, len(states))] + [f"end: the best, epoch {best['epoch']}"]
    # the last epoch ends where the best weights are taken up again
    entries = [*history[: len(states) - 1], best]
    reached = [Reached("rows prepared", seconds_to_prepare, (), ())]
    for name, (seconds, weights), entry in zip(names, states, entries, strict=True):
        fitted.model.load_state_dict(weights)
        bundle = Bundle(experiment, prepared.encoder, fitted.model)
        metrics, _ = score_table(bundle, tables / "test.parquet", replicates=0)
        valid = tuple(entry["valid"][f"valid/{task}/auc"] for task in TASKS)
        reached.append(Reached(f"MMoE, {name}", seconds, valid, tuple(metrics[f"{task}/auc"] for task in TASKS)))
    return reached


def boosting(tables: Path, threads: int) -> list[Reached]:
    """Both models, one after the other."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    clock = Clock()
    with threadpool_limits(threads):
        train, labels = read_frame(tables / "train.parquet")
        valid, valid_labels = read_frame(tables / "valid.parquet", train)
        models = []
        for task in TASKS:
            model = HistGradientBoostingClassifier(
                **SETTINGS, early_stopping=True, categorical_features="from_dtype", random_state=0
            )
            models.append(model.fit(train, labels[task], X_val=valid, y_val=valid_labels[task]))
        seconds = clock()
        test, test_labels = read_frame(tables / "test.parquet", train)
        scored = [
            tuple(
                float(roc_auc_score(truth[task], model.decision_function(rows)))
                for task, model in zip(TASKS, models, strict=True)
            )
            for rows, truth in ((valid, valid_labels), (test, test_labels))
        ]
    return [Reached("gradient boosting, both models", seconds, *scored)]


def read_frame(path: Path, like: pd.DataFrame | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Features, words as categories (those of ``like``), and labels."""
    data = pd.read_parquet(path)
    labels = {task: (data[column] == positive).to_numpy(dtype=int) for task, (column, positive) in LABELS.items()}
    features = data[[feature.source for feature in census_schema(1).features]].copy()
    for name in features.columns:
        if name not in QUANTITIES:
            features[name] = features[name].astype("category" if like is None else like[name].dtype)
    return features, labels


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--epochs", type=int, help="fewer than the default (to try the script)")
    arguments = parser.parse_args()
    need_data()
    torch.set_num_threads(arguments.threads)
    print(describe())
    with tempfile.TemporaryDirectory() as text:
        measure(arguments, Path(text))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    tables = fetch("census-income", folder)
    places = iter(folder / f"run-{number}" for number in range(1000))
    sides = {
        "network": lambda: network(tables, next(places), arguments.epochs),
        "boosting": lambda: boosting(tables, arguments.threads),
    }
    found = Watch(arguments.patience).in_turn(sides, arguments.rounds)
    lines = []
    for runs in found.values():
        # runs of one seed and one machine pass the same stages
        for at, stage in enumerate(runs[0].value):
            seconds = spread(runs, lambda reached, at=at: reached[at].seconds)
            lines.append([stage.what, seconds.text(1), _aucs(stage.valid), _aucs(stage.test)])
    show(
        "time-to-quality",
        table(["", "seconds from the raw file", "validation AUC: income, never married", "test AUC"], lines),
        *([LEGEND] if any(run.disturbed for runs in found.values() for run in runs) else []),
    )


def _aucs(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}".lstrip("0") for value in values)


if __name__ == "__main__":
    main()
