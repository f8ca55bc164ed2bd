"""Torch as a training wants it, whatever its caller has set for work of another kind, and whoever else trains."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from multigate.nn.defaults import defaults
from multigate.training.randomness import devices
from multigate.training.turns import turn


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """While entered torch is as it comes, for this device.

    It begins when no other thread trains, and what it draws at random is not drawn from the caller's numbers. The type
    of new tensors is that of all threads, as a training's random numbers are.
    """
    with turn, defaults(device), torch.random.fork_rng(devices=devices(device)):
        yield
