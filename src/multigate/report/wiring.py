"""Who reads whom, drawn from a structure's wiring: sources left, readers right, a line where reading is allowed."""

from collections.abc import Iterator, Sequence
from html import escape

from multigate.report.blocks import Block, Drawing
from multigate.report.charts import COLOURS
from multigate.report.trained import Trained
from multigate.sharing import Level

WIDTH, BOX, HEIGHT = 400, 125, 20
"""Of the picture, and of a box in it; the page scales it to the room there is."""
STEP, DENSE = 36, 24
"""From box to box; the second where there are more than ``MANY`` above each other."""
MANY = 12
LETTERS = 18
"""Of a name that fit into a box."""


def picture(one: Trained) -> Iterator[Block]:
    """The picture of who reads whom."""
    levels: tuple[Level, ...] = one.looked_at.bundle.model.sharing.wiring
    gated = [level for level in one.inspection.levels if level.learned]
    means = [level.mean for level in one.inspection.levels] if gated else None
    says = "Sources on the left, readers on the right; a line is a reading that the structure allows. "
    says += (
        "The thicker a line, the more the reader's gate gives to that source on average."
        if means
        else "Every reading weighs 1."
    )
    yield wiring_drawing(levels, means, says)


def wiring_drawing(levels: Sequence[Level], means: Sequence[Sequence[Sequence[float]]] | None, says: str) -> Drawing:
    """Levels below each other; ``means`` (readers, sources) of each level make lines thick, none makes all alike."""
    parts: list[str] = []
    top = 0.0
    for number, level in enumerate(levels):
        if len(levels) > 1:
            parts.append(f'<text x="0" y="{top + 14:g}" font-weight="600">level {number + 1}</text>')
            top += DENSE
        tall = max(len(level.sources), len(level.readers))
        height = tall * (STEP if tall <= MANY else DENSE)
        parts += _level(level, means[number] if means else None, top, height)
        top += height + DENSE / 2
    label = escape(f"Who reads whom: {_told(levels)}")
    return Drawing(
        says,
        f'<svg class="wiring" viewBox="0 0 {WIDTH} {top:g}" role="img" aria-label="{label}">{"".join(parts)}</svg>',
    )


def _level(level: Level, mean: Sequence[Sequence[float]] | None, top: float, height: float) -> list[str]:
    sources = _places(len(level.sources), top, height)
    readers = _places(len(level.readers), top, height)
    lines = []
    for r, reader in enumerate(level.readers):
        for s, source in enumerate(level.sources):
            if level.mask[r][s]:
                weight = None if mean is None else mean[r][s]
                colour = COLOURS[r % len(COLOURS)]
                lines.append(_line(sources[s], readers[r], weight, colour, f"{reader} reads {source}"))
    boxes = [_box(0, y, name) for y, name in zip(sources, level.sources, strict=True)]
    boxes += [_box(WIDTH - BOX, y, name) for y, name in zip(readers, level.readers, strict=True)]
    return lines + boxes


def _places(count: int, top: float, height: float) -> list[float]:
    """Middle of each of ``count`` boxes, evenly over the height."""
    return [top + height * (i + 0.5) / count for i in range(count)]


def _line(start: float, end: float, weight: float | None, colour: str, told: str) -> str:
    a, b, middle = BOX, WIDTH - BOX, WIDTH / 2
    width = 1.5 if weight is None else 0.5 + 11.5 * abs(weight)
    opacity = 0.7 if weight is None else 0.25 + 0.6 * min(abs(weight), 1)
    title = escape(told if weight is None else f"{told}: {weight:.3f}")
    return (
        f'<path d="M{a} {start:g} C{middle:g} {start:g} {middle:g} {end:g} {b} {end:g}" stroke="{colour}" '
        f'stroke-width="{width:.2f}" stroke-opacity="{opacity:.2f}"><title>{title}</title></path>'
    )


def _box(x: float, middle: float, name: str) -> str:
    shown = name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
    return (
        f'<g><title>{escape(name)}</title><rect x="{x + 0.5:g}" y="{middle - HEIGHT / 2:g}" width="{BOX - 1}" '
        f'height="{HEIGHT}" rx="3"/><text x="{x + BOX / 2:g}" y="{middle + 4:g}" text-anchor="middle">'
        f"{escape(shown)}</text></g>"
    )


def _told(levels: Sequence[Level]) -> str:
    return "; ".join(f"{len(level.readers)} readers of {len(level.sources)} sources" for level in levels)
