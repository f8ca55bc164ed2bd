"""What every structure must hold, whatever it is called."""

import math

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from multigate.nn.eager import MANY
from multigate.nn.factorised import FactorisedLinear
from multigate.nn.parallel import ParallelLinear
from multigate.sharing import STRUCTURES, VARIANTS, GatedStructure, MMoE, Shared, Sharing, Soft, StackedMMoE, Structure

D, ROWS = 12, 9
TASKS = {2: ("click", "buy"), 20: tuple(f"task{i}" for i in range(20))}
ON_BOTTOM = {
    "mmoe on a bottom": MMoE(bottom=(16, 10), hidden=(8,)),
    "stacked_mmoe on a bottom": StackedMMoE(bottom=(10,), hidden=(8, 6), gates_read="input"),
}
ALL = {name: kind() for name, kind in STRUCTURES.items()} | VARIANTS | ON_BOTTOM
CASES = [pytest.param(options, id=name) for name, options in ALL.items()]
WITH_OWN = [pytest.param(options, id=name) for name, options in ALL.items() if options.inputs(2) is not None]
GATED = [pytest.param(options, id=name) for name, options in ALL.items() if isinstance(options, GatedStructure)]


def build(options: Structure, tasks: int = 2) -> Sharing:
    return options.build(D, TASKS[tasks])


@pytest.fixture
def x() -> Tensor:
    return torch.randn(ROWS, D)


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("tasks", [2, 20])
@pytest.mark.parametrize("rows", [0, 1, ROWS])
def test_shapes_and_finiteness(options: Structure, tasks: int, rows: int) -> None:
    module = build(options, tasks)
    shared = module(torch.randn(rows, D))
    assert shared.z.shape == (rows, tasks, module.d_out)
    assert shared.penalty.shape == ()
    assert shared.z.isfinite().all()
    assert shared.penalty.isfinite()


@pytest.mark.parametrize("options", CASES)
def test_gates_match_the_wiring(options: Structure, x: Tensor) -> None:
    module = build(options)
    shared = module(x)
    levels_with_gates = list(module.wiring) if shared.gates else []
    assert len(shared.gates) == len(levels_with_gates)
    for level, gate in zip(levels_with_gates, shared.gates, strict=True):
        assert gate.shape == (ROWS, len(level.readers), len(level.sources))
        assert not (gate * ~torch.tensor(level.mask)).any(), "a barred source has weight"
        if level.distribution:
            torch.testing.assert_close(gate.sum(-1), torch.ones(gate.shape[:2]))
            assert (gate >= 0).all()


