"""Telling how far long work is: a live bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

EVERY = 30.0
"""Seconds between lines of one stage where there is no terminal for a bar."""


class Reporter:
    """Reports stages of work (reading, encoding, training) and lines worth keeping.

    ``quiet`` says nothing at all; without ``detail`` the lines of single epochs are left out.
    """

    def __init__(self, *, quiet: bool = False, detail: bool = True) -> None:
        self.with_detail = detail
        self.console = _Console(stderr=True, quiet=quiet, soft_wrap=True)
        self.live = _is_terminal(sys.stderr) and not quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage = ""
        self._told_once: set[str] = set()
        self._began = self._told = 0.0
        self._start = 0

    def __enter__(self) -> Self:
        if self.live:
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """A line that stays. Where it cannot be written, no others are tried: nothing is lost for want of a reader."""
        try:
            self.console.print(text, highlight=False, markup=False)
        except (OSError, ValueError):  # a file that was closed, a disk that is full
            self.console.quiet = True

    def lines(self, texts: Iterable[str]) -> None:
        """Lines that stay."""
        for text in texts:
            self.line(text)

    def once(self, text: str, *, about: str | None = None) -> None:
        """A line that stays, unless it, or another one about the same, was told before."""
        if (about or text) not in self._told_once:
            self._told_once.add(about or text)
            self.line(text)

    def detail(self, text: str) -> None:
        """A line that stays where detail is wanted."""
        if self.with_detail:
            self.line(text)

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` rows of a stage (or what its name says in brackets); a new stage begins a new bar."""
        if self.console.quiet:
            return
        now = time.perf_counter()
        if stage != self._stage:
            self._stage, self._began, self._told, self._start = stage, now, now, done
            if self._bar is not None:
                if self._task is not None:
                    self._bar.remove_task(self._task)
                self._task = self._bar.add_task(stage, total=total, rate="")
        unit = stage.rpartition("(")[2].rstrip(")") if stage.endswith(")") else "rows"
        rate = _speed((done - self._start) / max(now - self._began, 1e-9), unit)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, rate=rate)
        elif now - self._told >= EVERY:
            self._told = now
            of = "" if total is None else f" of {total:,}"
            self.line(f"{stage.partition(' (')[0]}: {done:,}{of} {unit}  {rate}")


class _Console(Console):
    """One that says nothing more to a pipe that nobody reads: rich would end the program."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


def _is_terminal(stream: Any) -> bool:
    """Whether a bar can be drawn there: not on what was closed, or stands in place of a stream and only writes."""
    try:
        return stream is not None and bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def _speed(rate: float, unit: str) -> str:
    if rate >= 1:
        return f"{rate:,.0f} {unit}/s"
    return f"{1 / rate:,.0f} s each" if rate > 0 else ""
