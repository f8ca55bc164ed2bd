"""Numbers too small to have all their digits, below 1.2e-38, taken for 0 while a model is trained.

A processor may take a hundred times as long over one of them (Intel's do), and trainings make many: gradients through
a softmax that is sure of itself, Adam's first moments of what no batch has read for a thousand steps.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

EACH = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


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
    team, threads = _team(), torch.get_num_threads()
    if can and team is not None and threads > 1:
        team(EACH(lambda _: torch.set_flush_denormal(on) and None), None, threads, 0)
    return can


@cache
def _team() -> Callable[..., None] | None:
    """What calls a function in each thread of a team of OpenMP, of the library that came with torch (on Linux)."""
    if sys.platform != "linux":
        return None
    with suppress(OSError, AttributeError):
        call = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
        call.argtypes, call.restype = (EACH, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
        return call
    return None
