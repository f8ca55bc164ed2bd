"""Our call of the fused kernel against torch's own optimisers."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from multigate.training.adam import Adam


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


def test_training_does_not_import_the_compiler() -> None:
    code = "import sys, multigate.training.train; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
