"""Training from an experiment to a run: same seed same weights, interrupted or not; the best weights are kept."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tied import Tied

from multigate.balance import Fixed
from multigate.bundle import load
from multigate.data.fitting import Fit as Fitting
from multigate.datasets.feed import Feed, write_feed
from multigate.errors import BundleError, ExperimentError, RunError
from multigate.evaluate import Monitor
from multigate.experiment import Experiment
from multigate.metrics import auc
from multigate.run import METRICS, open_run, read_history
from multigate.schema import Number, Schema, Task, Vector
from multigate.score import score_part, score_table
from multigate.sharing import SharedBottom, Sharing
from multigate.training.fit import CHECKPOINT, Fit
from multigate.training.interrupts import Interrupted
from multigate.training.progress import Reporter
from multigate.training.train import open_sources, prepare_sources, train
from processes import begin


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "bundle" / "model.safetensors")


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_the_same_seed_gives_bit_equal_weights_and_another_does_not(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    train(feed_experiment, tmp_path / "a", quiet=True)
    torch.manual_seed(123)  # the caller's random state must not matter
    before = torch.get_rng_state()
    train(feed_experiment, tmp_path / "b", quiet=True)
    assert torch.equal(before, torch.get_rng_state()), "training moved the caller's random state"
    train(feed_experiment.with_(seed=1), tmp_path / "c", quiet=True)
    assert_bit_equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not torch.equal(
        weights(tmp_path / "a")["sharing.gate.linear.weight"], weights(tmp_path / "c")["sharing.gate.linear.weight"]
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"balance": "uncertainty", "optimizer": {"average": 0.9, "clip": 1.0, "schedule": "cosine"}}],
    ids=["plain", "everything that has state"],
)
def test_resumed_after_an_interruption_is_bit_equal(feed_experiment: Experiment, tmp_path: Path, changes: dict) -> None:
    """The run is stopped by a signal in the middle of an epoch, twice, and goes on each time."""
    experiment = feed_experiment.with_(batch_size=64, **changes)
    train(experiment, tmp_path / "whole", quiet=True)

    folder = tmp_path / "pieces"
    stops = 0
    for at in (20, 90):  # 75 steps an epoch: in the first and in the second
        with StopAt(at), pytest.raises(Interrupted, match="--resume"):
            train(experiment, folder, resume=folder.exists(), quiet=True)
        stops += 1
        assert (folder / CHECKPOINT).is_file()
        with pytest.raises(RunError, match="did not finish"):
            open_run(folder)
    train(experiment, folder, resume=True, quiet=True)
    assert stops == 2
    assert_bit_equal(weights(tmp_path / "whole"), weights(folder))
    whole, pieces = open_run(tmp_path / "whole"), open_run(folder)
    assert whole.best == pieces.best
    assert [entry["valid"] for entry in whole.history] == [entry["valid"] for entry in pieces.history]
    torch.testing.assert_close(
        torch.tensor(list(whole.history[0]["train"].values())), torch.tensor(list(pieces.history[0]["train"].values()))
    )


@pytest.mark.parametrize(
    "balance",
    ["dwa", "famo", "random", "gradnorm", {"method": "gradvac", "every": 3, "smoothing": 0.5}],
    ids=["dwa", "famo", "random", "gradnorm", "gradvac"],
)
def test_balances_go_on_where_they_were(feed_experiment: Experiment, tmp_path: Path, balance: str | dict) -> None:
    """As above, with what balances keep within an epoch and between epochs, and weights that follow a schedule."""
    some = [task.with_(weight_factor=0.7 if task.name == "like" else 1.0) for task in feed_experiment.schema.tasks]
    schema = feed_experiment.schema.with_(tasks=some)
    experiment = feed_experiment.with_(batch_size=200, epochs=3, balance=balance, schema=schema, patience=None)
    train(experiment, tmp_path / "whole", quiet=True)
    folder = tmp_path / "pieces"
    for at in (10, 55):  # 24 steps an epoch: in the first and in the third
        with StopAt(at), pytest.raises(Interrupted):
            train(experiment, folder, resume=folder.exists(), quiet=True)
    train(experiment, folder, resume=True, quiet=True)
    assert open_run(tmp_path / "whole").history[-1]["valid"] == open_run(folder).history[-1]["valid"]


def test_a_run_does_not_go_on_with_other_rows(feed_experiment: Experiment, tmp_path: Path) -> None:
    table = tmp_path / "rows.parquet"
    shutil.copy(feed_experiment.train, table)
    experiment = feed_experiment.with_(train=str(table), batch_size=64)
    with StopAt(10), pytest.raises(Interrupted):
        train(experiment, tmp_path / "run", quiet=True)
    pq.write_table(pq.read_table(table).slice(1), table)
    with pytest.raises(RunError, match="tables changed"):
        train(experiment, tmp_path / "run", resume=True, quiet=True)
    assert (tmp_path / "run" / CHECKPOINT).is_file(), "what was reached is kept"


def test_an_auxiliary_task_is_not_counted_unless_it_is_alone(feed_experiment: Experiment) -> None:
    tasks = [task.with_(auxiliary=task.name == "like") for task in feed_experiment.schema.tasks]
    schema = feed_experiment.schema.with_(tasks=tasks)
    assert Monitor("mean", schema).main == ["click/auc", "buy/auc", "watch/r2"]
    assert Monitor("mean", schema.only(["like"])).main == ["like/auc"]
    assert Monitor("watch/rmse", schema).value({"watch/rmse": 3.0}) == -3.0


def test_a_task_of_weight_zero_is_not_counted_and_one_has_to_be_trained(feed_experiment: Experiment) -> None:
    tasks = [task.with_(weight=0 if task.name in ("like", "buy") else 1) for task in feed_experiment.schema.tasks]
    schema = feed_experiment.schema.with_(tasks=tasks)
    assert Monitor("mean", schema).main == ["click/auc", "watch/r2"]
    assert Monitor("mean", schema.only(["like", "buy"])).main == ["buy/auc", "like/auc"], "as relate looks at pairs"
    with pytest.raises(ExperimentError, match="every task is auxiliary or has weight 0; name one"):
        Monitor("mean", schema.with_(tasks=[task.with_(auxiliary=task.weight > 0) for task in tasks]))
    with pytest.raises(ExperimentError, match="every task has weight 0, so that nothing would be learnt; set"):
        feed_experiment.with_(schema=schema.with_(tasks=[task.with_(weight=0) for task in tasks]))


def test_a_training_tells_of_settings_that_move_nothing(
    feed_experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(feed_experiment.with_(epochs=1, sharing=feed_experiment.sharing.with_(k=3)), tmp_path / "run")
    assert "sharing.k moves nothing: gates read all sources" in capsys.readouterr().err


class StopAt:
    """Sends this process SIGTERM when a training has done some number of steps in all."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __enter__(self) -> None:
        from multigate.training.fit import Fit

        self.original = original = Fit.step

        def step(fitting: Fit, batch: object) -> torch.Tensor:
            loss = original(fitting, batch)
            if fitting.step_done == self.step:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss

        Fit.step = step

    def __exit__(self, *_: object) -> None:
        from multigate.training.fit import Fit

        Fit.step = self.original


