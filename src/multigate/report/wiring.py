"""Who reads whom, drawn from a structure's wiring: sources left, readers right, a line where reading is allowed."""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

from multigate.report.blocks import Block, Drawing
from multigate.report.charts import COLOURS
from multigate.report.labels import shortened
from multigate.report.trained import Trained
from multigate.sharing import Level

WIDTH, BOX, HEIGHT = 460, 150, 20
"""Of the picture, and of a box in it; the page scales it to the room there is."""
STEP, DENSE = 36, 24
"""From box to box; the second where there are more than ``MANY`` above each other."""
MANY = 12
LETTERS = 22
"""Of a name that fit into a box, wide ones counted twice."""
THICKEST, DASHES = 12.0, ' stroke-dasharray="6 4"'
CROWD = 100
"""Lines of a level from which on they are drawn thinner where all are alike."""

Means = Sequence[Sequence[Sequence[float]]]
"""(readers, sources) mean weights of each level."""


class Look(NamedTuple):
    """Colours of lines, and what a picture needs to be one where no page gives it any."""

    colours: tuple[str, ...]
    attributes: str = ""
    style: str = ""


ON_A_PAGE = Look(COLOURS)
ALONE = Look(
    ("#2f80b5", "#cb6015", "#23916c", "#b0609a", "#7c7fd6", "#a2791c"),
    f' xmlns="http://www.w3.org/2000/svg" width="{WIDTH}"',
    "<style>.wiring{font:12px system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif}.wiring path{fill:none}"
    ".wiring rect{fill:#eceff2;stroke:#7a838e}.wiring text{fill:#1d2126}.wiring .level{fill:#7a838e}</style>",
)
"""The lines' colours and the grey stand out from white and from dark paper alike: a picture does not know its page."""


def picture(one: Trained) -> Iterator[Block]:
    """The picture of who reads whom."""
    levels: tuple[Level, ...] = one.looked_at.bundle.model.sharing.wiring
    gated = any(level.learned for level in one.inspection.levels)
    means = [level.mean for level in one.inspection.levels] if gated else None
    yield wiring_drawing(levels, means, how_to_read(levels, means))


def wiring_drawing(levels: Sequence[Level], means: Means | None, says: str) -> Drawing:
    """Levels below each other; ``means`` (readers, sources) of each level make lines thick, none makes all alike."""
    return Drawing(says, _svg(levels, means, ON_A_PAGE))


def wiring_file(levels: Sequence[Level]) -> str:
    """The picture as the text of an SVG file, for light and dark pages."""
    return _svg(levels, None, ALONE) + "\n"


def how_to_read(levels: Sequence[Level], means: Means | None) -> str:
    """What lines, their thickness and their dashes are."""
    says = "Sources on the left, readers on the right; a line is a reading that the structure allows. "
    if means is None:
        return says + "Every reading weighs 1."
    if all(level.distribution for level in levels):
        return says + "The thicker a line, the more the reader's gate gives to that source on average."
    says += "The thicker a line, the greater the weight that the reader gives to that source on average"
    if any(weight < 0 for mean in means for row in mean for weight in row):
        return says + "; dashed where it is negative."
    return says + "."


def _svg(levels: Sequence[Level], means: Means | None, look: Look) -> str:
    parts: list[str] = []
    top = 0.0
    for number, level in enumerate(levels):
        if len(levels) > 1:
            parts.append(f'<text class="level" x="0" y="{top + 14:g}" font-weight="600">level {number + 1}</text>')
            top += DENSE
        tall = max(len(level.sources), len(level.readers))
        height = tall * (STEP if tall <= MANY else DENSE)
        parts += _level(level, means[number] if means else None, top, height, look.colours)
        top += height + DENSE / 2
    label = escape(f"Who reads whom: {_told(levels)}")
    return (
        f'<svg{look.attributes} class="wiring" viewBox="0 0 {WIDTH} {top:g}" role="img" aria-label="{label}">'
        f"{look.style}{''.join(parts)}</svg>"
    )


def _level(
    level: Level, mean: Sequence[Sequence[float]] | None, top: float, height: float, colours: Sequence[str]
) -> list[str]:
    sources = _places(len(level.sources), top, height)
    readers = _places(len(level.readers), top, height)
    # weights that are no distribution may be of any size
    most = max([1.0, *(abs(weight) for row in mean or () for weight in row)])
    crowded = sum(map(sum, level.mask)) > CROWD
    parts = []
    for r, reader in enumerate(level.readers):
        parts.append(f'<g class="reader"><g stroke="{colours[r % len(colours)]}">')
        for s, source in enumerate(level.sources):
            if level.mask[r][s]:
                told = f"{reader} reads {source}"
                if mean is None:
                    parts.append(_line(sources[s], readers[r], *((0.8, 0.5) if crowded else (1.5, 0.9)), told))
                else:
                    parts.append(_weighed(sources[s], readers[r], mean[r][s], most, told))
        parts.append(f"</g>{_box(WIDTH - BOX, readers[r], reader)}</g>")
    return parts + [_box(0, y, name) for y, name in zip(sources, level.sources, strict=True)]


def _places(count: int, top: float, height: float) -> list[float]:
    """Middle of each of ``count`` boxes, evenly over the height."""
    return [top + height * (i + 0.5) / count for i in range(count)]


def _weighed(start: float, end: float, weight: float, most: float, told: str) -> str:
    part = abs(weight) / most
    width, opacity = 0.5 + (THICKEST - 0.5) * part, 0.25 + 0.6 * part
    return _line(start, end, width, opacity, f"{told}: {weight:.3f}", dashed=weight < 0)


def _line(start: float, end: float, width: float, opacity: float, told: str, *, dashed: bool = False) -> str:
    a, b, middle = BOX, WIDTH - BOX, WIDTH / 2
    return (
        f'<path d="M{a} {start:g} C{middle:g} {start:g} {middle:g} {end:g} {b} {end:g}" stroke-width="{width:.2f}" '
        f'stroke-opacity="{opacity:.2f}"{DASHES if dashed else ""}><title>{escape(told)}</title></path>'
    )


def _box(x: float, middle: float, name: str) -> str:
    return (
        f'<g><title>{escape(name)}</title><rect x="{x + 0.5:g}" y="{middle - HEIGHT / 2:g}" width="{BOX - 1}" '
        f'height="{HEIGHT}" rx="3"/><text x="{x + BOX / 2:g}" y="{middle + 4:g}" text-anchor="middle">'
        f"{escape(shortened(name, LETTERS))}</text></g>"
    )


def _told(levels: Sequence[Level]) -> str:
    return "; ".join(f"{len(level.readers)} readers of {len(level.sources)} sources" for level in levels)
