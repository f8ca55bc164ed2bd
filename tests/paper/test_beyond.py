"""Beyond the paper: cells of one budget, and what is told of made-up results with a known answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from multigate.datasets.synthetic import Synthetic
from multigate.paper.synthetic import beyond, choices
from multigate.paper.synthetic.cells import Cell
from multigate.paper.synthetic.draws import Draws
from multigate.paper.synthetic.toy import Training, train_toys
from multigate.report.blocks import Table
from multigate.sharing import MMoE, SharedBottom

MMOE = MMoE(experts=8, hidden=(16,))
TRAINING = Training(MMOE, Synthetic(), (), (), (8,), 1_000, 64, True)
CELLS = beyond.cells(MMOE, TRAINING)


def made_up(cell: Cell, level: float, gates: float | None, runs: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    losses = level + 0.01 * random.normal(size=(runs, cell.tasks))
    return [
        {"losses": own, "gate_divergence": gates and gates + seed / 1e4} for seed, own in enumerate(losses.tolist())
    ]


def test_every_structure_costs_what_mmoe_does_for_as_many_tasks() -> None:
    assert {one.structure for one in CELLS} == set(beyond.TITLES)
    for one in CELLS:
        own = one.training._replace(structure=MMOE)
        near = 0.08 if one.tasks > 4 else 0.025  # many narrow experts: a unit more is a step
        assert one.training.multiply_adds() == pytest.approx(own.multiply_adds(), rel=near), one.name


@pytest.mark.parametrize("structure", beyond.TITLES)
@pytest.mark.parametrize("biases", [False, True])
def test_every_structure_trains_with_and_without_biases(structure: str, biases: bool, tmp_path: Path) -> None:
    (one,) = (cell for cell in CELLS if cell.structure == structure and cell.group == "axis" and cell.cosine == 0.5)
    training = one.training._replace(seeds=(0, 1), rates=(0.01, 0.01), steps=100, batch=16, biases=biases)
    trained = train_toys(training, tmp_path / "checkpoint", torch.device("cpu"))
    assert trained.losses.isfinite().all()


def test_many_tasks_are_equally_related() -> None:
    for one in (cell for cell in CELLS if cell.group == "tasks"):
        gram = one.training.data.gram()
        assert gram.shape == (one.tasks, one.tasks)
        assert (gram[~np.eye(one.tasks, dtype=bool)] == 0.5).all()
    assert {one.tasks for one in CELLS if one.group == "tasks"} == {2, 4, 8, 16}


def test_all_cells_of_a_structure_take_the_rate_of_its_pilot() -> None:
    pilots = beyond.pilots(CELLS)
    assert sorted(one.structure for one in pilots) == sorted(beyond.TITLES)
    chosen = {one.name: at / 100 for at, one in enumerate(pilots)}
    rates = beyond.rates_of(CELLS, chosen)
    assert set(rates) == {one.name for one in CELLS}
    for one in CELLS:
        assert rates[one.name] == next(chosen[pilot.name] for pilot in pilots if pilot.structure == one.structure)


@pytest.mark.parametrize("runs", [10, 4])
def test_gains_and_gates_are_told_as_they_are(runs: int) -> None:
    levels = {"single_task": 0.4, "shared_bottom": 0.8, "mmoe": 0.1}
    found = {}
    for one in CELLS:
        apart = (1 - abs(one.cosine)) / 2 + 0.1
        found[one] = made_up(one, levels.get(one.structure, 0.3), apart if "mmoe" in one.structure else None, runs)
    axis, gates, tasks = beyond.tell(found)
    expected = {"Shared-Bottom": "loses", "MMoE": "gains"}
    for account, values in ((axis, beyond.AXIS), (tasks, beyond.MANY)):
        table = next(block for block in account.told if isinstance(block, Table) and block.head[0] == "claim")
        verdicts = {row[0].partition(",")[0]: row[3] for row in table.rows}
        assert verdicts == {name: said if runs == 10 else "too few runs" for name, said in expected.items()}
        assert len(table.rows) == 2 * len(values)
    claim = next(block for block in gates.told if isinstance(block, Table) and block.head[0] == "claim")
    assert [row[0].partition(":")[0] for row in claim.rows] == ["MMoE", "MMoE, top 2"]
    holds = "holds" if runs == 10 else "too few runs"
    assert all(row[2].startswith("+0.500") and row[3] == holds for row in claim.rows)
    drawn = dict(gates.draw())
    assert "-1: 0.10" in drawn["beyond_gates"].charts[0].spec["description"]


def test_choices_differ_from_ours_in_one_thing() -> None:
    made = choices.cells({"shared_bottom": SharedBottom(hidden=(113,)), "mmoe": MMOE}, TRAINING)
    plain = {one.structure: one.training for one in made if one.group == "as here"}
    for one in made:
        base, data = plain[one.structure], one.training.data
        differing = {name for name in Training._fields if getattr(one.training, name) != getattr(base, name)}
        of_data = {name for name in type(data).model_fields if getattr(data, name) != getattr(base.data, name)}
        expected = set(choices.OTHERS[one.group])
        assert differing - {"data"} | of_data == expected


def test_a_pool_of_rows_is_gone_round() -> None:
    draws = Draws(Synthetic(size=3), [1, 2], pool=20)
    batches = [draws.train(block, 5, 8) for block in range(4)]
    for run in range(2):
        rows = np.unique(np.concatenate([one.x[run].reshape(-1, 3).numpy() for one in batches]), axis=0)
        assert len(rows) == 20
    x, y = batches[0].x[0].reshape(-1, 3), batches[0].y[0].reshape(-1, 2)
    same = (x[:, None] == x[None]).all(-1)
    assert same.sum() > len(x), "some rows came twice"
    assert (y[:, None] == y[None]).all(-1)[same].all(), "with the labels they had"
    assert np.intersect1d(draws.held_out(500).x.numpy(), x.numpy()).size == 0