def test_a_killed_process_resumes_from_its_last_epoch(feed_experiment: Experiment, tmp_path: Path) -> None:
    """SIGKILL leaves no time to save: what the last epoch saved is gone on from, to the same weights."""
    experiment = feed_experiment.with_(epochs=3, batch_size=64)
    file, folder = tmp_path / "x.yaml", tmp_path / "killed"
    file.write_text(experiment.to_yaml())
    process = begin(["train", file, "--out", folder], tmp_path)
    deadline = time.monotonic() + 120
    while not (folder / CHECKPOINT).is_file() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert (folder / CHECKPOINT).is_file()
    train(experiment, folder, resume=True, quiet=True)
    train(experiment, tmp_path / "whole", quiet=True)
    assert_bit_equal(weights(tmp_path / "whole"), weights(folder))


def test_the_best_weights_are_kept_not_the_last(feed_experiment: Experiment, tmp_path: Path) -> None:
    """With a learning rate that overfits at once the best epoch is not the last; the bundle scores as the best did."""
    experiment = feed_experiment.with_(
        epochs=8,
        patience=3,
        batch_size=64,
        monitor="click/log_loss",
        embedding={"dim": 16, "dropout": 0.0, "scale": 0.1},
        optimizer={"learning_rate": 0.02, "schedule": "constant", "weight_decay": 0.0, "intercepts": "trained"},
    )
    run = train(experiment, tmp_path / "run", quiet=True)
    losses = [entry["valid"]["valid/click/log_loss"] for entry in run.history]
    best = losses.index(min(losses))
    assert best < len(losses) - 1, "the test wants a run that overfits"
    assert len(losses) == best + 1 + 3, "early stopping waits for three evaluations without a better one"
    assert run.best["click/log_loss"] == losses[best]
    scored, _ = score_table(run.bundle(), experiment.valid, replicates=0)
    assert scored["click/log_loss"] == pytest.approx(losses[best], abs=1e-6)


