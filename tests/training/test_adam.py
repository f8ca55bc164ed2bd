"""Our call of the fused kernel against torch's own optimisers."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from multigate.experiment import Optimizer
from multigate.training.adam import Adam
from multigate.training.optimizers import build_optimizer


@pytest.mark.parametrize("decoupled", [True, False])
def test_steps_are_torchs(decoupled: bool) -> None:
    own = [nn.Parameter(torch.randn(shape)) for shape in ((3, 4), (5,), (2,), (1,))]
    others = [nn.Parameter(p.detach().clone()) for p in own]
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    groups = [{"params": others[:2], "weight_decay": 0.3}, {"params": others[2:], "weight_decay": 0.0}]
    reference = kind(groups, lr=0.1, fused=True)
    adam = Adam([(own[:2], 0.3), (own[2:], 0.0), ([], 1.0)], 0.1, decoupled=decoupled)
    for step in range(5):
        adam.zero_grad()
        reference.zero_grad()
        for group, other in zip(adam.param_groups, reference.param_groups, strict=True):
            group["lr"] = other["lr"] = 0.1 / (1 + step)
        for at, (p, q) in enumerate(zip(own, others, strict=True)):
            if at != 3 and not (at == 2 and step % 2):  # one is never read, one every other time
                p.grad = torch.randn(p.shape)
                q.grad = p.grad.clone()
        adam.step()
        reference.step()
        for p, q in zip(own, others, strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ({}, partial(torch.optim.AdamW, weight_decay=0.05)),
        ({"weight_decay": 0.3}, partial(torch.optim.AdamW, weight_decay=0.3)),
        ({"name": "adam"}, torch.optim.Adam),
        ({"name": "adam", "weight_decay": 0.3}, partial(torch.optim.Adam, weight_decay=0.3)),
    ],
    ids=["adamw", "adamw with decay", "adam", "adam with decay"],
)
def test_decay_is_of_the_name_unless_set(options: dict, reference: Callable[..., torch.optim.Optimizer]) -> None:
    """On rows of a table that no batch reads, whose gradient is zero, there is nothing else."""
    own, other = nn.Embedding(5, 3), nn.Embedding(5, 3)
    other.load_state_dict(own.state_dict())
    before = own.weight.detach().clone()
    adam = build_optimizer(own, nn.Module(), Optimizer(learning_rate=0.01, **options))
    torchs = reference(other.parameters(), lr=0.01)
    for _ in range(20):
        for table, optimizer in ((own, adam), (other, torchs)):
            optimizer.zero_grad()
            table(torch.tensor([0, 1])).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(own.weight, other.weight)
    assert torch.equal(own.weight[2:], before[2:]) == (options == {"name": "adam"})


@pytest.mark.parametrize("name", ["after", "norms"])
def test_normalisers_do_not_decay_whatever_a_module_of_ones_own_calls_them(name: str) -> None:
    normalisers = (nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4))
    own = nn.ModuleDict({"first": nn.Linear(3, 4), name: nn.ModuleList(normalisers)})
    decays = {id(p): group["weight_decay"] for group in build_optimizer(own, nn.Module(), Optimizer()).param_groups
              for p in group["params"]}  # fmt: skip
    assert decays[id(own["first"].weight)] == 0.05
    assert {decays[id(p)] for one in normalisers for p in one.parameters()} == {0.0}


def test_normalisers_keep_their_place_in_checkpoints() -> None:
    """Moments are saved by place: weights first, whatever decays, as when those of normalisers did."""
    own = nn.ModuleDict({"before": nn.LayerNorm(4), "first": nn.Linear(4, 4), "after": nn.LayerNorm(4)})
    own["last"] = nn.Linear(4, 4)
    weights, biases = ([getattr(one, name) for one in own.values()] for name in ("weight", "bias"))
    found = build_optimizer(own, nn.Module(), Optimizer())
    assert [id(p) for p in found.parameters] == [id(p) for p in weights + biases]
    assert [group["weight_decay"] for group in found.param_groups] == [0.0, 0.05, 0.0, 0.05, 0.0]


def test_state_goes_from_one_to_another() -> None:
    weights = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2))]
    first = Adam([(weights, 0.1)], 0.1, decoupled=True)
    for p in weights:
        p.grad = torch.randn(p.shape)
    first.step()
    kept = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second = Adam([(weights, 0.1)], 0.1, decoupled=True)
    second.restore(kept)
    assert set(kept) == {f"{at}/{name}" for at in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    for name, tensor in second.tensors().items():
        assert torch.equal(tensor, kept[name])
    with pytest.raises(KeyError):
        Adam([([*weights, nn.Parameter(torch.ones(1))], 0.1)], 0.1, decoupled=True).restore(kept)


WITHOUT_COMPILER = """
import sys, torch, multigate.training.train
from multigate.nn.number_embeddings import Periodic, Piecewise
from multigate.sharing import STRUCTURES, VARIANTS

with torch.device("meta"):  # as comparisons count what a structure costs
    for name, options in ({name: kind() for name, kind in STRUCTURES.items()} | VARIANTS).items():
        options.build(8, ("a", "b", "c")).multiply_adds()
        assert "torch._dynamo" not in sys.modules, f"{name} computes on the meta device, which imports the compiler"
    Periodic([0], 4), Piecewise([0], [[0.0, 1.0, 3.0]], 4)
assert "torch._dynamo" not in sys.modules
"""


def test_training_and_counting_costs_do_not_import_the_compiler() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_COMPILER], check=True)
