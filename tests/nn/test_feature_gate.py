"""Feature gates as plain loops."""

import math

import pytest
import torch

from multigate.nn.feature_gate import CompiledFeatures, FeatureGate, GatedFeatures
from multigate.nn.kernels import kernels, kernels_for


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_every_reader_weighs_each_feature_by_its_own_gate(own: bool, training: bool) -> None:
    """x_d * 2 sigmoid(sum_r (sum_c x_c A_cr) B_rd)."""
    gate = FeatureGate(3, 4, 2).train(training)
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


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_units_are_read_as_if_they_were_there_for_each_reader(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, autocast: bool
) -> None:
    if compiled and kernels() is None:
        pytest.skip("no C++ compiler here")
    monkeypatch.setattr("multigate.nn.feature_gate.kernels_for", lambda x: kernels_for(x) if compiled else None)
    gate, read = FeatureGate(5, 40, 8), torch.tensor([1, 0, 0, 1, 2])
    x, pull = torch.randn(3, 40, 200).permute(2, 0, 1), torch.randn(200, 5, 40)
    parts = (x.requires_grad_(), *gate.parameters())
    expected = 2 * torch.sigmoid(gate.up(gate.down(x[:, read]))) * x[:, read]
    wanted = torch.autograd.grad(expected, parts, pull)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        made = gate(x, read)
    function = CompiledFeatures if compiled else GatedFeatures
    assert type(made.grad_fn).__name__ == function.__name__ + "Backward"
    assert made.dtype == (torch.bfloat16 if autocast else torch.float32)
    for one, other in zip(
        (made, *torch.autograd.grad(made, parts, pull.to(made.dtype))), (expected, *wanted), strict=True
    ):
        assert (one - other).norm() < (2e-2 if autocast else 1e-6) * other.norm()
    with torch.no_grad():
        torch.testing.assert_close(gate.eval()(x, read), expected)


@pytest.mark.parametrize("training", [False, True])
def test_units_and_widths_are_those_that_layers_take(training: bool) -> None:
    """Compiled code would read beside what is there."""
    gate, one = FeatureGate(3, 8, 2), torch.randn(600, 1, 8)
    with torch.no_grad():
        expected = torch.cat([gate.eval()(row) for row in one.split(100)])
        torch.testing.assert_close(gate.train(training)(one), expected)
        for other in (one.expand(-1, 2, -1).contiguous(), torch.randn(600, 9), torch.randn(600, 3, 7)):
            with pytest.raises(RuntimeError, match=r"must match|cannot be multiplied|Expected size"):
                gate(other)


def test_a_gate_costs_twice_its_rank_for_each_feature() -> None:
    assert FeatureGate(3, 100, 8).multiply_adds() == 3 * 2 * 8 * 100


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("own", [False, True])
def test_gradients_written_out_are_those_of_differences(own: bool, last: bool) -> None:
    random = torch.Generator().manual_seed(0)
    shape = (5, 3, 4) if own else (5, 4)
    x, down, up = (torch.randn(one, generator=random, dtype=torch.float64) for one in (shape, (3, 2, 4), (3, 4, 2)))
    if last:
        x = x.permute(*range(1, x.dim()), 0).contiguous().permute(-1, *range(x.dim() - 1))
    for one in (x, down, up):
        one.requires_grad_()
    assert torch.autograd.gradcheck(GatedFeatures.apply, (x, down, up))


@pytest.mark.parametrize("own", [False, True])
def test_in_half_precision_it_is_near(own: bool) -> None:
    gate = FeatureGate(3, 40, 8)
    x = torch.randn(64, 3, 40) if own else torch.randn(64, 40)
    parts = (x.requires_grad_(), *gate.parameters())
    exact = torch.autograd.grad(gate(x).square().sum(), parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = gate(x)
    assert made.dtype == torch.bfloat16
    found = torch.autograd.grad(made.float().square().sum(), parts)
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.02 * other.norm()
