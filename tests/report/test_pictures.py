"""The pictures in the docs are those of the structures of today, and stand on pages of any colour."""

import re
from pathlib import Path
from xml.etree import ElementTree

from pictures import FOLDER, TASKS, draw, pictures

from multigate.report.wiring import ALONE
from multigate.sharing import STRUCTURES, VARIANTS

SVG = "{http://www.w3.org/2000/svg}"
PAPERS = {"white": "#ffffff", "of the docs at night": "#1e2129", "of GitHub at night": "#0d1117"}


def test_the_pictures_are_those_of_the_structures() -> None:
    kept = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.svg")}
    today = pictures()
    advice = "run: python tests/report/pictures.py"
    assert not (today.keys() - kept.keys()), f"structures without a picture; {advice}"
    assert not (kept.keys() - today.keys()), f"pictures without a structure; {advice}"
    assert not [name for name in today if kept[name] != today[name]], f"stale pictures; {advice}"


def test_there_is_one_for_every_name_that_experiments_take() -> None:
    assert pictures().keys() == {f"{name}.svg" for name in (*STRUCTURES, *VARIANTS)}


def test_drawing_again_changes_nothing_but_what_is_stale(tmp_path: Path) -> None:
    draw(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "mmoe.svg").write_text("old", encoding="utf-8")
    (tmp_path / "gone.svg").write_text("old", encoding="utf-8")
    (tmp_path / "notes.md").write_text("kept", encoding="utf-8")
    draw(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first | {"notes.md": b"kept"}


def test_every_picture_ends_with_the_tasks_and_needs_nothing_beside_it() -> None:
    for name, text in pictures().items():
        root = ElementTree.fromstring(text)
        assert root.tag == f"{SVG}svg", name
        readers = [group.findtext(f"{SVG}g/{SVG}title") for group in root.iter(f"{SVG}g") if group.get("class")]
        shown = [reader for reader in readers if reader in TASKS][-3:]
        assert shown == list(TASKS) or readers == ["all tasks"], name
        assert "var(" not in text, name
        assert "currentColor" not in text, name
        assert not re.findall(r"url\(|href|<script|@import|<image", text), name
        assert len(text) < 40_000, name


def test_lines_and_grey_stand_out_from_any_paper() -> None:
    """Contrast of graphics is at least 3 to 1 (WCAG 2.1, 1.4.11); words on the paper of their boxes 7 to 1."""
    found = dict(re.findall(r"\.wiring ?\.?(\w+)\{fill:(#\w{6})", ALONE.style))
    for paper in PAPERS.values():
        for colour in (*ALONE.colours, found["level"]):
            assert contrast(colour, paper) >= 3, (colour, paper)
    assert contrast(found["text"], found["rect"]) >= 7


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
