"""Balances against their formulae; a task without labels in the batch moves nothing."""

import math

import pytest
import torch

from multigate.balance import Fixed, Uncertainty, build_balance

LOSSES = torch.tensor([0.7, 0.1, 2.0])
PRESENT = torch.tensor([True, True, True])


def total(balance: Fixed | Uncertainty, losses: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    return (balance.weights(losses.detach(), None, present) * losses).sum() + balance.penalty(present)


def test_fixed_weights_are_the_declared_ones() -> None:
    balance = build_balance("fixed", (1.0, 2.0, 0.5))
    assert total(balance, LOSSES, PRESENT).item() == pytest.approx(0.7 + 2 * 0.1 + 0.5 * 2.0)
    assert not list(balance.parameters())


def test_uncertainty_is_kendalls_sum() -> None:
    """sum_t w_t (exp(-s_t) L_t / 2 + s_t / 2) (Kendall, Gal, Cipolla 2018), written out."""
    balance = Uncertainty((1.0, 2.0, 1.0))
    balance.log_variance.data = torch.tensor([0.3, -1.0, 2.0])
    expected = sum(
        w * (math.exp(-s) * loss / 2 + s / 2)
        for w, s, loss in zip((1, 2, 1), (0.3, -1.0, 2.0), LOSSES.tolist(), strict=True)
    )
    assert total(balance, LOSSES, PRESENT).item() == pytest.approx(expected)


def test_uncertainty_settles_where_each_variance_is_its_loss() -> None:
    """With constant losses the minimum over s is s = log L: every task then counts alike."""
    balance = Uncertainty((1.0, 1.0, 1.0))
    optimiser = torch.optim.Adam(balance.parameters(), lr=0.05)
    for _ in range(600):
        optimiser.zero_grad()
        total(balance, LOSSES, PRESENT).backward()
        optimiser.step()
    torch.testing.assert_close(balance.log_variance.detach(), LOSSES.log(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["fixed", "uncertainty"])
def test_an_absent_task_moves_neither_model_nor_weight(name: str) -> None:
    balance = build_balance(name, (1.0, 1.0, 1.0))
    losses = LOSSES.clone().requires_grad_()
    total(balance, losses, torch.tensor([True, False, True])).backward()
    assert losses.grad[1] == 0
    assert (losses.grad[[0, 2]] > 0).all()
    for parameter in balance.parameters():
        assert parameter.grad[1] == 0
