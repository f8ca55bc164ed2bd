"""Tables of RESULTS.md: each stands between markers, which a script prints round it and ``suite.py`` looks for.

The markers of ``train`` are the lines ``<!-- train -->`` and ``<!-- /train -->``.
"""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from machine import stamp

RESULTS = Path(__file__).parent / "RESULTS.md"
BLOCK = re.compile(r"^<!-- (?P<name>[\w-]+) -->\n(?P<body>.*?)^<!-- /(?P=name) -->$", re.MULTILINE | re.DOTALL)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown, a blank line before and after."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, *rows)]
    return "\n".join(["", lines[0], "|" + "---|" * len(head), *lines[1:], ""])


def show(name: str, *parts: str) -> None:
    """Print a block: what ran where, then the parts."""
    command = shlex.join([f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    print(block(name, "\n".join([f"`python {command}`, {stamp()}", *parts])), flush=True)


def block(name: str, body: str) -> str:
    return f"<!-- {name} -->\n{body.strip()}\n<!-- /{name} -->"


def blocks(text: str) -> dict[str, str]:
    """What stands between markers, by name, the markers included."""
    return {found["name"]: found.group() for found in BLOCK.finditer(text)}


def replaced(text: str, new: dict[str, str]) -> str:
    """The text with these blocks in place of those of the same names, and nothing else changed.

    Raises ``ValueError`` for a block the text has no markers for.
    """
    missing = new.keys() - blocks(text).keys()
    if missing:
        name = min(missing)
        raise ValueError(f"RESULTS.md has no place for {name}; add the lines <!-- {name} --> and <!-- /{name} -->")
    return BLOCK.sub(lambda found: new.get(found["name"], found.group()), text)
