"""Balances of losses against their formulae, written out."""

import math

import pytest
import torch
from torch import Tensor, nn

from multigate.balance import DWA, FAMO, IMTLL, STCH, Balancer, Fixed, GeometricMean, RandomWeights, Uncertainty
from multigate.schema import Task

LOSSES = torch.tensor([0.7, 0.1, 2.0])
PRESENT = torch.tensor([True, True, True])


def tasks(*weights: float) -> list[Task]:
    return [Task(f"task{i}", weight=weight) for i, weight in enumerate(weights)]


def total(balancer: Balancer, losses: Tensor, present: Tensor) -> Tensor:
    return (balancer.weights(losses.detach(), None, present) * losses).sum() + balancer.penalty(present)


def test_fixed_weights_are_the_declared_ones() -> None:
    balancer = Fixed().build(tasks(1.0, 2.0, 0.5))
    assert total(balancer, LOSSES, PRESENT).item() == pytest.approx(0.7 + 2 * 0.1 + 0.5 * 2.0)
    assert not list(balancer.parameters())


def test_uncertainty_is_kendalls_sum() -> None:
    """sum_t w_t (exp(-s_t) L_t / 2 + s_t / 2) (Kendall, Gal, Cipolla 2018), written out."""
    balancer = Uncertainty().build(tasks(1.0, 2.0, 1.0))
    balancer.log_variance.data = torch.tensor([0.3, -1.0, 2.0])
    expected = sum(
        w * (math.exp(-s) * loss / 2 + s / 2)
        for w, s, loss in zip((1, 2, 1), (0.3, -1.0, 2.0), LOSSES.tolist(), strict=True)
    )
    assert total(balancer, LOSSES, PRESENT).item() == pytest.approx(expected)


def test_imtl_l_is_its_sum() -> None:
    """sum_t w_t (exp(s_t) L_t - s_t), written out."""
    balancer = IMTLL().build(tasks(1.0, 2.0, 1.0))
    balancer.log_scale.data = torch.tensor([0.3, -1.0, 2.0])
    expected = sum(
        w * (math.exp(s) * loss - s) for w, s, loss in zip((1, 2, 1), (0.3, -1.0, 2.0), LOSSES.tolist(), strict=True)
    )
    assert total(balancer, LOSSES, PRESENT).item() == pytest.approx(expected)


@pytest.mark.parametrize(("options", "sign"), [(Uncertainty(), 1), (IMTLL(), -1)], ids=["uncertainty", "imtl_l"])
def test_learnt_weights_settle_where_every_task_counts_alike(options: Uncertainty | IMTLL, sign: int) -> None:
    """With constant losses the minimum over s is s = log L, or -log L, whatever weights are declared."""
    balancer = options.build(tasks(1.0, 3.0, 1.0))
    optimiser = torch.optim.Adam(balancer.parameters(), lr=0.05)
    for _ in range(600):
        optimiser.zero_grad()
        total(balancer, LOSSES, PRESENT).backward()
        optimiser.step()
    (learnt,) = balancer.parameters()
    torch.testing.assert_close(sign * learnt.detach(), LOSSES.log(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", [Fixed(), Uncertainty(), IMTLL()], ids=lambda options: options.method)
def test_an_absent_task_moves_neither_model_nor_weight(options: Fixed | Uncertainty | IMTLL) -> None:
    balancer = options.build(tasks(1.0, 1.0, 1.0))
    losses = LOSSES.clone().requires_grad_()
    total(balancer, losses, torch.tensor([True, False, True])).backward()
    assert losses.grad[1] == 0
    assert (losses.grad[[0, 2]] > 0).all()
    for parameter in balancer.parameters():
        assert parameter.grad[1] == 0


def test_dwa_weighs_by_how_slowly_losses_fall() -> None:
    """T softmax(r / 2) with r = L(t - 1) / L(t - 2), equal in the first two epochs (Liu et al. 2019, Eq. 7)."""
    balancer = DWA().build(tasks(1.0, 1.0, 2.0))
    epochs = [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.9, 1.0, 4.4]), torch.tensor([0.9, 0.9, 1.1])]
    for epoch, means in enumerate(epochs):
        expected = [1.0, 1.0, 1.0]
        if epoch == 2:
            powers = [math.exp(rate / 2) for rate in (0.9, 0.5, 1.1)]
            expected = [3 * power / sum(powers) for power in powers]
        weights = balancer.weights(LOSSES, None, PRESENT)
        torch.testing.assert_close(weights, torch.tensor([expected[0], expected[1], 2 * expected[2]]))
        balancer.after_epoch(means)
    powers = [math.exp(rate / 2) for rate in (1.0, 0.9, 0.25)]
    weights = balancer.weights(LOSSES, None, torch.tensor([True, True, False]))
    torch.testing.assert_close(weights[:2], 2 * torch.tensor(powers[:2]) / sum(powers[:2]))


def test_dwa_knows_no_rate_of_a_task_that_had_no_labels_in_an_epoch() -> None:
    """Its mean loss was 0, to which no loss can be compared: a rate of 1, as at the start."""
    balancer = DWA().build(tasks(1.0, 1.0, 1.0))
    for means in ([1.0, 0.0, 2.0], [0.5, 0.3, 1.8]):
        balancer.after_epoch(torch.tensor(means))
    powers = torch.tensor([0.5, 1.0, 0.9]).div(2).exp()
    torch.testing.assert_close(balancer.weights(LOSSES, None, PRESENT), 3 * powers / powers.sum())


