"""AITM against the paper as loops; its order by name, and what breaking it costs."""

import math

import pytest
import torch
from loops import loop_mlp
from torch import Tensor

from multigate.batch import Layout, NumberColumn, TaskColumn
from multigate.errors import ExperimentError
from multigate.model import Model
from multigate.nn.embed import Embedding
from multigate.sharing import AITM

D, H = 5, 3
TASKS = ("buy", "click", "cart")
ORDER = ("click", "cart", "buy")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, D)


def loop_attention(weight: Tensor, u: list[list[float]]) -> tuple[list[float], list[float]]:
    """z = sum_u w_u h1(u) and the w_u, w_u = softmax_u(<h2(u), h3(u)> / sqrt(k)); rows of ``weight`` are h1, h2, h3."""

    def h(number: int, of: list[float]) -> list[float]:
        rows = weight[number * H : (number + 1) * H].tolist()
        return [sum(w * v for w, v in zip(row, of, strict=True)) for row in rows]

    scores = [sum(a * b for a, b in zip(h(1, one), h(2, one), strict=True)) / math.sqrt(H) for one in u]
    exps = [math.exp(score) for score in scores]
    w = [value / sum(exps) for value in exps]
    return [sum(w[i] * h(0, u[i])[k] for i in range(2)) for k in range(H)], w


@pytest.mark.parametrize(("order", "steps"), [((), (0, 1, 2)), (ORDER, (1, 2, 0))])
def test_each_step_attends_to_its_own_and_to_what_the_step_before_passes_on(
    order: tuple[str, ...], steps: tuple[int, ...], x: Tensor
) -> None:
    """z_1 = q_1; z_t = AIT(p_{t-1}, q_t), p_{t-1} = g_{t-1}(z_{t-1}), q_t = f_t(x) (Xi et al. 2021)."""
    module = AITM(order=order, hidden=(4, H)).build(D, TASKS)
    for transfer in module.transfers:
        transfer.attention.weight.data.normal_()  # far from even weights
    shared = module(x)
    for b, row in enumerate(x.tolist()):
        z = loop_mlp(module.networks, steps[0], row)
        weights = torch.zeros(3, 3)
        weights[steps[0], steps[0]] = 1
        torch.testing.assert_close(shared.z[b, steps[0]], torch.tensor(z))
        for number, task in enumerate(steps[1:]):
            transfer = module.transfers[number]
            p, q = loop_mlp(transfer.info, 0, z), loop_mlp(module.networks, task, row)
            z, (weights[task, steps[number]], weights[task, task]) = loop_attention(transfer.attention.weight, [p, q])
            torch.testing.assert_close(shared.z[b, task], torch.tensor(z))
        torch.testing.assert_close(shared.gates[0][b], weights)


def test_a_step_hears_of_all_before_it_and_of_none_after(x: Tensor) -> None:
    module = AITM(order=ORDER, hidden=(H,)).build(D, TASKS)
    for place, name in enumerate(ORDER):
        module.zero_grad()
        module(x).z[:, TASKS.index(name)].sum().backward()
        heard = module.networks.layers[0].weight.grad.abs().sum((1, 2)) > 0
        assert {TASKS[task] for task in range(3) if heard[task]} == set(ORDER[: place + 1])


def test_the_wiring_is_the_order() -> None:
    level = AITM(order=ORDER).build(D, TASKS).wiring[0]
    reads = {
        reader: {source.removeprefix("network of ") for source, may in zip(level.sources, row, strict=True) if may}
        for reader, row in zip(level.readers, level.mask, strict=True)
    }
    assert reads == {"click": {"click"}, "cart": {"click", "cart"}, "buy": {"cart", "buy"}}


def test_a_later_step_that_is_likelier_costs() -> None:
    """alpha / N sum_n sum_{t >= 2} max(p_t - p_{t-1}, 0), in the order of the steps."""
    module = AITM(order=ORDER, order_penalty=0.6).build(D, TASKS)
    #                              buy  click cart
    probabilities = torch.tensor([[0.5, 0.4, 0.7], [0.1, 0.9, 0.2]])  # the first row rises by .3, then falls
    all_binary = torch.tensor([True, True, True])
    assert module.output_penalty(probabilities, all_binary).item() == pytest.approx(0.6 * 0.3 / 2)
    falling = torch.tensor([[0.1, 0.9, 0.2]])
    assert module.output_penalty(falling, all_binary) == 0
    assert module.output_penalty(probabilities[:0], all_binary) == 0
    assert AITM(order=ORDER, order_penalty=0).build(D, TASKS).output_penalty(probabilities, all_binary) == 0


