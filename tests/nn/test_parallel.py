"""Parallel layers against torch's own layers, one copy at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from multigate.nn.layout import lies_last
from multigate.nn.parallel import ParallelLayerNorm, ParallelLinear, ParallelMLP


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_linear_equals_n_linears(bias: bool, own: bool) -> None:
    layer = ParallelLinear(3, 5, 4, bias=bias)
    x = torch.randn(7, 3, 5) if own else torch.randn(7, 5)
    out = layer(x)
    assert out.shape == (7, 3, 4)
    for i in range(3):
        expected = functional.linear(x[:, i] if own else x, layer.weight[i], layer.bias[i] if bias else None)
        torch.testing.assert_close(out[:, i], expected)


def test_mlp_equals_n_sequentials() -> None:
    mlp = ParallelMLP(2, 5, (6, 3), normalisation="layer")
    x = torch.randn(8, 5)
    for i in range(2):
        parts: list[nn.Module] = []
        for layer, norm in zip(mlp.layers, mlp.norms, strict=True):
            linear, normal = nn.Linear(*layer.weight.shape[:0:-1]), nn.LayerNorm(layer.weight.shape[1])
            linear.load_state_dict({"weight": layer.weight[i], "bias": layer.bias[i]})
            normal.load_state_dict({"weight": norm.weight[i] * 1.5, "bias": norm.bias[i]})
            norm.weight.data[i] *= 1.5
            parts += [linear, normal, nn.ReLU()]
        torch.testing.assert_close(mlp(x)[:, i], nn.Sequential(*parts)(x))


def test_layer_norm_is_per_copy() -> None:
    norm = ParallelLayerNorm(2, 3)
    norm.weight.data[1] = 0.0
    out = norm(torch.randn(4, 2, 3))
    assert out[:, 1].abs().sum() == 0
    torch.testing.assert_close(out[:, 0].mean(-1), torch.zeros(4), atol=1e-6, rtol=0)


def test_no_hidden_layer_passes_the_input_on() -> None:
    x = torch.randn(4, 5)
    out = ParallelMLP(3, 5, ())(x)
    assert out.shape == (4, 3, 5)
    torch.testing.assert_close(out[:, 2], x)


def test_copies_are_initialised_like_linear_and_differ() -> None:
    weight = ParallelLinear(400, 25, 4).weight
    bound = 1 / 25**0.5
    assert weight.abs().max() <= bound
    torch.testing.assert_close(weight.std(), torch.tensor(bound / 3**0.5), atol=0.002, rtol=0)
    assert torch.pdist(weight.detach().flatten(1)).min() > 0.1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [1, 2, 6])
def test_linear_of_inputs_whose_batch_lies_last(bias: bool, inputs: int) -> None:
    """n / u copies in order read each of u inputs; what comes out lies as what went in."""
    layer = ParallelLinear(6, 5, 4, bias=bias)
    x = torch.randn(7, inputs, 5)
    last = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    expected = torch.stack(
        [functional.linear(x[:, i * inputs // 6], layer.weight[i], layer.bias[i] if bias else None) for i in range(6)],
        dim=1,
    )
    out = layer(last.requires_grad_())
    torch.testing.assert_close(out, expected)
    assert lies_last(out)
    assert not lies_last(layer(x))
    parts = (last, *layer.parameters())
    pull = torch.randn(7, 6, 4)
    x.requires_grad_()
    found, other = torch.autograd.grad(out, parts, pull), torch.autograd.grad(layer(x), (x, *parts[1:]), pull)
    torch.testing.assert_close(found, other)


@pytest.mark.parametrize("rows", [3, 5000])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("normalisation", ["none", "layer"])
def test_what_maps_make_is_read_by_first_layers(rows: int, training: bool, normalisation: str) -> None:
    """Of many rows as one map, of few as two: the same, and the same gradients."""
    mlp = ParallelMLP(3, 5, (4, 2), normalisation=normalisation).double().train(training)
    maps, x = torch.randn(3, 5, 7).double(), torch.randn(rows, 7).double()
    made: list[list[Tensor]] = []
    for run in (mlp.through, lambda x, maps: mlp(torch.einsum("nhd,bd->bnh", maps, x))):
        leaves = x.clone().requires_grad_(), maps.clone().requires_grad_()
        mlp.zero_grad()
        out = run(*leaves)
        out.square().sum().backward()
        made.append([out, *(one.grad for one in (*leaves, *mlp.parameters()))])
    torch.testing.assert_close(made[0], made[1])
    with FlopCounterMode(display=False) as counter:
        mlp.eval().through(x, maps)  # in training rows are padded
    apart, as_one = rows * (3 * 5 * 7 + 3 * 4 * 5), rows * 3 * 4 * 7 + 3 * 4 * 5 * 7
    assert counter.get_total_flops() // 2 == min(apart, as_one) + rows * 3 * 4 * 2
    assert (as_one < apart) == (rows > 3)
    assert mlp.multiply_adds_through(7) == 3 * 4 * 7 + 3 * 4 * 2


def test_who_hooks_into_a_first_layer_sees_what_it_reads() -> None:
    mlp, seen = ParallelMLP(2, 3, (2,)), []
    mlp.layers[0].register_forward_hook(lambda _, given, made: seen.append(given[0]))
    maps, x = torch.randn(2, 3, 4), torch.randn(500, 4)
    mlp.through(x, maps)
    torch.testing.assert_close(seen[0], torch.einsum("nhd,bd->bnh", maps, x))
