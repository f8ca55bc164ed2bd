"""The page as HTML: one file that needs nothing else, neither network nor other files."""

import base64
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import NamedTuple

from multigate.cache import cache_folder
from multigate.errors import MultigateError, RunError
from multigate.report.blocks import Block, Chart, Spec
from multigate.writing import write_text

DRAW = """
const page = JSON.parse(document.getElementById("page-charts").textContent);
const options = {ast: true, renderer: "svg", actions: false, defaultStyle: false, config: page.config,
  tooltip: {disableDefaultStyle: true}};
const drawn = Object.entries(page.specs).map(([id, spec]) => vegaEmbed("#" + id, spec, options));
Promise.all(drawn).then(() => { document.documentElement.dataset.charts = "drawn"; });
"""
"""What the page does with the Vega libraries. ``ast``: they interpret their expressions, so that the page may forbid
``eval``."""


class Chapter(NamedTuple):
    """A section with its blocks made: (heading, blocks) of each part."""

    anchor: str
    heading: str
    parts: tuple[tuple[str, tuple[Block, ...]], ...]


def require_extra() -> None:
    """Raise ``MultigateError`` where what draws a report is not installed."""
    try:
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise MultigateError(
            f"a report needs {error.name}, which is not installed: pip install 'multigate[report]'"
        ) from None


def render(title: str, about: str, chapters: Sequence[Chapter]) -> str:
    """HTML of a page. Text is escaped; a policy in the page forbids every request and every script but its own."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from multigate.report.charts import CONFIG

    script = _script()
    specs: dict[str, Spec] = {}

    def chart_id(chart: Chart) -> str:
        """Keeps the chart's specification for the script, and gives the id of its place."""
        name = f"chart-{len(specs)}"
        specs[name] = chart.spec
        return name

    environment = Environment(
        loader=PackageLoader("multigate.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        about=about,
        chapters=chapters,
        css=files("multigate.report").joinpath("page.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=_hash(script),
        chart_id=chart_id,
        charts=lambda: {"specs": specs, "config": CONFIG},
    )


@cache
def _script() -> str:
    """The Vega libraries and ``DRAW`` in one, put together once on a machine: that takes longer than all the rest.

    It is kept under a name that says what it was made from and what is in it: a file that was cut off or altered since
    is not put into a page, but made anew.
    """
    import altair
    import vl_convert

    major, minor, _ = altair.SCHEMA_VERSION.removeprefix("v").split(".")
    made_from = _digest(f"{version('vl-convert-python')} {major}.{minor} {DRAW}")
    folder = cache_folder() / "pages"
    with suppress(OSError, UnicodeError):
        for path in folder.glob(f"{made_from}-*.js"):
            kept = path.read_bytes().decode()
            if path.stem == f"{made_from}-{_digest(kept)}":
                return kept
    script: str = vl_convert.javascript_bundle(DRAW, f"{major}.{minor}")
    with suppress(RunError):  # where nothing can be kept it is made each time
        write_text(folder / f"{made_from}-{_digest(script)}.js", script)
    return script


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _hash(script: str) -> str:
    """What a content security policy knows a script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
