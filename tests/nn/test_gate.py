"""Gates and mixtures against the definition."""

import torch

from multigate.nn.gate import Gate, drop_sources, mix


def test_mix_is_the_weighted_sum() -> None:
    gate, sources = torch.rand(3, 2, 4), torch.randn(3, 4, 5)
    expected = torch.zeros(3, 2, 5)
    for b in range(3):
        for t in range(2):
            for e in range(4):
                expected[b, t] += gate[b, t, e] * sources[b, e]
    torch.testing.assert_close(mix(gate, sources), expected)


def test_gate_reads_its_own_row_of_a_three_dimensional_input() -> None:
    gate = Gate(2, 4, 5)
    x = torch.randn(3, 2, 5)
    out = gate(x).weights
    for k in range(2):
        torch.testing.assert_close(out[:, k], torch.softmax(x[:, k] @ gate.linear.weight[k].T, -1))


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
    gate = Gate(1, 6, 3, dropout=0.5)
    x = torch.randn(64, 3)
    assert (gate(x).weights == 0).any()
    assert (gate.eval()(x).weights > 0).all()
