"""Normalisers of parallel copies against torch's own, one copy at a time."""

import copy

import pytest
import torch
from torch import nn

from multigate.nn.layout import lies_last
from multigate.nn.norm import ParallelBatchNorm

N, H = 3, 4


def copies(norm: ParallelBatchNorm) -> list[nn.BatchNorm1d]:
    """torch's layers with the same scale and shift."""
    layers = [nn.BatchNorm1d(H) for _ in range(N)]
    for i, layer in enumerate(layers):
        layer.load_state_dict({"weight": norm.weight[i], "bias": norm.bias[i]}, strict=False)
    return layers


@pytest.fixture
def norm() -> ParallelBatchNorm:
    norm = ParallelBatchNorm(N, H)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    return norm


def test_batch_norm_is_n_of_torchs(norm: ParallelBatchNorm) -> None:
    layers = copies(norm)
    for rows in (7, 2, 30):
        x = torch.randn(rows, N, H) * torch.rand(N, H) * 5 + torch.randn(N, H)
        out = norm(x)
        for i, layer in enumerate(layers):
            torch.testing.assert_close(out[:, i], layer(x[:, i]))
    norm.eval()
    x = torch.randn(5, N, H)
    out = norm(x)
    for i, layer in enumerate(layers):
        torch.testing.assert_close(norm.mean[i], layer.running_mean)
        torch.testing.assert_close(norm.variance[i], layer.running_var)
        torch.testing.assert_close(out[:, i], layer.eval()(x[:, i]))


@pytest.mark.parametrize("rows", [0, 1])
def test_batches_too_small_for_a_variance_use_and_keep_the_running_averages(norm: ParallelBatchNorm, rows: int) -> None:
    norm(torch.randn(20, N, H) * 3 + 1)
    mean, variance = norm.mean.clone(), norm.variance.clone()
    x = torch.randn(rows, N, H)
    out = norm(x)
    torch.testing.assert_close(out, (x - mean) / (variance + 1e-5).sqrt() * norm.weight + norm.bias)
    assert torch.equal(norm.mean, mean)
    assert torch.equal(norm.variance, variance)


def test_a_loss_of_two_batches_has_a_gradient(norm: ParallelBatchNorm) -> None:
    """The second changes the running averages that the first was normalised by."""
    one, several = torch.randn(1, N, H, requires_grad=True), torch.randn(8, N, H)
    scale = norm.weight / (norm.variance + 1e-5).sqrt()
    (norm(one).sum() + norm(several).square().sum()).backward()
    torch.testing.assert_close(one.grad, scale.detach().unsqueeze(0))


@pytest.mark.parametrize("training", [True, False])
def test_wherever_the_batch_lies(norm: ParallelBatchNorm, training: bool) -> None:
    norm(torch.randn(20, N, H) * 3 + 1)
    other = copy.deepcopy(norm)
    x = torch.randn(9, N, H)
    last = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    found = []
    for module, read in ((norm.train(training), x.requires_grad_()), (other.train(training), last.requires_grad_())):
        out = module(read)
        assert lies_last(out) == lies_last(read)
        found.append((out, *torch.autograd.grad(out.pow(3).sum(), (read, *module.parameters())), *module.buffers()))
    torch.testing.assert_close(found[0], found[1])