def test_a_structure_whose_layers_have_one_weight_trains_goes_on_and_predicts_as_it_did(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    experiment = feed_experiment.with_(sharing=Tied(hidden=(8,)), optimizer={"average": 0.9})
    whole = train(experiment, tmp_path / "whole", quiet=True)
    with StopAt(25), pytest.raises(Interrupted):  # in the second of two epochs of 19 steps
        train(experiment, tmp_path / "pieces", quiet=True)
    train(experiment, tmp_path / "pieces", resume=True, quiet=True)
    assert_bit_equal(weights(tmp_path / "whole"), weights(tmp_path / "pieces"))
    found = weights(tmp_path / "whole")
    assert torch.equal(found["sharing.one.weight"], found["sharing.other.weight"])
    bundle = whole.bundle()
    assert bundle.model.sharing.one.weight is bundle.model.sharing.other.weight
    scored, _ = score_table(bundle, experiment.valid, replicates=0)
    for name, value in whole.best.items():
        assert scored[name] == pytest.approx(value, abs=1e-6, nan_ok=True)


def test_learning_approaches_the_known_truth_and_stays_below_it(feed_experiment: Experiment, tmp_path: Path) -> None:
    """On a simulated feed the probabilities behind the labels are known: nothing scores better than they do."""
    write_feed(Feed(rows=30_000, users=300, items=150), tmp_path)
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "valid", "test")}
    run = train(feed_experiment.with_(epochs=4, **files), tmp_path / "run", quiet=True)
    metrics, _ = score_table(run.bundle(), files["test"], replicates=0)
    truth, labels = pq.read_table(tmp_path / "test_truth.parquet"), pq.read_table(files["test"])
    best = auc(truth.column("p_click").to_numpy(), labels.column("click").to_numpy())
    assert 0.62 < metrics["click/auc"] < best
    assert metrics["click/ne"] < 1.0
    assert {"buy|click/auc", "buy/auc", "like/auc", "watch/r2", "click/gauc"} <= run.best.keys()
    # the entire-space estimate of p(buy | click) over all rows, most of which were never clicked
    told, p = run.bundle().predict(files["test"])["buy|click"], truth.column("p_buy_given_click").to_numpy()
    assert np.corrcoef(told, p)[0, 1] > 0.2


def test_the_average_of_the_weights_is_the_corrected_exponential_average() -> None:
    from multigate.training.optimizers import Average

    values = torch.randn(6, 3, dtype=torch.float64)
    parameter = torch.zeros(3, dtype=torch.float64)
    average = Average([parameter], decay=0.8)
    for value in values:
        parameter.copy_(value)
        average.update()
    shares = torch.tensor([0.8 ** (5 - i) for i in range(6)], dtype=torch.float64)
    torch.testing.assert_close(average.values[0], (shares[:, None] * values).sum(0) / shares.sum())
    average.swap()
    assert torch.equal(average.values[0], values[-1])


@pytest.mark.parametrize(
    ("rows", "epochs", "size"),
    [
        (0, 12, 32), (1, 12, 32), (4_800, 12, 32), (9_599, 12, 32), (9_600, 12, 64), (20_000, 12, 128),
        (48_000, 1, 256),
        (199_523, 12, 1024), (307_199, 12, 1024), (307_200, 12, 2048), (614_400, 12, 4096), (10**9, 12, 4096),
        (10**6, 1, 1024), (3_686_400, 1, 2048), (10**7, 1, 4096),
    ],
)  # fmt: skip
def test_batches_follow_the_rows_of_tables(feed_experiment: Experiment, rows: int, epochs: int, size: int) -> None:
    one = feed_experiment.with_(epochs=epochs, batch_size=None, optimizer={})
    assert one.settled(rows).batch_size == size
    assert one.with_(batch_size=77).settled(rows).batch_size == 77
    assert one.settled(rows).settled(3) == one.settled(rows)


