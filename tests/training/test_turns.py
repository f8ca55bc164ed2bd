"""Trainings in threads of one process: each ends as it does alone."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multigate.bundle import load
from multigate.data.files import open_table
from multigate.data.prepared import prepare
from multigate.experiment import Experiment
from multigate.training.interrupts import Interrupted
from multigate.training.loop import fit
from multigate.training.progress import Reporter
from multigate.training.train import train
from multigate.training.turns import turn


@pytest.fixture
def experiment(feed_experiment: Experiment) -> Experiment:
    """Its weights depend on many draws: of dropout, of unseen ids."""
    return feed_experiment.with_(epochs=1, batch_size=128)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "best.safetensors")


def assert_equal(folder: Path, other: Path) -> None:
    one, two = weights(folder), weights(other)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def test_threads_that_train_at_once_end_with_the_weights_of_one_alone(experiment: Experiment, tmp_path: Path) -> None:
    train(experiment, tmp_path / "alone", quiet=True)
    together = threading.Barrier(2, timeout=30)

    def work(name: str) -> None:
        together.wait()
        train(experiment, tmp_path / name, quiet=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, "ab"))
    for name in "ab":
        assert_equal(tmp_path / name, tmp_path / "alone")


def test_a_thread_that_loads_bundles_does_not_disturb_a_training(experiment: Experiment, tmp_path: Path) -> None:
    train(experiment, tmp_path / "alone", quiet=True)
    done, loaded = threading.Event(), []

    def work() -> None:
        while not done.is_set():
            loaded.append(load(tmp_path / "alone"))

    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(work)
        try:
            train(experiment, tmp_path / "a", quiet=True)
        finally:
            done.set()
        loading.result()
    assert loaded
    assert_equal(tmp_path / "a", tmp_path / "alone")


def test_a_training_may_train_another_after_an_epoch(experiment: Experiment, tmp_path: Path) -> None:
    tables = [open_table(path) for path in (experiment.train, experiment.valid)]
    prepared = prepare(experiment.schema, *tables, None, experiment.split, tmp_path / "prepared")
    experiment = experiment.with_(epochs=2)

    def run(name: str, *, within: bool) -> None:
        def watch(epoch: int, metrics: dict[str, float]) -> None:
            if within:
                run(f"{name}{epoch}", within=False)

        (tmp_path / name).mkdir()
        with Reporter(quiet=True) as report:
            fit(experiment, prepared, tmp_path / name, device=torch.device("cpu"), report=report, watch=watch)

    run("alone", within=False)
    run("a", within=True)
    for name in ("a", "a1", "a2"):
        assert_equal(tmp_path / name, tmp_path / "alone")


def test_ctrl_c_ends_the_wait_for_a_turn(experiment: Experiment, tmp_path: Path) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with turn:
            held.set()
            assert done.wait(30)

    class Waiting(Reporter):
        def __call__(self, stage: str, done: int, total: int | None) -> None:
            if stage == "encode test":  # the last of what comes before the wait
                threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    with ThreadPoolExecutor(1) as pool, pytest.MonkeyPatch.context() as patch:
        holding = pool.submit(hold)
        assert held.wait(30)
        patch.setattr("multigate.training.train.Reporter", Waiting)
        try:
            with pytest.raises(Interrupted, match="--resume"):
                train(experiment, tmp_path / "run", quiet=True)
        finally:
            done.set()
        holding.result()
    train(experiment, tmp_path / "run", resume=True, quiet=True)
