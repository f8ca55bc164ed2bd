"""Cores that other programs hold, against this thread's clocks, and what a training says of them."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import multigate as mg
from multigate import Experiment
from multigate.training import contention
from multigate.training.contention import Cores

TOLD = "other programs hold this machine's cores"


class Counted:
    """What the operating system counts of a thread that is ready all the time, a second later each time it is asked."""

    def __init__(self, waiting: float) -> None:
        self.waiting, self.seconds = waiting, 0

    def read_text(self) -> str:
        self.seconds += 1
        nanoseconds = self.seconds * 1e9
        return f"{nanoseconds * (1 - self.waiting):.0f} {nanoseconds * self.waiting:.0f} {self.seconds}\n"


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_it_is_what_the_clocks_of_a_thread_say() -> None:
    before, wall, own = Cores.so_far(), time.perf_counter(), time.thread_time()
    if before is None:
        pytest.skip("this operating system does not count")
    while time.thread_time() - own < 0.3:
        sum(range(10_000))
    after = Cores.so_far()
    assert after is not None
    computed, passed = time.thread_time() - own, time.perf_counter() - wall
    assert after.had - before.had == pytest.approx(computed, abs=0.05)
    assert after.waited - before.waited == pytest.approx(passed - computed, abs=0.05 + 0.3 * (passed - computed))


def test_who_sleeps_does_not_wait() -> None:
    before = Cores.so_far()
    if before is None:
        pytest.skip("this operating system does not count")
    time.sleep(0.5)
    after = Cores.so_far()
    assert after is not None
    assert after.had + after.waited - before.had - before.waited < 0.4


@pytest.mark.parametrize(("waiting", "told"), [(0.02, 0), (0.35, 1)], ids=["alone", "beside others"])
def test_a_training_on_several_threads_says_so_once(
    feed_experiment: Experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    waiting: float,
    told: int,
) -> None:
    monkeypatch.setattr(contention, "OURS", Counted(waiting))
    mg.train(feed_experiment.with_(epochs=4), tmp_path / "run")
    assert capsys.readouterr().err.count(TOLD) == (told if threads > 1 else 0)


@pytest.mark.parametrize("text", ["", "no numbers here", "1 2"])
def test_where_nobody_counts_nothing_is_said(
    feed_experiment: Experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    monkeypatch.setattr(contention, "OURS", tmp_path / "counted")
    assert Cores.so_far() is None
    (tmp_path / "counted").write_text(text)
    assert Cores.so_far() is None
    mg.train(feed_experiment.with_(epochs=1), tmp_path / "run")
    assert TOLD not in capsys.readouterr().err


def test_a_moment_is_not_judged() -> None:
    assert Cores(1.0, 1.0).lacking_since(Cores(0.0, 0.0))
    assert not Cores(0.5, 0.5).lacking_since(Cores(0.0, 0.0))
    assert not Cores(9.0, 1.0).lacking_since(Cores(0.0, 0.0))
