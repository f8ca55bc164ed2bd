"""HoME against its formulas as plain loops over rows, units and experts."""

import math
from statistics import fmean

import pytest
import torch
from loops import loop_softmax
from torch import Tensor, nn

from multigate.errors import ExperimentError, SettingError
from multigate.sharing import HoME

D, TASKS = 5, ("a", "b", "c")
GROUPS = (("c", "a"), ("b",))
ROWS = 6
Rows = list[list[float]]


def times(matrix: Rows, x: list[float]) -> list[float]:
    return [sum(w * v for w, v in zip(row, x, strict=True)) for row in matrix]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def loop_experts(level: nn.Module, copy: int, rows: Rows, normalisation: str) -> Rows:
    """What one expert makes of the rows of a batch: feature gate, then linear, normalised and Swish for each layer."""
    if level.features is not None:
        down, up = (one.weight[copy].tolist() for one in (level.features.down, level.features.up))
        rows = [[v * 2 * sigmoid(g) for v, g in zip(x, times(up, times(down, x)), strict=True)] for x in rows]
    for i, layer in enumerate(level.experts.layers):
        bias = layer.bias[copy].tolist()
        rows = [[v + b for v, b in zip(times(layer.weight[copy].tolist(), x), bias, strict=True)] for x in rows]
        if normalisation != "none":
            norm = level.experts.norms[i]
            scale, shift = norm.weight[copy].tolist(), norm.bias[copy].tolist()
            if normalisation == "layer":
                rows = [standard(x) for x in rows]
            elif level.training:
                rows = transposed([standard(unit) for unit in transposed(rows)])
            else:
                mean, variance = norm.mean[copy].tolist(), norm.variance[copy].tolist()
                rows = [
                    [(v - m) / math.sqrt(s + 1e-5) for v, m, s in zip(x, mean, variance, strict=True)] for x in rows
                ]
            rows = [[v * a + b for v, a, b in zip(x, scale, shift, strict=True)] for x in rows]
        rows = [[v * sigmoid(v) for v in x] for x in rows]
    return rows


def standard(values: list[float]) -> list[float]:
    mean = fmean(values)
    variance = fmean((v - mean) ** 2 for v in values)
    return [(v - mean) / math.sqrt(variance + 1e-5) for v in values]


def transposed(rows: Rows) -> Rows:
    return [list(column) for column in zip(*rows, strict=True)]


def loop_self_gate(gate: nn.Module, reader: int, v: list[float]) -> list[float]:
    weight = gate.linear.weight[reader].tolist()
    return [sigmoid(times(weight, v)[0])] if len(weight) == 1 else loop_softmax(weight, v)


def read(experts: list[Rows], b: int, weights: dict[int, float]) -> list[float]:
    return [sum(w * experts[e][b][h] for e, w in weights.items()) for h in range(len(experts[0][b]))]


