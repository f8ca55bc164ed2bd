"""Findings: planted faults are named, healthy models have none, and advice can be followed."""

import re

import numpy as np
import pytest
from scipy.special import softmax

from multigate.analysis.findings import find
from multigate.analysis.gates import level_gates
from multigate.analysis.importance import Importance
from multigate.analysis.units import Units
from multigate.experiment import Experiment, changed, make_experiment
from multigate.schema import Number, Schema, Task
from multigate.sharing import Level, MMoE, OMoE, SharedBottom

TASKS, EXPERTS = ("click", "buy"), ("expert 0", "expert 1", "expert 2")
HEALTHY = [[1.0, 0.0, 0.0], [0.0, 0.5, 1.0]]


def experiment_of(sharing):
    schema = Schema(features=[Number("x")], tasks=[Task(name) for name in TASKS])
    return Experiment(schema=schema, train="rows.parquet", sharing=sharing)


def level_of(logits, noise=0.5, mask=None, distribution=True):
    mask = np.ones((len(logits), 3), dtype=bool) if mask is None else np.array(mask)
    drawn = np.array(logits) + noise * np.random.default_rng(0).normal(size=(2000, *np.shape(logits)))
    gate = softmax(np.where(mask, drawn, -np.inf), axis=-1).astype(np.float32)
    readers = TASKS[: len(logits)] if len(logits) == 2 else ("all tasks",)
    return level_gates(Level(readers, EXPERTS, tuple(map(tuple, mask.tolist())), distribution), gate)


def found(*levels, sharing=None, units=(), importance=()):
    """Findings, each with its advice tried: what it says to set can be set."""
    experiment = experiment_of(sharing or MMoE(experts=3))
    findings = find(experiment, levels, units, importance)
    for one in findings:
        settings = re.findall(r"[a-z_]+\.[a-z_]+=[\w.]+", one.advice)
        make_experiment(changed(experiment.to_dict(full=True), settings))
    return findings


def test_a_healthy_model_has_none():
    healthy = Importance(feature="x", target="click", metric="auc", loss=0.1, sd=0.01)
    assert found(level_of(HEALTHY), units=[Units(module="experts", dead=(0, 3, 1), units=48)]) == ()
    assert found(level_of(HEALTHY), importance=[healthy]) == ()


def test_a_dead_expert():
    (one,) = found(level_of([[1, -15, 0], [0, -15, 1]]))
    assert one.what == "expert 1 of 3 is dead: no gate gives more than 1% of a uniform share"
    assert "sharing.experts=2" in one.advice
    assert "sharing.gate_dropout=0.1" in one.advice


def test_experts_that_are_hardly_read():
    dead, idle, *_ = found(level_of([[1, -15, -4.5], [1, -15, -4.5]]), sharing=MMoE(experts=3, gate_dropout=0.1))
    assert dead.what.startswith("expert 1 of 3 is dead")
    assert idle.what.startswith("expert 2 of 3 is hardly read")
    assert "sharing.experts=1" in idle.advice
    assert "sharing.gate_dropout=0.2" in idle.advice


def test_a_gate_that_settled():
    (one,) = found(level_of([[9, 0, 1], [0, 0.5, 1]]))
    assert one.what.startswith("the gate of click has settled on expert 0: 100%")
    assert "sharing.gate_dropout=0.1" in one.advice


@pytest.mark.parametrize("dropout", [0.2, 0.3, 0.5, 0.8])
def test_advice_never_lowers_gate_dropout(dropout):
    sharing = MMoE(experts=3, gate_dropout=dropout)
    (settled,) = found(level_of([[9, 0, 1], [0, 0.5, 1]]), sharing=sharing)
    (dead,) = found(level_of([[1, -15, 0], [0, -15, 1]]), sharing=sharing)
    for one, other in ((settled, "optimizer.learning_rate"), (dead, "sharing.experts=2")):
        told = [float(value) for value in re.findall(r"sharing\.gate_dropout=([\d.]*\d)", one.advice)]
        assert told == ([min(2 * dropout, 0.5)] if dropout < 0.5 else [])
        assert told or other in one.advice, "there is something to do all the same"


