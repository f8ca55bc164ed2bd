"""Torch as it comes, whatever a caller has set of it for work of another kind."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch


class _Float32:
    """While anyone is within, new tensors are float32, those of all threads; the last that leaves puts back what the
    first has found."""

    def __init__(self) -> None:
        self._lock, self._within, self._found = Lock(), 0, torch.float32

    @contextmanager
    def entered(self) -> Iterator[None]:
        with self._lock:
            default = torch.get_default_dtype()
            self._found = self._found if self._within else default
            self._within += 1
            if default != torch.float32:
                torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            with self._lock:
                self._within -= 1
                if not self._within and self._found != torch.float32:
                    torch.set_default_dtype(self._found)


_float32 = _Float32()


@contextmanager
def defaults(device: torch.device) -> Iterator[None]:
    """While entered gradients are taken, new tensors are float32 and on the CPU, and nothing is autocast on the device.

    Nothing changes where all is so already. The type is that of all threads, until the last has left.
    """
    with ExitStack() as stack:
        stack.enter_context(_float32.entered())
        if torch.get_default_device().type != "cpu":  # else every call would go through it
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_out_of_autocast(device.type))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


@contextmanager
def _out_of_autocast(kind: str) -> Iterator[None]:
    """Out of all that the caller is within, those that are off too: what autocast keeps of weights is forgotten only
    where the outermost is left, and would be that of the first step in all others."""
    depth, enabled, keeps = _depth(), torch.is_autocast_enabled(kind), torch.is_autocast_cache_enabled()
    for _ in range(depth):
        torch.autocast_decrement_nesting()
    torch.set_autocast_enabled(kind, False)
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(keeps)
        torch.set_autocast_enabled(kind, enabled)
        for _ in range(depth):
            torch.autocast_increment_nesting()


def _depth() -> int:
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return depth - 1
