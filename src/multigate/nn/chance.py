"""Random masks, cheaply: one random byte an element, on a processor eight from each draw of the generator."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from multigate.nn.eager import eager
from multigate.nn.kernels import kernels
from multigate.nn.layout import lies_last

LEVELS = 256
MANY = 1 << 15
"""Numbers from which on the generator, which makes them one after the other, draws but the first of them (measured)."""
GOLDEN = -0x61C8864680B583EB
"""2^64 over the golden ratio, as an int64."""


def chance(shape: Sequence[int], rate: float, device: torch.device) -> Tensor:
    """A bool tensor whose elements are true independently with probability ``realised(rate)``."""
    level = level_of(rate)
    if level >= LEVELS:  # does not fit into the byte it is compared with
        return torch.ones(*shape, dtype=torch.bool, device=device)
    if device.type != "cpu" or _stacked_by_an_old_torch():  # draws cost nothing on a GPU
        return torch.randint(0, LEVELS, tuple(shape), dtype=torch.uint8, device=device) < level
    return bytes_of(shape, device) < level


def bytes_of(shape: Sequence[int], device: torch.device) -> Tensor:
    """Random bytes, each of the ``LEVELS`` alike."""
    count = math.prod(shape)
    words = (count + 7) // 8
    draws = _scattered(_draws(1, device), words) if words >= MANY and device.type == "cpu" else _draws(words, device)
    return draws.view(torch.uint8)[:count].view(*shape)


def _draws(many: int, device: torch.device) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (many,), dtype=torch.int64, device=device)


def _scattered(seed: Tensor, many: int) -> Tensor:
    """So many int64 that follow from one (1,), each made by itself: SplitMix64 (Steele, Lea and Flood 2014)."""
    found = kernels() if torch._C._functorch.peek_interpreter_stack() is None else None
    if found is not None:
        return found.scatter(seed, many)
    z = torch.arange(1, many + 1, device=seed.device) * GOLDEN + seed
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        z = (z ^ _shifted(z, shift)) * factor
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, by: int) -> Tensor:
    """z to the right, and zeros from the left, where ``>>`` has its sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _stacked_by_an_old_torch() -> bool:
    """Whether ``vmap`` is at work, of a torch (2.11 is one) that cannot view bytes there."""
    return torch._C._functorch.peek_interpreter_stack() is not None and not _views_bytes()


@cache
def _views_bytes() -> bool:
    try:
        torch.vmap(lambda x: x.view(torch.uint8))(torch.zeros(1, 1, dtype=torch.int64))
    except RuntimeError:
        return False
    return True


def level_of(rate: float) -> int:
    """How many of the values of a byte are what happens with ``realised(rate)``: those below it."""
    return round(realised(rate) * LEVELS)


def realised(rate: float) -> float:
    """The nearest probability a byte can give, a multiple of 1/256; only 0 is never and only 1 is always."""
    return round(rate * LEVELS) / LEVELS if rate in (0, 1) else min(max(round(rate * LEVELS), 1), LEVELS - 1) / LEVELS


def dropout(x: Tensor, rate: float, training: bool, spared: Tensor | None = None) -> Tensor:
    """Set elements to zero with probability ``rate`` and scale the rest to keep the mean (Srivastava et al. 2014).

    ``spared`` (k,), bool: which of the first k columns stay as they are.
    """
    if not (training and rate):
        return x
    if x.dim() == 3 and eager(x) and lies_last(x):  # masks lie as what they mask
        return dropout(x.permute(1, 2, 0), rate, training).permute(2, 0, 1)
    factor = chance(x.shape, 1 - rate, x.device).to(x.dtype).mul_(1 / realised(1 - rate))
    if spared is not None:
        factor[..., : len(spared)].masked_fill_(spared, 1)
    return x * factor
