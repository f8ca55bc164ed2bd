"""Random masks have the rate they say, element by element, and dropout keeps the mean."""

import sys

import pytest
import torch

from multigate.nn import chance as module
from multigate.nn.chance import MANY, bytes_of, chance, dropout, realised

CPU = torch.device("cpu")


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5])
@pytest.mark.parametrize("rows", [400, 1600])
def test_masks_have_their_rate_and_elements_are_independent(rate: float, rows: int) -> None:
    assert (rows * 501 >= 8 * MANY) == (rows == 1600), "drawn one after the other, and of the first alone"
    mask = chance((rows, 501), rate, CPU).float()
    p = realised(rate)
    deviation = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs(p - rate) <= 1 / 512
    assert abs(mask.mean().item() - p) < 5 * deviation
    for shift in (1, 7, 8):  # neighbours, also those of one draw
        flat = mask.flatten() - p
        together = (flat[:-shift] * flat[shift:]).mean().item()
        assert abs(together) < 5 * p * (1 - p) / mask.numel() ** 0.5


def test_extremes_and_empty_shapes() -> None:
    assert not chance((50, 3), 0.0, torch.device("cpu")).any()
    assert chance((50, 3), 1.0, torch.device("cpu")).all()
    assert chance((0, 3), 0.5, torch.device("cpu")).shape == (0, 3)


def test_dropout_keeps_the_mean_and_scales_the_gradient() -> None:
    x = torch.ones(1000, 300, requires_grad=True)
    out = dropout(x, 0.3, training=True)
    assert abs(out.mean().item() - 1) < 0.01
    kept = out.detach() > 0
    out.sum().backward()
    assert torch.equal(x.grad > 0, kept)
    torch.testing.assert_close(x.grad[kept], out.detach()[kept])
    assert dropout(x, 0.3, training=False) is x


def test_what_is_spared_stays() -> None:
    x = torch.rand(50, 40) + 1
    spared = torch.arange(30) % 3 == 0
    out = dropout(x, 0.5, True, spared)
    stays = torch.cat([spared, torch.zeros(10, dtype=torch.bool)])
    assert torch.equal(out[:, stays], x[:, stays])
    assert 0.3 < (out[:, ~stays] == 0).float().mean() < 0.7
    assert ((out[:, ~stays] == 0).float().mean(0) > 0.2).all()


def test_an_old_torch_draws_in_stacks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch 2.11 cannot view bytes under ``vmap``: rates are the same, and each model's draws are its own."""
    monkeypatch.setattr(module, "_views_bytes", lambda: False)
    viewed = []
    monkeypatch.setattr(torch.Tensor, "view", lambda *_: viewed.append(1))
    stacked = torch.vmap(lambda x: x * chance(x.shape, 0.3, x.device), randomness="different")(torch.ones(3, 400, 99))
    assert not viewed
    p = realised(0.3)
    for one in stacked:
        assert abs(one.mean().item() - p) < 5 * (p * (1 - p) / one.numel()) ** 0.5
    assert not torch.equal(stacked[0], stacked[1])


def splitmix(seed: int, many: int) -> list[int]:
    """As published, with whole numbers of any size."""
    words, mask = [], 2**64 - 1
    for _ in range(many):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        words.append(z ^ (z >> 31))
    return words


@pytest.mark.parametrize("compiled", [True, False])
def test_many_draws_are_splitmix_from_one_of_the_generator(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(module, "kernels", lambda: None)
    torch.manual_seed(0)
    found = bytes_of((8 * MANY + 3,), CPU)
    torch.manual_seed(0)
    seed = int(torch.randint(-(2**63), 2**63 - 1, (1,)))
    words = splitmix(seed % 2**64, MANY + 1)
    assert bytes(found.tolist()) == b"".join(word.to_bytes(8, sys.byteorder) for word in words)[: len(found)]
    assert not torch.equal(bytes_of((8 * MANY + 3,), CPU), found), "the next ones"


def test_many_draws_of_stacked_models_are_their_own() -> None:
    stacked = torch.vmap(lambda x: x * chance(x.shape, 0.5, x.device), randomness="different")(torch.ones(3, 8 * MANY))
    for one, other in ((0, 1), (1, 2), (0, 2)):
        both = (stacked[one] * stacked[other]).mean().item()
        assert abs(both - 0.25) < 0.01
