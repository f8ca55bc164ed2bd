"""Experts and gates of one input: what they make of it together is what each makes alone."""

import pytest
import torch
from torch import Tensor

from multigate.nn.gate import Gate, beside, softmax
from multigate.nn.mixture import mix
from multigate.nn.parallel import ParallelLinear, ParallelMLP
from multigate.nn.sparse_gate import TopKGate
from multigate.nn.together import gated, mixture, together

D, E, B = 9, 3, 7
MASK = ((True, True, False), (True, True, True))


def parts(hidden: tuple[int, ...]) -> tuple[ParallelMLP, list[Gate]]:
    return ParallelMLP(E, D, hidden).double(), [
        Gate(2, E, D, mask=MASK, temperature=2.0).double(),
        Gate(1, E, D).double(),
    ]


def apart(experts: ParallelMLP, gates: list[Gate], x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Layer after layer, by autograd."""
    made = x.unsqueeze(1).expand(-1, E, -1)
    for layer in experts.layers:
        made = torch.relu(torch.einsum("bnd,nhd->bnh", made, layer.weight) + layer.bias)
    weights = []
    for gate in gates:
        logits = torch.einsum("bd,red->bre", x, gate.linear.weight) / gate.temperature
        allowed = torch.ones_like(logits, dtype=torch.bool) if gate.allowed is None else gate.allowed
        weights.append(torch.softmax(logits.masked_fill(~allowed, -torch.inf), dim=-1))
    return made, weights


@pytest.mark.parametrize("lies", ["by rows", "batch last"])
@pytest.mark.parametrize("hidden", [(5,), (5, 4), (6, 5, 4)])
@pytest.mark.parametrize("rows", [0, 1, B])
def test_values_and_gradients_are_those_of_each_alone(hidden: tuple[int, ...], lies: str, rows: int) -> None:
    experts, gates = parts(hidden)
    x = torch.randn(D, rows).t() if lies == "batch last" else torch.randn(rows, D)
    x = x.double().requires_grad_()
    leaves = [x, *experts.parameters(), *(p for gate in gates for p in gate.parameters())]
    made, gated = together(experts, gates, x)
    expected, weights = apart(experts, gates, x)
    torch.testing.assert_close(made, expected)
    for one, other in zip(gated, weights, strict=True):
        torch.testing.assert_close(one.weights, other)
    pulls = [torch.randn(one.shape, dtype=torch.float64) for one in (expected, *weights)]
    found = torch.autograd.grad([made, *(one.weights for one in gated)], leaves, pulls)
    for one, other in zip(found, torch.autograd.grad([expected, *weights], leaves, pulls), strict=True):
        torch.testing.assert_close(one, other)


def test_one_matmul_gives_what_all_read() -> None:
    experts, gates = parts((5, 4))
    made, gated = together(experts, gates, torch.randn(B, D, dtype=torch.float64))
    logits = gated[1].weights.grad_fn
    while logits is not None and "LinearLayers" not in type(logits).__name__:
        logits = logits.next_functions[0][0]
    assert logits is made.grad_fn


def test_a_loss_of_the_experts_alone_leaves_gates_without_a_pull() -> None:
    experts, gates = parts((5, 4))
    made, _ = together(experts, gates, torch.randn(B, D, dtype=torch.float64))
    made.sum().backward()
    assert all((gate.linear.weight.grad == 0).all() for gate in gates)


HOOKS = ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("where", ["gate", "linear", "layer", "experts"])
def test_hooks_into_parts_are_called(where: str, kind: str) -> None:
    experts, gates = parts((5, 4))
    seen: list[object] = []
    part = {"gate": gates[0], "linear": gates[1].linear, "layer": experts.layers[0], "experts": experts}[where]
    getattr(part, f"register_{kind}")(lambda *about: seen.append(about))
    x = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    made, gated = together(experts, gates, x)
    expected, weights = apart(experts, gates, x)
    torch.testing.assert_close(made, expected)
    torch.testing.assert_close(gated[0].weights, weights[0])
    sum(one.square().sum() for one in (made, *(one.weights for one in gated))).backward()
    assert len(seen) == 1


@pytest.mark.parametrize("lies", ["by rows", "batch last"])
@pytest.mark.parametrize("readers", [None, 2])
@pytest.mark.parametrize("rows", [0, 1, B])
def test_gates_that_read_the_same_weigh_as_each_alone(rows: int, readers: int | None, lies: str) -> None:
    """Of one input that all read, by gates of any readers, or of one for each reader."""
    gates = [Gate(2, E, D, mask=MASK, temperature=2.0), Gate(readers or 1, 2, D)]
    shape = (D, rows) if readers is None else (readers, D, rows)
    x = torch.randn(shape).movedim(-1, 0)
    x = (x if lies == "batch last" else x.contiguous()).requires_grad_()
    leaves = [x, *(gate.linear.weight for gate in gates)]
    found, expected = ([one.weights for one in made] for made in (gated(gates, x), [gate(x) for gate in gates]))
    pulls = [torch.randn(one.shape) for one in expected]
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (torch.autograd.grad(made, leaves, pulls) for made in (found, expected))
    torch.testing.assert_close(of_found, of_expected)


def test_gates_that_read_the_same_are_one_matmul() -> None:
    made, other = gated([Gate(2, E, D), Gate(1, 2, D)], torch.randn(B, D))
    sources = []
    for weights in (made.weights, other.weights):
        logits = weights.grad_fn
        while "Mm" not in type(logits).__name__:
            logits = logits.next_functions[0][0]
        sources.append(logits)
    assert sources[0] is sources[1]


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("where", ["gate", "linear"])
def test_hooks_into_gates_that_read_the_same_are_called(where: str, kind: str) -> None:
    gates = [Gate(2, E, D), TopKGate(2, E, D, 2), Gate(1, E, D)]
    seen: list[object] = []
    for several in (gates, gates[::2]):
        part = several[0] if where == "gate" else several[-1].linear
        hook = getattr(part, f"register_{kind}")(lambda *about: seen.append(about))
        made = gated(several, torch.randn(B, D, requires_grad=True))
        sum(one.weights.square().sum() for one in made).backward()
        hook.remove()
    assert len(seen) == 2


class Adapted(ParallelLinear):
    """A linear map whose weight is not all that multiplies."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def test_maps_of_ones_own_in_place_of_a_gates_are_called() -> None:
    experts, (gate, other) = parts((5, 4))
    gate.linear = Adapted(2, D, E, bias=False).double()
    x = torch.randn(B, D, dtype=torch.float64)
    for made in (together(experts, [gate, other], x)[1], gated([gate, other], x)):
        torch.testing.assert_close(made[0].weights, gate(x).weights)


def test_context_is_read_by_gates_alone() -> None:
    experts, gate = ParallelMLP(E, D, (4,)), Gate(2, E, D + 2)
    x, context = torch.randn(B, D), torch.randn(B, 2)
    z, gated = mixture(experts, gate, x, context)
    torch.testing.assert_close(gated.weights, gate(beside(x, context)).weights)
    torch.testing.assert_close(z, torch.bmm(gated.weights, experts(x)))


@pytest.mark.parametrize("training", [True, False])
def test_gates_that_choose_few_weigh_the_same_mixture(training: bool) -> None:
    experts, gate = ParallelMLP(E, D, (4,)).train(training), TopKGate(2, E, D, 2)
    x = torch.randn(B, D)
    z, gated = mixture(experts, gate, x)
    assert (gated.weights == 0).any()
    torch.testing.assert_close(z, mix(gate(x).weights, experts(x)))


def test_a_softmax_is_over_sources_wherever_the_batch_lies() -> None:
    logits = torch.randn(B, 2, E)
    last = logits.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    torch.testing.assert_close(softmax(last), torch.softmax(logits, dim=-1))
