"""How torch's threads wait for one another: in a loop, which is fastest alone, or asleep where others hold cores.

A thread of GNU's OpenMP that is done waits for the others in a loop, for some 8 milliseconds, and then falls asleep.
Where other programs hold cores it so takes the very core that the thread it waits for is waiting for: a step of two
threads beside one busy program takes 65 ms, and 22 where they fall asleep at once, which alone makes it 20 in place of
14 (docs/log.md).

They do where a process has more threads of OpenMP than there are cores, says the library's manual (GOMP_SPINCOUNT). So
while others hold cores an idle team is there too. What each thread computes stays the same, and so do the numbers.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from multigate.training.contention import Cores
from multigate.training.openmp import OpenMP, openmp

LACKING = 0.25
"""The share of its time that some thread waits for a core, from which on sleeping is faster: one program that is busy
half of the time makes it .2, one that is always busy .35 (measured on two cores)."""
LOOK = 0.5
"""Seconds between looks at whether others hold cores."""
LEAST = 0.1
"""Seconds that a thread is ready between two looks, if that is to say anything."""
CALM = 4
"""Looks one after the other at which nobody does, before threads wait in a loop again."""
CHOSEN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Where the user has said how threads wait, nothing is changed."""


@contextmanager
def asleep_beside_others() -> Iterator[None]:
    """While entered, threads that share work with this one wait for each other asleep where others hold cores."""
    library, threads = openmp(), torch.get_num_threads()
    if library is None or threads < 2 or _spare(library, threads) < 2 or any(name in os.environ for name in CHOSEN):
        yield
        return
    over = threading.Event()
    watching = library, library.team(threads), _spare(library, threads), over
    watch = threading.Thread(target=_watch, args=watching, name="multigate-cores", daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()


def _spare(library: OpenMP, threads: int) -> int:
    """Threads of a team that has more threads be there than cores, with those that compute; 0 where most cores are
    idle, or it is so already."""
    return library.cores - threads + 2 if threads <= library.cores <= 2 * threads else 0


def _watch(library: OpenMP, team: Sequence[int], spare: int, over: threading.Event) -> None:
    idle: _Idle | None = None
    calm, before = 0, [Cores.of(thread) for thread in team]
    while not over.wait(LOOK):
        now = [Cores.of(thread) for thread in team]
        waiting = max(_waiting(*each) for each in zip(now, before, strict=True))
        calm, before = 0 if waiting >= LACKING else calm + 1, now
        if idle is None and not calm:
            with suppress(RuntimeError):  # no thread can be started
                idle = _Idle(library, spare)
        elif idle is not None and calm >= CALM:
            idle.end()
            idle = None
    if idle is not None:
        idle.end()


def _waiting(now: Cores | None, before: Cores | None) -> float:
    return 0.0 if now is None or before is None else now.waiting_since(before, LEAST)


class _Idle:
    """A team that computes nothing."""

    def __init__(self, library: OpenMP, threads: int) -> None:
        self.over, there = threading.Event(), threading.Event()

        def stay() -> None:
            library.each(lambda: None, threads)
            there.set()
            self.over.wait()

        self.thread = threading.Thread(target=stay, name="multigate-idle", daemon=True)
        self.thread.start()
        there.wait()

    def end(self) -> None:
        self.over.set()
        self.thread.join()
