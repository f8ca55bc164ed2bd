"""What stands behind linear layers, computed in one pass, against torch's own layers one after the other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.nn import activation as module
from multigate.nn.activation import ACTIVATIONS, Activated, activate
from multigate.nn.chance import bytes_of, level_of
from multigate.nn.eager import MANY
from multigate.nn.gate import Gate
from multigate.nn.norm import ParallelBatchNorm, ParallelLayerNorm
from multigate.nn.parallel import ParallelMLP
from multigate.nn.together import together

N, H = 3, 20
NORMS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "layer": lambda: drawn(ParallelLayerNorm(N, H)),
    "batch": lambda: drawn(ParallelBatchNorm(N, H)),
}


def drawn(norm: nn.Module) -> nn.Module:
    """With scales and shifts of their own."""
    nn.init.uniform_(norm.weight, 0.5, 2)  # type: ignore[arg-type]
    nn.init.uniform_(norm.bias, -1, 1)  # type: ignore[arg-type]
    return norm


def batch_last(rows: int, width: int = H) -> Tensor:
    """Numbers of units that have means and spreads of their own."""
    x = torch.randn(N, width, rows) * torch.linspace(0.5, 2, width).unsqueeze(1) + torch.linspace(-1, 1, N).view(
        -1, 1, 1
    )
    return x.permute(2, 0, 1).requires_grad_()


def by_torch(x: Tensor, norm: Any, activation: str, kept: Tensor | float = 1.0) -> Tensor:
    """In float64; ``kept`` (B, N, H), what dropout multiplies by."""
    if isinstance(norm, ParallelLayerNorm):
        x = functional.layer_norm(x, x.shape[-1:]) * norm.weight.double() + norm.bias.double()
    if isinstance(norm, ParallelBatchNorm):
        normal = functional.batch_norm(x.flatten(1), None, None, training=True).view(x.shape)
        x = normal * norm.weight.double() + norm.bias.double()
    return ACTIVATIONS[activation](x) * kept


def is_compiled(x: Tensor) -> bool:
    """Whether x came from the pass that is tested; without a compiler there is none, and all else must hold."""
    node = x.grad_fn.next_functions[0][0] if type(x.grad_fn).__name__ == "PermuteBackward0" else x.grad_fn  # type: ignore[union-attr]
    return type(node).__name__ == Activated.__name__ + "Backward"


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("rows", [2, 7, 128, 301])
def test_values_and_gradients_are_torchs(rows: int, kind: str, activation: str, rate: float) -> None:
    norm, x = NORMS[kind](), batch_last(rows)
    leaves = [x, *(() if norm is None else norm.parameters())]
    pull = torch.randn(rows, N, H)
    kept: Tensor | float = 1.0
    torch.manual_seed(5)
    if rate:
        kept = (bytes_of((N, H, rows), x.device) < level_of(1 - rate)).permute(2, 0, 1) / (level_of(1 - rate) / 256)
    expected = by_torch(x.double(), norm, activation, kept)
    torch.manual_seed(5)
    found = activate(x, norm, activation, rate, training=True)
    assert found.permute(1, 2, 0).is_contiguous()
    assert is_compiled(found) == (kind != "none" or rate > 0)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)
    wanted = torch.autograd.grad(expected, leaves, pull.double())
    for _ in range(2):  # balances go backwards once for each task
        for one, other in zip(torch.autograd.grad(found, leaves, pull, retain_graph=True), wanted, strict=True):
            torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=1e-4 if rows > 2 else 2e-3)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_from_zero_and_near_it_activations_and_slopes_are_torchs(activation: str) -> None:
    ends = torch.tensor([0.0, 1e-30, 1e-4, 0.3, 1, 20, 90, 500, 1e30, torch.inf])
    values = torch.cat([ends, -ends, torch.linspace(-10, 10, 1003), torch.tensor([torch.nan])])
    x = values.expand(1, 1, -1).contiguous().permute(2, 0, 1).requires_grad_()
    torch.manual_seed(1)
    kept = (bytes_of((1, 1, len(values)), x.device) < 255).permute(2, 0, 1) / (255 / 256)
    expected = by_torch(x.double(), None, activation, kept)
    torch.manual_seed(1)
    found = activate(x, None, activation, 1 / 256, training=True)
    whole = torch.isfinite(values).view(x.shape)
    torch.testing.assert_close(found[whole], expected.float()[whole], rtol=1e-6, atol=1e-6)
    assert torch.isnan(found[-1]).all()
    one, other = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for y in (found, expected))
    torch.testing.assert_close(one[whole], other[whole], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", NORMS)
def test_in_half_precision_it_is_within_rounding(kind: str) -> None:
    norm, x, pull = NORMS[kind](), batch_last(64), torch.randn(64, N, H)
    leaves = [x, *(() if norm is None else norm.parameters())]
    torch.manual_seed(2)
    found = activate(x.bfloat16(), norm, "silu", 0.5, training=True)
    assert found.dtype == torch.bfloat16
    torch.manual_seed(2)
    expected = activate(x, norm, "silu", 0.5, training=True)
    assert (found - expected).norm() < 0.02 * expected.norm()
    wanted = torch.autograd.grad(expected, leaves, pull)
    for one, other in zip(torch.autograd.grad(found, leaves, pull.bfloat16()), wanted, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).norm() < 0.02 * other.norm()


@pytest.mark.parametrize("kind", NORMS)
def test_without_compiled_code_it_is_the_same(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elements that are dropped too."""
    norm, x, pull = NORMS[kind](), batch_last(30), torch.randn(30, N, H)
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        y = activate(x, norm, "gelu", 0.2, training=True)
        made.append((y, *torch.autograd.grad(y, x, pull)))
        monkeypatch.setattr(module, "kernels_for", lambda x: None)
    assert [is_compiled(y) for y, _ in made] == [True, False]
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_it_is_computed_in_float32_whatever_the_default_is() -> None:
    norm, x = NORMS["layer"](), batch_last(40)
    leaves, pull = [x, *norm.parameters()], torch.randn(40, N, H)
    expected = activate(x, norm, "silu", 0.0, training=True)
    wanted = torch.autograd.grad(expected, leaves, pull)
    try:
        torch.set_default_dtype(torch.float64)
        found = activate(x, norm, "silu", 0.0, training=True)
        gradients = torch.autograd.grad(found, leaves, pull)
    finally:
        torch.set_default_dtype(torch.float32)
    for one, other in zip((found, *gradients), (expected, *wanted), strict=True):
        assert torch.equal(one, other)


