"""What may be recorded on a GPU, and what must not. That they give what steps give,
``benchmarks/gpu.py`` checks where there is one."""

import pytest
import torch
from torch import Tensor, nn

from multigate.balance import BALANCES
from multigate.batch import BagIds, Batch, Layout, NumberColumn, TaskColumn
from multigate.model import Model
from multigate.schema import Task
from multigate.sharing import MMoE, Soft
from multigate.training.adam import Adam
from multigate.training.optimizers import Rate
from multigate.training.recorded import AFTER, Recordings, _leaves, may_be_recorded

LAYOUT = Layout(
    numbers=(NumberColumn(feature="x"),),
    categories=(),
    bags=(),
    tables={},
    tasks=tuple(TaskColumn(name=name, kind="binary") for name in "ab"),
)


def model(sharing: object = None) -> Model:
    return Model(LAYOUT, sharing or MMoE(experts=2, hidden=(4,)))


class Theirs(nn.Module):
    """Code that nobody here knows: it may do other things each time."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_our_own_models_may_be_recorded_but_for_those_that_say_no() -> None:
    assert may_be_recorded(model())
    assert may_be_recorded(model(Soft(hidden=(4,), penalty="l2")))
    assert not may_be_recorded(model(Soft(hidden=(4,), penalty="trace")))
    assert not may_be_recorded(model(Soft(hidden=(4,), penalty="tucker"))), "it counts its calls"
    found = {name for name, one in BALANCES.items() if may_be_recorded(one().build([Task("a"), Task("b")]))}
    assert "fixed" in found
    assert "random" not in found


def test_code_of_others_and_whoever_looks_on_are_called_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with_theirs, watched = model(), model()
    with_theirs.sharing.extra = Theirs()
    watched.towers.layers[0].register_forward_hook(lambda *_: None)
    assert not may_be_recorded(with_theirs)
    assert not may_be_recorded(watched)
    monkeypatch.setenv("MULTIGATE_GRAPHS", "off")
    assert not may_be_recorded(model())


def test_what_cannot_be_recorded_is_called_as_it_is() -> None:
    """Without a GPU to record on: the call that would be recorded fails to, once, and none is lost."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here, where this is recorded: see benchmarks/gpu.py")
    calls: list[float] = []

    def function(batch: Tensor) -> tuple[Tensor]:
        calls.append(batch.sum().item())
        return (batch.sum(),)

    recordings = Recordings()
    for at in range(AFTER + 3):
        assert recordings.call(function, torch.full((2,), float(at)))[0] == 2 * at
    assert calls == [2.0 * at for at in range(AFTER + 3)]
    assert recordings.failed
    assert not recordings.done


def test_the_tensors_of_a_batch_are_found_in_order() -> None:
    tensors = [torch.full((1,), float(at)) for at in range(9)]
    bags = (BagIds(tensors[2], tensors[3]),)
    batch = Batch(tensors[0], tensors[1], bags, *tensors[4:8])
    assert [int(one) for one in _leaves((batch, tensors[8]))] == list(range(9))


def test_the_rate_is_that_of_the_step_on_a_processor_a_number() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = Adam([([weight], 0.0)], 1.0, decoupled=False)
    rate = Rate(optimizer, torch.device("cpu"))
    weight.grad = torch.ones(1)
    rate.set(0.25)
    optimizer.step()
    assert rate.value == 0.25
    assert weight.item() == pytest.approx(0.75)
