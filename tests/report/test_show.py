"""What is shown from Python is what the command line prints."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from reading import Trainings
from typer.testing import CliRunner

import multigate as mg
from multigate.cli import app
from multigate.errors import ExperimentError


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


def test_a_comparison(trainings: Trainings, capsys: pytest.CaptureFixture[str]) -> None:
    mg.show(trainings.comparison)
    shown = capsys.readouterr().out
    for structure in trainings.comparison.structures:
        assert f"{trainings.comparison.summary(structure, 'rare/auc').mean:.4f}" in shown


def test_what_has_no_table_is_told() -> None:
    with pytest.raises(ExperimentError, match="there is no table of int; show a run, a comparison"):
        mg.show(3)
