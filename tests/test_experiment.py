"""Experiment files: defaults, changes from the command line, and errors that name the key."""

from pathlib import Path

import pytest

from multigate.errors import ExperimentError
from multigate.experiment import Experiment, read_experiment
from multigate.schema import Number, Schema, Task
from multigate.sharing import MMoE, OMoE, SharedBottom

TEXT = """
schema:
  features:
    - {name: age, kind: number}
  tasks:
    - {name: click}
train: data/*.parquet
sharing: mmoe
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.yaml"
    path.write_text(TEXT)
    return path


def test_changes_reach_the_field_they_name(file: Path) -> None:
    changes = [
        "sharing.experts=16",
        "sharing.hidden=[32, 16]",
        "tower=[8]",
        "optimizer.learning_rate=1e-2",
        "split.valid_from=2022-05-05",
        "patience=null",
    ]
    experiment = read_experiment(file, changes)
    assert experiment.sharing == MMoE(experts=16, hidden=(32, 16))
    assert experiment.tower.hidden == (8,)
    assert experiment.optimizer.learning_rate == 0.01
    assert experiment.split.valid_from == "2022-05-05"
    assert experiment.patience is None


def test_a_structure_may_be_named_or_spelled_out(file: Path) -> None:
    assert read_experiment(file, ["sharing=omoe"]).sharing == OMoE()
    assert read_experiment(file, ["sharing={structure: shared_bottom, hidden: [9]}"]).sharing == SharedBottom(
        hidden=(9,)
    )


def test_what_is_written_is_read_back(file: Path, tmp_path: Path) -> None:
    experiment = read_experiment(file, ["sharing.gate_dropout=0.1", "balance=uncertainty", "split.by=fraction"])
    (tmp_path / "again.yaml").write_text(experiment.to_yaml())
    assert read_experiment(tmp_path / "again.yaml") == experiment


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("epoch=3", "did you mean 'epochs'?"),
        ("sharing.expert=3", "did you mean 'experts'?"),
        ("sharing=mmoee", "did you mean 'mmoe'?"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate"),
        ("batch_size=0", "batch_size"),
        ("monitor=auc", "<task>/<metric>"),
        ("epochs", "key=value"),
        ("seed.inner=3", "seed"),
    ],
)
def test_what_cannot_be_is_told_with_the_key(file: Path, change: str, told: str) -> None:
    with pytest.raises(ExperimentError, match=told.replace("?", r"\?").replace("<", ".").replace(">", ".")):
        read_experiment(file, [change])


@pytest.mark.parametrize(
    ("text", "told"),
    [("schema: [", "not valid YAML"), ("- a\n- b", "found list"), ("train: x", "schema"), (TEXT + "trian: x", "train")],
)
def test_broken_files_are_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ExperimentError, match=told):
        read_experiment(tmp_path / "x.yaml")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"nothing\.yaml"):
        read_experiment(tmp_path / "nothing.yaml")


def test_options_are_frozen() -> None:
    experiment = Experiment(schema=Schema(features=[Number("a")], tasks=[Task("b")]))
    with pytest.raises(ValueError, match="frozen"):
        experiment.epochs = 3  # type: ignore[misc]
