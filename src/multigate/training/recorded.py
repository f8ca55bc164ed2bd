"""Steps on a GPU, recorded once and sent as one from then on: of a small step most of the time is that of its launches.

A step of a hundred kernels takes the processor milliseconds to launch and the GPU a tenth of that to do. CUDA graphs
keep the launches, with the places in memory that they read and write, and start them all in a few microseconds.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from multigate.nn.eager import watched

OFF = "MULTIGATE_GRAPHS"
AFTER = 3
"""Batches of one shape that are computed as they come: libraries choose and allocate what they need on the way."""
EXTRA = "_extra_state"
"""How torch names what a module keeps outside its tensors: Python's, which a recording knows as it was."""
OWN = ("multigate", "torch")


def may_be_recorded(*modules: nn.Module) -> bool:
    """Whether what these modules do is the same launches each time: code that is known, nobody who looks on, no state
    but tensors, and no module that says it is not ``recordable``. ``MULTIGATE_GRAPHS=off`` says no to all."""
    parts = [part for module in modules for part in module.modules()]
    return (
        os.environ.get(OFF) != "off"
        and all(type(part).__module__.partition(".")[0] in OWN for part in parts)
        and not watched(*parts)
        and not any(not getattr(part, "recordable", True) for part in parts)
        and not keeps_more_than_tensors(*modules)
    )


def keeps_more_than_tensors(*modules: nn.Module) -> bool:
    """Whether a module has state that no tensor holds."""
    return any(name.endswith(EXTRA) for module in modules for name in module.state_dict())


class Recordings:
    """Those of one function on a GPU, tensors in and out: one for each shape of batch that comes more than thrice.

    All that the function reads and writes besides must stay where it is in memory: weights, moments and buffers change
    in place. Random draws go on from call to call as if nothing had been recorded. A function that waits for the GPU
    cannot be recorded, and is called as it is.
    """

    def __init__(self) -> None:
        self.failed = ""
        """Why it cannot be recorded, if so."""
        self._seen: dict[Any, int] = {}
        self._recordings: dict[Any, _Recording] = {}

    @property
    def done(self) -> bool:
        """Whether something is recorded."""
        return bool(self._recordings)

    def call(self, function: Callable[..., Sequence[Tensor]], *batch: Any) -> Sequence[Tensor]:
        """``function(*batch)``. The function is the same for all calls, and not kept: it may hold what holds these."""
        leaves = list(_leaves(batch))
        shapes = tuple(leaf.shape for leaf in leaves)
        recording = self._recordings.get(shapes)
        if recording is None:
            self._seen[shapes] = self._seen.get(shapes, 0) + 1
            if self._seen[shapes] <= AFTER or self.failed:
                return function(*batch)
            try:
                recording = self._recordings[shapes] = _Recording(function, batch)
            except RuntimeError as error:
                self.failed = str(error)  # not itself: it holds all that the call held
            if recording is None:
                return function(*batch)
        return recording(leaves)


class _Recording:
    """The launches of one call, and the places of its batch and results."""

    def __init__(self, function: Callable[..., Sequence[Tensor]], batch: tuple[Any, ...]) -> None:
        self.graph = torch.cuda.CUDAGraph()
        held = tree_map(torch.clone, batch)
        self.held = list(_leaves(held))
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        drawn = generator.clone_state()
        try:
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # threads that read rows may go on
                self.results = function(*held)
        except RuntimeError:
            generator.graphsafe_set_state(drawn)  # the other waits for the end of the recording, which does not come
            raise

    def __call__(self, batch: Sequence[Tensor]) -> list[Tensor]:
        for place, tensor in zip(self.held, batch, strict=True):
            place.copy_(tensor)
        self.graph.replay()
        return [result.clone() for result in self.results]  # the next call writes over them


def _leaves(batch: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples (torch's own way takes as long as the launch of a step)."""
    for part in batch:
        if isinstance(part, Tensor):
            yield part
        else:
            yield from _leaves(part)
