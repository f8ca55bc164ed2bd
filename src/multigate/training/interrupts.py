"""Ctrl-C and SIGTERM: within a training finish the step and save, elsewhere stop at once; a second one always does."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from multigate.errors import RunError

Handler = Callable[[int, FrameType | None], Any]


class Interrupted(RunError):
    """Work was asked to stop; what it had reached is saved."""


@contextmanager
def interruptible(advice: Callable[[], str]) -> Iterator[None]:
    """While entered SIGTERM does what Ctrl-C does, and both end as ``Interrupted``, with ``advice()`` to go on by."""
    with handled(signal.default_int_handler):
        try:
            yield
        except KeyboardInterrupt:
            raise Interrupted(f"stopped; {advice()}") from None
        except Interrupted as stopped:
            raise Interrupted(f"{stopped}; {advice()}") from None


class Interrupts:
    """While entered, the first signal only sets ``asked``; if nobody heeds it, leaving raises ``Interrupted``."""

    def __init__(self) -> None:
        self.asked = False
        self._handled = handled(self._take)

    def __enter__(self) -> Self:
        self._handled.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handled.__exit__(None, None, None)
        if self.asked and kind is None:
            raise Interrupted("stopped")

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """Ctrl-C and SIGTERM handled so while entered; signals reach the main thread only, elsewhere nothing changes.

    Nor does a signal that C code takes (Python inside another program), for Python could not give it back.
    """
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:
                    before[number] = signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
