"""Defaults on small tables of many kinds, beside gradient boosting and a linear model on the same rows.

    python benchmarks/defaults.py                                        every table, one seed
    python benchmarks/defaults.py --seeds 3 --tables wine,friedman --set embedding=bins

What somebody gets who writes ``infer_schema`` and ``train`` and no more: 64 % of the rows to train on, 16 % to choose
weights on, 20 % to score. Boosting and the linear model are trained on both of the first parts.
Figures are AUC, accuracy and R2. ``--set`` changes every number feature, ``--batch`` the rows of a step.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import accuracy_score, r2_score, roc_auc_score

import multigate as mg
from machine import describe

Table = tuple[pd.DataFrame, tuple[mg.Task, ...]]


def regression(name: str) -> mg.Task:
    return mg.Task(name, kind="regression")


def draws(seed: int, rows: int, columns: int) -> tuple[np.random.Generator, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator, generator.normal(size=(rows, columns))


def happened(generator: np.random.Generator, logit: np.ndarray) -> np.ndarray:
    return (generator.uniform(size=len(logit)) < 1 / (1 + np.exp(-logit))).astype(int)


def columns(x: np.ndarray, **labels: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])]).assign(**labels)


def breast_cancer() -> Table:
    """569 tumours: malignant or not, and how concave at worst, from means and errors of the measurements."""
    frame = datasets.load_breast_cancer(as_frame=True).frame.rename(columns=lambda name: name.replace(" ", "_"))
    frame["concave"] = frame["worst_concavity"]
    kept = frame.drop(columns=[name for name in frame if name.startswith("worst")])
    return kept, (mg.Task("target"), regression("concave"))


def wine() -> Table:
    """178 wines: which of three vines, and the alcohol."""
    frame = datasets.load_wine(as_frame=True).frame
    frame["target"] = "vine " + frame["target"].astype(str)
    return frame, (mg.Task("target", kind="multiclass"), regression("alcohol"))


def digits() -> Table:
    """1,797 digits of 8 x 8 pixels: which, and whether it is even."""
    frame = datasets.load_digits(as_frame=True).frame
    frame = frame.assign(even=frame["target"] % 2, target="digit " + frame["target"].astype(str))
    return frame, (mg.Task("target", kind="multiclass"), mg.Task("even"))


def diabetes() -> Table:
    """442 patients: progress of the disease, and body mass."""
    frame = datasets.load_diabetes(as_frame=True, scaled=False).frame
    return frame, (regression("target"), regression("bmi"))


def friedman() -> Table:
    """Friedman's first function, and a part of it: 5,000 rows, five of ten columns matter."""
    x, y = datasets.make_friedman1(5000, 10, noise=1, random_state=0)
    z = 10 * np.sin(np.pi * x[:, 0] * x[:, 1]) - 5 * x[:, 3] + np.random.default_rng(1).normal(size=5000)
    return columns(x, y=y, z=z), (regression("y"), regression("z"))


def clusters() -> Table:
    """6,000 rows of 50 columns, ten of them informative, four clusters a class; and a product of two columns."""
    x, y = datasets.make_classification(
        6000, 50, n_informative=10, n_redundant=10, n_clusters_per_class=4, random_state=0
    )
    noise = np.random.default_rng(1).normal(size=6000) * 0.5
    return columns(x, y=y, z=(x[:, 0] * x[:, 3] + x[:, 5] + noise > 0).astype(int)), (mg.Task("y"), mg.Task("z"))


def steps() -> Table:
    """10,000 rows of what a tree is made for: jumps, and a column whose parity alone counts."""
    generator = np.random.default_rng(3)
    x = generator.uniform(size=(10_000, 8))
    inner = np.where(x[:, 2] > 0.5, 2, np.where(x[:, 3] > 0.2, 0, 5))
    y = np.where(x[:, 0] > 0.37, np.where(x[:, 1] > 0.81, 3, -1), inner) + 2 * (np.floor(20 * x[:, 4]) % 2)
    return columns(x, y=y + generator.normal(size=10_000) / 2, z=happened(generator, y - 1.5)), (
        regression("y"), mg.Task("z"),
    )  # fmt: skip


def gaps() -> Table:
    """6,000 rows of which two cells in five are unknown."""
    generator, x = draws(6, 6000, 12)
    y = 2 * x[:, 0] + x[:, 1] * x[:, 2] - np.abs(x[:, 3]) + generator.normal(size=6000) * 0.3
    z = happened(generator, x[:, 0] + x[:, 4] + x[:, 5])
    return columns(np.where(generator.uniform(size=x.shape) < 0.4, np.nan, x), y=y, z=z), (
        regression("y"), mg.Task("z"),
    )  # fmt: skip


