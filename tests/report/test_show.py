"""What is shown from Python is what the command line prints."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import Trainings
from typer.testing import CliRunner

import multigate as mg
from multigate.cli import app
from multigate.errors import ExperimentError
from multigate.report.blocks import Text
from multigate.report.compared import runs
from multigate.report.trained import open_trained
from multigate.run import open_run


def printed(*words: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_run_and_what_is_found_of_it(
    trainings: Trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trainings.run
    mg.show(mg.inspect_model(run))
    assert capsys.readouterr().out == printed("inspect", run.folder)
    pq.write_table(trainings.table, tmp_path / "rows.parquet")
    mg.show(mg.score_table(run, tmp_path / "rows.parquet", replicates=5))
    _, *shown = capsys.readouterr().out.splitlines()
    _, *rows = printed("score", run.folder, tmp_path / "rows.parquet", "--replicates", "5").splitlines()
    assert [line for line in shown if "│" in line] == [line for line in rows if "│" in line]
    mg.show(run)
    assert f"{run.best['value/r2']:.4f}" in capsys.readouterr().out
    mg.show(run.best)
    assert f"{run.best['value/r2']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize("kept", [1.0, 0.25])
def test_metrics_from_before_the_curves_are_called_so(
    kept: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the bundle scores on the same rows is something else."""
    at = np.arange(400)
    pq.write_table(pa.table({"x": at % 7, "click": at % 3 == 0}), tmp_path / "rows.parquet")
    schema = mg.Schema(features=[mg.Number("x")], tasks=[mg.Task("click", negatives_kept=kept)])
    experiment = mg.Experiment(schema=schema, train=str(tmp_path / "rows.parquet"), epochs=1)
    (tmp_path / "x.yaml").write_text(experiment.to_yaml())
    told = "before the curves that correct its predictions"
    flat = " ".join(printed("train", tmp_path / "x.yaml", "--out", tmp_path / "run").split())
    assert (told in flat) == (kept < 1)
    run = open_run(tmp_path / "run")
    mg.show(run)
    assert (told in " ".join(capsys.readouterr().out.split())) == (kept < 1)
    metrics, _ = mg.score_part(run, "valid", replicates=0)
    assert (metrics["click/log_loss"] == pytest.approx(run.best["click/log_loss"])) == (kept == 1)
    (one,) = open_trained(run, None, None)
    said, _ = runs([one])
    assert isinstance(said, Text)
    assert said.text.endswith("Metrics of run are from before the curves that correct predictions.") == (kept < 1)


def test_a_comparison(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    mg.show(trainings.comparison)
    shown = capsys.readouterr().out
    for structure in trainings.comparison.structures:
        assert f"{trainings.comparison.summary(structure, 'rare/auc').mean:.4f}" in shown


def test_what_has_no_table_is_told() -> None:
    with pytest.raises(ExperimentError, match="there is no table of int; show a run, a comparison"):
        mg.show(3)
    for predictions in ({"click": np.zeros(2)}, {"click": ["a"]}, {1: 0.5}):
        with pytest.raises(ExperimentError, match="there is no table of dict; show a run, a comparison"):
            mg.show(predictions)
