"""Numbers as people read them."""

import io
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from multigate.analysis.comparison import Comparison
from multigate.formats import bracketed, number, plus_minus, signed_number
from multigate.report.blocks import Figure
from multigate.report.compared import structures
from multigate.schema import Number, Schema, Task
from multigate.tables import metric_table


@pytest.mark.parametrize(
    ("values", "sign", "expected"),
    [
        ((0.1234, 0.1, 0.15), False, "0.12 [0.10, 0.15]"),
        ((-0.001, -0.2, 0.2), True, "+0.00 [-0.20, +0.20]"),
        ((0.5, math.nan, math.nan), True, "+0.50"),
        ((math.nan, math.nan, math.nan), False, "n/a"),
    ],
)
def test_a_value_and_its_interval(values: tuple[float, float, float], sign: bool, expected: str) -> None:
    assert bracketed(*values, 2, sign=sign) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.12345, "0.1235"),
        (-12345.67, "-12,345.7"),
        (0.00001234, "1.23e-05"),
        (-1.234e84, "-1.23e+84"),
        (0.0, "0.0000"),
        (math.nan, "n/a"),
        (None, "n/a"),
    ],
)
def test_a_number_has_the_digits_that_people_read(value: float | None, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "beside", "expected"),
    [
        (0.5, 0.7, "+0.5000"),
        (-3.2e-7, 4.1e-7, "-3.2e-07"),
        (-3.2e-5, 0.07, "+0.0000"),
        (14687835238.7, 2e10, "+14,687,835,238.7"),
        (-0.0, 0.5, "+0.0000"),
        (math.nan, 0.5, "n/a"),
    ],
)
def test_a_difference_has_the_digits_of_what_it_is_between(value: float, beside: float, expected: str) -> None:
    assert signed_number(value, beside) == expected


def test_half_an_interval() -> None:
    assert plus_minus(0.5, 0.3, 0.7, 1) == "0.5 ± 0.2"
    assert plus_minus(math.nan, 0.0, 0.0) == "n/a"
    assert plus_minus(0.5, math.nan, math.nan, 1) == "0.5", "seeds of one and the same value have no interval"


def test_names_in_brackets_are_shown_as_they_are() -> None:
    console = Console(width=100, file=io.StringIO())
    console.print(metric_table("data[old]/t.parquet", {"speed [km]/r2": 0.5, "speed [m]/r2": 0.25}))
    for name in ("data[old]/t.parquet", "speed [km]", "speed [m]"):
        assert name in console.file.getvalue()
    schema = Schema(features=[Number("x")], tasks=[Task("speed [km]", kind="regression")])
    row = {"structure": "mmoe", "seed": 0, "part": "test", "rows": 9, "speed [km]/r2": 0.5}
    console.print(
        Comparison(
            Path(), schema, [row | dict.fromkeys(("parameters", "multiply_adds", "rows_per_second"), 1.0)]
        ).table()
    )
    assert "speed [km]/r2" in console.file.getvalue()


def test_long_names_are_folded_and_keep_their_metric() -> None:
    task = "conversion of visitors " + "b" * 90
    schema = Schema(features=[Number("x")], tasks=[Task(task)], group="g")
    cost = dict.fromkeys(("parameters", "multiply_adds", "rows_per_second"), 1.0)
    found = {f"{task}/auc": 0.7, f"{task}/gauc": 0.6}
    comparison = Comparison(
        Path(), schema, [{"structure": "mmoe", "seed": 0, "part": "test", "rows": 9} | cost | found]
    )
    for table, least in ((comparison.table(), 1), (metric_table("", {f"{task}|{task}/auc": 0.7}), 2)):
        shown = io.StringIO()
        Console(width=80, file=shown).print(table)
        assert shown.getvalue().count("b") >= 90 * least
        assert "auc" in shown.getvalue()
        assert "…" not in shown.getvalue()


def test_unequal_numbers_of_seeds_are_told() -> None:
    """As where a comparison was gone on with for one structure, or stopped."""
    schema = Schema(features=[Number("x")], tasks=[Task("y")])
    cost = dict.fromkeys(("parameters", "multiply_adds", "rows_per_second"), 1.0)
    many = {"single_task": 3, "mmoe": 5, "boosting": 1}
    rows = [
        {"structure": name, "seed": seed, "part": "test", "rows": 9, "y/auc": 0.7} | cost
        for name, seeds in many.items()
        for seed in range(seeds)
    ]
    shown = io.StringIO()
    Console(width=200, file=shown).print(Comparison(Path(), schema, rows).table())
    assert "seeds: 3 to 5;" in shown.getvalue()
    assert "unequal numbers of seeds (single_task 3, mmoe 5)" in shown.getvalue()
    equal = Comparison(Path(), schema, [row for row in rows if row["seed"] < 3])
    assert equal.notes() == []
    Console(width=200, file=shown).print(equal.table())
    assert "seeds: 3;" in shown.getvalue()


def test_losses_are_not_called_gains() -> None:
    schema = Schema(features=[Number("x")], tasks=[Task("y")])
    cost = dict.fromkeys(("parameters", "multiply_adds", "rows_per_second"), 1.0)
    means = {"single_task": 0.7, "mmoe": 0.8, "shared_bottom": 0.6}
    rows = [
        {"structure": name, "seed": seed, "part": "test", "rows": 9, "y/auc": mean + 0.001 * (seed * len(name) % 3)}
        | cost
        for name, mean in means.items()
        for seed in range(4)
    ]
    one = SimpleNamespace(comparison=Comparison(Path(), schema, rows))
    (caption,) = (block.says for block in structures(one) if isinstance(block, Figure))
    assert "Better than the single-task models: mmoe on y/auc (+" in caption
    assert "Worse than the single-task models: shared_bottom on y/auc (-" in caption


def test_intervals_are_drawn_as_far_as_values_are_possible() -> None:
    """Student's t of two seeds knows no bounds, and pressed what was measured into a point of the picture."""
    schema = Schema(features=[Number("x")], tasks=[Task("y"), Task("z", kind="regression")])
    cost = dict.fromkeys(("parameters", "multiply_adds", "rows_per_second"), 1.0)
    rows = [
        {"structure": "mmoe", "seed": seed, "part": "test", "rows": 9, "y/auc": auc, "z/r2": auc - 1} | cost
        for seed, auc in enumerate((0.5, 0.9))
    ]
    one = SimpleNamespace(comparison=Comparison(Path(), schema, rows))
    (figure,) = (block for block in structures(one) if isinstance(block, Figure))
    ends = []
    for chart in figure.charts:
        (drawn,) = chart.spec["data"]["values"]
        ends.append((drawn["low"], drawn["value"], drawn["high"]))
    assert ends[0] == (0.0, pytest.approx(0.7), 1.0)
    assert ends[1][0] < -2, "what has no bound below has none"
    assert ends[1][1:] == (pytest.approx(-0.3), 1.0)


def test_a_tiny_error_is_not_shown_as_none_in_the_terminal() -> None:
    table = metric_table("scores", {"rate/rmse": 1.3456e-6, "rate/r2": 0.2}, {"rate/rmse": (1.2e-6, 1.5e-6)})
    cells = [[str(cell) for cell in column.cells] for column in table.columns]
    assert cells[2:] == [["1.35e-06", "0.2000"], ["1.2e-06 to 1.5e-06", ""]]
