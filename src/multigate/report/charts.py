"""Pictures as Vega-Lite specifications: colours of the page, as wide as their place, readable without colour."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from operator import mul
from typing import Any

import altair as alt
import numpy as np

from multigate.analysis.reliability import Reliability
from multigate.report.blocks import Chart
from multigate.report.labels import labels

INK, PAPER = "currentColor", "var(--paper)"
COLOURS = ("var(--one)", "var(--two)", "var(--three)", "var(--four)", "var(--five)", "var(--six)")
"""Okabe and Ito's, grey in place of the second blue, a little darker or lighter for contrast; variables of the page, so
that charts follow its scheme."""
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
CELL = 50
"""Least width of a heat map's cell in pixels, and half the greatest."""
MOST = 40
"""Rows and columns of a heat map at most: more cannot be read, and cells grow with the square of the tasks."""
PHONE = 320
"""Pixels that a chart has on a narrow screen."""
RARE = 0.1
"""Rate below which a calibration curve may have logarithmic axes."""
WORDS = ("name", "series", "source", "down", "across")
"""Fields that are words; the others are numbers."""
BESIDE, BELOW = 18, 32
"""Letters of a name beside an axis, and in a legend."""
JOINER = "\u2060"
"""Which is not seen: a word joiner."""
OF_OBJECTS = (
    "constructor",
    "hasOwnProperty",
    "isPrototypeOf",
    "propertyIsEnumerable",
    "toLocaleString",
    "toString",
    "valueOf",
)
"""What each object of JavaScript has, and some columns are called: the makers of racing cars are its constructors."""
STRONGEST = 0.55
"""Opacity of a cell's colour at most: text on it keeps its contrast, on light paper and on dark."""
CONFIG: dict[str, Any] = {
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK,
        "titleColor": INK,
        "tickColor": INK,
        "domainColor": INK,
        "gridColor": INK,
        "domainOpacity": 0.35,
        "tickOpacity": 0.35,
        "gridOpacity": 0.12,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 160,
    },
    "legend": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "labelLimit": 240},
}

Row = Mapping[str, Any]
Ends = tuple[float, float]


