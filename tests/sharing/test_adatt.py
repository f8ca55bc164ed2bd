"""AdaTT against Li et al. 2023 as plain loops."""

import math

import pytest
import torch
from loops import loop_mlp, loop_softmax
from torch import Tensor

from multigate.errors import SettingError
from multigate.sharing import AdaTT

D, TASKS, T = 5, ("a", "b", "c"), 3
CASES = [
    pytest.param(AdaTT(experts=2, hidden=(6, 4)), id="several experts of each task"),
    pytest.param(AdaTT(experts=1, hidden=(6, 5, 4), levels=3), id="one expert of each task"),
    pytest.param(AdaTT(experts=2, shared=3, hidden=(6, 4)), id="shared experts"),
    pytest.param(AdaTT(experts=2, hidden=(6, 5, 4), levels=2), id="several layers of an expert"),
    pytest.param(AdaTT(experts=1, shared=2, hidden=(6, 4)), id="shared experts and single ones"),
    pytest.param(AdaTT(experts=1, shared=1, hidden=(6, 4)), id="single experts everywhere"),
]


def loop_level(level: torch.nn.Module, inputs: list[list[float]], m: int, shared: int) -> tuple[list, list]:
    """Outputs and weights of the units of one row, from their inputs."""
    owners = [k for k in range(T) for _ in range(m)] + [T] * shared
    experts = [loop_mlp(level.experts, e, inputs[owner]) for e, owner in enumerate(owners)]
    learnt = max(m, shared) > 1
    outputs, weights = [], []
    for unit, matrix in enumerate(level.gate.linear.weight.tolist()):
        gate = loop_softmax(matrix, inputs[unit])
        fused = [sum(gate[e] * expert[h] for e, expert in enumerate(experts)) for h in range(len(experts[0]))]
        for e, owner in enumerate(owners):
            if owner == unit:
                v = level.v[e].item() if learnt else 1.0
                fused = [value + v * experts[e][h] for h, value in enumerate(fused)]
                gate[e] += v
        outputs.append(fused)
        weights.append(gate)
    return outputs, weights


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("own", [False, True])
def test_every_unit_reads_all_experts_and_its_own_once_more(options: AdaTT, own: bool) -> None:
    module = options.build(D, TASKS)
    n = options.inputs(T)
    assert n == T + (options.shared > 0)
    x = torch.randn(4, n, D) if own else torch.randn(4, D)
    found = module(x)
    for b, row in enumerate(x.tolist()):
        read = row if own else [row] * n
        for number, level in enumerate(module.levels, 1):
            read, weights = loop_level(level, read, options.experts, options.shared)
            assert len(read) == (T if number == options.levels else n), "the last level has no shared unit"
            torch.testing.assert_close(found.gates[number - 1][b], torch.tensor(weights))
        torch.testing.assert_close(found.z[b], torch.tensor(read))


def test_constants_begin_uniform_within_the_root_of_1_over_m() -> None:
    module = AdaTT(experts=4, shared=9, hidden=(2, 1)).build(D, tuple(f"task {i}" for i in range(200)))
    first, last = (level.v.detach() for level in module.levels)
    assert (len(first), len(last)) == (809, 800)
    assert 0.49 < last.abs().max() <= math.sqrt(1 / 4)
    assert first[800:].abs().max() <= math.sqrt(1 / 9)
    torch.testing.assert_close(last.std(), torch.tensor(0.5 / math.sqrt(3)), atol=0.02, rtol=0)


@pytest.mark.parametrize(("tasks", "m", "shared"), [(2, 1, 0), (3, 2, 0), (20, 2, 3)])
def test_costs_are_those_of_the_documentation(tasks: int, m: int, shared: int) -> None:
    h, n, units = (6, 4), tasks * m + shared, tasks + (shared > 0)
    cost = D * h[0] + h[0] * h[1]
    gates = units * n * D + tasks * n * h[0]
    module = AdaTT(experts=m, shared=shared, hidden=h).build(D, tuple(f"task {i}" for i in range(tasks)))
    assert module.multiply_adds() == n * cost + gates + units * n * h[0] + tasks * n * h[1]
    constants = 0 if m == 1 and shared < 2 else 2 * tasks * m + shared
    assert sum(one.numel() for one in module.parameters()) == n * (cost + sum(h)) + gates + constants


def test_a_constant_that_falls_takes_a_task_off_its_own_expert() -> None:
    """What is reported is what is read: with v at minus the gate nothing of its own expert is left."""
    module = AdaTT(experts=2, hidden=(4,), levels=1).build(D, TASKS)
    x = torch.zeros(1, D)  # of which every gate makes 1/6 for each expert
    with torch.no_grad():
        module.levels[0].v.fill_(-1 / 6)
    own = torch.eye(T).repeat_interleave(2, dim=1)
    torch.testing.assert_close(module(x).gates[0][0], (1 - own) / 6)


def test_more_levels_than_layers_are_refused() -> None:
    with pytest.raises(SettingError, match=r"2 levels want at least as many widths in 'hidden', found 1: \(8,\)"):
        AdaTT(hidden=(8,))


def test_columns_for_gates_reach_every_level_and_no_expert() -> None:
    module, x = AdaTT(hidden=(6, 4)).build(D, TASKS, 2), torch.randn(4, D)
    seen: list[Tensor] = []
    module.levels[0].experts.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    near, far = module(x, torch.zeros(4, 2)), module(x, torch.ones(4, 2))
    assert torch.equal(*seen)
    assert all((a != b).any(-1).all() for a, b in zip(near.gates, far.gates, strict=True))
