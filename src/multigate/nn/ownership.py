"""Units (tasks, groups, what they share) with m experts each: an input for every expert, a place for every weight."""

from collections.abc import Sequence

import torch
from torch import Tensor


def dealt_inputs(x: Tensor, experts: Sequence[int]) -> Tensor:
    """What the experts of all units read, so many of each unit: x (B, units, D) itself where all have as many, for
    copies of layers are then dealt to inputs; else an input for every expert, (B, E, D)."""
    if len(set(experts)) == 1:
        return x
    return torch.cat([per_expert(x[:, at : at + 1], many) for at, many in enumerate(experts)], dim=1)


def per_expert(x: Tensor, m: int) -> Tensor:
    """The input of each unit once for each of its m experts. (B, n, D) -> (B, n * m, D)."""
    return x.unsqueeze(2).expand(-1, -1, m, -1).flatten(1, 2)


def among_all(weights: Tensor, owners: Tensor) -> Tensor:
    """Weights of m experts each reader has, at their places among those of all n units, and 0 elsewhere.

    (B, readers, m), and whose experts they are, (readers, n) bool -> (B, readers, n * m).
    """
    return (weights.unsqueeze(2) * owners.unsqueeze(-1)).flatten(2)
