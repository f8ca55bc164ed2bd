"""Pictures: axes that show the bins, colours that carry a sign, numbers that match."""

import math
import re
from types import SimpleNamespace
from typing import Any, cast

import altair
import numpy as np
import pytest
import vl_convert
from reading import values

from multigate.analysis.gates import level_gates
from multigate.analysis.importance import Importance
from multigate.analysis.reliability import Reliability
from multigate.formats import interval, listed, number, share, signed
from multigate.report.blocks import Chart, Figure
from multigate.report.calibration import _told
from multigate.report.charts import (
    bar_chart,
    dot_chart,
    gate_chart,
    heat_chart,
    line_chart,
    reliability_axes,
    reliability_chart,
)
from multigate.report.gates import weights
from multigate.report.image import picture
from multigate.report.importance import worth
from multigate.report.labels import labels
from multigate.report.origin import _described
from multigate.sharing import Level, MMoE


def curve(predicted: list[float], observed: list[float]) -> Reliability:
    high = [min(1.0, value * 1.5 + 0.001) for value in observed]
    low = [value / 2 for value in observed]
    rows = [100] * len(predicted)
    return Reliability(
        target="t", predicted=predicted, observed=observed, low=low, high=high, rows=rows, ece=0.01, calibration=1.0
    )


RARE = curve([1e-4, 2e-4, 4e-4, 1e-3, 3e-2], [0.0, 1e-4, 5e-4, 1e-3, 2e-2])
COMMON = curve([0.001, 0.01, 0.05, 0.9, 0.99], [0.0, 0.02, 0.04, 0.9, 1.0])
NARROW = curve([0.0010, 0.0011, 0.0012], [0.001, 0.0, 0.002])
CONSTANT = curve([0.0], [0.0])


@pytest.mark.parametrize(("bins", "logarithmic"), [(RARE, True), (COMMON, False), (NARROW, False), (CONSTANT, False)])
def test_bins_lie_within_the_axes(bins: Reliability, logarithmic: bool) -> None:
    across, up, found = reliability_axes(bins)
    assert found == logarithmic
    assert across[0] < across[1]
    assert up[0] < up[1]
    assert all(across[0] <= value <= across[1] for value in bins.predicted)
    assert all(value <= up[1] for value in (*bins.observed, *bins.high))
    if len(bins.predicted) > 1:
        places = [(value - across[0]) / (across[1] - across[0]) for value in bins.predicted]
        assert logarithmic or max(places) - min(places) > 0.8, "a rare task is not a dot in the corner"


def test_bins_where_nothing_was_observed_stay_on_a_logarithmic_picture() -> None:
    chart = reliability_chart(RARE)
    rows = [row for row in values(chart.spec) if "rows" in row]
    assert [row["none"] for row in rows] == [True, False, False, False, False]
    assert all(row["observed"] > 0 and row["low"] > 0 for row in rows)
    assert [row["predicted"] for row in rows] == list(RARE.predicted)


def test_what_never_happens_has_no_ratio() -> None:
    never = curve([0.2, 0.3], [0.0, 0.0]).with_(calibration=math.nan)
    assert "nan" not in reliability_chart(never).title + _told((never,))
    assert "t never happens" in _told((never,))


@pytest.mark.parametrize(
    "chart",
    [
        dot_chart("", "", [{"name": "a", "series": "mean", "value": 0.5035, "low": None, "high": None}], "", at=0.5035),
        line_chart("", "", [{"epoch": 1, "value": 0.5035, "series": "a", "best": True}], ""),
    ],
)
def test_a_value_alone_has_ticks_around_it(chart: Chart) -> None:
    """Its one tick was rounded to 1."""
    svg = vl_convert.vegalite_to_svg(picture(Figure("", (chart,))), ".".join(altair.SCHEMA_VERSION.split(".")[:2]))
    ticks = [float(text) for text in re.findall(r">(-?\d*\.\d+)</text>", svg)]
    assert min(ticks) < 0.5035 < max(ticks)
    assert max(ticks) - min(ticks) < 0.02


@pytest.mark.parametrize("other", ["driver", "the_driver_who_starts_the_race"])
def test_names_that_javascript_has_itself_are_drawn(other: str) -> None:
    """Vega drew no chart of which a column was called so."""
    rows = [
        {"name": name, "series": series, "value": 0.5, "low": 0.4, "high": 0.6}
        for name, series in (("constructor", "toString"), (other, "valueOf"))
    ]
    for chart in (dot_chart("", "", rows, ""), bar_chart("", "", rows, "")):
        svg = vl_convert.vegalite_to_svg(picture(Figure("", (chart,))), ".".join(altair.SCHEMA_VERSION.split(".")[:2]))
        assert "constructor" in svg
        assert other[:6] in svg


