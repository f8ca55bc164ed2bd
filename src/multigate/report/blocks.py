"""What a page is made of, before it is HTML. All of it is text to be escaped but ``Drawing.svg``."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

Spec = dict[str, Any]
"""A Vega-Lite specification."""


class Text(NamedTuple):
    """A paragraph; ``kind`` is "text", or "note" for what stands in the place of something that is missing."""

    text: str
    kind: str = "text"


class Listing(NamedTuple):
    """Points, each a lead word or sentence and what follows it."""

    points: tuple[tuple[str, str], ...]
    kind: str = "listing"


class Table(NamedTuple):
    """Rows of text under a head; the first ``words`` columns are words, the others numbers."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    kind: str = "table"


class Chart(NamedTuple):
    """One picture; its specification's description is for screen readers."""

    title: str
    spec: Spec
    least: int = 0
    """Width in pixels below which its box scrolls."""
    most: int = 0
    """Width in pixels above which it does not grow; 0 for as wide as there is room."""


class Figure(NamedTuple):
    """Charts side by side where there is room. ``says``: how to read them, and what they say here."""

    says: str
    charts: tuple[Chart, ...]
    wide: bool = False
    kind: str = "figure"


class Drawing(NamedTuple):
    """A picture that is SVG already, with everything in it escaped."""

    says: str
    svg: str
    kind: str = "drawing"


class Folded(NamedTuple):
    """Long text behind a line to click."""

    line: str
    text: str
    kind: str = "folded"


Block = Text | Listing | Table | Figure | Drawing | Folded


class Part(NamedTuple):
    """Blocks under a heading of their own (none where it is empty), made when they are asked for."""

    heading: str
    make: Callable[[], Iterable[Block]]


class Section(NamedTuple):
    """A chapter of the page; ``anchor`` is its place in links."""

    anchor: str
    heading: str
    parts: tuple[Part, ...]
