"""The page about a tuning, read back: its charts are valid and hold the trials, and text is text."""

from pathlib import Path

import altair as alt
import pytest
from reading import BAD, Html, values

from multigate.analysis.ranges import Choice, Point, Range, Space
from multigate.analysis.search import Trial
from multigate.analysis.space import point_of, read_space
from multigate.analysis.tuning import Tuning
from multigate.experiment import make_experiment
from multigate.report.tuned import write_tuning

GIVEN = make_experiment(
    {"schema": {"features": [{"name": "x", "kind": "number"}], "tasks": [{"name": "a"}]}, "monitor": "a/log_loss"}
)
SPACE: Space = {
    "optimizer.learning_rate": Range(low=1e-4, high=1e-1, log=True),
    "sharing": Choice(values=("mmoe", "shared_bottom")),
    "sharing.experts": Range(low=2, high=8, whole=True),
}


def trial(number: int, rate: float, structure: str, loss: float, stopped: bool = False, hopeless: str = "") -> Trial:
    point = {"optimizer.learning_rate": rate, "sharing": structure, "sharing.experts": 8 - number}
    return Trial(number, point, -loss, {}, stopped, 2.0, {} if stopped or hopeless else {"a/log_loss": loss}, hopeless)


TRIALS = [
    trial(0, 0.002, "mmoe", 0.5),
    trial(1, 0.1, "mmoe", 0.7, hopeless=BAD),
    trial(2, 0.01, "shared_bottom", 0.3, stopped=True),
    trial(3, 0.02, "mmoe", 0.4),
    trial(4, 0.03, "mmoe", 0.45),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Html:
    folder = tmp_path_factory.mktemp("page")
    path = write_tuning(Tuning(folder, GIVEN, SPACE, TRIALS), folder / "tune.html")
    return Html(path.read_text(encoding="utf-8"))


def test_of_a_loss_the_smallest_of_whole_trials_is_best(page: Html) -> None:
    assert ["optimizer.learning_rate", "0.002", "0.02"] in page.rows("optimizer.learning_rate")
    assert ["a/log_loss", "0.5000", "0.4000"] in page.rows("a/log_loss")
    assert any("A gain of 0.1000" in text for text in page.texts["p"])
    path = [(row["epoch"], row["value"]) for row in values(page.specs[0]) if "epoch" in row]
    assert path == [(1, 0.5), (2, 0.5), (3, 0.5), (4, 0.4), (5, 0.4)], "what was stopped or failed is no best"


def test_charts_hold_the_trials_that_came_to_something_and_have_the_setting(page: Html) -> None:
    alt.LayerChart.from_dict(page.specs[0], validate=True)
    rates, structures, experts = page.specs[1:]
    for spec in (rates, structures, experts):
        alt.Chart.from_dict(spec, validate=True)
    assert [(row["x"], row["value"], row["series"]) for row in values(rates)] == [
        (0.002, 0.5, "as given"),
        (0.01, 0.3, "stopped"),
        (0.02, 0.4, "best"),
        (0.03, 0.45, "others"),
    ]
    assert rates["encoding"]["x"]["scale"]["type"] == "log"
    assert [row["x"] for row in values(structures)] == ["mmoe", "shared_bottom", "mmoe", "mmoe"]
    assert [row["x"] for row in values(experts)] == [8, 5, 4], "a shared bottom has none"


def test_nothing_may_be_one_of_the_choices(tmp_path: Path) -> None:
    space = read_space(GIVEN, {"optimizer.clip": [None, 1.0]})
    points: list[Point] = [{}, {"optimizer.clip": "1.0"}, {"optimizer.clip": "null"}]
    trials = [Trial(at, point, -0.5, {}, False, 2.0, {"a/log_loss": 0.5}, "") for at, point in enumerate(points)]
    path = write_tuning(Tuning(tmp_path, GIVEN, space, trials), tmp_path / "tune.html")
    clips = Html(path.read_text(encoding="utf-8")).specs[1]
    assert [(row["x"], row["series"]) for row in values(clips)] == [("-", "as given"), ("1", "others"), ("-", "others")]


@pytest.mark.parametrize(("decay", "scale"), [(0.0, "linear"), (1e-3, "log")])
def test_a_setting_that_was_nothing_as_given_has_no_logarithmic_axis(tmp_path: Path, decay: float, scale: str) -> None:
    """The logarithm of 0 has no place on it."""
    key = "optimizer.weight_decay"
    given = GIVEN.with_(optimizer={"weight_decay": decay})
    space = read_space(given, {key: "1e-4..1e-1"})
    point = point_of(given, space) or {}
    trials = [Trial(at, one, -1.0, {}, False, 2.0, {}, "") for at, one in enumerate([point, {key: 1e-4}, {key: 0.1}])]
    path = write_tuning(Tuning(tmp_path, given, space, trials), tmp_path / "tune.html")
    chart = Html(path.read_text(encoding="utf-8")).specs[1]
    alt.Chart.from_dict(chart, validate=True)
    assert [row["x"] for row in values(chart)] == [decay, 1e-4, 0.1]
    assert chart["encoding"]["x"]["scale"]["type"] == scale


def test_every_trial_is_told_and_its_text_is_text(page: Html) -> None:
    assert [row[0] for row in page.rows() if row and row[0].isdecimal()] == list("12345")
    assert page.rows("2")[0][-1] == f"failed: {BAD}"
    assert page.rows("3")[0][1:4] == ["0.01", "shared_bottom", "-"]
    assert len(page.scripts) == 2, "the charts' data and the page's own script"


def test_a_table_is_the_same_for_the_terminal(tmp_path: Path) -> None:
    tuning = Tuning(tmp_path, GIVEN, SPACE, TRIALS)
    assert tuning.best is tuning.trials[3]
    assert tuning.gain == pytest.approx(0.1)
    tuning.write()
    import pyarrow.parquet as pq

    rows = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [row["goal"] for row in rows] == [0.5, None, 0.3, 0.4, 0.45]
    assert [row["sharing.experts"] for row in rows] == [8, 7, None, 5, 4]


def test_a_goal_of_many_tasks_has_a_name_that_can_be_read(tmp_path: Path) -> None:
    tasks = [{"name": f"readmitted_within_{days}_days"} for days in range(1, 13)]
    given = make_experiment({"schema": {"features": [{"name": "x", "kind": "number"}], "tasks": tasks}})
    aucs = {f"{task['name']}/auc": 0.6 for task in tasks}
    point = {"optimizer.learning_rate": 0.002, "sharing": "mmoe", "sharing.experts": 8}
    tuning = Tuning(tmp_path, given, SPACE, [Trial(0, point, 0.6, {}, False, 2.0, aucs, "")])
    assert tuning.goal.name == (
        "mean of readmitted_within_1_days/auc, readmitted_within_2_days/auc, readmitted_within_3_days/auc and 9 more"
    )
    page = Html(write_tuning(tuning, tmp_path / "tune.html").read_text(encoding="utf-8"))
    titles = {layer["encoding"]["y"]["title"] for spec in page.specs for layer in spec.get("layer", [spec])}
    assert titles == {"mean of readm…c and 9 more"}
