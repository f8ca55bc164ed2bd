"""Factorised layers against sums over all indices of their factors."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from multigate.experiment import Optimizer
from multigate.nn.factorised import FactorisedLinear, Form
from multigate.nn.parallel import ParallelLinear
from multigate.training.optimizers import build_optimizer

FORMS: tuple[Form, ...] = ("tucker", "tt", "laf")
D, H, N = 6, 5, 4


def build(form: Form, rank: float = 0.5, task_rank: float = 0.5) -> FactorisedLinear:
    return FactorisedLinear(N, D, H, form=form, rank=rank, task_rank=task_rank)


def composed(layer: FactorisedLinear) -> Tensor:
    """W[t, h, d] as the paper has it, a sum over every index of every factor, outer ones of 1 where a form has none."""
    core, tasks = layer.core_weight.tolist(), layer.task_factor.tolist()
    directions, r2, r1 = layer.core_weight.shape
    enter = (torch.eye(D) if layer.input_factor is None else layer.input_factor).tolist()
    leave = (torch.eye(H) if layer.output_factor is None else layer.output_factor).tolist()
    weight = torch.zeros(N, H, D)
    for t, h, d in product(range(N), range(H), range(D)):
        weight[t, h, d] = sum(
            tasks[t][k] * leave[h][q] * core[k][q][p] * enter[p][d]
            for k, q, p in product(range(directions), range(r2), range(r1))
        )
    return weight


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_the_product_of_the_factors(form: Form) -> None:
    layer = build(form)
    torch.testing.assert_close(layer.weight.detach(), composed(layer))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task_rank", [0.5, 1.0])
@pytest.mark.parametrize("own", [True, False])
def test_maps_have_the_composed_weights(form: Form, own: bool, task_rank: float) -> None:
    layer = build(form, task_rank=task_rank)
    x = torch.randn(7, N, D) if own else torch.randn(7, D)
    out, weight = layer(x), composed(layer)
    assert out.shape == (7, N, H)
    for t in range(N):
        torch.testing.assert_close(out[:, t], functional.linear(x[:, t] if own else x, weight[t], layer.bias[t]))


@pytest.mark.parametrize(("form", "expected"), [("tucker", (2, 2, 3)), ("tt", (2, None, 3)), ("laf", (2, None, None))])
def test_ranks_are_parts_of_the_largest_there_can_be(
    form: Form, expected: tuple[int | None, int | None, int | None]
) -> None:
    """Ranks of the unfoldings along tasks, outputs and inputs: half of 4, of 5 (rounded to even) and of 6."""
    weight = build(form).weight.detach()
    for axis, rank in enumerate(expected):
        unfolded = weight.movedim(axis, 0).flatten(1)
        assert torch.linalg.matrix_rank(unfolded, rtol=1e-4) == (rank or min(unfolded.shape))


@pytest.mark.parametrize("form", FORMS)
def test_all_ranks_full_hold_any_weights(form: Form) -> None:
    layer = build(form, rank=1, task_rank=1)
    wanted = torch.randn(N, H, D)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (layer.weight - wanted).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    torch.testing.assert_close(layer.weight.detach(), wanted, atol=0.02, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("n", [2, 20])
@pytest.mark.parametrize(("d_in", "d_out"), [(400, 128), (64, 64)])
def test_copies_start_as_large_as_plain_ones_and_differ(form: Form, n: int, d_in: int, d_out: int) -> None:
    """Outputs of the first step then have the scale that the rest of the network is made for, in every form."""
    weight = FactorisedLinear(n, d_in, d_out, form=form, rank=0.5, task_rank=0.5).weight.detach()
    plain = ParallelLinear(n, d_in, d_out).weight.std().item()
    assert math.isclose(plain, 1 / math.sqrt(3 * d_in), rel_tol=0.02)
    for one in weight:
        assert math.isclose(one.std().item(), plain, rel_tol=0.1)
    assert torch.pdist(weight.flatten(1)).min() > 0.05 * weight[0].norm()


def test_tasks_start_half_alike() -> None:
    weight = FactorisedLinear(60, 40, 30, form="tucker", rank=0.5, task_rank=0.5).weight.detach()
    rows = functional.normalize(weight.flatten(1))
    cosines = rows @ rows.T
    assert 0.4 < cosines[~torch.eye(60, dtype=torch.bool)].mean() < 0.6


@pytest.mark.parametrize("form", FORMS)
def test_weights_decay_as_plain_ones_do(form: Form) -> None:
    """One factor alone decays: were all to, their product would shrink by the power of their number."""
    layers = build(form), ParallelLinear(N, D, H)
    before = [layer.weight.detach().clone() for layer in layers]
    options = Optimizer(learning_rate=0.01, weight_decay=0.5, schedule="constant")
    for layer, start in zip(layers, before, strict=True):
        optimiser = build_optimizer(layer, nn.Module(), options)
        for parameter in layer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        torch.testing.assert_close(layer.weight.detach(), start * (1 - 0.01 * 0.5))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("rank", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("rows", [1, 40, 3000])
def test_weights_are_composed_where_rows_are_then_less_work(form: Form, own: bool, rank: float, rows: int) -> None:
    """Torch's own count of what a batch multiplies, weights made for it among that, is the less of both ways."""
    layer = FactorisedLinear(4, 24, 16, form=form, rank=rank, task_rank=0.5)
    x = torch.randn(rows, 4, 24) if own else torch.randn(rows, 24)

    def counted(run: Callable[[], object]) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() // 2

    as_one = counted(lambda: layer.weight) + rows * 4 * 24 * 16
    directions, r2, r1 = layer.core_weight.shape
    enter, leave = (0 if one is None else one.numel() for one in (layer.input_factor, layer.output_factor))
    cores = 4 * directions * r1 * r2
    if own:
        apart = cores + rows * 4 * (enter + r1 * r2 + leave)
    else:
        apart = rows * (enter + directions * (r1 * r2 + leave + 4 * 16))
    assert counted(lambda: layer(x)) == min(apart, as_one)