def test_running_averages_follow_as_torchs_do() -> None:
    norm, own = ParallelBatchNorm(1, H), nn.BatchNorm1d(H)
    for rows in (2, 40, 300):
        x = (torch.randn(1, H, rows) * 3 + 1).permute(2, 0, 1).requires_grad_()
        assert is_compiled(activate(x, norm, "relu", 0.0, training=True))
        own(x[:, 0])
    torch.testing.assert_close(norm.mean[0], own.running_mean)
    torch.testing.assert_close(norm.variance[0], own.running_var)
    norm.eval()
    x = batch_last(5).permute(1, 2, 0)[:1].permute(2, 0, 1)
    torch.testing.assert_close(
        activate(x, norm, "silu", 0.0, training=False)[:, 0], functional.silu(own.eval()(x[:, 0]))
    )


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("rows", [0, 1])
def test_batches_of_one_row_or_none(kind: str, rows: int) -> None:
    norm, x = NORMS[kind](), batch_last(rows)
    made = activate(x, norm, "silu", 0.5, training=True)
    assert made.shape == (rows, N, H)
    assert torch.isfinite(made).all()
    assert torch.isfinite(torch.autograd.grad(made.sum(), x)[0]).all()


def test_hooks_into_normalisers_are_called() -> None:
    seen: list[object] = []
    mlp = ParallelMLP(N, 6, (8, H), normalisation="layer")
    mlp.norms[1].register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    mlp(torch.randn(4, 6)).sum().backward()
    assert seen == [(4, N, H)]


