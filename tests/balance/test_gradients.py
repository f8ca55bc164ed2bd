"""Balances of gradients against closed forms, plain loops over vectors, and the conditions of their optima."""

import math
from itertools import permutations, product
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from multigate.balance import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    DualProj,
    FairGrad,
    GradNorm,
    GradVac,
    GramianBalance,
    NashMTL,
    PCGrad,
    UPGrad,
)
from multigate.schema import Task

PAIRS = {
    "conflict": ([1.0, 0.0], [-0.6, 0.8]),
    "conflict, unlike lengths": ([3.0, 0.0, 1.0], [-0.5, 0.2, 0.3]),
    "agreement": ([1.0, 0.2], [0.8, 0.9]),
    "one inside the other": ([4.0, 0.0], [1.0, 0.3]),
    "one a thousand times as long": ([1.0, 0.0], [-2e-4, 1e-3]),
}
MANY = settings(max_examples=60, deadline=None, derandomize=True)


def tasks(count: int) -> list[Task]:
    return [Task(f"task{i}") for i in range(count)]


def weigh(options: GramianBalance, gradients: Tensor, weights: tuple[float, ...] = ()) -> Tensor:
    """Weights through the module, as the loop gets them."""
    some = [
        task.with_(weight=w) for task, w in zip(tasks(len(gradients)), weights or [1] * len(gradients), strict=True)
    ]
    losses = torch.ones(len(gradients))
    return options.build(some).weights(losses, (gradients @ gradients.T).float(), losses > 0).double()


def pair(name: str) -> Tensor:
    return torch.tensor(PAIRS[name], dtype=torch.float64)


@st.composite
def gradients(draw: st.DrawFn) -> Tensor:
    """Gradients (n, 10) with a direction in common that all may follow, in float64."""
    n = draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    found = torch.randn(n, 10, generator=generator, dtype=torch.float64)
    lengths = torch.tensor(draw(st.lists(st.sampled_from([0.3, 1.0, 3.0]), min_size=n, max_size=n)))
    common = draw(st.sampled_from([-0.3, 0.0, 0.3]))
    return (found + common) * lengths[:, None]


@pytest.mark.parametrize("name", PAIRS)
def test_mgda_is_the_point_of_the_segment_nearest_to_zero(name: str) -> None:
    """a = clip(<g2 - g1, g2> / |g1 - g2|^2, 0, 1) (Sener and Koltun 2018, Eq. 4 for two tasks), twice for the mean."""
    one, two = pair(name)
    a = float(((two - one) @ two / (one - two).square().sum()).clamp(0, 1))
    torch.testing.assert_close(weigh(MGDA(), pair(name)), 2 * torch.tensor([a, 1 - a]).double(), atol=1e-4, rtol=1e-4)


@MANY
@given(found=gradients())
def test_mgda_of_many_is_the_shortest(found: Tensor) -> None:
    """Every gradient reaches at least as far along the shortest vector as it is long; those it is made of just so."""
    weights = weigh(MGDA(), found) / len(found)
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert (weights >= 0).all()
    step = weights @ found
    along, square = found @ step, step @ step
    slack = 1e-3 * found.square().sum(1).max()
    assert (along >= square - slack).all()
    assert (along[weights > 1e-3] <= square + slack).all()


@pytest.mark.parametrize("name", PAIRS)
def test_pcgrad_of_two_projects_each_off_the_other(name: str) -> None:
    one, two = pair(name)
    inner = float(one @ two)
    expected = [1.0, 1.0]
    if inner < 0:
        expected = [1 - inner / float(one @ one), 1 - inner / float(two @ two)]
    torch.testing.assert_close(weigh(PCGrad(), pair(name)), torch.tensor(expected).double(), atol=1e-5, rtol=1e-5)


