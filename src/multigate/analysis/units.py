"""Dead units: those of an expert that give exactly 0 on every row."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multigate.nn.parallel import ParallelMLP
from multigate.options import Options


class Units(Options):
    """The units of one ``ParallelMLP`` of the sharing module."""

    module: str
    """Its name in there, such as "experts"."""
    dead: tuple[int, ...]
    """Of each copy: units of all its hidden layers that were 0 on every row."""
    units: int
    """Of each copy: units of all its hidden layers."""


class Watch:
    """Which units of every ``ParallelMLP`` gave anything but 0 so far; filled while ``watching`` lasts."""

    def __init__(self, sharing: nn.Module) -> None:
        self.mlps = {name: one for name, one in sharing.named_modules() if isinstance(one, ParallelMLP) and one.layers}
        self._alive: dict[tuple[str, int], Tensor] = {}

    def see(self, name: str, layer: int, output: Tensor) -> None:
        """Output (B, n, H) of a layer after its activation."""
        alive = (output != 0).any(dim=0)
        before = self._alive.get((name, layer))
        self._alive[name, layer] = alive if before is None else alive | before

    def units(self) -> tuple[Units, ...]:
        """Of each module that was run."""
        found = []
        for name, mlp in self.mlps.items():
            layers = [self._alive[name, i] for i in range(len(mlp.layers)) if (name, i) in self._alive]
            if layers:
                alive = torch.cat(layers, dim=1)  # (n, units)
                dead = (~alive).sum(dim=1)
                found.append(Units(module=name, dead=tuple(dead.tolist()), units=alive.shape[1]))
        return tuple(found)


@contextmanager
def watching(sharing: nn.Module) -> Iterator[Watch]:
    """Watch the units of a sharing module while rows run through it (in evaluation mode: dropout makes zeros too)."""
    watch = Watch(sharing)
    hooks = []
    for name, mlp in watch.mlps.items():
        # what enters a layer is what the layer before gave, normalised and activated; the last one's is the output
        for i, layer in enumerate(mlp.layers[1:]):
            hooks.append(layer.register_forward_pre_hook(partial(_see_input, watch, name, i)))
        hooks.append(mlp.register_forward_hook(partial(_see_output, watch, name, len(mlp.layers) - 1)))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def _see_input(watch: Watch, name: str, layer: int, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    watch.see(name, layer, inputs[0])


def _see_output(
    watch: Watch, name: str, layer: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor
) -> None:
    watch.see(name, layer, output)
