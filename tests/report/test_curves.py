"""The epoch that is marked is the one whose weights were kept."""

import math
from pathlib import Path
from shutil import copytree

import pytest
from reading import Trainings, values

from multigate.analysis.comparison import BASELINE, Comparison
from multigate.errors import RunError
from multigate.experiment import Experiment
from multigate.report.blocks import Figure, Text
from multigate.report.contents import sections
from multigate.report.curves import _figure, best_epoch, of_comparison, of_runs
from multigate.report.trained import Trained
from multigate.run import METRICS, open_run


def test_the_marked_epoch_has_the_metrics_of_the_kept_weights(trainings: Trainings) -> None:
    for run in (trainings.run, trainings.other):
        epoch = best_epoch(run.history, run.experiment)
        entry = run.history[epoch - 1]["valid"]
        # their level is matched with that of the labels since, which leaves the order of rows
        ranks = [f"{task.name}/auc" for task in run.experiment.schema.tasks if task.kind == "binary" and not task.given]
        assert ranks
        assert {name: entry[f"valid/{name}"] for name in ranks} == {name: run.best[name] for name in ranks}


@pytest.mark.parametrize(
    ("monitor", "found", "best"),
    [
        ("click/auc", [0.6, 0.7, 0.7, 0.5], 2),  # the first of equals, as in training
        ("click/log_loss", [0.6, 0.4, 0.5], 2),
        ("click/auc", [None, 0.5], 2),
        ("click/auc", [], 0),
    ],
)
def test_which_epoch_is_best(monitor: str, found: list[float | None], best: int, feed_experiment: Experiment) -> None:
    entries = [{"epoch": i + 1, "step": i, "valid": {f"valid/{monitor}": value}} for i, value in enumerate(found)]
    assert best_epoch(entries, feed_experiment.with_(monitor=monitor)) == best
    assert not any(value is not None and math.isnan(value) for value in found)


def test_what_no_epoch_defines_is_said_and_not_drawn() -> None:
    history = [{"epoch": 1, "valid": {"valid/a/auc": 0.6931, "valid/b/auc": None}}]
    (figure,) = _figure("Metrics.", ["valid/a/auc", "valid/b/auc"], {"run": history}, {"run": 1})
    assert isinstance(figure, Figure)
    assert figure.says == "Metrics. Undefined after every epoch: b/auc."
    (chart,) = figure.charts
    assert [row["value"] for row in values(chart.spec)] == [0.6931]


def test_a_run_without_curves_takes_none_from_the_others(trainings: Trainings, tmp_path: Path) -> None:
    copytree(trainings.run.folder, tmp_path / "lost")
    (tmp_path / "lost" / METRICS).unlink()
    trained = [Trained(trainings.run, "kept"), Trained(open_run(tmp_path / "lost"), "lost")]
    note, *figures = of_runs(trained)
    assert isinstance(note, Text)
    assert note.text.startswith(f"The curves of lost are missing: cannot read {tmp_path / 'lost' / METRICS}")
    charts = [chart for figure in figures if isinstance(figure, Figure) for chart in figure.charts]
    assert charts
    assert {row["series"] for chart in charts for row in values(chart.spec)} == {"kept"}
    with pytest.raises(RunError, match="cannot read"):
        list(of_runs(trained[1:]))


def test_single_task_models_alone_have_no_curves(trainings: Trainings) -> None:
    alone = [row for row in trainings.comparison.rows if row["structure"] == BASELINE]
    comparison = Comparison(trainings.comparison.folder, trainings.comparison.schema, alone)
    assert list(of_comparison(Trained(comparison, "alone"))) == []


def test_two_comparisons_are_told_apart_where_their_structures_are_the_same(trainings: Trainings) -> None:
    several = [Trained(trainings.comparison, name) for name in ("one", "two")]
    parts = next(section for section in sections(several) if section.anchor == "differences").parts
    assert [part.heading for part in parts] == [f"{name}: mmoe against shared_bottom" for name in ("one", "two")]
