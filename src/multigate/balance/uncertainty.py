"""Uncertainty weighting: each task's weight is learnt as the precision of its labels."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Uncertainty(nn.Module):
    """sum_t w_t (1/2 exp(-s_t) L_t + 1/2 s_t), s learnt from 0 (Kendall, Gal, Cipolla 2018), w the declared weights.

    weights(losses (T,), gramian (T, T) or None, present (T,) bool) -> (T,). A task with no known label in the batch
    moves neither its weight nor the model.
    """

    declared: Tensor

    def __init__(self, task_weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("declared", torch.tensor(task_weights, dtype=torch.float32))
        self.log_variance = nn.Parameter(torch.zeros(len(task_weights)))

    def weights(self, losses: Tensor, gramian: Tensor | None, present: Tensor) -> Tensor:
        return 0.5 * torch.exp(-self.log_variance) * self.declared * present

    def penalty(self, present: Tensor) -> Tensor:
        """What the balance itself adds to the loss."""
        return (0.5 * self.log_variance * self.declared * present).sum()
