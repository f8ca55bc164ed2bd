"""MMoE and OMoE with sparse gates, exclusive experts and penalties."""

import math

import pytest
import torch
from loops import loop_mlp
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multigate.errors import ExperimentError, SettingError
from multigate.nn.gate import Gate
from multigate.nn.sparse_gate import DSelectKGate, NoisyTopKGate, TopKGate
from multigate.sharing import MMoE, OMoE

D, TASKS = 5, ("a", "b", "c")
GATINGS = ("softmax", "top_k", "noisy_top_k", "dselect_k", "dselect_k_static")
SPARSE = GATINGS[1:]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, D)


def test_gating_names_the_gate() -> None:
    kinds = [type(MMoE(gating=gating).build(D, TASKS).gate) for gating in GATINGS]
    assert kinds == [Gate, TopKGate, NoisyTopKGate, DSelectKGate, DSelectKGate]
    assert MMoE(gating="dselect_k_static").build(D, TASKS).gate.static
    assert not MMoE(gating="dselect_k").build(D, TASKS).gate.static
    assert type(MMoE(gating="dselect_k", experts=1).build(D, TASKS).gate) is Gate, "nothing to choose from"
    assert type(MMoE(gating="top_k", experts=1).build(D, TASKS).gate) is Gate


@pytest.mark.parametrize("gating", SPARSE)
@pytest.mark.parametrize("kind", [MMoE, OMoE])
def test_z_is_the_mixture_that_its_gates_tell(kind: type[MMoE], gating: str, x: Tensor) -> None:
    module = kind(experts=3, hidden=(4, 2), gating=gating).build(D, TASKS).eval()
    shared = module(x)
    for b, row in enumerate(x.tolist()):
        experts = [loop_mlp(module.experts, i, row) for i in range(3)]
        for k in range(3):
            gate = shared.gates[0][b, k if kind is MMoE else 0].tolist()
            expected = [sum(gate[i] * experts[i][h] for i in range(3)) for h in range(2)]
            torch.testing.assert_close(shared.z[b, k], torch.tensor(expected))


@pytest.mark.parametrize("kind", [MMoE, OMoE])
def test_experts_and_gates_read_what_is_below(kind: type[MMoE], x: Tensor) -> None:
    module = kind(experts=3, bottom=(7, 6), hidden=(4,)).build(D, TASKS)
    shared = module(x)
    for b, row in enumerate(x.tolist()):
        below = loop_mlp(module.bottom, 0, row)
        experts = [loop_mlp(module.experts, i, below) for i in range(3)]
        for k in range(3):
            logits = module.gate.linear.weight[k if kind is MMoE else 0] @ torch.tensor(below)
            gate = torch.softmax(logits, 0).tolist()
            expected = [sum(gate[i] * experts[i][h] for i in range(3)) for h in range(4)]
            torch.testing.assert_close(shared.z[b, k], torch.tensor(expected))


def test_what_is_below_is_widened_with_the_experts() -> None:
    wide = MMoE(bottom=(8, 3), hidden=(4,)).widened(1.5)
    assert (wide.bottom, wide.hidden) == ((12, 4), (6,))


@pytest.mark.parametrize("gating", SPARSE)
def test_dispatched_rows_are_those_of_a_batch_too_small_to_dispatch(gating: str) -> None:
    module = MMoE(gating=gating, experts=16).build(40, TASKS).eval()
    for name, parameter in module.gate.named_parameters():
        if "z" in name:
            nn.init.normal_(parameter, std=1e3)  # settled selectors
    x = torch.randn(2048, 40)
    with FlopCounterMode(display=False) as counter:
        many = module(x).z
    assert counter.get_total_flops() / 2 < 0.6 * 2048 * module.experts.multiply_adds()
    few = torch.cat([module(part).z for part in x.split(4)])
    torch.testing.assert_close(many, few, atol=1e-5, rtol=1e-4)


def test_multiply_adds_are_of_the_most_experts_that_a_row_can_need() -> None:
    each = D * 128 + 128 * 64
    top_k = MMoE(gating="top_k", k=2).build(D, TASKS)
    assert top_k.multiply_adds() == 6 * each + 3 * D * 8 + 3 * 6 * 64
    assert MMoE(gating="top_k", k=4).build(D, TASKS).multiply_adds() == MMoE().build(D, TASKS).multiply_adds()
    assert OMoE(gating="noisy_top_k", k=2).build(D, TASKS).multiply_adds() == 2 * each + D * 8 + 2 * 64
    selectors = 3 * D * 2 * (3 + 1)
    assert MMoE(gating="dselect_k").build(D, TASKS).multiply_adds() == 8 * each + selectors + 3 * 8 * 64
    assert MMoE(gating="dselect_k_static").build(D, TASKS).multiply_adds() == 8 * each + 3 * 8 * 64