def test_famo_follows_its_algorithm() -> None:
    """Against the algorithm as its authors wrote it: a parameter, torch's Adam, gradients by autograd."""
    torch.manual_seed(0)
    balancer = FAMO().build(tasks(1.0, 1.0, 1.0))
    xi = nn.Parameter(torch.zeros(3))
    optimiser = torch.optim.Adam([xi], lr=0.025, weight_decay=1e-3)
    for _ in range(40):
        before = torch.rand(3) + 0.05
        after = before * (1 - 0.3 * torch.rand(3) * torch.tensor([1.0, 0.1, 2.0]))
        losses = before.clone().requires_grad_()
        z = torch.softmax(xi.detach(), 0)
        scale = 1 / (z / before).sum()
        (scale * (z * losses.log()).sum()).backward()
        torch.testing.assert_close(balancer.weights(before, None, PRESENT), 3 * losses.grad)
        balancer.after_step(before, after, PRESENT)
        optimiser.zero_grad()
        (torch.softmax(xi, 0) * (before.log() - after.log())).sum().backward()
        optimiser.step()
    torch.testing.assert_close(balancer.logits, xi.detach(), atol=1e-5, rtol=1e-4)
    assert balancer.logits.argmax() == 1, "the task whose loss falls slowest gains"


def test_famo_leaves_absent_tasks_as_they_are() -> None:
    balancer = FAMO().build(tasks(1.0, 1.0, 1.0))
    balancer.after_step(LOSSES, LOSSES * torch.tensor([0.5, 0.9, 0.7]), PRESENT)
    kept = {name: value.clone() for name, value in balancer.state_dict().items()}
    balancer.after_step(LOSSES * 0, LOSSES * 0, torch.zeros(3, dtype=torch.bool))
    assert all(torch.equal(value, kept[name]) for name, value in balancer.state_dict().items())
    balancer.after_step(LOSSES, LOSSES * torch.tensor([0.5, 0.9, 0.7]), torch.tensor([True, False, True]))
    for name, value in balancer.state_dict().items():
        if name not in ("declared",):
            assert value[1] == kept[name][1]
            assert value[0] != kept[name][0]


@pytest.mark.parametrize("why", ["without labels", "of weight 0"])
def test_famo_learns_as_if_a_task_that_is_not_balanced_were_not_there(why: str) -> None:
    balancer = FAMO().build(tasks(1.0, 1.0 if why == "without labels" else 0.0, 1.0))
    alone = FAMO().build(tasks(1.0, 1.0))
    present = torch.tensor([True, why != "without labels", True])
    for _ in range(5):
        before, after = torch.rand(3) + 0.5, torch.rand(3) + 0.1
        balancer.after_step(before, after, present)
        alone.after_step(before[[0, 2]], after[[0, 2]], torch.tensor([True, True]))
    torch.testing.assert_close(balancer.logits[[0, 2]], alone.logits)
    assert balancer.logits[1] == 0


def test_stch_is_the_gradient_of_the_smooth_maximum() -> None:
    """T^2 mu log sum_t exp(w_t L_t / (T mu)), by autograd; for a small mu only the largest loss counts."""
    losses = LOSSES.clone().requires_grad_()
    declared = torch.tensor([1.0, 2.0, 0.5])
    (9 * 0.4 * torch.logsumexp(declared * losses / (3 * 0.4), 0)).backward()
    balancer = STCH(mu=0.4).build(tasks(1.0, 2.0, 0.5))
    torch.testing.assert_close(balancer.weights(LOSSES, None, PRESENT), losses.grad)
    sharp = STCH(mu=1e-3).build(tasks(1.0, 1.0, 1.0)).weights(LOSSES, None, PRESENT)
    torch.testing.assert_close(sharp, torch.tensor([0.0, 0.0, 3.0]))


def test_the_geometric_mean_is_the_gradient_of_it() -> None:
    losses = LOSSES.clone().requires_grad_()
    declared = torch.tensor([1.0, 2.0, 0.5])
    (3.5 * (losses**declared).prod() ** (1 / 3.5)).backward()
    balancer = GeometricMean().build(tasks(1.0, 2.0, 0.5))
    torch.testing.assert_close(balancer.weights(LOSSES, None, PRESENT), losses.grad)


def test_random_weights_are_softmaxes_of_normal_numbers() -> None:
    balancer = RandomWeights().build(tasks(1.0, 1.0, 1.0))
    torch.manual_seed(5)
    drawn = torch.stack([balancer.weights(LOSSES, None, PRESENT) for _ in range(2000)])
    torch.testing.assert_close(drawn.sum(1), torch.full((2000,), 3.0))
    torch.testing.assert_close(drawn.mean(0), torch.ones(3), atol=0.05, rtol=0)
    logs = (drawn[:, 0] / drawn[:, 1]).log()  # the difference of two standard normal numbers
    assert logs.std().item() == pytest.approx(math.sqrt(2), rel=0.05)
    torch.manual_seed(5)
    assert torch.equal(balancer.weights(LOSSES, None, PRESENT), drawn[0])
