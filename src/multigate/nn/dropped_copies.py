"""Dropout on embeddings of few values, such that first layers may still look up what they make of each value.

Where every row of a batch drops what it likes of an embedding, no two rows have the same one. So the tables are there a
few times over, and each row reads one of the copies, in every column another one. An element is zero in as many of them
as the rate of dropout says, one more or less at most: a row then drops it with that rate, whatever other rows do, as if
it had drawn by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multigate.nn.chance import LEVELS, bytes_of, realised

MOST = 8
"""Copies, at most: of more, what is made of each is no less work than what is made of each row (measured)."""
SHARED = 0.1
"""Of the variance of what is dropped, the part that all rows of a batch may have in common: an element of which no copy
is zero is zero in no row."""


class Copies(NamedTuple):
    """Tables (rows, dim) ``many`` times over, every row beside its copies, and which of these rows of a batch read."""

    weight: Tensor
    """(rows * many, dim)"""
    read: Tensor
    """(B, C) uint8, of each column of ids"""
    many: int

    @classmethod
    def of(cls, weight: Tensor, rate: float, shape: Sequence[int]) -> "Copies":
        """``copies_at(rate)`` of a weight (rows, dim), for ids of a shape (B, C)."""
        many, device = copies_at(rate), weight.device
        # a byte begins where chance has it, and goes once around in as many steps as there are copies
        steps = torch.tensor([at * LEVELS // many for at in range(many)], dtype=torch.uint8, device=device)
        kept = bytes_of(weight.shape, device).unsqueeze(1) + steps.view(-1, 1) >= _level(rate)
        factor = kept.to(weight.dtype).mul_(1 / (1 - _level(rate) / LEVELS))
        read = bytes_of(shape, device).remainder_(many)
        return cls((weight.unsqueeze(1) * factor).flatten(0, 1), read, many)

    def ids(self, ids: Tensor) -> Tensor:
        """Ids (B, C) of rows of the tables, as ids of their copies."""
        return ids * self.many + self.read


def copies_at(rate: float) -> int:
    """How many copies are enough at a rate of dropout; 0 where ``MOST`` are not, or nothing is dropped."""
    dropped = _level(rate) / LEVELS
    for many in range(2, MOST + 1) if rate else ():
        more = dropped * many % 1  # how often an element is zero in one copy more than in the other case
        if more * (1 - more) / many**2 <= SHARED * dropped * (1 - dropped):
            return many
    return 0


def _level(rate: float) -> int:
    """Of a byte's values, how many mean "dropped"; as many as for masks of each row."""
    return LEVELS - round(realised(1 - rate) * LEVELS)
