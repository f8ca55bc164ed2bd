"""Features for gates, and features that bias one task: from the table to the prediction, and through every analysis."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from resumed import resumed
from safetensors.torch import load_file

from multigate.analysis.boosting import boosting_baseline
from multigate.analysis.inspection import inspect_model
from multigate.analysis.relatedness import relatedness
from multigate.analysis.subject import find_subject
from multigate.assembly import build_model
from multigate.batch import Batch
from multigate.bundle import load
from multigate.data.names import feature_columns
from multigate.data.prepared import Prepared
from multigate.data.rows import join, pick
from multigate.errors import DataError, ExperimentError
from multigate.experiment import Experiment
from multigate.report.write import write_report
from multigate.run import Run
from multigate.schema import Number, Schema, Time, Vector
from multigate.score import score_table
from multigate.sharing import SharedBottom
from multigate.training.train import PREPARED, train


def with_uses(schema: Schema) -> Schema:
    """A category, a time, a number and a bag that bias a task; a category and a number for gates."""
    uses = {"position": "bias:click", "tags": "bias:watch", "device": "gate", "age": "gate"}
    features = [one.with_(use=uses.get(one.name, "shared")) for one in schema.features if one.name != "time"]
    more = [Time("hour", column="time", use="bias:click"), Number("place", column="position", use="bias:click")]
    return schema.with_(features=(*features, *more))


@pytest.fixture(scope="module")
def experiment(feed_experiment: Experiment) -> Experiment:
    return feed_experiment.with_(schema=with_uses(feed_experiment.schema))


@pytest.fixture(scope="module")
def run(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(experiment, tmp_path_factory.mktemp("use") / "run", quiet=True)


@pytest.fixture(scope="module")
def rows(experiment: Experiment) -> pa.Table:
    return pq.read_table(experiment.test)


def test_predictions_are_the_same_whatever_biases_a_task(run: Run, rows: pa.Table) -> None:
    bundle = run.bundle()
    assert all(bias.out.weight.any() for bias in bundle.model.biases), "trained"
    expected = bundle.predict(rows)
    shuffled = rows.take(np.random.default_rng(0).permutation(rows.num_rows))
    other, empty = rows, rows
    for name in ("position", "tags", "time"):
        at = rows.column_names.index(name)
        other = other.set_column(at, name, shuffled[name])
        empty = empty.set_column(at, name, pa.nulls(rows.num_rows))
    nonsense = rows.set_column(rows.column_names.index("position"), "position", pa.array([["x"]] * rows.num_rows))
    for table in (other, empty, nonsense, rows.drop_columns(["position", "tags", "time"])):
        found = bundle.predict(table)
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values)
    for row in rows.slice(0, 3).to_pylist():
        assert bundle.predict(row) == bundle.predict(row | {"position": object(), "tags": 7})
        assert bundle.predict(row) == bundle.predict({name: row[name] for name in row if name != "position"})


def test_gates_and_predictions_follow_what_gates_read(run: Run, rows: pa.Table) -> None:
    bundle = run.bundle()
    at = rows.column_names.index("device")
    other = rows.set_column(at, "device", pa.array(["tv"] * rows.num_rows))
    moved = np.array(rows["device"].to_pylist()) != "tv"
    here, there = bundle.predict(rows, gates=True), bundle.predict(other, gates=True)
    assert ((here["gate/click"] != there["gate/click"]).any(axis=1) == moved).all()
    assert ((here["click"] != there["click"]) == moved).mean() > 0.99
    with pytest.raises(DataError, match="no column 'device'"):
        bundle.predict(rows.drop_columns(["device"]))


def test_scoring_reads_logs_and_so_wants_every_column(run: Run, rows: pa.Table) -> None:
    metrics, _ = score_table(run, rows, replicates=2)
    assert metrics["click/auc"] > 0.5
    with pytest.raises(DataError, match="no column 'position'"):
        score_table(run.bundle(), rows.drop_columns(["position"]), replicates=2)


def test_what_biases_a_task_has_no_worth_to_tell(run: Run, tmp_path: Path) -> None:
    found = inspect_model(run, repeats=1)
    assert {one.feature for one in found.importance} == {
        one.name for one in run.experiment.schema.features if one.biased is None
    }
    assert "device" in {one.feature for one in found.importance}
    assert not [one for one in found.findings if any(f" {name}" in one.what for name in ("place", "hour"))]
    assert relatedness(find_subject(run.folder)).gradients[0][1] is not None
    assert write_report([run.folder], tmp_path / "report.html").stat().st_size > 10_000


def test_interrupted_and_resumed_it_is_bit_equal(
    run: Run, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = resumed(experiment, tmp_path / "run", monkeypatch)
    whole, pieces = (load_file(one.folder / "bundle" / "model.safetensors") for one in (run, again))
    assert all(torch.equal(tensor, pieces[name]) for name, tensor in whole.items())


def test_tasks_are_trained_alone_without_what_biases_others(run: Run, experiment: Experiment) -> None:
    encoder = run.bundle().encoder
    assert len(build_model(experiment, encoder).biases) == 2
    assert len(build_model(experiment, encoder, [2]).biases) == 0
    assert len(build_model(experiment, encoder, [0]).biases) == 1


def test_a_vector_may_bias_too(feed_experiment: Experiment, rows: pa.Table, tmp_path: Path) -> None:
    spots = pa.array(np.random.default_rng(0).normal(size=(rows.num_rows, 2)).tolist())
    table = rows.append_column("spot", spots)
    schema = feed_experiment.schema
    schema = schema.with_(features=(*schema.features, Vector("spot", size=2, use="bias:buy")), types={})
    short = feed_experiment.with_(schema=schema, epochs=1, train="", valid=None, test=None)
    bundle = train(short, tmp_path / "run", tables={"train": table}, quiet=True).bundle()
    np.testing.assert_array_equal(bundle.predict(table)["buy"], bundle.predict(rows)["buy"])


def test_structures_without_gates_refuse_features_for_them(experiment: Experiment) -> None:
    with pytest.raises(
        ExperimentError, match="'shared_bottom' has no gates to read feature 'age', whose use is 'gate'"
    ):
        experiment.with_(sharing=SharedBottom())


def test_a_bundle_remembers_the_uses(run: Run) -> None:
    about = json.loads((run.folder / "bundle" / "bundle.json").read_text())
    uses = {one["name"]: one["use"] for one in about["experiment"]["schema"]["features"]}
    assert uses["position"] == "bias:click"
    assert load(run.folder).encoder.layout.categories[-1].use == "bias:click"


@pytest.mark.parametrize("risk", ["ips", "dr"])
def test_counterfactual_risks_train_save_and_load(feed_experiment: Experiment, tmp_path: Path, risk: str) -> None:
    tasks = [
        one.with_(risk=risk, risk_weight=1.0) if one.name == "buy" else one for one in feed_experiment.schema.tasks
    ]
    asked = feed_experiment.with_(schema=feed_experiment.schema.with_(tasks=tasks))
    run = train(asked, tmp_path / "run", quiet=True)
    plain = train(feed_experiment, tmp_path / "plain", quiet=True)
    told, without = (one.history[0]["train"]["train/buy/loss"] for one in (run, plain))
    assert told > without + 0.1
    bundle = load(run.folder)
    assert (bundle.model.imputation is not None) == (risk == "dr")
    assert set(bundle.predict(asked.test)) == set(plain.bundle().predict(asked.test))


def test_boosting_is_held_against_models_without_what_they_do_not_read(run: Run) -> None:
    prepared = Prepared(run.folder / PREPARED)
    train_rows, valid_rows = (join(list(part.batches(8192))) for part in (prepared.train, prepared.valid))
    named = {columns.feature.name: columns for columns in feature_columns(prepared.encoder)}

    def shuffled(batch: Batch) -> Batch:
        """Other values of a biasing number, category and bag."""
        other = pick(batch, torch.randperm(batch.rows))
        numbers, categories, bags = batch.numbers.clone(), batch.categories.clone(), list(batch.bags)
        numbers[:, named["place"].numbers] = other.numbers[:, named["place"].numbers]
        categories[:, named["position"].categories] = other.categories[:, named["position"].categories]
        bags[named["tags"].bags[0]] = other.bags[named["tags"].bags[0]]
        return batch._replace(numbers=numbers, categories=categories, bags=tuple(bags))

    layout = prepared.layout.with_(tasks=prepared.layout.tasks[:1])
    here = boosting_baseline(layout, train_rows, valid_rows).valid["click"]
    there = boosting_baseline(layout, shuffled(train_rows), shuffled(valid_rows)).valid["click"]
    np.testing.assert_array_equal(here, there)