def test_gates_that_are_alike():
    rows = np.random.default_rng(0).normal(size=(500, 1, 3)).repeat(2, axis=1)
    gate = softmax(rows, axis=-1).astype(np.float32)
    (one,) = found(level_gates(Level(TASKS, EXPERTS, ((True,) * 3,) * 2), gate))
    assert one.what == "the gates of click and buy are nearly the same: at most 0.0000 bits apart"
    assert "omoe" in one.advice
    same = found(level_of([[9, 0, 0], [9, 0, 0]]))
    assert not any("nearly the same" in one.what for one in same), "that they settled says it already"


def test_tasks_that_part():
    (one,) = [one for one in found(level_of([[5, 0, 0], [0, 4, 4]])) if "part" in one.what]
    assert re.match(r"tasks that part, .*: click and buy \(0\.\d\d bits\)", one.what)
    assert "single_task" in one.advice


def test_gates_that_look_at_no_row():
    (one,) = found(level_of(HEALTHY, noise=0.001))
    assert one.what.startswith("the gates of click and buy are the same for every row")
    (one,) = found(level_of([[1, 0, 0]], noise=0.001), sharing=OMoE(experts=3))
    assert one.what.startswith("the gate of all tasks is the same for every row")


def test_levels_are_named_where_there_are_several():
    dead = level_of([[1, -15, 0], [0, -15, 1]])
    assert [one.what[:8] for one in found(dead, level_of(HEALTHY), dead)] == ["level 1:", "level 3:"]
    fixed = level_gates(Level(TASKS, EXPERTS, ((True,) * 3,) * 2), None)
    assert found(fixed) == (), "without gates there is nothing to find"
    assert found(fixed, dead)[0].what.startswith("expert 1"), "one level with gates needs no number"


def test_barred_sources_are_no_fault():
    own = [[True, False, True], [False, True, True]]
    assert found(level_of([[0.5, 0, 0], [0, 0.5, 0]], mask=own)) == ()
    parted = found(level_of([[4, 0, 0], [0, 4, 0]], mask=own))
    assert any("tasks that part" in one.what for one in parted), "the shared source is there and not read"
    alone = [[True, False, False], [False, True, True]]
    assert found(level_of([[0, 0, 0], [0, 1, 0]], mask=alone)) == (), "no choice is no settling, no overlap no parting"


def test_gates_that_are_no_distribution_may_only_be_dead():
    settled, healthy = [[9, 0, 1], [0, 0, 9]], [[9, 0, 9], [0, 9, 9]]
    (one,) = found(level_of(settled, noise=0.001, distribution=False))
    assert one.what.startswith("expert 1 of 3 is dead")
    assert found(level_of(healthy, noise=0.001, distribution=False)) == ()


def test_dead_units():
    units = [Units(module="experts", dead=(0, 30, 48), units=48), Units(module="bottom", dead=(23,), units=48)]
    (one,) = found(sharing=SharedBottom(hidden=(32, 16)), units=units)
    assert one.what == "dead units in experts, 0 on every row: copy 1 (30 of 48) and copy 2 (48 of 48)"
    assert "sharing.activation=silu" in one.advice
    (one,) = found(sharing=SharedBottom(activation="tanh"), units=units)
    assert "silu" not in one.advice


def test_features_no_metric_misses():
    worth = {"a": (0.1, 0.0), "b": (0.0001, -0.0002), "c": (-0.0001, 0.0), "d": (0.0, 0.02), "e": (-0.02, 0.0)}
    importance = [
        Importance(feature=name, target=task, metric="auc", loss=loss, sd=0)
        for name, losses in worth.items()
        for task, loss in zip(TASKS, losses, strict=True)
    ]
    (one,) = found(importance=importance)
    assert one.what.startswith("2 of 5 features")
    assert one.what.endswith(": b and c")
    assert "cannot score" not in one.advice
    (one,) = found(importance=[one for one in importance if one.target == "click"])
    assert one.what.endswith(": b, c and d")
    assert one.advice.endswith("; buy, which these rows cannot score, may need them")


@pytest.mark.parametrize(("many", "end"), [(1, ": f0"), (2, ": f0 and f1"), (15, ", f11 and 3 more")])
def test_lists_read_as_sentences(many, end):
    importance = [Importance(feature=f"f{i}", target="click", metric="auc", loss=0, sd=0) for i in range(many)]
    assert found(importance=importance)[0].what.endswith(end)
