"""From outputs and labels to one loss per task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.batch import TaskColumn, output_columns


class Objective(nn.Module):
    """Outputs (B, O), labels, known, weights (B, T) -> losses (T,), in float32.

    Binary: cross-entropy of the logit; regression: squared error of the encoded target; multiclass: cross-entropy.
    The loss of a task is the sum of known * weight * loss over B times the known rate of the training rows: every label
    weighs the same whatever batch it falls into, a batch without labels gives exactly zero, and so does its gradient.
    """

    rates: Tensor
    columns: Tensor

    def __init__(self, tasks: Sequence[TaskColumn]) -> None:
        super().__init__()
        self.spans = output_columns(tasks)
        self.kinds = [task.kind for task in tasks]
        self.binary = all(kind == "binary" for kind in self.kinds)
        self.register_buffer("rates", torch.tensor([task.known_rate for task in tasks], dtype=torch.float32))

    def forward(self, logits: Tensor, labels: Tensor, known: Tensor, weights: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            if self.binary:
                losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            else:
                losses = torch.stack([self._one(t, logits, labels) for t in range(len(self.kinds))], dim=1)
            # labels are 0 where unknown, so losses are finite there and the product is exactly zero
            counted = (losses * (weights * known)).sum(0)
            return counted / (self.rates * max(labels.shape[0], 1))

    def _one(self, t: int, logits: Tensor, labels: Tensor) -> Tensor:
        """Losses (B,) of one task."""
        start, end = self.spans[t]
        label = labels[:, t]
        if self.kinds[t] == "binary":
            return functional.binary_cross_entropy_with_logits(logits[:, start], label, reduction="none")
        if self.kinds[t] == "regression":
            return (logits[:, start] - label).square()
        return functional.cross_entropy(logits[:, start:end], label.long(), reduction="none")
