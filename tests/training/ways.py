"""Every way in which models are trained: one alone, some as a stack, and the paper's small ones."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import multigate as mg
from multigate.datasets.synthetic import Synthetic
from multigate.paper.synthetic import toy
from multigate.training.cohort import Cohort
from multigate.training.fit import Fit
from multigate.training.stackable import FEWEST

WAYS = (Fit, Cohort, toy._Work)
"""What has the ``step`` of each."""


def train_in_every_way(folder: Path) -> None:
    """Small trainings, one of each."""
    x = np.random.default_rng(0).normal(size=400)
    table = {"train": pa.table({"x": x, "click": (x > 0).astype(int), "buy": (x > 1).astype(int)})}
    schema = mg.Schema(features=(mg.Number("x"),), tasks=(mg.Task("click"), mg.Task("buy")))
    experiment = mg.Experiment(schema=schema, train="memory:train", epochs=1, sharing=mg.MMoE(hidden=(4,)))
    mg.train(experiment, folder / "run", tables=table, quiet=True)
    mg.compare(experiment, folder / "some", structures="mmoe", seeds=FEWEST, tables=table, boosting=False, quiet=True)
    numbers = {"tower": (2,), "steps": 3, "batch": 4, "standardise": True}
    toys = toy.Training(mg.MMoE(hidden=(4,)), Synthetic(size=5), (0, 1), (0.001, 0.001), **numbers)
    toy.train_toys(toys, folder / "toys", torch.device("cpu"))
