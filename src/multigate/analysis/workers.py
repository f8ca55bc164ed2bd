"""Processes of this machine that share out work: as many jobs at a time, each with its part of the cores."""

import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import current_process, get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any, NamedTuple

from multigate.cores import usable_cores
from multigate.errors import RunError
from multigate.training.interrupts import Interrupted

Job = Callable[[], Any]
"""What another process can be sent (``functools.partial`` of a function of a module)."""
THREADS = "OMP_NUM_THREADS"
PATIENCE = 60
"""Seconds that a process which was asked to stop has for it."""


class _Worker(NamedTuple):
    process: SpawnProcess
    pipe: "Connection[Any, Any]"


class Workers:
    """``n`` processes while entered; with 1 the calling process does all jobs itself, and so does one that may start
    none, as those of ``multiprocessing.Pool``.

    Leaving it, the processes get SIGTERM, by which a training saves what it has reached. Processes whose parent was
    killed end by themselves.
    """

    def __init__(self, n: int) -> None:
        self.n = 1 if current_process().daemon else n
        self._idle: list[_Worker] = []
        self._busy: dict[Connection[Any, Any], tuple[_Worker, int]] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *error: object) -> None:
        workers = [*self._idle, *(worker for worker, _ in self._busy.values())]
        for worker in workers:
            worker.process.terminate()
            worker.pipe.close()  # or one whose training fails in place of heeding it would wait for another job
        for worker in workers:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._idle, self._busy = [], {}

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[int, Any]]:
        """The place and the result of each job, as they are done. What a job raises is raised here.

        Raises ``RunError`` where a process dies.
        """
        if self.n == 1:
            for place, job in enumerate(jobs):
                yield place, job()
            return
        waiting = enumerate(jobs)
        for place, job in waiting:
            self._begin(place, job)
            if len(self._busy) == self.n:
                yield self._next()
        while self._busy:
            yield self._next()

    def _begin(self, place: int, job: Job) -> None:
        worker = self._idle.pop() if self._idle else _start(max(1, usable_cores() // self.n), script=_names_script(job))
        self._busy[worker.pipe] = worker, place
        try:
            worker.pipe.send(job)
        except OSError:
            raise _ended(worker) from None

    def _next(self) -> tuple[int, Any]:
        pipe = next(one for one in wait(list(self._busy)) if isinstance(one, Connection))
        worker, place = self._busy.pop(pipe)
        self._idle.append(worker)
        try:
            result, error = pipe.recv()
        except (EOFError, OSError):
            raise _ended(worker) from None
        if error is not None:
            raise error
        return place, result


def _ended(worker: _Worker) -> RunError:
    worker.process.join()
    return RunError(
        f"a process ended with exit code {worker.process.exitcode} (a killed one may have needed more memory than "
        "there is; a script that defines what it sends wants its calls under if __name__ == '__main__'); the same "
        "command goes on"
    )


def _names_script(job: Job) -> bool:
    """Whether a job is made of what the script defines, such as a structure of one's own."""
    return b"__main__" in bytes(ForkingPickler.dumps(job))


def _start(threads: int, *, script: bool) -> _Worker:
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there,), daemon=True)
    with _environment(THREADS, str(threads)), nullcontext() if script else _without_script():
        process.start()
    there.close()
    return _Worker(process, here)


@contextmanager
def _without_script() -> Iterator[None]:
    """Processes started meanwhile do not run the caller's script again, which they do to have what it defines: one
    whose calls do not stand under ``if __name__ == "__main__"`` would begin its work anew in each."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = before or value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _work(pipe: "Connection[Any, Any]") -> None:
    """Do jobs until there are no more, or the parent is gone."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is the parent's: a second signal would end a training that is saving
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            job = pipe.recv()
            try:
                answer = job(), None
            except BaseException as error:
                pipe.send((None, _readable(error)))
                if isinstance(error, Interrupted) or not isinstance(error, Exception):
                    return  # a signal asked for it, and the parent waits for the end
            else:
                pipe.send(answer)


def _readable(error: BaseException) -> BaseException:
    """The error, or its words where the parent could not make one of its class, as of a structure of one's own."""
    try:
        pickle.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