def surgeries(found: Tensor, usual: Tensor | None) -> list[Tensor]:
    """Every outcome of PCGrad (or of GradVac's first step with these usual cosines) over the orders of the tasks."""
    n = len(found)
    changed: list[list[Tensor]] = []
    for i in range(n):
        outcomes = []
        for order in permutations([j for j in range(n) if j != i]):
            mine = found[i].clone()
            for j in order:
                inner = mine @ found[j]
                if usual is None:
                    if inner < 0:
                        mine = mine - inner / (found[j] @ found[j]) * found[j]
                    continue
                cosine = inner / (mine.norm() * found[j].norm())
                want = usual[i, j]
                if cosine < want:
                    push = mine.norm() * (want * (1 - cosine**2).sqrt() - cosine * (1 - want**2).sqrt())
                    mine = mine + push / (found[j].norm() * (1 - want**2).sqrt()) * found[j]
            outcomes.append(mine)
        changed.append(outcomes)
    return [a + b + c for a in changed[0] for b in changed[1] for c in changed[2]]


def test_pcgrad_of_three_is_a_surgery_in_some_order_and_any_order_comes_up() -> None:
    """Against vectors, projected one by one (Yu et al. 2020, Algorithm 1)."""
    found = torch.tensor([[1.0, 0.2, 0.0], [-0.9, 1.0, 0.1], [-0.8, -0.6, 0.7]], dtype=torch.float64)
    possible = surgeries(found, None)
    hits = set()
    for seed in range(120):
        torch.manual_seed(seed)
        step = weigh(PCGrad(), found) @ found
        near = [i for i, one in enumerate(possible) if torch.allclose(step, one, atol=1e-5)]
        assert near, "a step that no order of projections gives"
        hits.add(near[0])
    different = {tuple((one * 1e4).round().tolist()) for one in possible}
    assert len(hits) == len(different) > 2


def test_gradvac_turns_gradients_to_their_usual_cosines() -> None:
    """Against vectors (Wang et al. 2021, Algorithm 1): for two tasks no order matters, step after step."""
    balancer = GradVac(beta=0.3).build(tasks(2))
    usual = torch.zeros(2, 2, dtype=torch.float64)
    turned = 0
    for _ in range(40):
        found = torch.randn(2, 5, dtype=torch.float64) + 1.0
        step = torch.zeros(5, dtype=torch.float64)
        for i, j in ((0, 1), (1, 0)):
            mine = found[i].clone()
            cosine = mine @ found[j] / (mine.norm() * found[j].norm())
            want = usual[i, j].clone()
            if cosine < want:
                push = mine.norm() * (want * (1 - cosine**2).sqrt() - cosine * (1 - want**2).sqrt())
                mine = mine + push / (found[j].norm() * (1 - want**2).sqrt()) * found[j]
                turned += bool(want > 0.1)
                torch.testing.assert_close(mine @ found[j] / (mine.norm() * found[j].norm()), want)
            usual[i, j] = 0.7 * want + 0.3 * cosine
            step = step + mine
        weights = balancer.weights(torch.ones(2), (found @ found.T).float(), torch.ones(2) > 0).double()
        torch.testing.assert_close(weights @ found, step, atol=1e-4, rtol=1e-4)
    assert 4 < turned < 70
    found = torch.tensor([[1.0, 0.2, 0.0], [-0.9, 1.0, 0.1], [-0.8, -0.6, 0.7]], dtype=torch.float64)
    possible = surgeries(found, torch.zeros(3, 3, dtype=torch.float64))
    step = weigh(GradVac(beta=1e-9), found) @ found
    assert any(torch.allclose(step, one, atol=1e-4) for one in possible)


@pytest.mark.parametrize("name", ["conflict", "conflict, unlike lengths", "agreement", "one a thousand times as long"])
@pytest.mark.parametrize("c", [0.0, 0.2, 0.7])
def test_cagrad_of_two_is_the_best_of_all_steps_in_its_ball(name: str, c: float) -> None:
    """The dual over the segment of two gradients, by looking at 20,001 points of it (Liu et al. 2021, Algorithm 1)."""
    found = pair(name)
    mean = found.mean(0)
    radius = c * mean.norm()
    share = torch.linspace(0, 1, 20_001).double()
    mixed = share[:, None] * found[0] + (1 - share[:, None]) * found[1]
    best = mixed[(mixed @ mean + radius * mixed.norm(dim=1)).argmin()]
    step = mean + radius * best / best.norm()
    torch.testing.assert_close(weigh(CAGrad(c=c), found) @ found / 2, step, atol=1e-3, rtol=1e-3)


