"""A task that the rows cannot score leaves its own cells blank, and nothing else of a comparison or of relations."""

import io
import json
import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from multigate.analysis.compare import compare
from multigate.analysis.comparison import open_comparison
from multigate.analysis.relate import relate
from multigate.experiment import Experiment
from multigate.report.related import write_relations
from multigate.report.write import write_report


@pytest.fixture(scope="module")
def rare(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Clicks, and likes of which there are none among the validation and the test rows."""
    folder, files = tmp_path_factory.mktemp("rare"), {}
    for part in ("valid", "test"):
        table = pq.read_table(getattr(feed_experiment, part))
        none = pa.array([0] * table.num_rows)
        files[part] = str(folder / f"{part}.parquet")
        pq.write_table(table.set_column(table.column_names.index("like"), "like", none), files[part])
    schema = feed_experiment.schema.only(["click", "like"])
    return feed_experiment.with_(schema=schema, epochs=1, batch_size=1200, **files)


@pytest.mark.parametrize("seeds", [1, 3], ids=["alone", "stacked"])
def test_a_comparison_goes_on(rare: Experiment, tmp_path: Path, seeds: int) -> None:
    found = compare(rare, tmp_path / "c", structures=("single_task", "mmoe"), seeds=seeds, quiet=True)
    assert len(found.rows) == 2 * seeds + 1
    for row in pq.read_table(tmp_path / "c" / "runs.parquet").to_pylist():
        assert 0 < row["click/auc"] < 1
        assert row["like/auc"] is None
        assert 0 < row["like/log_loss"] < 1
        assert json.loads(row["unscored"]) == {"like": "all 600 known labels are 0"}
    shown = io.StringIO()
    Console(file=shown, width=160).print(open_comparison(tmp_path / "c").table())
    assert "- like cannot be scored on the 600 test rows: all 600 known labels are 0" in shown.getvalue()
    dashes = re.findall(r"(single_task|mmoe|boosting) +│ +- │", shown.getvalue())
    assert dashes == ["single_task", "mmoe", "boosting"] * 2, "of AUC and of GAUC"
    assert math.isnan(found.summary("mmoe", "like/auc").mean)
    if seeds == 1:
        page = write_report([tmp_path / "c"], tmp_path / "page.html").read_text(encoding="utf-8")
        assert "like cannot be scored on the 600 test rows: all 600 known labels are 0." in page


def test_a_conditional_without_validation_rows_is_left_blank(feed_experiment: Experiment, tmp_path: Path) -> None:
    """Nobody clicks in the validation rows, so that nothing tells which weights of p(buy | click) are best."""
    table = pq.read_table(feed_experiment.valid)
    for name in ("click", "buy"):
        table = table.set_column(table.column_names.index(name), name, pa.array([0] * table.num_rows))
    pq.write_table(table, tmp_path / "valid.parquet")
    schema = feed_experiment.schema.only(["click", "buy"])
    experiment = feed_experiment.with_(schema=schema, epochs=1, batch_size=1200, valid=str(tmp_path / "valid.parquet"))
    found = compare(experiment, tmp_path / "c", structures=("single_task", "mmoe"), seeds=1, boosting=False, quiet=True)
    single, joint = ({row["structure"]: row for row in found.rows}[name] for name in ("single_task", "mmoe"))
    assert all(0 < row[metric] < 1 for row in (single, joint) for metric in ("click/auc", "buy/auc"))
    assert joint["buy|click/auc"] is not None
    assert "buy|click/auc" not in single
    assert found.lacks("single_task", "buy|click/auc")
    (note,) = found.notes()
    assert note.startswith("buy|click cannot be scored on the 600 test rows: no validation row tells which weights")


@pytest.fixture(scope="module")
def unknown(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """Clicks, and likes that nobody knows yet in the validation rows."""
    file = tmp_path_factory.mktemp("unknown") / "valid.parquet"
    table = pq.read_table(feed_experiment.valid)
    pq.write_table(
        table.set_column(table.column_names.index("like"), "like", pa.nulls(table.num_rows, pa.int64())), file
    )
    schema = feed_experiment.schema.only(["click", "like"])
    return feed_experiment.with_(schema=schema, epochs=1, batch_size=1200, valid=str(file))


def test_a_task_without_validation_labels_is_left_blank(unknown: Experiment, tmp_path: Path) -> None:
    """No model of likes alone can be chosen, and the others can."""
    found = compare(unknown, tmp_path / "c", structures=("single_task", "mmoe"), seeds=2, boosting=False, quiet=True)
    for row in found.rows:
        assert 0 < row["click/auc"] < 1
        assert ("like/auc" in row) == (row["structure"] == "mmoe"), "test rows have likes"
        rows = pq.read_metadata(unknown.train).num_rows * row["epochs"]
        assert row["rows_per_second"] == pytest.approx(rows / row["seconds"]), "one model was trained, not two"
    (note,) = found.notes()
    assert note.startswith("like cannot be scored on the 600 test rows: no validation row tells which weights")


def test_a_task_of_weight_0_has_no_model_of_its_own(feed_experiment: Experiment, tmp_path: Path) -> None:
    """It would stay as it was drawn, and what is shared would gain over that."""
    schema = feed_experiment.schema.only(["click", "buy"])
    tasks = (schema.task("click"), schema.task("buy").with_(weight=0))
    experiment = feed_experiment.with_(schema=schema.with_(tasks=tasks), epochs=1, batch_size=1200)
    found = compare(experiment, tmp_path / "c", structures=("single_task", "mmoe"), seeds=1, boosting=False, quiet=True)
    single = next(row for row in found.rows if row["structure"] == "single_task")
    assert {name.partition("/")[0] for name in single if "/" in name} == {"click"}
    assert found.lacks("single_task", "buy/auc")
    assert found.gain("mmoe", "buy/auc") is None
    (note,) = found.notes()
    assert note.endswith("its weight is 0, with which a model of its own learns nothing")


def test_relations_go_on(rare: Experiment, tmp_path: Path) -> None:
    found = relate(rare, tmp_path / "r", structures=["shared_bottom"], seeds=1, quiet=True)
    pair = found.pair("click", "like")
    assert pair.advice == "train alone"
    assert "cannot score like (all 600 known labels are 0)" in pair.why
    assert "click" not in pair.why
    assert [one.task for one in pair.gains] == ["click"]
    skills = {one.task: one for one in found.skills}
    assert (skills["like"].value, skills["like"].unscored) == (None, "all 600 known labels are 0")
    assert skills["click"].unscored == ""
    page = write_relations(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "cannot be scored: all 600 known labels are 0" in page


def test_relations_go_on_without_validation_labels_of_a_task(unknown: Experiment, tmp_path: Path) -> None:
    """Likes get no model of their own; what clicks gain from them is measured all the same."""
    found = relate(unknown, tmp_path / "r", structures=["shared_bottom"], seeds=1, quiet=True)
    pair = found.pair("click", "like")
    assert pair.advice == "train alone"
    assert "cannot score like (" in pair.why
    assert [one.task for one in pair.gains] == ["click"]
