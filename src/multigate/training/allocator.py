"""What the C library and Linux are asked to do with memory; elsewhere nothing is asked, and nothing else changes."""

import ctypes
import sys

from torch import Tensor

TRIM, MAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""
KEPT, MAPPED = 256 << 20, 32 << 20
"""Bytes that may lie free; bytes from which on a block is mapped for itself, the most that glibc allows."""
HUGEPAGE, COLLAPSE = 14, 25
"""MADV_HUGEPAGE and MADV_COLLAPSE of Linux's mman.h."""
PAGE = 4096


def keep_freed_memory() -> None:
    """Have this process keep what it frees, up to ``KEPT`` bytes, where the C library is glibc.

    Left to itself it hands the large blocks of every step back to the system and has them zeroed for the next: 2,200
    page faults a step, an eighth of its time, with 4 MB activations (docs/log.md).
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(MAP, MAPPED)
        libc.mallopt(TRIM, KEPT)


def in_large_pages(tensor: Tensor, *, written: bool) -> Tensor:
    """The same tensor, on the CPU in pages of 2 MB where Linux allows: rows read here and there are found faster.

    Memory that was ``written`` is moved into such pages at once; else it gets them when it is, and only what is.
    """
    first = -(-tensor.data_ptr() // PAGE) * PAGE
    whole = (tensor.data_ptr() + tensor.nbytes - first) // PAGE * PAGE
    if sys.platform == "linux" and tensor.device.type == "cpu" and whole > 0:
        libc = ctypes.CDLL(None)
        for advice in (HUGEPAGE, COLLAPSE) if written else (HUGEPAGE,):
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(whole), advice)
    return tensor
