"""Gates, their penalties and mixtures against the definition."""

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from multigate.nn.gate import Gate, Regulariser, drop_sources, even_use
from multigate.nn.mixture import mix

MASK = ((True, True, False, True), (False, True, True, True))


def test_mix_is_the_weighted_sum() -> None:
    gate, sources = torch.rand(3, 2, 4), torch.randn(3, 4, 5)
    expected = torch.zeros(3, 2, 5)
    for b in range(3):
        for t in range(2):
            for e in range(4):
                expected[b, t] += gate[b, t, e] * sources[b, e]
    torch.testing.assert_close(mix(gate, sources), expected)


def test_gate_is_softmax_of_a_linear_map_bit_by_bit() -> None:
    gate, x = Gate(2, 4, 5), torch.randn(6, 5)
    expected = torch.softmax((x @ gate.linear.weight.flatten(0, 1).T).view(6, 2, 4), -1)
    weights, penalty = gate(x)
    assert torch.equal(weights, expected)
    assert penalty == 0


def test_gate_reads_its_own_row_of_a_three_dimensional_input() -> None:
    gate = Gate(2, 4, 5)
    x = torch.randn(3, 2, 5)
    out = gate(x).weights
    for k in range(2):
        torch.testing.assert_close(out[:, k], torch.softmax(x[:, k] @ gate.linear.weight[k].T, -1))


def test_temperature_divides_the_logits() -> None:
    gate = Gate(2, 4, 5, temperature=0.25)
    x = torch.randn(6, 5)
    expected = torch.softmax(4 * (x @ gate.linear.weight.flatten(0, 1).T).view(6, 2, 4), -1)
    torch.testing.assert_close(gate(x).weights, expected)


def test_dropped_sources_are_zero_and_the_rest_sums_to_one() -> None:
    gate = torch.softmax(torch.randn(2000, 2, 8), -1)
    dropped = drop_sources(gate, 0.1)
    torch.testing.assert_close(dropped.sum(-1), torch.ones(2000, 2))
    share = (dropped == 0).float().mean().item()
    assert abs(share - 0.1) < 0.01
    kept = dropped > 0  # what is kept keeps its proportions
    ratio = torch.where(kept, dropped / gate, torch.nan)
    spread = ratio.nan_to_num(0).amax(-1) - ratio.nan_to_num(torch.inf).amin(-1)
    assert spread.abs().max() < 1e-4


def test_a_row_that_would_lose_every_source_is_kept() -> None:
    gate = torch.softmax(torch.randn(50, 1, 2), -1)
    assert torch.equal(drop_sources(gate, 1.0), gate)


def test_gate_dropout_only_in_training() -> None:
    gate = Gate(1, 6, 3, regulariser=Regulariser(1, 6, dropout=0.5))
    x = torch.randn(64, 3)
    assert (gate(x).weights == 0).any()
    assert (gate.eval()(x).weights > 0).all()


def test_entropy_penalty_is_scipys_mean_entropy() -> None:
    weights = torch.softmax(3 * torch.randn(7, 2, 4), -1)
    weights[0, 0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    penalty = Regulariser(2, 4, entropy=0.5)(weights).penalty
    assert penalty.item() == pytest.approx(0.5 * entropy(weights.numpy(), axis=-1).mean(), rel=1e-5)


@pytest.mark.parametrize(("weight", "sharper"), [(1.0, True), (-1.0, False)])
def test_a_positive_entropy_penalty_sharpens_gates_and_a_negative_one_evens_them_out(
    weight: float, sharper: bool
) -> None:
    gate = Gate(2, 4, 5, mask=MASK, regulariser=Regulariser(2, 4, mask=MASK, entropy=weight))
    x = torch.randn(32, 5)
    before = entropy(gate(x).weights.detach().numpy(), axis=-1).mean()
    gate(x).penalty.backward()
    with torch.no_grad():
        gate.linear.weight -= 0.5 * gate.linear.weight.grad
    after = entropy(gate(x).weights.detach().numpy(), axis=-1).mean()
    assert (after < before) == sharper
    assert abs(after - before) > 0.01


def test_load_penalty_is_the_squared_variation_of_importance() -> None:
    """w CV(sum_x G(x))^2 over rows and readers: Shazeer et al. 2017, Eq. 6 and 7."""
    weights = torch.softmax(torch.randn(7, 2, 4), -1)
    importance = weights.numpy().sum(axis=(0, 1))
    penalty = Regulariser(2, 4, load=0.1)(weights).penalty
    assert penalty.item() == pytest.approx(0.1 * (importance.std() / importance.mean()) ** 2, rel=1e-4)


def test_load_penalty_is_zero_where_every_reader_spreads_evenly_over_what_it_may_read() -> None:
    mask = ((True, True, False, False), (True, True, True, True))
    even = torch.tensor([[0.5, 0.5, 0, 0], [0.25] * 4]).expand(3, -1, -1)
    regulariser = Regulariser(2, 4, mask=mask, load=1.0)
    assert regulariser(even).penalty.item() == pytest.approx(0, abs=1e-12)
    uneven = torch.tensor([[0.25, 0.75, 0, 0], [0.25] * 4]).expand(3, -1, -1)
    used = np.array([0.5, 1.0, 0.25, 0.25]) / np.array([0.75, 0.75, 0.25, 0.25])
    assert regulariser(uneven).penalty.item() == pytest.approx((used.std() / used.mean()) ** 2, rel=1e-5)


def test_even_use_is_what_readers_of_k_would_spread_evenly() -> None:
    mask = ((True, False, False), (True, True, True))
    torch.testing.assert_close(even_use(2, 3, mask), torch.tensor([4 / 3, 1 / 3, 1 / 3]))
    torch.testing.assert_close(even_use(2, 3, mask, k=2), torch.tensor([5 / 3, 2 / 3, 2 / 3]))
    torch.testing.assert_close(even_use(2, 3, None, k=9), torch.full((3,), 2.0))


def test_no_rows_have_no_penalty_and_evaluation_has_none() -> None:
    regulariser = Regulariser(2, 4, entropy=1.0, load=1.0)
    assert regulariser(torch.zeros(0, 2, 4)).penalty == 0
    weights = torch.softmax(torch.randn(7, 2, 4), -1)
    assert regulariser(weights).penalty > 0
    assert regulariser.eval()(weights).penalty == 0
