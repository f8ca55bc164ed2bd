"""Tuning finds what is known to be best, begins with the experiment as given, and goes on as if nothing had been."""

import io
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from multigate.analysis.ranges import Point
from multigate.analysis.search import Trial
from multigate.analysis.space import read_space
from multigate.analysis.stopping import Stopped
from multigate.analysis.tune import Ground, try_point, tune
from multigate.analysis.tuning import Tuning
from multigate.data.prepared import Prepared, thinned
from multigate.errors import ExperimentError, MultigateError, RunError
from multigate.experiment import Experiment, read_experiment
from multigate.schema import Task
from multigate.sharing import MMoE
from multigate.training.train import train
from processes import Ended, Stop, run

ROWS = 1_200


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labels that are signs of two numbers: a model that learns at all has an AUC near 1."""
    folder = tmp_path_factory.mktemp("rows")
    random = np.random.default_rng(0)
    x, y = random.standard_normal((2, ROWS))
    table = pa.table({"x": x, "y": y, "a": (x > 0).astype(int), "b": (x + y > 0).astype(int), "z": x + y})
    pq.write_table(table[:900], folder / "train.parquet")
    pq.write_table(table[900:], folder / "valid.parquet")
    return folder


@pytest.fixture(scope="module")
def experiment(rows: Path) -> Experiment:
    return Experiment(
        schema={
            "features": [{"name": name, "kind": "number", "embedding": "none"} for name in "xy"],
            "tasks": [{"name": "a"}, {"name": "b"}],
        },
        train=str(rows / "train.parquet"),
        valid=str(rows / "valid.parquet"),
        sharing=MMoE(experts=2, hidden=(8,)),
        tower=(),
        embedding={"dropout": 0},
        optimizer={"learning_rate": 1e-6},
        batch_size=64,
        epochs=2,
        precision="float32",
    )


RATES = {"optimizer.learning_rate": [1e-6, 1e-2]}


@pytest.fixture(scope="module")
def rates(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    return tune(experiment, RATES, out=tmp_path_factory.mktemp("rates") / "out", workers=1, quiet=True)


def test_of_two_rates_the_one_that_learns_is_found(rates: Tuning) -> None:
    assert [trial.settings for trial in rates.trials] == [
        {"optimizer.learning_rate": 1e-6},
        {"optimizer.learning_rate": 1e-2},
    ], "there are no more points, though thirty trials were asked for"
    assert rates.experiment.optimizer.learning_rate == 1e-2
    assert rates.best.goal is not None
    assert rates.best.goal > 0.9
    assert rates.gain == pytest.approx(rates.best.goal - rates.trials[0].goal)
    assert not (rates.folder / "work").exists()


def test_the_first_trial_is_the_experiment_as_given(rates: Tuning, experiment: Experiment, tmp_path: Path) -> None:
    alone = train(experiment, tmp_path / "run", quiet=True).best
    assert rates.trials[0].metrics == alone
    assert rates.trials[0].goal == pytest.approx((alone["a/auc"] + alone["b/auc"]) / 2, abs=1e-12)


def test_the_best_experiment_trains_to_the_number_of_its_trial(rates: Tuning, tmp_path: Path) -> None:
    best = train(read_experiment(rates.folder / "best.yaml"), tmp_path / "run", quiet=True).best
    assert best == rates.best.metrics
    assert (best["a/auc"] + best["b/auc"]) / 2 == pytest.approx(rates.best.goal, abs=1e-12)


def test_relative_paths_of_tables_are_found_from_anywhere(
    experiment: Experiment, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows)
    relative = experiment.with_(train=("train.parquet",), valid="*id.parquet", epochs=1)
    found = tune(relative, RATES, out=tmp_path / "out", trials=1, workers=1, quiet=True)
    assert repr(found) == f"<Tuning in {tmp_path / 'out'}: 1 trials of {', '.join(RATES)}>"
    monkeypatch.chdir(tmp_path)
    best = read_experiment(found.folder / "best.yaml")
    assert best.train == (str(rows / "train.parquet"),)
    assert best.valid == str(rows / "*id.parquet")


def test_what_it_leaves_says_what_every_trial_came_to(rates: Tuning) -> None:
    kept = pq.read_table(rates.folder / "trials.parquet").to_pylist()
    assert [row["trial"] for row in kept] == [1, 2]
    assert [row["goal"] for row in kept] == [trial.goal for trial in rates.trials]
    assert [row["a/auc"] for row in kept] == [trial.metrics["a/auc"] for trial in rates.trials]
    assert [(row["stopped"], row["failed"]) for row in kept] == [(False, None)] * 2


def test_of_many_metrics_the_table_shows_the_main_one_of_every_task(experiment: Experiment, tmp_path: Path) -> None:
    """Whichever is the goal, and that once: what one task gains another may have paid for."""
    names = ("a", "b", "c", "d")
    schema = experiment.schema.with_(tasks=[*map(Task, names), Task("z", kind="regression")])
    given = experiment.with_(schema=schema, monitor="b/auc")
    metrics = {f"{task}/{name}": 0.5 for task in names for name in ("auc", "pr_auc", "log_loss")} | {"z/r2": 0.25}
    point: Point = {"optimizer.learning_rate": "1e-06"}
    trial = Trial(0, point, 0.5, {}, False, 1.0, metrics, "")
    tuning = Tuning(tmp_path, given, read_space(given, RATES), [trial])
    shown = io.StringIO()
    Console(file=shown, width=100).print(tuning.table())
    told = [
        words[0] for line in shown.getvalue().splitlines() if "/" in (words := line.strip("│┃ ").split() or [""])[0]
    ]
    assert told == ["a/auc", "c/auc", "d/auc", "z/r2", "b/auc"]


TWO = {"sharing": "shared_bottom,mmoe", "sharing.experts": "2..5"}
"""Eight points and five experiments: a shared bottom has no experts."""


def tried(tuning: Tuning) -> set[tuple[Any, ...]]:
    return {tuple(trial.settings.values()) for trial in tuning.trials}


def test_a_small_space_gone_on_with_is_tried_to_its_end(experiment: Experiment, tmp_path: Path) -> None:
    quick = experiment.with_(epochs=1, batch_size=900, seed=4)
    every = {("shared_bottom", None), *(("mmoe", experts) for experts in range(2, 6))}
    few = tune(quick, TWO, out=tmp_path, trials=4, workers=1, quiet=True)
    assert (len(few.trials), len(tried(few))) == (4, 2), "three of the points drawn are one shared bottom"
    more = tune(quick, TWO, out=tmp_path, trials=10, workers=1, quiet=True)
    assert tried(more) == every
    assert more.trials[:4] == few.trials
    assert len(more.trials) == 4 + len(every - tried(few)), "none of them twice"
    assert tune(quick, TWO, out=tmp_path, trials=30, workers=1, quiet=True).trials == more.trials, "nothing is left"


SPACE = ("--try", "optimizer.learning_rate=1e-4..1e-1", "--try", "sharing.experts=1..4")


def points(folder: Path) -> list[tuple[Any, ...]]:
    names = ("trial", "optimizer.learning_rate", "sharing.experts", "goal", "stopped")
    return [tuple(row[name] for name in names) for row in pq.read_table(folder / "trials.parquet").to_pylist()]


def typed(folder: Path, *words: object, stop: Stop | None = None) -> Ended:
    """A command without what draws pages, which takes longer than everything here."""
    return run(["tune", "x.yaml", "--workers", 1, *words], folder, stop, without=["altair"])


def test_after_a_kill_the_trials_are_those_of_an_undisturbed_search(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(experiment.with_(epochs=1).to_yaml())
    whole = typed(tmp_path, "--trials", 3, *SPACE, "--out", "whole")
    assert whole.code == 0, whole.told
    assert "pip install 'multigate[report]'" in whole.told
    kill = Stop("training.fit:Fit.evaluate", 2, signals=(signal.SIGKILL,))
    assert typed(tmp_path, "--trials", 3, *SPACE, "--out", "broken", stop=kill).code == -signal.SIGKILL
    ended = typed(tmp_path, "--trials", 3, *SPACE, "--out", "broken")
    assert ended.code == 0, ended.told
    assert points(tmp_path / "broken") == points(tmp_path / "whole")
    assert (tmp_path / "broken" / "best.yaml").read_text() == (tmp_path / "whole" / "best.yaml").read_text()
    assert "trial 1/3" not in ended.told, "what was done is not done again"


def test_ctrl_c_stops_and_more_trials_go_on_but_nothing_else(experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(experiment.with_(epochs=1).to_yaml())
    stopped = typed(tmp_path, "--out", "out", "--trials", 2, *SPACE, stop=Stop("training.fit:Fit.evaluate", 2))
    assert stopped.code == 130
    assert "the same command goes on" in stopped.told
    before = points(tmp_path / "out")
    assert typed(tmp_path, "--out", "out", "--trials", 3, *SPACE).code == 0
    assert points(tmp_path / "out")[:1] == before
    assert len(points(tmp_path / "out")) == 3
    for more, told in (
        ((*SPACE[:3], "sharing.experts=1..5"), "space.sharing.experts.high: 4.0, now 5.0"),
        ((*SPACE, "--set", "epochs=2"), "epochs: 1, now 2"),
        ((*SPACE, "--goal", "a/log_loss"), 'monitor: "mean", now "a/log_loss"'),
        ((*SPACE, "--share", "0.5"), '"share 1", now "share 0.5"'),
        ((*SPACE, *SPACE[:2]), "learning_rate twice"),
    ):
        other = typed(tmp_path, "--out", "out", *more)
        assert other.code == 2
        assert told in other.told, other.told
    assert "multigate tune" in run(["train", "x.yaml", "--out", "out"], tmp_path).told
    assert "best.yaml" in run(["inspect", "out"], tmp_path).told


def test_a_loss_is_made_small_and_no_trial_ends_worse_than_the_experiment(
    experiment: Experiment, tmp_path: Path
) -> None:
    good = experiment.with_(optimizer={"learning_rate": 1e-2})
    space = {"optimizer.learning_rate": [1e-6, 3e-2]}
    found = tune(good, space, out=tmp_path / "loss", goal="b/log_loss", workers=1, quiet=True)
    goals = {trial.settings["optimizer.learning_rate"]: trial.goal for trial in found.trials}
    assert list(goals) == [1e-2, 1e-6, 3e-2], "as given it is outside the space, and tried all the same"
    assert found.best.goal == min(goals.values())
    assert goals[1e-6] == pytest.approx(np.log(2), abs=0.2)
    assert found.gain is not None
    assert found.gain >= 0
    space = {"optimizer.learning_rate": [1e-2, 1e-7]}
    worse = tune(good, space, out=tmp_path / "worse", workers=1, quiet=True)
    assert worse.experiment == good
    assert worse.gain == 0
    assert "No trial was better" in worse.verdict


def test_where_no_main_metric_is_there_the_goal_is_the_loss_that_chooses_and_says_so(
    experiment: Experiment, rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(rows / "valid.parquet")
    alike = {"a": table.filter(pc.equal(table["a"], 0)), "a and b": table.filter(pc.less(table["z"], 0))}
    alike["a and b"] = alike["a and b"].filter(pc.equal(alike["a and b"]["a"], 0))
    tables = {"train": pq.read_table(rows / "train.parquet")}
    one = experiment.with_(train="", valid=None)
    part = tune(one, RATES, out=tmp_path / "part", workers=1, tables=tables | {"valid": alike["a"]})
    assert part.goal.name == "b/auc"
    assert [trial.goal for trial in part.trials] == [trial.metrics["b/auc"] for trial in part.trials]
    assert f"cannot score task 'a' (all {alike['a'].num_rows} known labels are 0)" in capfd.readouterr().err
    found = tune(one, RATES, out=tmp_path / "none", workers=1, quiet=True, tables=tables | {"valid": alike["a and b"]})
    assert found.goal.name == "mean of a/log_loss and b/log_loss"
    for trial in found.trials:
        assert trial.goal == pytest.approx((trial.metrics["a/log_loss"] + trial.metrics["b/log_loss"]) / 2)
    goals = [trial.goal for trial in found.trials]
    assert found.best.goal == min(goals)
    assert found.gain == pytest.approx(goals[0] - min(goals))
    assert "by mean of a/log_loss and b/log_loss on" in (tmp_path / "none" / "best.yaml").read_text(encoding="utf-8")


def test_what_cannot_be_or_diverges_is_a_failed_trial_that_says_why(experiment: Experiment, tmp_path: Path) -> None:
    space = {"sharing": ["mmoe", "ple"], "embedding.tables": ["shared", "own"], "optimizer.learning_rate": [1e-2, 1e30]}
    found = tune(experiment.with_(epochs=1), space, out=tmp_path, workers=1, quiet=True)
    assert len(found.trials) == 9
    for trial in found.trials[1:]:
        own = trial.settings["sharing"] == "mmoe" and trial.settings["embedding.tables"] == "own"
        if own:
            assert "one input for all tasks" in trial.failed
        elif trial.settings["optimizer.learning_rate"] == 1e30:
            assert "lower optimizer.learning_rate" in trial.failed
        else:
            assert trial.failed == ""
        assert (trial.goal is None) == bool(trial.failed)
    assert found.best.failed == ""


def test_one_that_is_behind_is_stopped_but_never_the_experiment_as_given(
    rates: Tuning, experiment: Experiment, tmp_path: Path
) -> None:

    def stop(step: int, value: float) -> None:
        raise Stopped

    given: Point = {"optimizer.learning_rate": "1e-06"}
    ground = Ground(experiment, given, (rates.folder / "prepared").resolve(), tmp_path / "work", "cpu")
    assert try_point(ground, ground.given, stop).value > 0
    with pytest.raises(Stopped):
        try_point(ground, {"optimizer.learning_rate": "0.01"}, stop)


def test_processes_come_to_the_trials_of_one(rates: Tuning, experiment: Experiment, tmp_path: Path) -> None:
    found = tune(experiment, RATES, out=tmp_path, workers=2, quiet=True)
    assert found.trials[0].settings == rates.trials[0].settings
    assert found.best.goal == pytest.approx(rates.best.goal, abs=1e-4)


def test_a_share_of_the_training_rows_is_drawn_once_and_validation_rows_are_whole(
    experiment: Experiment, tmp_path: Path
) -> None:
    found = tune(experiment, RATES, out=tmp_path, share=0.25, trials=1, workers=1, quiet=True)
    whole, part = Prepared(found.folder / "prepared"), Prepared(found.folder / "sample")
    assert (part.train.rows, part.valid.rows) == (225, 300)
    mine, all_of_them = (
        {tuple(row) for batch in one.train.batches(64) for row in batch.numbers.tolist()} for one in (part, whole)
    )
    assert len(mine) == 225
    assert mine < all_of_them
    before = (found.folder / "sample" / "manifest.json").stat().st_mtime_ns
    assert thinned(whole, 0.25, found.folder / "sample").train.rows == 225
    assert (found.folder / "sample" / "manifest.json").stat().st_mtime_ns == before
    halves = [thinned(whole, 0.5, tmp_path / name).train for name in ("half", "again")]
    assert [batch.numbers.tolist() for batch in halves[0].batches(99)] == [
        batch.numbers.tolist() for batch in halves[1].batches(99)
    ]


def test_settings_that_move_nothing_are_told_once(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = experiment.with_(sharing=MMoE(experts=2, hidden=(8,), k=3), epochs=1)
    tune(given, {"embedding.dropout": [0.0, 0.1]}, out=tmp_path / "t", trials=2, workers=1)
    assert capsys.readouterr().err.count("sharing.k moves nothing") == 1


def test_what_cannot_be_is_refused_before_anything_runs(experiment: Experiment, tmp_path: Path) -> None:
    for wrong, told in (
        ({"trials": 0}, "trials and workers are 1 or more"),
        ({"share": 1.5}, "share is above 0"),
        ({"goal": "a/acu"}, "did you mean 'auc'"),
        ({"space": {}}, "nothing to try"),
        ({"space": "epochs=1,2"}, "fields and their values, found str"),
        ({"trials": True}, "trials and workers are 1 or more.*found True"),
        ({"share": True}, "share is above 0.*found .*True"),
        ({"trials": "3"}, "trials and workers are 1 or more.*found '3'"),
    ):
        with pytest.raises(ExperimentError, match=told):
            tune(experiment, out=tmp_path / "out", quiet=True, **wrong)
    with pytest.raises(ExperimentError, match="leave warm_start out"):
        tune(experiment.with_(warm_start="run"), out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
    train(experiment.with_(epochs=1), tmp_path / "run", quiet=True)
    with pytest.raises(RunError, match="holds one run"):
        tune(experiment, out=tmp_path / "run", quiet=True)


def test_without_optuna_the_extra_is_named(
    experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MultigateError, match=r"pip install 'multigate\[tune\]'"):
        tune(experiment, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
