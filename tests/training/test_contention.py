"""Cores that other programs hold, against this thread's clocks, and what a training says of them."""

import re
import threading
import time
from pathlib import Path

import pytest

import multigate as mg
from multigate import Experiment
from multigate.training import contention
from multigate.training.contention import Cores

TOLD = "other programs hold this machine's cores"


class Counted:
    """What the operating system counts of a thread that is ready all the time, a second later each time it is asked,
    and waits ever more."""

    def __init__(self, waiting: float) -> None:
        self.waiting, self.asked, self.waited = waiting, 0, 0.0

    def __call__(self, thread: int) -> str:
        self.asked += 1
        self.waited += self.waiting * min(1 + self.asked / 10, 2)
        return f"{(self.asked - self.waited) * 1e9:.0f} {self.waited * 1e9:.0f} {self.asked}\n"


def so_far(thread: int | None = None) -> Cores:
    found = Cores.of(threading.get_native_id() if thread is None else thread)
    if found is None:
        pytest.skip("this operating system does not count")
    return found


def test_it_is_what_the_clocks_of_a_thread_say() -> None:
    before, wall, own = so_far(), time.perf_counter(), time.thread_time()
    while time.thread_time() - own < 0.3:
        sum(range(10_000))
    after = so_far()
    computed, passed = time.thread_time() - own, time.perf_counter() - wall
    assert after.had - before.had == pytest.approx(computed, abs=0.05)
    assert after.waited - before.waited == pytest.approx(passed - computed, abs=0.05 + 0.3 * (passed - computed))


def test_it_is_of_the_thread_that_is_asked_for() -> None:
    here, over = threading.get_native_id(), threading.Event()
    clocks: list[float] = []

    def work() -> None:
        began = time.thread_time()
        while not over.is_set():
            sum(range(1_000))
        clocks.append(time.thread_time() - began)

    worker = threading.Thread(target=work)
    own = so_far()
    worker.start()
    assert worker.native_id is not None
    before = so_far(worker.native_id)
    time.sleep(0.4)
    after = so_far(worker.native_id)
    over.set()
    worker.join()
    assert so_far(here).had - own.had < 0.2
    assert after.had - before.had == pytest.approx(clocks[0], abs=0.1)
    until = time.monotonic() + 10
    while Cores.of(worker.native_id) is not None:
        assert time.monotonic() < until, "a thread that has ended is still counted"


def test_who_sleeps_does_not_wait() -> None:
    before = so_far()
    time.sleep(0.5)
    after = so_far()
    assert after.had + after.waited - before.had - before.waited < 0.4


@pytest.mark.parametrize(("waiting", "told"), [(0.02, 0), (0.35, 1)], ids=["alone", "beside others"])
def test_a_training_says_so_once(
    feed_experiment: Experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    waiting: float,
    told: int,
) -> None:
    monkeypatch.setattr(contention, "counted", Counted(waiting))
    mg.train(feed_experiment.with_(epochs=4), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count(TOLD) == len(re.findall(r": this training waits for them \d\d% of its time", said)) == told


@pytest.mark.parametrize("text", ["", "no numbers here", "1 2"])
def test_where_nobody_counts_nothing_is_said(
    feed_experiment: Experiment,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    monkeypatch.setattr(contention, "counted", lambda thread: text)
    assert Cores.of(1) is None
    mg.train(feed_experiment.with_(epochs=1), tmp_path / "run")
    assert TOLD not in capsys.readouterr().err


def test_a_moment_is_not_judged() -> None:
    assert Cores(1.0, 1.0).waiting_since(Cores(0.0, 0.0), 2.0) == 0.5
    assert Cores(0.5, 0.5).waiting_since(Cores(0.0, 0.0), 2.0) == 0.0
    assert Cores(9.5, 1.5).waiting_since(Cores(0.5, 0.5), 2.0) == 0.1
