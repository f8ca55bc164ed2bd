"""Dropout on embeddings of few values, such that first layers may still look up what they make of each value.

Where every row of a batch drops what it likes of an embedding, no two rows have the same one. So the tables are there a
few times over, and each row reads one of the copies, in every column another one. An element is zero in one copy at
most, and in each with the rate of dropout: a row then drops it with that probability, whatever other rows do, as if it
had drawn by itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multigate.nn.chance import LEVELS, bytes_of, realised

MOST = 4
"""Copies, at most: of more, what is made of each is no less work than what is made of each row (measured)."""


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
        many = copies_at(rate)
        dropped_in = bytes_of(weight.shape, weight.device).div_(level(rate), rounding_mode="floor")  # or in none
        kept = dropped_in.unsqueeze(1) != torch.arange(many, dtype=torch.uint8, device=weight.device).view(-1, 1)
        factor = kept.to(weight.dtype).mul_(1 / (1 - level(rate) / LEVELS))
        read = bytes_of(shape, weight.device).remainder_(many)
        return cls((weight.unsqueeze(1) * factor).flatten(0, 1), read, many)

    def ids(self, ids: Tensor) -> Tensor:
        """Ids (B, C) of rows of the tables, as ids of their copies."""
        return ids * self.many + self.read


def copies_at(rate: float) -> int:
    """How many copies dropout at a rate needs, an element being zero in one at most; 0 where that is too many."""
    many = LEVELS // level(rate) if rate else 0
    return many if 2 <= many <= MOST else 0


def level(rate: float) -> int:
    """Of a byte's values, how many mean "dropped"; as many as for masks of each row."""
    return LEVELS - round(realised(1 - rate) * LEVELS)
