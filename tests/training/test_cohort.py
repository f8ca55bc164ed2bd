"""A cohort leaves what its runs would have left one after the other; each ends by itself; stopped, it goes on."""

import gc
import json
import os
import signal
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from tied import Tied
from torch import Tensor, nn

from multigate.balance import BALANCES
from multigate.batch import Batch
from multigate.data.files import open_table
from multigate.data.loader import Loader
from multigate.data.prepared import Prepared, prepare
from multigate.errors import ExperimentError, RunError
from multigate.evaluate import forward, scores, spaces
from multigate.experiment import Experiment
from multigate.run import read_history
from multigate.sharing import SharedBottom, Soft
from multigate.sharing.shared_bottom import SharedBottomSharing
from multigate.training.cohort import Cohort, fit_cohort
from multigate.training.fit import Fit
from multigate.training.interrupts import Interrupted
from multigate.training.loop import Fitted, fit
from multigate.training.progress import Reporter
from multigate.training.stackable import why_apart

CPU = torch.device("cpu")
STILL = {"dim": 8, "dropout": 0.0, "unseen": 0.0, "scale": 0.1}
"""Embeddings without random draws in training: what is drawn together is not what is drawn alone."""


@pytest.fixture(scope="module")
def prepared(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    tables = [open_table(path) for path in (feed_experiment.train, feed_experiment.valid, feed_experiment.test)]
    return prepare(feed_experiment.schema, *tables, feed_experiment.split, tmp_path_factory.mktemp("prepared"))


def train_together(experiments: Sequence[Experiment], prepared: Prepared, folder: Path) -> list[Fitted]:
    folders = [folder / str(at) for at in range(len(experiments))]
    for one in folders:
        one.mkdir(parents=True, exist_ok=True)
    with Reporter(quiet=True) as report:
        return fit_cohort(experiments, prepared, folders, folder / "all.safetensors", device=CPU, report=report)


def train_alone(experiment: Experiment, prepared: Prepared, folder: Path) -> Fitted:
    folder.mkdir(parents=True)
    with Reporter(quiet=True) as report:
        return fit(experiment, prepared, folder, device=CPU, report=report)


def test_runs_scored_as_one_are_scored_as_each_alone(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, in pieces that do not divide the batches; of two of three runs, for one has stopped."""
    monkeypatch.setattr("multigate.training.cohort.SCORED_AT_ONCE", 2 * 147)
    features = [one for one in feed_experiment.schema.features if one.kind != "bag"]
    schema = feed_experiment.schema.with_(features=features)
    tables = [open_table(path) for path in (feed_experiment.train, feed_experiment.valid, feed_experiment.test)]
    without_bags = prepare(schema, *tables, feed_experiment.split, tmp_path / "prepared")
    experiments = [feed_experiment.with_(schema=schema, seed=seed) for seed in range(3)]
    folders = [tmp_path / str(seed) for seed in range(3)]
    for one in folders:
        one.mkdir()
    cohort = Cohort(experiments, without_bags, folders, tmp_path / "all", CPU, None)
    for batch in list(cohort.batches(0))[:3]:
        cohort.step(batch)
    cohort.replicas.stop([1])
    assert cohort._may_be_scored()
    for number, scored in zip((0, 2), cohort.scored(), strict=True):
        cohort._bring_back(number)
        run = cohort.runs[number]
        alone = forward(run.model, run.validation(), CPU)
        for name, one, other in zip(scored._fields, scored, alone, strict=True):
            torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(other), rtol=1e-4, atol=1e-5, msg=name)
    assert abs(scored.logits - cohort.scored()[0].logits).max() > 0.01, "both runs are the same"


def test_an_average_and_bags_are_scored_alone(feed_experiment: Experiment, prepared: Prepared, tmp_path: Path) -> None:
    for name, rows, average in (("bags", prepared, 0.0), ("average", prepared, 0.9)):
        one = feed_experiment.with_(optimizer={"average": average})
        (tmp_path / name).mkdir()
        cohort = Cohort([one, one.with_(seed=1)], rows, [tmp_path / name] * 2, tmp_path / "all", CPU, None)
        assert not cohort._may_be_scored()


STACKABLE = [name for name in BALANCES if name in ("fixed", "uncertainty", "imtl_l", "dwa", "stch", "geometric_mean")]


@pytest.mark.parametrize("balance", STACKABLE)
def test_a_cohort_leaves_what_runs_alone_leave(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path, balance: str
) -> None:
    """Three epochs of four steps: losses and metrics of every epoch, best weights, names of files; categories, bags,
    a chain and a weight that follows a schedule among them."""
    tasks = [one.with_(weight_factor=0.7 if one.name == "like" else 1.0) for one in feed_experiment.schema.tasks]
    experiment = feed_experiment.with_(
        schema=feed_experiment.schema.with_(tasks=tasks), batch_size=1200, epochs=3, balance=balance, embedding=STILL
    )
    experiments = [
        experiment.with_(seed=seed, optimizer={"learning_rate": rate})
        for seed, rate in ((4, 0.002), (1, 0.002), (4, 0.001))
    ]
    torch.manual_seed(123)
    before = torch.get_rng_state()
    fits = train_together(experiments, prepared, tmp_path)
    assert torch.equal(before, torch.get_rng_state()), "training moved the caller's random state"
    for at, (one, fitted) in enumerate(zip(experiments, fits, strict=True)):
        expected = train_alone(one, prepared, tmp_path / f"alone{at}")
        here, there = tmp_path / str(at), tmp_path / f"alone{at}"
        left = {path.name for path in there.iterdir() if path.is_file()} - {"checkpoint.safetensors"}
        assert left == {path.name for path in here.iterdir() if path.is_file()}
        found, told = read_history(here / "metrics.jsonl"), read_history(there / "metrics.jsonl")
        assert len(found) == len(told) == 3
        for mine, theirs in zip(found, told, strict=True):
            assert (mine["epoch"], mine["step"]) == (theirs["epoch"], theirs["step"])
            assert_close(mine["train"], theirs["train"], 1e-5)
            assert_close(mine["valid"], theirs["valid"], 2e-3)  # a pair of rows that changes places moves AUC so far
        assert fitted.epochs == expected.epochs == 3
        assert_close(fitted.best, expected.best, 2e-3)
        weights, their_weights = (load_file(folder / "best.safetensors") for folder in (here, there))
        assert weights.keys() == their_weights.keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, their_weights[name], atol=1e-3, rtol=0, msg=name)
            assert torch.equal(tensor, fitted.model.state_dict()[name])


def assert_close(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance, abs=tolerance), name


@pytest.mark.parametrize(("shard_rows", "windows"), [(10_000, 1), (2_000, 1), (900, 2)])
def test_every_run_reads_its_rows_in_the_order_it_would_alone(
    feed_experiment: Experiment, tmp_path: Path, shard_rows: int, windows: int
) -> None:
    """Of an epoch from its third batch on; rows in one shard, in several, and in more than one window of the loader."""
    experiment = feed_experiment.with_(batch_size=700)
    tables = [open_table(path) for path in (experiment.train, experiment.valid)]
    schema, split = experiment.schema, experiment.split
    prepared = prepare(schema, *tables, None, split, tmp_path / "prepared", shard_rows=shard_rows)
    assert len(prepared.train.sizes) / 4 <= windows < len(prepared.train.sizes) / 4 + 1
    experiments = [experiment.with_(seed=seed) for seed in (3, 0, 8)]
    cohort = Cohort(experiments, prepared, [tmp_path] * 3, tmp_path / "checkpoint", CPU, [1, 0])
    cohort.epoch = 1
    stacked = list(cohort.batches(2))
    assert [batch.numbers.shape[1] for batch in stacked] == [700, 700, 700, 700, 600]
    for run, one in enumerate(experiments):
        alone = Loader(prepared.train, 700, seed=one.seed, tasks=[1, 0], prefetch=False).epoch(1, start=2)
        for here, there in zip(stacked, alone, strict=True):
            for name in ("numbers", "categories", "labels", "known", "weights", "groups"):
                torch.testing.assert_close(getattr(here, name)[run], getattr(there, name), equal_nan=True)
            (bag,), (expected,) = here.bags, there.bags
            torch.testing.assert_close(bag.offsets[run], expected.offsets, check_dtype=False)
            rows = bag.values[run].unflatten(0, (there.rows, -1))
            items = torch.cat([row[:many] for row, many in zip(rows, expected.offsets.diff(), strict=True)])
            torch.testing.assert_close(items, expected.values)


def test_every_run_ends_by_its_own_patience_with_its_own_best_weights(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    """Learning rates that overfit at once and others that do not: runs leave the cohort at different epochs."""
    experiment = feed_experiment.with_(
        epochs=5, patience=1, batch_size=300, monitor="click/log_loss", embedding={"dim": 16, "dropout": 0.0}
    )
    experiments = [
        experiment.with_(
            seed=seed,
            optimizer={
                "learning_rate": rate,
                "schedule": "constant",
                "weight_decay": 0.0,
                "average": 0.5,
                "intercepts": "trained",
            },
        )
        for seed, rate in ((0, 0.05), (1, 0.0005), (2, 0.05))
    ]
    fits = train_together(experiments, prepared, tmp_path)
    assert len({fitted.epochs for fitted in fits}) > 1, "the test wants runs that end at different times"
    for at, fitted in enumerate(fits):
        history = read_history(tmp_path / str(at) / "metrics.jsonl")
        losses = [entry["valid"]["valid/click/log_loss"] for entry in history]
        best = losses.index(min(losses))
        assert fitted.epochs == len(losses) == min(best + 1 + 1, 5)
        assert fitted.best["click/log_loss"] == losses[best]
        scored = forward(fitted.model, prepared.valid.batches(1000), CPU)
        again = scores(spaces(experiment.schema, prepared.encoder, scored))
        assert again["click/log_loss"] == pytest.approx(losses[best], abs=1e-6)


@pytest.mark.parametrize("balance", ["uncertainty", "dwa"])
def test_stopped_and_gone_on_with_is_bit_equal(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path, balance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by a signal in the middle of an epoch and at the end of one, with dropout, averages and a run that ends
    early."""
    experiment = feed_experiment.with_(
        batch_size=480, epochs=4, patience=1, balance=balance, optimizer={"average": 0.9, "clip": 1.0}
    )
    monkeypatch.setattr("multigate.training.traced.TRACE_AFTER", 6)
    monkeypatch.setattr("multigate.training.traced.MANY", 0)
    experiments = [
        experiment.with_(seed=seed, optimizer={"average": 0.9, "clip": 1.0, "learning_rate": rate})
        for seed, rate in ((0, 0.05), (1, 0.001), (2, 0.05))
    ]
    whole = train_together(experiments, prepared, tmp_path / "whole")
    for at in (4, 10, 23):
        with StopAt(at), pytest.raises(Interrupted, match=f"stopped at step {at} of 40"):
            train_together(experiments, prepared, tmp_path / "pieces")
    with (tmp_path / "pieces" / "0" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "st')  # a kill came while it was told
    pieces = train_together(experiments, prepared, tmp_path / "pieces")
    assert [one.epochs for one in whole] == [one.epochs for one in pieces]
    assert [one.best for one in whole] == [one.best for one in pieces]
    for at, (one, other) in enumerate(zip(whole, pieces, strict=True)):
        for name, tensor in one.model.state_dict().items():
            assert torch.equal(tensor, other.model.state_dict()[name]), name
        told = [read_history(tmp_path / name / str(at) / "metrics.jsonl") for name in ("whole", "pieces")]
        assert [entry["valid"] for entry in told[0]] == [entry["valid"] for entry in told[1]]
    again = train_together(experiments, prepared, tmp_path / "pieces")
    assert [one.best for one in again] == [one.best for one in whole], "what is finished is only read"


class StopAt:
    """Sends this process SIGTERM when a cohort has done some number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __enter__(self) -> None:
        self.original = original = Cohort.step

        def step(cohort: Cohort, batch: Batch) -> Tensor:
            losses = original(cohort, batch)
            if cohort.replicas.step_done == self.step:
                os.kill(os.getpid(), signal.SIGTERM)
            return losses

        Cohort.step = step  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        Cohort.step = self.original  # type: ignore[method-assign]


def test_a_checkpoint_of_others_or_a_torn_one_is_refused(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    experiments = [feed_experiment.with_(seed=seed, epochs=1, batch_size=1200) for seed in range(2)]
    train_together(experiments, prepared, tmp_path)
    with pytest.raises(RunError, match="other experiments"):
        train_together([one.with_(epochs=2) for one in experiments], prepared, tmp_path)
    (tmp_path / "1" / "best.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match=r"best\.safetensors"):
        train_together(experiments, prepared, tmp_path)
    (tmp_path / "all.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="cannot be read"):
        train_together(experiments, prepared, tmp_path)


def test_a_loss_that_is_no_number_is_told_with_its_seed(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    experiments = [
        feed_experiment.with_(seed=seed, optimizer={"learning_rate": rate, "schedule": "constant"})
        for seed, rate in ((3, 0.01), (7, 1e30))
    ]
    with pytest.raises(RunError, match="seed 7"):
        train_together(experiments, prepared, tmp_path)


class Loops(SharedBottom):
    """A structure of one's own that looks at values, which cannot be done for several runs at once."""

    structure: Literal["loops"] = "loops"  # type: ignore[assignment]

    def build(self, d_in: int, tasks: tuple[str, ...]) -> nn.Module:  # type: ignore[override]
        return Looping(self, d_in, tasks)


class Looping(SharedBottomSharing):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x * 2 if x.sum().item() > 0 else x)


@pytest.mark.parametrize("balance", STACKABLE)
def test_labels_of_weight_0_are_labels_that_are_not_known(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path, balance: str
) -> None:
    """Two runs in one stack, of rows that differ in that alone, end alike."""
    experiment = feed_experiment.with_(balance=balance, embedding=STILL)
    cohort = Cohort([experiment] * 2, prepared, [tmp_path] * 2, tmp_path / "all.safetensors", CPU, None)
    for number, batch in zip(range(3), cohort.batches(0), strict=False):
        task = torch.arange(4) == number
        weights, known = batch.weights.clone(), batch.known.clone()
        weights[0, :, task] = 0
        known[1, :, task] = False
        cohort.step(batch._replace(weights=weights, known=known))
    torch.testing.assert_close(cohort.replicas.state(0), cohort.replicas.state(1))


@pytest.mark.parametrize(
    ("changes", "runs", "match"),
    [
        ({"balance": "pcgrad"}, 2, "pcgrad"),
        ({"balance": "famo"}, 2, "famo"),
        ({"optimizer": {"embedding": "lazy_adam"}}, 2, "optimiser of their own"),
        ({"sharing": Soft(hidden=(8,), penalty="tucker")}, 2, "soft.*outside its tensors"),
        ({"sharing": Loops(hidden=(8,))}, 2, "loops.*cannot be stacked"),
        ({"sharing": Tied(hidden=(8,))}, 2, r"tied.*cannot be stacked.*'\S+other\.weight' is the same tensor as"),
        ({"sharing": SharedBottom(hidden=(256, 256)), "batch_size": 4096}, 2, "million multiply-adds"),
        ({"embedding": {"dim": 16}, "batch_size": 64}, 10_000, "MB"),
    ],
    ids=[
        "Gramian",
        "looks back",
        "lazy tables",
        "counts its steps",
        "own structure",
        "tied weights",
        "large matmuls",
        "too many",
    ],
)
def test_what_cannot_or_need_not_be_stacked_is_said(
    feed_experiment: Experiment, prepared: Prepared, changes: dict[str, Any], runs: int, match: str
) -> None:
    experiment = feed_experiment.with_(**changes)
    with pytest.raises(AssertionError, match=match):
        assert why_apart([experiment] * runs, prepared, CPU) == ""
    assert why_apart([feed_experiment], prepared, CPU) == ""
    large = feed_experiment.with_(sharing=SharedBottom(hidden=(256, 256)), batch_size=4096)
    assert why_apart([large] * 2, prepared, torch.device("cuda")) == "", "one run does not fill a GPU"


def test_a_training_is_gone_with_the_last_who_holds_it(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    """Not some time later, when Python looks for circles: many are trained in one process, and each may be large."""
    gc.collect()
    gc.disable()
    try:
        for begin in (
            lambda: Fit(feed_experiment, prepared, tmp_path, CPU, None),
            lambda: Cohort([feed_experiment] * 2, prepared, [tmp_path] * 2, tmp_path / "all", CPU, None),
        ):
            one = begin()
            batches = one.batches(0) if isinstance(one, Cohort) else one.loader.epoch(0)
            one.step(next(batches))
            batches.close()
            held = weakref.ref(one.replicas if isinstance(one, Cohort) else one.model)
            del one, batches
            assert held() is None
    finally:
        gc.enable()


def test_experiments_that_differ_in_more_are_refused(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    with pytest.raises(ExperimentError, match="batch_size: 256, now 128"):
        train_together([feed_experiment, feed_experiment.with_(batch_size=128)], prepared, tmp_path)
    with pytest.raises(ExperimentError, match="warm_start"):
        train_together([feed_experiment.with_(warm_start="somewhere")] * 2, prepared, tmp_path)
    lazy = feed_experiment.with_(optimizer={"embedding": "lazy_adam"})
    with pytest.raises(ExperimentError, match="set embedding to dense"):
        train_together([lazy, lazy.with_(seed=1)], prepared, tmp_path)


def test_a_cohort_of_single_tasks_in_half_precision(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    """Some of the tasks, and the matmuls of training in bfloat16: near what one run alone is in that."""
    experiment = feed_experiment.with_(epochs=1, batch_size=1200, embedding=STILL, precision="bfloat16")
    experiments = [experiment.with_(seed=seed) for seed in range(2)]
    folders = [tmp_path / str(at) for at in range(4)]
    for folder in folders:
        folder.mkdir()
    with Reporter(quiet=True) as report:
        arguments = {"device": CPU, "report": report, "tasks": [2]}
        fit_cohort(experiments, prepared, folders[:2], tmp_path / "all.safetensors", **arguments)
        for one, folder in zip(experiments, folders[2:], strict=True):
            fit(one, prepared, folder, **arguments)
    for at in range(2):
        found, expected = (json.loads((folders[i] / "metrics.jsonl").read_text()) for i in (at, at + 2))
        assert list(found["train"]) == ["train/like/loss"]
        assert_close(found["train"], expected["train"], 2e-3)


def test_a_last_batch_of_one_row_counts_as_one_row_in_the_losses_of_a_cohort(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    experiment = feed_experiment.with_(epochs=1, batch_size=prepared.train.rows - 1, embedding=STILL)
    train_together([experiment.with_(seed=seed) for seed in range(2)], prepared, tmp_path / "together")
    for seed in range(2):
        train_alone(experiment.with_(seed=seed), prepared, tmp_path / str(seed))
        found, expected = (read_history(tmp_path / one / str(seed) / "metrics.jsonl")[0] for one in ("together", ""))
        assert_close(found["train"], expected["train"], 1e-3)
