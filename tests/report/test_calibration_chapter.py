"""Probabilities that were corrected on some rows are held against others, or the page says that they are not."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multigate.experiment import Experiment
from multigate.report.blocks import Figure, Text
from multigate.report.calibration import curves
from multigate.report.trained import open_trained
from multigate.training.train import train


def sentence(folder: Path, table: str | None = None) -> str:
    """What stands in the place of curves."""
    (one,) = open_trained([folder], table, None)
    (block,) = curves(one)
    assert isinstance(block, Text)
    return block.text


def test_where_no_label_is_known_the_page_does_not_say_that_no_task_is_binary(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    plain = feed_experiment.with_(epochs=1)
    train(plain, tmp_path / "plain", quiet=True)
    rows = pq.read_table(feed_experiment.test)
    for name in ("click", "buy", "like"):
        place = rows.column_names.index(name)
        rows = rows.set_column(place, name, pa.nulls(len(rows), rows.schema.field(name).type))
    pq.write_table(rows, tmp_path / "unknown.parquet")
    said = sentence(tmp_path / "plain", str(tmp_path / "unknown.parquet"))
    assert said.startswith("No row has a known label of a binary task")

    train(plain.with_(schema=plain.schema.only(["watch"])), tmp_path / "watch", quiet=True)
    assert sentence(tmp_path / "watch").startswith("None of the tasks is binary")


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


@pytest.mark.parametrize("own_table", [True, False])
def test_test_rows_that_were_split_off_a_sampled_table_are_sampled_too(
    feed_experiment: Experiment, tmp_path: Path, own_table: bool
) -> None:
    tasks = [task.with_(negatives_kept=0.5) if task.name == "click" else task for task in feed_experiment.schema.tasks]
    sampled = feed_experiment.with_(epochs=1, schema=feed_experiment.schema.with_(tasks=tasks))
    if not own_table:
        sampled = sampled.with_(valid=None, test=None, split={"by": "fraction", "valid": 0.2, "test": 0.2})
    train(sampled, tmp_path / "run", quiet=True)
    assert "test rows, in bins" in told(tmp_path / "run")
    assert ("corrected for sampled negatives, these rows are not" in told(tmp_path / "run")) != own_table
