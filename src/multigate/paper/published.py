"""What the paper printed (Ma et al. 2018): its tables as they stand, its curves and histograms as read off its figures.

The figures are vector graphics: their paths were read, with axes calibrated on the grid lines, good to about .001.
Curves and histograms are in ``published.json`` beside this file.
"""

import json
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple


class Figure2(NamedTuple):
    """Label correlation by cosine of the weights: the mean of 100 trials, and two standard deviations either way."""

    cosines: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


Curve = list[tuple[int, float]]
"""(step, loss), the mean of 200 runs."""


@cache
def _figures() -> dict[str, Any]:
    return json.loads(files("multigate.paper").joinpath("published.json").read_text(encoding="utf-8"))


def figure_2() -> Figure2:
    """Label correlation against the cosine of the weights."""
    found = _figures()["figure 2"]
    return Figure2(*(tuple(found[name]) for name in Figure2._fields))


def figure_3(cosine: float) -> Curve:
    """Loss of the Shared-Bottom model of 16 units by step, for tasks of cosine .5, .9 or 1."""
    return [(int(step), loss) for step, loss in _figures()["figure 3"][f"{cosine:g}"]]


def figure_4(structure: str, cosine: float) -> Curve:
    """Loss by step of ``shared_bottom`` (113 units), ``omoe`` or ``mmoe``, for tasks of cosine .5, .9 or 1."""
    return [(int(step), loss) for step, loss in _figures()["figure 4"][structure][f"{cosine:g}"]]


BIN = 1 / 30
"""Width of the bins of Figure 5."""


def figure_5(structure: str, cosine: float) -> list[int]:
    """Histogram of the final losses of the 200 runs behind ``figure_4``, from 0 on in bins of 1/30."""
    return list(_figures()["figure 5"][structure][f"{cosine:g}"])


def figure_6() -> dict[str, list[float]]:
    """Mean gate weights of the four experts, by task."""
    return dict(_figures()["figure 6"])


def table_3() -> dict[str, dict[str, list[float]]]:
    """Of engagement, by structure: ``auc`` and ``r2`` after 2, 4 and 6 million steps."""
    return dict(_figures()["table 3"])


class Lift(NamedTuple):
    """What a live experiment gained, in per cent, and the level of confidence, in per cent, at which it is not 0."""

    percent: float
    confidence: int


def table_4() -> dict[str, dict[str, Lift]]:
    """Live experiments by "structure over structure", each of ``engagement`` and ``satisfaction``."""
    return {pair: {task: Lift(*lift) for task, lift in lifts.items()} for pair, lifts in _figures()["table 4"].items()}


class Cell(NamedTuple):
    """AUC of the run with the best main task of 400, and the mean over all of them."""

    best: float
    mean: float


def table_1() -> dict[str, dict[str, Cell]]:
    """AUC on the census by method, of ``income`` and ``never_married``."""
    return _table("table 1")


def table_2() -> dict[str, dict[str, Cell]]:
    """AUC on the census by method, of ``college`` (in the paper "Education") and ``never_married``."""
    return _table("table 2")


def _table(name: str) -> dict[str, dict[str, Cell]]:
    rows = _figures()[name]
    return {method: {task: Cell(*cell) for task, cell in cells.items()} for method, cells in rows.items()}
