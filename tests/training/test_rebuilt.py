"""What a structure of one's own computes with must be in its state, or bundles would predict otherwise."""

import random
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from multigate.bundle import load
from multigate.errors import ExperimentError
from multigate.experiment import Experiment
from multigate.metrics import auc
from multigate.sharing import Level, Shared, Sharing, Structure
from multigate.training.train import train

HELD = "predicts otherwise when it is built again"


class Plain(Structure):
    structure: Literal["plain"] = "plain"
    kept: str = "modules"

    def build(self, d_in: int, tasks: tuple[str, ...]) -> Sharing:
        return cast(Sharing, PlainSharing(self, d_in, tasks))


class PlainSharing(nn.Module):
    wiring: tuple[Level, ...] = ()

    def __init__(self, options: Plain, d_in: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.kept, self.tasks, self.d_out, self.calls = options.kept, len(tasks), options.hidden[-1], 0
        lazy = self.kept == "lazy"
        layers = [nn.LazyLinear(self.d_out) if lazy else nn.Linear(d_in, self.d_out) for _ in range(2)]
        if self.kept == "spectral":
            layers = [nn.utils.spectral_norm(layer) for layer in layers]
        self.layers = layers if self.kept == "list" else nn.ModuleList(layers)
        self.centre: Tensor | None = None
        self.norm = nn.BatchNorm1d(self.d_out)
        self.order = np.random.permutation(d_in) if self.kept == "numpy" else np.arange(d_in)
        self.factor = random.random() if self.kept == "python" else 1.0

    def forward(self, x: Tensor) -> Shared:
        self.calls += 1
        warm = self.calls if self.kept == "count" or (self.kept == "warm-up" and self.training) else 1
        made = sum(layer(x[:, self.order]) for layer in self.layers)
        if self.kept == "centre":
            self.centre = made.detach().mean(0) if self.training else self.centre
            made = made - cast(Tensor, self.centre)
        many = self.tasks + (self.kept == "grown" and self.calls > 2)
        z = torch.relu(self.norm(made) * self.factor / warm).unsqueeze(1).expand(-1, many, -1)
        return Shared(z, gates=(), penalty=x.new_zeros(()))

    def multiply_adds(self) -> int:
        return 2 * self.norm.num_features


@pytest.mark.parametrize("kept", ["numpy", "python", "list", "count", "centre", "grown"])
def test_what_its_state_does_not_hold_is_refused(feed_experiment: Experiment, tmp_path: Path, kept: str) -> None:
    experiment = feed_experiment.with_(sharing=Plain(hidden=(8,), kept=kept), epochs=1, seed=3)
    with pytest.raises(ExperimentError, match=HELD):
        train(experiment, tmp_path / "run", quiet=True)


def test_what_has_no_size_yet_is_refused(feed_experiment: Experiment, tmp_path: Path) -> None:
    experiment = feed_experiment.with_(sharing=Plain(hidden=(8,), kept="lazy"), epochs=1)
    with pytest.raises(ExperimentError, match=r"leaves the size of 'layers\.0\.weight' to the first rows"):
        train(experiment, tmp_path / "run", quiet=True)


@pytest.mark.parametrize("kept", ["modules", "warm-up", "spectral"])
def test_what_its_state_holds_trains_and_nothing_is_drawn_for_it(
    feed_experiment: Experiment, tmp_path: Path, kept: str
) -> None:
    experiment = feed_experiment.with_(sharing=Plain(hidden=(8,), kept=kept), epochs=1, seed=3)
    random.seed(1)
    np.random.seed(1)
    run = train(experiment, tmp_path / "run", quiet=True)
    drawn = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    assert drawn == (random.random(), np.random.random())
    rows = pq.read_table(experiment.valid)
    clicks = load(tmp_path / "run", structures=Plain).predict(rows)["click"]
    assert auc(clicks, rows["click"].to_numpy()) == pytest.approx(run.best["click/auc"])
