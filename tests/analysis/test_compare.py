"""Comparisons: one budget, honest single-task models, nothing trained twice."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from multigate.analysis.budget import multiply_adds, within_budget
from multigate.analysis.compare import compare, open_comparison
from multigate.data.encoder import Encoder
from multigate.errors import ExperimentError
from multigate.experiment import Experiment
from multigate.sharing import STRUCTURES
from multigate.training.loop import Fit

NAMES = ("single_task", "shared_bottom", "omoe", "mmoe")


@pytest.fixture(scope="module")
def encoder(feed_experiment: Experiment) -> Encoder:
    rows = pq.read_table(feed_experiment.train).to_batches()
    return Encoder.fit(feed_experiment.schema, rows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [20_000, 100_000, 2_000_000])
def test_budgets_are_met_within_two_percent(
    feed_experiment: Experiment, encoder: Encoder, name: str, budget: int
) -> None:
    for tasks in (None, [1]):
        structure = within_budget(STRUCTURES[name](), budget, feed_experiment, encoder, tasks)
        assert multiply_adds(structure, feed_experiment, encoder, tasks) == pytest.approx(budget, rel=0.02)


def test_a_comparison_from_end_to_end(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = feed_experiment.with_(epochs=1)
    steps = {"done": 0}
    original = Fit.step

    def counted(self: Fit, batch: object) -> object:
        steps["done"] += 1
        return original(self, batch)

    monkeypatch.setattr(Fit, "step", counted)
    first = compare(experiment, tmp_path, structures=NAMES, seeds=2, quiet=True)
    per_epoch = -(-4800 // 256)
    assert steps["done"] == 2 * per_epoch * (4 + 3), "four single-task models and three joint ones, two seeds each"
    assert first.structures == [*NAMES, "boosting"]
    raw = pq.read_table(tmp_path / "runs.parquet").to_pylist()
    assert len(raw) == 9, "boosting runs once: it does not depend on the seed"
    assert all(row["part"] == "test" and row["rows"] == 600 for row in raw)
    costs = {row["structure"]: row["multiply_adds"] for row in raw if row["structure"] != "boosting"}
    for name in ("shared_bottom", "omoe"):
        assert costs[name] == pytest.approx(costs["mmoe"], rel=0.02)
    assert costs["single_task"] == pytest.approx(4 * costs["mmoe"], rel=0.02), "the full budget for each task"

    gain = first.gain("mmoe", "click/auc")
    values = {(row["structure"], row["seed"]): row["click/auc"] for row in raw}
    by_hand = sum(values["mmoe", seed] - values["single_task", seed] for seed in (0, 1)) / 2
    assert gain.mean == pytest.approx(by_hand)

    steps["done"] = 0
    again = compare(experiment, tmp_path, structures=NAMES, seeds=3, quiet=True)
    assert steps["done"] == per_epoch * (4 + 3), "only the third seed is trained"
    assert len(again.rows) == 13
    fewer = compare(experiment, tmp_path, structures=("mmoe",), seeds=1, boosting=False, quiet=True)
    assert len(fewer.rows) == 1
    assert len(open_comparison(tmp_path).rows) == 13, "what was trained before stays on file"


def test_an_unknown_structure_is_refused_before_anything_is_written(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(ExperimentError, match="mmoe"):
        compare(feed_experiment, tmp_path / "c", structures=("mmo",), quiet=True)
    assert not (tmp_path / "c").exists()
