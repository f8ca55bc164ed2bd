"""The study of synthetic tasks: the paper's sizes, what is chosen and told, a small run that is stopped on its way."""

import json
import signal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from multigate.analysis.workers import Workers
from multigate.datasets.synthetic import Synthetic
from multigate.paper.ledger import Ledger
from multigate.paper.published import figure_2, figure_5
from multigate.paper.study import Site
from multigate.paper.synthetic.account import quantile_of
from multigate.paper.synthetic.cells import PILOT_SEEDS, best_rate, cell, choose_rates, gate_divergence
from multigate.paper.synthetic.study import SyntheticStudy, counted_weights, equal_units, structures
from multigate.paper.synthetic.toy import Toy, Training
from multigate.training.progress import Reporter
from processes import Stop, run

TINY = (
    "runs=3",
    "steps=100",
    "pilot=2",
    "batch=4",
    "trials=3",
    "points=2000",
    "cosines=[0.5]",
    "data.size=10",
    "workers=1",
)


def words(folder: Path) -> list[object]:
    return ["reproduce", "synthetic", "--out", folder, *(word for change in TINY for word in ("--set", change))]


def test_sizes_are_the_papers() -> None:
    assert counted_weights() == 13_056
    assert equal_units() == 113
    made = {name: Toy(options, 100, 2, (8,)) for name, options in structures().items()}
    shapes = {name: [tuple(p.shape) for p in toy.parameters()] for name, toy in made.items()}
    assert (8, 16, 100) in shapes["mmoe"]  # experts
    assert (2, 8, 100) in shapes["mmoe"]  # a gate per task
    assert (1, 8, 100) in shapes["omoe"]  # one for all
    assert (1, 113, 100) in shapes["shared_bottom"]
    assert (1, 16, 100) in shapes["small_bottom"]
    assert made["mmoe"].multiply_adds() == 13_056 + 2 * 100 * 8 + 2 * 8 * 16  # and the gates and mixtures
    assert made["shared_bottom"].multiply_adds() == 113 * 100 + 2 * 113 * 8


def test_the_rate_with_the_least_loss_is_taken() -> None:
    rows = [
        {"learning_rate": rate, "losses": losses}
        for rate, losses in ((0.1, [0.1, float("nan")]), (0.01, [0.9, 0.2]), (0.01, [0.1, 0.2]), (0.001, [0.3, 0.3]))
    ]
    assert best_rate(rows) == 0.001
    assert best_rate(rows[:3]) == 0.01


def test_where_there_is_no_choice_of_rates_nothing_is_trained(tmp_path: Path) -> None:
    site = Site(Ledger(tmp_path, "synthetic", SyntheticStudy()), tmp_path, torch.device("cpu"), Reporter(quiet=True))
    training = Training(structures(10)["mmoe"], Synthetic(size=10), (), (), (8,), 100, 4, True)
    made = cell("paper", "mmoe", training.structure, training)
    with Workers(1) as workers:
        assert choose_rates([made], (0.3,), 2, site, workers) == {made.name: 0.3}
    assert not (tmp_path / "parts").exists()


def test_gates_diverge_as_scipy_has_it() -> None:
    gates = torch.softmax(torch.randn(2, 50, 3, 4), -1)
    pairs = [(row, i, j) for row in range(50) for i, j in ((0, 1), (0, 2), (1, 2))]
    expected = [
        np.mean([jensenshannon(of_run[row, i], of_run[row, j], base=2) ** 2 for row, i, j in pairs])
        for of_run in gates.numpy()
    ]
    assert gate_divergence(gates) == pytest.approx(expected, rel=1e-5)
    assert gate_divergence(gates[:, :, :1]) == [None, None]


