"""Labels that a later table spells otherwise than training did are told; they all counted as 0."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from multigate.cli import app
from multigate.errors import DataError
from multigate.experiment import Experiment
from multigate.run import Run
from multigate.score import score_table
from multigate.training.train import train

ROWS = 120
CLICKED = (np.arange(ROWS) % 3 == 0) ^ (np.arange(ROWS) % 10 == 0)
OTHERWISE = [["Yes", "No"], [True, False], [1, 0], ["yes ", "no "]]


def rows(labels: Any = ("yes", "no")) -> pa.Table:
    spelled = [labels[0] if one else labels[1] for one in CLICKED]
    return pa.table({"x": np.arange(ROWS) % 3, "click": spelled, "like": CLICKED.astype(int)})


def experiment(**changes: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "schema": {
                "features": [{"name": "x", "kind": "number"}],
                "tasks": [{"name": "click", "positive": "yes"}, {"name": "like"}],
            },
            "train": "train.parquet",
            "sharing": {"structure": "shared_bottom", "hidden": [4]},
            "epochs": 1,
            "precision": "float32",
        }
        | changes
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    tables = {"train": rows(), "valid": rows()}
    return train(experiment(), tmp_path_factory.mktemp("spelling") / "run", tables=tables, quiet=True, device="cpu")


@pytest.mark.parametrize("labels", OTHERWISE)
def test_no_table_of_other_labels_is_scored(trained: Run, labels: list, tmp_path: Path) -> None:
    wanted = r"column 'click': wanted labels of task 'click' as .* have them \('no', 'yes'\), found .*; write them as"
    with pytest.raises(DataError, match=f"^table: {wanted}"):
        score_table(trained.bundle(), rows(labels), replicates=0)
    pa.csv.write_csv(rows(labels), tmp_path / "later.csv")
    with pytest.raises(DataError, match=f"later.csv: {wanted}"):
        score_table(trained.bundle(), tmp_path / "later.csv", replicates=0)


@pytest.mark.parametrize("labels", OTHERWISE)
def test_none_is_trained_with(trained: Run, labels: list, tmp_path: Path) -> None:
    for part in ("valid", "test"):
        tables = {"train": rows(), "valid": rows(), part: rows(labels)}
        with pytest.raises(DataError, match="column 'click': wanted labels of task 'click' as the training rows"):
            train(experiment(), tmp_path / part, tables=tables, quiet=True, device="cpu")
    later = experiment(warm_start=str(trained.folder))
    with pytest.raises(DataError, match="column 'click': wanted labels of task 'click' as the training rows"):
        train(later, tmp_path / "later", tables={"train": rows(labels)}, quiet=True, device="cpu")


def test_labels_that_are_all_negative_are_scored_and_the_terminal_says_what_cannot_be(
    trained: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa.csv.write_csv(rows(["no", "no"]), tmp_path / "later.csv")
    app(["score", str(trained.folder), str(tmp_path / "later.csv"), "--replicates", "0"], standalone_mode=False)
    shown = capsys.readouterr()
    assert "n/a" in shown.out
    assert shown.err.strip() == f"these rows cannot score task 'click' (all {ROWS} known labels are 0)"
    metrics, _ = score_table(trained.bundle(), rows(["no", "no"]), replicates=0)
    p = trained.bundle().predict(rows())["click"]
    assert metrics["click/log_loss"] == pytest.approx(-np.log1p(-p).mean(), rel=1e-5)


def test_a_table_with_one_label_of_training_is_read_whatever_else_it_holds(trained: Run) -> None:
    some = rows(["yes", "later"])
    assert score_table(trained.bundle(), some, replicates=0) == score_table(trained.bundle(), rows(), replicates=0)
    odd = rows(["later", "later"]).set_column(1, "click", pa.array([None] * (ROWS - 1) + ["no"]))
    assert np.isnan(score_table(trained.bundle(), odd, replicates=0)[0]["click/auc"])
    nothing = rows().set_column(1, "click", pa.nulls(ROWS, pa.string()))
    assert np.isnan(score_table(trained.bundle(), nothing, replicates=0)[0]["click/log_loss"])
