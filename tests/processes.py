"""``multigate``, and programs, in processes of their own; disturbed: by signals, a full disk, missing rights."""

import codecs
import gc
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from sqlite3 import dbapi2
from typing import Any, NamedTuple

OURS = [f"multigate.{name}" for name in ("cli", "analysis.compare", "analysis.tune", "score", "tables", "serve.app")]
IMPORTED_LATE = [
    *("torch.fx.experimental.symbolic_shapes", "torch._dynamo", "torch._inductor.config"),
    *("tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.record_writer"),
    *("sklearn.ensemble", "altair", "optuna", "sqlalchemy.orm", "alembic.command"),
]

fast = multiprocessing.get_context("forkserver")  # imports these once for all processes
fast.set_forkserver_preload(OURS + IMPORTED_LATE)
NOBODY = 65534
TOLD, SAID = "told.txt", "said.txt"


class Stop(NamedTuple):
    """Where signals are sent: just before the ``call``-th call of a function (``module:Class.name``)."""

    place: str
    call: int = 1
    signals: tuple[int, ...] = (signal.SIGINT,)
    stage: str | None = None
    """Count only calls that have this among their arguments."""


class Ended(NamedTuple):
    """How the process ended: its exit code (negative: the signal that killed it), standard error and output."""

    code: int
    told: str
    said: str


def forget_power_cuts() -> None:
    """Have nothing wait until it is on the disk: whatever ends a process in a test, what it wrote stays there."""
    os.fsync = lambda handle: None
    connect = dbapi2.connect

    def hasty(*given: Any, **named: Any) -> dbapi2.Connection:
        connection = connect(*given, **named)
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    dbapi2.connect = hasty


def run(
    words: Sequence[object],
    folder: Path,
    stop: Stop | None = None,
    *,
    largest: int | None = None,
    rights: bool = True,
    without: Sequence[str] = (),
    timeout: float = 120,
) -> Ended:
    """Run ``multigate`` with these words.

    Files cannot grow beyond ``largest`` bytes, as on a disk that is full; without ``rights`` it is nobody's process,
    for root may write everywhere. Modules that it is ``without`` are not installed, for all it knows.
    """
    return _wait(begin(words, folder, stop, largest=largest, rights=rights, without=without), folder, timeout)


def _wait(process: ForkServerProcess, folder: Path, timeout: float) -> Ended:
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"still running after {timeout} s: {(folder / TOLD).read_text()}")
    return ended(process, folder)


def run_program(text: str, folder: Path, timeout: float = 120) -> Ended:
    """Run what a Python file would hold."""
    process = _begin(_program, folder, text)
    return _wait(process, folder, timeout)


def begin(
    words: Sequence[object],
    folder: Path,
    stop: Stop | None = None,
    *,
    largest: int | None = None,
    rights: bool = True,
    without: Sequence[str] = (),
) -> ForkServerProcess:
    """The same, but do not wait for its end."""
    return _begin(_command, folder, [str(word) for word in words], stop, largest, rights, without)


def _begin(target: Callable[..., None], folder: Path, *given: Any) -> ForkServerProcess:
    for name in (TOLD, SAID):
        (folder / name).touch()
    process = fast.Process(target=target, args=(folder, *given))
    process.start()
    return process


def ended(process: ForkServerProcess, folder: Path) -> Ended:
    """How a process that is over ended; the files it wrote to are gone then."""
    texts = [(folder / name).read_text(encoding="utf-8") for name in (TOLD, SAID)]
    for name in (TOLD, SAID):
        (folder / name).unlink()
    assert process.exitcode is not None
    return Ended(process.exitcode, *texts)


def _program(folder: Path, text: str) -> None:
    _enter(folder, folder / SAID)
    exec(compile(text, "program", "exec", dont_inherit=True), {"__name__": "__main__"})


def _enter(folder: Path, said: str | Path) -> None:
    """Compute on one thread in a folder, and write to its files."""
    import torch

    gc.set_threshold(700, 10, 100)  # as in conftest.py
    forget_power_cuts()
    torch.set_num_threads(1)
    os.chdir(folder)
    os.dup2(os.open(folder / TOLD, os.O_WRONLY), 2)
    os.dup2(os.open(said, os.O_WRONLY), 1)


def _command(
    folder: Path,
    words: list[str],
    stop: Stop | None,
    largest: int | None,
    rights: bool,
    without: Sequence[str],
) -> None:
    from multigate import cli

    _enter(folder, folder / SAID if largest is None else os.devnull)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))  # Python ignores SIGXFSZ: writing fails
    if not rights and os.getuid() == 0:
        codecs.lookup("utf-8-sig")  # nobody may not be able to read Python's own files
        os.setuid(NOBODY)
    for name in without:
        sys.modules[name] = None  # type: ignore[assignment]
    if stop is not None:
        _arm(stop)
    sys.argv = ["multigate", *words]
    cli.main()


def _arm(stop: Stop) -> None:
    module, _, path = stop.place.partition(":")
    owner: Any = import_module(f"multigate.{module}")
    *outer, name = path.split(".")
    for one in outer:
        owner = getattr(owner, one)
    original, calls = getattr(owner, name), count(1)

    def call(*given: Any, **named: Any) -> Any:
        counted = stop.stage is None or stop.stage in given
        if counted and next(calls) == stop.call:
            for one in stop.signals:
                os.kill(os.getpid(), one)
        return original(*given, **named)

    setattr(owner, name, call)
