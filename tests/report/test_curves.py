"""The epoch that is marked is the one whose weights were kept."""

import math

import pytest
from reading import Trainings

from multigate.experiment import Experiment
from multigate.report.curves import best_epoch


def test_the_marked_epoch_has_the_metrics_of_the_kept_weights(trainings: Trainings) -> None:
    for run in (trainings.run, trainings.other):
        epoch = best_epoch(run.history, run.experiment)
        entry = run.history[epoch - 1]["valid"]
        assert {name: entry[f"valid/{name}"] for name in run.best} == run.best


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
