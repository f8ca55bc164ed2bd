"""What goes wrong, in one sentence: what was wanted, what was found, what to do."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

NO_MEMORY = re.compile(r"can't allocate memory|out of memory|bad_alloc")
"""How torch says it."""
NO_THREAD = re.compile(r"can't start new thread|launch worker thread|^Resource temporarily unavailable")
"""How Python, Arrow and the C++ library say that no more threads are allowed."""


class MultigateError(Exception):
    """Parent of every error a user can cause; the command line prints it and exits with 2."""


class DataError(MultigateError):
    """A table cannot be read, or a column does not hold what the schema says."""


class ExperimentError(MultigateError):
    """An experiment (or schema) names something that does not exist or does not fit together."""


class SettingError(ExperimentError, ValueError):
    """Options were given a value that cannot be; a ``ValueError`` too, as Python has it for such values."""


class RunError(MultigateError):
    """A run folder is in the way, incomplete, or was made by another experiment."""


class DiskError(RunError):
    """A file or folder cannot be written, whatever was to be written."""


class BundleError(MultigateError):
    """A bundle is missing a file, was altered, or cannot answer what was asked."""


class DamagedBundleError(BundleError):
    """Files of a bundle are missing, or not what was written."""


def nearest(name: str, choices: Iterable[str], *, told: str = "valid names") -> str:
    """A clause naming the valid name closest to ``name`` (or listing a few, ``told`` as such), to end an error with."""
    valid = sorted(set(choices))
    close = get_close_matches(name, valid, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(repr(choice if len(choice) <= 60 else f"{choice[:57]}...") for choice in valid[:12])
    return f"{told}: {shown}{', ...' if len(valid) > 12 else ''}" if valid else "there are none"


def check_text(names: Iterable[str]) -> None:
    """Raise ``DataError`` where a path holds bytes that are no text: neither Arrow nor YAML can have it."""
    for name in names:
        if not name.isascii() and any("\ud800" <= one <= "\udfff" for one in name):
            raise DataError(f"{name!a} holds bytes that are not UTF-8; rename it, or choose another name")


def one_line(error: Exception) -> str:
    """What an error says, in one line of 300 characters at most."""
    text = str(error) if isinstance(error, UnicodeError) else "; ".join(str(one) for one in error.args)
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()[:300]


def is_memory_gone(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    text = " ".join(str(error).split())
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(NO_MEMORY.search(text)))


def shortage(error: BaseException) -> str | None:
    """What there is too little of and what helps, where an error says that: no file is at fault then."""
    text = "" if isinstance(error, MultigateError) else str(error)
    if is_memory_gone(error) or "Cannot allocate memory" in text:  # the latter of what is mapped into it
        return "there is not enough memory; lower batch_size or the sizes in sharing, or free some memory"
    if "Too many open files" in text:
        return "too many files are open; raise the limit (ulimit -n), or close some"
    if NO_THREAD.search(text) and not isinstance(error, OSError):
        return "no more threads can be started; raise the limit of processes (ulimit -u, or the container's)"
    return None
