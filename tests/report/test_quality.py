"""Tests of the section of metrics with intervals."""

from pathlib import Path

import numpy as np
import pyarrow as pa

import multigate as mg
from multigate.report.blocks import Figure
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
