"""Labels unknown under a parent of 1: what known ones count for, against all of the labels, which are simulated."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import multigate as mg
from multigate import Experiment, Number, Schema, Task
from multigate.batch import Batch
from multigate.data.encoder import Encoder
from multigate.data.files import open_table
from multigate.data.prepared import Prepared, prepare, thinned
from multigate.data.rows import join
from multigate.data.split import Split
from multigate.evaluate import Scored, scores, spaces

TASKS = [Task("pay", given="buy"), Task("click"), Task("buy", given="click")]


def table(rows: int, known: tuple[float, float], seed: int = 0, **more: Any) -> dict[str, Any]:
    """A funnel of three steps whose last two labels are known on a part of the rows where the step before is 1."""
    draw = np.random.default_rng(seed)
    click = draw.random(rows) < 0.5
    buy = click & (draw.random(rows) < 0.4)
    pay = buy & (draw.random(rows) < 0.7)
    unseen = click & (draw.random(rows) >= known[0])
    lost = unseen | (buy & (draw.random(rows) >= known[1]))
    return {
        "x": draw.normal(size=rows),
        "click": click.astype(int),
        "buy": pa.array(buy.astype(int), mask=unseen),
        "pay": pa.array(pay.astype(int), mask=lost),
        **more,
    }


def prepared(folder: Path, *tasks: Task, **tables: Any) -> Prepared:
    schema = Schema(features=[Number("x")], tasks=tasks or TASKS)
    sources = {name: open_table(one) for name, one in tables.items()}
    return prepare(schema, sources["train"], sources["valid"], sources.get("test"), Split(), folder)


def whole(part: Any) -> Batch:
    return join(list(part.batches(10_000)))


def means(rows: Batch) -> np.ndarray:
    """Of the known labels of each task, by their weights."""
    weights = (rows.weights * rows.known).numpy().astype(float)
    return np.asarray((weights * rows.labels.numpy()).sum(0) / weights.sum(0))


def test_known_labels_speak_for_the_unknown_by_part(tmp_path: Path) -> None:
    """Every part by what is known in itself: all of the test rows, a quarter of the clicked training rows."""
    shares = {"train": (0.25, 0.5), "valid": (0.6, 1.0), "test": (1.0, 1.0)}
    tables = {name: table(20_000, known, seed) for seed, (name, known) in enumerate(shares.items())}
    found = prepared(tmp_path / "rows", **tables)
    for name, part in found.parts.items():
        rows = whole(part)
        np.testing.assert_allclose(means(rows), (0.14, 0.5, 0.2), atol=0.012)
        click, buy = rows.labels[:, 1] == 1, rows.labels[:, 2] == 1
        of_buy = click.sum() / (click & rows.known[:, 2]).sum()
        of_pay = buy.sum() / (buy & rows.known[:, 0]).sum()
        known = rows.known[:, 0]
        wanted = (click * of_buy + ~click) * (buy * of_pay + ~buy)
        np.testing.assert_allclose(rows.weights[known, 0], wanted[known], rtol=1e-6)
        np.testing.assert_allclose(rows.weights[:, 2], click * of_buy + ~click, rtol=1e-6)
        assert (rows.weights[:, 1] == 1).all()
        assert (rows.weights == 1).all() == (name == "test")
    pay, click, buy = found.layout.tasks
    np.testing.assert_allclose([pay.mean, click.mean, buy.mean], means(whole(found.train)), rtol=1e-6)
    assert (pay.known_rate, click.known_rate, buy.known_rate) == (1, 1, 1), "as if all were known"
    again = Encoder.load(tmp_path / "rows" / "encoder")
    assert again.layout == found.layout
    assert whole(Prepared(tmp_path / "rows").train).weights.equal(whole(found.train).weights)
    few = whole(thinned(found, 0.5, tmp_path / "few").train)
    assert set(few.weights[:, 0].tolist()) == set(whole(found.train).weights[:, 0].tolist())


def scored(schema: Schema, labels: dict[str, Any], logits: np.ndarray) -> tuple[Encoder, Scored]:
    encoder = Encoder.fit(schema, open_table(labels).batches())
    rows = encoder.columns(pa.record_batch(labels))
    return encoder, Scored(
        logits, logits, *(one.numpy() for one in (rows.labels, rows.known, rows.weights, rows.groups))
    )


def test_metrics_of_a_part_of_the_labels_are_those_of_all_but_for_chance() -> None:
    schema = Schema(features=[Number("x")], tasks=TASKS)
    every, part = (table(40_000, known) for known in ((1.0, 1.0), (0.3, 0.5)))
    truth = np.stack([np.array(every[task.name]) for task in TASKS], axis=1)
    logits = (np.random.default_rng(1).normal(-2, 1, truth.shape) + 2 * truth).astype(np.float32)
    of_all, of_part = (scores(spaces(schema, *scored(schema, labels, logits))) for labels in (every, part))
    assert of_all.keys() == of_part.keys()
    for name, value in of_all.items():
        assert of_part[name] == pytest.approx(value, rel=0.06), name


def test_a_model_of_one_task_is_scored_by_the_same_weights(tmp_path: Path) -> None:
    """On prepared rows, where neither the parent nor its labels are told."""
    part = table(5_000, (0.3, 0.5))
    rows = prepared(tmp_path / "rows", train=part, valid=part)
    batch, logits = whole(rows.valid), np.random.default_rng(1).normal(-2, 1, (5_000, 3)).astype(np.float32)
    told = [one.numpy() for one in (batch.labels, batch.known, batch.weights, batch.groups)]
    joint = scores(spaces(rows.encoder.schema, rows.encoder, Scored(logits, logits, *told)))
    alone = [one[:, 2:] for one in (logits, logits, *told[:3])]
    own = scores(spaces(rows.encoder.schema.only(["buy"]), rows.encoder, Scored(*alone, told[3]), [2]))
    assert own == {name: value for name, value in joint.items() if name.startswith("buy/")}
    plain = scores(spaces(rows.encoder.schema, *scored(rows.encoder.schema, part, logits)))
    assert joint == pytest.approx(plain)


@pytest.mark.parametrize(
    "tasks",
    [
        (Task("click"), Task("buy", given="click", sample_weight="w")),
        (Task("click"), Task("buy", given="click", where="click")),
        (Task("click"), Task("buy")),
    ],
)
def test_who_weighs_or_chooses_rows_is_left_alone(tmp_path: Path, tasks: tuple[Task, ...]) -> None:
    held = table(500, (0.5, 1.0), w=np.ones(500))
    rows = whole(prepared(tmp_path / "rows", *tasks, train=held, valid=held).train)
    assert (rows.weights == 1).all()


def test_labels_known_beside_an_unknown_parent_are_left_alone(tmp_path: Path) -> None:
    held = table(500, (0.5, 0.5))
    held["pay"] = pa.array(np.nan_to_num(np.array(held["pay"].to_pylist(), dtype=float)))
    rows = whole(prepared(tmp_path / "rows", train=held, valid=held).train)
    assert (rows.weights[:, 0] == 1).all()
    assert (rows.weights[:, 2] != 1).any()


def test_a_chain_within_one_where_is_a_chain_like_any(tmp_path: Path) -> None:
    held = table(20_000, (0.5, 0.6), seen=(np.random.default_rng(3).random(20_000) < 0.4).astype(int))
    tasks = [task.with_(where="seen") for task in TASKS]
    found = prepared(tmp_path / "rows", *tasks, Task("seen"), train=held, valid=held)
    np.testing.assert_allclose(means(whole(found.train)), (0.14, 0.5, 0.2, 0.4), atol=0.02)
    of_tasks = found.layout.tasks
    np.testing.assert_allclose([one.mean for one in of_tasks], means(whole(found.train)), rtol=1e-5)
    assert [one.known_rate for one in of_tasks[:3]] == [of_tasks[3].mean] * 3


def test_a_few_known_beside_an_unknown_parent_take_nothing_from_the_others(tmp_path: Path) -> None:
    """One such row among thousands; p(buy) would be .13 if it left all of them alone."""
    held = table(8_000, (0.5, 1.0))
    first = int(np.flatnonzero(held["buy"].is_valid())[0])
    held["click"] = pa.array(held["click"], mask=np.arange(8_000) == first)
    found = prepared(tmp_path / "rows", *TASKS[1:], train=held, valid=held)
    rows = whole(found.train)
    assert means(rows)[1] == pytest.approx(0.2, abs=0.015)
    assert rows.weights[first, 1] == 1
    click = rows.labels[:, 0] == 1
    np.testing.assert_allclose(rows.weights[click, 1], click.sum() / (click & rows.known[:, 1]).sum(), rtol=1e-6)
    assert found.layout.tasks[1].known_rate == 1


def test_labels_known_beside_many_unknown_parents_count_for_themselves(tmp_path: Path) -> None:
    """And less is made up by others: in all, each row counts once."""
    held, draw = table(40_000, (0.5, 0.6)), np.random.default_rng(9)
    pay = np.array(table(40_000, (1.0, 1.0))["pay"].to_pylist(), dtype=float)
    told = held["pay"].is_valid().to_numpy(False) | (draw.random(40_000) < 0.3) & (np.array(held["click"]) == 1)
    held["pay"] = pa.array(pay, mask=~told)
    held["click"] = pa.array(held["click"], mask=draw.random(40_000) < 0.1)
    found = prepared(tmp_path / "rows", train=held, valid=held)
    rows = whole(found.train)
    counted = (rows.weights * rows.known).sum(0) / 40_000
    np.testing.assert_allclose(counted, [one.known_rate for one in found.layout.tasks], rtol=1e-3)
    np.testing.assert_allclose([one.mean for one in found.layout.tasks], means(rows), atol=0.01)
    np.testing.assert_allclose(means(rows), (0.14, 0.5, 0.2), atol=0.02)
    assert (rows.weights[rows.known[:, 0] & ~rows.known[:, 2], 0] == 1).all()


def test_a_step_with_weights_of_its_own_hides_nothing_from_the_next(tmp_path: Path) -> None:
    """``pay`` is unknown where ``buy`` is, whose sample_weight makes up for that in ``buy`` alone."""
    held = table(20_000, (0.5, 0.6), w=np.full(20_000, 2.0))
    tasks = (TASKS[0], TASKS[1], TASKS[2].with_(sample_weight="w"))
    rows = prepared(tmp_path / "rows", *tasks, train=held, valid=held)
    assert means(whole(rows.train))[0] == pytest.approx(0.14, abs=0.015)
    assert rows.layout.tasks[0].known_rate == 1
    assert rows.layout.tasks[0].mean == pytest.approx(means(whole(rows.train))[0], rel=1e-5)
    batch, schema = whole(rows.valid), rows.encoder.schema
    logits = np.random.default_rng(1).normal(-2, 1, (20_000, 3)).astype(np.float32)
    told = [one.numpy() for one in (batch.labels, batch.known, batch.weights, batch.groups)]
    of_part = scores(spaces(schema, rows.encoder, Scored(logits, logits, *told)))
    assert of_part == pytest.approx(scores(spaces(schema, *scored(schema, held, logits))))


def test_what_is_known_throughout_changes_nothing(tmp_path: Path) -> None:
    held = table(500, (1.0, 1.0))
    found = prepared(tmp_path / "rows", train=held, valid=held)
    assert found.manifest["followed"] == {}
    assert "followed" not in (tmp_path / "rows" / "encoder" / "encoder.json").read_text()


def test_a_model_learns_what_all_labels_say(tmp_path: Path) -> None:
    """Of half of the clicked rows, that is; without the weights it would be p(buy) = .13 and p(buy | click) = .27."""
    tables = {name: table(3_000, (0.5, 1.0), seed) for seed, name in enumerate(("train", "valid"))}
    schema = Schema(features=[Number("x")], tasks=TASKS[1:])
    experiment = Experiment(schema=schema, sharing=mg.SharedBottom(hidden=(4,)), tower=(4,), epochs=15, batch_size=100)
    run = mg.train(experiment, out=tmp_path / "run", tables=tables, quiet=True)
    told = mg.load(tmp_path / "run").predict(table(3_000, (1.0, 1.0), 2))
    assert np.mean(told["buy"]) == pytest.approx(0.2, abs=0.025)
    assert np.mean(told["buy|click"]) == pytest.approx(0.4, abs=0.05)
    assert run.best["buy/calibration"] == pytest.approx(1, abs=0.12)
