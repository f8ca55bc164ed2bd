"""The benchmarks measure what they say: counted work against torch's own count, other processes against real ones."""

import hashlib
import math
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import gpu
import multigate as mg
import quiet
import results
import roofline
import suite
import tutorial
import zipf
from census import need_data
from growth import THREE, Cost, one_more
from multigate.training.fit import Fit
from quiet import Spread, Taken, Watch
from step_profile import GAP, Profile, group_of, operators
from steps import prepared_rows

BENCHMARKS = Path(suite.__file__).parent
ROWS = 8

# Work that is counted


def counted(work: Callable[[], object]) -> int:
    """Multiply-adds by torch's own count."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("cardinalities", "frozen"), [([7, 5], False), ([], True)], ids=["embedded", "numbers alone"])
def test_a_step_is_three_times_the_forward_less_the_gradient_of_a_frozen_input(
    cardinalities: list[int], frozen: bool
) -> None:
    model = tutorial.MMoE(cardinalities, num_dense=6, num_experts=3, embedding_dim=4)
    sparse = torch.zeros(ROWS, len(cardinalities), dtype=torch.long)
    dense = torch.randn(ROWS, 6)

    def step() -> None:
        sum(output.sum() for output in model(sparse, dense)).backward()  # type: ignore[union-attr]

    d_in = 6 + 4 * len(cardinalities)
    first = d_in * (3 * 128 + 2 * 3)  # experts and gates are what reads x
    forward = first + 3 * 128 * 64 + 2 * (64 * 32 + 32)
    with torch.no_grad():
        assert counted(lambda: model(sparse, dense)) == ROWS * forward
    assert counted(step) == roofline.step_multiply_adds(forward, ROWS, frozen=first if frozen else 0)


def test_a_model_counts_its_multiply_adds_as_one_would_by_hand() -> None:
    sharing = mg.MMoE(experts=3, hidden=(4, 2)).build(10, ("a", "b"))
    experts, gates, mixing = 3 * (10 * 4 + 4 * 2), 2 * 10 * 3, 2 * 3 * 2
    work = roofline.step_work(sharing.multiply_adds(), 100)
    assert work == roofline.Work(3 * 100 * (experts + gates + mixing))


def test_adam_reads_and_writes_what_it_holds() -> None:
    weight = torch.nn.Parameter(torch.randn(5, 3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    state = optimizer.state[weight]
    held = [weight, state["exp_avg"], state["exp_avg_sq"]]
    assert weight.grad is not None
    assert roofline.adam_bytes(weight.numel()) == (
        sum(t.nbytes for t in [*held, weight.grad]),
        sum(t.nbytes for t in held),
    )


def test_a_limit_is_work_over_what_the_machine_does_a_second() -> None:
    machine = roofline.Machine({"float32": 2e9, "bfloat16": 8e9}, read=1e9, write=5e8)
    work = roofline.step_work(1_000, 1_000, (1_000_000, 500_000), (1_000_000, 0))
    assert work == roofline.Work(3_000_000, 2_000_000, 500_000)
    assert roofline.limit(work, machine, "float32") == pytest.approx((1.5, 3.0))
    assert roofline.limit(work, machine, "bfloat16").gemm == pytest.approx(0.375)


def test_the_best_of_several_looks_at_the_machine_is_its_limit() -> None:
    slow = roofline.Machine({"float32": 1.0, "bfloat16": 5.0}, 3.0, 2.0)
    other = roofline.Machine({"float32": 2.0, "bfloat16": 4.0}, 1.0, 4.0)
    assert roofline.best([slow, other]) == roofline.Machine({"float32": 2.0, "bfloat16": 5.0}, 3.0, 4.0)


# Who else was busy

BURN = """
import sys, time
while time.process_time() < 0.5: pass
print("burnt", flush=True)
sys.stdin.read()
"""
BURNT = 0.4
"""Seconds of CPU that such a process has surely had, whatever else runs on the machine."""


def burn() -> None:
    end = time.process_time() + BURNT
    while time.process_time() < end:
        pass


def test_what_this_process_does_is_its_own() -> None:
    before = quiet.own_seconds()
    burn()
    assert quiet.own_seconds() - before >= BURNT


def test_what_its_children_do_is_its_own_while_they_live_and_once_they_ended() -> None:
    before = quiet.own_seconds()
    with subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert quiet.own_seconds() - before >= BURNT
    assert quiet.own_seconds() - before >= BURNT


def test_what_a_stranger_does_is_not_its_own() -> None:
    before, busy = quiet.own_seconds(), quiet.busy_seconds()
    # the shell ends at once, which leaves its child to nobody of ours; the pipe is read until that has ended too
    subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -c {shlex.quote(BURN)} </dev/null &"],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert quiet.own_seconds() - before < BURNT
    assert quiet.busy_seconds() - busy >= BURNT - 0.1  # the system samples it, tick by tick


def test_the_share_of_others_is_what_was_busy_and_not_our_own() -> None:
    ticks = 2 * quiet.TICK
    assert quiet.share_of_others(busy=3 + ticks, own=1, seconds=4, cores=2) == pytest.approx(0.25)
    assert quiet.share_of_others(busy=1, own=1, seconds=4, cores=2) == 0
    assert quiet.share_of_others(busy=ticks, own=0, seconds=0.001, cores=2) == 0


def watch(others: list[float], patience: float = 100.0, seconds: float = 1.0) -> tuple[Watch, list[str]]:
    """A watch on a machine where others take these shares, run after run, and the runs of work there were."""
    shares, ran = iter(others), []

    def once(work: Callable[[], Any]) -> Taken[Any]:
        value = work()
        if value is None:  # waiting
            return Taken(None, 0.5, 0.0)
        ran.append(value)
        return Taken(value, seconds, next(shares))

    return Watch(patience, once), ran


def test_a_run_that_nobody_disturbed_is_taken_once() -> None:
    watched, ran = watch([0.01])
    assert not watched.take(lambda: "work").disturbed
    assert ran == ["work"]


def test_a_disturbed_run_is_taken_again_and_the_quiet_one_counts() -> None:
    watched, ran = watch([0.5, 0.4, 0.02])
    found = watched.take(lambda: "work")
    assert (found.others, found.disturbed, len(ran)) == (0.02, False, 3)


def test_a_run_that_stays_disturbed_is_marked_and_the_least_disturbed_one_counts() -> None:
    watched, ran = watch([0.5, 0.2, 0.4, 0.3, 0.0])
    found = watched.take(lambda: "work")
    assert (found.others, found.disturbed, len(ran)) == (0.2, True, quiet.TRIES)
    assert quiet.spread([found], lambda _: 7.0).text(1) == f"7.0 {quiet.MARK}"


def test_patience_ends() -> None:
    watched, ran = watch([0.5] * 100, patience=3.0)
    for _ in range(5):
        watched.take(lambda: "work")
    assert len(ran) < 5 + 3  # no more than its seconds are spent on repeating


def test_sides_take_turns() -> None:
    watched, ran = watch([0.0] * 6)
    found = watched.in_turn({"a": lambda: "a", "b": lambda: "b"}, 3)
    assert ran == ["a", "b"] * 3
    assert [len(runs) for runs in found.values()] == [3, 3]


def test_a_spread_is_median_and_ends() -> None:
    runs = [Taken(value, 1.0, 0.0) for value in (3_000.0, 1_000.0, 2_500.0)]
    assert quiet.spread(runs, float) == Spread(2_500.0, 1_000.0, 3_000.0, False, 3)
    assert quiet.spread(runs, float).text() == "2,500 (1,000 to 3,000)"
    assert quiet.spread(runs, lambda one: one / 1e4).text(2) == ".25 (.10 to .30)"


# Tables between markers

PAGE = """# Results

