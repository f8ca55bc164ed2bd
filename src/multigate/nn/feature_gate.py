"""Feature gates: what each of n readers makes of the features before it reads them."""

import torch
from torch import Tensor, nn

from multigate.nn.parallel import ParallelLinear


class FeatureGate(nn.Module):
    """x * 2 sigmoid(x A_i B_i), with A_i, B_i of a low rank, for each of n readers (Wang et al. 2024).

    x (B, D), read by all, or (B, n, D), one each -> (B, n, D).
    """

    def __init__(self, n: int, d_in: int, rank: int) -> None:
        super().__init__()
        self.down = ParallelLinear(n, d_in, rank, bias=False)
        self.up = ParallelLinear(n, rank, d_in, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = 2 * torch.sigmoid(self.up(self.down(x)))  # (B, n, D)
        return gate * (x if x.dim() == 3 else x.unsqueeze(1))

    def multiply_adds(self) -> int:
        """Multiply-adds of one row through all gates."""
        return self.down.multiply_adds() + self.up.multiply_adds()
