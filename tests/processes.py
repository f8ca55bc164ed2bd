"""``multigate`` in processes of its own, disturbed: by signals at a chosen place, a full disk, missing rights."""

import codecs
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

OURS = [f"multigate.{name}" for name in ("cli", "analysis.compare", "analysis.tune", "score", "tables", "serve.app")]
IMPORTED_LATE = ["torch.utils.tensorboard", "sklearn.ensemble", "altair", "optuna", "sqlalchemy.orm", "alembic.command"]

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
    process = begin(words, folder, stop, largest=largest, rights=rights, without=without)
    process.join(timeout)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"still running after {timeout} s: {(folder / TOLD).read_text()}")
    return ended(process, folder)


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
    told, said = folder / TOLD, folder / SAID
    told.touch()
    said.touch()
    given = ([str(word) for word in words], folder, told, said, stop, largest, rights, without)
    process = fast.Process(target=_work, args=given)
    process.start()
    return process


def ended(process: ForkServerProcess, folder: Path) -> Ended:
    """How a process that is over ended; the files it wrote to are gone then."""
    texts = [(folder / name).read_text(encoding="utf-8") for name in (TOLD, SAID)]
    for name in (TOLD, SAID):
        (folder / name).unlink()
    assert process.exitcode is not None
    return Ended(process.exitcode, *texts)


def _work(
    words: list[str],
    folder: Path,
    told: Path,
    said: Path,
    stop: Stop | None,
    largest: int | None,
    rights: bool,
    without: Sequence[str],
) -> None:
    import torch

    from multigate import cli

    torch.set_num_threads(1)
    os.chdir(folder)
    os.dup2(os.open(told, os.O_WRONLY), 2)
    os.dup2(os.open(said if largest is None else os.devnull, os.O_WRONLY), 1)
    if largest is not None:
        sys.modules["torch.utils.tensorboard"] = None  # type: ignore[assignment]  # its thread prints a traceback
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
