"""Cross-stitch networks against the paper as plain loops over tasks, subspaces and units."""

import pytest
import torch
from loops import loop_mlp

from multigate.analysis.gates import dead_sources, level_gates, polarised_gates
from multigate.errors import SettingError
from multigate.sharing import CrossStitch, SingleTask

D, TASKS = 5, ("a", "b", "c")


def shaken(options: CrossStitch) -> torch.nn.Module:
    """A module whose stitches are any numbers, as training leaves them."""
    module = options.build(D, TASKS)
    for stitch in module.stitches:
        torch.nn.init.normal_(stitch)
    return module


def loop_stitch(stitch: list[list[float]], rows: list[list[float]], s: int) -> list[list[float]]:
    """Unit i of part p of task t: sum over tasks u and parts q of a_(t p, u q) times unit i of part q of task u."""
    tasks, part = len(rows), len(rows[0]) // s
    return [
        [
            sum(stitch[t * s + p][u * s + q] * rows[u][q * part + i] for u in range(tasks) for q in range(s))
            for p in range(s)
            for i in range(part)
        ]
        for t in range(tasks)
    ]


@pytest.mark.parametrize("subspaces", [1, 2])
@pytest.mark.parametrize("own", [True, False])
def test_units_are_mixed_after_each_layer(subspaces: int, own: bool) -> None:
    """Misra et al. 2016, Eq. 1; with more subspaces Ruder et al. 2019."""
    module = shaken(CrossStitch(hidden=(6, 4), subspaces=subspaces))
    x = torch.randn(4, 3, D) if own else torch.randn(4, D)
    shared = module(x)
    for b in range(4):
        rows = x[b].tolist() if own else [x[b].tolist()] * 3
        for network, stitch in zip(module.networks, module.stitches, strict=True):
            rows = [loop_mlp(network, k, row) for k, row in enumerate(rows)]
            rows = loop_stitch(stitch.tolist(), rows, subspaces)
        torch.testing.assert_close(shared.z[b], torch.tensor(rows))


def test_stitches_start_near_the_identity() -> None:
    for tasks, subspaces, others in ((3, 1, 0.05), (3, 2, 0.02), (2, 1, 0.1)):
        module = CrossStitch(hidden=(8, 4), subspaces=subspaces).build(D, TASKS[:tasks])
        for stitch in module.stitches:
            n = tasks * subspaces
            expected = torch.full((n, n), others) + torch.eye(n) * (0.9 - others)
            torch.testing.assert_close(stitch.detach(), expected)


def test_one_task_reads_itself() -> None:
    module = CrossStitch(hidden=(4,)).build(D, ("a",))
    x = torch.randn(3, D)
    torch.testing.assert_close(module(x).z, module.networks[0](x))


def test_with_nothing_read_of_others_it_is_single_task() -> None:
    module = CrossStitch(own=1.0, hidden=(4, 3)).build(D, TASKS)
    single = SingleTask(hidden=(4, 3)).build(D, TASKS)
    for network, layer in zip(module.networks, single.networks.layers, strict=True):
        layer.load_state_dict(network.layers[0].state_dict())
    x = torch.randn(7, D)
    torch.testing.assert_close(module(x).z, single(x).z)


def test_what_is_returned_and_reported_are_the_learned_constants() -> None:
    module = shaken(CrossStitch(hidden=(4, 4), subspaces=2))
    shared = module(torch.randn(9, D))
    assert [level.readers[:3] for level in module.wiring] == [("a, part 1", "a, part 2", "b, part 1")] * 2
    for level, gate, stitch in zip(module.wiring, shared.gates, module.stitches, strict=True):
        torch.testing.assert_close(gate, stitch.expand(9, 6, 6))
        told = level_gates(level, gate.detach().numpy())
        torch.testing.assert_close(torch.tensor(told.mean), stitch.detach())
        assert torch.tensor(told.sd).max() < 1e-6
        assert (told.entropy, told.row_entropy, told.divergence, told.row_divergence) == ((), (), (), ())
        assert (dead_sources(told), polarised_gates(told)) == ((), ())


def test_gates_are_plain_numbers_in_inference_mode() -> None:
    module = CrossStitch(hidden=(4,)).build(D, TASKS)
    x = torch.randn(3, D)
    assert module(x).gates[0].requires_grad
    with torch.inference_mode():
        assert not module(x).gates[0].requires_grad


def test_a_network_that_nobody_reads_is_told_as_dead() -> None:
    module = CrossStitch(hidden=(4,)).build(D, TASKS)
    with torch.no_grad():
        module.stitches[0][:, 1] = 0.0
    told = level_gates(module.wiring[0], module(torch.randn(9, D)).gates[0].detach().numpy())
    assert dead_sources(told) == (1,)


def test_widths_are_whole_subspaces() -> None:
    with pytest.raises(SettingError, match="3 subspaces want widths that are multiples of 3, found 64"):
        CrossStitch(hidden=(96, 64), subspaces=3)
    assert CrossStitch(hidden=(96, 66), subspaces=3).widened(0.33).hidden == (33, 21)
    assert CrossStitch(hidden=(96, 66), subspaces=3).widened(0.001).hidden == (3, 3)
