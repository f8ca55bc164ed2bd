"""Sub-network routing against the paper as loops, and its gates against what counting draws says of them."""

import math

import pytest
import torch
from loops import loop_mlp
from torch import Tensor

from multigate.sharing import SNR
from multigate.sharing.snr import Route

D, E, TASKS = 5, 3, ("a", "b")
SETTINGS = [
    SNR(experts=2),
    SNR(experts=2, beta=0.9, gamma=-0.5, zeta=1.1),
    SNR(experts=2, beta=0.5, gamma=-1.0, zeta=2.0),
]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, D)


def loop_z_hat(log_alpha: float, gamma: float, zeta: float) -> float:
    """min(1, max(0, sigmoid(log alpha) (zeta - gamma) + gamma))."""
    return min(1.0, max(0.0, (zeta - gamma) / (1 + math.exp(-log_alpha)) + gamma))


@pytest.mark.parametrize("routing", ["trans", "aver"])
def test_a_level_reads_what_gates_let_through_of_the_level_before(x: Tensor, routing: str) -> None:
    """v_i = sum_j z_ij W_ij u_j, or sum_j z_ij u_j; sub-networks are ReLU(W v + b), and tasks read like a level."""
    module = SNR(routing=routing, experts=E, hidden=(4, 2), gamma=-0.2, zeta=1.3).build(D, TASKS).eval()
    for route in module.routes:
        route.log_alpha.data.normal_(0, 2)
    module.routes[0].log_alpha.data[1, 2] = -9  # closed for good
    shared = module(x)
    assert [gate.shape for gate in shared.gates] == [(4, E, E), (4, len(TASKS), E)]
    for b, row in enumerate(x.tolist()):
        v = [row] * E
        for level, (networks, route, width) in enumerate(zip(module.networks, module.routes, (4, 2), strict=True)):
            u = [loop_mlp(networks, j, v[j]) for j in range(E)]
            v = []
            for i, log_alphas in enumerate(route.log_alpha.tolist()):
                z = [loop_z_hat(one, -0.2, 1.3) for one in log_alphas]
                torch.testing.assert_close(shared.gates[level][b, i], torch.tensor(z))
                v.append([0.0] * width)
                for j in range(E):
                    for out in range(width):
                        if routing == "aver":
                            v[i][out] += z[j] * u[j][out]
                        else:
                            v[i][out] += z[j] * sum(route.weight[i, out, j, h].item() * u[j][h] for h in range(width))
        torch.testing.assert_close(shared.z[b], torch.tensor(v))
    assert (shared.gates[0][:, 1, 2] == 0).all()


@pytest.mark.parametrize("options", SETTINGS)
@pytest.mark.parametrize("log_alpha", [-1.5, 0.0, 2.0])
def test_draws_are_hard_concrete(options: SNR, log_alpha: float) -> None:
    """Zeros, ones and every value between are as frequent as the distribution function of the printed formula says.

    P(z <= t) is P(s <= (t - gamma) / (zeta - gamma)), and for a logistic variable L it is
    P((L + log alpha) / beta <= logit(s)).
    """
    route = Route(options, 200, 1)
    route.log_alpha.data.fill_(log_alpha)
    torch.manual_seed(0)
    z = torch.cat([route.drawn().detach().flatten() for _ in range(200)]).double()
    assert z.min() == 0
    assert z.max() == 1
    for t in (0.0, 0.2, 0.5, 0.8, 0.999):
        s = (t - options.gamma) / (options.zeta - options.gamma)
        expected = 1 / (1 + math.exp(-(options.beta * math.log(s / (1 - s)) - log_alpha)))
        assert (z <= t).double().mean().item() == pytest.approx(expected, abs=0.006)


@pytest.mark.parametrize("options", SETTINGS)
def test_the_penalty_counts_the_gates_that_draws_leave_open(options: SNR) -> None:
    """lambda sum (1 - Q(s < 0)) is lambda times the mean number of gates that are not zero."""
    module = options.with_(hidden=(3, 2), l0=0.1).build(D, TASKS)
    for route in module.routes:
        route.log_alpha.data.normal_(0, 2)
    torch.manual_seed(0)
    draws = 4000
    counted = sum((route.drawn() > 0).sum().item() for _ in range(draws) for route in module.routes) / draws
    assert module(torch.randn(1, D)).penalty.item() == pytest.approx(0.1 * counted, abs=0.005)


@pytest.mark.parametrize("options", SETTINGS)
def test_gates_begin_mostly_open(options: SNR) -> None:
    module = options.build(D, TASKS)
    chances = torch.cat([route.open().flatten() for route in module.routes])
    assert (chances > 0.9).all()
    assert (torch.cat([gate.flatten() for gate in module.eval()(torch.randn(1, D)).gates]) > 0.75).all()


def test_a_batch_has_one_draw_and_the_next_another(x: Tensor) -> None:
    module = SNR(experts=8, hidden=(4, 4)).build(D, TASKS)
    here, there = module(x), module(x)
    for first, second in zip(here.gates, there.gates, strict=True):
        assert (first == first[:1]).all()
        assert first.unique().numel() > len(first[0]), "every gate is drawn for itself"
        assert not torch.equal(first, second)
    assert not torch.equal(here.z, there.z)


def test_gates_of_readings_that_do_not_pay_close_for_good() -> None:
    """Only the penalty left to say anything, every gate ends at exactly zero; without it none moves."""
    for l0, still_open in ((0.5, False), (0.0, True)):
        module = SNR(experts=3, hidden=(4,), l0=l0).build(D, TASKS)
        optimiser = torch.optim.Adam(module.parameters(), lr=0.3)
        for _ in range(40):
            optimiser.zero_grad()
            module(torch.randn(2, D)).penalty.backward()
            optimiser.step()
        gates = module.eval()(torch.randn(2, D)).gates[0]
        assert (gates > 0.9).all() if still_open else (gates == 0).all()


def test_an_average_passes_on_what_a_transformation_learns() -> None:
    """SNR-Aver is SNR-Trans with identities for W (Ma et al. 2019)."""
    aver = SNR(routing="aver", experts=E, hidden=(4, 2)).build(D, TASKS).eval()
    trans = SNR(experts=E, hidden=(4, 2)).build(D, TASKS).eval()
    trans.load_state_dict(aver.state_dict(), strict=False)
    for route in trans.routes:
        readers, width = route.weight.shape[:2]
        route.weight.data.copy_(torch.eye(width)[None, :, None, :].expand(readers, width, E, width))
    inputs = torch.randn(6, D)
    torch.testing.assert_close(trans(inputs), aver(inputs))
    assert not [name for name in aver.state_dict() if name.endswith("routes.0.weight")]


@pytest.mark.parametrize("changes", [{"beta": 0.4}, {"gamma": 0.0}, {"zeta": 1.0}, {"l0": -1.0}, {"routing": "mean"}])
def test_settings_outside_the_papers_ranges_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        SNR().with_(**changes)


@pytest.mark.parametrize("routing", ["trans", "aver"])
def test_bfloat16_trains(routing: str, x: Tensor) -> None:
    module = SNR(routing=routing).build(D, TASKS)
    with torch.autocast("cpu", torch.bfloat16):
        shared = module(x)
    assert shared.z.dtype == torch.bfloat16
    (shared.z.float().square().mean() + shared.penalty).backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