@pytest.mark.parametrize("options", CASES)
def test_rows_are_independent(options: Structure, x: Tensor) -> None:
    module = build(options).eval()
    together = module(x).z
    alone = torch.cat([module(row.unsqueeze(0)).z for row in x])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "n"),
    [pytest.param(options, None, id=name) for name, options in ALL.items()]
    + [pytest.param(options, n, id=f"{name}, own") for name, options in ALL.items() if (n := options.inputs(2))],
)
def test_many_rows_are_what_few_are(options: Structure, n: int | None) -> None:
    """Without gradients many rows are computed in forms of their own."""
    module = build(options).eval()
    x = torch.randn(MANY + 3, D) if n is None else torch.randn(MANY + 3, n, D)
    with torch.inference_mode():
        many, few = module(x), [module(part) for part in x.split(100)]
    torch.testing.assert_close(many.z, torch.cat([one.z for one in few]), atol=1e-5, rtol=1e-5)
    for at, gate in enumerate(many.gates):
        expected = torch.cat([one.gates[at] for one in few])
        torch.testing.assert_close(gate, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", CASES)
def test_many_rows_teach_what_few_do(options: Structure) -> None:
    """Gradients of a sum over rows are the sum of theirs, whatever is made once for many rows and not for few."""
    module = build(options).double()
    module.train(not (options.stochastic or options.normalisation != "none"))  # draws and means of one batch
    x = torch.randn(MANY + 3, D, dtype=torch.float64)

    def gradients(parts: tuple[Tensor, ...]) -> list[Tensor]:
        module.zero_grad()
        for part in parts:
            module(part).z.square().sum().backward()
        return [torch.zeros(()) if one.grad is None else one.grad.clone() for one in module.parameters()]

    torch.testing.assert_close(gradients((x,)), gradients(x.split(5)), atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("options", [*CASES, pytest.param(Soft(penalty="tucker", every=1), id="tucker")])
def test_half_precision_and_double_are_near_float32(options: Structure, x: Tensor) -> None:
    """Moved as a whole, without autocast: what it makes has its type, in training and evaluation."""
    module = build(options)
    expected = module.eval()(x).z
    for dtype, near in ((torch.float64, 1e-5), (torch.bfloat16, 0.05)):
        module.to(dtype)
        torch.testing.assert_close(module.eval()(x.to(dtype)).z, expected.to(dtype), atol=near, rtol=near)
        shared = module.train()(x.to(dtype))
        assert shared.z.dtype == dtype
        (shared.z.square().sum() + shared.penalty).backward()
        module.zero_grad()


@pytest.mark.parametrize("options", CASES)
def test_every_parameter_gets_gradient(options: Structure) -> None:
    module = build(options)
    seen = {name: False for name, _ in module.named_parameters()}
    for _ in range(4):
        shared = module(torch.randn(64, D))
        (shared.z.square().sum() + shared.penalty).backward()
    for name, parameter in module.named_parameters():
        seen[name] = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
    assert all(seen.values()), f"without gradient: {[name for name, found in seen.items() if not found]}"


@pytest.mark.parametrize("options", CASES)
def test_experts_and_units_differ_after_initialisation_and_in_training(options: Structure) -> None:
    module = build(options)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)

    def closest() -> float:
        """Smallest distance between two units of one layer, over all layers and copies."""
        kinds = ParallelLinear | FactorisedLinear
        layers = [layer for layer in module.modules() if isinstance(layer, kinds) and layer.bias is not None]
        assert layers, "a structure without experts"
        return min(torch.pdist(layer.weight.detach().flatten(0, -2)).min().item() for layer in layers)

    assert closest() > 1e-3
    target = torch.randn(64, 2, module.d_out)
    inputs = torch.randn(64, D)
    for _ in range(20):
        optimiser.zero_grad()
        (module(inputs).z - target).square().mean().backward()
        optimiser.step()
    assert closest() > 1e-3


@pytest.mark.parametrize("options", CASES)
def test_saved_and_loaded_is_equal(options: Structure, x: Tensor) -> None:
    module, other = build(options).eval(), build(options).eval()
    assert not torch.equal(module(x).z, other(x).z)
    other.load_state_dict(load(save(module.state_dict())))
    torch.testing.assert_close(module(x), other(x), atol=0, rtol=0)


@pytest.mark.parametrize("options", CASES)
def test_exported_is_equal(options: Structure, x: Tensor) -> None:
    module = build(options).eval()
    rows = torch.export.Dim("rows", min=2, max=4096)
    exported = torch.export.export(module, (x,), dynamic_shapes={"x": {0: rows}}).module()
    for size in (ROWS, 3, 50):
        inputs = torch.randn(size, D)
        for eager, other in zip(module(inputs).gates, exported(inputs)[1], strict=True):
            torch.testing.assert_close(eager, other)
        torch.testing.assert_close(module(inputs).z, exported(inputs)[0])


@pytest.mark.parametrize("options", CASES)
def test_compiled_is_equal(options: Structure, x: Tensor) -> None:
    module = build(options)
    check_compiled(module.eval() if options.stochastic else module, x, backend="aot_eager")


@pytest.mark.parametrize("name", ["shared_bottom", "mmoe"])
def test_compiled_by_inductor_is_equal(name: str, x: Tensor) -> None:
    check_compiled(build(STRUCTURES[name]()), x, backend="inductor")


def check_compiled(module: nn.Module, x: Tensor, backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    compiled = torch.compile(module, backend=backend)
    eager_x, compiled_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    eager, fast = module(eager_x), compiled(compiled_x)
    torch.testing.assert_close(Shared(*fast), eager)
    eager.z.square().sum().backward()
    fast.z.square().sum().backward()
    torch.testing.assert_close(compiled_x.grad, eager_x.grad)


@pytest.mark.parametrize("options", CASES)
def test_stacked_replicas_equal_separate_runs(options: Structure, x: Tensor) -> None:
    """Three replicas trained as one vmapped computation and one by one: the same for the first steps."""
    replicas = [build(options) for _ in range(3)]
    if options.stochastic:  # draws of three runs and of one stack are different ones
        replicas = [replica.eval() for replica in replicas]
    target = torch.randn(ROWS, 2, replicas[0].d_out)

    def loss_of(module: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        shared = torch.func.functional_call(module, (parameters, buffers), (x,))
        return (shared.z - target).square().mean() + shared.penalty

    parameters, buffers = torch.func.stack_module_state(replicas)
    step = torch.func.vmap(torch.func.grad(loss_of, argnums=1), in_dims=(None, 0, 0))
    stacked = {name: value.detach() for name, value in parameters.items()}
    for _ in range(3):
        gradients = step(replicas[0], stacked, buffers)
        stacked = {name: value - 0.1 * gradients[name] for name, value in stacked.items()}
    for i, module in enumerate(replicas):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss_of(module, dict(module.named_parameters()), dict(module.named_buffers())).backward()
            optimiser.step()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(stacked[name][i], parameter.detach(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("options", CASES)
def test_multiply_adds_are_what_the_module_multiplies(options: Structure) -> None:
    """Counted against torch's own count of the matmuls that one more row costs among many; of as many rows as are worth
    dispatching, on average, where a row needs only part of the network."""
    from torch.utils.flop_counter import FlopCounterMode

    module = build(options).eval()

    def counted(rows: int) -> int:
        with FlopCounterMode(display=False) as counter:
            module(torch.randn(rows, D))
        return counter.get_total_flops() // 2

    if options.conditional:
        assert 0.5 * module.multiply_adds() < counted(4096) / 4096 <= module.multiply_adds()
    else:
        assert module.multiply_adds() == counted(4097) - counted(4096)


@pytest.mark.parametrize("options", CASES)
def test_widened_multiplies_the_widths(options: Structure) -> None:
    wide = options.widened(2.0)
    assert wide.hidden == tuple(2 * width for width in options.hidden)
    assert type(wide) is type(options)
    assert math.isclose(build(wide).d_out, 2 * build(options).d_out)


@pytest.mark.parametrize("options", CASES)
def test_options_go_through_plain_values(options: Structure) -> None:
    changed = options.widened(1.5)
    assert STRUCTURES[changed.to_dict()["structure"]].model_validate(changed.to_dict()) == changed


@pytest.mark.parametrize("options", CASES)
def test_no_penalty_in_evaluation(options: Structure, x: Tensor) -> None:
    assert build(options).eval()(x).penalty == 0


@pytest.mark.parametrize("options", WITH_OWN)
@pytest.mark.parametrize("tasks", [2, 20])
def test_tasks_with_inputs_of_their_own(options: Structure, tasks: int) -> None:
    """x (B, n, D): every input is read, and inputs that are alike do what one input does."""
    module = build(options, tasks).eval()
    n = options.inputs(tasks)
    x = torch.randn(ROWS, D)
    alike = module(x.unsqueeze(1).expand(-1, n, -1))
    torch.testing.assert_close(alike.z, module(x).z)
    apart = torch.randn(ROWS, n, D, requires_grad=True)
    module(apart).z.square().sum().backward()
    assert (apart.grad.abs().sum((0, 2)) > 0).all()


@pytest.mark.parametrize("options", GATED)
def test_columns_that_only_gates_read(options: GatedStructure, x: Tensor) -> None:
    """With context z moves; experts never see it, so one source alone does not move with it."""
    module = options.build(D, TASKS[2], 3).eval()
    here, there = module(x, torch.zeros(ROWS, 3)), module(x, torch.randn(ROWS, 3) * 5)
    assert any(not torch.equal(a, b) for a, b in zip(here.gates, there.gates, strict=True))
    assert module(x[:1], torch.zeros(1, 3)).z.shape == (1, 2, module.d_out)


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("tasks", [2, 20])
def test_cost_is_counted_without_allocating_anything(options: Structure, tasks: int) -> None:
    """Comparisons search for a budget with modules on the meta device."""
    with torch.device("meta"):
        there = build(options, tasks)
    assert there.multiply_adds() == build(options, tasks).multiply_adds()
    assert all(parameter.is_meta for parameter in there.parameters())
