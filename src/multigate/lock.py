"""One process at a time in a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # only POSIX has it; elsewhere nobody is kept out
    fcntl = None  # type: ignore[assignment]

from multigate.errors import RunError

LOCK = ".lock"
"""The file whose lock is held; it names the process. What a killed process leaves of it locks nothing."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of an existing folder; the system lets go of the lock however this one ends.

    Raises ``RunError`` naming the process that is there, or why the folder cannot be written to.
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    handle = _take(path)
    try:
        with suppress(OSError):  # on a full disk the process goes unnamed
            os.truncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        with suppress(OSError):  # the folder may be gone
            path.unlink()
        os.close(handle)


def _take(path: Path) -> int:
    """The locked file, open."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise RunError(f"cannot write to {path.parent}: {error.strerror}; choose another folder") from None
        if not _lock(handle):
            owner = os.read(handle, 20).decode(errors="replace") or "unknown"
            os.close(handle)
            raise RunError(
                f"{path.parent} is being worked on by process {owner}; wait until it is done, or choose another folder"
            )
        with suppress(FileNotFoundError):
            # its last holder may have removed the file in between: then this lock keeps nobody out
            if os.fstat(handle).st_ino == path.stat().st_ino:
                return handle
        os.close(handle)


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system that knows no locks
        pass
    return True
