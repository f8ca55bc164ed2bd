"""Who reads whom: a line for each reading that is allowed, thicker where more is read."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from multigate.report.labels import shortened
from multigate.report.wiring import LETTERS, THICKEST, how_to_read, wiring_drawing
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


def test_negative_weights_are_dashed_and_as_thick_as_positive_ones() -> None:
    level = Level(("a",), ("p", "q", "r"), ((True, True, True),), distribution=False)
    root = drawn(wiring_drawing((level,), [[[-0.5, 0.5, 0.0]]], "").svg)
    dashed = {path.findtext("title") for path in root.iter("path") if path.get("stroke-dasharray")}
    assert dashed == {"a reads p: -0.500"}
    assert titles(root)["a reads p: -0.500"] == titles(root)["a reads q: 0.500"] > titles(root)["a reads r: 0.000"]


def test_weights_of_any_size_fit_and_keep_their_proportions() -> None:
    """Beyond 1 the thickest line is the greatest weight of its level, of either sign."""
    level = Level(("a",), ("p", "q", "r"), ((True, True, True),), distribution=False)
    means = [[[0.25, 0.5, 0]], [[-40, 10, 0]]]
    found = titles(drawn(wiring_drawing((level, level), means, "").svg))
    assert found["a reads p: -40.000"] == THICKEST
    assert found["a reads q: 0.500"] == (0.5 + THICKEST) / 2
    a_quarter = pytest.approx(0.5 + (THICKEST - 0.5) / 4, abs=0.01)
    assert found["a reads p: 0.250"] == found["a reads q: 10.000"] == a_quarter


def test_lines_and_box_of_a_reader_belong_together() -> None:
    level = Level(("a", "b"), ("p", "q"), ((True, True), (False, True)))
    readers = [group for group in drawn(wiring_drawing((level,), None, "").svg).iter("g") if group.get("class")]
    assert [[title.text for title in group.iter("title")] for group in readers] == [
        ["a reads p", "a reads q", "a"],
        ["b reads q", "b"],
    ]
    colours = [line.get("stroke") for group in readers for line in group.iter("g") if line.get("stroke")]
    assert len(set(colours)) == 2


def test_levels_with_many_lines_have_thin_ones() -> None:
    few, many = (Level(("a",) * 5, tuple(map(str, range(n))), (tuple(True for _ in range(n)),) * 5) for n in (20, 21))
    widths = [set(titles(drawn(wiring_drawing((level,), None, "").svg)).values()) for level in (few, many)]
    assert max(widths[1]) < min(widths[0])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("expert 0", "expert 0"),
        ("exactly_22_letters_xyz", "exactly_22_letters_xyz"),
        ("expert 1 of click_through_rate_30d", "expert 1 of…h_rate_30d"),
        ("专家一的点击率预测任务", "专家一的点击率预测任务"),
        ("专家一的点击率预测任务三十天", "专家一的点…任务三十天"),
        ("点击率任务abcdefghijklmnopqrst", "点击率任务a…klmnopqrst"),
    ],
)
def test_long_names_keep_both_ends(name: str, shown: str) -> None:
    assert shortened(name, LETTERS) == shown
    assert shortened(name, 6).count("…") == 1


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


def test_how_to_read_says_what_there_is() -> None:
    gate = Level(("a",), ("p", "q"), ((True, True),))
    free = gate._replace(distribution=False)
    assert "weighs 1" in how_to_read((gate,), None)
    assert "gate" in how_to_read((gate,), [[[0.5, 0.5]]])
    assert "dashed" not in how_to_read((free,), [[[0.5, 0.5]]])
    assert "dashed" in how_to_read((gate, free), [[[0.5, 0.5]], [[0.5, -0.5]]])
