"""A comparison on disk: what is not what was written is told, and so is what is not there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from multigate.analysis.compare import compare
from multigate.analysis.comparison import open_comparison
from multigate.analysis.subject import find_subject
from multigate.errors import RunError
from multigate.experiment import Experiment
from multigate.report.write import write_report


@pytest.fixture(scope="module")
def made(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Path]:
    experiment = feed_experiment.with_(epochs=1)
    folder = tmp_path_factory.mktemp("made") / "comparison"
    compare(experiment, folder, structures="shared_bottom", seeds=1, boosting=False, quiet=True)
    return experiment, folder


@pytest.fixture
def folder(made: tuple[Experiment, Path], tmp_path: Path) -> Path:
    return shutil.copytree(made[1], tmp_path / "comparison")


def test_a_digit_altered_in_a_result_is_told(made: tuple[Experiment, Path], folder: Path) -> None:
    again = {"structures": "shared_bottom", "seeds": 1, "boosting": False, "quiet": True}
    file = folder / "runs" / "shared_bottom-0" / "result.json"
    row = json.loads(file.read_text())
    file.write_text(json.dumps(row))
    assert compare(made[0], folder, **again).rows == open_comparison(made[1]).rows
    file.write_text(json.dumps(row | {"click/auc": row["click/auc"] + 0.01}))
    with pytest.raises(RunError, match=r"result\.json is damaged \(it is not what was written\); delete it and run"):
        compare(made[0], folder, **again)
    file.write_text(json.dumps(row))
    shutil.copytree(file.parent, folder / "runs" / "shared_bottom-1")
    with pytest.raises(
        RunError, match=r"shared_bottom-1/result\.json is damaged \(it is that of shared_bottom-0\); del"
    ):
        compare(made[0], folder, **again | {"seeds": 2})
    shutil.rmtree(folder / "runs" / "shared_bottom-1")
    del row["checksum"]
    file.write_text(json.dumps(row))  # as they were before there was one
    assert compare(made[0], folder, **again).rows == open_comparison(made[1]).rows


def test_a_byte_altered_in_the_table_of_runs_is_told(made: tuple[Experiment, Path], folder: Path) -> None:
    rows = open_comparison(made[1]).rows
    file, told = folder / "runs.parquet", 0
    whole = file.read_bytes()
    footer = int.from_bytes(whole[-8:-4], "little")  # with the names, and what is known of the pages, which are before
    for at in range(4, len(whole) - 8 - footer, 29):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            found = open_comparison(folder).rows
        except RunError:
            told += 1
        else:
            assert found == rows, at
    assert told > 50


@pytest.mark.parametrize("look", [lambda folder: write_report(folder, folder / "report.html"), find_subject])
def test_one_of_no_finished_run_is_to_be_gone_on_with(look: Callable[[Path], object], folder: Path) -> None:
    (folder / "runs.parquet").unlink()
    with pytest.raises(RunError, match=r"has no runs\.parquet: .*; go on with the same multigate compare$"):
        look(folder)


@pytest.mark.parametrize(
    ("before", "after"), [("schema:", "3chema:"), ("name: click", "name: clikk"), ("features:", "featurez:")]
)
def test_an_altered_experiment_is_told(before: str, after: str, folder: Path) -> None:
    text = (folder / "experiment.yaml").read_text()
    assert before in text
    (folder / "experiment.yaml").write_text(text.replace(before, after, 1))
    with pytest.raises(RunError, match=r"experiment\.yaml is damaged \(.*\); restore the file"):
        open_comparison(folder)
