"""Mixtures by weights that all rows share, beside the sum written out."""

import pytest
import torch
from torch import Tensor

from multigate.nn import mixture
from multigate.nn.kernels import kernels
from multigate.nn.mixture import FEW, combine, mix

H, B = 5, 9


def found(weights: Tensor, last: Tensor, pull: Tensor) -> list[Tensor]:
    made = combine(weights, last)
    assert made.is_contiguous(), "(T, H, B), the batch last"
    return [made, *torch.autograd.grad(made, (weights, last), pull)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tasks", "sources"), [(1, 1), (2, 3), (4, 8), (6, 7)])
@pytest.mark.parametrize("rows", [0, 1, B])
def test_combined_by_weights_that_all_rows_share(dtype: torch.dtype, tasks: int, sources: int, rows: int) -> None:
    weights, last = torch.randn(tasks, sources, dtype=dtype), torch.randn(sources, H, rows, dtype=dtype)
    pull = torch.randn(tasks, H, rows, dtype=dtype)
    expected = [
        torch.einsum("ts,shb->thb", weights.double(), last.double()),
        torch.einsum("thb,shb->ts", pull.double(), last.double()),
        torch.einsum("ts,thb->shb", weights.double(), pull.double()),
    ]
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.06}
    for one, other in zip(found(weights.requires_grad_(), last.requires_grad_(), pull), expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one.double(), other, **near)


def test_few_in_half_precision_are_weighed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.003 - 1 is lost where weights are rounded, for bfloat16 has no number between 1 and 1.0078."""
    if kernels() is None:
        pytest.skip("no C++ compiler here, and torch's matmul rounds weights")
    weights, last = torch.tensor([[1.003, -1.0]]), torch.full((2, H, B), 256.0, dtype=torch.bfloat16)
    last.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(combine(weights, last).float(), torch.full((1, H, B), 0.768), rtol=0.01, atol=0)
        monkeypatch.setattr(mixture, "kernels_for", lambda x: None)
        torch.testing.assert_close(combine(weights, last).float(), torch.zeros(1, H, B))


def test_many_are_one_matmul(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Tensor) -> Tensor:
        raise AssertionError("mixed row by row")

    monkeypatch.setattr(mixture, "mix", refused)
    many = FEW // 2 + 1
    weights, last = torch.randn(2, many, dtype=torch.bfloat16), torch.randn(many, H, B, dtype=torch.bfloat16)
    assert combine(weights, last.requires_grad_()).shape == (2, H, B)


@pytest.mark.parametrize(("rows", "sources"), [(B, 4), (B, 2), (B + 1, 3), (B - 1, 3)])
def test_gates_of_other_rows_or_sources_are_refused(rows: int, sources: int) -> None:
    """Compiled code would read beside them."""
    gate, last = torch.rand(rows, 2, sources), torch.randn(3, H, B)
    for read in (last.permute(2, 0, 1), last.permute(2, 0, 1).contiguous()):
        with pytest.raises(RuntimeError, match="Expected size for first two dimensions"):
            mix(gate, read)


@pytest.mark.parametrize("readers", [2, FEW])
def test_without_compiled_code_what_autocast_left_in_float32_has_gradients(
    readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer normalisation leaves it so; gradients come when autocast is over."""
    monkeypatch.setattr(mixture, "kernels_for", lambda x: None)
    gate, last = torch.rand(B, readers, 3, requires_grad=True), torch.randn(3, H, B, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        made = mix(gate, last.permute(2, 0, 1))
    pull = torch.randn(made.shape).to(made.dtype)
    of_gate, of_last = torch.autograd.grad(made, (gate, last), pull)
    torch.testing.assert_close(of_gate, torch.einsum("bth,ehb->bte", pull.float(), last), rtol=0.03, atol=0.06)
    torch.testing.assert_close(of_last, torch.einsum("bte,bth->ehb", gate, pull.float()), rtol=0.03, atol=0.06)
