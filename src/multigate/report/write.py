"""Writing a report: what sections there are, and the file they end up in."""

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from multigate.errors import MultigateError, RunError
from multigate.folders import at_home
from multigate.formats import listed
from multigate.nn.defaults import defaults
from multigate.progress import Progress, silent
from multigate.report.blocks import Block, Part, Section, Text
from multigate.report.page import Chapter, render, require_extra
from multigate.report.trained import Source, Trained, open_trained
from multigate.writing import write_text


@defaults(torch.device("cpu"))
def write_report(
    paths: Source | Sequence[Source],
    out: str | Path,
    *,
    table: Any = None,
    progress: Progress | None = None,
) -> Path:
    """Write one HTML page about runs and comparisons that opens offline, and return where it is.

    ``table`` gives rows with labels to look at the models with, in place of those prepared beside them. A part of the
    page that cannot be made is replaced by the sentence that says why. The file appears only once it is whole.

    Raises ``RunError`` where a path holds no run or comparison or ``out`` cannot be written, ``MultigateError`` where
    the extra ``report`` is not installed.
    """
    require_extra()
    from multigate.report.contents import sections  # draws with what the extra brings

    at = target(at_home(out), "a report is an HTML page", ".html", ".htm")
    trained = open_trained(paths, table, progress)
    if not trained:
        raise RunError("a report wants a run or a comparison to be about, found none; name their folders")
    chapters = _made(sections(trained), progress or silent)
    names = listed(one.name for one in trained)
    folders = listed(str(one.folder) for one in trained)
    about = f"multigate {version('multigate')}, {datetime.now():%d %B %Y}, from {folders}."
    write_text(at, render(f"{_title(trained)}: {names}", about, chapters))
    return at


def _made(sections: Iterable[Section], progress: Progress) -> list[Chapter]:
    """Sections with their parts made; those with nothing to show are left out."""
    waiting = [section for section in sections if section.parts]
    total = sum(len(section.parts) for section in waiting)
    done, chapters = 0, []
    for section in waiting:
        parts = []
        for part in section.parts:
            parts.append((part.heading, tuple(_blocks(part))))
            done += 1
            progress("report (parts)", done, total)
        shown = _merged(parts)
        if shown:
            chapters.append(Chapter(section.anchor, section.heading, tuple(shown)))
    return chapters


def _blocks(part: Part) -> Iterator[Block]:
    """Blocks of a part as far as they can be made, and why no further."""
    try:
        yield from part.make()
    except MultigateError as error:
        yield Text(f"This part is missing: {error}", kind="note")


def _merged(parts: Sequence[tuple[str, tuple[Block, ...]]]) -> list[tuple[str, tuple[Block, ...]]]:
    """Parts that hold something; a heading is said once."""
    shown = [(heading, blocks) for heading, blocks in parts if blocks]
    return [
        ("" if place and heading == shown[place - 1][0] else heading, blocks)
        for place, (heading, blocks) in enumerate(shown)
    ]


def _title(trained: Sequence[Trained]) -> str:
    kinds = {"comparison" if one.comparison else "run" for one in trained}
    if len(trained) == 1:
        return f"Report of a {kinds.pop()}"
    return f"Report of {listed(f'{kind}s' for kind in sorted(kinds))}"


def target(out: Path, told: str, *suffixes: str) -> Path:
    """Where a file will be, as far as can be known before it is made; ``told`` says what kind of file it is."""
    if out.is_dir():
        raise RunError(f"{out} is a folder; {told}, such as {out / f'report{suffixes[0]}'}")
    if out.suffix not in suffixes:
        raise RunError(f"{told}: name the file {out.with_suffix(suffixes[0])}, not {out}")
    nearest = next(place for place in out.resolve().parents if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise RunError(f"cannot write {out}: {nearest} is no folder that can be written to; choose another place")
    return out