@MANY
@given(found=gradients(), c=st.sampled_from([0.1, 0.4, 0.9]))
def test_cagrad_of_many_gains_most_for_the_worst_off(found: Tensor, c: float) -> None:
    """c |g_0| away from g_0, by gradients of those that gain least (the conditions of its optimum)."""
    n, mean = len(found), found.mean(0)
    weights = weigh(CAGrad(c=c), found)
    away = weights @ found / n - mean
    assert away.norm().item() == pytest.approx(c * mean.norm().item(), rel=1e-2)
    added = (weights - 1) / n
    assert (added >= -1e-6).all()
    gains = found @ (mean + away)
    slack = 2e-3 * float(found.norm(dim=1).max() * mean.norm())
    assert (gains[added > 1e-2 * added.max()] <= gains.min() + slack).all()


def test_cagrad_where_no_direction_helps_all_is_the_plain_sum() -> None:
    """Two tasks almost opposed: a gain of a hundred-thousandth would take 70 times their gradients."""
    found = np.array([[1.0, 0.0], [-1.0, 1e-4], [0.0, 0.5]])
    gramian = found @ found.T / np.square(found).sum(1).mean()
    assert CAGrad().solve(gramian).tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", PAIRS)
def test_imtl_g_of_two_is_its_closed_form(name: str) -> None:
    """a_2 = <g_1, u_1 - u_2> / <g_1 - g_2, u_1 - u_2> (Liu et al. 2021), and equal projections."""
    one, two = pair(name)
    apart = one / one.norm() - two / two.norm()
    second = float(one @ apart / ((one - two) @ apart))
    weights = weigh(IMTLG(), pair(name)) / 2
    torch.testing.assert_close(weights, torch.tensor([1 - second, second]).double(), atol=1e-4, rtol=1e-4)
    step = weights @ pair(name)
    assert float(step @ one / one.norm()) == pytest.approx(float(step @ two / two.norm()), rel=1e-3)


@MANY
@given(found=gradients())
def test_imtl_g_of_many_goes_equally_far_along_each(found: Tensor) -> None:
    weights = weigh(IMTLG(), found)
    along = found @ (weights @ found) / found.norm(dim=1)
    assert (along > 0).all()
    torch.testing.assert_close(along, along.mean().expand(len(found)), rtol=2e-2, atol=0)
    assert weights.abs().sum().item() == pytest.approx(len(found), rel=1e-4)


@pytest.mark.parametrize("length", ["least", "median", "mean"])
def test_aligned_gradients_are_orthogonal_and_of_one_length(length: Literal["least", "median", "mean"]) -> None:
    """The step is the sum of the nearest orthogonal vectors of length sigma: U V^T of the gradients' own SVD."""
    found = torch.tensor([[1.0, 0.2, 0.0, 0.3], [-0.9, 2.0, 0.1, 0.0], [-0.8, -0.6, 0.7, 0.1]], dtype=torch.float64)
    left, singular, right = torch.linalg.svd(found, full_matrices=False)
    sigma = {"least": singular[2], "median": singular[1], "mean": singular.square().mean().sqrt()}[length]
    aligned = sigma * left @ right
    torch.testing.assert_close(aligned @ aligned.T, sigma**2 * torch.eye(3).double())
    step = weigh(AlignedMTL(length=length), found) @ found
    torch.testing.assert_close(step, aligned.sum(0), atol=1e-4, rtol=1e-4)


