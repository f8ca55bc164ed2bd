"""PLE and CGC against Tang et al. 2020 as plain loops, and STEM-Net's gradients."""

import pytest
import torch
from loops import loop_mlp, loop_softmax
from torch import Tensor

from multigate.errors import ExperimentError, SettingError
from multigate.experiment import Experiment
from multigate.schema import Number, Schema, Task
from multigate.sharing import CGC, PLE, VARIANTS

D, TASKS = 5, ("a", "b", "c")
T, M, S = 3, 2, 1
Rows = list[list[float]]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, D)


def mixed(gate: list[float], sources: Rows) -> list[float]:
    return [sum(g * source[h] for g, source in zip(gate, sources, strict=True)) for h in range(len(sources[0]))]


def loop_level(level: torch.nn.Module, inputs: Rows) -> tuple[Rows, Rows]:
    """Fused outputs and gates of one row, from the inputs of the tasks and, last, of the shared module."""
    own = [[loop_mlp(level.experts, k * M + i, inputs[k]) for i in range(M)] for k in range(T)]
    shared = [loop_mlp(level.experts, T * M + i, inputs[T]) for i in range(S)]
    fused, gates = [], []
    for k in range(T):
        gate = loop_softmax(level.gate.linear.weight[k].tolist(), inputs[k])
        fused.append(mixed(gate, own[k] + shared))
        gates.append([gate[i] if task == k else 0.0 for task in range(T) for i in range(M)] + gate[M:])
    if level.shared_gate is not None:
        gate = loop_softmax(level.shared_gate.linear.weight[0].tolist(), inputs[T])
        fused.append(mixed(gate, [expert for experts in own for expert in experts] + shared))
        gates.append(gate)
    return fused, gates


def check(module: torch.nn.Module, x: Tensor) -> None:
    shared = module(x)
    for b, row in enumerate(x.tolist()):
        read = row if x.dim() == 3 else [row] * (T + 1)
        for level, found in zip(module.levels, shared.gates, strict=True):
            read, gates = loop_level(level, read)
            torch.testing.assert_close(found[b], torch.tensor(gates))
        torch.testing.assert_close(shared.z[b], torch.tensor(read))


def test_cgc_is_equations_2_to_5(x: Tensor) -> None:
    check(CGC(experts=M, shared=S, hidden=(4, 2)).build(D, TASKS), x)


def test_ple_is_equations_6_and_7(x: Tensor) -> None:
    """The selector of a level is the fused output before it, not x; the last level has no shared gate."""
    module = PLE(experts=M, shared=S, hidden=(6, 4, 3), levels=3).build(D, TASKS)
    assert [level.shared_gate is None for level in module.levels] == [False, False, True]
    check(module, x)


def test_a_level_may_have_several_layers(x: Tensor) -> None:
    check(PLE(experts=M, shared=S, hidden=(6, 4, 3), levels=2).build(D, TASKS), x)


def test_tasks_read_their_own_and_shared_experts_and_the_shared_module_all() -> None:
    first, last = PLE(experts=M, shared=S, hidden=(6, 4)).build(D, TASKS).wiring
    own = [" and ".join(name for name, read in zip(last.sources, row, strict=True) if read) for row in last.mask]
    assert own == [f"expert 0 of {task} and expert 1 of {task} and shared expert 0" for task in TASKS]
    assert first.mask == (*last.mask, (True,) * 7)
    assert (first.readers, last.readers) == ((*TASKS, "shared module"), TASKS)


@pytest.mark.parametrize("options", [CGC(experts=M, shared=S, hidden=(4,)), PLE(experts=M, shared=S, hidden=(6, 4))])
def test_inputs_of_their_own_are_read_by_their_experts_and_gates(options: CGC | PLE) -> None:
    check(options.build(D, TASKS), torch.randn(4, T + 1, D))


def test_gates_have_the_papers_parameters_and_no_more() -> None:
    """W_g^k in R^{(m_k + m_s) x d}; the shared module's selects among all."""
    first, last = PLE(experts=M, shared=S, hidden=(6, 4)).build(D, TASKS).levels
    assert {name: tuple(one.shape) for name, one in first.named_parameters() if "gate" in name} == {
        "gate.linear.weight": (T, M + S, D),
        "shared_gate.linear.weight": (1, T * M + S, D),
    }
    assert {name: tuple(one.shape) for name, one in last.named_parameters() if "gate" in name} == {
        "gate.linear.weight": (T, M + S, 6)
    }


