"""Linear layers with ReLU whose gradients are written out, against networks of single layers and autograd."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from multigate.nn import linear_layers as module
from multigate.nn.eager import MANY
from multigate.nn.embedding_tables import StackedTables
from multigate.nn.gate import Gate
from multigate.nn.inputs_alone import of_inputs_alone
from multigate.nn.linear_layers import LinearLayers
from multigate.nn.parallel import ParallelLinear, ParallelMLP
from multigate.nn.together import mixture

N, D = 3, 75
HIDDEN = [(8,), (8, 4), (30, 8, 4)]
LAYOUTS: dict[str, Callable[[int], Tensor]] = {
    "one input": lambda rows: torch.randn(rows, D),
    "one input, batch last": lambda rows: torch.randn(D, rows).t(),
    "one input, expanded": lambda rows: torch.randn(rows, 1, D).expand(-1, N, -1),
    "by rows": lambda rows: torch.randn(rows, N, D),
    "by copies": lambda rows: torch.randn(N, rows, D).transpose(0, 1),
    "batch last": lambda rows: torch.randn(N, D, rows).permute(2, 0, 1),
}


def loops(mlp: ParallelMLP, x: Tensor) -> Tensor:
    """Every copy as a network of its own; inputs are dealt to them in order."""
    copies = []
    for i in range(mlp.n):
        one = x if x.dim() == 2 else x[:, i * x.shape[1] // mlp.n]
        for layer in mlp.layers:
            one = torch.relu(functional.linear(one, layer.weight[i], layer.bias[i]))
        copies.append(one)
    return torch.stack(copies, dim=1)


def test_it_is_what_trains() -> None:
    assert type(ParallelMLP(N, D, (8,))(torch.randn(2, D)).grad_fn).__name__ == LinearLayers.__name__ + "Backward"


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("rows", [0, 1, 6])
def test_values_and_gradients_are_those_of_single_networks(hidden: tuple[int, ...], layout: str, rows: int) -> None:
    mlp, x = ParallelMLP(N, D, hidden).double(), LAYOUTS[layout](rows).double().requires_grad_()
    leaves, pull = [x, *mlp.parameters()], torch.randn(rows, N, hidden[-1], dtype=torch.float64)
    expected = loops(mlp, x)
    found = mlp(x)
    assert found.permute(1, 2, 0).is_contiguous()
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected, leaves, pull)
    for _ in range(2):  # balances go backwards once for each task
        gradients = torch.autograd.grad(found, leaves, pull, retain_graph=True)
        for one, other in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("hidden", [(), *HIDDEN])
@pytest.mark.parametrize("inputs", [1, 2, 3, 6])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_inputs_are_dealt_to_copies_in_order(hidden: tuple[int, ...], inputs: int, training: bool, rows: int) -> None:
    mlp = ParallelMLP(6, D, hidden).double().train(training)
    x = torch.randn(rows, inputs, D, dtype=torch.float64, requires_grad=True)
    leaves, expected, found = [x, *mlp.parameters()], loops(mlp, x), mlp(x)
    torch.testing.assert_close(found, expected)
    pull = torch.randn(expected.shape, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, leaves, pull)
    for one, other in zip(torch.autograd.grad(found, leaves, pull), wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("layout", ["one input", "by rows"])
def test_in_half_precision_it_is_within_rounding_of_autograd(hidden: tuple[int, ...], layout: str) -> None:
    mlp, x = ParallelMLP(N, D, hidden), LAYOUTS[layout](64).requires_grad_()
    leaves, pull = [x, *mlp.parameters()], torch.randn(64, N, hidden[-1])
    exact = torch.autograd.grad(loops(mlp, x), leaves, pull)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mlp(x)
    assert found.dtype == torch.bfloat16
    for one, other in zip(torch.autograd.grad(found, leaves, pull.bfloat16()), exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.1 * other.norm()


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_inputs_alone_are_those_without_the_rest(hidden: tuple[int, ...], layout: str) -> None:
    mlp, x = ParallelMLP(N, D, hidden), LAYOUTS[layout](64).requires_grad_()
    pull, read = torch.randn(64, N, hidden[-1]), x * 1
    found = mlp(read)
    (wanted,) = torch.autograd.grad(found, read, pull, retain_graph=True)

    def multiplied() -> int:
        with FlopCounterMode(display=False) as counter:
            (own,) = torch.autograd.grad(found, read, pull, retain_graph=True)
        assert torch.equal(own, wanted)
        return counter.get_total_flops()

    whole = multiplied()
    with of_inputs_alone():
        assert multiplied() <= 0.55 * whole
    assert multiplied() == whole
    found.backward(pull)
    assert all(parameter.grad is not None for parameter in mlp.parameters())


def test_weights_made_of_what_wants_a_gradient_pass_it_on() -> None:
    mlp, x = ParallelMLP(N, D, (8, 4)), torch.randn(5, D)
    about = torch.ones((), requires_grad=True)
    made = about * 1
    loss = mlp(x.requires_grad_(), mlp.layers[0].weight * made).sum()
    (wanted,) = torch.autograd.grad(loss, made, retain_graph=True)
    with of_inputs_alone():
        assert torch.equal(torch.autograd.grad(loss, made)[0], wanted)


def test_gates_beside_experts_pass_on_what_inputs_alone_ask() -> None:
    experts, gate, read = ParallelMLP(N, D, (8, 4)), Gate(2, N, D), torch.randn(6, D).requires_grad_() * 1
    mixed, _ = mixture(experts, gate, read)
    (wanted,) = torch.autograd.grad(mixed.sum(), read, retain_graph=True)
    with of_inputs_alone():
        assert torch.equal(torch.autograd.grad(mixed.sum(), read)[0], wanted)


def test_gradients_of_strided_and_expanded_results() -> None:
    mlp, x = ParallelMLP(N, D, (8, 4)).double(), torch.randn(5, D, dtype=torch.float64)
    for read in (lambda y: y.sum(), lambda y: y.transpose(0, 1)[1:].square().sum(), lambda y: y[::2].sum()):
        own = torch.autograd.grad(read(mlp(x)), list(mlp.parameters()))
        for one, other in zip(own, torch.autograd.grad(read(loops(mlp, x)), list(mlp.parameters())), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("compiled", [True, False])
def test_many_rows_without_gradients_are_those_of_single_networks(
    hidden: tuple[int, ...], layout: str, dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch last, which only the form of its own leaves so; below ``MANY`` rows, and with gradients, there is none."""
    if not compiled:
        monkeypatch.setattr(module, "kernels_for", lambda x: None)
    mlp, x = ParallelMLP(N, D, hidden, dropout=0.5).to(dtype).eval(), LAYOUTS[layout](MANY).to(dtype)
    for read in (torch.no_grad, torch.inference_mode):
        with read():
            found = mlp(x)
        assert found.permute(1, 2, 0).is_contiguous()
        torch.testing.assert_close(found, loops(mlp, x), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x[1:]), loops(mlp, x[1:]), rtol=1e-5, atol=1e-5)
    assert mlp(x).grad_fn is not None


