"""The account of a reproduction: chapters of words and tables, printed and written to a page with their pictures."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text as RichText

from multigate.report.blocks import Block, Figure, Table, Text
from multigate.report.image import write_images
from multigate.report.page import Chapter, render, require_extra
from multigate.writing import write_text

PAGE, FIGURES = "page.html", "figures"


def _nothing() -> Iterable[tuple[str, Figure]]:
    return ()


class Account(NamedTuple):
    """One chapter: what is told in words and tables, and pictures by the name of their file.

    Pictures are made when they are asked for: they need the extra ``report``.
    """

    anchor: str
    heading: str
    told: tuple[Block, ...]
    draw: Callable[[], Iterable[tuple[str, Figure]]] = _nothing

    @property
    def shown(self) -> tuple[Block, ...]:
        """What is told, without tables that few methods or groups have left empty."""
        return tuple(block for block in self.told if not isinstance(block, Table) or block.rows)


class Claim(NamedTuple):
    """Something the paper says, what was found here, and whether it holds."""

    claim: str
    paper: str
    here: str
    verdict: str


def claims(caption: str, found: Sequence[Claim]) -> Table:
    """The table of claims."""
    return Table(caption, ("claim", "paper", "here", "verdict"), tuple(tuple(one) for one in found), words=4)


def printed(chapters: Sequence[Account]) -> Group:
    """The account for the terminal: its tables, and the words before them."""
    return Group(*_printed(chapters))


def _printed(chapters: Sequence[Account]) -> Iterator[RenderableType]:
    for chapter in chapters:
        yield RichText(f"\n{chapter.heading}", style="bold")
        for block in chapter.shown:
            if isinstance(block, Text):
                yield RichText(block.text)
            elif isinstance(block, Table):
                yield _table(block)


def _table(block: Table) -> RichTable:
    table = RichTable(title=block.caption, title_justify="left", box=SIMPLE_HEAD)
    for at, name in enumerate(block.head):
        table.add_column(name, justify="left" if at < block.words else "right")
    for row in block.rows:
        table.add_row(*(RichText(cell) for cell in row))
    return table


def write_page(folder: Path, title: str, about: str, chapters: Sequence[Account]) -> Path:
    """Write the page, and each picture as SVG and PNG under ``figures``; returns where the page is.

    Raises ``MultigateError`` where the extra ``report`` is not installed.
    """
    require_extra()
    made = []
    for chapter in chapters:
        pictures = list(chapter.draw())
        for name, figure in pictures:
            write_images(figure, folder / FIGURES / name)
        made.append(
            Chapter(chapter.anchor, chapter.heading, (("", (*chapter.shown, *(figure for _, figure in pictures))),))
        )
    page = folder / PAGE
    write_text(page, render(title, f"multigate {version('multigate')}. {about}", made))
    return page
