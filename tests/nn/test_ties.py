"""Ties against loops over pairs and singular values, and what descending them must lead to."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from multigate.nn.ties import PairDistance, TraceNorm, TuckerNorm, polar, trace_norm

SHAPE = (3, 4, 6)
LAYER = (3, 4, 5)
"""Of the weights alone; the biases come last in ``SHAPE``."""


def of(tie: nn.Module) -> Callable[[Tensor], Tensor]:
    """A tie as a function of W."""
    return lambda w: tie(w[..., :-1], w[..., -1])


def unfoldings(weight: Tensor) -> list[Tensor]:
    """The matrix of each axis, a slice after the other."""
    return [torch.stack([slice_.flatten() for slice_ in weight.unbind(axis)]) for axis in range(3)]


def by_singular_values(weight: Tensor) -> Tensor:
    return sum(torch.linalg.svdvals(one).sum() for one in unfoldings(weight))


def gradient(function: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    return torch.autograd.grad(function(weight), weight)[0]


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(SHAPE, requires_grad=True)


def test_pair_distance_is_the_sum_over_pairs(weight: Tensor) -> None:
    pairs = sum((a - b).square().sum() for a, b in combinations(weight, 2))
    torch.testing.assert_close(of(PairDistance())(weight), pairs)


def test_trace_norm_is_the_sum_of_singular_values(weight: Tensor) -> None:
    rows = torch.stack([one.flatten() for one in weight])
    torch.testing.assert_close(of(TraceNorm())(weight), torch.linalg.svdvals(rows).sum())
    expected = gradient(lambda w: torch.linalg.svdvals(w.flatten(1)).sum(), weight)
    torch.testing.assert_close(gradient(of(TraceNorm()), weight), expected, atol=1e-5, rtol=0)


def test_tucker_norm_is_the_sum_over_the_unfoldings(weight: Tensor) -> None:
    torch.testing.assert_close(of(TuckerNorm(LAYER, 1))(weight), by_singular_values(weight))
    expected = gradient(by_singular_values, weight)
    torch.testing.assert_close(gradient(of(TuckerNorm(LAYER, 1)), weight), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", ["all zero", "all alike", "orthonormal", "one apart"])
def test_there_is_a_gradient_where_singular_values_are_zero_or_repeat(rows: str) -> None:
    """Where differentiating a decomposition gives infinity: U V^T over the directions there are, 0 over others."""
    matrix = {
        "all zero": torch.zeros(4, 9),
        "all alike": torch.randn(9).expand(4, 9),
        "orthonormal": torch.eye(4, 9),
        "one apart": torch.cat((torch.ones(3, 9), torch.arange(9.0).view(1, 9))),
    }[rows].clone()
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    expected = (u * (values > 1e-4)) @ v
    for found in (gradient(trace_norm, matrix.requires_grad_()), polar(matrix.detach()), polar(matrix.detach().mT).mT):
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_descent_ends_where_singular_values_are_cut() -> None:
    """|W - A|^2 / 2 + c ||W||_* is least at A with each singular value less c, and none below 0 (Cai et al. 2010)."""
    a = torch.randn(4, 9)
    c = 2.5
    u, values, v = torch.linalg.svd(a, full_matrices=False)
    assert (values < c).any()
    assert (values > c).any()
    w = a.clone().requires_grad_()
    optimiser = torch.optim.SGD([w], lr=0.003)
    for _ in range(1_500):
        optimiser.zero_grad()
        ((w - a).square().sum() / 2 + c * trace_norm(w)).backward()
        optimiser.step()
    torch.testing.assert_close(w.detach(), (u * (values - c).clamp_min(0)) @ v, atol=0.03, rtol=0)


def test_between_renewals_the_tucker_norm_is_its_tangent(weight: Tensor) -> None:
    tie = TuckerNorm(LAYER, every=3)
    slope = gradient(by_singular_values, weight)
    here = weight.detach()
    for call in range(4):
        there = here if call == 0 else here + torch.randn(SHAPE)
        tangent, norm = by_singular_values(here) + (slope * (there - here)).sum(), by_singular_values(there)
        torch.testing.assert_close(of(tie)(there), tangent if call < 3 else norm, atol=1e-4, rtol=0)
        assert tangent <= norm + 1e-4  # a convex function lies above its tangents


def test_a_look_without_gradients_is_no_step_of_a_tucker_norm(weight: Tensor) -> None:
    """FAMO looks at every batch once more, after the step."""
    tie = of(TuckerNorm(LAYER, every=2))
    slope, here = gradient(by_singular_values, weight), weight.detach()
    for step in range(2):
        there = here + step * torch.randn(SHAPE)
        torch.testing.assert_close(
            tie(there), by_singular_values(here) + (slope * (there - here)).sum(), atol=1e-4, rtol=0
        )
        with torch.no_grad():
            tie(there)


def test_a_restored_tucker_norm_goes_on_where_it_stopped(weight: Tensor) -> None:
    tie, other = TuckerNorm(LAYER, every=3), TuckerNorm(LAYER, every=3)
    steps = [weight.detach() + torch.randn(SHAPE) for _ in range(7)]
    for one in steps[:2]:
        of(tie)(one)
    other.load_state_dict(tie.state_dict())
    assert [of(other)(one) for one in steps[2:]] == [of(tie)(one) for one in steps[2:]]


def test_a_tucker_norm_may_be_renewed_before_a_graph_is_walked_back(weight: Tensor) -> None:
    tie = of(TuckerNorm(LAYER, every=1))
    first, second = tie(weight), tie(weight * 2)
    torch.testing.assert_close(gradient(lambda _: first, weight) * 2, gradient(lambda _: second, weight))


@pytest.mark.parametrize("tie", [PairDistance(), TraceNorm(), TuckerNorm(LAYER, 1)])
def test_stacked_and_compiled_ties_are_equal(tie: nn.Module) -> None:
    weights, biases = torch.randn(5, *LAYER), torch.randn(5, *LAYER[:2])
    state = {name: value.expand(5, *value.shape).clone() for name, value in tie.named_buffers()}
    step = torch.func.grad(lambda w, b, buffers: torch.func.functional_call(tie, buffers, (w, b)))
    stacked = torch.func.vmap(step)(weights, biases, state)
    compiled = torch.compile(tie, backend="aot_eager")
    for i, bias in enumerate(biases):
        here = weights[i].clone().requires_grad_()
        expected, fast = (torch.autograd.grad(run(here, bias), here)[0] for run in (tie, compiled))
        torch.testing.assert_close(stacked[i], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(fast, expected)


@pytest.mark.parametrize("tie", [PairDistance(), TraceNorm(), TuckerNorm(LAYER, 1)])
def test_ties_are_float32_under_autocast(tie: nn.Module, weight: Tensor) -> None:
    expected = gradient(of(tie), weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = of(tie)(weight)
    torch.testing.assert_close(gradient(lambda _: value, weight), expected)


@pytest.mark.parametrize("tie", [PairDistance(), TraceNorm(), TuckerNorm(LAYER, 1)])
def test_weights_that_are_no_numbers_give_no_number(tie: nn.Module) -> None:
    """An exception would hide from the training loop what it can explain."""
    assert of(tie)(torch.full(SHAPE, torch.nan)).isnan()
