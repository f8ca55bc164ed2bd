"""Files that Arrow cannot read: what is wrong with them, in one sentence."""

import contextlib
from collections.abc import Iterator

import pyarrow as pa

from multigate.errors import DataError, one_line, shortage

DAMAGED = "is damaged and cannot be read to its end"


@contextlib.contextmanager
def file_errors(name: str, what: str) -> Iterator[None]:
    """Raise ``DataError`` for what is raised of the file ``name``; ``what`` is said where nothing better is known."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError) as error:
        raise (too_little(name, error, what) or _explained(name, error, what)) from error


def too_little(name: str, error: Exception, what: str) -> DataError | None:
    """The error for a file at which the machine was short of something; None where it was not."""
    if isinstance(error, MemoryError):  # a damaged one may ask for any amount
        return DataError(f"{name} needs more memory than there is, or {what}; free some memory first")
    short = shortage(error)
    return None if short is None else DataError(f"{name} cannot be read: {short}")


def _explained(name: str, error: Exception, what: str) -> DataError:
    if "crypt" in str(error):
        return DataError(f"{name} is encrypted, which is not read; write it without encryption")
    if isinstance(error, NotImplementedError):
        return DataError(f"{name} holds what Arrow does not read ({one_line(error)}); write it as another type")
    if "Invalid UTF8" in str(error):
        return DataError(f"{name} holds text that is not UTF-8; write it again as UTF-8")
    if isinstance(error, OSError) and error.errno:
        return DataError(f"{name} cannot be read ({error.strerror}); check the file")
    return DataError(f"{name} {what}; write or fetch it again")
