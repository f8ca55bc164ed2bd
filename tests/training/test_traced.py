"""Graphs of a step without what nobody needs compute what they computed before."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from multigate.training.traced import lean, sum_of_product

aten = torch.ops.aten


def mixed(weights: Tensor, sources: Tensor) -> Tensor:
    """A mixture and the gradient of its square, (R, T, E, B) and (R, E, H, B)."""
    with torch.enable_grad():
        leaves = weights.detach().requires_grad_(), sources.detach().requires_grad_()
        z = (leaves[0].unsqueeze(3) * leaves[1].unsqueeze(1)).sum(2)
        found = torch.autograd.grad(z.square().sum(), leaves)
    return torch.cat([z.detach().flatten(), *(one.flatten() for one in found)])


@pytest.mark.parametrize("compiled", [True, False])
def test_a_mixture_and_its_gradients_write_no_product(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multigate.training.traced.MANY", 3 * 2 * 4 * 5 * 33)
    if not compiled:
        monkeypatch.setattr("multigate.training.traced.kernels_for", lambda x: None)
    given = torch.randn(3, 2, 4, 33), torch.randn(3, 4, 5, 33)
    graph = make_fx(mixed)(*given)
    before = graph(*given)
    assert len(graph.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)) == 3
    lean(graph)
    assert len(graph.graph.find_nodes(op="call_function", target=sum_of_product)) == 3
    assert not graph.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)
    torch.testing.assert_close(graph(*given), before)


def test_small_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multigate.training.traced.MANY", 3 * 2 * 4 * 5 * 33 + 1)
    graph = lean(make_fx(mixed)(torch.randn(3, 2, 4, 33), torch.randn(3, 4, 5, 33)))
    assert not graph.graph.find_nodes(op="call_function", target=sum_of_product)


def test_what_else_reads_a_product_still_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multigate.training.traced.MANY", 0)

    def both(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        product = x * y
        return product.sum(0), product.exp(), (x * 2).sum(0), (x * y).sum((0, 1)), (x * y).sum(0, dtype=torch.float64)

    given = torch.randn(3, 4, 5), torch.randn(3, 4, 5)
    graph = lean(make_fx(both)(*given))
    assert not graph.graph.find_nodes(op="call_function", target=sum_of_product)
    for one, other in zip(graph(*given), both(*given), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_sums_are_torchs_whichever_way_they_are_taken(dim: int, keepdim: bool) -> None:
    one, other = torch.randn(3, 4, 32), torch.randn(3, 1, 32)
    found = sum_of_product(one, other, dim, keepdim)
    torch.testing.assert_close(found, (one * other).sum(dim, keepdim=keepdim))
