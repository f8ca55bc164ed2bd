"""Ctrl-C, SIGTERM and SIGHUP (the terminal was closed): within a training finish the step and save, elsewhere stop at
once; a second one always does, but for SIGHUP, which the system and the shell send both."""

import os
import signal
import sys
import threading
from _thread import interrupt_main, start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import sleep
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from multigate.errors import RunError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

Handler = Callable[[int, FrameType | None], Any]
HANG_UP = getattr(signal, "SIGHUP", None)
"""There is none on Windows."""


class Interrupted(RunError):
    """Work was asked to stop; what it had reached is saved."""


@contextmanager
def interruptible(advice: Callable[[], str]) -> Iterator[None]:
    """While entered all of them do what Ctrl-C does, and end as ``Interrupted``, with ``advice()`` to go on by."""
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
        if self.asked and number != HANG_UP:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def handled(handler: Handler) -> Iterator[None]:
    """These signals handled so while entered; they reach the main thread only, elsewhere nothing changes.

    Nor does a signal that C code takes (Python inside another program), for Python could not give it back, nor SIGHUP
    where it is ignored (``nohup``).
    """

    def hung_up(number: int, frame: FrameType | None) -> Any:
        _leave_the_terminal()
        return handler(number, frame)

    before: dict[signal.Signals, Any] = {}
    hook = sys.unraisablehook
    try:
        if threading.current_thread() is threading.main_thread():
            sys.unraisablehook = _raising_again(hook)
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:
                    before[number] = signal.signal(number, handler)
            if HANG_UP is not None and signal.getsignal(HANG_UP) not in (None, signal.SIG_IGN):
                before[HANG_UP] = signal.signal(HANG_UP, hung_up)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
        if threading.current_thread() is threading.main_thread():
            sys.unraisablehook = hook


def _raising_again(hook: "Callable[[UnraisableHookArgs], Any]") -> "Callable[[UnraisableHookArgs], Any]":
    """``hook``, but for a ``KeyboardInterrupt`` out of what Python lets raise nothing, such as ``__del__`` and the
    callbacks of weak references: it would be lost, and the signal with it. It is raised again in a moment."""

    def raised(args: "UnraisableHookArgs") -> None:
        if args.exc_type is KeyboardInterrupt:
            start_new_thread(_interrupt_soon, ())
        else:
            hook(args)

    return raised


def _interrupt_soon() -> None:
    sleep(0.01)  # what cannot raise is over by then; where it is not, this begins again
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # it also ends a wait
    else:
        interrupt_main()


def _leave_the_terminal() -> None:
    """Let what is printed go nowhere where the terminal it went to is gone: it would fail, and saving with it."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)