def test_twelve_epochs_that_get_better_to_the_last_are_told_to_be_few(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(0).normal(size=600)
    schema = Schema(features=[Number("x")], tasks=[Task("y", kind="regression")])
    base = Experiment(schema=schema, optimizer={"learning_rate": 1e-4, "schedule": "constant"})
    told = "the last epoch was the best; more may do better still: set epochs=24"
    tables = {"train": {"x": x, "y": 2 * x}}
    run = train(base, tmp_path / "slow", tables=tables, device="cpu")
    errors = [1 - one["valid"]["valid/y/r2"] for one in run.history]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == run.summary["epochs"] == 12
    assert capsys.readouterr().err.splitlines().count(told) == 1
    train(base.with_(epochs=11), tmp_path / "chosen", tables=tables, device="cpu")
    train(base.with_(optimizer={"learning_rate": 0.3}), tmp_path / "fast", tables=tables, device="cpu")
    assert "epochs=" not in capsys.readouterr().err


def test_the_learning_rate_follows_large_batches_where_it_is_left_out(feed_experiment: Experiment) -> None:
    def rate(size: int | None, rows: int = 10**6, **optimizer: float) -> float | None:
        return (
            feed_experiment.with_(epochs=12, batch_size=size, optimizer=optimizer).settled(rows).optimizer.learning_rate
        )

    assert rate(None) == rate(4096) == pytest.approx(0.004)
    assert rate(2048) == pytest.approx(0.002 * 2**0.5)
    assert rate(None, 5_000) == rate(32) == rate(1024) == 0.002
    assert rate(None, learning_rate=0.001) == rate(4096, learning_rate=0.001) == 0.001


def test_a_training_of_a_large_batch_moves_by_its_rate(feed_experiment: Experiment, tmp_path: Path) -> None:
    few = feed_experiment.with_(batch_size=4096, optimizer={}, epochs=1)
    a, b, c = (
        train(one, tmp_path / name, quiet=True).summary["best"]
        for name, one in {
            "null": few, "same": few.with_(optimizer={"learning_rate": 0.004}),
            "other": few.with_(optimizer={"learning_rate": 0.002}),
        }.items()
    )  # fmt: skip
    assert a == b != c


def test_one_cycle_is_torchs() -> None:
    from multigate.experiment import Optimizer
    from multigate.training.optimizers import rate_at

    options = Optimizer(learning_rate=0.01)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=101)
    for step in range(101):
        assert rate_at(options, step, 101) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9), step
        optimiser.step()
        if step < 100:
            schedule.step()


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 101])
def test_beyond_its_last_step_a_schedule_stays_where_it_ended(schedule: str, steps: int) -> None:
    from multigate.experiment import Optimizer
    from multigate.training.optimizers import rate_at

    options = Optimizer(learning_rate=0.01, schedule=schedule)
    last = rate_at(options, max(steps - 1, 1), steps)
    assert [rate_at(options, steps + more, steps) for more in (0, 1, 7, 1_000)] == [last] * 4
    if schedule != "constant" and steps == 101:
        assert 0 < last < 1e-5


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("another run", "holds a run already"),
        ("a file", "is a file"),
        ("other files", "holds no run"),
        ("another experiment", "another experiment"),
    ],
)
def test_a_folder_that_is_taken_is_refused(feed_experiment: Experiment, tmp_path: Path, what: str, match: str) -> None:
    folder = tmp_path / "out"
    resume = False
    if what == "a file":
        folder.write_text("something")
    elif what == "other files":
        folder.mkdir()
        (folder / "thesis.tex").write_text("something")
    else:
        folder.mkdir()
        (folder / "experiment.yaml").write_text(feed_experiment.to_yaml())
        resume = what == "another experiment"
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(RunError, match=match):
        train(feed_experiment.with_(seed=7), folder, resume=resume, quiet=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def contents(folder: Path) -> dict[str, bytes]:
    """Of the files of a run, but for what tells of time."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_what_is_gone_of_a_finished_run_is_made_again(feed_experiment: Experiment, tmp_path: Path) -> None:
    experiment, folder = feed_experiment.with_(epochs=1, recalibrate="isotonic"), tmp_path / "run"
    train(experiment, folder, quiet=True)
    before = contents(folder)
    for gone in (
        ["bundle"], ["bundle/bundle.json"], ["prepared"], ["prepared/encoder"], ["prepared/valid-00000.safetensors"],
        ["prepared", "bundle"], ["bundle/model.safetensors"], ["bundle/encoder/encoder.json"],
        ["prepared/encoder/encoder.json"], ["prepared/encoder/vocabularies.parquet"],
    ):  # fmt: skip
        for name in gone:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
        train(experiment, folder, resume=True, quiet=True)
        assert contents(folder) == before, gone


@pytest.mark.parametrize("name", ["bundle.json", "model.safetensors", "encoder/encoder.json"])
def test_what_is_damaged_of_a_finished_bundle_is_made_again(
    feed_experiment: Experiment, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "run"
    train(feed_experiment.with_(epochs=1), folder, quiet=True)
    before, damaged = contents(folder), folder / "bundle" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(BundleError, match=f"make it anew with: multigate train --resume --out {folder}$"):
        load(folder)
    train(feed_experiment.with_(epochs=1), folder, resume=True, quiet=True)
    assert contents(folder) == before


def test_a_finished_bundle_of_a_newer_version_stays_as_it_is(feed_experiment: Experiment, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(feed_experiment.with_(epochs=1), folder, quiet=True)
    about = folder / "bundle" / "bundle.json"
    about.write_text('{"format": 99}')
    train(feed_experiment.with_(epochs=1), folder, resume=True, quiet=True)
    assert about.read_text() == '{"format": 99}'


def test_the_weights_kept_are_those_the_summary_tells_of_whatever_a_second_try_comes_to(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the best weights of epoch 2 and their checkpoint; on a GPU epoch 2 may not be better again."""
    saved = Fit.save

    def save(fitting: Fit) -> None:
        if fitting.epoch == 2:
            raise RunError("the disk is full")
        saved(fitting)

    with monkeypatch.context() as first:
        first.setattr(Fit, "save", save)
        values = iter((1.0, 2.0))
        first.setattr(Monitor, "choice", lambda *_: next(values))
        with pytest.raises(RunError, match="full"):
            train(feed_experiment, tmp_path / "run", quiet=True)
    monkeypatch.setattr(Monitor, "choice", lambda *_: 0.5)
    run = train(feed_experiment, tmp_path / "run", resume=True, quiet=True)
    found, _ = score_part(run, "valid", replicates=0)
    assert found["click/log_loss"] == pytest.approx(run.best["click/log_loss"], rel=1e-6)


def test_a_project_that_is_copied_elsewhere_between_a_stop_and_resume_goes_on(
    feed_experiment: Experiment, feed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables are where they were to the folder, and hold what they held; their copies are younger."""
    experiment = feed_experiment.with_(train="train.parquet", valid="valid.parquet", test=None, epochs=1)
    for name in ("train.parquet", "valid.parquet"):
        (tmp_path / "here").mkdir(exist_ok=True)
        shutil.copy(feed_folder / name, tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    train(experiment, "whole", quiet=True)
    with StopAt(5), pytest.raises(Interrupted):
        train(experiment, "pieces", quiet=True)
    shutil.copytree(tmp_path / "here", tmp_path / "there", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "here" / "pieces")
    monkeypatch.chdir(tmp_path / "there")
    prepared = {path: path.stat().st_mtime_ns for path in Path("pieces/prepared").rglob("*")}
    train(experiment, "pieces", resume=True, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in Path("pieces/prepared").rglob("*")} == prepared
    assert_bit_equal(weights(Path("pieces")), weights(tmp_path / "here" / "whole"))


def test_rows_prepared_anew_at_another_place_are_those_of_the_checkpoint(
    feed_experiment: Experiment, feed_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = feed_experiment.with_(train="train.parquet", valid=None, test=None, epochs=1)
    (tmp_path / "here").mkdir()
    shutil.copy(feed_folder / "train.parquet", tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    with StopAt(5), pytest.raises(Interrupted):
        train(experiment, "run", quiet=True)
    (tmp_path / "here").rename(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    shutil.rmtree("run/prepared")
    assert train(experiment, "run", resume=True, quiet=True).best


def test_a_run_goes_on_once_its_tables_are_changed_back(feed_experiment: Experiment, tmp_path: Path) -> None:
    """Its prepared rows are gone, and none are made of the tables that are not its own."""
    experiment, folder = feed_experiment.with_(epochs=1, valid=None, test=None), tmp_path / "run"
    table = pq.read_table(feed_experiment.train)
    with StopAt(5), pytest.raises(Interrupted):
        train(experiment, folder, tables={"train": table}, quiet=True)
    whole = train(experiment, tmp_path / "whole", tables={"train": table}, quiet=True)
    shutil.rmtree(folder / "prepared")
    with pytest.raises(RunError, match="tables changed"):
        train(experiment, folder, tables={"train": table.slice(1)}, resume=True, quiet=True)
    assert not (folder / "prepared").exists()
    assert train(experiment, folder, tables={"train": table}, resume=True, quiet=True).best == whole.best


def test_a_run_that_another_process_finishes_meanwhile_is_not_trained_again(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening tables takes a while, and only after that is the folder locked."""
    experiment, folder = feed_experiment.with_(epochs=1), tmp_path / "run"
    with StopAt(5), pytest.raises(Interrupted):
        train(experiment, folder, quiet=True)

    def opened(*given: Any) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr("multigate.training.train.open_sources", open_sources)
            train(experiment, folder, resume=True, quiet=True)
        before.update(contents(folder))
        return open_sources(*given)

    before: dict[str, bytes] = {}
    monkeypatch.setattr("multigate.training.train.open_sources", opened)
    train(experiment, folder, resume=True, quiet=True)
    assert before.keys() == contents(folder).keys()
    assert before["summary.json"] == contents(folder)["summary.json"], "its seconds are those of the one training"


def test_a_finished_run_is_not_completed_from_other_rows(feed_experiment: Experiment, tmp_path: Path) -> None:
    folder, tables = tmp_path / "run", {"train": pq.read_table(feed_experiment.train)}
    experiment = feed_experiment.with_(epochs=1, valid=None, test=None)
    train(experiment, folder, tables=tables, quiet=True)
    shutil.rmtree(folder / "bundle")
    shutil.rmtree(folder / "prepared")
    before = contents(folder)
    with pytest.raises(RunError, match="the tables changed since the run"):
        train(experiment, folder, tables={"train": tables["train"].slice(1)}, resume=True, quiet=True)
    assert contents(folder) == before
    summary = json.loads((folder / "summary.json").read_text())
    del summary["encoder"]
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(RunError, match="does not tell which rows"):
        train(experiment, folder, tables=tables, resume=True, quiet=True)


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_finished_run_is_not_completed_with_other_rows_to_be_scored(
    feed_experiment: Experiment, tmp_path: Path, part: str
) -> None:
    """Its encoder is that of the training rows, which are the same."""
    folder = tmp_path / "run"
    tables = {name: pq.read_table(getattr(feed_experiment, name)) for name in ("train", "valid", "test")}
    experiment = feed_experiment.with_(epochs=1)
    train(experiment, folder, tables=tables, quiet=True)
    whole = contents(folder)
    shutil.rmtree(folder / "bundle")
    shutil.rmtree(folder / "prepared")
    before = contents(folder)
    with pytest.raises(RunError, match="the tables changed since the run"):
        train(experiment, folder, tables=tables | {part: tables[part].slice(1)}, resume=True, quiet=True)
    assert contents(folder) == before
    train(experiment, folder, tables=tables, resume=True, quiet=True)
    assert contents(folder) == whole


def test_how_a_stopped_training_goes_on_is_told_of_tables_in_memory_and_of_files(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    """No command could go on with a table that is in no file."""
    table = pq.read_table(feed_experiment.train)
    with StopAt(5), pytest.raises(Interrupted) as told:
        train(feed_experiment, tmp_path / "memory", tables={"train": table}, quiet=True)
    assert str(told.value).endswith("go on with the same call of train and resume=True")
    with StopAt(5), pytest.raises(Interrupted) as told:
        train(feed_experiment, tmp_path / "files", quiet=True)
    assert str(told.value).endswith(f"go on with: multigate train --resume --out {tmp_path / 'files'}")


def test_an_epoch_that_was_told_of_but_not_saved_is_in_the_metrics_once(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the last step of an epoch, gone on with, and killed between the line of the epoch and its checkpoint:
    the step of that line is the checkpoint's."""
    folder = tmp_path / "run"
    with StopAt(19), pytest.raises(Interrupted):  # an epoch has 19 steps
        train(feed_experiment, folder, quiet=True)

    def killed(fitting: Fit) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(Fit, "save", killed)
        with pytest.raises(SystemExit):
            train(feed_experiment, folder, resume=True, quiet=True)
    assert [(entry["epoch"], entry["step"]) for entry in read_history(folder / METRICS)] == [(1, 19)]
    run = train(feed_experiment, folder, resume=True, quiet=True)
    assert [(entry["epoch"], entry["step"]) for entry in run.history] == [(1, 19), (2, 38)]


def test_monitors_that_cannot_be_are_told_before_training(feed_experiment: Experiment, tmp_path: Path) -> None:
    """And before a table is read: there is none."""
    experiment = feed_experiment.with_(train=str(tmp_path / "absent.parquet"))
    for monitor, match in (
        *(("clik/auc", "click"), ("click/auk", "auc"), ("buy|like/auc", "buy")),
        *(("click/rmse", "has no rmse"), ("watch/auc", "has no auc")),
    ):
        with pytest.raises(ExperimentError, match=match):
            train(experiment.with_(monitor=monitor), tmp_path / "run", quiet=True)
        assert not (tmp_path / "run").exists()


def test_metrics_and_summary_are_plain_files(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TensorBoard, which is looked for once."""
    looked: list[Path] = []

    @contextmanager
    def absent(folder: Path) -> Iterator[None]:
        looked.append(folder)
        yield None

    monkeypatch.setattr("multigate.training.loop.tensorboard", absent)
    run = train(feed_experiment, tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert looked == [tmp_path / "run"]
    assert run.summary["rows"] == {"train": 4800, "valid": 600, "test": 600}
    assert not list((tmp_path / "run").rglob("*.pkl"))
    assert not list((tmp_path / "run").rglob("*.pt"))


@pytest.mark.parametrize(("unknown", "weight"), [(6, None), (0, None), (6, "w")])
def test_children_that_are_seldom_known_under_their_parent_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unknown: int, weight: str | None
) -> None:
    click = [0, 1] * 9
    buy: list[int | None] = [None, 0, None, 1] * 4 + [None, 0]
    for row in range(1, 2 * unknown, 2):
        buy[row] = None
    tasks = [Task("click"), Task("buy", given="click", sample_weight=weight)]
    experiment = Experiment(schema=Schema(features=[Number("x")], tasks=tasks))
    table = {"x": list(range(18)), "click": click, "buy": buy, "w": [1.0] * 18}
    sources = open_sources(experiment, {"train": table, "valid": table})
    with Reporter() as report:
        prepare_sources(experiment, sources, tmp_path / "rows", report)
    told = "buy is known in 33% of the rows where click is 1"
    found = capsys.readouterr().err
    assert (told in found and "each known one counts 3 times there" in found) == (unknown > 0 and weight is None)
    assert ("buy is known in" in found) == (unknown > 0 and weight is None)


def test_the_loss_of_an_epoch_is_the_mean_over_its_rows_however_few_the_last_batch_has(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=66)
    table = {"x": x, "click": (x > 1).astype(int), "amount": x**2}
    experiment = Experiment(
        schema=Schema(features=[Number("x")], tasks=[Task("click"), Task("amount", kind="regression")]),
        sharing=SharedBottom(hidden=(8,), dropout=0.0),
        embedding={"dropout": 0.0},
        optimizer={"learning_rate": 1e-9, "intercepts": "trained"},
        batch_size=64,
        epochs=1,
    )
    run = train(experiment, tmp_path, tables={"train": table, "valid": table}, quiet=True)
    told = run.history[0]["train"]
    assert told["train/click/loss"] == pytest.approx(run.best["click/log_loss"], rel=1e-3)
    assert told["train/amount/loss"] == pytest.approx((run.best["amount/rmse"] / np.std(x**2)) ** 2, rel=1e-3)


@pytest.mark.parametrize("size", [1e-9, 1e24])
def test_weights_far_from_1_train_as_weights_of_1_do(tmp_path: Path, size: float) -> None:
    x = np.random.default_rng(0).normal(size=400)
    table = {"x": x, "a": (x > 0).astype(int), "b": x**2, "one": np.ones(400)}
    table |= {"far": size * table["one"], "half": size * table["one"] / 2}
    scores = []
    for of_a, of_b in (("one", None), ("far", "far"), ("far", "half")):
        tasks = [Task("a", sample_weight=of_a), Task("b", kind="regression", sample_weight=of_b)]
        experiment = Experiment(
            schema=Schema(features=[Number("x")], tasks=tasks), sharing=SharedBottom(hidden=(16,)), tower=(8,), epochs=4
        )
        train(experiment, tmp_path / f"{of_a}-{of_b}", tables={"train": table, "valid": table}, quiet=True)
        first = read_history(tmp_path / f"{of_a}-{of_b}" / METRICS)[-1]["train"]
        scores.append((first["train/a/loss"], first["train/b/loss"]))
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)
    assert scores[2][1] < 0.8 * scores[0][1], "what tasks weigh beside each other stays"


def test_a_task_of_faint_weights_stays_faint_beside_another(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=200)
    table = {"x": x, "a": (x > 0).astype(int), "b": (x > 1).astype(int), "w": np.full(200, 1e-6)}
    schema = Schema(features=[Number("x")], tasks=[Task("a"), Task("b", sample_weight="w")])
    experiment = Experiment(schema=schema)
    with Reporter(quiet=True) as report:
        sources = open_sources(experiment, {"train": table, "valid": table})
        prepared = prepare_sources(experiment, sources, tmp_path / "rows", report)
    both = Fit(experiment, prepared, tmp_path, torch.device("cpu"), None)
    alone = Fit(experiment, prepared, tmp_path, torch.device("cpu"), [1])
    assert both.objective.rates.tolist() == [1, 1]
    assert alone.objective.rates.tolist() == pytest.approx([1e-6])


@pytest.mark.parametrize("size", [2.0**-24, 2.0**60])
def test_weights_that_those_of_the_tasks_make_up_for_count_as_they_are(tmp_path: Path, size: float) -> None:
    """Losses beside which a penalty weighs what it did."""
    x = np.random.default_rng(0).normal(size=200)
    table = {"x": x, "a": (x > 0).astype(int), "b": (x > 1).astype(int), "w": np.full(200, size)}
    schema = Schema(
        features=[Number("x")],
        tasks=[Task("a", sample_weight="w", weight=1 / size), Task("b", sample_weight="w")],
    )
    experiment = Experiment(schema=schema)
    with Reporter(quiet=True) as report:
        sources = open_sources(experiment, {"train": table, "valid": table})
        prepared = prepare_sources(experiment, sources, tmp_path / "rows", report)
    fit = Fit(experiment, prepared, tmp_path, torch.device("cpu"), None)
    assert fit.objective.rates.tolist() == ([1, 1] if size < 1 else [size, size])


class Drawn(SharedBottom):
    """Multiplies what it reads by numbers that were drawn, kept in one way or another."""

    structure: Literal["drawn"] = "drawn"  # type: ignore[assignment]
    kept: str

    def build(self, d_in: int, tasks: tuple[str, ...]) -> Sharing:
        sharing, drawn = super().build(d_in, tasks), torch.randn(d_in)
        if self.kept == "constant":
            drawn = torch.linspace(0, 1, d_in)
        if self.kept in ("plain", "constant"):
            sharing.drawn = drawn
        else:
            sharing.register_buffer("drawn", drawn, persistent=self.kept == "saved")
        read = sharing.forward
        sharing.forward = lambda x: read(x * sharing.drawn)
        return sharing


@pytest.mark.parametrize("kept", ["plain", "left out", "saved", "constant"])
def test_what_a_structure_of_ones_own_draws_is_kept_or_told_of(
    feed_experiment: Experiment, tmp_path: Path, kept: str
) -> None:
    """A bundle would compute with other draws than its weights were learnt with."""
    experiment = feed_experiment.with_(sharing=Drawn(hidden=(8,), kept=kept), epochs=1, seed=3)
    if kept in ("saved", "constant"):
        run = train(experiment, tmp_path / "run", quiet=True)
        rows = pq.read_table(experiment.valid)
        clicks = load(tmp_path / "run", structures=Drawn).predict(rows)["click"]
        assert auc(clicks, rows["click"].to_numpy()) == pytest.approx(run.best["click/auc"])
        return
    with pytest.raises(ExperimentError, match="'drawn' makes 'drawn' anew each time it is built, and bundles keep"):
        train(experiment, tmp_path / "run", quiet=True)


class Own(Fixed):
    method: Literal["own"] = "own"  # type: ignore[assignment]


@pytest.mark.parametrize(
    "own", [{"sharing": Drawn(hidden=(8,), kept="saved")}, {"balance": Own()}], ids=["structure", "balance"]
)
def test_what_is_of_ones_own_is_gone_on_with_from_python(
    feed_experiment: Experiment, tmp_path: Path, own: dict[str, Any]
) -> None:
    """The command line knows what is built in."""
    with StopAt(5), pytest.raises(Interrupted) as told:
        train(feed_experiment.with_(**own), tmp_path / "run", quiet=True)
    assert str(told.value).endswith("go on with the same call of train and resume=True")


@pytest.mark.parametrize("older", [{"flagged": None}, {"flagged": None, "flags_apart": True}])
def test_a_finished_run_of_older_encoders_gets_back_its_rows(
    older: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of their numbers had a flag for being missing, each number of a vector as well."""
    rows = {"v": [[float(at), None] for at in range(40)], "x": list(range(40)), "click": [0, 1] * 20}
    schema = Schema(features=[Vector("v", size=2), Number("x")], tasks=[Task("click")])
    experiment = Experiment(schema=schema, sharing=SharedBottom(hidden=(4,)), epochs=1)
    finish = Fitting.finish
    with monkeypatch.context() as before:
        before.setattr(Fitting, "finish", lambda fit: finish(fit)._replace(**older))
        train(experiment, tmp_path / "run", tables={"train": rows}, quiet=True)
    whole = contents(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "bundle")
    shutil.rmtree(tmp_path / "run" / "prepared")
    train(experiment, tmp_path / "run", tables={"train": rows}, resume=True, quiet=True)
    assert contents(tmp_path / "run") == whole
