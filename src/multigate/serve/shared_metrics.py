"""The folder in which the metrics of several processes of one server add up.

It must be known before ``metrics`` is imported, so that this module imports nothing of Prometheus.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from multigate.errors import RunError
from multigate.writing import writing

SHARED = "PROMETHEUS_MULTIPROC_DIR"
"""Names it."""
KINDS = "counter", "histogram"
"""Of metrics: Prometheus has a file of each for every process, and maps it into memory."""
ROOM = 1 << 18
"""Bytes of a file: the numbers of a hundred models."""


def check_shared_metrics() -> None:
    """Raise ``RunError`` where what is named is no folder: every request would end in an error there."""
    folder = os.environ.get(SHARED)
    if folder is not None and not (os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)):
        raise RunError(f"{SHARED} is {folder!r}, which is no folder to write metrics in; make it one, or unset it")


@contextmanager
def shared_metrics() -> Iterator[None]:
    """While entered, processes that are started have one: that which is named, or one of their own."""
    if SHARED in os.environ:
        yield
        return
    with TemporaryDirectory(prefix="multigate-metrics-") as folder:
        os.environ[SHARED] = folder
        try:
            yield
        finally:
            del os.environ[SHARED]


def take_room() -> None:
    """Have this process's files whole on the disk before they are mapped: on one that is full by then, the first number
    on a page of theirs would end the process.

    Raises ``DiskError`` where the disk is full already.
    """
    for kind in KINDS:
        path = Path(os.environ[SHARED], f"{kind}_{os.getpid()}.db")
        if not path.exists():
            with writing(path) as temporary:
                temporary.write_bytes(bytes(ROOM))
