"""Recalibration: curves come from validation rows, travel in the bundle, and undo what sampling did."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from multigate.batch import TaskColumn
from multigate.bundle import Bundle, load
from multigate.calibration import Calibration, Curve, Method, true_in_total
from multigate.errors import DataError, ExperimentError
from multigate.experiment import Experiment
from multigate.metrics import calibration
from multigate.run import Run
from multigate.schema import Number, Schema, Task
from multigate.score import score_table
from multigate.training.recalibrate import recalibrate, sampling_curves
from multigate.training.train import train


@pytest.fixture(scope="module")
def feed_experiment(feed_experiment: Experiment) -> Experiment:
    """With dropout on all of x: ratios of two epochs are of one draw each, and their bounds were measured on these."""
    return feed_experiment.with_(embedding=feed_experiment.embedding.with_(drop_numbers=True))


@pytest.fixture(scope="module")
def plain(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(feed_experiment, tmp_path_factory.mktemp("plain") / "run", quiet=True)


def logit(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


def test_curves_are_those_of_the_validation_rows_and_travel_with_the_bundle(
    feed_experiment: Experiment, plain: Run, tmp_path: Path
) -> None:
    run = train(feed_experiment.with_(recalibrate="isotonic"), tmp_path / "run", quiet=True)
    assert run.best == plain.best, "weights are chosen before there are curves"
    bundle = load(run.folder)
    assert bundle.curves.keys() == {"click", "buy", "like", "watch"}
    expected = recalibrate(plain, feed_experiment.valid).curves  # of the run, and of its bundle
    for name, curve in expected.items():
        np.testing.assert_allclose(bundle.curves[name].to, curve.to, rtol=1e-5)
    valid = pq.read_table(feed_experiment.valid)
    found, before = bundle.predict(valid), load(plain.folder).predict(valid)
    np.testing.assert_allclose(
        logit(found["click"]), np.interp(logit(before["click"]), *knots(bundle.curves["click"])), atol=1e-3
    )
    np.testing.assert_allclose(found["buy"], found["buy|click"] * found["click"], rtol=1e-5)
    ratios = score_table(bundle, valid, replicates=0)[0]
    assert ratios["click/calibration"] == pytest.approx(1, abs=0.03)
    assert ratios["buy|click/calibration"] == pytest.approx(1, abs=0.1), "fitted on the clicked rows"


def knots(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """The curve with its ends drawn far out."""
    at, to = np.array(curve.at), np.array(curve.to)
    ends = [at[0] - 50, at[-1] + 50], [to[0] - 50 * curve.slope, to[-1] + 50 * curve.slope]
    return np.array([ends[0][0], *at, ends[0][1]]), np.array([ends[1][0], *to, ends[1][1]])


def test_one_row_table_and_scores_all_go_through_the_curves(feed_experiment: Experiment, plain: Run) -> None:
    rows = pq.read_table(feed_experiment.test).slice(0, 400)
    before = load(plain.folder)
    reference = before.predict(rows)["click"]
    bundle = recalibrate(load(plain.folder), feed_experiment.valid)
    table = bundle.predict(rows)
    one = bundle.predict(rows.slice(0, 1).to_pylist()[0])
    assert one["click"] == pytest.approx(table["click"][0], rel=1e-5)
    assert not np.allclose(table["click"], reference)
    scored, _ = score_table(bundle, rows, replicates=0)
    click = rows["click"].to_numpy(zero_copy_only=False).astype(float)
    assert scored["click/calibration"] == pytest.approx(
        calibration(logit(table["click"].astype(float)), click), rel=1e-4
    )


def test_recalibrating_twice_is_recalibrating_once(feed_experiment: Experiment, plain: Run) -> None:
    once = recalibrate(load(plain.folder), feed_experiment.valid)
    assert (
        recalibrate(recalibrate(load(plain.folder), feed_experiment.valid), feed_experiment.valid).curves == once.curves
    )


def test_the_same_weights_are_moved_by_the_log_of_what_was_kept(
    feed_experiment: Experiment, plain: Run, tmp_path: Path
) -> None:
    schema = feed_experiment.schema
    tasks = [task.with_(negatives_kept=0.1) if task.name == "click" else task for task in schema.tasks]
    run = train(feed_experiment.with_(schema=schema.with_(tasks=tasks)), tmp_path / "run", quiet=True)
    rows = pq.read_table(feed_experiment.test).slice(0, 200)
    before, after = load(plain.folder).predict(rows), load(run.folder).predict(rows)
    np.testing.assert_allclose(logit(after["click"]), logit(before["click"]) + math.log(0.1), atol=1e-4)
    np.testing.assert_allclose(after["buy|click"], before["buy|click"], rtol=1e-5)
    np.testing.assert_allclose(after["buy"], after["buy|click"] * after["click"], rtol=1e-5)
    np.testing.assert_array_equal(after["like"], before["like"])


@pytest.mark.parametrize("method", ["none", "isotonic"])
def test_sampled_negatives_are_corrected_on_rows_as_they_come(
    feed_experiment: Experiment, tmp_path: Path, method: str
) -> None:
    """A fifth of the unclicked rows is kept for training and validation; the test rows are all of them."""
    random = np.random.default_rng(0)
    for part in ("train", "valid"):
        table = pq.read_table(getattr(feed_experiment, part))
        click = table["click"].to_numpy(zero_copy_only=False).astype(bool)
        pq.write_table(table.filter(pa.array(click | (random.random(len(click)) < 0.2))), tmp_path / f"{part}.parquet")
    schema = feed_experiment.schema
    sampled = feed_experiment.with_(train=str(tmp_path / "train.parquet"), valid=str(tmp_path / "valid.parquet"))
    ratios = {}
    for kept in (1.0, 0.2):
        tasks = [task.with_(negatives_kept=kept) if task.name == "click" else task for task in schema.tasks]
        experiment = sampled.with_(schema=schema.with_(tasks=tasks), recalibrate=method)
        bundle = train(experiment, tmp_path / f"run {kept}", quiet=True).bundle()
        ratios[kept] = score_table(bundle, feed_experiment.test, replicates=0)[0]["click/calibration"]
    assert ratios[1.0] > 2, "uncorrected, clicks are told far too often"
    # 110 clicks among 600 test rows: their rate is known to within 10 %, and two epochs are not much of a model
    assert ratios[0.2] == pytest.approx(1, abs=0.3)


def test_rows_taken_for_a_child_are_put_back_into_all_tasks_above_it() -> None:
    """Click, cart, buy and like of four users, counted outcome by outcome; labels of 0 kept by shares of their own."""
    shares = {"click": 0.3, "cart": 1.0, "buy": 0.1, "like": 0.5}
    given = {"cart": "click", "buy": "cart", "like": "click"}
    tasks = [Task(name, given=given.get(name), negatives_kept=share) for name, share in shares.items()]
    schema = Schema(features=[Number("x")], tasks=tasks)
    truth = np.random.default_rng(0).uniform(0.05, 0.9, (4, 4))  # of each user p(task | parent), in the order of tasks
    mass = np.zeros((4, 2, 2, 2, 2))
    for click, cart, buy, like in np.ndindex(2, 2, 2, 2):
        if cart > click or buy > cart or like > click:
            continue
        met = {"click": (click, True), "cart": (cart, click), "buy": (buy, cart), "like": (like, click)}
        seen = np.ones(4)
        for at, (name, (label, there)) in enumerate(met.items()):
            if there:
                seen *= truth[:, at] if label else (1 - truth[:, at]) * shares[name]
        mass[:, click, cart, buy, like] = seen
    clicked, carted = mass[:, 1], mass[:, 1, 1]
    sample = np.stack(
        [
            clicked.sum((1, 2, 3)) / mass.sum((1, 2, 3, 4)),
            carted.sum((1, 2)) / clicked.sum((1, 2, 3)),
            carted[:, 1].sum(1) / carted.sum((1, 2)),
            clicked[..., 1].sum((1, 2)) / clicked.sum((1, 2, 3)),
        ],
        axis=1,
    )
    curves = {name: Curve.model_validate(one.to_dict(full=True)) for name, one in sampling_curves(schema).items()}
    columns = [TaskColumn(name=name, kind="binary") for name in shares]
    found = Calibration(columns, curves)(torch.from_numpy(logit(sample)))
    np.testing.assert_allclose(found, logit(truth), atol=1e-5)


def test_the_bundle_it_is_given_stays_as_it_was(feed_experiment: Experiment, plain: Run, tmp_path: Path) -> None:
    """Whether curves are found or the table is refused; saved, too, it is what it was."""
    rows = pq.read_table(feed_experiment.test).slice(0, 200)
    bundle = recalibrate(load(plain.folder), feed_experiment.valid)
    curves, before = dict(bundle.curves), bundle.predict(rows)
    assert not np.allclose(before["click"], load(plain.folder).predict(rows)["click"])
    with pytest.raises(DataError):
        recalibrate(bundle, rows.drop_columns(["click"]))
    assert not np.allclose(recalibrate(bundle, feed_experiment.test).predict(rows)["click"], before["click"])
    assert bundle.curves == curves
    bundle.save(tmp_path / "saved")
    for one in (bundle, load(tmp_path / "saved")):
        for name, values in one.predict(rows).items():
            np.testing.assert_allclose(values, before[name], rtol=1e-6)


def test_the_precision_of_a_bundle_stays(feed_experiment: Experiment, plain: Run) -> None:
    """Whether it was loaded for tables in bfloat16 first, or after its curves were fitted and kept."""
    rough = recalibrate(load(plain.folder, precision="bfloat16"), feed_experiment.valid)
    assert rough.precision == "bfloat16"
    exact = recalibrate(load(plain.folder), feed_experiment.valid)
    assert rough.curves == exact.curves
    found, wanted = (one.predict(feed_experiment.valid)["click"] for one in (rough, exact))
    assert 0 < np.abs(found - wanted).max() < 0.05


def test_a_task_that_the_table_cannot_tell_keeps_its_curve(feed_experiment: Experiment, plain: Run) -> None:
    before = load(plain.folder)
    bundle = Bundle(before.experiment, before.encoder, before.model, {"click": Curve().shifted(math.log(0.1))})
    rows = pq.read_table(feed_experiment.valid)
    clicked = rows.filter(pc.equal(rows["click"].cast(pa.int8()), 1))
    found = recalibrate(bundle, clicked)
    assert found.curves["click"] == bundle.curves["click"]
    assert found.curves.keys() == {"click", "buy", "like", "watch"}
    unclicked = recalibrate(bundle, rows.filter(pc.equal(rows["click"].cast(pa.int8()), 0)))
    assert "watch" not in unclicked.curves, "only clicked rows are watched"


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_amounts_fitted_through_their_logarithm_are_true_in_total(
    feed_experiment: Experiment, plain: Run, method: Method
) -> None:
    """Every 1 + value by one factor: that by which the table's labels, where known, were told too low."""
    rows = pq.read_table(feed_experiment.valid)
    before = load(plain.folder).predict(rows)["watch"]
    after = recalibrate(load(plain.folder), rows, method).predict(rows)["watch"]
    label = rows["watch_seconds"].to_numpy(zero_copy_only=False).astype(float)
    known = (rows["click"].to_numpy(zero_copy_only=False) == 1) & ~np.isnan(label)
    factor = (1 + label[known]).mean() / (1 + before[known]).mean()
    assert factor > 1.05, "or there is nothing to mend"
    np.testing.assert_allclose(1 + after, (1 + before) * factor, rtol=1e-5)
    assert after[known].sum() == pytest.approx(label[known].sum(), rel=1e-4)


def test_a_total_counts_rows_by_their_weights() -> None:
    """Of lognormal labels around a constant: exp(sd^2 / 2) of the median, and twice the one row that weighs two."""
    generator = np.random.default_rng(0)
    labels = np.expm1(1 + 0.8 * generator.normal(size=200_000))
    offset = true_in_total(np.full(len(labels), np.expm1(1.0)), labels)
    assert offset == pytest.approx(0.8**2 / 2, abs=0.01)
    weighed = true_in_total([1.0, 3.0, 9.0], [2.0, 7.0, 1e9], [2.0, 1.0, 0.0])
    assert weighed == pytest.approx(math.log((2 * 3 + 8) / (2 * 2 + 4)))
    assert true_in_total([], []) is None
    assert true_in_total([math.inf], [1.0]) is None


def test_another_method_is_refused_by_name(feed_experiment: Experiment, plain: Run) -> None:
    with pytest.raises(ExperimentError, match="did you mean 'isotonic'"):
        recalibrate(load(plain.folder), feed_experiment.valid, "isotone")  # type: ignore[arg-type]
