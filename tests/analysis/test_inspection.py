"""Inspections: what was planted in a model is what is told, whatever its structure."""

import io
import json
import re
from types import SimpleNamespace
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console
from scipy.special import softmax
from torch import nn

from multigate.analysis import importance
from multigate.analysis.inspection import Inspection, inspect_model
from multigate.analysis.subject import Subject, find_subject
from multigate.assembly import build_model
from multigate.bundle import Bundle
from multigate.data.encoder import Encoder
from multigate.errors import DataError, ExperimentError
from multigate.experiment import Experiment
from multigate.nn.gate import Gate
from multigate.nn.mixture import mix
from multigate.report.importance import worth
from multigate.schema import Category, Number, Schema, Task
from multigate.sharing import STRUCTURES, VARIANTS, Level, MMoE, Shared, Structure, structure_named
from multigate.tables import inspection_tables
from multigate.training.train import train

ROWS = 1000
TASKS = (Task("click"), Task("buy", given="click"), Task("watch", kind="regression"))
TABLE = {
    "x": np.random.default_rng(0).normal(5, 3, ROWS),
    "[bold]colour[/bold]": np.random.default_rng(1).choice(["[red]", "blue", "gr\u00fcn"], ROWS),
    "click": np.arange(ROWS) % 2,
    "buy": np.arange(ROWS) % 4 == 1,
    "watch": np.random.default_rng(2).normal(size=ROWS),
}


def subject_of(sharing, features=None, tasks=TASKS):
    """An untrained model and rows in two batches."""
    schema = Schema(features=features or (Number("x"), Category("[bold]colour[/bold]")), tasks=tasks)
    records = pa.table(TABLE).to_batches(max_chunksize=700)
    experiment = Experiment(schema=schema, train="rows.parquet", sharing=sharing, tower=(4,), embedding={"dim": 4})
    encoder = Encoder.fit(schema, records)
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    return Subject("runs/one", bundle, tuple(map(encoder.columns, records)), "1,000 rows")


def text_of(inspection, width=100):
    out = io.StringIO()
    Console(width=width, file=out).print(inspection_tables(inspection))
    return out.getvalue()


def test_a_gate_set_by_hand_is_the_softmax_it_is():
    subject = subject_of(MMoE(experts=3, hidden=(4,)), features=(Number("x", embedding="none"),))
    by_task = np.array([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-4.0, 0.5, 4.0]])
    with torch.no_grad():  # x is the standardised number, then whether it is missing
        subject.bundle.model.sharing.gate.linear.weight[..., 0] = torch.from_numpy(by_task)
    found = inspect_model(subject, importance=False).levels[0]
    z = (TABLE["x"] - TABLE["x"].mean()) / TABLE["x"].std()
    gate = softmax(z[:, None, None] * by_task, axis=-1)
    assert np.array(found.mean) == pytest.approx(gate.mean(axis=0), abs=1e-6)
    assert np.array(found.sd) == pytest.approx(gate.std(axis=0), abs=1e-6)
    assert found.readers == ("click", "buy", "watch")
    assert found.entropy[1] == pytest.approx(1)


@pytest.mark.parametrize("repeats", [0, -1])
def test_importance_wants_a_shuffle(repeats):
    subject = subject_of(MMoE(experts=3, hidden=(4,)))
    with pytest.raises(ExperimentError, match=f"repeats={repeats}: importance wants one shuffle"):
        inspect_model(subject, repeats=repeats)
    assert inspect_model(subject, repeats=repeats, importance=False).importance == ()


