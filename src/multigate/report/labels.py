"""Names short enough to stand beside a picture, and still told apart."""

import math
from collections.abc import Iterable
from itertools import accumulate
from unicodedata import east_asian_width


def labels(names: Iterable[str], letters: int) -> dict[str, str]:
    """What stands for each of the names: of those that are too long the beginning, or where more of them differ so,
    both ends, or the end."""
    several = list(dict.fromkeys(names))
    cuts = [[shortened(name, letters, begins) for name in several] for begins in (1, 0.5, 0)]
    chosen = max(cuts, key=lambda cut: len(set(cut)))  # the first of those that are as good
    return dict(zip(several, chosen, strict=True))


def shortened(name: str, letters: int, begins: float = 0.5) -> str:
    """A name that fits into so many letters: both its ends, for names often differ in their last letters.

    ``begins`` is the share of the letters that its beginning has.
    """
    if _wide(name) <= letters:
        return name
    room = letters - 1
    first = math.ceil(room * begins)
    head = sum(1 for wide in accumulate(map(_wide, name)) if wide <= first)
    tail = sum(1 for wide in accumulate(map(_wide, reversed(name))) if wide <= room - first)
    return f"{name[:head]}…{name[len(name) - tail :]}"


def _wide(text: str) -> int:
    """Letters of the Latin script that would take as much room."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)
