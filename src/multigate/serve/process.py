"""One process that serves, and several that take requests from one port."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from multigate.bundle import Bundle
from multigate.errors import MultigateError, RunError
from multigate.serve.models import load_models
from multigate.serve.shared_metrics import shared_metrics, take_room
from multigate.training.interrupts import handled

if TYPE_CHECKING:
    from uvicorn import Server

PATIENCE = 30
"""Seconds that requests in flight have once a process is asked to stop."""
IDLE = 75
"""Seconds that a connection may lie idle: more than the minute that balancers before a server keep theirs."""


class Job(NamedTuple):
    """What a process serves: folders by the names of their models, what computes each, and what was loaded from it."""

    paths: dict[str, Path]
    engines: dict[str, str]
    loaded_as: dict[str, str | None]


def run(bundles: Mapping[str, Bundle], listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve in this process, on one thread; returns, or raises ``KeyboardInterrupt``, once a signal has come.

    ``ready`` is called when all is there to take requests.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        server = _server(bundles)
        ready()
        _run(server, listening)
    finally:
        torch.set_num_threads(threads)


def _run(server: "Server", listening: socket.socket) -> None:
    """Serve until a signal comes: SIGHUP, of which uvicorn knows nothing, lets requests be answered as others do.

    uvicorn raises a signal again once it is done with requests; what is not answered by then is only told so after it.
    """
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        server.should_exit = True

    with handled(stop):
        server.run([listening])
    if asked:
        raise KeyboardInterrupt


def _server(bundles: Mapping[str, Bundle]) -> "Server":
    from uvicorn import Config

    from multigate.serve.app import application
    from multigate.serve.stopping import Stopping

    return Stopping(
        Config(
            application(bundles),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=PATIENCE,
        )
    )


class _Worker(NamedTuple):
    process: SpawnProcess
    pipe: "Connection[Any, Any]"


def run_several(job: Job, listening: socket.socket, workers: int, ready: Callable[[], None]) -> None:
    """Serve in processes of their own, and replace one that dies, until ``KeyboardInterrupt``.

    Raises ``RunError`` where one does not get as far as to serve.
    """
    with shared_metrics():
        held: list[_Worker] = []
        try:
            for _ in range(workers):
                held.append(_start(job, listening))
            for worker in held:
                _await(worker)
            ready()
            while True:
                wait([worker.process.sentinel for worker in held])
                _replace_dead(held, job, listening)
        finally:
            listening.close()
            _end(held)


def _start(job: Job, listening: socket.socket) -> _Worker:
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(job, listening, there), daemon=True)
    process.start()
    there.close()
    return _Worker(process, here)


def _await(worker: _Worker) -> None:
    """Wait until all is there to serve; raise what keeps it from that."""
    try:
        error = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        raise RunError(
            f"a process of the server ended with exit code {worker.process.exitcode} while it started (a killed one "
            "may have needed more memory than there is); serve with fewer --workers"
        ) from None
    if error is not None:
        raise error


def _replace_dead(held: list[_Worker], job: Job, listening: socket.socket) -> None:
    """Start a process for each that has died; go on without one that cannot serve, unless it is the last: it raises."""
    fresh = []
    for at, worker in enumerate(held):
        if not worker.process.is_alive():
            code = worker.process.exitcode
            print(f"a process ended with exit code {code}; another takes its place", file=sys.stderr, flush=True)
            worker.pipe.close()
            held[at] = _start(job, listening)
            fresh.append(held[at])
    for worker in fresh:
        try:
            _await(worker)
        except MultigateError as error:
            if len(held) == 1:
                raise
            held.remove(worker)
            worker.pipe.close()
            print(f"{error}; the others go on without it", file=sys.stderr, flush=True)


def _end(held: list[_Worker]) -> None:
    """Let them answer what was asked. Their folder of metrics must stay until then, whatever signals come: a second
    Ctrl-C is passed on, and they end at once by it, as one process does."""

    def again(number: int, frame: FrameType | None) -> None:
        for worker in held:
            if number == signal.SIGINT and worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, number)

    with handled(again):
        for worker in held:
            worker.process.terminate()
        for worker in held:
            worker.process.join(PATIENCE + 5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()


def _work(job: Job, listening: socket.socket, pipe: "Connection[Any, Any]") -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is the parent's
    try:
        take_room()
        bundles = _load(job)
    except MultigateError as error:
        pipe.send(RunError(str(error)))
        return
    import torch

    torch.set_num_threads(1)
    server = _server(bundles)
    Thread(target=_stop_with_parent, args=(pipe, server), daemon=True).start()
    pipe.send(None)
    with suppress(KeyboardInterrupt):
        _run(server, listening)


def _load(job: Job) -> dict[str, Bundle]:
    """The bundles. Raises ``RunError`` where another lies there by now: each process would answer by its own."""
    bundles = {name: load_models({name: job.paths[name]}, engine)[name] for name, engine in job.engines.items()}
    for name, bundle in bundles.items():
        if bundle.loaded_as != job.loaded_as[name]:
            raise RunError(f"{job.paths[name]} holds another bundle than is served; restart the server to serve it")
    return bundles


def _stop_with_parent(pipe: "Connection[Any, Any]", server: "Server") -> None:
    with suppress(EOFError, OSError):
        pipe.recv()  # nothing is ever sent: it ends when the other side does
    server.should_exit = True