def test_structures_say_whether_they_are_stochastic_or_conditional() -> None:
    assert [MMoE(gating=gating).conditional for gating in GATINGS] == [False, True, True, True, True]
    assert [MMoE(gating=gating).stochastic for gating in GATINGS] == [False, False, True, False, False]


@pytest.mark.parametrize("gating", ["top_k", "noisy_top_k"])
def test_a_choice_of_one_is_refused_where_it_could_not_be_learnt(gating: str) -> None:
    with pytest.raises(SettingError, match=r"weighs 1.*k to 2 or more.*dselect_k"):
        MMoE(gating=gating, k=1)
    assert MMoE(gating="dselect_k", k=1).build(D, TASKS)(torch.randn(3, D)).gates[0].shape == (3, 3, 8)


@pytest.mark.parametrize("gating", GATINGS)
def test_penalties_are_off_by_default_but_for_the_load_of_noisy_gates(gating: str, x: Tensor) -> None:
    penalty = MMoE(gating=gating).build(D, TASKS)(x).penalty
    assert (penalty > 0) == (gating == "noisy_top_k")
    assert MMoE(gating=gating, load_penalty=0).build(D, TASKS)(x).penalty == 0
    module = MMoE(gating=gating, load_penalty=0.1, entropy_penalty=0.1).build(D, TASKS)
    assert module(x).penalty > penalty
    assert module.eval()(x).penalty == 0


def test_the_load_penalty_is_over_the_gates_of_all_tasks() -> None:
    """Two tasks that each settled on an expert of their own use both experts evenly."""
    module = MMoE(experts=2, load_penalty=1.0).build(1, ("a", "b"))
    with torch.no_grad():
        module.gate.linear.weight[:, :, 0] = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    assert module(torch.ones(8, 1)).penalty.item() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        module.gate.linear.weight[1] = module.gate.linear.weight[0]
    assert module(torch.ones(8, 1)).penalty.item() == pytest.approx(1)


def test_temperature_and_gate_dropout_reach_every_gate(x: Tensor) -> None:
    for gating in GATINGS:
        module = MMoE(gating=gating, temperature=0.5, gate_dropout=0.3).build(D, TASKS)
        assert module.gate.temperature == 0.5
        assert module.gate.regulariser.dropout == 0.3
    dropped = MMoE(gating="dselect_k", gate_dropout=0.5).build(D, TASKS)(x).gates[0]
    assert (dropped == 0).any()
    torch.testing.assert_close(dropped.sum(-1), torch.ones(4, 3))


@pytest.mark.parametrize("gating", GATINGS)
def test_exclusive_experts_are_dealt_round_the_tasks(gating: str, x: Tensor) -> None:
    """Of 8 experts 4 for one task each, 2 barred from one task each, 2 for all (Aoki et al. 2021)."""
    module = MMoE(exclusive=0.5, exclusion=0.25, gating=gating).build(D, TASKS)
    readers = [{task for task in range(3) if module.wiring[0].mask[task][i]} for i in range(8)]
    assert readers == [{0}, {1}, {2}, {0}, {0, 2}, {0, 1}, {0, 1, 2}, {0, 1, 2}]
    shared = module(x)
    barred = ~torch.tensor(module.wiring[0].mask)
    assert not shared.gates[0][:, barred].any()
    torch.testing.assert_close(shared.gates[0].sum(-1), torch.ones(4, 3))


def test_an_exclusive_expert_learns_from_its_task_alone(x: Tensor) -> None:
    module = MMoE(experts=4, exclusive=0.5).build(D, ("a", "b"))
    module(x).z[:, 0].square().sum().backward()
    learnt = module.experts.layers[0].weight.grad.abs().sum((1, 2)) > 0
    assert learnt.tolist() == [True, False, True, True]


def test_experts_that_leave_a_task_alone_are_refused() -> None:
    with pytest.raises(ExperimentError, match=r"'c' may read none of the 2 experts.*exclusive=1"):
        MMoE(experts=2, exclusive=1).build(D, TASKS)
    with pytest.raises(ExperimentError, match=r"'a' may read none of the 1 experts.*exclusion=1"):
        MMoE(experts=1, exclusion=1).build(D, TASKS)
    with pytest.raises(ExperimentError, match=r"exclusion=0.5 would bar the only task"):
        MMoE(exclusion=0.5).build(D, ("a",))
    with pytest.raises(SettingError, match=r"together at most 1"):
        MMoE(exclusive=0.6, exclusion=0.6)
    assert MMoE(experts=3, exclusive=1).build(D, TASKS)(torch.randn(2, D)).gates[0][0].tolist() == torch.eye(3).tolist()


def test_a_noisy_gate_starts_with_noise_of_log_2() -> None:
    """W_noise starts at zero, so that the deviation is softplus(0); W_k does not, so that gates read x at once."""
    gate = MMoE(gating="noisy_top_k").build(D, TASKS).gate
    assert not gate.noise.weight.any()
    assert gate.linear.weight.std().item() == pytest.approx(1 / math.sqrt(3 * D), rel=0.2)
