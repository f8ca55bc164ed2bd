"""Normalisers of n copies side by side, each with its own scale and shift."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.nn.eager import eager
from multigate.nn.layout import batch_last, lies_last

MOMENTUM = 0.1
"""What running averages take of a batch (torch's)."""


class ParallelLayerNorm(nn.Module):
    """Layer normalisation of n copies, each with its own scale and shift. (B, n, H) -> (B, n, H)."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n, width))
        self.bias = nn.Parameter(torch.zeros(n, width))

    def forward(self, x: Tensor) -> Tensor:
        normal = functional.layer_norm(x, x.shape[-1:])
        if eager(x) and lies_last(x):  # and so does what is made of it
            normal = batch_last(normal).permute(2, 0, 1)
        return normal * self.weight + self.bias

    def one(self, i: int, x: Tensor) -> Tensor:
        """Copy i alone. (B, H) -> (B, H)."""
        return functional.layer_norm(x, x.shape[-1:]) * self.weight[i] + self.bias[i]


class ParallelBatchNorm(nn.Module):
    """Batch normalisation of n copies (Ioffe and Szegedy 2015, Algorithms 1 and 2). (B, n, H) -> (B, n, H).

    In training by mean and variance of the batch, whose running averages (torch's momentum, .1) serve in evaluation,
    and in training on a batch of one row or none, which has no variance.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n, width))
        self.bias = nn.Parameter(torch.zeros(n, width))
        self.register_buffer("mean", torch.zeros(n, width))
        self.register_buffer("variance", torch.ones(n, width))

    def forward(self, x: Tensor) -> Tensor:
        by_batch = self.by_batch(x)
        # copies: a backward pass needs what is normalised by here, and the next batch may change the buffers before it
        mean, variance = self.mean.flatten().clone(), self.variance.flatten().clone()
        scale, shift = self.weight.flatten(), self.bias.flatten()
        # where the batch lies last it is the length of the only row
        flat = x.permute(1, 2, 0).flatten(0, 1).unsqueeze(0) if lies_last(x) else x.flatten(1)
        normal = functional.batch_norm(flat, mean, variance, scale, shift, training=by_batch)
        if by_batch:
            with torch.no_grad():
                self.mean.copy_(mean.view_as(self.mean))
                self.variance.copy_(variance.view_as(self.variance))
        if normal.dim() == 3:
            return normal.view(*x.shape[1:], -1).permute(2, 0, 1)
        return normal.view(x.shape)

    def by_batch(self, x: Tensor) -> bool:
        """Whether x (B, n, H) is normalised by moments of its own."""
        return self.training and x.shape[0] > 1

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor, rows: int) -> None:
        """Move the running averages towards mean and variance, (n, H), of a batch of so many rows."""
        self.mean.lerp_(mean.to(self.mean.dtype), MOMENTUM)
        self.variance.lerp_((variance * (rows / (rows - 1))).to(self.variance.dtype), MOMENTUM)

    def one(self, i: int, x: Tensor) -> Tensor:
        """Copy i alone, in evaluation. (B, H) -> (B, H)."""
        return functional.batch_norm(x, self.mean[i], self.variance[i], self.weight[i], self.bias[i])
