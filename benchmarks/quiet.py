"""Measuring while nobody disturbs: what other processes disturbed is taken again, and marked where it stayed so.

``Watch.take(work)`` runs a piece of work, asks how much of the machine's time *other* processes took meanwhile, and
repeats it where that was too much. ``Watch.in_turn`` takes the sides of a comparison in turn (A B A B ...), so that
what slows the machine down for a while slows all of them.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

MOST = 0.05
"""Share of the machine's time (cores times seconds) that others may take of a run that counts as undisturbed."""
TRIES = 4
"""Times that a piece of work is run at most."""
PATIENCE = 30.0
"""Seconds that a script spends at most, in all, on waiting for quiet and on runs that were disturbed."""
MARK = "~"
LEGEND = f"{MARK}: other processes took more than {MOST:.0%} of the machine's time, and repeating did not help."
TICK = 1 / os.sysconf("SC_CLK_TCK")


class Taken(NamedTuple, Generic[T]):
    """What a piece of work returned, how long it took, and the share of the machine's time that others took then."""

    value: T
    seconds: float
    others: float

    @property
    def disturbed(self) -> bool:
        return self.others > MOST


class Spread(NamedTuple):
    """Median, least and greatest of some runs; ``disturbed`` where one of them was."""

    middle: float
    low: float
    high: float
    disturbed: bool = False
    runs: int = 1

    def text(self, digits: int = 0) -> str:
        """``7.31 (7.12 to 7.68)``, with a mark where a run stayed disturbed."""
        ends = f" ({_number(self.low, digits)} to {_number(self.high, digits)})" if self.runs > 1 else ""
        return f"{_number(self.middle, digits)}{ends}{f' {MARK}' if self.disturbed else ''}"


Once = Callable[[Callable[[], Any]], Taken[Any]]


class Watch:
    """Runs pieces of work; ``patience`` seconds in all are spent at most on waiting and on repeating.

    ``once`` is what runs a piece of work and says how much others were busy.
    """

    def __init__(self, patience: float = PATIENCE, once: Once | None = None) -> None:
        self.patience = patience
        self._once = once or taken

    def take(self, work: Callable[[], T]) -> Taken[T]:
        """The first undisturbed run of a piece of work, else the least disturbed one."""
        best: Taken[T] = self._once(work)
        for _ in range(TRIES - 1):
            if not best.disturbed or self.patience <= best.seconds:
                break
            self._wait(self.patience - best.seconds)
            again = self._once(work)
            self.patience -= again.seconds
            best = min(best, again, key=lambda one: one.others)
        return best

    def in_turn(self, sides: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[Taken[T]]]:
        """Every side once a round, in their order."""
        found: dict[str, list[Taken[T]]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, work in sides.items():
                found[name].append(self.take(work))
        return found

    def _wait(self, longest: float) -> None:
        """Until the others take little, or the time is over."""
        end = time.monotonic() + longest
        while (left := end - time.monotonic()) > 0:
            seen = self._once(partial(time.sleep, min(left, 0.5)))
            self.patience -= seen.seconds
            if not seen.disturbed:
                return


def taken(work: Callable[[], T]) -> Taken[T]:
    """One run, whoever else was busy."""
    busy, own, began = busy_seconds(), own_seconds(), time.perf_counter()
    value = work()
    seconds = time.perf_counter() - began
    own, busy = own_seconds() - own, busy_seconds() - busy
    return Taken(value, seconds, share_of_others(busy, own, seconds, os.cpu_count() or 1))


def share_of_others(busy: float, own: float, seconds: float, cores: int) -> float:
    """Of ``cores * seconds``: what was busy and not our own.

    The counters move in ticks of the clock, so that one tick of each core tells nothing.
    """
    return max(0.0, busy - own - TICK * cores) / max(cores * seconds, TICK)


def busy_seconds() -> float:
    """CPU seconds that all processes (and, as steal, other guests of the host) have had; 0 where nothing tells."""
    path = Path("/proc/stat")
    if not path.is_file():
        return 0.0
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, path.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) * TICK


def own_seconds() -> float:
    """CPU seconds of this process and all of its descendants, those that have ended and were waited for included."""
    ended = sum(os.times()[2:4])
    return time.process_time() + ended + sum(_times_of_descendants())


def _times_of_descendants() -> Iterable[float]:
    """Seconds of each living descendant with those of its children that ended."""
    if not Path("/proc/stat").is_file():
        return
    children: dict[int, list[int]] = {}
    seconds: dict[int, float] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        number = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(number)
        seconds[number] = sum(map(int, fields[11:15])) * TICK
    waiting = list(children.get(os.getpid(), ()))
    while waiting:
        number = waiting.pop()
        yield seconds[number]
        waiting += children.get(number, ())


def spread(runs: Iterable[Taken[T]], figure: Callable[[T], float]) -> Spread:
    """Median and ends of one figure of some runs."""
    runs = list(runs)
    values = [figure(run.value) for run in runs]
    disturbed = any(run.disturbed for run in runs)
    return Spread(statistics.median(values), min(values), max(values), disturbed, len(values))


def options(doc: str, *, rounds: int = 3) -> argparse.ArgumentParser:
    """The options all scripts have."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="runs of each side, taken in turn")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--patience", type=float, default=PATIENCE, help="seconds spent at most on a machine not quiet")
    return parser


def _number(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    return text[1:] if text.startswith("0.") else text