def test_planted_faults_are_found_and_served_rows_named():
    colour = "[bold]colour[/bold]"
    subject = subject_of(MMoE(experts=3, hidden=(4,)), features=(Category(colour),), tasks=TASKS[:2])
    red = subject.bundle.encoder.row({colour: "[red]"}).categories[0, 0]
    with torch.no_grad():
        table = subject.bundle.model.embed.tables["4"].weight
        table[:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
        table[red] = torch.tensor([1.0, 1.0, 0.0, 0.0])
        sharing = subject.bundle.model.sharing
        sharing.gate.linear.weight.zero_()
        sharing.gate.linear.weight[:, 2, 0] = -20  # nobody reads the last expert
        sharing.gate.linear.weight[0, 1, 1] = 2  # click reads the second one where the colour is red
        sharing.gate.linear.weight[1, 0, 0] = 9  # buy has settled on the first
        sharing.experts.layers[0].weight[1].zero_()
        sharing.experts.layers[0].bias[1, :3] = -1
    found = inspect_model(subject, repeats=1)
    assert [one.what.partition(":")[0] for one in found.findings[:2]] == [
        "expert 2 of 3 is dead",
        "the gate of buy has settled on expert 0",
    ]
    assert any("copy 1 (3 of 4)" in one.what for one in found.findings)
    assert found.units[0].dead[1] == 3
    served = [one for one in found.served if one.source == "expert 1"]
    assert [(one.feature, one.value) for one in served] == [(colour, "[red]")]
    assert not [one for one in found.served if one.source == "expert 2"]
    shown = text_of(found)
    assert "[bold]colour[/bold]" in shown, "names are no markup"
    for words in ("dead", "buy (settled)", "[red]", "sharing.experts=2"):
        assert words in shown


@pytest.mark.parametrize("name", [*STRUCTURES, *VARIANTS])
@pytest.mark.parametrize("tasks", [1, 3])
def test_every_structure_can_be_inspected(name, tasks):
    subject = subject_of(structure_named(name).with_(hidden=(8, 4)), tasks=TASKS[:tasks])
    found = inspect_model(subject, repeats=1)
    assert (found.model, found.rows) == ("runs/one", "1,000 rows")
    assert found.structure == subject.bundle.experiment.sharing.name
    gated = bool(subject.bundle.model(*subject.batches[0][:3]).gates)
    for level, wiring in zip(found.levels, subject.bundle.model.sharing.wiring, strict=True):
        assert (level.readers, level.sources, level.mask) == (wiring.readers, wiring.sources, wiring.mask)
        assert level.learned == gated
        if level.distribution:
            assert np.array(level.mean).sum(axis=1) == pytest.approx(1)
    assert found.units
    assert {one.feature for one in found.importance} == {"x", "[bold]colour[/bold]"}
    assert Inspection.model_validate(json.loads(json.dumps(found.to_dict(full=True)))) == found
    assert text_of(found)


class TwoLevels(Structure):
    """Signed readings of three experts, then a choice between what a task has of its own and what is shared."""

    structure: Literal["two_levels"] = "two_levels"

    def build(self, d_in, tasks):
        return TwoLevelsSharing(self, d_in, tasks)


class TwoLevelsSharing(nn.Module):
    def __init__(self, options, d_in, tasks):
        super().__init__()
        self.experts = options.parallel_mlp(3, d_in)
        self.d_out = self.experts.d_out
        self.gate = Gate(len(tasks), len(tasks) + 1, d_in)
        first = (*(f"{task}'s own" for task in tasks), "shared")
        own = tuple((*(one == task for one in tasks), True) for task in tasks)
        self.wiring = (
            Level(first, ("a", "b", "c"), ((True, True, False),) * len(first), distribution=False),
            Level(tasks, first, own),
        )
        self.register_buffer("mask", torch.tensor(own))

    def forward(self, x):
        signed = torch.tensor([1.0, -2.0, 0.0]).expand(len(x), len(self.wiring[0].readers), 3)
        logits = self.gate.linear(x).masked_fill(~self.mask, -torch.inf)
        choice = torch.softmax(logits, dim=-1)
        return Shared(mix(choice, mix(signed, self.experts(x))), (signed, choice), x.new_zeros(()))

    def multiply_adds(self):
        return self.experts.multiply_adds() + self.gate.multiply_adds()


def test_levels_masks_and_signed_gates():
    found = inspect_model(subject_of(TwoLevels(hidden=(4,))), repeats=1)
    first, second = found.levels
    assert first.mean == ((1, -2, 0),) * 4
    assert (first.distribution, first.entropy, first.divergence) == (False, (), ())
    assert all(second.mean[i][j] == 0 for i in range(3) for j in range(3) if i != j)
    assert not any("dead" in one.what and one.what.startswith("level") for one in found.findings)
    assert {one.level for one in found.served} <= {1}, "what does not vary serves nobody in particular"
    shown = text_of(found)
    assert "Level 1" in shown
    assert "-200 ±0" in shown
    assert re.search(r"^click's own +\S+ ±\d+ +- +-$", shown, re.MULTILINE), "barred is not 0"


def test_tables_fit_into_a_hundred_columns():
    tasks = tuple(Task(f"task number {i}") for i in range(5))
    table = TABLE | {task.name: TABLE["click"] for task in tasks}
    schema = Schema(features=(Number("x"),), tasks=tasks)
    record = pa.RecordBatch.from_pydict(table)
    encoder = Encoder.fit(schema, [record])
    for experts in (8, 40):
        experiment = Experiment(schema=schema, train="rows.parquet", sharing=MMoE(experts=experts, hidden=(4,)))
        bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
        found = inspect_model(Subject("one", bundle, (encoder.columns(record),), "1,000 rows"), repeats=1)
        shown = text_of(found)
        assert max(map(len, shown.splitlines())) <= 100
        assert "…" not in shown, "nothing is cut"
        assert ("the 10 largest of 40 sources" in shown) == (experts == 40)


def of_many_tasks(names: list[str], experts: int) -> Inspection:
    """An untrained model's, on rows that all tasks label alike."""
    record = pa.RecordBatch.from_pydict(TABLE | dict.fromkeys(names, TABLE["click"]))
    schema = Schema(features=(Number("x"),), tasks=tuple(Task(name) for name in names))
    encoder = Encoder.fit(schema, [record])
    experiment = Experiment(schema=schema, train="rows.parquet", sharing=MMoE(experts=experts, hidden=(4,)))
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    return inspect_model(Subject("one", bundle, (encoder.columns(record),), "1,000 rows"), importance=False)


def test_of_many_tasks_those_that_are_furthest_apart_are_printed():
    found = of_many_tasks([f"t{i}" for i in range(40)], experts=4)
    shown = text_of(found).partition("How far")[2]
    assert "the 10 furthest of 40 readers" in shown
    divergence = np.array(found.levels[0].row_divergence)
    i, _ = np.unravel_index(np.argmax(divergence), divergence.shape)
    (line,) = re.findall(rf"^t{i} .*$", shown, re.MULTILINE)
    assert f"{divergence[i].max():.3f}" in line.split()
    assert len(line.split()) == 11, "every divergence is one word"


def test_numbers_of_many_tasks_and_experts_are_whole_on_a_terminal_of_80_columns():
    found = of_many_tasks([f"a_rather_long_name_of_task_{i}" for i in range(30)], experts=16)
    shown = text_of(found, width=80)
    (level,) = found.levels
    gates, _, apart = shown.partition("How far")
    spreads = [f"{value:.2f}" for pair in zip(level.entropy, level.row_entropy, strict=True) for value in pair]
    assert re.findall(r"\b[01]\.\d\d\b", gates) == spreads
    assert len(re.findall(r"\b0\.\d{3}\b", apart)) == 10 * 9


def test_sparse_gates_show_how_often_each_source_is_chosen():
    found = inspect_model(subject_of(MMoE(experts=40, hidden=(4,), gating="top_k", k=3)), importance=False)
    (level,) = found.levels
    assert np.array(level.selected).sum(axis=1) == pytest.approx(3)
    assert 3 < level.needed <= 9
    assert len(found.units[0].dead) == 40, "experts are looked at on all rows"
    shown = text_of(found)
    assert "Share of rows that read a source, in %" in shown
    assert f"a row needs {level.needed:.1f} of 40 sources on average, for all readers together" in shown
    assert "Share of rows" not in text_of(inspect_model(subject_of(MMoE(hidden=(4,))), importance=False))


def test_features_of_a_wide_table_that_were_not_shuffled_are_told(monkeypatch):
    random = np.random.default_rng(0)
    names = [f"x{at:02}" for at in range(30)]
    record = pa.RecordBatch.from_pydict(TABLE | {name: random.normal(size=ROWS) for name in names})
    schema = Schema(features=tuple(Number(name, embedding="none") for name in names), tasks=TASKS)
    experiment = Experiment(schema=schema, train="rows.parquet", sharing=MMoE(experts=2, hidden=(4,)))
    encoder = Encoder.fit(schema, [record])
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    subject = Subject("one", bundle, (encoder.columns(record),), "1,000 rows")
    whole = inspect_model(subject, repeats=1)
    assert (whole.unshuffled, whole.untried) == ((), "")
    assert inspect_model(subject, importance=False).unshuffled == ()
    with torch.no_grad():
        for linear in (bundle.model.sharing.experts.layers[0], bundle.model.sharing.gate.linear):
            linear.weight[..., 10:] = 0  # x holds the numbers, then whether they are missing
    monkeypatch.setattr(importance, "FEATURES", 10)
    found = inspect_model(subject, repeats=1)
    assert {one.feature for one in found.importance} == set(names[:10])
    assert found.unshuffled == tuple(names[10:])
    told = (
        "Of 30 features the 10 that move predictions most, by gradients, were shuffled; the other 20 were not: x10, x11"
    )
    assert found.untried.startswith(told)
    assert found.untried.endswith("x15 and 14 more")
    assert told in " ".join(text_of(found).split())
    assert not any("of 30 features" in one.what for one in found.findings), "only those shuffled are counted"
    *_, note = worth(cast(Any, SimpleNamespace(inspection=found)))
    assert note.text == f"{found.untried}."
    assert Inspection.model_validate(json.loads(json.dumps(found.to_dict(full=True)))) == found


def test_tasks_that_the_rows_cannot_score_are_told():
    """Nobody bought in these rows: no feature is worth anything to buy, as far as they can tell."""
    bundle = subject_of(MMoE(experts=2, hidden=(4,))).bundle
    assert inspect_model(find_subject(bundle, TABLE), repeats=1).unknown == ""
    found = inspect_model(find_subject(bundle, TABLE | {"buy": np.zeros(ROWS)}), repeats=1)
    assert {one.target for one in found.importance} == {"click", "watch"}
    assert found.unscored == ("buy",)
    assert found.unknown == "These rows cannot score buy: what features are worth there is not known"
    assert found.unknown in " ".join(text_of(found).split())
    *_, note = worth(cast(Any, SimpleNamespace(inspection=found)))
    assert note.text == f"{found.unknown}."
    assert inspect_model(find_subject(bundle, TABLE), importance=False).unscored == ()


def test_a_run_is_inspected_on_its_validation_rows(feed_experiment, tmp_path):
    run = train(feed_experiment.with_(epochs=1), tmp_path / "run", quiet=True)
    stages = []
    found = inspect_model(find_subject(run.folder), repeats=2, progress=lambda *told: stages.append(told))
    assert found.structure == "mmoe"
    assert found.rows == "600 validation rows"
    assert {one.target for one in found.importance} == {"click", "buy", "buy|click", "like", "watch"}
    assert stages[0] == ("gates", 600, 600)
    assert {stage for stage, _, _ in stages} == {"gates", "importance (features)"}
    gates = run.bundle().predict(feed_experiment.valid, gates=True)
    means = [gates[f"gate/{task}"].mean(axis=0) for task in found.levels[0].readers]
    assert np.array(found.levels[0].mean) == pytest.approx(np.array(means), abs=1e-5)


@pytest.mark.parametrize(("rows", "told"), [(1, "1 row is"), (19, "19 rows are")])
def test_a_few_rows_tell_nothing_to_act_on(rows, told):
    """Of one row every gate is the same for all rows, and half of the units are 0 on all."""
    torch.manual_seed(0)
    bundle = subject_of(MMoE(experts=3, hidden=(16,))).bundle
    several = {name: values[: rows + 1] for name, values in TABLE.items()}
    (only,) = inspect_model(find_subject(bundle, pa.table(several).slice(0, rows)), importance=False).findings
    assert only.what == f"{told} too few to tell what calls for an action"


def test_no_rows_are_an_error():
    subject = subject_of(MMoE(experts=2, hidden=(4,)))
    with pytest.raises(DataError, match="holds no rows to inspect"):
        inspect_model(Subject("one", subject.bundle, (), "empty.parquet"))