def test_a_source_that_few_rows_read_is_within_the_picture() -> None:
    rows, sources = 400, tuple(f"expert {at}" for at in range(40))
    gate = np.eye(40, dtype=np.float32)[np.arange(rows) % 40][:, None]  # each reads one source: 95 % read another
    level = level_gates(Level(("t",), sources, (tuple(True for _ in sources),)), gate)
    one = SimpleNamespace(inspection=SimpleNamespace(levels=(level,), rows="rows", structure="mmoe"))
    bars = next(block for block in weights(cast(Any, one)) if isinstance(block, Figure)).charts[0]
    _, top = bars.spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    assert top >= max(level.mean[0]) > 0


def test_a_feature_is_most_important_only_where_its_loss_exceeds_the_noise() -> None:
    found = [
        Importance(feature=feature, target=target, metric="auc", loss=loss, sd=0.02)
        for target, losses in (("click", (0.1, 0.01)), ("buy", (-0.005, -0.03)), ("like", (0.015, 0.0)))
        for feature, loss in zip(("age", "sex"), losses, strict=True)
    ]
    (figure,) = worth(cast(Any, SimpleNamespace(inspection=SimpleNamespace(importance=found, unknown="", untried=""))))
    assert isinstance(figure, Figure)
    assert figure.says.endswith("age for click, nothing clear for buy and nothing clear for like.")


def test_a_weight_below_0_is_read_as_much_as_one_above() -> None:
    """Gates that are no distributions; one of the readers may not read the third source."""
    level = Level(("a", "b"), ("own", "other", "third"), ((True, True, False), (True, True, True)), distribution=False)
    gate = np.tile(np.array([[[-0.2, -0.9, 0], [0.1, -0.05, 0.02]]], np.float32), (20, 1, 1))
    looked_at = SimpleNamespace(levels=[level_gates(level, gate)], rows="20 rows", structure="own")
    figure, *_ = weights(cast(Any, SimpleNamespace(inspection=looked_at)))
    assert isinstance(figure, Figure)
    assert figure.says.endswith("Here a reads other most (-0.90) and b reads own most (0.10).")


def test_how_many_experts_a_gate_reads_is_told_of_sparse_gates_alone() -> None:
    assert _described(MMoE(experts=3, hidden=(8,))) == "mmoe, hidden 8, experts 3"
    assert _described(MMoE(experts=3, hidden=(8,), gating="top_k")) == "mmoe, gating top_k, hidden 8, k 2, experts 3"


def test_heat_maps_of_many_tasks_show_those_with_the_largest_values() -> None:
    names = [f"task {at}" for at in range(90)]
    matrix = np.eye(90)
    matrix[3, 80] = matrix[80, 3] = -0.9
    chart = heat_chart("", "d", names, names, matrix.tolist(), signed=True)
    assert chart.title == "(the largest values: 40 of 90 rows, 40 of 90 columns)"
    cells = {(one["down"], one["across"]): one["value"] for one in values(chart.spec)}
    assert len(cells) == 40 * 40
    assert cells["task 3", "task 80"] == cells["task 80", "task 3"] == -0.9
    assert {down for down, _ in cells} == {across for _, across in cells}
    experts = [[None, 0.1], *([[0.2, 0.3]] * 40), [0.9, 0.0]]
    chart = heat_chart("t", "d", [f"expert {at}" for at in range(42)], ["a", "b"], experts)
    assert chart.title == "t (the largest values: 40 of 42 rows, 2 of 2 columns)"
    shown = {one["down"] for one in values(chart.spec)}
    assert "expert 41" in shown
    assert "expert 0" not in shown


def test_heat_maps_have_their_numbers_written_in_them() -> None:
    chart = heat_chart("", "d", ["a", "b"], ["c"], [[-0.001], [None]], signed=True)
    assert [row["text"] for row in values(chart.spec)] == ["+0.00", "n/a"]
    chart = heat_chart("", "d", ["a"], ["b", "c"], [[0.5, 0.254]])
    assert [row["text"] for row in values(chart.spec)] == ["0.50", "0.25"]
    chart = heat_chart("", "d", ["a"], ["b", "c"], [[0.012, 0.0]], digits=3)
    assert [row["text"] for row in values(chart.spec)] == ["0.012", "0.000"]


def test_many_series_can_be_told_apart() -> None:
    names = [f"structure {i}" for i in range(25)]
    chart = line_chart("t", "d", [{"epoch": 1, "value": 0.5, "series": name, "best": False} for name in names], "auc")
    points = chart.spec["layer"][1]["encoding"]
    looks = zip(points["color"]["scale"]["range"], points["shape"]["scale"]["range"], strict=True)
    assert len(set(looks)) == 25


