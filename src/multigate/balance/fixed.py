"""Fixed weights: the ones the tasks declare."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Fixed(nn.Module):
    """weights(losses (T,), gramian (T, T) or None, present (T,) bool) -> (T,): the declared task weights."""

    declared: Tensor

    def __init__(self, task_weights: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("declared", torch.tensor(task_weights, dtype=torch.float32))

    def weights(self, losses: Tensor, gramian: Tensor | None, present: Tensor) -> Tensor:
        return self.declared * present

    def penalty(self, present: Tensor) -> Tensor:
        """What the balance itself adds to the loss."""
        return self.declared.new_zeros(())
