"""Tensor factorisation against networks of composed weights as plain loops, and against its known failure."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multigate.nn.factorised import Form
from multigate.sharing import SingleTask, Structure, TensorFactor

D, TASKS = 5, ("a", "b", "c")
FORMS: tuple[Form, ...] = ("tucker", "tt", "laf")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("own", [True, False])
def test_each_task_has_the_network_of_its_slices(form: Form, own: bool) -> None:
    module = TensorFactor(form=form, hidden=(4, 3)).build(D, TASKS)
    x = torch.randn(6, 3, D) if own else torch.randn(6, D)
    shared = module(x)
    for b, t in torch.cartesian_prod(torch.arange(6), torch.arange(3)).tolist():
        values = (x[b, t] if own else x[b]).tolist()
        for layer in module.networks.layers:
            rows = zip(layer.weight[t].tolist(), layer.bias[t].tolist(), strict=True)
            values = [max(0.0, bias + sum(w * v for w, v in zip(row, values, strict=True))) for row, bias in rows]
        torch.testing.assert_close(shared.z[b, t], torch.tensor(values))
    assert shared.gates == ()


def test_tasks_share_all_factors_but_their_own_row() -> None:
    module = TensorFactor(hidden=(4,)).build(D, TASKS)
    (layer,) = module.networks.layers
    module(torch.randn(6, D)).z[:, 1].sum().backward()
    for factor in (layer.input_factor, layer.core_weight, layer.output_factor):
        assert factor.grad.abs().sum() > 0
    for own in (layer.task_factor, layer.bias):
        assert own.grad[1].abs().sum() > 0
        assert own.grad[[0, 2]].abs().sum() == 0


@pytest.mark.parametrize("form", FORMS)
def test_inputs_of_the_tasks_own_cost_what_torch_counts(form: Form) -> None:
    module = TensorFactor(form=form, hidden=(8, 6)).build(20, TASKS)

    def counted(*shape: int) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(torch.randn(*shape))
        return counter.get_total_flops() // 2

    assert module.multiply_adds_apart() == counted(4097, 3, 20) - counted(4096, 3, 20)
    assert module.multiply_adds() == counted(4097, 20) - counted(4096, 20)


def test_a_wider_one_keeps_its_parts() -> None:
    """Ranks are parts of what there can be, so that one factor on the widths moves them as well."""
    narrow, wide = (TensorFactor(hidden=(width, width)).build(100, TASKS) for width in (8, 16))
    assert [tuple(layer.core_weight.shape) for layer in narrow.networks.layers] == [(2, 4, 12), (2, 4, 4)]
    assert [tuple(layer.core_weight.shape) for layer in wide.networks.layers] == [(2, 8, 24), (2, 8, 8)]


def trained(options: Structure, *, deviation: float | None = None) -> float:
    """Mean squared error after a short training on three related tasks that a small network can learn (variance 1).

    ``deviation`` starts every factor from normal draws of that size instead of as they are.
    """
    torch.manual_seed(0)
    x = torch.randn(1000, 20)
    hidden = torch.relu(x @ torch.randn(20, 8) / 3)
    y = hidden @ (torch.randn(8, 1) + 0.5 * torch.randn(8, 3))
    y = (y - y.mean(0)) / y.std(0)
    module = options.build(20, TASKS)
    if deviation is not None:
        for name, parameter in module.named_parameters():
            if "bias" not in name:
                nn.init.normal_(parameter, std=deviation)
    head = nn.Parameter(torch.randn(3, module.d_out) / 4)
    optimiser = torch.optim.Adam([*module.parameters(), head], lr=5e-3)

    def error() -> Tensor:
        return ((module(x).z * head).sum(-1) - y).square().mean()

    for _ in range(150):
        optimiser.zero_grad()
        error().backward()
        optimiser.step()
    return error().item()


@pytest.mark.parametrize("form", FORMS)
def test_trains_like_separate_networks(form: Form) -> None:
    alone = trained(SingleTask(hidden=(32, 16)))
    assert alone < 0.03
    assert trained(TensorFactor(form=form, hidden=(32, 16))) < alone + 0.05


@pytest.mark.parametrize("form", ["tucker", "tt"])
def test_the_training_would_notice_a_careless_start(form: Form) -> None:
    """A product of small factors is next to nothing, and so are its gradients (Ma et al. 2018, Table 1: AUC .68)."""
    assert trained(TensorFactor(form=form, hidden=(32, 16)), deviation=0.01) > 0.15
