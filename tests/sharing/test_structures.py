"""Each structure against the paper written as plain loops over rows, tasks, experts and units."""

import pytest
import torch
from loops import loop_mlp, loop_softmax
from torch import Tensor

from multigate.sharing import MMoE, OMoE, SharedBottom, SingleTask

D, TASKS = 5, ("a", "b", "c")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, D)


def test_mmoe_is_equations_6_to_8(x: Tensor) -> None:
    """f^k(x) = sum_i g^k(x)_i f_i(x), g^k(x) = softmax(W_gk x): Ma et al. 2018, Eq. 6 to 8, without gate bias."""
    module = MMoE(experts=3, hidden=(4, 2)).build(D, TASKS)
    shared = module(x)
    for b, row in enumerate(x.tolist()):
        experts = [loop_mlp(module.experts, i, row) for i in range(3)]
        for k in range(3):
            gate = loop_softmax(module.gate.linear.weight[k].tolist(), row)
            expected = [sum(gate[i] * experts[i][h] for i in range(3)) for h in range(2)]
            torch.testing.assert_close(shared.z[b, k], torch.tensor(expected))
            torch.testing.assert_close(shared.gates[0][b, k], torch.tensor(gate))


def test_omoe_is_equation_5(x: Tensor) -> None:
    """One gate: every task reads sum_i g(x)_i f_i(x) (Ma et al. 2018, Eq. 5)."""
    module = OMoE(experts=3, hidden=(4,)).build(D, TASKS)
    shared = module(x)
    for b, row in enumerate(x.tolist()):
        gate = loop_softmax(module.gate.linear.weight[0].tolist(), row)
        experts = [loop_mlp(module.experts, i, row) for i in range(3)]
        expected = torch.tensor([sum(gate[i] * experts[i][h] for i in range(3)) for h in range(4)])
        for k in range(3):
            torch.testing.assert_close(shared.z[b, k], expected)


def test_shared_bottom_is_equation_1(x: Tensor) -> None:
    module = SharedBottom(hidden=(4, 3)).build(D, TASKS)
    shared = module(x)
    for b, row in enumerate(x.tolist()):
        for k in range(3):
            torch.testing.assert_close(shared.z[b, k], torch.tensor(loop_mlp(module.bottom, 0, row)))


def test_single_tasks_are_separate_networks(x: Tensor) -> None:
    module = SingleTask(hidden=(4, 3)).build(D, TASKS)
    shared = module(x)
    for b, row in enumerate(x.tolist()):
        for k in range(3):
            torch.testing.assert_close(shared.z[b, k], torch.tensor(loop_mlp(module.networks, k, row)))
    shared.z[:, 0].sum().backward()
    first = module.networks.layers[0].weight.grad
    assert first[0].abs().sum() > 0
    assert first[1:].abs().sum() == 0


def test_gates_have_the_papers_parameters_and_no_more() -> None:
    """W_gk in R^{n x d} for each task, no bias (Ma et al. 2018, Eq. 8)."""
    module = MMoE(experts=8, hidden=(16,)).build(100, ("a", "b"))
    assert {name: tuple(p.shape) for name, p in module.gate.named_parameters()} == {"linear.weight": (2, 8, 100)}
    # Ma et al. count 100 * 16 * 8 multiplications of the experts in Figure 4
    assert module.experts.multiply_adds() == 100 * 16 * 8


def test_options_off_by_default_change_the_network_when_on() -> None:
    plain = MMoE(experts=3, hidden=(4, 4)).build(D, TASKS)
    assert len(plain.experts.norms) == 0
    deeper = MMoE(experts=3, hidden=(4, 4, 4), normalisation="layer", dropout=0.5, gate_dropout=0.1).build(D, TASKS)
    assert len(deeper.experts.layers) == 3
    assert len(deeper.experts.norms) == 3
    x = torch.randn(6, D)
    assert not torch.equal(deeper(x).z, deeper(x).z)  # dropout in training
    assert torch.equal(deeper.eval()(x).z, deeper(x).z)  # none in evaluation
