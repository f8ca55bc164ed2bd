"""What nothing learnt is worth, against what is known of constant predictions."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from multigate.analysis.chance import chance, constants
from multigate.data.files import open_table
from multigate.data.prepared import Prepared, prepare
from multigate.evaluate import scores
from multigate.experiment import Experiment

ROWS = 400


@pytest.fixture(scope="module")
def labels() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    click = (random.random(ROWS) < 0.3).astype(int)
    buy = click * (random.random(ROWS) < 0.6)
    return {
        "click": click,
        "buy": buy,
        "seconds": random.gamma(2, 5, ROWS),
        "kind": random.choice(["a", "b", "c"], ROWS, p=[0.6, 0.3, 0.1]),
    }


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return Experiment(
        schema={
            "features": [{"name": "x", "kind": "number"}],
            "tasks": [
                {"name": "click"},
                {"name": "buy", "given": "click"},
                {"name": "seconds", "kind": "regression"},
                {"name": "kind", "kind": "multiclass"},
            ],
        }
    )


@pytest.fixture(scope="module")
def prepared(
    experiment: Experiment, labels: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Prepared:
    table = open_table(pa.table({"x": np.arange(ROWS) * 1.0, **labels}))
    folder: Path = tmp_path_factory.mktemp("chance") / "prepared"
    return prepare(experiment.schema, table, table, None, experiment.split, folder)


def entropy(*counts: float) -> float:
    shares = np.array(counts) / sum(counts)
    return float(-(shares * np.log(shares)).sum())


def test_a_constant_is_worth_what_is_known_of_it(
    experiment: Experiment, prepared: Prepared, labels: dict[str, np.ndarray]
) -> None:
    clicks, buys = labels["click"].sum(), labels["buy"].sum()
    kinds = [(labels["kind"] == name).sum() for name in "abc"]
    wanted = {
        "mean": (0.5 + 0.5 + 0 + 0.5) / 4,
        "click/auc": 0.5,
        "click/log_loss": -entropy(clicks, ROWS - clicks),
        "buy/log_loss": -entropy(buys, ROWS - buys),
        "buy|click/log_loss": -entropy(buys, clicks - buys),
        "seconds/rmse": -float(labels["seconds"].std()),
        "seconds/r2": 0.0,
        "kind/log_loss": -entropy(*kinds),
        "kind/accuracy": kinds[0] / ROWS,
    }
    metrics = scores(constants(experiment, prepared))
    for monitor, value in wanted.items():
        assert chance(experiment.with_(monitor=monitor), metrics) == pytest.approx(value, abs=1e-5), monitor