@pytest.mark.parametrize(
    ("binary", "rise"), [((True, False, True), 0.4), ((False, True, True), 0.1), ((True, True, False), 0.0)]
)
def test_pairs_with_a_task_that_is_not_binary_cost_nothing(binary: tuple[bool, ...], rise: float) -> None:
    module = AITM(order=ORDER, order_penalty=1).build(D, TASKS)
    probabilities = torch.tensor([[0.9, 0.4, 0.5]])  # click .4, cart .5, buy .9
    assert module.output_penalty(probabilities, torch.tensor(binary)).item() == pytest.approx(rise)


def test_without_an_order_nobody_said_what_comes_after_what() -> None:
    module = AITM(order_penalty=5).build(D, TASKS)
    assert module.output_penalty(torch.tensor([[0.1, 0.9, 0.2]]), torch.tensor([True, True, True])) == 0


def small_model(options: AITM, parents: list[int | None]) -> Model:
    layout = Layout(
        numbers=(NumberColumn(feature="a"), NumberColumn(feature="b")),
        categories=(),
        bags=(),
        tables={},
        tasks=tuple(TaskColumn(name=name, kind="binary", mean=0.5) for name in TASKS),
    )
    return Model(
        layout, options, embedding=Embedding(dropout=0), parents=parents, order=[TASKS.index(name) for name in ORDER]
    )


def test_a_model_pays_in_training_what_a_funnel_of_given_tasks_never_owes() -> None:
    numbers, no_ids = torch.randn(64, 2) * 3, torch.zeros(64, 0, dtype=torch.int32)
    loose, tight = small_model(AITM(order=ORDER), [None] * 3), small_model(AITM(order=ORDER), [2, None, 1])
    p = torch.sigmoid(loose(numbers, no_ids).logits)
    owed = (p[:, 2] - p[:, 1]).clamp_min(0) + (p[:, 0] - p[:, 2]).clamp_min(0)
    assert owed.mean() > 0
    torch.testing.assert_close(loose(numbers, no_ids).penalty, 0.6 * owed.mean())
    assert loose.eval()(numbers, no_ids).penalty == 0
    assert tight(numbers, no_ids).penalty == 0


def test_the_penalty_puts_the_steps_in_order() -> None:
    module = AITM(order=ORDER).build(D, TASKS)
    logits = torch.randn(32, 3, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        module.output_penalty(torch.sigmoid(logits), torch.tensor([True, True, True])).backward()
        optimiser.step()
    buy, click, cart = torch.sigmoid(logits).unbind(1)
    assert (buy <= cart + 0.01).all()
    assert (cart <= click + 0.01).all()


def test_an_order_names_every_task_once() -> None:
    with pytest.raises(ExperimentError, match="there is no task 'cart_'; did you mean 'cart'"):
        AITM(order=("click", "cart_", "buy")).build(D, TASKS)
    with pytest.raises(ExperimentError, match="'cart' is missing"):
        AITM(order=("click", "buy")).build(D, TASKS)
    with pytest.raises(ValueError, match="names 'click' twice"):
        AITM(order=("click", "buy", "click"))


def test_one_task_is_its_own_network(x: Tensor) -> None:
    module = AITM(order=("buy",), hidden=(4, H)).build(D, ("buy",))
    shared = module(x)
    torch.testing.assert_close(shared.z, module.networks(x))
    assert module.output_penalty(torch.rand(4, 1), torch.tensor([True])) == 0


def test_bfloat16_trains(x: Tensor) -> None:
    module = AITM(order=ORDER).build(D, TASKS)
    with torch.autocast("cpu", torch.bfloat16):
        shared = module(x)
    assert shared.z.dtype == torch.bfloat16
    torch.testing.assert_close(shared.gates[0].sum(-1), torch.ones(4, 3), atol=0.01, rtol=0)
    shared.z.float().square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
