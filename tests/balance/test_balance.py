"""What every balance must hold: absent tasks, declared weights, states, and gradients of any shape and size."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from multigate.balance import BALANCES, Balance, Balancer, GramianBalance
from multigate.errors import ExperimentError
from multigate.experiment import make_experiment
from multigate.schema import Task

ALL = {name: kind() for name, kind in BALANCES.items()}
CASES = [pytest.param(options, id=name) for name, options in ALL.items()]
OF_GRADIENTS = {name: options for name, options in ALL.items() if isinstance(options, GramianBalance)}
GRADIENT_CASES = [pytest.param(options, id=name) for name, options in OF_GRADIENTS.items()]
SIGNED = {"imtl_g", "aligned_mtl"}
"""Balances that may weigh a task below zero."""


def tasks(weights: Sequence[float]) -> list[Task]:
    return [Task(f"task{i}", weight=weight) for i, weight in enumerate(weights)]


def build(options: Balance, weights: Sequence[float]) -> Balancer:
    return options.build(tasks(weights))


def weigh(balancer: Balancer, losses: Tensor, gramian: Tensor, present: Tensor | None = None) -> Tensor:
    """Weights from the same random draws each time, and without learning from this step."""
    torch.manual_seed(3)
    present = torch.ones(len(losses), dtype=torch.bool) if present is None else present
    return balancer.weights(losses, gramian, present).detach()


def teach(balancer: Balancer, steps: int = 5) -> None:
    """Some steps with their epochs, so that whatever the balance keeps is no longer what it began with."""
    count = len(balancer.declared)
    for _ in range(steps):
        losses, gradients = torch.rand(count) + 0.1, torch.rand(count, 6)
        present = torch.arange(count) != 1
        balancer.weights(losses, gradients @ gradients.T, present)
        balancer.after_step(losses, losses * torch.rand(count), present)
        balancer.after_epoch(torch.rand(count) + 0.1)
    for parameter in balancer.parameters():
        parameter.data += torch.randn(count)


@pytest.fixture
def losses() -> Tensor:
    return torch.tensor([0.7, 0.1, 2.0])


@pytest.fixture
def gramian() -> Tensor:
    gradients = torch.randn(3, 8)
    return gradients @ gradients.T


@pytest.mark.parametrize("options", CASES)
def test_an_absent_task_gets_exactly_nothing_and_is_not_looked_at(
    options: Balance, losses: Tensor, gramian: Tensor
) -> None:
    """Its loss and gradient are zero, as the loop gives them, or anything at all: the others' weights are the same."""
    present = torch.tensor([True, False, True])
    of_two = weigh(build(options, (1, 1)), losses[[0, 2]], gramian[[0, 2]][:, [0, 2]])
    if options.method in ("random", "pcgrad", "gradvac"):  # their draws depend on the number of tasks
        of_two = weigh(build(options, (1, 1, 1)), losses, gramian, present)[[0, 2]]
    keep = present.float()
    for loss, gram in ((losses * keep, gramian * torch.outer(keep, keep)), (losses, gramian)):
        weights = weigh(build(options, (1, 1, 1)), loss, gram, present)
        assert weights[1] == 0
        torch.testing.assert_close(weights[[0, 2]], of_two)
        assert (of_two != 0).any()


@pytest.mark.parametrize("options", CASES)
def test_nothing_known_and_one_known(options: Balance, losses: Tensor, gramian: Tensor) -> None:
    balancer = build(options, (1, 3, 1))
    nothing = torch.zeros(3, dtype=torch.bool)
    assert weigh(balancer, losses * 0, gramian * 0, nothing).tolist() == [0, 0, 0]
    balancer.after_step(losses * 0, losses * 0, nothing)
    one = torch.tensor([False, True, False])
    alone = 0.5 if options.method == "uncertainty" else 1.0  # exp(-s) / 2 at s = 0
    torch.testing.assert_close(weigh(balancer, losses, gramian, one), torch.tensor([0.0, 3 * alone, 0.0]))


@pytest.mark.parametrize("options", CASES)
def test_a_single_task_keeps_its_weight_and_costs_nothing_more(options: Balance) -> None:
    balancer = build(options, (2.0,))
    assert not balancer.needs_gramian
    assert not balancer.looks_back
    expected = 1.0 if options.method == "uncertainty" else 2.0
    assert balancer.weights(torch.tensor([0.3]), None, torch.tensor([True])).item() == pytest.approx(expected)


@pytest.mark.parametrize("options", CASES)
def test_a_task_of_weight_zero_is_as_if_it_were_not_there(options: Balance, losses: Tensor, gramian: Tensor) -> None:
    weights = weigh(build(options, (1, 0, 1)), losses, gramian)
    without = weigh(build(options, (1, 1, 1)), losses, gramian, torch.tensor([True, False, True]))
    torch.testing.assert_close(weights, without)