@pytest.mark.parametrize(("tasks", "experts", "shared"), [(2, 1, 1), (3, 2, 1), (20, 1, 4)])
def test_costs_are_those_of_the_documentation(tasks: int, experts: int, shared: int) -> None:
    names = tuple(f"task {i}" for i in range(tasks))
    n, reads, h = tasks * experts + shared, experts + shared, (6, 4)
    m = D * h[0] + h[0] * h[1]
    module = CGC(experts=experts, shared=shared, hidden=h).build(D, names)
    gates = tasks * reads * D
    assert module.multiply_adds() == n * m + gates + tasks * n * h[1]
    assert sum(one.numel() for one in module.parameters()) == n * (m + sum(h)) + gates
    module = PLE(experts=experts, shared=shared, hidden=h).build(D, names)
    gates = (tasks * reads + n) * D + tasks * reads * h[0]
    assert module.multiply_adds() == n * m + gates + (tasks + 1) * n * h[0] + tasks * n * h[1]
    assert sum(one.numel() for one in module.parameters()) == n * (m + sum(h)) + gates


def test_ple_of_one_level_is_cgc(x: Tensor) -> None:
    cgc = CGC(hidden=(4, 3)).build(D, TASKS)
    ple = PLE(hidden=(4, 3), levels=1).build(D, TASKS)
    ple.load_state_dict(cgc.state_dict())
    torch.testing.assert_close(ple(x), cgc(x))
    assert ple.wiring == cgc.wiring


def gradient_of_experts(module: torch.nn.Module, x: Tensor, task: int) -> list[float]:
    """How much each task, and the shared experts, learn from one task."""
    module.zero_grad()
    module(x)[0][:, task].square().sum().backward()
    of = module.levels[-1].experts.layers[0].weight.grad.abs().sum((1, 2))
    return [*of[: T * M].view(T, M).sum(1).tolist(), of[T * M :].sum().item()]


@pytest.mark.parametrize("reads_others", ["never", "detached"])
def test_experts_of_a_task_learn_from_it_alone(x: Tensor, reads_others: str) -> None:
    """All forward, task-specific backward (Su et al. 2024); in CGC others are not even read."""
    module = CGC(experts=M, shared=S, hidden=(4,), reads_others=reads_others).build(D, TASKS)
    for task in range(T):
        moved = gradient_of_experts(module, x, task)
        assert [amount > 0 for amount in moved] == [one == task for one in range(T)] + [True]


def test_stem_reads_the_experts_of_all_by_its_own_and_the_shared_input() -> None:
    """softmax(W_k (x_k + x_shared) / 2) over all experts, which read an input of their own each."""
    module = VARIANTS["stem"].with_(experts=M, shared=S, hidden=(4,)).build(D, TASKS)
    x = torch.randn(4, T + 1, D)
    shared = module(x)
    (level,) = module.levels
    for b, inputs in enumerate(x.tolist()):
        owners = [k for k in range(T) for _ in range(M)] + [T] * S
        experts = [loop_mlp(level.experts, e, inputs[owner]) for e, owner in enumerate(owners)]
        for k in range(T):
            read = [(own + common) / 2 for own, common in zip(inputs[k], inputs[T], strict=True)]
            gate = loop_softmax(level.gate.linear.weight[k].tolist(), read)
            torch.testing.assert_close(shared.gates[0][b, k], torch.tensor(gate))
            torch.testing.assert_close(shared.z[b, k], torch.tensor(mixed(gate, experts)))
    assert all(all(row) for row in module.wiring[0].mask)


def test_the_shared_module_of_a_deeper_stem_teaches_the_experts_of_all(x: Tensor) -> None:
    """Between levels nothing is detached from the shared module, so that tasks move others through it alone."""
    module = PLE(experts=M, shared=S, hidden=(6, 4), reads_others="detached").build(D, TASKS)
    module(x).z[:, 0].square().sum().backward()
    first, last = (level.experts.layers[0].weight.grad.abs().sum((1, 2)) for level in module.levels)
    assert (first > 0).all()
    assert (last[M : T * M] == 0).all()


