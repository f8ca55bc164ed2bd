"""A model: embed -> share -> towers -> chain. It knows nothing of devices, seeds or files."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from multigate.batch import BagIds, Layout, TaskColumn, output_columns
from multigate.calibration import Calibration
from multigate.chain import fold
from multigate.nn.embed import Embed, Embedding
from multigate.nn.parallel import ParallelMLP
from multigate.options import Options
from multigate.sharing import Sharing, Structure


class Tower(Options):
    """The network each task has of its own, after sharing."""

    hidden: tuple[int, ...] = Field(default=(32,))
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Represented(NamedTuple):
    """A batch as tasks come to share it: ``x`` (B, D)."""

    x: Tensor


class Outputs(NamedTuple):
    """What a model returns. O counts one column per binary or regression task and K per multiclass task, in task order.

    ``logits`` (B, O): of p(task), or the encoded value of a regression. ``conditionals`` (B, O): the towers' own
    outputs, which for a task with a ``given`` parent are logits of p(task | parent). ``gates`` and ``penalty`` as in
    ``Shared``.
    """

    logits: Tensor
    conditionals: Tensor
    gates: tuple[Tensor, ...]
    penalty: Tensor


class Model(nn.Module):
    """numbers (B, N), categories (B, C), bags -> ``Outputs``.

    ``parents`` and ``order`` are those of ``Schema``: the ``given`` parent of each task, and tasks with parents first.
    """

    first: Tensor
    binary: Tensor

    def __init__(
        self,
        layout: Layout,
        structure: Structure,
        *,
        embedding: Embedding | None = None,
        tower: Tower | None = None,
        parents: Sequence[int | None] | None = None,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        tower = tower or Tower()
        tasks = tuple(task.name for task in layout.tasks)
        self.embed = Embed(layout, embedding or Embedding())
        self.sharing: Sharing = structure.build(self.embed.d_out, tasks)
        self.towers = ParallelMLP(len(tasks), self.sharing.d_out, tower.hidden, dropout=tower.dropout)
        parents = list(parents or [None] * len(tasks))
        self.heads = Heads(layout.tasks, parents, self.towers.d_out)
        self.calibration: Calibration | None = None
        """Corrects the towers' logits once training is over."""
        self.penalises_outputs = hasattr(self.sharing, "output_penalty")
        first = [column for column, _ in output_columns(layout.tasks)]
        self.register_buffer("first", torch.tensor(first), persistent=False)
        binary = [task.kind == "binary" for task in layout.tasks]
        self.register_buffer("binary", torch.tensor(binary), persistent=False)
        # chains are folded over output columns; a task with a parent is binary and so has one column
        self.parents: list[int | None] = [None] * self.heads.outputs
        for i, parent in enumerate(parents):
            if parent is not None:
                self.parents[first[i]] = first[parent]
        self.order = [first[i] for i in (order if order is not None else range(len(tasks)))]

    def forward(self, numbers: Tensor, categories: Tensor, bags: Sequence[BagIds] = ()) -> Outputs:
        return self.decide(self.represent(numbers, categories, bags))

    def represent(self, numbers: Tensor, categories: Tensor, bags: Sequence[BagIds] = ()) -> Represented:
        """The first half: embeddings side by side, which is where tasks' gradients are compared and balanced."""
        return Represented(self.embed(numbers, categories, bags))

    def decide(self, seen: Represented, *, calibrated: bool = True) -> Outputs:
        """The second half: share, towers, chain; ``calibrated=False`` leaves logits as training had them."""
        shared = self.sharing(seen.x)
        conditionals = self.heads(self.towers(shared.z))  # (B, O)
        if self.calibration is not None and calibrated:
            conditionals = self.calibration(conditionals)
        logits = fold(conditionals, self.parents, self.order)
        penalty = shared.penalty
        if self.training and self.penalises_outputs:
            probabilities = torch.sigmoid(logits.index_select(1, self.first))  # (B, T)
            penalty = penalty + self.sharing.output_penalty(probabilities, self.binary)  # type: ignore[attr-defined]
        return Outputs(logits, conditionals, shared.gates, penalty)

    def multiply_adds(self) -> int:
        """Multiply-adds of one row through sharing, towers and heads (embeddings are look-ups)."""
        return self.sharing.multiply_adds() + self.towers.multiply_adds() + self.heads.weight.numel()


class Heads(nn.Module):
    """The last linear map of every tower. (B, T, H) -> (B, O).

    The bias starts at the base rate of the training rows, so that training starts from calibrated predictions.
    """

    owner: Tensor

    def __init__(self, tasks: Sequence[TaskColumn], parents: Sequence[int | None], d_in: int) -> None:
        super().__init__()
        owner = [i for i, task in enumerate(tasks) for _ in range(task.outputs)]
        self.outputs = len(owner)
        bound = 1 / math.sqrt(max(d_in, 1))
        self.weight = nn.Parameter(torch.empty(self.outputs, d_in).uniform_(-bound, bound))
        start = [value for i in range(len(tasks)) for value in _base_logits(tasks, parents, i)]
        self.bias = nn.Parameter(torch.tensor(start, dtype=torch.float32))
        self.one_each = self.outputs == len(tasks)
        self.register_buffer("owner", torch.tensor(owner), persistent=False)

    def forward(self, towers: Tensor) -> Tensor:
        if not self.one_each:
            towers = towers.index_select(1, self.owner)
        return (towers * self.weight).sum(-1) + self.bias


def _base_logits(tasks: Sequence[TaskColumn], parents: Sequence[int | None], i: int) -> list[float]:
    """Outputs that predict the base rate of task i (given its parent), one per output."""
    task = tasks[i]
    if task.kind == "regression":
        return [0.0]
    if task.kind == "multiclass":
        return [math.log(max(rate, 1e-6)) for rate in task.class_rates] or [0.0] * task.outputs
    parent = parents[i]
    rate = task.mean / max(tasks[parent].mean, 1e-6) if parent is not None else task.mean
    rate = min(max(rate, 1e-6), 1 - 1e-6)
    return [math.log(rate / (1 - rate))]
