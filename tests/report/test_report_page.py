"""The page as a browser parses it: nothing in it but what we wrote, and nothing outside."""

import base64
import hashlib
import re
from itertools import pairwise
from pathlib import Path

import altair as alt
import pytest
import vl_convert
from reading import BAD, BAD_TASK, QUOTES, Html, Trainings

from multigate.report import page
from multigate.report.page import render


def test_names_and_values_are_text(trainings: Trainings, html: Html) -> None:
    assert [attributes.get("type") for tag, attributes in html.elements if tag == "script"] == [
        "application/json",
        None,
    ]
    assert not any(tag in ("img", "b", "iframe", "object") for tag, _ in html.elements)
    assert not any(name.startswith("on") for _, attributes in html.elements for name in attributes)
    cells = {cell for table in html.tables for row in table for cell in row}
    assert {BAD_TASK, "buy"} <= cells
    assert any(QUOTES in cell for cell in cells), "a class with quotes among the shares"
    assert BAD in "".join(html.texts["pre"]), "the experiment file is shown as it is"
    assert any(BAD_TASK in title for title in html.texts["title"][1:]), "the wiring's tooltips"


def test_the_page_asks_for_nothing(trainings: Trainings, html: Html) -> None:
    links = [value for _, attributes in html.elements for name, value in attributes.items() if name in ("src", "href")]
    assert all(link and link.startswith(("#", "data:")) for link in links)
    assert "url(" not in "".join(html.texts["style"])
    assert "@import" not in "".join(html.texts["style"])


def test_only_our_script_may_run(html: Html) -> None:
    policy = next(
        attributes["content"]
        for tag, attributes in html.elements
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    digest = base64.b64encode(hashlib.sha256(html.scripts[1].encode()).digest()).decode()
    assert policy is not None
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy


def test_the_libraries_are_put_together_once_in_a_process(html: Html, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes longer than all the rest of a page."""
    monkeypatch.setattr(vl_convert, "javascript_bundle", None)
    again = render("another", "page", [])
    assert html.scripts[1] in again


def test_structure_of_the_page(html: Html) -> None:
    tags = [tag for tag, _ in html.elements]
    assert ("html", {"lang": "en"}) in html.elements
    assert tags.count("h1") == tags.count("main") == tags.count("nav") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in html.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = [attributes["href"] for tag, attributes in html.elements if tag == "a"]
    assert [f"#{attributes['id']}" for tag, attributes in html.elements if tag == "section"] == anchors
    assert len(anchors) == 11
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in html.elements if tag == "th")
    assert all(len({len(row) for row in table}) == 1 for table in html.tables), "rows as long as their head"


def test_charts_are_valid_and_described(html: Html) -> None:
    places = [attributes["id"] for _, attributes in html.elements if attributes.get("class") == "chart"]
    assert len(places) == len(html.specs) > 40
    kinds = set()
    for spec in html.specs:
        kind = str([(layer["mark"], sorted(layer.get("encoding", ()))) for layer in spec["layer"]])
        if kind not in kinds:
            kinds.add(kind)
            alt.LayerChart.from_dict(spec, validate=True)
        assert spec["description"]
        assert spec["width"] == "container"
        assert "NaN" not in str(spec)
        assert "nan" not in str(spec)
    assert len(kinds) > 5


def test_the_libraries_are_put_together_once_and_used_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept for other processes, not used once altered, and not needed where nothing can be kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made: list[str] = []

    def bundle(snippet: str, version: str) -> str:
        made.append(version)
        return f"{snippet}\r\n// ü {len(made)}"

    monkeypatch.setattr(vl_convert, "javascript_bundle", bundle)
    script = page._script.__wrapped__
    first = script()
    assert script() == first
    assert len(made) == 1
    (kept,) = tmp_path.rglob("*.js")
    kept.write_text("alert(1)")
    assert script() == f"{page.DRAW}\r\n// ü 2"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file" / "inside"))
    (tmp_path / "a file").write_text("")
    assert script() == f"{page.DRAW}\r\n// ü 3"
