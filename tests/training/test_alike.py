"""Validation rows that cannot score a task: what is trained all the same, by which loss, and what is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from multigate.data.files import open_table
from multigate.data.prepared import Prepared, prepare
from multigate.errors import RunError
from multigate.experiment import Experiment
from multigate.run import read_history
from multigate.schema import Task
from multigate.training.cohort import fit_cohort
from multigate.training.fit import BEST
from multigate.training.loop import fit
from multigate.training.progress import Reporter

CPU = torch.device("cpu")


def rows_of(experiment: Experiment, folder: Path, **columns: Any) -> tuple[Experiment, Prepared]:
    """The experiment with columns of its validation rows replaced, and the rows prepared."""
    table = pq.read_table(experiment.valid)
    for name, value in columns.items():
        column = pa.array([value] * table.num_rows, pa.float64())
        at = table.column_names.index(name) if name in table.column_names else table.num_columns
        table = table.set_column(at, name, column) if at < table.num_columns else table.append_column(name, column)
    pq.write_table(table, folder / "valid.parquet")
    changed = experiment.with_(valid=str(folder / "valid.parquet"))
    tables = [open_table(path) for path in (changed.train, changed.valid)]
    return changed, prepare(changed.schema, *tables, None, changed.split, folder / "prepared")


def overfits(experiment: Experiment, names: list[str]) -> Experiment:
    """Some tasks alone, and a learning rate at which the last epoch is not the best."""
    return experiment.with_(
        schema=experiment.schema.only(names),
        epochs=4,
        batch_size=300,
        embedding={"dim": 8, "dropout": 0.0},
        optimizer={"learning_rate": 0.03, "schedule": "constant", "weight_decay": 0.0, "intercepts": "trained"},
    )


def test_labels_all_alike_leave_the_loss_to_choose_by(
    feed_experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A binary task of ones, of which every model is unsure, so that the loss goes up and down."""
    experiment, prepared = rows_of(overfits(feed_experiment, ["click", "like"]), tmp_path, like=1)
    with Reporter() as report:
        fitted = fit(experiment, prepared, tmp_path, device=CPU, report=report, tasks=[1])
    losses = [entry["valid"]["valid/like/log_loss"] for entry in read_history(tmp_path / "metrics.jsonl")]
    assert len(losses) == 4
    assert losses.index(min(losses)) < 3, "the test wants a run that overfits"
    assert fitted.best["like/log_loss"] == min(losses)
    assert np.isnan(fitted.best["like/auc"])
    told = capsys.readouterr().err
    known = int(next(iter(prepared.valid.batches(10_000))).known[:, 1].sum())
    assert f"score task 'like' (all {known} known labels are 1): weights are chosen by like/log_loss" in told
    assert told.count("cannot score") == 1, "once, not every epoch"


def test_the_mean_leaves_such_a_task_out(
    feed_experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, prepared = rows_of(overfits(feed_experiment, ["click", "like"]), tmp_path, like=1)
    with Reporter() as report:
        fitted = fit(experiment, prepared, tmp_path, device=CPU, report=report)
    history = [entry["valid"]["valid/click/auc"] for entry in read_history(tmp_path / "metrics.jsonl")]
    assert fitted.best["click/auc"] == max(history)
    assert "the mean that weights are chosen by leaves that out" in capsys.readouterr().err


def test_a_regression_is_chosen_by_its_rmse(feed_experiment: Experiment, tmp_path: Path) -> None:
    experiment = overfits(feed_experiment, ["click", "watch"])
    table = pq.read_table(experiment.valid)
    clicked = table.set_column(table.column_names.index("click"), "click", pa.array([1] * table.num_rows))
    pq.write_table(clicked, tmp_path / "clicked.parquet")
    experiment, prepared = rows_of(experiment.with_(valid=str(tmp_path / "clicked.parquet")), tmp_path, watch_seconds=9)
    with Reporter(quiet=True) as report:
        fitted = fit(experiment, prepared, tmp_path, device=CPU, report=report, tasks=[1])
    history = [entry["valid"]["valid/watch/rmse"] for entry in read_history(tmp_path / "metrics.jsonl")]
    assert fitted.best["watch/rmse"] == min(history)


def test_stacked_runs_choose_as_runs_alone_do(
    feed_experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, prepared = rows_of(overfits(feed_experiment, ["click", "like"]), tmp_path, like=0)
    still = experiment.embedding.with_(unseen=0.0)  # stacked runs draw other numbers
    experiment = experiment.with_(epochs=2, batch_size=1200, embedding=still, optimizer={"learning_rate": 0.002})
    experiments = [experiment.with_(seed=seed) for seed in (0, 1, 2)]
    folders = [tmp_path / f"together{seed}" for seed in (0, 1, 2)]
    alone = [tmp_path / f"alone{seed}" for seed in (0, 1, 2)]
    for folder in (*folders, *alone):
        folder.mkdir()
    with Reporter() as report:
        together = fit_cohort(
            experiments, prepared, folders, tmp_path / "all.safetensors", device=CPU, report=report, tasks=[1]
        )
    assert capsys.readouterr().err.count("weights are chosen by like/log_loss") == 1, "once for all of them"
    for one, fitted, folder, own in zip(experiments, together, folders, alone, strict=True):
        with Reporter(quiet=True) as report:
            expected = fit(one, prepared, own, device=CPU, report=report, tasks=[1])
        assert fitted.best["like/log_loss"] == pytest.approx(expected.best["like/log_loss"], rel=2e-3)
        for name, tensor in load_file(folder / BEST).items():
            torch.testing.assert_close(tensor, load_file(own / BEST)[name], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("columns", "tasks", "monitor", "told"),
    [
        ({"like": None}, [1], "mean", r"'mean' .* validation rows: task 'like' \(no label is known\); choose other v"),
        ({"like": None, "click": None}, None, "mean", r"task 'click' \(no label is known\), task 'like' \(no label"),
        ({"w": 0}, [1], "mean", r"task 'like' \(all known labels have weight 0\); choose other validation rows$"),
        (
            {"like": 0},
            None,
            "like/auc",
            r"'like/auc' .* task 'like' \(all \d+ known labels are 0\); .* another monitor$",
        ),
    ],
)
def test_where_nothing_is_known_training_stops_and_says_of_which_task(
    feed_experiment: Experiment,
    tmp_path: Path,
    columns: dict[str, Any],
    tasks: list[int] | None,
    monitor: str,
    told: str,
) -> None:
    table = pq.read_table(feed_experiment.train)
    pq.write_table(table.append_column("w", pa.array([1.0] * table.num_rows)), tmp_path / "train.parquet")
    schema = feed_experiment.schema.with_(tasks=(Task("click"), Task("like", sample_weight="w")))
    experiment = feed_experiment.with_(
        schema=schema, train=str(tmp_path / "train.parquet"), epochs=1, batch_size=1200, monitor=monitor
    )
    experiment, prepared = rows_of(experiment, tmp_path, **({"w": 1} | columns))
    with Reporter(quiet=True) as report, pytest.raises(RunError, match=told):
        fit(experiment, prepared, tmp_path, device=CPU, report=report, tasks=tasks)
