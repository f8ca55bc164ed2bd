"""How a CSV file is written: what separates its fields, and what points and commas mean in its numbers."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from multigate.data.beginnings import PACKED, unpacked
from multigate.data.cells import short
from multigate.errors import DataError, one_line

_QUOTED = re.compile(r'(?<![^,;\t|\n])"[^"]*+(?:""[^"]*+)*"')
"""A field in quotes, which may hold what else separates."""
_SEPARATOR = re.compile(r'("?)sep=([\x01-\x7f])\1[^\S\n]*(?:\n|$)')
"""The line before the column names that tells Excel what separates; its own quote marks would end it."""
_COMMA = r"^\s*[-+]?(\d+|\d{1,3}(\.\d{3})+),\d+\s*$"
"""A number with a decimal comma, such as 1,5 or 1.234,5."""
_POINT = r"^\s*[-+]?\d+\.(\d{1,2}|\d{4,})\s*$"
"""A number whose point is a decimal one, which that of 1.500 need not be."""


class Dialect(NamedTuple):
    """What its reader has to be told of a file, beside types."""

    before: int
    """Lines before the one of the column names."""
    delimiter: str
    open_quote: bool
    """Whether the line of column names opens a quote that it does not close."""
    decimal: str = "."
    pointed: frozenset[str] = frozenset()
    """Where that is a comma, columns with numbers such as 1.5 all the same."""
    thousands: bool = False
    """Whether 1.500 may be one and a half thousand: no 1.5 tells what points are."""

    def with_decimals(self, texts: pa.RecordBatch, columns: Collection[str]) -> "Dialect":
        """The same with what the first rows, as they are written, tell of the numbers in these columns.

        Where some have decimal commas and others points, 1.500 may be one and a half thousand: a column of nothing else
        is neither.
        """
        commas, points = (
            {name for name in columns if pc.any(pc.match_substring_regex(texts[name], number)).as_py()}
            for number in (_COMMA, _POINT)
        )
        points -= commas
        if not commas:
            return self._replace(thousands=not points)
        return self._replace(decimal=",", pointed=frozenset(points), thousands=not points)


def dialect_of(path: Path) -> Dialect:
    """What the first lines of a file tell. Raises ``DataError`` where they are no text, or hold no column names."""
    head = _head(path)
    told = _SEPARATOR.match(head)
    head = head[told.end() :] if told else head
    if not head.strip():
        raise DataError(f"{path} is empty; a CSV file starts with a line of column names")
    lines = _QUOTED.sub("", head.lstrip("\n")).split("\n")
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    delimiter = told[2] if told else "\t" if name.suffix.lower() == ".tsv" else _delimiter(lines[0])
    _check_comment(path, lines, delimiter)
    return Dialect(0 if told is None else 1, delimiter, lines[0].count('"') % 2 == 1)


def _head(path: Path) -> str:
    """The first lines; checks that the file begins as text."""
    try:
        with unpacked(path) as stream:
            head: bytes = stream.read(1 << 16)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error)}); write or fetch it again") from error
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or head.count(0) > len(head) // 4:
        raise DataError(f"{path} is UTF-16 text; save it as UTF-8")
    if b"\0" in head:
        raise DataError(f"{path} holds zero bytes, so it is no text; write it again as UTF-8 text")
    return head.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")


def _check_comment(path: Path, lines: Sequence[str], delimiter: str) -> None:
    """Raise ``DataError`` where a comment stands in the place of the column names, which may begin with a # too."""
    whole = lines[1:-1]  # the last may be cut off
    after = next((line for line in whole if line and not line.startswith("#")), lines[0])
    mark = delimiter if delimiter in lines[0] + after else _delimiter(after)
    if lines[0].startswith("#") and lines[0].count(mark) != after.count(mark):
        raise DataError(
            f"{path} begins with {short(lines[0])}, which looks like a comment and stands where the column "
            "names are wanted; delete the line"
        )


def _delimiter(line: str) -> str:
    """Comma, unless the line of names has none and another common separator does."""
    return "," if "," in line else next((mark for mark in "\t;|" if mark in line), ",")
