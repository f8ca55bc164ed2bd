"""Sparse gates against their papers as plain loops, and what must hold of every one."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from multigate.nn.gate import Regulariser
from multigate.nn.sparse_gate import (
    NOISE_FLOOR,
    DSelectKGate,
    NoisyTopKGate,
    TopKGate,
    chance_of_choice,
    largest,
    smooth_step,
)

Make = Callable[..., nn.Module]
KINDS: dict[str, Make] = {
    "top_k": TopKGate,
    "noisy_top_k": NoisyTopKGate,
    "dselect_k": DSelectKGate,
    "dselect_k_static": partial(DSelectKGate, static=True),
}
ALL = pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in KINDS.items()])
MASK = ((True, False, True, True, True, False), (False, True, False, False, False, False), (True,) * 6)
"""Three readers of six sources: four, one, and all of them."""
D = 5


def normal_cdf(value: float) -> float:
    return 0.5 * (1 + math.erf(value / math.sqrt(2)))


def loop_top_k(logits: list[float], k: int) -> list[float]:
    chosen = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k]
    exps = {i: math.exp(logits[i]) for i in chosen}
    return [exps.get(i, 0.0) / sum(exps.values()) for i in range(len(logits))]


def loop_step(t: float, width: float) -> float:
    if t <= -width / 2:
        return 0.0
    return 1.0 if t >= width / 2 else -2 / width**3 * t**3 + 3 / (2 * width) * t + 0.5


def loop_selector(z: list[float], width: float, codes: int) -> list[float]:
    found = []
    for code in range(codes):
        product = 1.0
        for j, bit in enumerate(format(code, f"0{len(z)}b")):
            product *= loop_step(z[j], width) if bit == "1" else 1 - loop_step(z[j], width)
        found.append(product)
    return found


def settle(gate: DSelectKGate) -> None:
    """Put all selectors far outside the smooth step."""
    for name, parameter in gate.named_parameters():
        if "z" in name:
            nn.init.normal_(parameter, std=1e3)


@ALL
@pytest.mark.parametrize("training", [True, False])
def test_rows_sum_to_one_and_barred_sources_weigh_exactly_zero(make: Make, training: bool) -> None:
    gate = make(3, 6, D, 4, mask=MASK).train(training)
    for rows in (0, 1, 50):
        weights, penalty = gate(torch.randn(rows, D))
        assert weights.shape == (rows, 3, 6)
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(rows, 3))
        assert not (weights * ~torch.tensor(MASK)).any()
        assert penalty == 0


@ALL
def test_at_most_k_sources_weigh_more_than_zero(make: Make) -> None:
    for k in (1, 2, 4, 9):
        gate = make(3, 6, D, k, mask=MASK)
        if isinstance(gate, DSelectKGate):
            settle(gate)
        used = (gate(torch.randn(50, D)).weights > 0).sum(-1)
        for reader, choices in enumerate((4, 1, 6)):
            if isinstance(gate, TopKGate):
                assert (used[:, reader] == min(k, choices)).all()
            assert (used[:, reader] <= min(k, choices)).all()
            assert used[:, reader].max() == min(k, choices) or gate.static


@ALL
def test_a_reader_reads_its_own_row_of_a_three_dimensional_input(make: Make) -> None:
    gate = make(2, 4, D, 2).eval()
    x = torch.randn(7, 2, D)
    apart = torch.stack([gate(x[:, reader]).weights[:, reader] for reader in range(2)], dim=1)
    torch.testing.assert_close(gate(x).weights, apart)


@ALL
def test_weights_sum_to_one_in_mixed_precision(make: Make) -> None:
    gate = make(2, 6, D, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = gate(torch.randn(50, D)).weights
    torch.testing.assert_close(weights.sum(-1), torch.ones(50, 2))


@ALL
def test_gates_are_exported_and_stacked(make: Make) -> None:
    gates = [make(3, 6, D, 2, mask=MASK).eval() for _ in range(3)]
    x = torch.randn(7, D)
    exported = torch.export.export(gates[0], (x,), dynamic_shapes=({0: torch.export.Dim("rows", min=2, max=64)},))
    torch.testing.assert_close(exported.module()(x[:4])[0], gates[0](x[:4]).weights)
    state = torch.func.stack_module_state(gates)

    def weigh(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(gates[0], (parameters, buffers), (x,))[0]

    stacked = torch.func.vmap(weigh)(*state)
    torch.testing.assert_close(stacked, torch.stack([gate(x).weights for gate in gates]))


@ALL
def test_gradients_are_finite_with_masks_and_all_penalties(make: Make) -> None:
    gate = make(3, 6, D, 4, mask=MASK, regulariser=Regulariser(3, 6, mask=MASK, entropy=0.1, load=0.1, dropout=0.2))
    weights, penalty = gate(torch.randn(50, D))
    ((weights * torch.randn(50, 3, 6)).sum() + penalty).backward()
    assert penalty > 0
    for parameter in gate.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


def test_top_k_is_a_softmax_over_the_largest() -> None:
    gate, x = TopKGate(2, 6, D, 3, temperature=0.5), torch.randn(20, D)
    weights = gate(x).weights
    for b, row in enumerate(x):
        for reader in range(2):
            logits = (gate.linear.weight[reader] @ row / 0.5).tolist()
            torch.testing.assert_close(weights[b, reader], torch.tensor(loop_top_k(logits, 3)))


def test_of_equal_logits_the_first_are_chosen() -> None:
    gate = TopKGate(1, 200, D, 2)
    expected = torch.zeros(3, 1, 200)
    expected[..., :2] = 0.5
    assert torch.equal(gate(torch.zeros(3, D)).weights, expected)
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 3.0])
    assert largest(scores, 2).tolist() == [False, True, False, True, False]


def test_most_read_is_what_readers_read_together() -> None:
    assert TopKGate(2, 8, D, 3).most_read() == 6
    assert TopKGate(4, 8, D, 3).most_read() == 8
    assert TopKGate(3, 6, D, 2, mask=MASK).most_read() == 5
    assert DSelectKGate(1, 8, D, 2).most_read() == 8


def test_without_noise_a_noisy_gate_is_a_top_k_gate() -> None:
    noisy, plain = NoisyTopKGate(2, 6, D, 2), TopKGate(2, 6, D, 2)
    plain.load_state_dict({"linear.weight": noisy.linear.weight})
    x = torch.randn(20, D)
    assert torch.equal(noisy.eval()(x).weights, plain(x).weights)
    assert not torch.equal(noisy.train()(x).weights, plain(x).weights)


def test_noise_chooses_as_often_as_its_deviation_says() -> None:
    """Two sources, k = 1: the first wins with probability Phi((a_0 - a_1) / sqrt(s_0^2 + s_1^2))."""
    gate, rows = NoisyTopKGate(1, 2, 1, 1), 20_000
    with torch.no_grad():
        gate.linear.weight[0, :, 0] = torch.tensor([1.0, 0.4])
        gate.noise.weight[0, :, 0] = torch.tensor([0.5, -1.0])
    deviations = [math.log1p(math.exp(raw)) + NOISE_FLOOR for raw in (0.5, -1.0)]
    expected = normal_cdf(0.6 / math.hypot(*deviations))
    chosen = gate(torch.ones(rows, 1)).weights[:, 0, 0].mean().item()
    assert chosen == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / rows))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_chance_of_choice_is_how_often_noise_drawn_anew_chooses(k: int) -> None:
    clean, deviation, draws = torch.randn(5), torch.rand(5) + 0.2, 20_000
    noisy = clean + deviation * torch.randn(5)
    chance = chance_of_choice(clean, noisy, deviation, largest(noisy, k), k)
    for i in range(5):
        anew = noisy.repeat(draws, 1)
        anew[:, i] = clean[i] + deviation[i] * torch.randn(draws)
        found = largest(anew, k)[:, i].double().mean().item()
        assert chance[i].item() == pytest.approx(found, abs=0.015)


def test_chance_of_choice_where_there_is_none() -> None:
    clean = torch.tensor([0.5, -torch.inf, 0.1, -torch.inf])
    chance = chance_of_choice(clean, clean, torch.ones(4), largest(clean, 3), 3)
    assert chance.tolist() == [1, 0, 1, 0]
    everything = chance_of_choice(torch.randn(4), torch.randn(4), torch.ones(4), torch.ones(4).bool(), 4)
    assert everything.tolist() == [1, 1, 1, 1]


def test_penalties_of_a_noisy_gate_are_equations_6_to_11() -> None:
    """w CV(Importance)^2 + w CV(Load)^2, over the rows of all readers (Shazeer et al. 2017)."""
    readers, sources, k, rows = 2, 4, 2, 6
    gate = NoisyTopKGate(readers, sources, D, k, regulariser=Regulariser(readers, sources, load=0.1))
    nn.init.normal_(gate.noise.weight)
    x = torch.randn(rows, D)
    torch.manual_seed(1)
    weights, penalty = gate(x)
    torch.manual_seed(1)
    noise = torch.randn(rows, readers, sources).tolist()
    importance, load = [0.0] * sources, [0.0] * sources
    for b, row in enumerate(x):
        for t in range(readers):
            clean = (gate.linear.weight[t] @ row).tolist()
            raw = (gate.noise.weight[t] @ row).tolist()
            deviation = [math.log1p(math.exp(one)) + NOISE_FLOOR for one in raw]
            noisy = [c + d * n for c, d, n in zip(clean, deviation, noise[b][t], strict=True)]
            gates = loop_top_k(noisy, k)
            torch.testing.assert_close(weights[b, t], torch.tensor(gates))
            for i in range(sources):
                importance[i] += gates[i]
                kth_excluding = sorted(noisy[:i] + noisy[i + 1 :])[-k]
                load[i] += normal_cdf((clean[i] - kth_excluding) / deviation[i])
    expected = 0.0
    for used in (importance, load):
        mean = sum(used) / sources
        expected += 0.1 * sum((one - mean) ** 2 for one in used) / sources / mean**2
    assert penalty.item() == pytest.approx(expected, rel=1e-4)


def test_balancing_a_noisy_gate_spreads_the_load() -> None:
    gate = NoisyTopKGate(1, 6, D, 2, regulariser=Regulariser(1, 6, load=1.0))
    with torch.no_grad():
        gate.linear.weight[0, 0] += 3  # one source is everybody's
    x = torch.rand(256, D)
    optimiser = torch.optim.Adam(gate.parameters(), lr=0.05)

    def largest_load() -> float:
        with torch.no_grad():
            return (gate(x).weights > 0).double().mean(0).max().item()

    before = largest_load()
    for _ in range(60):
        optimiser.zero_grad()
        gate(x).penalty.backward()
        optimiser.step()
    assert before > 0.95
    assert largest_load() < 0.6  # a third is even


@pytest.mark.parametrize("width", [1.0, 0.3])
def test_smooth_step_is_its_formula_and_smooth(width: float) -> None:
    t = torch.linspace(-width, width, 101, dtype=torch.float64, requires_grad=True)
    step = smooth_step(t, width)
    torch.testing.assert_close(step, torch.tensor([loop_step(one, width) for one in t.tolist()], dtype=torch.float64))
    (slope,) = torch.autograd.grad(step.sum(), t)
    outside = t.abs() >= width / 2
    assert (slope[outside].abs() < 1e-12).all()
    assert (slope >= -1e-12).all()
    assert slope.max().item() == pytest.approx(1.5 / width)
    assert set(smooth_step(torch.tensor([-width, -width / 2, width / 2, width]), width).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_dselect_k_is_the_paper_by_row(width: float) -> None:
    gate, x = DSelectKGate(2, 8, D, 3, temperature=width), torch.randn(10, D)
    nn.init.normal_(gate.to_z.weight, std=0.15 * width)
    nn.init.normal_(gate.to_alpha.weight)
    weights = gate(x).weights
    assert (weights == 0).any(), "some selectors should have settled for this to test much"
    for b, row in enumerate(x):
        for t in range(2):
            z = (gate.to_z.weight[t] @ row + gate.to_z.bias[t]).view(3, 3).tolist()
            mixture = torch.softmax(gate.to_alpha.weight[t] @ row + gate.to_alpha.bias[t], 0).tolist()
            selectors = [loop_selector(one, width, 8) for one in z]
            expected = [sum(mixture[each] * selectors[each][i] for each in range(3)) for i in range(8)]
            torch.testing.assert_close(weights[b, t], torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_static_dselect_k_is_the_paper_and_the_same_for_all_rows() -> None:
    gate = DSelectKGate(2, 4, D, 2, static=True)
    nn.init.normal_(gate.z, std=0.3)
    nn.init.normal_(gate.alpha)
    weights = gate(torch.randn(6, D)).weights
    for t in range(2):
        mixture = torch.softmax(gate.alpha[t], 0).tolist()
        selectors = [loop_selector(one, 1.0, 4) for one in gate.z[t].tolist()]
        expected = [sum(mixture[each] * selectors[each][i] for each in range(2)) for i in range(4)]
        torch.testing.assert_close(weights[:, t], torch.tensor(expected).expand(6, -1))


def test_codes_without_a_source_of_their_own_go_round_again() -> None:
    gate = DSelectKGate(3, 6, D, 1, mask=MASK, static=True)
    nn.init.normal_(gate.z, std=0.3)
    weights = gate(torch.randn(1, D)).weights[0]
    for reader, allowed in enumerate(([0, 2, 3, 4], [1], [0, 1, 2, 3, 4, 5])):
        selector = loop_selector(gate.z[reader, 0].tolist(), 1.0, 8)
        expected = [0.0] * 6
        for code, weight in enumerate(selector):
            expected[allowed[code % len(allowed)]] += weight
        torch.testing.assert_close(weights[reader], torch.tensor(expected))


def test_dselect_k_starts_near_even_and_reads_x() -> None:
    gate, x = DSelectKGate(2, 8, D, 2), torch.randn(20, D)
    weights = gate(x).weights
    assert (weights - 1 / 8).abs().max() < 0.08
    assert not torch.equal(weights[0], weights[1])


def test_entropy_is_that_of_selectors_and_not_of_what_they_make_up() -> None:
    gate = DSelectKGate(1, 4, D, 2, static=True, regulariser=Regulariser(1, 4, entropy=1.0))
    with torch.no_grad():
        gate.z[0] = torch.tensor([[-9.0, -9.0], [9.0, 0.0]])  # source 0; source 2 or 3
        gate.alpha.fill_(0)
    weights, penalty = gate(torch.randn(3, D))
    torch.testing.assert_close(weights, torch.tensor([0.5, 0, 0.25, 0.25]).expand(3, 1, -1))
    assert penalty.item() == pytest.approx((0 + math.log(2)) / 2)


@pytest.mark.parametrize("static", [True, False])
def test_the_entropy_penalty_settles_selectors(static: bool) -> None:
    gate = DSelectKGate(2, 8, D, 2, static=static, regulariser=Regulariser(2, 8, entropy=1.0))
    x = torch.randn(20, D)
    before = gate(x).penalty.item()
    optimiser = torch.optim.Adam(gate.parameters(), lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        gate(x).penalty.backward()
        optimiser.step()
    assert before == pytest.approx(math.log(8), rel=0.02), "of selectors over 8 codes, at first even"
    assert gate(x).penalty < 0.1 * before
    assert ((gate(x).weights > 1e-3).sum(-1) <= 2).double().mean() > 0.8


@pytest.mark.parametrize("make", [TopKGate, NoisyTopKGate])
@pytest.mark.parametrize("training", [False, True])
def test_which_sources_are_read_is_chosen_in_float32(make: Make, training: bool) -> None:
    """Logits a thousandth apart are one number in bfloat16, which matmuls may be computed in."""
    torch.manual_seed(0)
    gate = make(1, 4, D, 2).train(training)
    rows = gate.linear.weight
    with torch.no_grad():
        rows[:] = torch.tensor([1.0, 1.001, 1.002, 0.999])[None, :, None] * torch.rand(D)
        if hasattr(gate, "noise"):
            gate.noise.weight.fill_(-1e4)  # so little noise that it moves nothing
    x = torch.rand(64, D) + 0.5
    torch.manual_seed(1)
    plain = gate(x).weights
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        found = gate(x).weights
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain)
    if not training:
        assert (found > 0)[:, 0].tolist() == [[False, True, True, False]] * 64