def test_what_is_frozen_stays() -> None:
    mlp = ParallelMLP(N, 6, (8, 5), normalisation="batch", activation="silu", dropout=0.1)
    mlp.norms[0].weight.requires_grad_(False)
    mlp(torch.randn(9, 6)).sum().backward()
    assert mlp.norms[0].weight.grad is None
    assert mlp.norms[0].bias.grad is not None


OPTIONS = [
    {"activation": "silu"},
    {"activation": "tanh", "normalisation": "layer"},
    {"normalisation": "batch"},
    {"dropout": 0.5},
    {"dropout": 0.2, "activation": "gelu", "normalisation": "layer"},
]


def apart(experts: ParallelMLP, x: Tensor) -> Tensor:
    """Layer after layer in float64, with masks as they are drawn, copy for copy."""
    for layer, norm in zip(experts.layers, [*experts.norms] or [None] * len(experts.layers), strict=True):
        weight, bias = layer.weight.double(), layer.bias.double()
        x = torch.einsum("bd,nhd->bnh" if x.dim() == 2 else "bnd,nhd->bnh", x, weight) + bias
        kept: Tensor | float = 1.0
        if experts.training and experts.dropout:
            level = level_of(1 - experts.dropout)
            kept = (bytes_of(x.permute(1, 2, 0).shape, x.device) < level).permute(2, 0, 1) / (level / 256)
        x = by_torch(x, norm, experts.activation, kept)
    return x


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("lies", ["by rows", "expanded", "by copies"])
@pytest.mark.parametrize("rows", [3, 200])
def test_networks_train_as_layer_after_layer_does(options: dict[str, Any], lies: str, rows: int) -> None:
    mlp = ParallelMLP(N, 9, (8, 5), **options)
    read = torch.randn(rows, 9, requires_grad=True)
    x = {"by rows": read, "expanded": read.unsqueeze(1).expand(-1, N, -1), "by copies": read.expand(N, -1, -1)}[lies]
    x = x.transpose(0, 1).contiguous() if lies == "by copies" else x
    torch.manual_seed(4)
    expected = apart(mlp, read.double())
    torch.manual_seed(4)
    found = mlp(x)
    pull, leaves = torch.randn(found.shape), [read, *mlp.parameters()]
    dropped_alike = lies != "by copies" or not options.get("dropout")  # masks lie as what they mask
    if dropped_alike:
        torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4)
        wanted = torch.autograd.grad(expected, leaves, pull.double())
        for one, other in zip(torch.autograd.grad(found, leaves, pull), wanted, strict=True):
            torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=2e-3)
    if lies != "by copies":
        assert found.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("options", [one for one in OPTIONS if one.get("normalisation") != "batch"])
@pytest.mark.parametrize("rows", [MANY - 1, MANY])
def test_networks_predict_as_layer_after_layer_does(options: dict[str, Any], rows: int) -> None:
    mlp, x = ParallelMLP(N, 9, (8, 5), **options).eval(), torch.randn(rows, 9)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), apart(mlp, x.double()).float(), rtol=1e-4, atol=1e-5)
        for i in range(N):
            torch.testing.assert_close(mlp.one(i, x), mlp(x)[:, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("training", [True, False])
def test_gates_beside_such_experts_come_from_the_same_matmul(options: dict[str, Any], training: bool) -> None:
    experts, gate = ParallelMLP(N, 9, (8, 5), **options).train(training), Gate(2, N, 9).train(training)
    x = torch.randn(MANY, 9)
    with torch.set_grad_enabled(training):
        torch.manual_seed(6)
        made, (gated,) = together(experts, [gate], x)
        torch.manual_seed(6)
        torch.testing.assert_close(made, experts(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gated.weights, gate(x).weights)
    if training:
        assert "LinearLayers" in {
            type(one).__name__.removesuffix("Backward") for one in upstream(gated.weights.grad_fn)
        }


def upstream(node: Any) -> list[Any]:
    """All that a value was made by."""
    found: list[Any] = []
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.append(one)
            waiting += [other for other, _ in one.next_functions]
    return found