Prose, with a figure of 31.

<!-- one -->
| old |
<!-- /one -->

More prose.
<!-- two -->
<!-- /two -->
The end \\1.
"""


def test_new_blocks_leave_prose_and_other_blocks_alone() -> None:
    changed = results.replaced(PAGE, {"one": results.block("one", "| new \\1 \\g<name> |\n")})
    assert changed == PAGE.replace("| old |", "| new \\1 \\g<name> |")
    assert results.replaced(changed, results.blocks(PAGE)) == PAGE


def test_a_block_without_a_place_is_told() -> None:
    with pytest.raises(ValueError, match=r"RESULTS\.md has no place for three; add the lines <!-- three -->"):
        results.replaced(PAGE, {"three": results.block("three", "")})


def test_a_table_shown_is_a_block_with_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    results.show("one", results.table(["", "ms"], [["a", 1], ["b", 2]]))
    found = results.blocks(capsys.readouterr().out)
    assert found.keys() == {"one"}
    assert "`python benchmarks/" in found["one"]
    assert found["one"].endswith("\n|  | ms |\n|---|---|\n| a | 1 |\n| b | 2 |\n<!-- /one -->")


def test_every_table_of_the_scripts_has_a_place_in_the_results() -> None:
    shown = {
        name
        for path in BENCHMARKS.glob("*.py")
        for name in re.findall(r"\bshow\(\s*\"([\w-]+)\"", path.read_text(encoding="utf-8"))
    }
    assert shown
    assert not shown - results.blocks(results.RESULTS.read_text(encoding="utf-8")).keys()


# The whole


def test_missing_data_is_said_clearly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MULTIGATE_DATA", raising=False)
    with pytest.raises(SystemExit, match="MULTIGATE_DATA is not set; set it to the folder that holds census-income/"):
        need_data()
    monkeypatch.setenv("MULTIGATE_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"which holds no census-income/train\.parquet"):
        need_data()
    told = suite.measured(suite.Part("train.py", census=True), [], quick=True, only=None)
    assert told == "train.py: set MULTIGATE_DATA to the folder that holds census-income/"


def test_a_script_that_fails_is_told_and_its_table_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(suite, "FOLDER", tmp_path)
    monkeypatch.setattr(suite, "RESULTS", tmp_path / "RESULTS.md")
    (tmp_path / "RESULTS.md").write_text(PAGE, encoding="utf-8")
    shown = results.block("two", "| half |")
    (tmp_path / "half.py").write_text(f"import sys\nprint({shown!r})\nsys.exit(3)", encoding="utf-8")
    told = suite.measured(suite.Part("half.py"), [], quick=False, only=None)
    assert told == "half.py ended with status 3"
    assert suite.RESULTS.read_text(encoding="utf-8") == results.replaced(PAGE, {"two": shown})
    assert suite.measured(suite.Part("none.py"), [], quick=False, only=None) == "none.py: there is no such script"


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("tutorial.py", "4b0a2defa235246d18a4a941ae6f0cfc44f9666e82fba8b28c2cd46877166b37"),
        ("tutorial_wide.py", "3238ae7d6e411635a52f17dd5d148cf26115f7bfc1d1c14185f428291135b5d3"),
    ],
)
def test_the_yardstick_is_as_it_always_was(name: str, digest: str) -> None:
    assert hashlib.sha256((BENCHMARKS / name).read_bytes()).hexdigest() == digest, "every ratio is against it"


# What a step is made of


def test_operators_are_put_into_groups() -> None:
    x, weight = torch.randn(ROWS, 16), torch.randn(16, 16)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        for _ in range(2):
            gate = torch.softmax(x @ weight, dim=1).view(ROWS, 4, 4)
            torch.bmm(gate, torch.randn(ROWS, 4, 3))
            torch.bmm(torch.randn(3, 4, 5), torch.randn(3, 5, 2))
    events = record.key_averages(group_by_input_shape=True)
    found = operators(events, 2, ROWS)
    assert 2e3 * sum(one.milliseconds for one in found) == pytest.approx(sum(one.self_cpu_time_total for one in events))
    calls = Counter({(one.name, one.group): one.calls for one in found})
    assert calls["aten::mm", "matmul"] == 1
    assert calls["aten::_softmax", "softmax, mix"] == 1
    assert calls["aten::bmm", "softmax, mix"] == 1
    assert calls["aten::bmm", "matmul"] == 1


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("aten::addmm", "matmul"),
        ("aten::_fused_adam_", "optimiser"),
        ("aten::embedding_dense_backward", "embeddings: gather, scatter"),
        ("aten::threshold_backward", "activation"),
        ("aten::copy_", "copies and casts"),
        ("aten::binary_cross_entropy_with_logits", "loss"),
        ("aten::view", "views"),
        ("aten::mul", "other arithmetic"),
        ("AddmmBackward0", "the rest"),
    ],
)
def test_the_group_of_an_operator(name: str, group: str) -> None:
    assert group_of(name, (), ROWS) == group


def test_what_no_operator_accounts_for_is_pythons() -> None:
    found = Profile(8.0, 10.0, ())
    assert found.shares() == {GAP: 10.0}


# Rows that are drawn


def test_ids_follow_zipf_and_all_of_them_occur() -> None:
    law = zipf.Law(columns=3, vocabulary=15_000, numbers=2)
    rows = zipf.draw(law, 6_000, every_id=True)
    drawn = zipf.draw(law, 40_000, seed=1)
    for name in ("id_0", "id_1", "id_2"):
        assert set(rows[name].to_pylist()) == set(range(law.ids))
        counts = np.sort(np.bincount(drawn[name].to_numpy(), minlength=law.ids))[::-1]
        expected = [40_000 * math.log((r + 1) / r) / math.log(law.ids + 1) for r in (1, 2, 3)]
        assert counts[:3] == pytest.approx(expected, rel=0.05)


def test_training_and_test_rows_have_the_same_signal() -> None:
    law = zipf.Law(columns=1, vocabulary=20, numbers=0, tasks=2)
    rates = []
    for seed in (0, 1):
        rows = zipf.draw(law, 40_000, seed)
        ids, labels = rows["id_0"].to_numpy(), rows["task_1"].to_numpy()
        rates.append([labels[ids == one].mean() for one in range(law.ids)])
    assert np.ptp(rates[0]) > 0.2
    assert np.corrcoef(rates)[0, 1] > 0.9


# What one more costs


def test_one_more_task_is_told_as_a_share_of_a_network_of_its_own() -> None:
    def cost(name: str, at: int, figure: float) -> Cost:
        return Cost(name, at, int(100 * figure), Spread(figure, figure, figure), Spread(2 * figure, 0, 0))

    slopes = dict(zip(THREE, (10.0, 1.0, 2.0), strict=True))
    found = [cost(name, at, 50 + slope * at) for name, slope in slopes.items() for at in (1, 4)]
    told = one_more(found)
    assert "Shared-Bottom 10% of the multiply-adds, 10% of the time of a step, 10% of that of predicting" in told
    assert "MMoE 20% of the multiply-adds, 20% of the time of a step, 20% of that of predicting" in told


# Another device


class Elsewhere(gpu.Ground):
    """What is trained on the device begins a little beside."""

    def fit(self, one: mg.Experiment, device: torch.device | None = None) -> Fit:
        fit = super().fit(one, device)
        if device is None:
            with torch.no_grad():
                fit.model.towers.layers[0].weight.mul_(1.5)
        return fit


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> gpu.Ground:
    folder = tmp_path_factory.mktemp("gpu")
    rows = zipf.draw(gpu.LAW, 2 * gpu.STEPS * gpu.BATCH, every_id=True)
    tables = {"train": rows, "valid": rows.slice(0, 100)}
    return gpu.Ground(prepared_rows(gpu.experiment(), folder / "prepared", tables), folder, torch.device("cpu"))


@pytest.mark.parametrize("compared", [gpu.against_processor, gpu.scored])
def test_a_device_that_computes_something_else_is_told(ground: gpu.Ground, compared: Callable[..., gpu.Check]) -> None:
    assert compared(ground, "mmoe", gpu.experiment()).passed
    assert not compared(Elsewhere(*ground), "mmoe", gpu.experiment()).passed


def test_a_checkpoint_that_is_not_read_is_told(ground: gpu.Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.put_back(ground).passed
    monkeypatch.setattr(Fit, "restore", lambda fit: None)
    assert not gpu.put_back(ground).passed
    assert not gpu.Check("no number", math.nan, 1.0).passed
