"""Files and folders that appear whole: written beside their place, made durable, moved there."""

import ctypes
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from multigate.errors import DiskError

if TYPE_CHECKING:
    from torch import Tensor

_UMASK = os.umask(0)
os.umask(_UMASK)
_LEFTOVER = re.compile(r"\..*\.\d+(-\d+)?\.(writing|old)", re.DOTALL)
"""Names of what a killed process was in the middle of, as ``_beside`` makes them."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's fcntl.h and fs.h."""
_numbers = count()
"""For names that no two threads of a process share."""
_placing = threading.Lock()


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A place to write a file or folder to, which becomes ``path`` once it is whole.

    What was there before stays until then, and for good if anything goes wrong; a link is followed. Missing parents
    are made. Of several threads that write one path at once the last one's is kept. Raises ``DiskError`` where the disk
    refuses.
    """
    with disk_errors(path):
        path = path.resolve()
        missing = [parent for parent in path.parents if not parent.exists()]
        own = _beside(path, "writing")  # a folder, for safetensors makes a temporary file beside the one it writes
        temporary = own / path.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_dead(path)
            remove(own)
            own.mkdir()
            yield temporary
            _make_durable(temporary)
            with _placing:
                _put_in_place(temporary, path)
            remove(own)
        except BaseException:
            remove(own)
            with suppress(OSError):
                for parent in missing:
                    parent.rmdir()
            raise


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def held_apart(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Tensors as safetensors writes them: on the CPU, contiguous, each in a place of its own, tied weights too."""
    held: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        place = here.untyped_storage().data_ptr()
        held[name] = here.clone() if place in places else here
        places.add(place)
    return held


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the disk says while ``path`` is written, as one sentence: ``DiskError``."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DiskError(f"cannot write {path}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """What the system says, and what helps."""
    text = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
    full = "space left" in text or "quota" in text or "too large" in text
    return f"{text}; {'make room there' if full else 'mend that'} or choose another place"


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all in it, as far as that can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a dead process left half-written in a folder that is nobody else's now."""
    for path in [path for path in folder.rglob(".*") if is_leftover(path)]:
        remove(path)


def is_leftover(path: Path) -> bool:
    """Whether a name is one of those."""
    return _LEFTOVER.fullmatch(path.name) is not None


def _beside(path: Path, kind: str) -> Path:
    """A name of this thread alone beside a path, which says whose it is."""
    return path.with_name(f".{path.name}.{os.getpid()}-{next(_numbers)}.{kind}")


def _remove_dead(path: Path) -> None:
    """Remove what processes that are gone left of the same place."""
    for leftover in path.parent.glob(f".{escape(path.name)}.*.writing"):
        owner = leftover.name.split(".")[-2].partition("-")[0]
        if os.name == "posix" and owner.isdecimal() and not _is_alive(int(owner)):
            remove(leftover)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def show(path: Path) -> None:
    """Have a file read by whom new files may be read by: safetensors makes such that only their owner may read."""
    path.chmod(0o666 & ~_UMASK)


def _make_durable(path: Path) -> None:
    """Have the content on the disk before the name, so that a power cut leaves no empty file."""
    for inner in path.iterdir() if path.is_dir() else ():
        _make_durable(inner)
    if path.is_file():
        show(path)
    # folders cannot be opened everywhere, and some file systems (SMB) refuse to flush them
    with suppress(OSError if path.is_dir() else PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two folders have changed places, in one step as Linux can: so at no moment is one gone."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another system, or an older C library
        return False
    return bool(rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0)


def _put_in_place(temporary: Path, path: Path) -> None:
    if not (temporary.is_dir() and path.is_dir()):
        os.replace(temporary, path)
        return
    if _exchanged(temporary, path):
        return
    old = _beside(path, "old")
    remove(old)
    path.rename(old)
    try:
        temporary.rename(path)
    except BaseException:
        old.rename(path)
        raise
    remove(old)
