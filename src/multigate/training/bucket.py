"""Neighbouring runs of a stack that share a learning rate, and their optimiser."""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from multigate.experiment import Optimizer
from multigate.training.optimizers import Rate, build_optimizer, rate_at


class Bucket:
    """The runs start to stop of the stack.

    Fused Adam takes one rate for all it updates; what it updates here are slices of the stacked weights.
    """

    def __init__(
        self, plain: nn.Module, leaves: Mapping[str, Tensor], start: int, stop: int, options: Optimizer, rate: float
    ) -> None:
        self.start, self.stop = start, stop
        self.options = options.with_(learning_rate=rate)
        slices = copy.deepcopy(plain)  # for the names alone, by which weights decay or not
        for name, leaf in leaves.items():
            owner, _, own = name.rpartition(".")
            setattr(slices.get_submodule(owner), own, nn.Parameter(leaf.detach()[start:stop]))
        named = dict(slices.named_parameters())
        self.weights = {name: named.pop(name) for name in leaves}
        self.optimizer = build_optimizer(slices, nn.Module(), self.options, but=named.values())
        self.rate = Rate(self.optimizer, next(iter(leaves.values())).device)

    def set_rate(self, step: int, steps: int) -> None:
        self.rate.set(rate_at(self.options, step, steps))

    def update(self, leaves: Mapping[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            gradient = leaves[name].grad
            weight.grad = None if gradient is None else gradient[self.start : self.stop]
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        return {
            f"{name}/{key}": value
            for name, weight in self.weights.items()
            for key, value in self.optimizer.state[weight].items()
        }

    def put(self, state: Mapping[str, Tensor]) -> None:
        for key, value in state.items():
            name, _, kind = key.rpartition("/")
            own = value[self.start : self.stop] if value.dim() else value
            self.optimizer.state[self.weights[name]][kind] = own.clone()
