"""What the synthetic study tells: the paper's losses after as many steps as ours, whole runs and short ones."""

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from multigate.datasets.synthetic import Synthetic
from multigate.paper.account import Account
from multigate.paper.published import figure_2, figure_3, figure_4
from multigate.paper.synthetic import choices
from multigate.paper.synthetic.account import MODELS, tell
from multigate.paper.synthetic.study import structures
from multigate.paper.synthetic.toy import Training
from multigate.report.blocks import Table

COSINES = (0.5, 1.0)


def rows(steps: int, name: str, cosine: float, runs: int = 7) -> list[dict[str, Any]]:
    """Runs whose losses are about the paper's after ``steps``, or about 1 before its first point."""
    curve = figure_3(cosine) if name == "small_bottom" else figure_4(name, cosine)
    mean = max(((step, loss) for step, loss in curve if step <= steps), default=(0, 1.0))[1]
    about = {"steps": steps, "learning_rate": 0.001, "curve": [0.5] * (steps // 100)}
    return [
        about | {"seed": seed, "loss": mean * part} for seed, part in enumerate(np.linspace(0.99, 1.01, runs).tolist())
    ]


def told(steps: int, many: int = 7, diverged: str = "") -> dict[str, Account]:
    """The chapters; the loss of the first run of each cell of a structure may be no number."""
    trials = [
        {"cosine": p, "label_correlation": mean + off}
        for p, mean in zip(figure_2().cosines, figure_2().mean, strict=True)
        for off in (-0.01, 0.01)
    ]
    runs = {(name, p): rows(steps, name, p, many) for name in ("small_bottom", *MODELS) for p in COSINES}
    for (name, _), those in runs.items():
        if name == diverged:
            those[0] |= {"loss": math.nan, "curve": [math.nan] * (steps // 100)}
    return {one.anchor: one for one in tell(Synthetic(), trials, runs)}


def tables(chapter: Account) -> list[Table]:
    return [block for block in chapter.told if isinstance(block, Table)]


@pytest.mark.parametrize(("steps", "there"), [(10_000, 9_900), (9_900, 9_900), (5_000, 5_000), (700, 700)])
def test_losses_are_held_against_the_papers_after_as_many_steps(steps: int, there: int) -> None:
    chapter = told(steps)["figure-4"]
    losses, ratios = tables(chapter)
    printed = {(cosine, title): paper for cosine, title, paper, *_ in losses.rows}
    for cosine in COSINES:
        for name, title in (("shared_bottom", "Shared-Bottom"), ("omoe", "OMoE"), ("mmoe", "MMoE")):
            assert printed[f"{cosine:g}", title] == f"{dict(figure_4(name, cosine))[there]:.4f}"
    assert {row[-1] for row in ratios.rows} == {"reproduced"}
    bottoms, orders = tables(told(steps)["figure-3"])
    assert [row[1] for row in bottoms.rows] == [f"{dict(figure_3(cosine))[there]:.4f}" for cosine in COSINES]
    assert {row[-1] for row in orders.rows} <= {"reproduced"}
    assert f"{steps:,} steps" in losses.caption


def test_before_the_papers_curves_begin_nothing_is_compared() -> None:
    losses, ratios = tables(told(100)["figure-4"])
    assert {row[2] for row in losses.rows} == {""}
    assert {(row[1], row[-1]) for row in ratios.rows} == {("", "not compared")}


def test_few_runs_have_neither_an_interval_nor_a_verdict() -> None:
    chapters = told(10_000, many=5)
    (*_, shares), (losses, ratios) = tables(chapters["figure-5"]), tables(chapters["figure-4"])
    assert not any("[" in cell for table in (shares, losses, ratios) for row in table.rows for cell in row)
    assert {row[-1] for row in ratios.rows} == {"too few runs"}


def test_a_run_whose_loss_is_no_number_has_failed_and_is_said_to() -> None:
    chapters = told(10_000, diverged="mmoe")
    (*_, shares), (losses, ratios) = tables(chapters["figure-5"]), tables(chapters["figure-4"])
    assert {row[6] for row in shares.rows if row[0] == "MMoE"} == {"14.3% [2.6%, 51.3%]"}
    assert {row[3] for row in losses.rows if row[1] == "MMoE"} == {"n/a"}
    assert {row[-1] for row in ratios.rows if "MMoE" in row[0]} == {"a run diverged"}
    assert {name for one in chapters.values() for name, _ in one.draw()} == {"figure2", "figure3", "figure4", "figure5"}


def test_that_no_run_failed_does_not_say_that_none_ever_will() -> None:
    (shares,) = tables(told(10_000, many=20)["figure-5"])
    share = {(row[0], row[1]): row[6] for row in shares.rows}["MMoE", "1"]
    expected = stats.binomtest(0, 20).proportion_ci(method="wilson")
    assert share == f"0.0% [0.0%, {expected.high:.1%}]"


@pytest.mark.parametrize(("steps", "compared"), [(10_000, True), (5_000, False)])
def test_final_losses_are_held_against_those_of_runs_as_long(steps: int, compared: bool) -> None:
    chapter = told(steps)["figure-5"]
    (found,) = tables(chapter)
    assert {bool(row[at]) for row in found.rows for at in (3, 5, 7)} == {compared}
    assert all(row[at] for row in found.rows for at in (2, 4, 6))
    ((_, figure),) = chapter.draw()
    colours = [chart.spec["layer"][0]["encoding"]["color"] for chart in figure.charts]
    assert {name for one in colours for name in one["scale"]["domain"]} == ({"here", "paper"} if compared else {"here"})
    assert ("paper" in figure.says) == compared


@pytest.mark.parametrize(("steps", "there"), [(10_000, 9_900), (5_000, 5_000), (600, 600), (500, 500)])
def test_choices_are_held_against_the_papers_after_as_many_steps(steps: int, there: int) -> None:
    sizes = {name: structures()[name] for name in MODELS}
    made = choices.cells(sizes, Training(sizes["mmoe"], Synthetic(), (), (), (8,), steps, batch=64, standardise=True))
    found = {
        one: [row | {"learning_rate": rate} for rate in choices.RATES for row in rows(steps, one.structure, 0.5)]
        for one in made
    }
    (chapter,) = choices.tell(found)
    (block,) = tables(chapter)
    paper = block.rows[0][2:]
    assert paper[1::4] == tuple(f"{dict(figure_4(name, 0.5))[there]:.3f}" for name in MODELS)
    assert {bool(cell) for cell in (*paper[2::4], *paper[3::4])} == {steps == 10_000}
    assert {bool(cell) for row in block.rows for cell in row[2::4]} == {steps > choices.EARLY}