@pytest.mark.parametrize("options", CASES)
def test_a_larger_declared_weight_counts_for_more(options: Balance, losses: Tensor, gramian: Tensor) -> None:
    """Whatever the balance evens out, a task declared four times as important gets a larger share than before."""
    plain = weigh(build(options, (1, 1, 1)), losses, gramian)
    heavy = weigh(build(options, (4, 1, 1)), losses, gramian)
    assert heavy[0] / heavy.abs().sum() > plain[0] / plain.abs().sum()


@pytest.mark.parametrize("options", CASES)
def test_tasks_that_are_alike_add_up_plainly(options: Balance) -> None:
    """Orthogonal gradients of one length, equal losses: every balance is the plain sum (uncertainty half of it)."""
    if options.method == "random":
        return
    weights = weigh(build(options, (1, 1, 1, 1)), torch.full((4,), 0.4), torch.eye(4) * 1e-6)
    if options.method == "cagrad":  # the mean gradient, longer by c
        weights = weights / (1 + options.c)
    torch.testing.assert_close(weights, torch.full((4,), 0.5 if options.method == "uncertainty" else 1.0))


@pytest.mark.parametrize("options", CASES)
def test_state_goes_through_a_file(options: Balance, losses: Tensor, gramian: Tensor) -> None:
    """What it learnt is all in its state: one that is restored weighs, and learns on, like the first."""
    some = [task.with_(weight_factor=0.5) for task in tasks((1, 2, 3))]
    balancer, other = options.build(some), options.build(some)
    teach(balancer)
    other.load_state_dict(load(save(balancer.state_dict())))
    for _ in range(3):
        one, two = weigh(balancer, losses, gramian), weigh(other, losses, gramian)
        assert torch.equal(one, two)
        for each in (balancer, other):
            each.after_step(losses, losses * torch.tensor([0.9, 0.5, 1.1]), torch.tensor([True, True, False]))
            each.after_epoch(losses)
    assert torch.equal(balancer.declared, other.declared)


def test_balances_that_learn_do_learn(losses: Tensor) -> None:
    """So that the test above is not passed by balances that keep nothing."""
    learning = set()
    for name, options in ALL.items():
        fresh, taught = build(options, (1, 1, 1)), build(options, (1, 1, 1))
        teach(taught)
        if not torch.equal(weigh(fresh, losses, torch.eye(3)), weigh(taught, losses, torch.eye(3))):
            learning.add(name)
    assert learning == {"uncertainty", "imtl_l", "dwa", "famo", "gradvac", "gradnorm"}


@pytest.mark.parametrize("options", CASES)
def test_weights_follow_their_schedule(options: Balance) -> None:
    """w gamma^epoch (Tang et al. 2020, Eq. 10)."""
    balancer = options.build([Task("a", weight=2.0, weight_factor=0.5), Task("b"), Task("c", weight_factor=1.1)])
    for _ in range(3):
        balancer.after_epoch(torch.ones(3))
    torch.testing.assert_close(balancer.declared, torch.tensor([2 * 0.5**3, 1.0, 1.1**3]))


