"""Feature gates as plain loops."""

import math

import pytest
import torch

from multigate.nn.feature_gate import FeatureGate


@pytest.mark.parametrize("own", [False, True])
def test_every_reader_weighs_each_feature_by_its_own_gate(own: bool) -> None:
    """x_d * 2 sigmoid(sum_r (sum_c x_c A_cr) B_rd)."""
    gate = FeatureGate(3, 4, 2)
    x = torch.randn(5, 3, 4) if own else torch.randn(5, 4)
    out = gate(x)
    assert out.shape == (5, 3, 4)
    for b in range(5):
        for i in range(3):
            row = (x[b, i] if own else x[b]).tolist()
            low = [sum(a * v for a, v in zip(line, row, strict=True)) for line in gate.down.weight[i].tolist()]
            for d, line in enumerate(gate.up.weight[i].tolist()):
                score = sum(a * v for a, v in zip(line, low, strict=True))
                expected = row[d] * 2 / (1 + math.exp(-score))
                assert out[b, i, d].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_gate_costs_twice_its_rank_for_each_feature() -> None:
    assert FeatureGate(3, 100, 8).multiply_adds() == 3 * 2 * 8 * 100
