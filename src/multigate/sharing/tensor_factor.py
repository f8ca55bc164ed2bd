"""Tensor factorisation: a network per task, whose weights are made of factors that tasks share."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from multigate.nn.factorised import FactorisedLinear, Form
from multigate.sharing.structure import Level, Shared, Structure


class TensorFactor(Structure):
    """y_k = h^k(f(x; theta_k)), every layer's weights of all tasks a factorised tensor (Yang and Hospedales 2017)."""

    structure: Literal["tensor_factor"] = "tensor_factor"
    form: Form = "tucker"
    """``tucker``: factors for inputs, units and tasks around a core; ``tt``: a tensor train, factors for inputs and
    tasks; ``laf``: the last axis flattened, a factor for tasks only."""
    rank: float = Field(default=0.5, gt=0, le=1)
    """Of inputs and units, as a part of the largest there can be."""
    task_rank: float = Field(default=0.5, gt=0, le=1)
    """Directions that tasks mix, as a part of their number; at least two."""

    def idle(self) -> Mapping[str, str]:
        return {"rank": "form 'laf' has factors for tasks alone"} if self.form == "laf" else {}

    def build(self, d_in: int, tasks: tuple[str, ...]) -> "TensorFactorSharing":
        return TensorFactorSharing(self, d_in, tasks)

    def inputs(self, tasks: int) -> int | None:
        return tasks


class TensorFactorSharing(nn.Module):
    """x (B, D) or (B, T, D) -> z (B, T, H), each task's from its own network."""

    def __init__(self, options: TensorFactor, d_in: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.networks = options.parallel_mlp(len(tasks), d_in)
        self.networks.layers = nn.ModuleList(
            FactorisedLinear(
                len(tasks), before, after, form=options.form, rank=options.rank, task_rank=options.task_rank
            )
            for before, after in pairwise((d_in, *options.hidden))
        )
        self.d_out = self.networks.d_out
        own = tuple(tuple(reader == source for source in tasks) for reader in tasks)
        self.wiring = (Level(tasks, tuple(f"network of {task}" for task in tasks), own),)

    def forward(self, x: Tensor) -> Shared:
        return Shared(self.networks(x), gates=(), penalty=x.new_zeros(()))

    def multiply_adds(self) -> int:
        """Of a row that all tasks read alike; after the first layer each has an input of its own."""
        return self._multiply_adds(1)

    def multiply_adds_apart(self) -> int:
        """Of a row of which each task reads an x of its own: factors that a common x goes through once, each goes
        through."""
        return self._multiply_adds(len(self.wiring[0].readers))

    def _multiply_adds(self, inputs: int) -> int:
        tasks = len(self.wiring[0].readers)
        layers = [layer for layer in self.networks.layers if isinstance(layer, FactorisedLinear)]
        return sum(layer.multiply_adds(tasks if i else inputs) for i, layer in enumerate(layers))