@st.composite
def gradients(draw: st.DrawFn) -> Tensor:
    """Gradients (n, d) of tasks: of any rank, alike, opposed, far apart in length, some of them zero."""
    n, d = draw(st.integers(2, 8)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    found = torch.randn(n, d, generator=generator) + draw(st.sampled_from([-1.0, 0.0, 1.0]))
    if draw(st.booleans()):
        found[0] = -draw(st.sampled_from([1.0, 2.0, 0.001])) * found[-1]  # opposed, or nearly nothing
    if draw(st.booleans()):
        found[1] = 0
    scales = torch.tensor(draw(st.lists(st.sampled_from([-3.0, 0.0, 3.0]), min_size=n, max_size=n)))
    return found * 10 ** scales[:, None] * 10.0 ** draw(st.integers(-6, 2))


@pytest.mark.parametrize("options", CASES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(found=gradients(), absent=st.integers(0, 7))
def test_any_gradients_give_weights_to_train_with(options: Balance, found: Tensor, absent: int) -> None:
    n = len(found)
    losses, present = torch.linspace(0, 2, n), torch.arange(n) != absent
    balancer = build(options, [1.0] * n)
    for _ in range(2):
        weights = weigh(balancer, losses, found @ found.T, present)
        assert weights.isfinite().all()
        assert not (weights * ~present).any()
        assert (weights != 0).any()
        if options.method not in SIGNED:
            assert (weights >= 0).all()
        balancer.after_step(losses, losses.flip(0), present)
    assert all(value.isfinite().all() for value in balancer.state_dict().values())


@pytest.mark.parametrize("options", GRADIENT_CASES)
def test_the_unit_of_the_gradients_does_not_matter(options: GramianBalance, losses: Tensor, gramian: Tensor) -> None:
    """Gradients of a mean over a large batch are tiny, and weights are the same."""
    tiny, huge = (weigh(build(options, (1, 1, 1)), losses, gramian * unit) for unit in (1e-9, 1e6))
    torch.testing.assert_close(tiny, weigh(build(options, (1, 1, 1)), losses, gramian), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tiny, huge, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", GRADIENT_CASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_no_numbers_leave_the_plain_sum(
    options: GramianBalance, losses: Tensor, gramian: Tensor, value: float
) -> None:
    balancer = build(options, (1, 2, 1))
    gramian[0, 2] = gramian[2, 0] = value
    assert weigh(balancer, losses, gramian).tolist() == [1, 2, 1]
    assert all(state.isfinite().all() for state in balancer.state_dict().values())


@pytest.mark.parametrize("options", GRADIENT_CASES)
def test_a_task_without_gradient_takes_no_part(options: GramianBalance, losses: Tensor) -> None:
    """It would be all of MGDA's step, which is none at all."""
    gradients = torch.randn(3, 8)
    of_two = weigh(build(options, (1, 1, 1)), losses, gradients @ gradients.T, torch.tensor([True, False, True]))
    gradients[1] = 0
    weights = weigh(build(options, (1, 1, 1)), losses, gradients @ gradients.T)
    assert weights[1] == 1
    torch.testing.assert_close(weights[[0, 2]], of_two[[0, 2]])


def test_weights_stay_between_two_gramians(losses: Tensor, gramian: Tensor) -> None:
    balancer = build(ALL["mgda"].with_(every=4), (1, 1, 1))
    present = torch.ones(3, dtype=torch.bool)
    assert balancer.every == 4
    found = balancer.weights(losses, gramian, present)
    assert not torch.equal(found, torch.ones(3))
    assert torch.equal(balancer.weights(losses * 2, None, present), found)
    away = balancer.weights(losses, None, torch.tensor([True, True, False]))
    assert torch.equal(away, found * torch.tensor([1, 1, 0]))


def test_smoothing_keeps_a_part_of_the_last_weights(losses: Tensor, gramian: Tensor) -> None:
    """CR-MOGM: alpha times the last weights and 1 - alpha times the new ones, from 1 each."""
    plain, smooth = build(ALL["mgda"], (1, 1, 1)), build(ALL["mgda"].with_(smoothing=0.75), (1, 1, 1))
    other = gramian + torch.eye(3)
    expected = torch.ones(3)
    for each in (gramian, other, gramian):
        expected = 0.75 * expected + 0.25 * weigh(plain, losses, each)
        torch.testing.assert_close(weigh(smooth, losses, each), expected)


def test_a_balance_is_named_or_set_in_full() -> None:
    def of(balance: object) -> Balance:
        schema = {"features": [{"name": "price", "kind": "number"}], "tasks": [{"name": "click"}]}
        return make_experiment({"schema": schema, "balance": balance}).balance

    assert of("cagrad") == ALL["cagrad"]
    assert of({"method": "cagrad", "c": 0.2}) == ALL["cagrad"].with_(c=0.2)
    assert of(ALL["famo"]) == ALL["famo"]
    for wrong, match in (
        ("cagard", "there is no balance 'cagard'; did you mean 'cagrad'?"),
        ({"method": "pcgrad", "c": 1}, "unknown key 'c'"),
        ({"method": "cagrad", "c": 1.5}, "less than 1"),
        (3, "balance"),
    ):
        with pytest.raises(ExperimentError, match=match):
            of(wrong)


@pytest.mark.parametrize("options", CASES)
def test_options_go_through_yaml(options: Balance) -> None:
    schema = {"features": [{"name": "price", "kind": "number"}], "tasks": [{"name": "click"}]}
    experiment = make_experiment({"schema": schema, "balance": options})
    for full in (False, True):
        assert make_experiment(experiment.to_dict(full=full)).balance == options
    changed = make_experiment({"schema": schema, "balance": "cagrad"}, ["balance.c=0.1", "balance.every=3"])
    assert changed.balance == ALL["cagrad"].with_(c=0.1, every=3)
    assert changed.to_dict()["balance"] == {"method": "cagrad", "c": 0.1, "every": 3}


@pytest.mark.parametrize("shape", [(3, 1), (3, 3), (1, 3), (2, 3)])
def test_shares_of_another_shape_are_told_not_multiplied_out(shape: tuple[int, ...]) -> None:
    class Mine(Balancer):
        def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
            return torch.ones(shape)

    with pytest.raises(ExperimentError, match=r"Mine.balanced wants to return a share of each of the 3 tasks, found"):
        weigh(Mine(tasks([1, 1, 1])), torch.ones(3), torch.eye(3))


@pytest.mark.parametrize(
    ("wrong", "told"), [([1.0] * 3, "list"), (None, "NoneType"), (torch.ones(2), r"a tensor of \(2,\)")]
)
def test_shares_that_are_none_are_told(wrong: object, told: str) -> None:
    class Mine(Balancer):
        def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
            return wrong  # type: ignore[no-any-return]

    with pytest.raises(
        ExperimentError, match=rf"Mine.balanced wants to return a share of each of the 3 tasks, found {told}$"
    ):
        weigh(Mine(tasks([1, 1, 1])), torch.ones(3), torch.eye(3))
