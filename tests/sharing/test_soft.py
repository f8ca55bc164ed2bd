"""Soft sharing against the papers as plain loops, and what its penalties do to trained networks."""

from itertools import combinations

import pytest
import torch
from loops import loop_mlp
from safetensors.torch import load, save
from torch import nn

from multigate.sharing import Soft

D, TASKS = 5, ("a", "b", "c")


def parameters_of(networks: nn.Module, task: int) -> list[float]:
    """theta_k, one number after the other."""
    return [value for parameter in networks.layers.parameters() for value in parameter[task].flatten().tolist()]


@pytest.mark.parametrize("own", [True, False])
def test_each_task_has_a_network(own: bool) -> None:
    module = Soft(hidden=(4, 3)).build(D, TASKS)
    x = torch.randn(6, 3, D) if own else torch.randn(6, D)
    shared = module(x)
    for b, k in torch.cartesian_prod(torch.arange(6), torch.arange(3)).tolist():
        row = (x[b, k] if own else x[b]).tolist()
        torch.testing.assert_close(shared.z[b, k], torch.tensor(loop_mlp(module.networks, k, row)))
    assert shared.gates == ()


def test_l2_of_two_tasks_is_alpha_times_the_squared_distance() -> None:
    """alpha ||theta_1 - theta_2||^2 (Ma et al. 2018, section 6.1), of all weights and biases."""
    module = Soft(hidden=(4, 3), strength=0.3, alike=0.2).build(D, TASKS[:2])
    first, second = (parameters_of(module.networks, task) for task in range(2))
    assert len(first) == D * 4 + 4 + 4 * 3 + 3
    expected = 0.3 * sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
    assert module(torch.randn(2, D)).penalty.item() == pytest.approx(expected, rel=1e-5)


def test_l2_of_more_tasks_is_the_sum_over_pairs() -> None:
    module = Soft(hidden=(4, 3), strength=0.3, alike=0.2).build(D, TASKS)
    thetas = [parameters_of(module.networks, task) for task in range(3)]
    pairs = [sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in combinations(thetas, 2)]
    assert module(torch.randn(2, D)).penalty.item() == pytest.approx(0.3 * sum(pairs), rel=1e-5)


@pytest.mark.parametrize("kind", ["trace", "tucker"])
def test_trace_norms_are_sums_of_singular_values_layer_by_layer(kind: str) -> None:
    module = Soft(penalty=kind, hidden=(4, 3), strength=0.3, alike=0.2).build(D, TASKS)
    total = 0.0
    for layer in module.networks.layers:
        # (T, H, D + 1): a unit's bias is its weight for an input that is always 1
        tensor = torch.cat((layer.weight, layer.bias.unsqueeze(2)), dim=2).detach()
        for axis in range(3 if kind == "tucker" else 1):
            matrix = torch.stack([part.flatten() for part in tensor.unbind(axis)])
            total += torch.linalg.svdvals(matrix).sum().item()
    assert module(torch.randn(2, D)).penalty.item() == pytest.approx(0.3 * total, rel=1e-4)


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9, 1.0])
def test_networks_start_alike_and_as_large_as_others(alike: float) -> None:
    """A correlation of ``alike`` between tasks' first weights, whose variance is that of torch.nn.Linear."""
    module = Soft(hidden=(150,), alike=alike).build(100, TASKS[:2])
    weight = module.networks.layers[0].weight.detach().flatten(1)
    assert torch.corrcoef(weight)[0, 1].item() == pytest.approx(alike, abs=0.03)
    torch.testing.assert_close(weight.std(1), torch.full((2,), 0.1 / 3**0.5), rtol=0.03, atol=0)


def spread(options: Soft) -> tuple[float, float]:
    """After training on tasks that half agree: part of the weights that tasks do not share, and the error."""
    torch.manual_seed(1)
    x = torch.randn(500, 10)
    y = torch.relu(x @ torch.randn(10, 6)) @ (torch.randn(6, 1) + torch.randn(6, 3))
    y = (y - y.mean(0)) / y.std(0)
    module = options.build(10, TASKS)
    head = nn.Parameter(torch.randn(3, module.d_out) / 4)
    optimiser = torch.optim.Adam([*module.parameters(), head], lr=0.005)
    error = torch.zeros(())
    for _ in range(200):
        shared = module(x)
        error = ((shared.z * head).sum(-1) - y).square().mean()
        optimiser.zero_grad()
        (error + shared.penalty).backward()
        optimiser.step()
    weight = torch.cat([layer.weight.detach().flatten(1) for layer in module.networks.layers], dim=1)
    values = torch.linalg.svdvals(weight)
    return (values[1:].sum() / values.sum()).item(), error.item()


@pytest.mark.parametrize(
    ("kind", "strengths"), [("l2", (1e-4, 1e-2)), ("trace", (3e-3, 3e-2)), ("tucker", (1e-3, 1e-2))]
)
def test_the_stronger_the_penalty_the_more_is_shared(kind: str, strengths: tuple[float, float]) -> None:
    options = Soft(penalty=kind, every=1, hidden=(24, 12))
    apart, some, most = (spread(options.with_(strength=strength)) for strength in (0.0, *strengths))
    assert apart[0] > some[0] + 0.02
    assert some[0] > most[0] + 0.02
    assert some[1] < 0.1, "a moderate penalty ruins the fit"


def test_a_subgradient_that_serves_ten_steps_ends_where_new_ones_do() -> None:
    none, fresh, kept = (
        spread(Soft(penalty="tucker", strength=strength, every=every, hidden=(24, 12)))[0]
        for strength, every in ((0.0, 1), (1e-3, 1), (1e-3, 10))
    )
    assert fresh < none - 0.02
    assert abs(kept - fresh) < 0.2 * (none - fresh)


def test_a_restored_tucker_run_goes_on_exactly() -> None:
    """The subgradient and the steps it has served belong to the state, as a checkpoint keeps it."""
    options = Soft(penalty="tucker", every=3, hidden=(4,))
    module, other = options.build(D, TASKS), options.build(D, TASKS)
    x = torch.randn(6, D)
    module(x)
    with torch.no_grad():
        module.networks.layers[0].weight.add_(torch.randn(3, 4, D))
    other.load_state_dict(load(save(module.state_dict())))
    for _ in range(4):
        torch.testing.assert_close(other(x).penalty, module(x).penalty, atol=0, rtol=0)


def test_strength_zero_is_single_task() -> None:
    module = Soft(strength=0.0, hidden=(4,)).build(D, TASKS)
    shared = module(torch.randn(6, D))
    assert shared.penalty == 0
    assert not shared.penalty.requires_grad


def test_penalties_train_under_bfloat16_autocast() -> None:
    for kind in ("l2", "trace", "tucker"):
        module = Soft(penalty=kind, hidden=(4,)).build(D, TASKS)
        expected = module(torch.randn(6, D)).penalty
        with torch.autocast("cpu", dtype=torch.bfloat16):
            shared = module(torch.randn(6, D))
        torch.testing.assert_close(shared.penalty, expected)
        (shared.z.float().sum() + shared.penalty).backward()
