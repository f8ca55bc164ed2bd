"""Chains of tasks: from p(child | parent) to p(child), exactly, in logits (ESMM; arXiv 1804.07931, Eq. 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def logit_and(a: Tensor, b: Tensor) -> Tensor:
    """logit(p q) from the logits a of p and b of q: -logsumexp(-a, -b, -a - b), elementwise."""
    return -torch.logsumexp(torch.stack((-a, -b, -a - b)), dim=0)


def fold(conditionals: Tensor, parents: Sequence[int | None], order: Sequence[int]) -> Tensor:
    """Logits of p(task) from logits of p(task | parent).

    conditionals (B, O) with one column per entry of ``parents``; ``order`` lists parents before children. Chains of
    any length fold. Computed in float32 at least, whatever comes in: bfloat16 loses the tail.
    """
    if all(parent is None for parent in parents):
        return conditionals
    with torch.autocast(conditionals.device.type, enabled=False):
        columns = list(conditionals.to(torch.promote_types(conditionals.dtype, torch.float32)).unbind(1))
        for i in order:
            parent = parents[i]
            if parent is not None:
                columns[i] = logit_and(columns[parent], columns[i])
        return torch.stack(columns, dim=1)
