"""Adam for the few numbers a balance learns by itself."""

import torch
from torch import Tensor, nn

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8


class Adam(nn.Module):
    """Adam (Kingma and Ba 2015, Algorithm 1) of one vector (T,), its state in ``state_dict``."""

    mean: Tensor
    square: Tensor
    steps: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        for name in ("mean", "square", "steps"):
            self.register_buffer(name, torch.zeros(size))

    def step(self, values: Tensor, gradient: Tensor, rate: float, active: Tensor) -> None:
        """Move the active ones of ``values`` (T,) in place; for the others no time passes."""
        self.steps += active
        self.mean.copy_(torch.where(active, torch.lerp(gradient, self.mean, BETA1), self.mean))
        self.square.copy_(torch.where(active, torch.lerp(gradient.square(), self.square, BETA2), self.square))
        mean, square = self.mean / (1 - BETA1**self.steps), self.square / (1 - BETA2**self.steps)
        values.copy_(torch.where(active, values - rate * mean / (square.sqrt() + EPSILON), values))
