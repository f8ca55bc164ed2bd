"""A broken thing, the command that meets it, and what people are told."""

import contextlib
import hashlib
import io
import re
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

from multigate import cli

MOST = 400
"""Characters of a sentence; people read one sentence, not a paragraph."""
ADVICE = re.compile(r"; \w|did you mean|valid names: ")
"""Every sentence says what to do behind a semicolon, or names what there is."""

Make = Callable[[Path], list[str] | Callable[[], object]]
"""Makes the thing in an empty folder and gives the words behind ``multigate``, or a call for what only Python has.
Paths are relative to that folder."""


class Case(NamedTuple):
    """One thing that may be wrong (or odd, with code 0) with what people give."""

    group: str
    """The heading it stands under on the page, such as "Parquet files"."""
    what: str
    """The case in words, such as "cut off in the middle"."""
    make: Make
    says: tuple[str, ...]
    """Pieces that the sentence must hold; with code 0, pieces of what is printed."""
    code: int = 2
    """The exit code: 0 where it is read after all."""
    reads: str = ""
    """For code 0: what people get instead of an error."""


class Ran(NamedTuple):
    """What one command came to."""

    code: int
    out: str
    told: str
    """Standard error."""
    changed: set[str]
    """Files that appeared, vanished or changed in its folder."""


@cache
def ran(case: Case) -> Ran:
    """Make the case's thing in an empty folder and run its command there, in this process; the answer is kept."""
    out, told = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name).resolve()
        command = case.make(folder)
        before = _files(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(told):
            code = _ended(command)
        after = _files(folder)
    changed = {name for name, _ in before.items() ^ after.items()}
    return Ran(code, out.getvalue(), told.getvalue(), changed)


def _ended(command: list[str] | Callable[[], object]) -> int:
    """The exit code of a command, or of a call that is met by the errors of the command line."""
    words = [] if callable(command) else command
    app = patch.object(cli, "app", command) if callable(command) else contextlib.nullcontext()
    with patch.object(sys, "argv", ["multigate", *words]), app:
        try:
            cli.main()
        except SystemExit as ended:
            return int(ended.code or 0)
    return 0


def _files(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }
