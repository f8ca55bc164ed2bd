"""Operations in their stacked forms give what the usual ones give, for R as for one, gradients included."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap
from torch.nn import functional

from multigate.training.stacking import MANY, SHORT, Stacking

R, B = 3, 40

CASES: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "linear": (functional.linear, [(B, 5), (4, 5), (4,)]),
    "linear without bias": (functional.linear, [(B, 5), (4, 5)]),
    "linear of three axes": (functional.linear, [(B, 2, 5), (4, 5), (4,)]),
    "mixture": (torch.bmm, [(B, 2, 6), (B, 6, 7)]),
    "copies": (torch.bmm, [(6, B, 5), (6, 5, 7)]),
    "copies of layers": (lambda x, w, b: torch.baddbmm(b.unsqueeze(1), x, w.mT), [(6, B, 5), (6, 7, 5), (6, 7)]),
    "copies of one width": (lambda x, w: torch.bmm(x, w.mT), [(6, B, 1), (6, 1, 1)]),
    "few rows": (torch.bmm, [(MANY - 1, 2, 6), (MANY - 1, 6, 7)]),
    "wide mixture": (torch.bmm, [(B, 8, 32), (B, 32, 64)]),
    "softmax": (lambda x: torch.softmax(x, dim=-1), [(B, 2, 6)]),
    "long softmax": (lambda x: torch.softmax(x, dim=-1), [(B, SHORT + 1)]),
    "softmax of another axis": (lambda x: torch.softmax(x, dim=1), [(B, 2, 6)]),
    "softmax of one axis": (lambda x: torch.softmax(x, dim=0), [(6,)]),
}


@pytest.mark.parametrize("name", CASES)
def test_forms_are_equal(name: str) -> None:
    operation, shapes = CASES[name]
    inputs = [torch.randn(R, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    usual = torch.stack([operation(*(one[run] for one in inputs)) for run in range(R)])
    with Stacking():
        stacked = vmap(operation)(*inputs)
    torch.testing.assert_close(stacked, usual)
    direction = torch.randn_like(usual)
    for here, there in zip(
        torch.autograd.grad(stacked, inputs, direction), torch.autograd.grad(usual, inputs, direction), strict=True
    ):
        torch.testing.assert_close(here, there)


def test_the_weights_gradient_lies_in_memory_as_the_weight() -> None:
    """Else it is copied at every step, which for small batches costs as much as the product."""
    x, weight = torch.randn(R, B, 5), torch.randn(R, 4, 5, requires_grad=True)
    each, weights = torch.randn(R, 3, B, 5), torch.randn(R, 3, 4, 5, requires_grad=True)
    with Stacking():
        out = vmap(functional.linear)(x, weight)
        outs = vmap(lambda x, w: torch.bmm(x, w.mT))(each, weights)
    gradients = torch.autograd.grad(out.sum() + outs.sum(), [weight, weights])
    assert [one.stride() for one in gradients] == [weight.stride(), weights.stride()]


def test_outside_nothing_is_changed() -> None:
    x = torch.randn(B, 5)
    with Stacking():
        pass
    assert functional.linear(x, torch.randn(4, 5)).is_contiguous()
