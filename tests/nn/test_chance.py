"""Random masks have the rate they say, element by element, and dropout keeps the mean."""

import pytest
import torch

from multigate.nn import chance as module
from multigate.nn.chance import chance, dropout, realised


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5])
def test_masks_have_their_rate_and_elements_are_independent(rate: float) -> None:
    mask = chance((400, 501), rate, torch.device("cpu")).float()
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
