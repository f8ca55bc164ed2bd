"""Inputs and weights of units with several experts, one number at a time."""

import torch

from multigate.nn.ownership import among_all, per_expert


def test_every_expert_reads_the_input_of_its_unit() -> None:
    x = torch.randn(4, 3, 5)
    out = per_expert(x, 2)
    assert out.shape == (4, 6, 5)
    for expert in range(6):
        assert torch.equal(out[:, expert], x[:, expert // 2])


def test_weights_land_on_the_experts_of_the_readers_unit() -> None:
    weights, of = torch.rand(4, 3, 2), [1, 0, 1]
    out = among_all(weights, torch.tensor([[unit == one for unit in range(2)] for one in of]))
    assert out.shape == (4, 3, 4)
    for reader, unit in enumerate(of):
        for expert in range(4):
            expected = weights[:, reader, expert % 2] if expert // 2 == unit else torch.zeros(4)
            assert torch.equal(out[:, reader, expert], expected)