@pytest.mark.parametrize(
    ("name", "cosine", "median", "most"),
    [("mmoe", 0.5, 0.062, 0.126), ("omoe", 1.0, 0.055, 0.121), ("shared_bottom", 0.9, 0.180, 0.471)],
)
def test_quantiles_of_a_histogram(name: str, cosine: float, median: float, most: float) -> None:
    counts = figure_5(name, cosine)
    assert quantile_of(counts, 0.5) == pytest.approx(median, abs=0.001)
    assert quantile_of(counts, 0.9) == pytest.approx(most, abs=0.001)
    assert quantile_of([0, 2, 2], 0.5) == pytest.approx(2 / 30)


def test_a_study_goes_on_where_it_was_stopped_and_tells_all(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(words(whole), tmp_path, timeout=300).code == 0
    # after the pilots and a cell, within the runs of the next
    stopped = run(words(cut), tmp_path, Stop("paper.synthetic.toy:_Work.step", 100 * 5 + 50), timeout=300)
    assert stopped.code == 128 + signal.SIGINT
    assert "the same command goes on" in stopped.told
    done = {path.name for path in (cut / "parts").iterdir()}
    assert "paper-omoe-0.5-2-pilot.parquet" in done
    assert "paper-small_bottom-0.5-2-runs.parquet" not in done
    assert any(name.endswith(".checkpoint") for name in done)
    ended = run(words(cut), tmp_path, timeout=300)
    assert ended.code == 0, ended.told
    a, b = (pq.read_table(folder / "results.parquet").drop_columns(["seconds"]) for folder in (whole, cut))
    assert a.equals(b)

    rows = a.to_pylist()
    runs = [row for row in rows if row["part"].endswith("-runs")]
    assert len(runs) == 4 * 3
    assert all(len(row["curve"]) == 1 and row["loss"] == row["losses"][0] for row in runs)
    assert {row["seed"] for row in runs} == {0, 1, 2}
    pilots = [row for row in rows if row["part"].endswith("-pilot")]
    assert {row["seed"] for row in pilots} == {PILOT_SEEDS, PILOT_SEEDS + 1}
    assert sorted({row["learning_rate"] for row in pilots}) == [0.0001, 0.001, 0.01]
    trials = [row for row in rows if row["part"] == "figure2"]
    for cosine, low, high in zip(figure_2().cosines, figure_2().low, figure_2().high, strict=True):
        own = [row["label_correlation"] for row in trials if row["cosine"] == cosine]
        assert low - 0.05 < np.mean(own) < high + 0.05

    text = (whole / "page.html").read_text(encoding="utf-8")
    charts = json.loads(text.partition('id="page-charts">')[2].partition("</script>")[0])["specs"]
    assert len(charts) == 1 + 1 + 1 + 3
    settings = text.partition('id="settings"')[2]
    for row in (
        '<th scope="row">steps</th><td>100</td>',
        "default 10000",
        "0.5, 0.9, 1.0",
        '<th scope="row">data.scale</th><td>0.638</td>',
    ):
        assert row in "".join(line.strip() for line in settings.splitlines()), row
    pictures = {path.name for path in (whole / "figures").iterdir()}
    assert pictures == {f"figure{at}.{kind}" for at in (2, 3, 4, 5) for kind in ("svg", "png")}


def test_settings_that_cannot_be_are_told(tmp_path: Path) -> None:
    for change, expected in (
        ("steps=150", "steps"),
        ("batches=3", "batch"),
        ("data.scale=0", "data.scale"),
        ("cosines=[0.3]", "0.9"),
        ("rates=[]", "rates"),
        ("rates=[-0.1]", "rates"),
        ("rates=0.1", "rates: Input should be a list (found 0.1); put [ ] around it"),
        ("data.known=[0.5]", "known"),
    ):
        ended = run(["reproduce", "synthetic", "--out", tmp_path / "x", "--set", change], tmp_path)
        assert ended.code == 2
        assert expected in ended.told
    ended = run(["reproduce", "syntetic", "--out", tmp_path / "x"], tmp_path)
    assert ended.code == 2
    assert "did you mean 'synthetic'?" in ended.told
    assert not (tmp_path / "x").exists()
