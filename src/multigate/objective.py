"""From outputs and labels to one loss per task."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from multigate.batch import TaskColumn, output_columns
from multigate.nn.eager import eager
from multigate.schema import Risk


class CrossEntropy(torch.autograd.Function):
    """sum_b counts * cross-entropy of logits (B, T) with labels 0 to 1 -> (T,); its gradient is made at once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward((torch.sigmoid(logits) - labels).mul_(counts))
        losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return losses.mul_(counts).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * gradients[0], None, None


class Objective(nn.Module):
    """Outputs (B, O), labels, known, weights (B, T) -> losses (T,), in float32, or in float64 where outputs are.

    Binary: cross-entropy of the logit; regression: squared error of the encoded target; multiclass: cross-entropy.
    The loss of a task is the sum of known * weight * loss over B times the known rate of the training rows: every label
    weighs the same whatever batch it falls into, a batch without labels gives exactly zero, and so does its gradient.
    ``unit`` is the weight that counts as 1, for all tasks.

    ``risks``, those of ``Schema``, add a counterfactual risk of p(task | parent) over all rows to a task's loss (Wang
    et al. 2022, ESCM2), known * weight and the denominator as before. With o the parent's label, p its
    probability without gradient and not below clip times its mean, and l the cross-entropy of the conditional:
    o l / p ("ips"), or e + o (l - e) / p + o (l - e)^2 / p with the imputed loss e, which alone learns from the last
    term ("dr"). They want ``conditionals`` (B, O) and ``imputed`` (B, I), and are left out without them.
    """

    rates: Tensor
    columns: Tensor

    def __init__(self, tasks: Sequence[TaskColumn], risks: Sequence[Risk] = (), unit: float = 1.0) -> None:
        super().__init__()
        self.spans = output_columns(tasks)
        self.kinds = [task.kind for task in tasks]
        self.binary = all(kind == "binary" for kind in self.kinds)
        self.register_buffer("rates", torch.tensor([task.known_rate * unit for task in tasks], dtype=torch.float32))
        self.risks = [(risk, max(risk.clip * tasks[risk.parent].mean, 1e-6)) for risk in risks]

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        known: Tensor,
        weights: Tensor,
        *,
        conditionals: Tensor | None = None,
        imputed: Tensor | None = None,
    ) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            if self.binary and not self.risks and eager(logits):
                counts = weights * known / (self.rates * max(labels.shape[0], 1))
                summed: Tensor = CrossEntropy.apply(logits, labels, counts)  # type: ignore[no-untyped-call]
                return summed
            if self.binary:
                losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
            else:
                outputs = torch.split(logits, [end - start for start, end in self.spans], dim=1)
                losses = torch.stack([self._one(t, outputs[t], labels[:, t]) for t in range(len(self.kinds))], dim=1)
            # labels are 0 where unknown, so losses are finite there and the product is exactly zero
            counted = (losses * (weights * known)).sum(0)
            if self.risks and conditionals is not None:
                counted = counted + self._risks(logits, conditionals.float(), imputed, labels, known, weights)
            return counted / (self.rates * max(labels.shape[0], 1))

    def _one(self, t: int, outputs: Tensor, label: Tensor) -> Tensor:
        """Losses (B,) of one task, of its outputs (B, o) and label (B,)."""
        if self.kinds[t] == "binary":
            return functional.binary_cross_entropy_with_logits(outputs[:, 0], label, reduction="none")
        if self.kinds[t] == "regression":
            return (outputs[:, 0] - label).square()
        return functional.cross_entropy(outputs, label.long(), reduction="none")

    def _risks(
        self,
        logits: Tensor,
        conditionals: Tensor,
        imputed: Tensor | None,
        labels: Tensor,
        known: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Weighted sums over the rows of the counterfactual risks (T,), zero for a task without one."""
        sums = [logits.new_zeros(()) for _ in self.kinds]
        robust = 0
        for risk, least in self.risks:
            task, (column, _), (parent, _) = risk.task, self.spans[risk.task], self.spans[risk.parent]
            error = functional.binary_cross_entropy_with_logits(
                conditionals[:, column], labels[:, task], reduction="none"
            )
            chosen = labels[:, risk.parent] / torch.sigmoid(logits[:, parent].detach()).clamp_min(least)  # o / p
            if risk.kind == "ips":
                terms = chosen * error
            elif imputed is not None:
                expected = imputed[:, robust].float()
                # l is a given in the last term, or predictions would move to where their loss is easy to tell
                terms = expected + chosen * (error - expected) + chosen * (error.detach() - expected).square()
                robust += 1
            else:
                continue
            counts = weights[:, task] * known[:, task] * known[:, risk.parent]
            sums[task] = risk.weight * (terms * counts).sum()
        return torch.stack(sums)