def tails() -> Table:
    """6,000 rows of columns with very long tails."""
    generator = np.random.default_rng(7)
    x = np.c_[generator.standard_cauchy(size=(6000, 6)), np.exp(generator.normal(size=(6000, 4)) * 3)]
    s = np.tanh(x[:, 0]) + np.tanh(x[:, 1] * x[:, 2]) + 0.3 * np.log(x[:, 6])
    y = s + generator.normal(size=6000) * 0.3
    return columns(x, y=y, z=happened(generator, 2 * s)), (regression("y"), mg.Task("z"))


def wide() -> Table:
    """1,000 rows of 300 columns, four of which matter."""
    generator, x = draws(9, 1000, 300)
    s = x[:, 0] + x[:, 1] + x[:, 2] * x[:, 3]
    return columns(x, y=s + generator.normal(size=1000) * 0.5, z=(s > 0).astype(int)), (regression("y"), mg.Task("z"))


def categories() -> Table:
    """5,000 rows of six categories, two of which act together."""
    generator = np.random.default_rng(10)
    found = [generator.integers(0, size, 5000) for size in (3, 5, 8, 12, 20, 40)]
    pairs, own = generator.normal(size=(5, 8)), generator.normal(size=40)
    s = 1.5 * pairs[found[1], found[2]] + own[found[5]] + (found[0] == 1)
    y = s + generator.normal(size=5000) * 0.5
    frame = pd.DataFrame({f"c{i}": [f"v{value}" for value in one] for i, one in enumerate(found)})
    return frame.assign(y=y, z=happened(generator, 2 * s - 1)), (regression("y"), mg.Task("z"))


def counts() -> Table:
    """6,000 counts, and whether there is any."""
    generator, x = draws(11, 6000, 6)
    n = generator.poisson(np.exp(0.5 + 0.6 * x[:, 0] - 0.4 * x[:, 1] + 0.5 * x[:, 2] * (x[:, 3] > 0)))
    return columns(x, n=n, some=(n > 0).astype(int)), (regression("n"), mg.Task("some"))


def grades() -> Table:
    """650 pupils in whole numbers: answers from 1 to 5, two grades up to 20, days missed; the last grade, passing."""
    generator, x = draws(20, 650, 3)
    answers = np.clip(np.round(3 + 1.2 * generator.normal(size=(650, 8))), 1, 5)
    earlier = np.clip(np.round(11 + 3 * x[:, :1] + 1.5 * generator.normal(size=(650, 2))), 0, 20)
    missed = generator.poisson(np.exp(1 - 0.4 * x[:, 0]))
    s = earlier.mean(axis=1) - 0.3 * missed + 0.4 * (answers[:, 0] - answers[:, 1])
    last, passed = s + x[:, 1], (s + x[:, 2] > 11).astype(int)
    return columns(np.c_[answers, earlier, missed].astype(int), y=last, z=passed), (regression("y"), mg.Task("z"))


def codes() -> Table:
    """3,000 rows of whole numbers without an order: six columns of 4 to 47 codes, two of which act together."""
    generator = np.random.default_rng(21)
    sizes = (4, 6, 12, 20, 30, 47)
    x = np.stack([generator.choice(size, 3000, p=generator.dirichlet(np.full(size, 2.0))) for size in sizes], axis=1)
    s = 0.7 * sum(generator.normal(size=size)[x[:, at]] for at, size in enumerate(sizes))
    s += generator.normal(size=(6, 4))[x[:, 1], x[:, 0]]
    y = s + generator.normal(size=3000)
    return columns(x, y=y, z=happened(generator, 1.5 * s)), (regression("y"), mg.Task("z"))


def outliers() -> Table:
    """4,000 rows: a label whose noise has long tails, and one of a million, give or take a thousand."""
    generator, x = draws(35, 4000, 8)
    y = x[:, 0] * 2 + np.sin(2 * x[:, 1]) + 0.3 * generator.standard_t(2, size=4000)
    z = 1e6 + 1e3 * (x[:, 2] + x[:, 3] ** 2 + 0.3 * generator.normal(size=4000))
    return columns(x, y=y, z=z), (regression("y"), regression("z"))


def ratios() -> Table:
    """5,000 rows of lognormal columns: a ratio and a product, and which of two is larger."""
    generator = np.random.default_rng(41)
    x = np.exp(generator.normal(size=(5000, 6)))
    y = x[:, 0] / x[:, 1] ** 0.5 + x[:, 2] * x[:, 3] * 0.3 + 0.2 * generator.normal(size=5000)
    return columns(x, y=y, z=(x[:, 4] > x[:, 5]).astype(int)), (regression("y"), mg.Task("z"))


