"""The serving study: what is counted by hand, what is timed in turn, and what its tables say."""

from pathlib import Path

import pytest
import torch

from multigate.engine import Torch, arrays, made_up
from multigate.paper.ledger import Ledger
from multigate.paper.serving.account import ratio, tell
from multigate.paper.serving.study import ServingStudy, in_turn, layout_of, run, served
from multigate.paper.study import Site
from multigate.report.blocks import Table
from multigate.training.progress import Reporter

SMALL = ServingStudy(
    runs=2, tasks=(1, 3), bottom=(7, 6, 5), experts=2, tower=(4,), columns=2, vocabulary=9, numbers=3, batch=10
)
D = 2 * 3 + 2 * 16  # numbers, whether they are missing, embedded ids
NETWORK = D * 7 + 7 * 6 + 6 * 5
BIASES = 7 + 6 + 5
TOWER = 5 * 4 + 4
EMBEDDED = 2 * 9 * 16


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_multiply_adds_are_those_counted_by_hand(tasks: int) -> None:
    towers = tasks * TOWER
    below = D * 7 + 7 * 6
    assert {one.name: one.multiply_adds() for one in served(tasks, SMALL)} == {
        "single_task": tasks * (NETWORK + TOWER),
        "shared_bottom": NETWORK + towers,
        "soft": tasks * NETWORK + towers,
        "cross_stitch": tasks * NETWORK + tasks**2 * (7 + 6 + 5) + towers,
        "mmoe": below + 2 * 6 * 5 + tasks * 2 * 6 + tasks * 2 * 5 + towers,
    }


@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_parameters_are_those_counted_by_hand(tasks: int) -> None:
    towers = tasks * (5 * 4 + 4 + 4 + 1)
    network = NETWORK + BIASES
    assert {one.name: one.parameters() for one in served(tasks, SMALL)} == {
        "single_task": tasks * (EMBEDDED + network) + towers,
        "shared_bottom": EMBEDDED + network + towers,
        "soft": EMBEDDED + tasks * network + towers,
        "cross_stitch": EMBEDDED + tasks * network + 3 * tasks**2 + towers,
        "mmoe": EMBEDDED + D * 7 + 7 + 7 * 6 + 6 + 2 * (6 * 5 + 5) + tasks * 2 * 6 + towers,
    }
    assert {one.parameters(lambda model: model.embed) for one in served(1, SMALL)} == {EMBEDDED}


def test_what_is_served_answers_for_every_task() -> None:
    rows = arrays(made_up(layout_of(1, SMALL), 4))
    for one in served(3, SMALL):
        answers = [Torch(model)(rows).logits for model in one.models]
        assert sum(answer.shape[1] for answer in answers) == 3
        assert len(one.models) == (3 if one.name == "single_task" else 1)
        assert not any(model.training for model in one.models)


def test_works_are_timed_in_turn_after_a_round_that_is_not() -> None:
    done: list[str] = []
    found = in_turn({name: lambda name=name: done.append(name) for name in "abc"}, 2)
    assert "".join(done) == "abcabcabc"
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 2, "b": 2, "c": 2}
    assert all(second >= 0 for seconds in found.values() for second in seconds)


def test_ratios_are_taken_round_by_round() -> None:
    """A slow round slows both sides, and their ratio stays what it is."""
    one, other = {"row_ms": [2.0, 20.0, 6.6]}, {"row_ms": [1.0, 10.0, 3.0]}
    assert ratio(one, other, "row_ms") == (2.0, 2.0, pytest.approx(2.2))
    assert ratio({"multiply_adds": 6}, {"multiply_adds": 4}, "multiply_adds").text() == "1.50"


def planted(tasks: int, name: str, ms: float, counted: int) -> dict[str, object]:
    return {
        "structure": name, "tasks": tasks, "models": 1, "parameters": counted + 5, "embedded": 5,
        "multiply_adds": counted, "row_ms": [ms, 2 * ms], "batch_ms": [ms, 3 * ms], "batch": 10, "threads": 1,
        "machine": "none", "load": 1.0,
    }  # fmt: skip


def test_verdicts_follow_from_what_was_found() -> None:
    costs = {"single_task": 10, "shared_bottom": 1, "soft": 10, "cross_stitch": 10, "mmoe": 2}
    rows = [planted(1, name, 10.0, 10) for name in costs]
    rows += [planted(2, name, 10.0 + added, 10 + added) for name, added in costs.items()]
    (chapter,) = tell(rows)
    found = [block for block in chapter.told if isinstance(block, Table)][-1]
    verdicts = {line[0]: line[2:] for line in found.rows}
    twice = verdicts["L2-Constrained doubles the serving time: multiply-adds over Shared-Bottom, 2 tasks"]
    assert twice == (f"{20 / 11:.2f}", "as in the paper")
    little = verdicts["MMoE adds no noticeable cost: time of one row over Shared-Bottom, 2 tasks"]
    assert little == (f"{12 / 11:.2f}", "as in the paper")
    (more,) = [line for claim, line in verdicts.items() if "time of one row that one more task adds" in claim]
    assert more == ("20.0% (Shared-Bottom 10.0%)", "holds")
    rows = [row | {"multiply_adds": 99} if row["structure"] == "mmoe" and row["tasks"] == 2 else row for row in rows]
    found = [block for block in tell(rows)[0].told if isinstance(block, Table)][-1]
    assert "does not hold" in {line[3] for line in found.rows}
    assert "more than 1.25" in {line[3] for line in found.rows}


def test_the_study_goes_on_where_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    settings = SMALL.with_(threads=1)
    site = Site(Ledger(tmp_path, "serving", settings), tmp_path, torch.device("cpu"), Reporter(quiet=True))
    (chapter,) = run(settings, site)
    assert torch.get_num_threads() == before
    tables = [block for block in chapter.told if isinstance(block, Table)]
    assert [line[0] for line in tables[0].rows] == ["1", "3"]
    assert tables[0].head == ("tasks", "Single-Task", "Shared-Bottom", "L2-Constrained", "Cross-Stitch", "MMoE")
    assert all(row["threads"] == 1 for row in site.ledger.rows("tasks-3"))
    assert [name for name, _ in chapter.draw()] == ["serving"]
    kept = site.ledger.rows("tasks-1")
    site.ledger.place("tasks-3").unlink()
    run(settings, site)
    assert site.ledger.rows("tasks-1") == kept
    assert site.ledger.has("tasks-3")