@pytest.mark.parametrize(
    ("epochs", "domain", "ticks"),
    [([0], [0, 1], [0, 1]), ([0, 1, 2], [0, 2], [0, 1, 2]), ([1, 2, 3], [1, 3], [1, 2, 3]), ([1], [1, 2], [1]),
     ([3, 4], [1, 4], [1, 2, 3, 4])],
)  # fmt: skip
def test_every_epoch_lies_on_the_axis(epochs: list[int], domain: list[int], ticks: list[int]) -> None:
    rows = [{"epoch": epoch, "value": 0.5, "series": "auc", "best": False} for epoch in epochs]
    x = line_chart("t", "d", rows, "auc").spec["layer"][0]["encoding"]["x"]
    assert x["scale"]["domain"] == domain
    assert x["axis"]["values"] == ticks
    assert domain[0] <= min(epochs)
    assert max(epochs) <= domain[1]


def test_gates_keep_the_order_of_experts_and_name_what_is_no_expert() -> None:
    q = [[0.1, 0.2, 0.3, 0.4, 0.5]] * 2
    numbered = gate_chart("t", "d", ["expert 10", "expert 9"], [0.6, 0.4], q, (0.0, 1.0), 0)
    assert [row["place"] for row in values(numbered.spec)] == ["10", "9"]
    named = gate_chart("t", "d", ["shared 0", "own of t 0"], [0.6, 0.4], q, (0.0, 1.0), 0)
    assert [row["place"] for row in values(named.spec)] == ["shared 0", "own of t 0"]


def test_names_that_begin_alike_are_told_apart() -> None:
    names = [f"patient_readmitted_within_{days}_days" for days in (7, 30, 90)]
    rows = [{"name": name, "series": name, "value": 0.5, "low": 0.4, "high": 0.6} for name in names]
    curves = [{"epoch": 1, "value": 0.5, "series": f"runs_of_the_last_week_{name}", "best": False} for name in names]
    grid = [[0.1, 0.2, 0.3]] * 3
    for chart, sides in (
        (heat_chart("t", "d", names, names, grid), 2),
        (dot_chart("t", "d", [row | {"series": "mean"} for row in rows], "x"), 1),
        (bar_chart("t", "d", rows, "x"), 1),
        (line_chart("t", "d", curves, "y"), 1),
    ):
        svg = vl_convert.vegalite_to_svg(chart.spec | {"width": 280}, ".".join(altair.SCHEMA_VERSION.split(".")[:2]))
        shown = [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg) if "…" in text]
        assert len(shown) == sides * len(names)
        assert all(any(text.endswith(f"{days}_days") for text in shown) for days in (7, 30, 90))


def test_a_dot_without_an_interval_keeps_its_place() -> None:
    names, nan = ["single_task", "mmoe", "ple"], math.nan
    rows = [
        {"name": name, "series": part, "value": 0.5, "low": low, "high": low + 0.2}
        for name in names
        for part, low in (("validation", nan if name == "mmoe" else 0.4), ("test", 0.4))
        if (name, part) != ("mmoe", "test")
    ]
    spec = dot_chart("t", "d", rows, "x").spec | {"width": 280}
    svg = vl_convert.vegalite_to_svg(spec, ".".join(altair.SCHEMA_VERSION.split(".")[:2]))
    assert [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg) if text in names] == names


def test_a_name_that_is_cut_keeps_what_it_alone_has() -> None:
    assert labels(["short", "constructor"], 18) == {"short": "short", "constructor": "constructor"}
    assert list(labels(["measure_of_heart_in_hospital", "measure_of_lungs_in_hospital"], 18).values()) == [
        "measure_of_heart_…",
        "measure_of_lungs_…",
    ]


def test_numbers_for_people() -> None:
    found = [number(value) for value in (0.12345, 12345.6, -0.0002, 1.3456e-6, 0.0, float("nan"), None)]
    assert found == ["0.1235", "12,345.6", "-0.0002", "1.35e-06", "0.0000", "n/a", "n/a"]
    assert [share(value) for value in (0.0, 0.0008, 0.012, 0.123, 1.0)] == ["0 %", "0.080 %", "1.2 %", "12 %", "100 %"]
    nearly = (0.994, 0.995, 0.9996, 0.99999)
    assert [share(value) for value in nearly] == ["99 %", "99.5 %", "99.96 %", "99.999 %"], "only all are 100 %"
    assert [signed(value) for value in (0.5, -0.00001, -1.0)] == ["+0.5000", "+0.0000", "-1.0000"]
    assert interval(float("nan"), 1.0) == ""
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed("abcdefgh", most=3) == "a, b, c and 5 more"
