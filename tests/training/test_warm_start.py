"""Warm start: ids keep their rows, new ones begin as unseen, and training goes on from exactly what was there."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from resumed import resumed
from safetensors.torch import load_file
from sklearn.metrics import log_loss

from multigate.analysis.compare import compare
from multigate.assembly import build_model
from multigate.bundle import Bundle, load
from multigate.calibration import Curve
from multigate.data.infer import infer_schema
from multigate.errors import BundleError, ExperimentError
from multigate.experiment import Experiment
from multigate.report.trained import open_trained
from multigate.run import Run, open_run
from multigate.schema import Category, Number, Schema, Task
from multigate.sharing import MMoE, OMoE
from multigate.training.train import train
from multigate.training.warm_start import check_start, start_from


@pytest.fixture(scope="module")
def early(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained on the first half of the rows."""
    folder = tmp_path_factory.mktemp("warm")
    table = pq.read_table(feed_experiment.train)
    pq.write_table(table.slice(0, table.num_rows // 2), folder / "early.parquet")
    pq.write_table(table.slice(table.num_rows // 2), folder / "late.parquet")
    return train(feed_experiment.with_(train=str(folder / "early.parquet")), folder / "run", quiet=True)


@pytest.fixture(scope="module")
def late(early: Run) -> Experiment:
    return early.experiment.with_(
        train=str(early.folder.parent / "late.parquet"), warm_start=str(early.folder), epochs=1, seed=3
    )


@pytest.fixture(scope="module")
def run(late: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(late, tmp_path_factory.mktemp("later") / "run", quiet=True)


def test_old_ids_keep_their_rows_and_new_ones_come_behind(early: Run, run: Run) -> None:
    before, after = early.bundle().encoder, run.bundle().encoder
    late_users = {str(user) for user in pq.read_table(run.experiment.train, columns=["user"])["user"].to_pylist()}
    assert after.layout.tables["user"] > before.layout.tables["user"]
    for table, vocabulary in before.fitted.vocabularies.items():
        values = after.fitted.vocabularies[table].values
        assert values[: len(vocabulary.values)] == vocabulary.values
        assert len(set(values)) == len(values)
    assert {*before.fitted.vocabularies["user"].values, *late_users} == {*after.fitted.vocabularies["user"].values}
    assert before.fitted.scales == after.fitted.scales
    assert before.fitted.edges == after.fitted.edges
    assert [(one.mean, one.sd) for one in before.stats] == [(one.mean, one.sd) for one in after.stats]


def test_before_the_first_step_it_predicts_as_the_bundle_did(early: Run, run: Run, late: Experiment) -> None:
    """New ids too: the bundle reads them as unseen, and that is what their rows begin as."""
    before = early.bundle()
    model = build_model(late, run.bundle().encoder)
    start_from(model, before)
    table = pq.read_table(late.train)
    known = pa.array(before.encoder.fitted.vocabularies["user"].values)
    strangers = pc.invert(pc.is_in(table["user"].cast(pa.string()), known))
    assert pc.sum(strangers).as_py() > 20
    again = Bundle(late, run.bundle().encoder, model).predict(table)
    for name, values in before.predict(table).items():
        np.testing.assert_array_equal(again[name], values)
    assert run.history[0]["epoch"] == 0
    for name, value in run.history[0]["valid"].items():
        assert early.best[name.removeprefix("valid/")] == pytest.approx(value, nan_ok=True)


def test_it_moves_on_and_never_ends_worse_than_it_began(run: Run, early: Run) -> None:
    mean = [entry["valid"]["valid/click/auc"] for entry in run.history]
    assert len(mean) == 2
    assert mean[0] != mean[1]
    main = ["click/auc", "buy/auc", "like/auc", "watch/r2"]
    assert np.mean([run.best[name] for name in main]) >= np.mean([early.best[name] for name in main])


@pytest.mark.parametrize(("rate", "kept"), [(10.0, True), (0.002, False)])
def test_it_says_where_it_began_and_whether_that_is_what_is_kept(
    late: Experiment, early: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: float, kept: bool
) -> None:
    """A rate far too high makes the earlier weights worse. Curves, of weights that move on, do not come along."""
    start = early.bundle()
    curves = {"click": Curve(to=(1.0,))} if kept else {}
    Bundle(start.experiment, start.encoder, start.model, curves).save(tmp_path / "start")
    optimizer = late.optimizer.with_(learning_rate=rate)
    changed = late.with_(optimizer=optimizer, warm_start=str(tmp_path / "start"))
    run = train(changed, tmp_path / "run", device="cpu")
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("the curves that calibrate") for line in lines) == kept
    assert run.bundle().curves == {}
    zero, one = (line for line in lines if line.startswith("epoch"))
    assert zero.startswith(f"epoch  0/1  click/auc {early.best['click/auc']:.4f}  ")
    assert zero.endswith("  best")
    assert "rows/s" not in zero
    assert "rows/s" in one
    assert one.endswith("  best") != kept
    began = run.history[0]["valid"]
    assert kept == ({f"valid/{name}": value for name, value in run.summary["best"].items()} == began)
    said = "no epoch was better on the validation rows than the weights it began with; those are kept"
    assert lines.count(said) == kept


def test_an_average_begins_with_the_bundles_weights(late: Experiment, early: Run, tmp_path: Path) -> None:
    """A rate far too high makes the earlier weights worse, so that they are what is kept."""
    optimizer = late.optimizer.with_(average=0.9, learning_rate=10.0)
    run = train(late.with_(optimizer=optimizer), tmp_path / "run", quiet=True, device="cpu")
    assert run.history[0]["epoch"] == 0
    for name, value in early.best.items():
        assert run.history[0]["valid"][f"valid/{name}"] == pytest.approx(value, nan_ok=True)
        assert run.best[name] == pytest.approx(value, nan_ok=True)
    table = pq.read_table(late.train)
    before, after = early.bundle().predict(table), run.bundle().predict(table)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_interrupted_and_resumed_it_is_bit_equal(
    run: Run, late: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = resumed(late, tmp_path / "run", monkeypatch, after=4)
    whole, pieces = (load_file(one.folder / "bundle" / "model.safetensors") for one in (run, again))
    assert all(torch.equal(tensor, pieces[name]) for name, tensor in whole.items())
    assert [entry["valid"] for entry in again.history] == [entry["valid"] for entry in run.history]


def test_gaps_in_what_never_had_any_are_told(
    late: Experiment, early: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a flag for being missing there is nothing that could learn from them."""
    table = pq.read_table(early.experiment.train)
    at = table.schema.names.index("age")
    table = table.set_column(at, table.schema.field("age"), pc.fill_null(table["age"], 40))
    first = train(early.experiment.with_(epochs=1), tmp_path / "first", tables={"train": table}, quiet=True)
    capsys.readouterr()
    second = train(late.with_(warm_start=str(first.folder)), tmp_path / "second", device="cpu")
    gaps = pq.read_table(late.train)["age"].null_count
    said = f"age is missing in {gaps} training rows, and was in none of those that {first.folder} was trained on"
    lines = [line for line in capsys.readouterr().err.splitlines() if "is missing in" in line]
    assert len(lines) == 1
    assert lines[0].startswith(said)
    flags = [{one.feature: one.flag for one in run.bundle().encoder.layout.numbers} for run in (first, second)]
    assert flags[0] == flags[1] == {"price": "", "age": None}


def test_rows_of_one_class_are_no_error_when_going_on(late: Experiment, early: Run, tmp_path: Path) -> None:
    table = pq.read_table(late.train)
    at = table.schema.names.index("like")
    table = table.set_column(at, "like", pa.array([0] * table.num_rows, table.schema.field("like").type))
    pq.write_table(table, tmp_path / "quiet.parquet")
    run = train(late.with_(train=str(tmp_path / "quiet.parquet")), tmp_path / "run", quiet=True)
    assert run.bundle().encoder.stats[2].positives == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sharing": OMoE(experts=3, hidden=(16, 8))}, "sharing is 'omoe', the bundle's is 'mmoe'"),
        ({"sharing": MMoE(experts=4, hidden=(16, 8))}, "widths are not those of the bundle"),
        ({"embedding": {"dim": 4}}, "widths are not those of the bundle"),
    ],
)
def test_another_structure_is_refused(late: Experiment, tmp_path: Path, change: dict, says: str) -> None:
    with pytest.raises(ExperimentError, match=says):
        train(late.with_(**change), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_number_that_does_not_say_how_is_embedded_as_it_was(late: Experiment, early: Run, tmp_path: Path) -> None:
    bundle = early.bundle()
    numbers = [one for one in late.schema.features if isinstance(one, Number)]
    assert numbers
    assert {one.embedding for one in numbers} == {"auto"}
    settled = [
        one.with_(embedding=bundle.encoder.fitted.embeddings[one.name]) if one in numbers else one
        for one in late.schema.features
    ]
    told = late.with_(schema=late.schema.with_(features=settled), warm_start=None)
    first = train(told, tmp_path / "first", quiet=True)
    run = train(late.with_(warm_start=str(tmp_path / "first")), tmp_path / "run", quiet=True)
    assert run.bundle().encoder.fitted.embeddings == first.bundle().encoder.fitted.embeddings
    other = [one.with_(embedding="periodic") if one in numbers else one for one in settled]
    with pytest.raises(ExperimentError, match=r"schema\.features differ"):
        train(late.with_(schema=late.schema.with_(features=other)), tmp_path / "other", quiet=True)


def test_other_features_and_tasks_are_refused(late: Experiment, tmp_path: Path) -> None:
    schema = late.schema
    fewer = late.with_(schema=schema.with_(features=[one for one in schema.features if one.name != "tags"]))
    with pytest.raises(ExperimentError, match=r"schema.features differ .*tags"):
        train(fewer, tmp_path / "run", quiet=True)
    loose = late.with_(schema=schema.with_(tasks=[one.with_(given=None) for one in schema.tasks]))
    with pytest.raises(ExperimentError, match="tasks mean something else"):
        train(loose, tmp_path / "run", quiet=True)


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained on a file of whole numbers, whose types are frozen."""
    folder = tmp_path_factory.mktemp("typed")
    draw = np.random.default_rng(0)
    lines = [f"{user},{20 + user},{draw.integers(2)}" for user in draw.integers(1, 9, 400)]
    (folder / "early.csv").write_text("\n".join(["user,age,click", *lines, ""]))
    schema = Schema(
        features=[Category("user"), Number("age")],
        tasks=[Task("click")],
        types=dict.fromkeys(("user", "age", "click"), "int64"),
    )
    experiment = Experiment(schema=schema, train=str(folder / "early.csv"), sharing=MMoE(experts=2, hidden=(4,)))
    return train(experiment.with_(epochs=1, tower={"hidden": [4]}, precision="float32"), folder / "run", quiet=True)


@pytest.mark.parametrize("users", [["A7", "7", "07", "3"], ["7.0", "7.0", "", "3.0"]], ids=["texts", "points"])
def test_later_rows_are_read_as_for_predictions(typed: Run, tmp_path: Path, users: list[str]) -> None:
    """Texts and fractions in columns that were whole numbers; a known value keeps its id however it is written."""
    path = tmp_path / "late.csv"
    rows = [f"{user},{30 + at}.0,{at % 2}.0" for at, user in enumerate(users * 20)]
    path.write_text("\n".join(["user,age,click", *rows, ""]))
    run = train(
        typed.experiment.with_(train=str(path), valid=str(path), warm_start=str(typed.folder), epochs=1),
        tmp_path / "run",
        quiet=True,
    )
    before, after = (one.bundle().encoder.fitted.vocabularies["user"].values for one in (typed, run))
    assert sorted(before) == [str(user) for user in range(1, 9)]
    assert after == (*before, *(["A7"] if "A7" in users else []))
    began = run.history[0]["valid"]["valid/click/log_loss"]
    predicted = typed.bundle().predict(path)["click"]
    assert began == pytest.approx(log_loss([0, 1] * (len(rows) // 2), predicted), rel=1e-5)


def test_values_must_be_spelled_as_the_bundle_knows_them(typed: Run, tmp_path: Path) -> None:
    def on(**types: str) -> Experiment:
        schema = typed.experiment.schema
        return typed.experiment.with_(warm_start=str(typed.folder), schema=schema.with_(types=schema.types | types))

    with pytest.raises(ExperimentError, match=r"schema\.types\.user is string, the bundle's is int64, .* spelled"):
        train(on(user="string"), tmp_path / "run", quiet=True)
    check_start(typed.bundle(), on(user="double", age="string", click="double"))


def test_long_ids_are_not_rounded_where_a_bundle_knows_them(tmp_path: Path) -> None:
    ids = [2**60 + at for at in range(8)]
    table = {"user": ids * 20, "click": [0, 1] * 80}
    first = train(Experiment(schema=infer_schema(table, "click"), epochs=1), tmp_path / "a", tables={"train": table})
    schema = first.experiment.schema
    later = first.experiment.with_(warm_start=first, schema=schema.with_(types=schema.types | {"user": "double"}))
    with pytest.raises(ExperimentError, match=r"schema\.types\.user is double, the bundle's is int64, .* spelled"):
        train(later, tmp_path / "b", tables={"train": table}, quiet=True)
    check_start(first.bundle(), later.with_(schema=schema))


class Mine(MMoE):
    structure: Literal["mine"] = "mine"  # type: ignore[assignment]


def test_a_structure_of_ones_own_is_gone_on_from(typed: Run, tmp_path: Path) -> None:
    experiment = typed.experiment.with_(sharing=Mine(experts=2, hidden=(4,)))
    first = train(experiment, tmp_path / "first", quiet=True)
    second = train(experiment.with_(warm_start=str(first.folder)), tmp_path / "second", quiet=True)
    began = second.history[0]["valid"]
    assert {name.removeprefix("valid/"): value for name, value in began.items()} == pytest.approx(first.best)


def test_a_run_that_was_just_trained_knows_its_structure(typed: Run, tmp_path: Path) -> None:
    experiment = typed.experiment.with_(sharing=Mine(experts=2, hidden=(4,)))
    run = train(experiment, tmp_path / "run", quiet=True)
    expected = load(run.folder, structures=[Mine]).predict(experiment.train)["click"]
    for one in (run, open_run(run.folder, structures=[Mine])):
        assert one.experiment.sharing == experiment.sharing
        np.testing.assert_array_equal(one.bundle().predict(experiment.train)["click"], expected)
        (told,) = open_trained([one], None, None)
        assert told.looked_at.bundle.experiment.sharing == told.experiment.sharing == experiment.sharing
    with pytest.raises(BundleError, match="'mine', which is not built in; pass its options class"):
        open_run(run.folder).bundle()


def test_weights_of_tasks_may_change(late: Experiment, tmp_path: Path) -> None:
    tasks = [one.with_(weight=2.0) for one in late.schema.tasks]
    train(late.with_(schema=late.schema.with_(tasks=tasks)), tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "bundle" / "bundle.json").read_text())["experiment"]["warm_start"]
    load(tmp_path / "run")


def test_a_comparison_wants_no_warm_start(late: Experiment, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="leave warm_start out"):
        compare(late, tmp_path / "compare", seeds=1, quiet=True)