def test_the_median_length_of_two_is_midway_between_theirs() -> None:
    found = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).double()
    step = weigh(AlignedMTL(length="median"), found) @ found
    torch.testing.assert_close(step, torch.tensor([2.0, 2.0]).double(), atol=1e-5, rtol=0)


@MANY
@given(found=gradients(), alpha=st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_bargains_solve_their_equation(found: Tensor, alpha: float) -> None:
    """G a is proportional to a^(-1/alpha), for Nash to 1 / a, with a > 0 and a mean of 1."""
    options = NashMTL() if alpha == 1 else FairGrad(alpha=alpha)
    weights = weigh(options, found)
    assert (weights > 0).all()
    assert weights.mean().item() == pytest.approx(1, rel=1e-4)
    ratio = (found @ found.T @ weights) * weights ** (1 / alpha)
    torch.testing.assert_close(ratio, ratio.mean().expand(len(found)), rtol=2e-2, atol=0)


def test_nash_of_two_is_in_proportion_to_one_over_the_lengths() -> None:
    """For two tasks |g_1| a_1 = |g_2| a_2 whatever their angle, by symmetry of G a = 1 / a."""
    found = pair("conflict, unlike lengths")
    weights = weigh(NashMTL(), found)
    assert float(weights[0] / weights[1]) == pytest.approx(float(found[1].norm() / found[0].norm()), rel=1e-3)


@pytest.mark.parametrize("name", PAIRS)
def test_upgrad_of_two_is_pcgrad_of_two(name: str) -> None:
    """A gradient's projection on the half-space where the other does not lose is the one of gradient surgery."""
    torch.testing.assert_close(weigh(UPGrad(), pair(name)), weigh(PCGrad(), pair(name)), atol=1e-4, rtol=1e-4)


def test_dualproj_of_two_projects_the_sum() -> None:
    """Of g_1 + g_2 with <g_1 + g_2, g_2> < 0: off g_2, by as much as it takes."""
    found = pair("conflict, unlike lengths")
    total = found.sum(0)
    assert total @ found[1] < 0 < total @ found[0]
    expected = total - total @ found[1] / (found[1] @ found[1]) * found[1]
    torch.testing.assert_close(weigh(DualProj(), found) @ found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(weigh(DualProj(), pair("agreement")), torch.ones(2).double())


@MANY
@given(found=gradients())
def test_jacobian_descent_lowers_every_loss(found: Tensor) -> None:
    """No loss rises along the step, and each projection is the nearest vector of which that holds."""
    slack = 1e-3 * found.norm(dim=1) * found.norm(dim=1).sum()
    assert (found @ (weigh(UPGrad(), found) @ found) >= -slack).all()
    added = weigh(DualProj(), found) - 1
    along = found @ ((1 + added) @ found)
    assert (added >= -1e-6).all()
    assert (along >= -slack).all()
    assert (along[added > 1e-3] <= slack[added > 1e-3]).all(), "added where nothing was lost"
    gramian = (found @ found.T / found.square().sum(1).mean()).numpy()
    alone = [projected(gramian, one) for one in np.eye(len(found))]
    np.testing.assert_allclose(UPGrad().solve(gramian), np.sum(alone, axis=0), atol=1e-3)


def projected(gramian: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """argmin v G v over v >= mixture, the best over all sets of entries that may be above it."""
    best = mixture
    for above in product((False, True), repeat=len(mixture)):
        free = np.array(above)
        v = mixture.copy()
        if free.any():
            v[free] = -np.linalg.solve(gramian[np.ix_(free, free)], gramian[np.ix_(free, ~free)] @ mixture[~free])
        if (v >= mixture - 1e-9).all() and v @ gramian @ v < best @ gramian @ best:
            best = v
    return best


@pytest.mark.parametrize("short", [1e-2, 1e-4, 1e-5])
def test_a_gradient_that_is_far_shorter_than_others_still_counts(short: float) -> None:
    """A task that is learnt already has one: conditions that are free of lengths hold for it as for the others."""
    generator = torch.Generator().manual_seed(3)
    found = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    found[2] -= 2 * found[:2].sum(0)  # against both
    found[2] *= short
    weights = weigh(NashMTL(), found)
    gains = weights * (found @ (weights @ found))
    torch.testing.assert_close(gains, gains.mean().expand(3), rtol=2e-2, atol=0)
    reached = found @ (weigh(IMTLG(), found) @ found) / found.norm(dim=1)
    torch.testing.assert_close(reached, reached.mean().expand(3), rtol=2e-2, atol=0)
    for options in (UPGrad(), DualProj()):
        step = weigh(options, found) @ found
        assert (found @ step >= -1e-3 * found.norm(dim=1) * step.norm()).all(), options.method
    torch.testing.assert_close(weigh(UPGrad(), found[1:]), weigh(PCGrad(), found[1:]), atol=0, rtol=1e-3)


def test_declared_weights_go_into_the_gradients_or_over_what_is_found() -> None:
    """Corrections of the sum see the weighted gradients; balances that even tasks out are multiplied by the weights."""
    found, weights = pair("conflict, unlike lengths"), (1.0, 3.0)
    scaled = found * torch.tensor(weights).double()[:, None]
    for options in (PCGrad(), CAGrad(), UPGrad(), DualProj()):
        expected = torch.tensor(weights).double() * weigh(options, scaled)
        torch.testing.assert_close(weigh(options, found, weights), expected, atol=1e-4, rtol=1e-4)
    for options in (MGDA(), IMTLG(), AlignedMTL(), NashMTL(), FairGrad()):
        expected = torch.tensor(weights).double() * weigh(options, found)
        torch.testing.assert_close(weigh(options, found, weights), expected, atol=1e-4, rtol=1e-4)


class Toy(nn.Module):
    """Two regressions of one hidden layer, at quite different scales."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.heads = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.shared(inputs))
        targets = torch.stack((inputs[:, 0], 10 * inputs[:, 1]), 1)
        return (self.heads(hidden) - targets).square().mean(0), hidden


def test_gradnorm_follows_its_algorithm() -> None:
    """Against Chen et al. 2018, Algorithm 1, as a plain loop: L_grad and its gradient by autograd, torch's Adam."""
    torch.manual_seed(0)
    toy, inputs = Toy(), torch.randn(12, 32, 4)
    options = GradNorm(alpha=1.5, learning_rate=0.05)
    balancer = options.build(tasks(2))
    v = nn.Parameter(torch.ones(2))
    optimiser, descent = torch.optim.Adam([v], lr=0.05), torch.optim.SGD(toy.parameters(), lr=0.01)
    first = None
    for batch in inputs:
        losses, hidden = toy(batch)
        first = losses.detach() if first is None else first
        each = [torch.autograd.grad(loss, hidden, retain_graph=True)[0].flatten() for loss in losses]
        gramian = torch.stack([torch.stack([a @ b for b in each]) for a in each])
        weights = balancer.weights(losses.detach(), gramian, torch.tensor([True, True]))
        torch.testing.assert_close(weights, v.detach(), atol=1e-5, rtol=1e-4)
        lengths = torch.stack([v[t] * each[t].norm() for t in range(2)])
        rates = losses.detach() / first
        target = (lengths.mean() * (rates / rates.mean()) ** 1.5).detach()
        optimiser.zero_grad()
        (lengths - target).abs().sum().backward()
        optimiser.step()
        v.data *= 2 / v.data.sum()
        descent.zero_grad()
        (weights * losses).sum().backward()
        descent.step()
    assert v[0] > 1.2, "the task with the short gradients gains"
    assert math.isclose(float(balancer.learnt.sum()), 2, rel_tol=1e-5)


def test_gradnorm_begins_each_task_with_its_first_labels() -> None:
    balancer = GradNorm().build(tasks(3))
    gradients = torch.randn(3, 5)
    gramian = gradients @ gradients.T
    balancer.weights(torch.tensor([1.0, 0.0, 3.0]), gramian, torch.tensor([True, False, True]))
    assert balancer.first.tolist() == [1, 0, 3]
    assert balancer.learnt[1] != 0
    balancer.weights(torch.tensor([0.5, 2.0, 1.0]), gramian, torch.tensor([True, True, True]))
    assert balancer.first.tolist() == [1, 2, 3]


def test_gradnorm_learns_as_if_absent_tasks_were_not_there() -> None:
    """Whatever loss and gradient one is given."""
    of_two, of_three = GradNorm().build(tasks(2)), GradNorm().build(tasks(3))
    for balancer in (of_two, of_three):
        balancer.first.fill_(1)
    lengths = torch.tensor([0.75, 50.0, 1.25])
    of_two.weights(torch.tensor([0.8, 1.2]), lengths[[0, 2]].square().diag(), torch.tensor([True, True]))
    of_three.weights(torch.tensor([0.8, 9.0, 1.2]), lengths.square().diag(), torch.tensor([True, False, True]))
    torch.testing.assert_close(of_three.learnt[0] / of_three.learnt[2], of_two.learnt[0] / of_two.learnt[1])
    assert of_two.learnt[0] < 1 < of_two.learnt[1]
    torch.testing.assert_close(of_three.learnt.sum(), torch.tensor(3.0))
    torch.testing.assert_close(of_three.learnt[1], torch.tensor(1.0))


@pytest.mark.parametrize("out", ["weighs nothing", "is absent"])
def test_gradnorm_of_tasks_beside_one_that_is_out_is_that_of_those_tasks_alone(out: str) -> None:
    """Over many steps of losses and gradients that leap about: what is out lends no weight and takes none."""
    of_two = GradNorm().build(tasks(2))
    of_three = GradNorm().build([task.with_(weight=0) if i == 1 and out == "weighs nothing" else task
                                 for i, task in enumerate(tasks(3))])  # fmt: skip
    of_all = GradNorm().build(tasks(3))
    there, all_there = torch.tensor([True, out != "is absent", True]), torch.ones(3, dtype=torch.bool)
    for _ in range(300):
        losses, lengths = torch.rand(3) + 0.1, torch.randn(3).exp()
        gramian = lengths.square().diag()
        of_two.weights(losses[[0, 2]], gramian[[0, 2]][:, [0, 2]], torch.tensor([True, True]))
        of_three.weights(losses, gramian, there)
        of_all.weights(losses, gramian, all_there)
        assert torch.equal(of_three.learnt[[0, 2]], of_two.learnt)
    assert of_three.learnt[1] == 1
    assert abs(of_two.learnt[0] - of_two.learnt[1]) > 0.1, "nothing was learnt"
    for balancer in (of_two, of_three, of_all):
        torch.testing.assert_close(balancer.learnt.mean(), torch.tensor(1.0))


def test_gradnorms_weights_never_fall_to_zero() -> None:
    balancer = GradNorm(learning_rate=5).build(tasks(2))
    balancer.weights(torch.tensor([1.0, 1.0]), torch.tensor([4.0, 0.25]).diag(), torch.tensor([True, True]))
    assert balancer.learnt[0] > 0, "a step of 5 down from 1"
    torch.testing.assert_close(balancer.learnt, 2 * torch.tensor([1e-3, 6.0]) / 6.001)


@pytest.mark.parametrize(("alpha", "gains"), [(0.0, False), (1.0, False), (1.5, True)])
def test_gradnorms_alpha_says_how_long_the_gradient_of_a_laggard_should_be(alpha: float, gains: bool) -> None:
    """Losses .8 and 1.2 of the first ones: 1.25 is above 1.2^0 and 1.2^1 of the mean length, below 1.2^1.5 of it."""
    balancer = GradNorm(alpha=alpha).build(tasks(2))
    balancer.first.fill_(1)
    gramian = torch.tensor([0.75, 1.25]).square().diag()
    balancer.weights(torch.tensor([0.8, 1.2]), gramian, torch.tensor([True, True]))
    assert (balancer.learnt[1] > 1) == gains
