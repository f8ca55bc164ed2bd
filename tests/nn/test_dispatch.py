"""Dispatched rows: the same mixture as of all experts on all rows, with less work."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from multigate.analysis.units import watching
from multigate.nn.dispatch import dispatch_pays, dispatched, mix_experts, multiply_adds
from multigate.nn.mixture import mix
from multigate.nn.parallel import ParallelMLP
from multigate.nn.sparse_gate import TopKGate

D, E, READERS, MANY = 40, 16, 2, 2048
"""Sizes at which dispatching pays."""


class Mixture(nn.Module):
    """Top-2 gates of two readers, and 16 experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = TopKGate(READERS, E, D, 2)
        self.experts = ParallelMLP(E, D, (128, 64))

    def forward(self, x: Tensor) -> Tensor:
        return mix_experts(self.gate(x).weights, self.experts, x, sparse=True)

    def plain(self, x: Tensor) -> Tensor:
        return mix(self.gate(x).weights, self.experts(x))


def by_rows(weights: Tensor, experts: ParallelMLP, x: Tensor) -> Tensor:
    used = (weights != 0).any(1)
    return dispatched(weights, experts, x, used, used.sum(0).tolist())


def counted(run: nn.Module, x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        run(x)
    return counter.get_total_flops() // 2


def sparse_weights(rows: int, experts: int = 5) -> Tensor:
    """Rows of nothing, of one, and of several sources, some negative (structures weigh by no distribution, too)."""
    return torch.randn(rows, READERS, experts) * (torch.rand(rows, READERS, experts) < 0.3)


@pytest.mark.parametrize("normalisation", ["none", "layer", "batch"])
@pytest.mark.parametrize("hidden", [(6, 4), (3,)])
@pytest.mark.parametrize("rows", [1, 2, 50])
@pytest.mark.parametrize("own", [False, True])
def test_dispatched_is_the_dense_mixture(rows: int, hidden: tuple[int, ...], normalisation: str, own: bool) -> None:
    experts = ParallelMLP(5, D, hidden, normalisation=normalisation, activation="silu")
    for name, state in (*experts.named_parameters(), *experts.named_buffers()):
        nn.init.uniform_(state, 0.5 if "variance" in name else -1, 1)
    experts.eval()
    x = torch.randn(rows, 5, D) if own else torch.randn(rows, D)
    weights = sparse_weights(rows)
    weights[0, 0, 2] = 0.5  # not nothing at all
    torch.testing.assert_close(by_rows(weights, experts, x), mix(weights, experts(x)), atol=1e-5, rtol=1e-5)


def test_dispatched_has_the_dense_gradient() -> None:
    experts = ParallelMLP(5, D, (6, 4)).eval()
    x, weights, towards = torch.randn(30, D), sparse_weights(30), torch.randn(30, READERS, 4)
    gradients = []
    for way in (by_rows, lambda weights, experts, x: mix(weights, experts(x))):
        leaves = x.clone().requires_grad_(), weights.clone().requires_grad_()
        (way(leaves[1], experts, leaves[0]) * towards).sum().backward()
        gradients.append([leaves[0].grad, leaves[1].grad * (weights != 0), experts.layers[0].weight.grad.clone()])
        experts.zero_grad()
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_row_gets_the_same_wherever_it_stands() -> None:
    model, x = Mixture().eval(), torch.randn(MANY, D)
    order = torch.randperm(MANY)
    torch.testing.assert_close(model(x)[order], model(x[order]), atol=1e-6, rtol=1e-5)


def test_experts_run_on_the_rows_that_read_them_and_on_no_others() -> None:
    """By torch's own count of multiplications; and an expert that no row reads may hold anything."""
    model, x = Mixture().eval(), torch.randn(MANY, D)
    each = model.experts.multiply_adds() // E
    read = int((model.gate(x).weights != 0).any(1).sum())
    assert read < READERS * 2 * MANY
    assert counted(model, x) == model.gate.multiply_adds() * MANY + read * each
    with torch.no_grad():
        model.gate.linear.weight[:, 3] = 0
        model.gate.linear.weight[:, :3, 0] = 5
        x[:, 0] = 9  # three sources are ahead of the fourth in every row
        model.experts.layers[0].weight[3] = torch.nan
    assert model(x).isfinite().all()
    assert model.plain(x).isnan().any()


@pytest.mark.parametrize("rows", [0, 1, 3, MANY])
def test_any_number_of_rows(rows: int) -> None:
    model, x = Mixture().eval(), torch.randn(rows, D)
    torch.testing.assert_close(model(x), model.plain(x), atol=1e-5, rtol=1e-5)


def test_all_experts_run_in_training() -> None:
    model, x = Mixture(), torch.randn(MANY, D)
    dense = (model.gate.multiply_adds() + multiply_adds(model.experts, READERS, E)) * MANY
    assert counted(model, x) >= dense  # more where inputs are padded
    assert counted(model.eval(), x) < dense / 2


def test_all_experts_run_where_they_are_watched() -> None:
    """Hooks see every expert, so that an inspection knows of dead units whatever the gate is."""
    model, x = Mixture().eval(), torch.randn(MANY, D)
    with torch.inference_mode(), watching(model) as watch:
        model(x)
        (units,) = watch.units()
    assert (units.module, units.units, len(units.dead)) == ("experts", 128 + 64, E)


def test_all_experts_run_in_graphs_and_vmap() -> None:
    model, x = Mixture().eval(), torch.randn(MANY, D)
    plain = model.plain(x)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=4096)},))
    torch.testing.assert_close(exported.module()(x), plain)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), plain)
    others = [model, Mixture().eval()]
    parameters, buffers = torch.func.stack_module_state(others)

    def run(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, (parameters, buffers), (x,))

    torch.testing.assert_close(torch.func.vmap(run)(parameters, buffers)[0], plain)


def test_dense_weights_are_not_looked_at() -> None:
    model, x = Mixture().eval(), torch.randn(MANY, D)
    weights = model.gate(x).weights
    with FlopCounterMode(display=False) as counter:
        mix_experts(weights, model.experts, x, sparse=False)
    assert counter.get_total_flops() // 2 == multiply_adds(model.experts, READERS, E) * MANY


def test_mixed_precision_is_as_exact_as_without_dispatching() -> None:
    model, x = Mixture().eval(), torch.randn(MANY, D)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        z, plain = model(x), model.plain(x)
    assert z.dtype == plain.dtype
    torch.testing.assert_close(z, plain, atol=0.01, rtol=0.05)


def test_dispatching_pays_with_many_experts_and_rows_of_which_few_are_read() -> None:
    each = 100_000
    assert dispatch_pays(8192, [1024] * 8, each), "an eighth of the work"
    assert not dispatch_pays(8192, [7000] * 8, each), "85 % of it, and rows to be gathered"
    assert not dispatch_pays(1, [1] * 2 + [0] * 6, each), "calls cost more than six experts on a row"
    assert dispatch_pays(1, [1] * 4 + [0] * 124, each), "and less than 124"
    assert not dispatch_pays(64, [1] * 64 + [0] * 64, 100), "but more than 64 tiny ones"
    assert not dispatch_pays(0, [0] * 128, each), "there is nothing to call"
