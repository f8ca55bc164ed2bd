"""Why a task cannot be scored, against metrics that are NaN; and what weights are chosen by then."""

import math

import numpy as np
import pytest

from multigate.evaluate import Monitor, Space, scores
from multigate.schema import Number, Schema, Task
from multigate.unscored import listed_reasons, unscored


def space(kind: str, labels: list[float], weights: list[float] | None = None, outputs: object = None) -> Space:
    shape = (len(labels), 3) if kind == "multiclass" else (len(labels),)
    found = np.linspace(-1, 1, math.prod(shape)).reshape(shape) if outputs is None else np.array(outputs)
    held = None if weights is None else np.array(weights, dtype=np.float32)
    return Space("a", kind, found.astype(np.float32), np.array(labels, dtype=np.float32), held, None)


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (space("binary", []), "no label is known"),
        (space("binary", [0, 0, 0]), "all 3 known labels are 0"),
        (space("binary", [1]), "there is one known label only"),
        (space("binary", [1, 0, 0], [0, 2, 1]), "all 2 known labels are 0"),
        (space("binary", [1, 0], [0, 0]), "all known labels have weight 0"),
        (space("binary", [1, 0], outputs=[math.nan, 0]), "not every prediction is a number"),
        (space("multiclass", [2, 2]), "all 2 known labels are of one class"),
        (space("regression", [2.5, 2.5]), "all 2 known labels are 2.5"),
        (space("regression", [0, 1], [0, 3]), "there is one known label only"),
    ],
)
def test_the_reason_is_told_where_the_metric_is_undefined(found: Space, reason: str) -> None:
    assert unscored([found], scores([found])) == {"a": reason}


@pytest.mark.parametrize("kind", ["binary", "regression", "multiclass"])
def test_nothing_is_told_where_it_is_defined(kind: str) -> None:
    found = space(kind, [0, 1, 1], [0.5, 1, 0])
    assert unscored([found], scores([found])) == {}


def test_many_reasons_are_cut_short() -> None:
    told = listed_reasons(dict.fromkeys("abcde", "no label is known"))
    assert told.startswith("task 'a' (no label is known), task 'b' (no label is known), task 'c'")
    assert told.endswith(" and 2 more")


def test_a_mean_that_is_undefined_gives_way_to_losses() -> None:
    tasks = [Task("a"), Task("b", kind="regression"), Task("c", auxiliary=True)]
    monitor = Monitor("mean", Schema(features=[Number("x")], tasks=tasks))
    blank = {"a/auc": math.nan, "b/r2": math.nan, "c/auc": 0.9}
    losses = {"a/log_loss": 0.3, "b/rmse": 0.5, "c/log_loss": 7.0}
    assert math.isnan(monitor.value(blank | losses))
    assert monitor.choice(blank | losses) == pytest.approx(-0.4)
    assert monitor.choice(blank | losses | {"a/log_loss": math.nan}) == -0.5
    assert monitor.choice(blank | losses | {"a/auc": 0.7}) == 0.7, "a main metric goes before losses"
    assert math.isnan(monitor.choice(blank)), "nothing is known"


def test_infinite_predictions_are_worse_than_any_others() -> None:
    """Of weights whose R2 is minus infinity the other tasks alone would say that they are better."""
    tasks = [Task("a"), Task("b", kind="regression")]
    monitor = Monitor("mean", Schema(features=[Number("x")], tasks=tasks))
    sound, astray = {"a/auc": 0.7, "b/r2": 0.1}, {"a/auc": 0.8, "b/r2": -math.inf}
    assert monitor.choice(astray) < monitor.choice(sound)
    assert monitor.choice({"a/auc": 0.8, "b/r2": math.nan}) == 0.8, "no label of b is known"


def test_a_wild_r2_does_not_choose_for_the_other_tasks() -> None:
    monitor = Monitor("mean", Schema(features=[Number("x")], tasks=[Task("a"), Task("b", kind="regression")]))
    early, late = {"a/auc": 0.6, "b/r2": -130_000.0}, {"a/auc": 0.9, "b/r2": -480_000.0}
    assert monitor.choice(early) < monitor.choice(late)
    assert monitor.choice({"a/auc": 0.6, "b/r2": -3.0}) < monitor.choice({"a/auc": 0.6, "b/r2": -2.0})
    assert monitor.choice({"a/auc": 0.6, "b/r2": 0.2}) == pytest.approx(0.4)
    assert monitor.choice({"a/auc": math.nan, "b/r2": -3.0}) == -3.0, "nothing to outweigh"


def test_a_monitor_by_name_is_kept_to() -> None:
    monitor = Monitor("a/auc", Schema(features=[Number("x")], tasks=[Task("a")]))
    assert math.isnan(monitor.choice({"a/auc": math.nan, "a/log_loss": 0.3}))
