"""``docs/errors.md``: every case and what people are told. ``python tests/errors/page.py`` writes it anew."""

import html
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from case import Case, ran
from system import SYSTEM
from tables import TABLES

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
CASES = (*TABLES, *SYSTEM)

INTRO = """\
<!-- Written by `python tests/errors/page.py` from the cases in tests/errors: change those, then run it. -->

# When something is wrong

A command that cannot do what it was asked ends with exit code 2 and one sentence: what was wanted, what was found, what
to do; nothing half-written is left behind. Exit code 0 means done; 130 means interrupted, and the sentence says how to
go on; 1 means a fault of multigate itself, or that nobody reads the output any more. `multigate --debug ...` shows the
traceback as well.

The sentences below are those the commands print. What is read after all says so.
"""


def page(cases: Sequence[Case] = CASES) -> str:
    """The whole page: a table for each group."""
    parts = [INTRO]
    for group, held in groupby(cases, lambda case: case.group):
        rows = [f"| {_cell(case.what)} | {told(case)} |" for case in held]
        parts.append("\n".join([f"## {group}\n", "| what | what you are told |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def told(case: Case) -> str:
    """What people are told, or get."""
    return case.reads if case.code == 0 else _cell(ran(case).told.strip().removeprefix("error: "))


def _cell(text: str) -> str:
    """Markdown that shows the text as it stands, in one cell of a table."""
    plain = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(plain, quote=False))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
