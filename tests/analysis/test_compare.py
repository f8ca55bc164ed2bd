"""Comparisons: one budget, honest single-task models, nothing trained twice."""

import io
import math
import os
import signal
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import Field
from rich.console import Console

from multigate.analysis.budget import multiply_adds, within_budget
from multigate.analysis.compare import _cohorts, compare
from multigate.analysis.comparison import Comparison, open_comparison, remembered
from multigate.analysis.inspection import inspect_model
from multigate.analysis.relatedness import relatedness
from multigate.analysis.subject import find_subject
from multigate.assembly import build_model
from multigate.batch import Batch
from multigate.bundle import ROWS
from multigate.calibration import Curve
from multigate.data.encoder import Encoder
from multigate.data.files import open_table
from multigate.data.prepared import Prepared, prepare
from multigate.data.rows import join, pick_tasks
from multigate.errors import ExperimentError, RunError
from multigate.evaluate import forward, scores, spaces
from multigate.experiment import Experiment
from multigate.metrics import auc
from multigate.run import strict
from multigate.schema import Number, Output, Schema, Task
from multigate.sharing import STRUCTURES, MMoE, Sharing, known_as
from multigate.training.checkpoint import load_weights
from multigate.training.cohort import Cohort
from multigate.training.fit import Fit
from multigate.training.interrupts import Interrupted
from multigate.training.loop import fit
from multigate.training.progress import Reporter

NAMES = ("single_task", "shared_bottom", "omoe", "mmoe")


@pytest.fixture(scope="module")
def encoder(feed_experiment: Experiment) -> Encoder:
    rows = pq.read_table(feed_experiment.train).to_batches()
    return Encoder.fit(feed_experiment.schema, rows)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("budget", [20_000, 100_000, 2_000_000])
def test_budgets_are_met_within_two_percent(
    feed_experiment: Experiment, encoder: Encoder, name: str, budget: int
) -> None:
    for tasks in (None, [1]):
        structure = within_budget(STRUCTURES[name](), budget, feed_experiment, encoder, tasks)
        assert multiply_adds(structure, feed_experiment, encoder, tasks) == pytest.approx(budget, rel=0.02)


def test_a_comparison_from_end_to_end(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = feed_experiment.with_(epochs=1)
    steps = {"done": 0, "together": 0}
    alone, together = Fit.step, Cohort.step

    def counted(self: Fit, batch: object) -> object:
        steps["done"] += 1
        return alone(self, batch)

    def counted_together(self: Cohort, batch: object) -> object:
        steps["done"] += len(self.active)
        steps["together"] += len(self.active)
        return together(self, batch)

    monkeypatch.setattr(Fit, "step", counted)
    monkeypatch.setattr(Cohort, "step", counted_together)
    first = compare(experiment, tmp_path, structures=NAMES, seeds=2, quiet=True)
    per_epoch = -(-4800 // 256)
    models = 4 + 1 + 3
    assert steps["done"] == 2 * per_epoch * models, "one a task, one of buy given click, three joint; two seeds"
    assert steps["together"] == 0, "two seeds are too few to gain by it"
    assert first.structures == [*NAMES, "boosting"]
    raw = pq.read_table(tmp_path / "runs.parquet").to_pylist()
    assert len(raw) == 9, "boosting runs once: it does not depend on the seed"
    assert all(row["part"] == "test" and row["rows"] == 600 for row in raw)
    costs = {row["structure"]: row["multiply_adds"] for row in raw if row["structure"] != "boosting"}
    for name in ("shared_bottom", "omoe"):
        assert costs[name] == pytest.approx(costs["mmoe"], rel=0.02)
    assert costs["single_task"] == pytest.approx(4 * costs["mmoe"], rel=0.02), "the full budget for each task"

    _conditionals_are_compared_too(first, raw)
    gain = first.gain("mmoe", "click/auc")
    values = {(row["structure"], row["seed"]): row["click/auc"] for row in raw}
    by_hand = sum(values["mmoe", seed] - values["single_task", seed] for seed in (0, 1)) / 2
    assert gain.mean == pytest.approx(by_hand)

    steps["done"] = 0
    again = compare(experiment, tmp_path, structures=NAMES, seeds=3, quiet=True)
    assert steps["done"] == per_epoch * models, "only the third seed is trained"
    assert len(again.rows) == 13
    fewer = compare(experiment, tmp_path, structures="mmoe", seeds=1, boosting=False, quiet=True)
    assert len(fewer.rows) == 1
    assert repr(fewer) == f"<Comparison in {tmp_path}: mmoe; 1 seed>"
    with pytest.raises(ExperimentError, match="wants one structure at least"):
        compare(experiment, tmp_path, structures=" , ", quiet=True)
    assert len(open_comparison(tmp_path).rows) == 13, "what was trained before stays on file"


def _conditionals_are_compared_too(comparison: Comparison, raw: list[dict[str, Any]]) -> None:
    assert all(row["buy|click/auc"] is not None for row in raw), "of every structure, boosting included"
    assert comparison.gain("mmoe", "buy|click/auc") is not None
    assert [name for name in comparison.metrics() if name.startswith("buy")] == [
        *("buy/auc", "buy/gauc", "buy|click/auc", "buy|click/gauc")
    ]
    assert [name for name in comparison.metrics() if name.startswith("watch")] == ["watch/r2"]
    shown = io.StringIO()
    Console(file=shown, width=160).print(comparison.table())
    assert "click/gauc" in shown.getvalue()


class Mine(MMoE):
    structure: Literal["mine"] = "mine"  # type: ignore[assignment]


def test_a_structure_of_ones_own_is_had_from_a_comparison(feed_experiment: Experiment, tmp_path: Path) -> None:
    experiment = feed_experiment.with_(sharing=Mine(experts=2, hidden=(4,)), epochs=1)
    found = compare(experiment, tmp_path, structures=["mine"], seeds=1, boosting=False, quiet=True)
    assert found.bundle("mine", structures=[Mine]).experiment.sharing == experiment.sharing
    assert find_subject(tmp_path, structures=[Mine]).name.endswith("(mine, seed 0)")
    with pytest.raises(
        RunError,
        match=r"comparison .* uses structure 'mine', which is not built in; pass its options class: structures=",
    ):
        found.bundle("mine")


class Measured(MMoE):
    """Looks at a value while it is built, and has an option that has no hash."""

    structure: Literal["measured"] = "measured"  # type: ignore[assignment]
    rates: dict[str, float] = Field(default={})

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> Sharing:
        assert float(torch.linspace(0, 1, 3).mean()) == 0.5
        return super().build(d_in, tasks, d_context)


def test_a_structure_of_ones_own_may_look_at_values_while_it_is_built(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = []
    step = Cohort.step
    monkeypatch.setattr(Cohort, "step", lambda self, batch: together.append(self) or step(self, batch))
    experiment = feed_experiment.with_(sharing=Measured(experts=2, hidden=(4,)), epochs=1)
    with pytest.raises(ExperimentError, match="structures are compared by their names, found Measured; name them"):
        compare(experiment, tmp_path, structures=[experiment.sharing], quiet=True)
    found = compare(experiment, tmp_path, structures=["measured"], seeds=3, boosting=False, quiet=True)
    assert len(found.values("measured", "click/auc")) == 3
    assert together, "what can be stacked is"


def test_where_new_tensors_are_by_default_changes_nothing(feed_experiment: Experiment, tmp_path: Path) -> None:
    experiment, options = feed_experiment.with_(epochs=1), {"seeds": 1, "boosting": False, "quiet": True}
    names, rows = ("single_task", "mmoe", "home"), pq.read_table(experiment.valid)
    first = compare(experiment, tmp_path / "a", structures=names, **options)
    with torch.device("meta"):
        second = compare(experiment, tmp_path / "b", structures=names, **options)
        predicted = [second.bundle(name).predict(rows)["click"] for name in names[1:]]
        found = inspect_model(tmp_path / "b", repeats=1)
        related = relatedness(find_subject(tmp_path / "b"))
    for metric in first.metrics():
        assert [first.values(one, metric) for one in first.structures] == [
            second.values(one, metric) for one in second.structures
        ]
    for name, found_there in zip(names[1:], predicted, strict=True):
        np.testing.assert_array_equal(found_there, first.bundle(name).predict(rows)["click"])
    assert found.importance == inspect_model(tmp_path / "a", repeats=1).importance
    assert related.gradients == relatedness(find_subject(tmp_path / "a")).gradients
    with pytest.raises(RunError, match=r"no joint model 'mmoe' of seed 7; it has seeds 0$"):
        second.bundle("mmoe", 7)
    rmtree(tmp_path / "b" / "runs" / "mmoe-0")
    with pytest.raises(RunError, match=r"mmoe-0 is gone or not whole; run multigate compare again$"):
        second.bundle("mmoe", 0)


def test_a_variant_goes_by_its_name_and_models_know_what_sampling_took(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    schema = feed_experiment.schema
    tasks = [task.with_(negatives_kept=0.1) if task.name == "click" else task for task in schema.tasks]
    sharing = MMoE(experts=3, hidden=(8, 4), gating="top_k")
    experiment = feed_experiment.with_(schema=schema.with_(tasks=tasks), sharing=sharing, epochs=1)
    names = ("ple", "mmoe_top_k")
    found = compare(experiment, tmp_path, structures=names, seeds=1, boosting=False, quiet=True)
    assert found.bundle("mmoe_top_k").experiment.sharing == sharing
    assert found.bundle("ple").curves == {"click": Curve().shifted(math.log(0.1))}
    assert find_subject(tmp_path).name.endswith("(mmoe_top_k, seed 0)"), "the last of the zoo, as in a report"
    assert known_as(MMoE(gating="top_k")) == "mmoe_top_k"
    assert known_as(MMoE(experts=3)) == "mmoe"
    with pytest.raises(ExperimentError, match="did you mean 'mmoe_top_k'"):
        compare(experiment, tmp_path / "no", structures=("mmoe_topk",), quiet=True)


def test_a_conditional_alone_learns_from_the_rows_where_its_parent_is_one(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    """The same as a single-task model that is told of purchases among clicks and of nothing else."""
    files = {}
    for part in ("train", "valid", "test"):
        table = pq.read_table(getattr(feed_experiment, part))
        bought = table["buy"].fill_null(0)  # no purchase without a click, but a known 0
        files[part] = str(tmp_path / f"{part}.parquet")
        pq.write_table(table.set_column(table.column_names.index("buy"), "buy", bought), files[part])
    chained = feed_experiment.schema.with_(outputs=(Output("missed", expression="click - 'buy|click'"),))
    experiment = feed_experiment.with_(**files, schema=chained, epochs=1)
    compare(experiment, tmp_path / "c", structures=("single_task",), seeds=1, boosting=False, quiet=True)
    row = open_comparison(tmp_path / "c").rows[0]
    apart = feed_experiment.schema.with_(tasks=(Task("click"), Task("buy", where="click")))
    told = experiment.with_(schema=apart)
    tables = [open_table(path) for path in (told.train, told.valid, told.test)]
    prepared = prepare(told.schema, *tables, told.split, tmp_path / "prepared")
    clicks = pq.read_table(told.train)["click"].to_pylist()
    assert join(list(prepared.train.batches(1000))).known[:, 1].tolist() == [click == 1 for click in clicks]

    budget = multiply_adds(told.sharing, experiment, Encoder.load(tmp_path / "c" / "prepared" / "encoder"))
    structure = within_budget(STRUCTURES["single_task"](), budget, told, prepared.encoder, [1])
    device = torch.device("cpu")
    with Reporter(quiet=True) as report:
        fitted = fit(told.with_(sharing=structure), prepared, tmp_path, device=device, report=report, tasks=[1])
    assert prepared.test is not None
    scored = forward(fitted.model, (pick_tasks(batch, [1]) for batch in prepared.test.batches(ROWS)), device)
    reached = scored.known[:, 0]
    assert row["buy|click/auc"] == auc(scored.logits[reached, 0], scored.labels[reached, 0])
    assert row["buy|click/auc"] != row["buy/auc"]


def of_conditional(folder: Path, experiment: Experiment, place: int) -> tuple[Batch, np.ndarray]:
    """All test rows, and logits (R,) of the model of the conditional of the task at a place."""
    part, reached = Prepared(folder / "prepared").test, Prepared(folder / "reached").encoder
    assert part is not None
    rows, name = join(list(part.batches(10_000))), experiment.schema.task_names[place]
    budget = multiply_adds(experiment.sharing, experiment, reached)
    structure = within_budget(STRUCTURES["single_task"](), budget, experiment, reached, [place])
    model = build_model(experiment.with_(sharing=structure), reached, [place])
    weights = folder / f"runs/single_task-0/{name}/given/best.safetensors"
    model.load_state_dict(load_weights(weights, torch.device("cpu")))
    return rows, forward(model, [pick_tasks(rows, [place])], torch.device("cpu")).logits[:, 0]


def test_a_conditional_alone_is_scored_by_the_weights_of_all_others(tmp_path: Path) -> None:
    """Purchases are known beside unknown clicks, which count once, and on some clicked rows, which count more."""
    tables = {}
    for seed, part in enumerate(("train", "valid", "test")):
        draw = np.random.default_rng(seed)
        x, z = draw.normal(size=(2, 1500))
        click = draw.random(1500) < 0.7
        buy = click & (draw.random(1500) < 0.6)
        pay = buy & (draw.random(1500) < 1 / (1 + np.exp(z - x)))
        untold = draw.random(1500) < 0.4
        late = click & ~untold & (draw.random(1500) < 0.7)
        masks = {"click": (click, untold), "buy": (buy, late), "pay": (pay, late)}
        labels = {name: pa.array(found.astype(int), mask=mask) for name, (found, mask) in masks.items()}
        tables[part] = pa.table({"x": x, "z": z} | labels)
    tasks = (Task("click"), Task("buy", given="click"), Task("pay", given="buy"))
    experiment = Experiment(
        schema=Schema(features=[Number("x"), Number("z")], tasks=tasks),
        **dict.fromkeys(tables, "told"),
        sharing=MMoE(experts=2, hidden=(4,)),
        epochs=1,
    )
    compare(experiment, tmp_path, structures=("single_task",), seeds=1, boosting=False, tables=tables, quiet=True)
    rows, logits = of_conditional(tmp_path, experiment, 2)
    bought = rows.known[:, 2] & rows.known[:, 1] & (rows.labels[:, 1] == 1)
    assert len(rows.weights[bought, 2].unique()) == 2
    told = auc(logits[bought], rows.labels[bought, 2], rows.weights[bought, 2])
    assert open_comparison(tmp_path).rows[0]["pay|buy/auc"] == pytest.approx(told, abs=1e-9)
    assert abs(auc(logits[bought], rows.labels[bought, 2]) - told) > 1e-4, "that the weights make a difference"


def test_a_conditional_alone_is_scored_on_the_rows_of_all_others(tmp_path: Path) -> None:
    """Purchases that nobody saw are unknown to the chain, though the table tells of them."""
    tables = {}
    for seed, part in enumerate(("train", "valid", "test")):
        draw = np.random.default_rng(seed)
        x = draw.normal(size=800)
        seen, buy = draw.random((2, 800)) < 0.5
        pay = buy & ((x > 0) == seen)  # all the other way round where nobody saw it
        labels = {name: found.astype(int) for name, found in {"seen": seen, "buy": buy, "pay": pay}.items()}
        tables[part] = pa.table({"x": x} | labels)
    experiment = Experiment(
        schema=Schema(
            features=[Number("x")], tasks=(Task("seen"), Task("buy", where="seen"), Task("pay", given="buy"))
        ),
        **dict.fromkeys(tables, "told"),
        sharing=MMoE(experts=2, hidden=(4,)),
        epochs=1,
    )
    compare(experiment, tmp_path, structures=("single_task",), seeds=1, boosting=False, tables=tables, quiet=True)
    rows, logits = of_conditional(tmp_path, experiment, 2)
    seen, bought = (np.array(tables["test"][name]) == 1 for name in ("seen", "buy"))
    told, every = (auc(logits[those], rows.labels[those, 2]) for those in (seen & bought, bought))
    assert open_comparison(tmp_path).rows[0]["pay|buy/auc"] == pytest.approx(told, abs=1e-9)
    assert abs(every - told) > 1e-2, "that the rows make a difference"


TIME = ("seconds", "rows_per_second")


def results(comparison: Comparison) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIME} for row in comparison.rows]


class StopAt:
    """Sends this process SIGTERM when trainings of a kind have done some number of steps in all."""

    def __init__(self, kind: type[Fit] | type[Cohort], step: int) -> None:
        self.kind, self.step, self.done = kind, step, 0

    def __enter__(self) -> Self:
        self.original = original = self.kind.step

        def step(training: Any, batch: Batch) -> torch.Tensor:
            found = original(training, batch)
            self.done += 1
            if self.done == self.step:
                os.kill(os.getpid(), signal.SIGTERM)
            return found

        self.kind.step = step
        return self

    def __exit__(self, *_: object) -> None:
        self.kind.step = self.original


def test_seeds_trained_together_are_gone_on_with_together(feed_experiment: Experiment, tmp_path: Path) -> None:
    """Stopped in the second of the trainings that make up the baseline, and asked for fewer seeds meanwhile."""
    experiment = feed_experiment.with_(epochs=1, schema=feed_experiment.schema.only(["click", "buy"]))
    both = ("single_task", "mmoe")
    options = {"boosting": False, "quiet": True}
    whole = results(compare(experiment, tmp_path / "whole", structures=both, seeds=3, **options))
    pieces = tmp_path / "pieces"
    for structures, step, place in ((("mmoe",), 9, "step 9"), (both, 19 + 6, "step 6")):
        with StopAt(Cohort, step), pytest.raises(Interrupted, match=f"stopped at {place} of 19"):
            compare(experiment, pieces, structures=structures, seeds=3, **options)
    assert {path.name for path in (pieces / "cohorts").iterdir()} == {"single_task-0-2", "mmoe-0-2"}
    assert not list(pieces.rglob("result.json"))
    fewer = compare(experiment, pieces, structures=both, seeds=1, **options)
    assert results(fewer) == whole[:2]
    assert len(list(pieces.rglob("result.json"))) == 6, "seeds that were begun together end together"
    assert not (pieces / "cohorts").exists()
    assert results(compare(experiment, pieces, structures=both, seeds=3, **options)) == whole


def test_files_that_a_system_leaves_among_runs_that_were_begun_are_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "cohorts").mkdir()
    for name in (".DS_Store", "mmoe-0", "mmoe-0-2", "stacked_mmoe-0-9", "mmoe-0-2-copy"):
        (tmp_path / "cohorts" / name).touch()
    assert _cohorts(tmp_path, "mmoe") == [range(3)]


@pytest.mark.parametrize(("structure", "models", "step"), [("mmoe", 1, 5), ("single_task", 3, 19 + 5)])
def test_a_seed_that_was_begun_alone_ends_alone(
    feed_experiment: Experiment, tmp_path: Path, structure: str, models: int, step: int
) -> None:
    """And of the models that make up a run, those that were done are not trained again."""
    experiment = feed_experiment.with_(epochs=1, schema=feed_experiment.schema.only(["click", "buy"]))
    options = {"structures": (structure,), "boosting": False, "quiet": True}
    whole = compare(experiment, tmp_path / "whole", seeds=1, **options)
    with StopAt(Fit, step), pytest.raises(Interrupted):
        compare(experiment, tmp_path / "pieces", seeds=1, **options)
    with StopAt(Fit, 0) as rest:
        compare(experiment, tmp_path / "pieces", seeds=1, **options)
    assert rest.done == models * 19 - step
    assert not list((tmp_path / "pieces").rglob("checkpoint.safetensors"))
    more = compare(experiment, tmp_path / "pieces", seeds=4, **options)
    assert results(more)[0] == results(whole)[0]
    assert [row["seed"] for row in more.rows] == [0, 1, 2, 3]


def test_what_is_not_trained_together_is_said_once_and_is_what_fit_gives(
    feed_experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = feed_experiment.with_(epochs=1, batch_size=1200, balance="pcgrad")
    found = compare(experiment, tmp_path / "c", structures=("mmoe",), seeds=3, boosting=False)
    told = capsys.readouterr().err
    assert told.count("one seed after the other, because balance 'pcgrad'") == 1
    tables = [open_table(path) for path in (experiment.train, experiment.valid, experiment.test)]
    prepared = prepare(experiment.schema, *tables, experiment.split, tmp_path / "prepared")
    device = torch.device("cpu")
    with Reporter(quiet=True) as report:
        alone = fit(experiment.with_(seed=2), prepared, tmp_path, device=device, report=report)
    assert prepared.test is not None
    scored = forward(alone.model, prepared.test.batches(ROWS), device)
    expected = strict(scores(spaces(experiment.schema, prepared.encoder, scored)))
    assert {name: found.rows[2][name] for name in expected} == expected
    assert found.bundle("mmoe", 2).model.state_dict().keys() == alone.model.state_dict().keys()
    for name, tensor in found.bundle("mmoe", 2).model.state_dict().items():
        assert torch.equal(tensor, alone.model.state_dict()[name])


def test_a_task_may_be_called_what_the_model_of_a_conditional_is(tmp_path: Path) -> None:
    """Its scores are those of the same task by another name: no weights are taken for its own."""
    random = np.random.default_rng(0)
    x = random.standard_normal(400)
    table = pa.table({"x": x, "click": x > -0.5, "buy": x > 0.5, "like": x < random.standard_normal(400)})
    found = {}
    for name in ("buy given", "like"):
        experiment = Experiment(
            schema=Schema(
                features=[Number("x", embedding="none")],
                tasks=[Task("click"), Task("buy", given="click"), Task(name, column="like")],
            ),
            sharing=MMoE(experts=2, hidden=(4,)),
            tower=(),
            split={"by": "fraction", "valid": 0.5},
            epochs=2,
            batch_size=64,
            precision="float32",
        )
        options = {"tables": {"train": table}, "seeds": 3, "boosting": False, "quiet": True}
        rows = compare(experiment, tmp_path / name, structures=("single_task",), **options).rows
        found[name] = [{metric.replace(name, "like"): row[metric] for metric in row if "/" in metric} for row in rows]
    assert found["buy given"] == found["like"]
    assert all("like/auc" in row and "buy|click/auc" in row for row in found["like"])


def test_a_structure_named_twice_is_compared_once(feed_experiment: Experiment, tmp_path: Path) -> None:
    experiment = feed_experiment.with_(epochs=1)
    names = ["shared_bottom", "mmoe", "shared_bottom"]
    found = compare(experiment, tmp_path, structures=names, seeds=1, boosting=False, quiet=True)
    assert [row["structure"] for row in found.rows] == ["shared_bottom", "mmoe"]


def test_settings_that_move_nothing_are_told_once(
    feed_experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = feed_experiment.with_(epochs=1, sharing=feed_experiment.sharing.with_(k=3))
    compare(experiment, tmp_path / "c", structures=["mmoe", "shared_bottom"], seeds=1, boosting=False)
    assert capsys.readouterr().err.count("sharing.k moves nothing") == 1


def test_a_comparison_of_structures_without_names_is_refused(feed_experiment: Experiment, tmp_path: Path) -> None:
    for structures in (MMoE(), [MMoE()]):
        with pytest.raises(ExperimentError, match="compared by their names, found MMoE"):
            compare(feed_experiment, tmp_path / "c", structures=structures, quiet=True)  # type: ignore[arg-type]
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("seeds", [0, True, -1, 1.5, "2"])
def test_a_comparison_of_no_seed_is_refused_before_anything_is_written(
    feed_experiment: Experiment, tmp_path: Path, seeds: Any
) -> None:
    told = f"seeds={seeds!r}: a comparison wants one at least, a whole number, and two or more for intervals"
    with pytest.raises(ExperimentError, match=told):
        compare(feed_experiment, tmp_path / "c", structures=["mmoe"], seeds=seeds, quiet=True)
    assert not (tmp_path / "c").exists()


def test_a_task_whose_name_no_folder_can_have_is_refused_before_anything_is_written(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    told = feed_experiment.schema.only(["click"])
    renamed = told.with_(tasks=(told.tasks[0].with_(name="é" * 130, column="click"),))
    experiment = feed_experiment.with_(schema=renamed)
    with pytest.raises(ExperimentError, match="has 260; choose a shorter one"):
        compare(experiment, tmp_path / "c", structures=["shared_bottom", "single_task"], seeds=1, quiet=True)
    assert not (tmp_path / "c").exists()


def test_an_unknown_structure_is_refused_before_anything_is_written(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    with pytest.raises(ExperimentError, match="mmoe"):
        compare(feed_experiment, tmp_path / "c", structures=("mmo",), quiet=True)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("column", ["click/calibration", "seconds"])
def test_what_has_no_better_and_worse_has_no_gain(tmp_path: Path, column: str) -> None:
    schema = Schema(features=[Number("x")], tasks=[Task("click")])
    runs = [{"structure": name, "seed": at, column: 1.0 + at} for name in ("single_task", "mmoe") for at in (0, 1)]
    comparison = Comparison(tmp_path, schema, runs)
    with pytest.raises(ExperimentError, match=f"'{column}', of which neither more nor less is better; see summary"):
        comparison.gain("mmoe", column)
    assert comparison.summary("mmoe", column).mean == 1.5


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"structure": "mmoe"}', '{"seed": 0}', '{"structure": 3, "seed": 0}']
)
def test_a_result_that_is_none_is_told_before_it_is_counted(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(RunError, match=r"result.json is damaged \(.*; delete it and run multigate compare again"):
        remembered(tmp_path)