def loop_home(
    module: nn.Module, x: Rows, group_of: list[int], m: int, s: int, normalisation: str
) -> tuple[list[Rows], list[Rows], Rows]:
    """Weights of the first level and of the second, and z, of each row."""
    groups, tasks = max(group_of) + 1, len(TASKS)
    first, second = module.levels
    n = groups * m + s
    experts = [loop_experts(first, e, x, normalisation) for e in range(n)]
    makes: list[Rows] = []  # of a row: what groups and, last, the shared module read
    weights_1: list[Rows] = []
    for b, v in enumerate(x):
        weights = []
        for g in range(groups):
            gate = loop_softmax(first.gate.linear.weight[g].tolist(), v)
            own = {g * m + i: gate[i] + one for i, one in enumerate(loop_self_gate(first.self_gate, g, v))}
            weights.append(own | {groups * m + i: gate[m + i] for i in range(s)})
        gate = loop_softmax(first.shared_gate.linear.weight[0].tolist(), v)
        mine = loop_self_gate(first.shared_self_gate, 0, v)
        weights.append({e: gate[e] + (mine[e - groups * m] if e >= groups * m else 0) for e in range(n)})
        makes.append([read(experts, b, one) for one in weights])
        weights_1.append([[one.get(e, 0.0) for e in range(n)] for one in weights])

    of_unit = [group_of[k] for k in range(tasks) for _ in range(m)]
    of_unit += [g for g in range(groups) for _ in range(m)] + [groups] * s
    experts = [loop_experts(second, e, [row[unit] for row in makes], normalisation) for e, unit in enumerate(of_unit)]
    weights_2, z = [], []
    for b, row in enumerate(makes):
        weights = []
        for k, g in enumerate(group_of):
            v = row[g] + row[groups]
            gate = loop_softmax(second.gate.linear.weight[k].tolist(), v)
            own = {k * m + i: gate[i] + one for i, one in enumerate(loop_self_gate(second.self_gate, k, v))}
            of_group = {(tasks + g) * m + i: gate[m + i] for i in range(m)}
            weights.append(own | of_group | {(tasks + groups) * m + i: gate[2 * m + i] for i in range(s)})
        z.append([read(experts, b, one) for one in weights])
        weights_2.append([[one.get(e, 0.0) for e in range(len(experts))] for one in weights])
    return weights_1, weights_2, z


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"experts": 1, "shared": 1},
        {"experts": 1, "shared": 3, "hidden": (6, 4, 3)},
        {"rank": 0},
        {"normalisation": "layer"},
        {"normalisation": "none"},
        {"groups": ()},
        {"groups": (), "experts": 1, "rank": 0},
    ],
    ids=str,
)
def test_home_is_its_formulas(changes: dict, training: bool) -> None:
    options = HoME(**{"groups": GROUPS, "experts": 2, "shared": 1, "rank": 2, "hidden": (4, 3)} | changes)
    group_of = [0, 1, 0] if options.groups else [0, 0, 0]
    module = options.build(D, TASKS).train(training)
    for name, buffer in module.named_buffers():
        if name.endswith(("mean", "variance")):
            buffer.uniform_(0.5, 2)
    for name, parameter in module.named_parameters():
        if ".norms." in name:
            nn.init.uniform_(parameter, 0.5, 2)
    x = torch.randn(ROWS, D)
    expected = loop_home(module, x.tolist(), group_of, options.experts, options.shared, options.normalisation)
    found = module(x)
    for one, other in zip((*found.gates, found.z), expected, strict=True):
        torch.testing.assert_close(one, torch.tensor(other), atol=1e-5, rtol=1e-4)


def test_batches_of_one_and_of_none_in_training_are_normalised_by_what_came_before() -> None:
    module = HoME(hidden=(4, 3)).build(D, TASKS)
    for _ in range(3):
        module(torch.randn(50, D))
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    assert sum(name.endswith("variance") and bool((one != 1).all()) for name, one in before.items()) == 2
    x = torch.randn(1, D)
    one = module(x).z
    assert module(x[:0]).z.shape == (0, 3, 3)
    torch.testing.assert_close(dict(module.named_buffers()), before)
    torch.testing.assert_close(one, module.eval()(x).z)


