"""A figure of a page as picture files: the charts with colours of their own, in rows of three at most."""

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from multigate.report.blocks import Figure, Spec
from multigate.writing import write_text, writing

WIDTH = 300
"""Pixels of a chart."""
COLUMNS = 3
SCALE = 2
"""Pixels of a PNG for each of the SVG's."""
VARIABLE = re.compile(r"--([\w-]+): (#[0-9a-fA-F]{3,6});")


def write_images(figure: Figure, path: Path) -> None:
    """Write ``path``.svg and ``path``.png. Needs the extra ``report``."""
    import altair
    import vl_convert

    spec = picture(figure)
    major, minor, _ = altair.SCHEMA_VERSION.removeprefix("v").split(".")
    write_text(path.with_name(f"{path.name}.svg"), vl_convert.vegalite_to_svg(spec, f"{major}.{minor}"))
    with writing(path.with_name(f"{path.name}.png")) as temporary:
        temporary.write_bytes(vl_convert.vegalite_to_png(spec, f"{major}.{minor}", scale=SCALE))


def picture(figure: Figure) -> Spec:
    """The charts of a figure as one specification that needs no page: fixed widths, and colours of light paper."""
    from multigate.report.charts import CONFIG

    shown = [
        {**chart.spec, "width": WIDTH, **({"title": chart.title} if chart.title else {})} for chart in figure.charts
    ]
    columns = min(COLUMNS, len(shown))
    config = {**CONFIG, "background": "var(--paper)", "concat": {"spacing": 24}, "title": {"fontWeight": "normal"}}
    return _coloured({"concat": shown, "columns": columns, "config": config})


def _coloured(spec: Spec) -> Any:
    """With the page's variables put in: colours of the first rule of its style sheet."""
    sheet = files("multigate.report").joinpath("page.css").read_text(encoding="utf-8")
    colours = dict(VARIABLE.findall(sheet.partition("}")[0]))
    text = json.dumps(spec).replace('"currentColor"', json.dumps(colours["ink"]))
    for name, colour in colours.items():
        text = text.replace(f"var(--{name})", colour)
    return json.loads(text)
