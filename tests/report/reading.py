"""Reading a page back: what a browser would see in it."""

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from multigate.analysis.comparison import Comparison
from multigate.run import Run

BAD = "</script><script>alert(1)</script>"
QUOTES = 'it\'s "quoted" & <b>bold</b> 😀'
BAD_TASK = "<script>alert(2)<img src=x onerror=alert(3)>"


class Trainings(NamedTuple):
    table: pa.Table
    run: Run
    other: Run
    comparison: Comparison
    told: list[tuple[str, int, int | None]]
    page: Path


class Html(HTMLParser):
    """What a browser would see: elements with their attributes and direct text, tables, and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: list[list[list[str]]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in ("meta", "link", "img", "br", "rect", "path"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open:
            return
        self.texts[self.open[-1]][-1] += data
        if self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open[-1] == "script":
            self.scripts[-1] += data

    def rows(self, *start: str) -> list[list[str]]:
        """Rows of all tables that begin with these cells."""
        return [row for table in self.tables for row in table if tuple(row[: len(start)]) == start]

    @property
    def specs(self) -> list[dict[str, Any]]:
        """The charts, in order."""
        return list(json.loads(self.scripts[0])["specs"].values())


def values(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of data of a chart, those that several layers share once."""
    assert not spec.get("datasets")
    told = []
    for layer in (spec, *spec.get("layer", ())):
        rows = layer.get("data", {}).get("values", ())
        if rows and rows not in told:
            told.append(rows)
            yield from rows