def line_chart(title: str, description: str, rows: Sequence[Row], y: str, *, x: str = "epoch") -> Chart:
    """Values over epochs: rows of ``epoch``, ``value``, ``series`` and whether it is the ``best`` of its series.

    ``x`` is what is counted, where that is something else.
    """
    series = list(dict.fromkeys(row["series"] for row in rows))
    epochs = [row["epoch"] for row in rows]
    first, last = min([1, *epochs]), max([1, *epochs])  # 0 is what a warm start begins with
    ticks = alt.Axis(values=list(range(first, last + 1, 1 + last // 7)), format="d", grid=False)
    base = _base(rows).encode(
        x=alt.X("epoch:Q", title=x, axis=ticks, scale=alt.Scale(domain=[first, max(last, first + 1)])),
        y=alt.Y("value:Q", title=y, scale=_around([row["value"] for row in rows]), axis=alt.Axis(tickCount=5)),
        color=_coloured(series),
        tooltip=[_shown("series"), _shown("epoch"), _shown("value")],
    )
    lines = base.mark_line(strokeWidth=2)
    points = base.mark_point(filled=True, size=40, opacity=1).encode(shape=_shaped(series))
    best = base.transform_filter("datum.best").mark_point(size=150, strokeWidth=2, filled=False)
    return _chart(title, description, alt.layer(lines, points, best), height=170)


def dot_chart(
    title: str, description: str, rows: Sequence[Row], x: str, *, at: float | None = None, hollow: bool = False
) -> Chart:
    """Values with their intervals, a line per name: rows of ``name``, ``series``, ``value``, ``low`` and ``high``.

    ``at`` draws a line to compare with; with ``hollow`` a dot is filled only where the row is ``clear``.
    """
    series = list(dict.fromkeys(row["series"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    several = len(series) > 1
    base = _base(rows).encode(
        y=alt.Y("name:N", sort=names, title=None, axis=_names(names, domain=False)),
        color=_coloured(series),
        tooltip=[_shown(key) for key in ("name", "series", "value", "low", "high")],
    )
    if several:
        base = base.encode(yOffset=alt.YOffset("series:N", sort=series))
    scale = _around([row[key] for row in rows for key in ("value", "low", "high")] + ([] if at is None else [at]), 8)
    value = alt.X("value:Q", title=x, scale=scale, axis=alt.Axis(tickCount=5, labelOverlap=True))
    layers = [
        base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=x, scale=scale), x2="high"),
        base.mark_point(size=70, opacity=1, strokeWidth=2).encode(
            x=value,
            shape=_shaped(series),
            fill=alt.condition("datum.clear", _coloured(series), alt.value(PAPER))
            if hollow
            else alt.Fill("series:N", sort=None, scale=_colours(series), legend=_legend(series)),
        ),
    ]
    if at is not None:
        rule = _base([{"at": at}]).mark_rule(color=INK, strokeDash=[4, 3], opacity=0.6)
        layers.insert(0, rule.encode(x=alt.X("at:Q", title=x, scale=scale)))
    return _chart(title, description, alt.layer(*layers), height=len(names) * (16 * len(series) + 12))


def reliability_chart(curve: Reliability) -> Chart:
    """Observed against predicted with the diagonal; on logarithmic axes where a linear one would crowd the bins."""
    across, up, logarithmic = reliability_axes(curve)
    rows = [
        {
            "predicted": predicted,
            "observed": max(observed, up[0]),
            "low": max(bottom, up[0]),
            "high": top,
            "rows": many,
            "none": observed < up[0],
        }
        for predicted, observed, bottom, top, many in zip(
            curve.predicted, curve.observed, curve.low, curve.high, curve.rows, strict=True
        )
    ]
    kind = "log" if logarithmic else "linear"
    axis = alt.Axis(tickCount=4, format="~g", labelOverlap=True)
    scale = alt.Scale(type=kind, domain=list(across), nice=False)
    x = alt.X("predicted:Q", title="predicted", scale=scale, axis=axis)
    scale = alt.Scale(type=kind, domain=list(up), nice=False)
    y = alt.Y("observed:Q", title="observed", scale=scale, axis=axis)
    base = _base(rows).encode(x=x, tooltip=[_shown(key) for key in ("predicted", "observed", "low", "high", "rows")])
    ends = [{"predicted": end, "observed": end} for end in (max(across[0], up[0]), min(across[1], up[1]))]
    shape = alt.condition("datum.none", alt.value("triangle-down"), alt.value("circle"))
    picture = alt.layer(
        _base(ends).mark_line(color=INK, strokeDash=[4, 3], opacity=0.6, strokeWidth=1).encode(x=x, y=y),
        base.mark_rule(strokeWidth=2, color=COLOURS[0]).encode(
            y=alt.Y("low:Q", title="observed", scale=scale, axis=axis), y2="high"
        ),
        base.mark_point(filled=True, size=45, color=COLOURS[0], opacity=1).encode(y=y, shape=shape),
    )
    described = f"Calibration of {curve.target}: observed rate against predicted probability in {len(rows)} bins"
    ratio = f"predicted / observed {curve.calibration:.2f}" if math.isfinite(curve.calibration) else "none observed"
    title = f"{curve.target}: {ratio}, ECE {curve.ece:.2g}"
    return _chart(title, described, picture, height=250)


def reliability_axes(curve: Reliability) -> tuple[Ends, Ends, bool]:
    """Ends of the axis of predictions and of that of observed rates, and whether both are logarithmic.

    They are where what is predicted is rare and a linear axis would have half of the bins in its lowest fifth. A
    logarithmic axis has no zero: bins in which nothing was observed are put on its lower end.
    """
    predicted = sorted(curve.predicted)
    rate = sum(map(mul, curve.observed, curve.rows)) / sum(curve.rows)
    if rate < RARE and predicted[0] > 0 and predicted[len(predicted) // 2] < predicted[-1] / 5:
        lowest = min(value for value in (*predicted, *curve.observed) if value > 0)
        across = predicted[0] / 1.3, min(1.0, predicted[-1] * 1.3)
        return across, (min(lowest / 1.5, across[0]), min(1.0, max(*curve.high, across[1]))), True
    margin = 0.05 * ((predicted[-1] - predicted[0]) or predicted[-1] or 1.0)
    across = max(0.0, predicted[0] - margin), min(1.0, predicted[-1] + margin)
    return across, (0.0, min(1.0, 1.02 * max(*curve.high, across[1]))), False


def gate_chart(
    title: str,
    description: str,
    sources: Sequence[str],
    mean: Sequence[float],
    quantiles: Sequence[Sequence[float]],
    ends: Ends,
    colour: int,
) -> Chart:
    """A bar per source with its mean weight; over it the middle half of the rows (thick) and 5 to 95 % (thin)."""
    counted = all(source.startswith("expert ") for source in sources)
    rows = [
        {
            "source": source,
            "place": source.removeprefix("expert ") if counted else source,
            "mean": value,
            **dict(zip(("p05", "p25", "p50", "p75", "p95"), of_rows, strict=True)),
        }
        for source, value, of_rows in zip(sources, mean, quantiles, strict=True)
    ]
    y = alt.Scale(domain=list(ends), nice=True)
    base = _base(rows).encode(
        x=alt.X(
            "place",
            type="nominal",
            sort=None,
            title="expert" if counted else None,
            axis=_names((str(row["place"]) for row in rows), labelAngle=0 if counted else -40, labelOverlap=counted),
        ),
        tooltip=[_shown(key) for key in ("source", "mean", "p05", "p25", "p50", "p75", "p95")],
    )
    weight = alt.Y("mean:Q", title="weight", scale=y, axis=alt.Axis(tickCount=4))
    fill = COLOURS[colour % len(COLOURS)]
    picture = alt.layer(
        base.mark_bar(color=fill, opacity=0.45).encode(y=weight),
        base.mark_rule(color=INK, strokeWidth=1).encode(y=alt.Y("p05:Q", title="weight"), y2="p95"),
        base.mark_rule(color=INK, strokeWidth=4).encode(y=alt.Y("p25:Q", title="weight"), y2="p75"),
    )
    return _chart(title, description, picture, height=170, least=60 + 9 * len(sources))


def heat_chart(
    title: str,
    description: str,
    down: Sequence[str],
    across: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    top: float = 1.0,
    signed: bool = False,
    digits: int = 2,
) -> Chart:
    """A cell per pair with its number in it, to so many ``digits`` after the point.

    Stronger colour is more, up to ``top``; negative ones have another hue. Of more than ``MOST`` rows or columns those
    with the largest values are shown, and the title says so.
    """
    shown_down, shown_across = _largest(values, square=tuple(down) == tuple(across))
    if len(shown_down) < len(down) or len(shown_across) < len(across):
        told = f"{len(shown_down)} of {len(down)} rows, {len(shown_across)} of {len(across)} columns"
        title = f"{title} (the largest values: {told})".strip()
        down, across = [down[at] for at in shown_down], [across[at] for at in shown_across]
        values = [[values[i][j] for j in shown_across] for i in shown_down]
    rows = [
        {
            "down": name,
            "across": other,
            "value": value,
            "size": abs(value or 0.0),
            "text": "n/a" if value is None else f"{round(value, digits) + 0.0:{'+' if signed else ''}.{digits}f}",
        }
        for name, line in zip(down, values, strict=True)
        for other, value in zip(across, line, strict=True)
    ]
    beside, cell = 30 + 6 * min(max(map(len, down)), 20), max(CELL, 8 + 7 * max(map(len, across)))
    level = beside + cell * len(across) <= PHONE
    cell = cell if level else CELL
    turned = {"labelAngle": 0, "labelAlign": "center"} if level else {"labelAngle": 40, "labelAlign": "right"}
    base = _base(rows).encode(
        x=alt.X("across:N", sort=None, title=None, axis=_names(across, orient="top", **turned)),
        y=alt.Y("down:N", sort=None, title=None, axis=_names(down)),
        tooltip=[_shown("down"), _shown("across"), _shown("value")],
    )
    hue = alt.condition("datum.value < 0", alt.value(COLOURS[1]), alt.value(COLOURS[0]))
    strength = alt.Scale(domain=[0, max(top, 1e-9)], range=[0, STRONGEST], clamp=True)
    picture = alt.layer(
        base.mark_rect(stroke=INK, strokeOpacity=0.15).encode(
            fill=hue, fillOpacity=alt.FillOpacity("size:Q", scale=strength, legend=None)
        ),
        base.mark_text(color=INK, fontSize=12).encode(text=alt.Text("text:N")),
    )
    least, most = beside + cell * len(across), beside + max(cell, 2 * CELL) * len(across)
    return _chart(title, description, picture, height=26 * len(down), least=least, most=most)


def _largest(values: Sequence[Sequence[float | None]], *, square: bool) -> tuple[list[int], list[int]]:
    """The places of ``MOST`` rows and columns with the largest values, rising; of pairs those of two different ones."""
    sizes = np.abs(np.array([[0.0 if value is None else value for value in line] for line in values]))
    if square:
        np.fill_diagonal(sizes, 0)
        sizes = np.maximum(sizes, sizes.T)
    rows, columns = (np.sort(np.argsort(-sizes.max(axis), kind="stable")[:MOST]).tolist() for axis in (1, 0))
    return rows, columns


def bar_chart(title: str, description: str, rows: Sequence[Row], x: str) -> Chart:
    """Horizontal bars with one standard deviation either way: rows of ``name``, ``value``, ``low`` and ``high``."""
    base = _base(rows).encode(
        y=alt.Y("name:N", sort=None, title=None, axis=_names(row["name"] for row in rows)),
        tooltip=[_shown(key) for key in ("name", "value", "low", "high")],
    )
    picture = alt.layer(
        base.mark_bar(color=COLOURS[0], opacity=0.6).encode(x=alt.X("value:Q", title=x, axis=alt.Axis(tickCount=4))),
        base.mark_rule(color=INK, strokeWidth=1.5).encode(x=alt.X("low:Q", title=x), x2="high"),
    )
    return _chart(title, description, picture, height=20 * len(rows))


def curve_chart(title: str, description: str, rows: Sequence[Row], x: str, y: str, *, points: bool = False) -> Chart:
    """Values against a number: rows of ``x``, ``value``, ``series``, and ``low`` and ``high``, null where not known.

    Bands show the intervals, or with ``points`` bars do. A series whose rows are ``dashed`` is drawn so, and has the
    colour of another that they name as ``like``.
    """
    like = {row["series"]: row.get("like", row["series"]) for row in rows}
    series, own = list(like), list(dict.fromkeys(like.values()))
    colours = alt.Scale(domain=series, range=[COLOURS[own.index(name) % len(COLOURS)] for name in like.values()])
    base = _base(rows).encode(
        x=alt.X("x:Q", title=x, scale=alt.Scale(zero=False, nice=not points), axis=alt.Axis(tickCount=5)),
        color=alt.Color("series:N", sort=None, scale=colours, legend=_legend(series)),
        tooltip=[_shown(key) for key in ("series", "x", "value", "low", "high")],
    )
    value = alt.Y("value:Q", title=y, axis=alt.Axis(tickCount=5))
    whole, broken = base.transform_filter("!datum.dashed"), base.transform_filter("datum.dashed")
    known = base.transform_filter("datum.low != null")
    low = alt.Y("low:Q", title=y)
    band = known.mark_rule(strokeWidth=1.5) if points else known.mark_area(opacity=0.18)
    layers = [
        band.encode(y=low, y2="high"),
        whole.mark_line(strokeWidth=2).encode(y=value),
        broken.mark_line(strokeWidth=1.5, strokeDash=[5, 3]).encode(y=value),
    ]
    if points:
        layers.append(base.mark_point(filled=True, size=45, opacity=1).encode(y=value, shape=_shaped(series)))
    return _chart(title, description, alt.layer(*layers), height=200)


def scatter_chart(
    title: str, description: str, rows: Sequence[Row], x: str, y: str, *, words: bool = False, log: bool = False
) -> Chart:
    """A dot per row of ``x``, a number or a word, ``value`` and ``series``."""
    series = list(dict.fromkeys(row["series"] for row in rows))
    if words:
        across = alt.X("x:N", sort=None, title=x, axis=_names((row["x"] for row in rows), labelAngle=-40))
    else:
        scale = alt.Scale(type="log" if log else "linear", zero=False, nice=False, padding=8)
        across = alt.X("x:Q", title=x, scale=scale, axis=alt.Axis(tickCount=5, format="~g", labelOverlap=True))
    picture = (
        _base(rows)
        .mark_point(filled=True, size=50, opacity=0.8)
        .encode(
            x=across,
            y=alt.Y("value:Q", title=y, scale=_around([row["value"] for row in rows]), axis=alt.Axis(tickCount=5)),
            color=_coloured(series),
            shape=_shaped(series),
            tooltip=[alt.Tooltip("x:N", title=x), _shown("value"), _shown("series")],
        )
    )
    return _chart(title, description, picture, height=200)


def histogram_chart(
    title: str, description: str, counts: Mapping[str, Sequence[float]], width: float, x: str, y: str
) -> Chart:
    """Histograms over each other, from 0 on in bins of ``width``: the first as bars, the others as outlines."""
    series = list(counts)
    rows = [
        {"series": name, "from": at * width, "to": (at + 1) * width, "value": value}
        for name, values in counts.items()
        for at, value in enumerate(values)
    ]
    base = _base(rows).encode(
        x=alt.X("from:Q", title=x, axis=alt.Axis(tickCount=5)),
        y=alt.Y("value:Q", title=y, axis=alt.Axis(tickCount=4)),
        tooltip=[_shown(key) for key in ("series", "from", "to", "value")],
    )
    bars = base.transform_filter(alt.FieldEqualPredicate(field="series", equal=series[0])).mark_bar(opacity=0.5)
    others = base.transform_filter(alt.FieldOneOfPredicate(field="series", oneOf=series[1:]))
    picture = alt.layer(
        bars.encode(x2="to", y2=alt.Y2Datum(0), color=_coloured(series)),
        others.mark_line(interpolate="step-after", strokeWidth=2).encode(color=_coloured(series)),
    )
    return _chart(title, description, picture, height=150)


def _base(rows: Sequence[Row]) -> Any:
    """A chart of rows; JSON has no NaN, so what is undefined is null and is not drawn."""
    return alt.Chart(alt.Data(values=[{name: _finite(value) for name, value in row.items()} for row in rows]))


def _chart(title: str, description: str, picture: Any, *, height: int, least: int = 0, most: int = 0) -> Chart:
    whole = picture.properties(width="container", height=height, description=description)
    return Chart(title, _apart(whole.to_dict(validate=False)), least, most)


def _apart(spec: Any) -> Any:
    """A specification without words that JavaScript has itself: Vega takes them for what it has seen already, and draws
    nothing. What keeps them apart is not seen."""
    if isinstance(spec, dict):
        return {key: _apart(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [_apart(one) for one in spec]
    return f"{spec}{JOINER}" if isinstance(spec, str) and spec in OF_OBJECTS else spec


def _around(values: Sequence[float | None], padding: int = 0) -> Any:
    """A scale of these values; around one alone it has a width, or its tick would be rounded to a whole number."""
    ends = {value for value in map(_finite, values) if value is not None}
    if len(ends) != 1:
        return alt.Scale(zero=False, nice=True, padding=padding)
    (only,) = ends
    half = 0.01 * (abs(only) or 1.0)
    return alt.Scale(domain=[only - half, only + half], nice=False)


def _colours(series: Sequence[str]) -> Any:
    return alt.Scale(domain=list(series), range=[COLOURS[i % len(COLOURS)] for i in range(len(series))])


def _coloured(series: Sequence[str]) -> Any:
    return alt.Color("series:N", sort=None, scale=_colours(series), legend=_legend(series))


def _shaped(series: Sequence[str]) -> Any:
    shapes = [SHAPES[(i + i // len(COLOURS)) % len(SHAPES)] for i in range(len(series))]  # no colour has one twice
    scale = alt.Scale(domain=list(series), range=shapes)
    return alt.Shape("series:N", sort=None, scale=scale, legend=_legend(series))


def _legend(series: Sequence[str]) -> Any:
    """One for colour and shape together, below the chart; none for a single series."""
    if len(series) == 1:
        return None
    return alt.Legend(title=None, orient="bottom", columns=1, **_labelled(series, BELOW))


def _names(names: Iterable[str], **options: Any) -> Any:
    """An axis of names."""
    return alt.Axis(ticks=False, **_labelled(names, BESIDE), **options)


def _labelled(names: Iterable[str], letters: int) -> dict[str, str]:
    """What an axis or a legend writes for names that are too long: Vega cuts off their ends, where names that begin
    alike differ."""
    cut = {name: label for name, label in labels(names, letters).items() if name != label}
    return {"labelExpr": f"{json.dumps(cut)}[datum.label] || datum.label"} if cut else {}


def _shown(field: str) -> Any:
    """A field of the tooltip."""
    return alt.Tooltip(f"{field}:N") if field in WORDS else alt.Tooltip(f"{field}:Q", format=".4~f")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
