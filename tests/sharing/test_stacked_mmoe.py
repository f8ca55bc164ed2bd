"""Stacked MMoE against its equations as plain loops."""

import pytest
import torch
from loops import loop_mlp, loop_softmax
from torch.utils.flop_counter import FlopCounterMode

from multigate.errors import SettingError
from multigate.sharing import StackedMMoE

D, TASKS = 5, ("a", "b", "c")


def mixture(weights: list[float], outputs: list[list[float]]) -> list[float]:
    return [sum(w * output[h] for w, output in zip(weights, outputs, strict=True)) for h in range(len(outputs[0]))]


@pytest.mark.parametrize("gates_read", ["level", "input"])
def test_stacked_mmoe_is_its_equations(gates_read: str) -> None:
    """Experts of the second level read mixtures of the first's, tasks of the second's; gates read x or the level."""
    module = StackedMMoE(experts=2, hidden=(4, 3), gates_read=gates_read).build(D, TASKS)
    x = torch.randn(4, D)
    shared = module(x)
    first, second = module.levels
    for b, row in enumerate(x.tolist()):
        below = [loop_mlp(first.experts, i, row) for i in range(2)]
        between = [loop_softmax(first.gate.linear.weight[j].tolist(), row) for j in range(2)]
        read = [mixture(between[j], below) for j in range(2)]
        above = [loop_mlp(second.experts, j, read[j]) for j in range(2)]
        v = row if gates_read == "input" else mixture([0.5, 0.5], read)
        for k in range(3):
            gate = loop_softmax(second.gate.linear.weight[k].tolist(), v)
            torch.testing.assert_close(shared.z[b, k], torch.tensor(mixture(gate, above)))
            torch.testing.assert_close(shared.gates[1][b, k], torch.tensor(gate))
        torch.testing.assert_close(shared.gates[0][b], torch.tensor(between))


def test_one_level_is_mmoe_and_levels_name_their_readers() -> None:
    assert StackedMMoE(levels=1, experts=2).build(D, TASKS).wiring[0].readers == TASKS
    wiring = StackedMMoE(levels=3, experts=2, hidden=(4, 4, 4)).build(D, TASKS).wiring
    assert [level.sources for level in wiring] == [(f"expert {n}.0", f"expert {n}.1") for n in (1, 2, 3)]
    assert [level.readers for level in wiring] == [wiring[1].sources, wiring[2].sources, TASKS]


def test_layers_are_dealt_out_to_levels() -> None:
    module = StackedMMoE(levels=2, hidden=(8, 6, 4)).build(D, TASKS)
    shapes = [[tuple(layer.weight.shape) for layer in level.experts.layers] for level in module.levels]
    assert shapes == [[(8, 8, D), (8, 6, 8)], [(8, 4, 6)]]
    with pytest.raises(SettingError, match="3 levels want at least as many widths"):
        StackedMMoE(levels=3, hidden=(8, 6))


def test_penalties_of_all_levels_add_up() -> None:
    module = StackedMMoE(entropy_penalty=0.1).build(D, TASKS)
    x = torch.randn(4, D)
    shared = module(x)
    entropies = [-(gate * gate.log()).sum(-1).mean() for gate in shared.gates]
    torch.testing.assert_close(shared.penalty, 0.1 * sum(entropies))


def test_upper_experts_run_on_the_rows_that_tasks_read_them_for() -> None:
    module = StackedMMoE(experts=16, hidden=(64, 64), gating="top_k").build(40, TASKS).eval()
    x = torch.randn(2048, 40)
    with FlopCounterMode(display=False) as counter:
        many = module(x).z
    assert 0.8 * module.multiply_adds() < counter.get_total_flops() / 2 / 2048 <= module.multiply_adds()
    few = torch.cat([module(part).z for part in x.split(4)])
    torch.testing.assert_close(many, few, atol=1e-5, rtol=1e-4)
    each, gates = 64 * 64, sum(level.gate.multiply_adds() for level in module.levels)
    below = 16 * 40 * 64 + 16 * 16 * 64  # 16 readers read nearly all
    assert module.multiply_adds() == gates + below + 6 * each + 3 * 6 * 64
