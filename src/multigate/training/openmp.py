"""Threads that torch's operations share their work with: those of the OpenMP that came with torch, on Linux."""

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import NamedTuple


class OpenMP(NamedTuple):
    """GNU's OpenMP, as it was loaded by torch."""

    loaded: ctypes.CDLL

    @property
    def cores(self) -> int:
        """That it counts on."""
        return int(self.loaded.omp_get_num_procs())

    def each(self, work: Callable[[], object], threads: int) -> None:
        """Call a function in every thread of the calling thread's team of so many, itself included."""
        self.loaded.GOMP_parallel(_CALLED(lambda _: work() and None), None, threads, 0)

    def team(self, threads: int) -> list[int]:
        """The operating system's numbers of those threads."""
        numbers: list[int] = []
        self.each(lambda: numbers.append(threading.get_native_id()), threads)
        return numbers


_CALLED = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def openmp() -> OpenMP | None:
    """None where torch has another."""
    if sys.platform != "linux":
        return None
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        library.GOMP_parallel.argtypes = (_CALLED, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        library.GOMP_parallel.restype = None
        return OpenMP(library)
    return None