def test_many_rows_in_half_precision_are_within_its_rounding() -> None:
    mlp, x = ParallelMLP(N, D, (30, 8, 4)).eval(), torch.randn(MANY, D)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = mlp(x)
    assert found.dtype == torch.bfloat16
    assert (found - loops(mlp, x)).norm() < 0.02 * loops(mlp, x).norm()


@pytest.mark.parametrize("rows", [MANY - 1, MANY])
def test_gates_beside_experts_of_many_rows(rows: int) -> None:
    experts, gate, x = ParallelMLP(N, D, (8, 4)).eval(), Gate(2, N, D).eval(), torch.randn(rows, D)
    with torch.no_grad():
        mixed, gated = mixture(experts, gate, x)
    weights = torch.softmax(torch.einsum("bd,ted->bte", x, gate.linear.weight), dim=-1)
    torch.testing.assert_close(gated.weights, weights)
    torch.testing.assert_close(mixed, torch.einsum("bte,beh->bth", weights, loops(experts, x)))


def test_hooks_are_called_for_many_rows() -> None:
    mlp, seen = ParallelMLP(N, D, (8, 4)).eval(), []
    mlp.layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    with torch.no_grad():
        mlp(torch.randn(MANY, D))
    assert seen == [(MANY, N, 8)]


def test_hooks_into_layers_are_called() -> None:
    mlp, seen = ParallelMLP(N, D, (8, 4)), []
    mlp.layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    mlp(torch.randn(2, D))
    assert seen == [(2, N, 8)]


def test_hooks_into_gradients_of_layers_are_called() -> None:
    mlp, seen = ParallelMLP(N, D, (8, 4)), []
    mlp.layers[1].register_full_backward_hook(lambda layer, inputs, outputs: seen.append(outputs[0].shape))
    mlp(torch.randn(2, D)).sum().backward()
    assert seen == [(2, N, 4)]


def test_frozen_layers_stay() -> None:
    mlp = ParallelMLP(N, D, (8, 4))
    mlp.layers[0].requires_grad_(False)
    mlp(torch.randn(2, D)).sum().backward()
    assert mlp.layers[0].weight.grad is None
    assert mlp.layers[1].weight.grad is not None


def test_one_expanded_input_costs_one_matmul() -> None:
    layer = ParallelLinear(N, D, 4)
    x = torch.randn(6, 1, D).expand(-1, N, -1)
    torch.testing.assert_close(layer(x), layer(x.contiguous()))


def test_looked_up_rows_have_the_gradient_of_torchs_embedding() -> None:
    tables = StackedTables({"a": 4, "b": 3}, 5, 1.0)
    ids, pull = torch.randint(0, 7, (9, 2), dtype=torch.int32), torch.randn(9, 2, 5)
    (own,) = torch.autograd.grad(tables(ids), [tables.weight], pull)
    (torchs,) = torch.autograd.grad(nn.functional.embedding(ids, tables.weight), [tables.weight], pull)
    torch.testing.assert_close(own, torchs)
