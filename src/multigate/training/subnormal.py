"""Numbers too small to have all their digits, below 1.2e-38, taken for 0 while a model is trained.

A processor may take a hundred times as long over one of them (Intel's do), and trainings make many: gradients through
a softmax that is sure of itself, Adam's first moments of what no batch has read for a thousand steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from multigate.training.openmp import openmp


@contextmanager
def flushed() -> Iterator[None]:
    """While entered, this thread, and those that torch's operations share its work with, take such numbers for 0.

    Nothing changes where that is so already, and where a processor cannot. A third of a millisecond, both ways.
    """
    if not torch.tensor([1e-39]).add(0.0).any() or not _flush(True):
        yield
        return
    try:
        yield
    finally:
        _flush(False)


def _flush(on: bool) -> bool:
    """Whether this processor can. Torch's own call reaches the thread that makes it and no other."""
    can = torch.set_flush_denormal(on)
    library, threads = openmp(), torch.get_num_threads()
    if can and library is not None and threads > 1:
        library.each(lambda: torch.set_flush_denormal(on), threads)
    return can
