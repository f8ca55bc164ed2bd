"""Units (tasks, groups, what they share) with m experts each: an input for every expert, a place for every weight."""

from torch import Tensor


def per_expert(x: Tensor, m: int) -> Tensor:
    """The input of each unit once for each of its m experts. (B, n, D) -> (B, n * m, D)."""
    return x.unsqueeze(2).expand(-1, -1, m, -1).flatten(1, 2)


def among_all(weights: Tensor, owners: Tensor) -> Tensor:
    """Weights of m experts each reader has, at their places among those of all n units, and 0 elsewhere.

    (B, readers, m), and whose experts they are, (readers, n) bool -> (B, readers, n * m).
    """
    return (weights.unsqueeze(2) * owners.unsqueeze(-1)).flatten(2)