def test_columns_for_gates_reach_every_level_and_no_expert(x: Tensor) -> None:
    module = PLE(experts=M, shared=S, hidden=(6, 4)).build(D, TASKS, 2)
    seen: list[Tensor] = []
    module.levels[0].experts.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    near, far = module(x, torch.zeros(4, 2)), module(x, torch.ones(4, 2))
    assert torch.equal(*seen)
    assert all((a != b).any(-1).all() for a, b in zip(near.gates, far.gates, strict=True))
    assert [level.gate.linear.weight.shape[-1] for level in module.levels] == [D + 2, 6 + 2]


def test_more_levels_than_layers_are_refused() -> None:
    with pytest.raises(SettingError, match=r"3 levels want at least as many widths in 'hidden', found 2: \(8, 4\)"):
        PLE(hidden=(8, 4), levels=3)


def test_the_entropy_penalty_adds_up_over_tasks_and_shared_modules(x: Tensor) -> None:
    """Of each level the mean entropy of the tasks' gates and that of the shared module's."""
    ple = PLE(experts=M, shared=S, hidden=(6, 5, 4), levels=3, entropy_penalty=0.1).build(D, TASKS)
    found = ple(x)
    expected = 0.0
    for level, gates in enumerate(found.gates):
        rows = -torch.special.xlogy(gates, gates).sum(-1)
        expected += rows[:, :T].mean().item() + (rows[:, T].mean().item() if level < 2 else 0)
    assert found.penalty.item() == pytest.approx(0.1 * expected, rel=1e-5)
    assert ple.eval()(x).penalty == 0


@pytest.mark.parametrize("structure", ["ple", "adatt"])
def test_a_task_is_not_named_as_what_reads_for_all(structure: str) -> None:
    schema = Schema(features=(Number("a"),), tasks=(Task("shared module"), Task("buy")))
    shared = {"structure": structure, "shared": 1}
    with pytest.raises(ExperimentError, match="task 'shared module' has the name of what reads for all tasks"):
        Experiment(schema=schema, sharing=shared)
    Experiment(schema=schema, sharing=shared | {"levels": 1})  # of one level no such thing reads
    Experiment(schema=schema, sharing="cgc")


@pytest.mark.parametrize("reads_others", ["never", "detached"])
def test_the_load_penalty_is_of_experts_also_where_tasks_read_others(x: Tensor, reads_others: str) -> None:
    """CV^2 of what each expert is read, over what it would be if all tasks spread evenly; the shared module's added."""
    options = {"experts": M, "shared": S, "hidden": (6, 4), "reads_others": reads_others, "load_penalty": 0.1}
    module = PLE(**options).build(D, TASKS)
    found = module(x)
    expected = 0.0
    for level, gates in zip(module.wiring, found.gates, strict=True):
        mask = torch.tensor(level.mask).double()
        even = mask / mask.sum(1, keepdim=True)
        for rows in (slice(T), slice(T, None)):
            used = (gates[:, rows].double().sum((0, 1)) / even[rows].sum(0)).detach().numpy()
            expected += (used.std() / used.mean()) ** 2 if len(even[rows]) else 0
    assert found.penalty.item() == pytest.approx(0.1 * expected, rel=1e-4)


def test_an_expert_of_each_task_that_nobody_reads_is_uneven_use() -> None:
    """Task a reads its first expert and the shared one, task b its second: of five experts two are never read."""
    module = CGC(experts=2, shared=1, hidden=(4,), gating="noisy_top_k", k=2, load_penalty=1.0).build(1, ("a", "b"))
    gate = module.levels[0].gate
    with torch.no_grad():
        gate.noise.weight.fill_(-100)
        gate.linear.weight[:, :, 0] = torch.tensor([[9.0, 0.0, 9.0], [0.0, 9.0, 9.0]])
    use = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])  # relative to even use: the shared expert has two readers
    assert module(torch.ones(64, 1)).penalty.item() == pytest.approx(
        2 * (use.var(correction=0) / 0.36).item(), rel=0.01
    )
