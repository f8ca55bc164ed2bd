"""Threads that wait for each other asleep while others hold cores: by the time that waiting takes of a core."""

import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ways import WAYS, train_in_every_way

from multigate.training import contention, sleeping
from multigate.training.openmp import OpenMP, openmp
from multigate.training.sleeping import asleep_beside_others

WAITING = 0.35
IN_A_LOOP, ASLEEP = 0.001, 0.0005
"""Seconds of a core that a wait of 30 ms takes, at least and at most: 8 ms and .06 ms where this was written."""


class Others:
    """What is counted of any thread, ten times a second: all of the time ready, some of it without a core."""

    def __init__(self) -> None:
        self.waiting, self.had, self.waited = 0.0, 0.0, 0.0
        self.asked = 0

    def __call__(self, thread: int) -> str:
        self.asked += 1
        self.had += 1 - self.waiting
        self.waited += self.waiting
        return f"{self.had * 1e9:.0f} {self.waited * 1e9:.0f} {self.asked}\n"


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Others:
    others = Others()
    monkeypatch.setattr(contention, "counted", others)
    monkeypatch.setattr(sleeping, "LOOK", 0.05)
    for name in sleeping.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    return others


@pytest.fixture
def library() -> Iterator[OpenMP]:
    """That of torch, with as many threads as it counts on cores."""
    found = openmp()
    if found is None or found.cores < 2:
        pytest.skip("torch shares its work between threads in another way here")
    before = torch.get_num_threads()
    torch.set_num_threads(found.cores)
    yield found
    torch.set_num_threads(before)


def taken(library: OpenMP) -> float:
    """Seconds of a core that this thread takes to wait for another of its team, 30 ms long; the middle of some."""
    here = threading.get_native_id()

    def wait() -> None:
        if threading.get_native_id() != here:
            time.sleep(0.03)

    def once() -> float:
        began = time.thread_time()
        library.each(wait, torch.get_num_threads())
        return time.thread_time() - began

    return statistics.median(once() for _ in range(5))


def threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def only(those: set[int]) -> bool:
    """Whether there are no other threads but those, once what is ending has ended."""
    until = time.monotonic() + 10
    while threads() - those and time.monotonic() < until:
        time.sleep(0.01)
    return not threads() - those


def looked(others: Others, looks: int = 3) -> int:
    """Wait until others have been looked at so many times more; 0 looks are left then."""
    until = others.asked + looks * torch.get_num_threads()
    end = time.monotonic() + 30
    while others.asked < until:
        assert time.monotonic() < end, "nobody looks any more"
        time.sleep(0.01)
    return 0


def test_every_thread_of_a_team_is_called(library: OpenMP) -> None:
    called: list[int] = []
    library.each(lambda: called.append(threading.get_native_id()), library.cores)
    assert len(set(called)) == library.cores
    assert threading.get_native_id() in called
    assert sorted(library.team(library.cores)) == sorted(called)


def test_they_sleep_while_others_hold_cores_and_no_longer(library: OpenMP, others: Others) -> None:
    library.team(library.cores)
    before = threads()
    assert taken(library) > IN_A_LOOP
    with asleep_beside_others():
        looked(others)
        assert taken(library) > IN_A_LOOP
        others.waiting = WAITING
        looked(others)
        assert taken(library) < ASLEEP
        others.waiting = 0.2
        looked(others, sleeping.CALM + 3)
        assert taken(library) > IN_A_LOOP
        others.waiting = WAITING
        looked(others)
        assert taken(library) < ASLEEP
    assert only(before)
    assert taken(library) > IN_A_LOOP


def test_a_moment_of_calm_does_not_end_it(library: OpenMP, others: Others) -> None:
    with asleep_beside_others():
        others.waiting = WAITING
        looked(others)
        others.waiting = 0.0
        looked(others, 1)
        others.waiting = WAITING
        looked(others)
        assert taken(library) < ASLEEP


def test_what_ends_it_by_an_error_leaves_nothing_behind(library: OpenMP, others: Others) -> None:
    library.team(library.cores)
    before, others.waiting = threads(), WAITING
    with pytest.raises(ZeroDivisionError), asleep_beside_others():
        _ = 1 / looked(others)
    assert only(before)


def test_where_no_thread_can_be_started_it_is_tried_again(
    library: OpenMP, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "multigate-idle":
            raise RuntimeError("can't start new thread")
        started(thread)

    others.waiting = WAITING
    with asleep_beside_others():
        with monkeypatch.context() as none_left:
            none_left.setattr(threading.Thread, "start", start)
            looked(others)
            assert taken(library) > IN_A_LOOP
        looked(others)
        assert taken(library) < ASLEEP


@pytest.mark.parametrize("why", ["one thread", "few of the cores", "more threads than cores", *sleeping.CHOSEN])
def test_it_is_left_alone(library: OpenMP, others: Others, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    library.team(library.cores)
    if why == "one thread":
        torch.set_num_threads(1)
    elif why == "few of the cores":
        monkeypatch.setattr(OpenMP, "cores", 2 * torch.get_num_threads() + 1)
    elif why == "more threads than cores":
        monkeypatch.setattr(OpenMP, "cores", torch.get_num_threads() - 1)
    else:
        monkeypatch.setenv(why, "100")
    before, others.waiting = threads(), WAITING
    with asleep_beside_others():
        time.sleep(0.2)
        assert not threads() - before
    assert not others.asked


def test_numbers_are_the_same(library: OpenMP, others: Others) -> None:
    torch.manual_seed(0)
    x, w = torch.randn(3_000, 500), torch.randn(500, 400)

    def computed() -> list[torch.Tensor]:
        return [x @ w, x.sum(), x.sum(0), (x.softmax(1) * x).norm()]

    alone = computed()
    with asleep_beside_others():
        others.waiting = WAITING
        looked(others)
        beside = computed()
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("library")
def test_trainings_look_alone_and_stacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: Others) -> None:
    others.waiting = WAITING
    there: dict[str, set[str]] = {}

    def watched(of: type) -> None:
        plain = of.step  # type: ignore[attr-defined]

        def step(self: Any, *given: Any) -> Any:
            there.setdefault(of.__name__, set()).update(thread.name for thread in threading.enumerate())
            return plain(self, *given)

        monkeypatch.setattr(of, "step", step)

    for of in WAYS:
        watched(of)
    train_in_every_way(tmp_path)
    assert {name for name, threads in there.items() if "multigate-cores" in threads} == {"Fit", "Cohort", "_Work"}
