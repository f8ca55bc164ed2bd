"""Backward passes that ask for the gradients of inputs alone: what is written out here leaves those of weights out."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local


class _Asked(local):
    inputs_alone = False


_asked = _Asked()


@contextmanager
def of_inputs_alone() -> Iterator[None]:
    """While entered, nobody reads the gradients of weights that backward passes of this thread come by."""
    before, _asked.inputs_alone = _asked.inputs_alone, True
    try:
        yield
    finally:
        _asked.inputs_alone = before


def inputs_alone() -> bool:
    """Whether that is so here. On a GPU passes have threads of their own, in which it never is."""
    return _asked.inputs_alone
