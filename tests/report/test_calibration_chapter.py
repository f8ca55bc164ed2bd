"""Probabilities that were corrected on some rows are held against others, or the page says that they are not."""

from pathlib import Path

from multigate.experiment import Experiment
from multigate.report.blocks import Figure
from multigate.report.calibration import curves
from multigate.report.trained import open_trained
from multigate.training.train import train


def told(folder: Path, table: str | None = None) -> str:
    (one,) = open_trained([folder], table, None)
    (block,) = curves(one)
    assert isinstance(block, Figure)
    return block.says


def test_recalibrated_models_are_held_against_test_rows(feed_experiment: Experiment, tmp_path: Path) -> None:
    plain = feed_experiment.with_(epochs=1)
    train(plain, tmp_path / "plain", quiet=True)
    assert "validation rows, in bins" in told(tmp_path / "plain")

    train(plain.with_(recalibrate="isotonic"), tmp_path / "curves", quiet=True)
    assert "test rows, in bins" in told(tmp_path / "curves")
    assert "very rows" not in told(tmp_path / "curves")


def test_without_test_rows_the_page_says_what_that_means(feed_experiment: Experiment, tmp_path: Path) -> None:
    alone = feed_experiment.with_(epochs=1, test=None)
    train(alone.with_(recalibrate="platt"), tmp_path / "curves", quiet=True)
    assert "recalibrated on these very rows" in told(tmp_path / "curves")
    assert "very rows" not in told(tmp_path / "curves", table=str(feed_experiment.test))

    tasks = [task.with_(negatives_kept=0.5) if task.name == "click" else task for task in alone.schema.tasks]
    train(alone.with_(schema=alone.schema.with_(tasks=tasks)), tmp_path / "sampled", quiet=True)
    assert "corrected for sampled negatives" in told(tmp_path / "sampled")
