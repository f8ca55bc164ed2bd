"""Who reads whom: a line for each reading that is allowed, thicker where more is read."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from multigate.report.wiring import wiring_drawing
from multigate.sharing import Level

BAD = "</svg><script>alert(1)</script>"


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def titles(root: ElementTree.Element) -> dict[str, float]:
    """Width of each line by what its tooltip says."""
    return {path.findtext("title") or "": float(path.get("stroke-width") or 0) for path in root.iter("path")}


def test_only_what_the_mask_allows() -> None:
    level = Level(("a", "b"), ("own a", "own b", "shared"), ((True, False, True), (False, True, True)))
    found = titles(drawn(wiring_drawing((level,), None, "").svg))
    assert set(found) == {"a reads own a", "a reads shared", "b reads own b", "b reads shared"}
    assert len(set(found.values())) == 1


def test_more_is_thicker() -> None:
    level = Level(("a",), ("p", "q", "r"), ((True, True, True),))
    found = titles(drawn(wiring_drawing((level,), [[[0.7, 0.0, 0.3]]], "").svg))
    assert found["a reads p: 0.700"] > found["a reads r: 0.300"] > found["a reads q: 0.000"] > 0


@pytest.mark.parametrize("sources", [2, 12, 64])
def test_boxes_do_not_touch(sources: int) -> None:
    names = tuple(f"expert {i}" for i in range(sources))
    level = Level(("a", BAD), names, (tuple(True for _ in names),) * 2)
    drawing = wiring_drawing((level, level), None, "")
    root = drawn(drawing.svg)
    boxes = [(float(box.get("x") or 0), float(box.get("y") or 0)) for box in root.iter("rect")]
    assert len(boxes) == 2 * (sources + 2)
    height = float((root.get("viewBox") or "").split()[3])
    for x in {x for x, _ in boxes}:
        tops = sorted(y for at, y in boxes if at == x)
        assert all(after - before > 20 for before, after in pairwise(tops))
        assert tops[0] >= 0
        assert tops[-1] + 20 <= height
    assert BAD in {group.findtext("title") for group in root.iter("g")}, "whole names in the tooltips"
    assert [text.text for text in root.findall("text")] == ["level 1", "level 2"]
