"""Layouts change where numbers lie and nothing else."""

import pytest
import torch
from torch import Tensor, nn

from multigate.nn.layout import Transposed, batch_last, by_rows
from multigate.nn.parallel import PADDED, ParallelLinear, ParallelMLP

B, N, H = 6, 3, 5


def of_any_layout() -> list[Tensor]:
    x = torch.randn(B, N, H)
    last = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    copies = x.transpose(0, 1).contiguous().transpose(0, 1)
    return [x, last, copies, torch.randn(B, 1, H).expand(-1, N, -1)]


@pytest.mark.parametrize("layout", range(4))
def test_values_and_gradients_are_the_same_in_either_order(layout: int) -> None:
    x = of_any_layout()[layout].requires_grad_()
    pull = torch.randn(B, N, H)
    for turned, back in ((by_rows(x), by_rows(x)), (batch_last(x), batch_last(x).permute(2, 0, 1))):
        assert turned.is_contiguous()
        assert torch.equal(back, x)
        assert torch.equal(torch.autograd.grad(back, x, pull)[0], pull)


def test_the_gradient_of_a_transposed_copy_is_contiguous() -> None:
    x = torch.randn(4, 7, requires_grad=True)
    seen = []
    x.register_hook(lambda gradient: seen.append(gradient.is_contiguous()))
    y = Transposed.apply(x)
    y.backward(torch.randn(7, 4))
    assert y.is_contiguous()
    assert seen == [True]


def test_transposed_copies_stack() -> None:
    x = torch.randn(3, 4, 7)
    torch.testing.assert_close(torch.func.vmap(Transposed.apply)(x), x.transpose(1, 2))
    gradient = torch.func.vmap(torch.func.grad(lambda one: (Transposed.apply(one) ** 2).sum()))(x)
    torch.testing.assert_close(gradient, 2 * x)


def naive(layers: list[ParallelLinear], x: Tensor, i: int) -> Tensor:
    for layer in layers:
        x = torch.relu(x @ layer.weight[i].T + layer.bias[i])
    return x


@pytest.mark.parametrize("hidden", [(8,), (8, 4), (300, 8, 4)])
@pytest.mark.parametrize("layout", ["one input", "expanded", "rows", "batch last"])
@pytest.mark.parametrize("training", [True, False])
def test_copies_are_networks_of_their_own(hidden: tuple[int, ...], layout: str, training: bool) -> None:
    """Whatever the layout of the input and the padding of the weights: values and all gradients of plain networks."""
    d_in = 75
    mlp = ParallelMLP(N, d_in, hidden).train(training)
    assert (mlp.layers[0].weight.numel() >= PADDED) == (hidden[0] == 300)
    x = torch.randn(B, d_in) if layout in ("one input", "expanded") else torch.randn(B, N, d_in)
    if layout == "batch last":
        x = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    x.requires_grad_()
    read = x.unsqueeze(1).expand(-1, N, -1) if layout == "expanded" else x
    pull = torch.randn(B, N, hidden[-1])
    expected = torch.stack([naive([*mlp.layers], x if x.dim() == 2 else x[:, i], i) for i in range(N)], dim=1)
    leaves = [x, *mlp.parameters()]
    wanted = torch.autograd.grad(expected, leaves, pull)
    torch.testing.assert_close(mlp(read), expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(mlp(read), leaves, pull), wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("normalisation", ["layer", "batch"])
def test_normalised_layers_keep_the_gradient_of_what_they_activate(normalisation: str) -> None:
    """An activation in place must not write over what a normaliser's gradient needs."""
    torch.manual_seed(0)
    mlp = ParallelMLP(N, 4, (6, 5), normalisation=normalisation).double()  # type: ignore[arg-type]
    x = torch.randn(B, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mlp, (x,))


def test_looked_up_rows_have_the_gradient_of_torchs_embedding() -> None:
    from multigate.nn.embed import StackedTables

    tables = StackedTables({"a": 4, "b": 3}, 5, 1.0)
    ids, pull = torch.randint(0, 7, (9, 2), dtype=torch.int32), torch.randn(9, 2, 5)
    (own,) = torch.autograd.grad(tables(ids), [tables.weight], pull)
    (torchs,) = torch.autograd.grad(nn.functional.embedding(ids, tables.weight), [tables.weight], pull)
    torch.testing.assert_close(own, torchs)