def spend() -> Table:
    """6,000 rows: whether anything is bought, and for how much, with a long tail."""
    generator, x = draws(32, 6000, 10)
    buy = happened(generator, x[:, 0] + x[:, 1] - 1.5)
    amount = buy * np.exp(1 + 0.8 * x[:, 2] + 0.5 * x[:, 0] + generator.normal(size=6000))
    return columns(x, z=buy, y=amount), (mg.Task("z"), regression("y"))


def linear() -> Table:
    """300 rows of ten columns that add up."""
    generator, x = draws(12, 300, 10)
    s = x @ generator.normal(size=10)
    return columns(x, y=s + generator.normal(size=300), z=happened(generator, s)), (regression("y"), mg.Task("z"))


TABLES: tuple[Callable[[], Table], ...] = (
    breast_cancer, wine, digits, diabetes, friedman, clusters, steps, gaps, tails, wide, categories, counts, linear,
    grades, codes, outliers, ratios, spend,
)  # fmt: skip


def score(kind: str, predicted: np.ndarray, labels: np.ndarray) -> float:
    scorer = {"binary": roc_auc_score, "multiclass": accuracy_score, "regression": r2_score}[kind]
    return float(scorer(labels, predicted))


def ours(frame: pd.DataFrame, tasks: tuple[mg.Task, ...], parts: list[np.ndarray], seed: int, told: Any) -> list[float]:
    train, valid, test = (pa.Table.from_pandas(frame.iloc[part], preserve_index=False) for part in parts)
    schema = mg.infer_schema(train, tasks=tasks)
    numbers = [one.with_(**told.set) if isinstance(one, mg.Number) else one for one in schema.features]
    experiment = mg.Experiment(schema=schema.with_(features=numbers), batch_size=told.batch, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        mg.train(experiment, out, tables={"train": train, "valid": valid}, quiet=True, device="cpu")
        predicted = mg.load(out).predict(test.drop_columns([task.name for task in tasks]))
    return [score(task.kind, predicted[task.name], test[task.name].to_numpy()) for task in tasks]


def others(frame: pd.DataFrame, tasks: tuple[mg.Task, ...], parts: list[np.ndarray], seed: int) -> list[list[float]]:
    """Of gradient boosting and of the linear model."""
    x = frame.drop(columns=[task.name for task in tasks])
    texts = x.select_dtypes(exclude="number").columns
    trees = x.assign(**{name: x[name].astype("category") for name in texts})
    dense = pd.get_dummies(x).astype(float)
    dense = ((dense - dense.mean()) / dense.std()).fillna(0.0)
    known, test = np.concatenate(parts[:2]), parts[2]
    found: list[list[float]] = [[], []]
    for task in tasks:
        y = frame[task.name].to_numpy()
        boosting: Any = HistGradientBoostingClassifier
        plain: Any = LogisticRegression(max_iter=500)
        if task.kind == "regression":
            boosting, plain = HistGradientBoostingRegressor, RidgeCV(np.logspace(-2, 4, 13))
        boosted = boosting(categorical_features="from_dtype", random_state=seed)
        for at, (model, features) in enumerate(((boosted, trees), (plain, dense))):
            model.fit(features.iloc[known], y[known])
            binary = task.kind == "binary"
            predict = (lambda rows, m=model: m.predict_proba(rows)[:, 1]) if binary else model.predict
            found[at].append(score(task.kind, predict(features.iloc[test]), y[test]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tables", default=",".join(one.__name__ for one in TABLES))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--set", type=lambda text: dict([text.split("=", 1)]), default={}, metavar="FIELD=VALUE")
    told = parser.parse_args()
    torch.set_num_threads(1)
    print(describe())
    print("\n| table | task | multigate | gradient boosting | linear |\n|---|---|---|---|---|")
    behind: list[float] = []
    for make in (one for one in TABLES if one.__name__ in told.tables.split(",")):
        frame, tasks = make()
        found = []
        for seed in range(told.seeds):
            rows = np.random.default_rng(100 + seed).permutation(len(frame))
            parts = np.split(rows, [int(0.64 * len(rows)), int(0.8 * len(rows))])
            found.append([ours(frame, tasks, parts, seed, told), *others(frame, tasks, parts, seed)])
        for task, (mine, boosted, plain) in zip(tasks, np.mean(found, axis=0).T, strict=True):
            behind.append(max(boosted, plain) - mine)
            print(f"| {make.__name__} | {task.name} | {mine:.3f} | {boosted:.3f} | {plain:.3f} |", flush=True)
    print(f"\nBehind the better of the two by {np.mean(behind):.4f} on average, {np.max(behind):.3f} at most.")


if __name__ == "__main__":
    main()