def test_groups_are_found_by_name_and_one_is_the_default() -> None:
    level, last = HoME(groups=GROUPS, experts=1, shared=1, hidden=(4, 3)).build(D, TASKS).wiring
    assert level.readers == ("group 0", "group 1", "shared module")
    assert last.sources[:3] == ("expert 0 of a", "expert 0 of b", "expert 0 of c")
    assert last.sources[3:] == ("expert 0 of group 0", "expert 0 of group 1", "shared expert 0")
    assert last.mask == (
        (True, False, False, True, False, True),
        (False, True, False, False, True, True),
        (False, False, True, True, False, True),
    )
    assert level.mask == ((True, False, True), (False, True, True), (True, True, True))
    assert HoME(experts=1, shared=1).build(D, TASKS).wiring[0].readers == ("group 0", "shared module")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((("a", "b"), ("d",)), "groups of home: there is no task 'd'; valid names: 'a', 'b', 'c'"),
        ((("a", "b"),), "groups of home name every task, and 'c' is in none; add it to one"),
    ],
)
def test_groups_that_do_not_fit_the_tasks_are_told(groups: tuple[tuple[str, ...], ...], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        HoME(groups=groups).build(D, TASKS)


@pytest.mark.parametrize(
    ("groups", "message"),
    [((("a",), ("b", "a")), "'groups' name 'a' twice"), ((("a",), ()), "a group without tasks")],
)
def test_groups_that_contradict_themselves_are_refused(groups: tuple[tuple[str, ...], ...], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        HoME(groups=groups)


def test_stacked_replicas_keep_their_running_statistics() -> None:
    """Trained as one vmapped computation, every replica's buffers are those of a run of its own."""
    replicas = [HoME(hidden=(4, 3)).build(D, TASKS) for _ in range(2)]
    x = torch.randn(9, D)

    def loss_of(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(replicas[0], (parameters, buffers), (x,)).z.square().mean()

    parameters, buffers = torch.func.stack_module_state(replicas)
    torch.func.vmap(torch.func.grad(loss_of))(parameters, buffers)
    for i, module in enumerate(replicas):
        module(x)
        for name, buffer in module.named_buffers():
            torch.testing.assert_close(buffers[name][i], buffer)


def test_bfloat16_trains() -> None:
    module = HoME(hidden=(8, 4)).build(D, TASKS)
    x = torch.randn(32, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = module(x).z
    z.float().square().sum().backward()
    assert all(one.grad.isfinite().all() for one in module.parameters())
    torch.testing.assert_close(z.float(), module(x).z, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("groups", "m", "s", "rank"), [((), 1, 1, 2), (GROUPS, 2, 1, 0), (GROUPS, 2, 3, 2)])
def test_costs_are_those_of_the_documentation(groups: tuple, m: int, s: int, rank: int) -> None:
    g, t, h = max(len(groups), 1), len(TASKS), (6, 4)
    n1, n2 = g * m + s, (t + g) * m + s
    module = HoME(groups=groups, experts=m, shared=s, rank=rank, hidden=h).build(D, TASKS)
    experts = n1 * D * h[0] + n2 * h[0] * h[1]
    gates = (g * (m + s) + 2 * n1) * D + t * (3 * m + s) * 2 * h[0]
    features = 2 * rank * (n1 * D + n2 * h[0])
    assert module.multiply_adds() == experts + gates + features + (g + 1) * n1 * h[0] + t * n2 * h[1]
    biases_and_norms = 3 * (n1 * h[0] + n2 * h[1])
    assert sum(one.numel() for one in module.parameters()) == experts + gates + features + biases_and_norms


def test_the_load_penalty_is_of_experts_not_of_their_places() -> None:
    """Of both levels: how often each expert is read over even use, added up reader by reader."""
    options = HoME(groups=GROUPS, experts=2, shared=1, hidden=(6, 4), load_penalty=1.0)
    for level, kind in zip(options.build(D, TASKS).levels, (0, 1), strict=True):
        gate = level.gate
        v = torch.randn(5, gate.linear.weight.shape[-1])
        gated = gate(v)
        readers = list(enumerate(options.group_of(TASKS))) if kind else [(group,) for group in range(len(GROUPS))]
        used: dict[tuple, float] = {}
        even: dict[tuple, float] = {}
        for row, units in enumerate(readers):
            names = [(at, unit, i) for at, unit in enumerate(units) for i in range(2)] + [("shared",)]
            for name, weight in zip(names, gated.weights[:, row].sum(0).tolist(), strict=True):
                used[name] = used.get(name, 0) + weight
                even[name] = even.get(name, 0) + 1 / len(names)
        shares = torch.tensor([used[name] / even[name] for name in used])
        assert len(shares) == level.experts.n
        assert gated.penalty.item() == pytest.approx((shares.var(correction=0) / shares.mean() ** 2).item(), rel=1e-4)
