"""Tests of the section of metrics with intervals."""

from pathlib import Path

import numpy as np
import pyarrow as pa

import multigate as mg
from multigate.report.blocks import Figure, Table
from multigate.report.quality import metrics
from multigate.report.trained import open_trained


def test_a_metric_that_no_rows_can_tell_has_no_picture(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=60)
    rows = pa.table({"x": x, "click": (x > 0).astype(int), "amount": np.where(np.arange(60) < 30, x, 5.0)})
    tasks = [mg.Task("click"), mg.Task("amount", kind="regression")]
    experiment = mg.Experiment(schema=mg.Schema(features=[mg.Number("x")], tasks=tasks), epochs=1)
    tables = {"train": rows.slice(0, 30), "valid": rows.slice(30)}
    run = mg.train(experiment, out=tmp_path / "run", tables=tables, quiet=True)
    figure = next(iter(metrics(open_trained(run, None, None)[0])))
    assert isinstance(figure, Figure)
    assert [chart.title for chart in figure.charts] == ["auc"]
    assert "amount/r2 n/a" in figure.says


def test_a_metric_that_some_rows_do_not_have_is_not_available_there(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=90)
    rows = pa.table({"x": x, "amount": np.where(np.arange(90) < 60, np.abs(x), x)})  # below 0 in test rows alone
    schema = mg.Schema(features=[mg.Number("x")], tasks=[mg.Task("amount", kind="regression")])
    tables = {"train": rows.slice(0, 30), "valid": rows.slice(30, 30), "test": rows.slice(60)}
    run = mg.train(mg.Experiment(schema=schema, epochs=1), out=tmp_path / "run", tables=tables, quiet=True)
    (told,) = [one for one in metrics(open_trained(run, None, None)[0]) if isinstance(one, Table)]
    valid, _, test, interval = next(row for row in told.rows if row[1].startswith("calibration"))[2:]
    assert float(valid) > 0
    assert (test, interval) == ("n/a", "")


def test_a_metric_that_only_test_rows_have_stands_with_the_others_of_its_task(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=90)
    amount = np.where(np.arange(90) < 60, x, np.abs(x))
    rows = pa.table({"x": x, "amount": amount, "click": (x > 0).astype(int)})
    tasks = [mg.Task("amount", kind="regression"), mg.Task("click")]
    tables = {"train": rows.slice(0, 30), "valid": rows.slice(30, 30), "test": rows.slice(60)}
    experiment = mg.Experiment(schema=mg.Schema(features=[mg.Number("x")], tasks=tasks), epochs=1)
    run = mg.train(experiment, out=tmp_path / "run", tables=tables, quiet=True)
    (told,) = [one for one in metrics(open_trained(run, None, None)[0]) if isinstance(one, Table)]
    assert [row[0] for row in told.rows] == 4 * ["amount"] + 5 * ["click"]
