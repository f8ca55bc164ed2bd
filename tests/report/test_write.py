"""The figures in a report are those of the trainings; what cannot be told is said in its place."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reading import BAD_TASK, Html, Trainings, values
from rich.console import Console
from sklearn.metrics import r2_score, roc_auc_score

from multigate.analysis.inspection import inspect_model
from multigate.analysis.subject import find_subject
from multigate.data.prepared import Prepared
from multigate.data.rows import join
from multigate.errors import MultigateError, RunError
from multigate.report.trained import open_trained
from multigate.report.write import write_report
from multigate.run import METRICS
from multigate.tables import inspection_tables


def test_metrics_of_a_run(trainings: Trainings, html: Html) -> None:
    """AUC and R2 of the test rows, from predictions of the encoded rows, by scikit-learn."""
    prepared = Prepared(trainings.run.folder / "prepared")
    assert prepared.test is not None
    rows = join(list(prepared.test.batches(8192)))
    outputs = trainings.run.bundle().model(rows.numbers, rows.categories, rows.bags).logits.detach().numpy()
    labels = rows.labels.numpy()
    expected = {
        (BAD_TASK, "auc ↑"): roc_auc_score(labels[:, 0], outputs[:, 0]),
        ("buy", "auc ↑"): roc_auc_score(labels[:, 1], outputs[:, 1]),
        ("rare", "auc ↑"): roc_auc_score(labels[:, 2], outputs[:, 2]),
        ("value", "r2 ↑"): r2_score(labels[:, 3], outputs[:, 3]),
    }
    for (task, metric), value in expected.items():
        row = next(row for row in html.rows(task, metric) if len(row) == 6)
        assert float(row[4]) == pytest.approx(value, abs=6e-5)
        low, high = map(float, row[5].split(" to "))
        assert low < value < high
        assert float(row[2]) == pytest.approx(trainings.run.best[f"{task}/{metric.split()[0]}"], abs=6e-5)


def test_means_of_a_comparison(trainings: Trainings, html: Html) -> None:
    rows = [row for row in trainings.comparison.rows if row["structure"] == "mmoe"]
    found = [row for row in html.rows() if row[1] == "mmoe" and len(row) == 7]
    means = [float(row[2]) for row in found]
    for metric, mean in zip(trainings.comparison.metrics(), means, strict=True):
        assert mean == pytest.approx(np.mean([row[metric] for row in rows]), abs=6e-5)
    assert len(found[0][5]) > 0, "a gain over single-task models"


def test_curves_are_the_history(trainings: Trainings, html: Html) -> None:
    for run, name in ((trainings.run, "mmoe"), (trainings.other, "bottom")):
        expected = [(entry["epoch"], entry["valid"]["valid/rare/auc"]) for entry in run.history]
        drawn = [
            [(row["epoch"], row["value"]) for row in values(spec) if row["series"] == name]
            for spec in html.specs
            if spec["description"].startswith("rare/auc by epoch")
        ]
        assert expected in drawn


def test_differences_are_of_the_first_run_and_the_others(trainings: Trainings, html: Html) -> None:
    assert {"bottom against mmoe", "cmp: mmoe against shared_bottom"} <= set(html.texts["h3"])
    tested = [float(row[4]) for row in html.rows("rare", "auc ↑") if len(row) == 6 and row[4][0] not in "+-"]
    differing = [row for row in html.rows("rare", "auc ↑") if len(row) == 6 and row[4][0] in "+-"]
    assert [float(cell) for cell in differing[0][2:4]] == tested, "the metrics of both runs on the test rows"
    for _, _, a, b, difference, interval in differing:
        assert float(difference) == pytest.approx(float(b) - float(a), abs=1.1e-4)
        low, high = map(float, interval.removesuffix(" *").split(" to "))
        assert low <= float(difference) <= high
        assert interval.endswith(" *") == (low > 0 or high < 0)


def test_base_rates_and_rows(trainings: Trainings, html: Html) -> None:
    stats = trainings.run.bundle().encoder.stats[0]
    row = next(row for row in html.rows(BAD_TASK, "binary"))
    assert row[-2:] == ["100 %", f"{100 * stats.positives / stats.known:.0f} %"]
    rows = trainings.run.summary["rows"]
    assert html.rows("training rows")[0][1:] == [f"{rows['train']:,}"] * 3


def test_every_part_is_told(trainings: Trainings) -> None:
    parts = [(done, total) for stage, done, total in trainings.told if stage == "report (parts)"]
    assert [done for done, _ in parts] == list(range(1, len(parts) + 1))
    assert parts[-1] == (len(parts), len(parts))
    assert any(stage != "report (parts)" for stage, _, _ in trainings.told), "the inspection tells, too"


def test_a_table_stands_in_for_prepared_rows(trainings: Trainings, tmp_path: Path) -> None:
    page = write_report([trainings.run.folder], tmp_path / "page.html", table=trainings.table.slice(0, 300))
    html = Html(page.read_text(encoding="utf-8"))
    assert "300 rows of a table in memory" in html.rows("task", "metric")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_divergences_are_those_that_inspect_prints(trainings: Trainings, html: Html) -> None:
    inspection = inspect_model(find_subject(trainings.run.folder), importance=False)
    printed = Console(file=io.StringIO(), width=300)
    printed.print(inspection_tables(inspection))
    level = inspection.levels[0]
    for title, matrix in (("by row", level.row_divergence), ("of the mean weights", level.divergence)):
        spec = next(
            spec for spec in html.specs if spec["description"].startswith(f"Divergence {title} between the gates")
        )
        texts = {(row["down"], row["across"]): row["text"] for row in values(spec)}
        shown = [[texts[one, other] for other in level.readers] for one in level.readers]
        assert shown == [[f"{value:.3f}" for value in row] for row in matrix]
        if title == "by row":
            assert shown[0][1] in printed.file.getvalue()
    assert level.row_divergence != level.divergence


def test_what_is_damaged_is_said_and_the_rest_is_there(trainings: Trainings, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trainings.run.folder, folder)
    (folder / METRICS).write_text("{\n{}\n", encoding="utf-8")
    shard = next((folder / "prepared").glob("valid*"))
    shard.write_bytes(shard.read_bytes()[:100])
    html = Html(write_report([folder], tmp_path / "page.html").read_text(encoding="utf-8"))
    notes = [text for text in html.texts["p"] if text.startswith("This part is missing: ")]
    assert METRICS in notes[0]
    assert sum(shard.name in note for note in notes) == len(notes) - 1 > 3
    assert html.rows("structure")[0][1].startswith("mmoe")
    assert html.rows(BAD_TASK, "binary")


@pytest.mark.parametrize(
    ("out", "words"),
    [("", "is a folder"), ("page", "page.html"), ("page.pdf", "page.html"), ("file/page.html", "file")],
)
def test_where_no_page_can_be(trainings: Trainings, tmp_path: Path, out: str, words: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=words):
        write_report([trainings.run], tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(RunError, match="found none"):
        write_report([], tmp_path / "page.html")


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['altair'] = None\n"
        "from multigate.report.write import write_report\n"
        "write_report([], 'page.html')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith(f"multigate.errors.{MultigateError.__name__}: a report needs altair")
    assert error.endswith("pip install 'multigate[report]'")


def test_a_single_run_wants_no_list(trainings: Trainings) -> None:
    for alone in (trainings.run, trainings.run.folder, str(trainings.run.folder)):
        assert [one.folder for one in open_trained(alone, None, None)] == [trainings.run.folder]


def test_names_tell_runs_apart(trainings: Trainings, html: Html, tmp_path: Path) -> None:
    assert html.tables[0][0][1:] == ["mmoe", "bottom", "cmp"]
    shutil.copytree(trainings.run.folder, tmp_path / "mmoe")
    opened = open_trained([trainings.run, tmp_path / "mmoe", trainings.run.folder], None, None)
    assert [one.name for one in opened] == ["runs/mmoe", f"{tmp_path.name}/mmoe"], "each once"
