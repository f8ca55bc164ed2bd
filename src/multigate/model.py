"""A model: embed -> share -> towers -> chain. It knows nothing of devices, seeds or files."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from multigate.batch import BagIds, Layout, TaskColumn, output_columns
from multigate.calibration import Calibration
from multigate.chain import fold
from multigate.errors import ExperimentError
from multigate.nn.chance import chance
from multigate.nn.eager import multiplied_in
from multigate.nn.embed import Embed, Embedding, OwnEmbeds
from multigate.nn.layout import lies_last, neighbours
from multigate.nn.parallel import ParallelMLP
from multigate.options import Options
from multigate.schema import BIAS, Risk
from multigate.sharing import STRUCTURES, GatedStructure, Sharing, Structure
from multigate.sharing.structure import Shared, Widths

MISSING = 1
"""Id of a missing value."""
TOGETHER = 2048
"""Rows that a processor computes in one call at best: what lies between layers then stays in its cache."""


class Tower(Options):
    """The network each task has of its own, after sharing."""

    hidden: Widths = Field(default=(32,))
    dropout: float = Field(default=0.0, ge=0, lt=1)


class Biased(NamedTuple):
    """What is added to one task's outputs, ``bias`` (B, O), and ``unknown`` (B, O), where it is that of missing values.

    Nothing is unknown where all of it is, outside training.
    """

    bias: Tensor
    unknown: Tensor | None


class Represented(NamedTuple):
    """A batch as tasks come to share it.

    ``x`` (B, D), or (B, n, D) with embedding tables of the tasks' own; ``context`` (B, G), what only gates read, if
    anything; ``biases``, one of each task that has some.
    """

    x: Tensor
    context: Tensor | None = None
    biases: tuple[Biased, ...] = ()


class Outputs(NamedTuple):
    """What a model returns. O counts one column per binary or regression task and K per multiclass task, in task order.

    ``logits`` (B, O): of p(task), or the encoded value of a regression. ``conditionals`` (B, O): the towers' own
    outputs, which for a task with a ``given`` parent are logits of p(task | parent). ``gates`` and ``penalty`` as in
    ``Shared``. ``imputed`` (B, I), in training alone: the loss that p(task | parent) is expected to have, for each
    task with a doubly robust risk.
    """

    logits: Tensor
    conditionals: Tensor
    gates: tuple[Tensor, ...]
    penalty: Tensor
    imputed: Tensor | None = None


class Model(nn.Module):
    """numbers (B, N), categories (B, C), bags -> ``Outputs``.

    ``parents``, ``order`` and ``risks`` are those of ``Schema``: the ``given`` parent of each task, tasks with parents
    first, and the counterfactual risks. Raises ``ExperimentError`` where the structure cannot read what it is given.
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
        risks: Sequence[Risk] = (),
    ) -> None:
        super().__init__()
        tower, embedding = tower or Tower(), embedding or Embedding()
        self.tasks = tasks = tuple(task.name for task in layout.tasks)
        uses = {column.use for column in layout.columns}
        check_reads(structure, embedding, [column.feature for column in layout.columns if column.use == "gate"])
        n = structure.inputs(len(tasks)) if embedding.tables == "own" else None
        self.embed = Embed(layout, embedding) if n is None else OwnEmbeds(layout, embedding, n)
        self.context = Embed(layout, embedding, "gate") if "gate" in uses else None
        self.sharing = self.build_sharing(structure)
        self.towers = ParallelMLP(len(tasks), self.sharing.d_out, tower.hidden, dropout=tower.dropout)
        parents = list(parents or [None] * len(tasks))
        self.heads = Heads(layout.tasks, parents, self.towers.d_out)
        spans = zip(layout.tasks, output_columns(layout.tasks), strict=True)
        self.biases = nn.ModuleList(
            Bias(layout, embedding, task.name, span, self.heads.outputs)
            for task, span in spans
            if BIAS + task.name in uses
        )
        robust = [risk.task for risk in risks if risk.kind == "dr"]
        self.imputation = Imputation(layout.tasks, parents, robust, self.sharing.d_out, tower) if robust else None
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

    def build_sharing(self, structure: Structure) -> Sharing:
        """The structure's module for what this model reads, freshly initialised."""
        if isinstance(structure, GatedStructure) and self.context is not None:
            return structure.build(self.embed.d_out, self.tasks, self.context.d_out)
        return structure.build(self.embed.d_out, self.tasks)

    def forward(self, numbers: Tensor, categories: Tensor, bags: Sequence[BagIds] = ()) -> Outputs:
        return self.decide(self.represent(numbers, categories, bags, apart=True))

    def represent(
        self, numbers: Tensor, categories: Tensor, bags: Sequence[BagIds] = (), *, apart: bool = False
    ) -> Represented:
        """The first half: embeddings side by side, which is where tasks' gradients are compared and balanced.

        With ``apart`` x may have no gradient: layers may read what it is made of in its place.
        """
        x = self.embed(numbers, categories, bags, apart=apart)
        context = None if self.context is None else self.context(numbers, categories, bags)
        return Represented(x, context, tuple(bias(numbers, categories, bags) for bias in self.biases))

    def decide(self, seen: Represented, *, calibrated: bool = True) -> Outputs:
        """The second half: share, towers, chain; ``calibrated=False`` leaves logits as training had them."""
        shared = self.sharing(seen.x) if seen.context is None else self.sharing(seen.x, seen.context)  # type: ignore[call-arg]
        self._check_shared(shared, seen.x)
        conditionals = self.heads(self.towers(shared.z))  # (B, O)
        for bias, unknown in seen.biases:
            if unknown is not None:  # the rest learns nothing there: it would take over what the bias explains
                conditionals = torch.where(unknown, conditionals.detach(), conditionals)
            conditionals = conditionals + bias
        if self.calibration is not None and calibrated:
            conditionals = self.calibration(conditionals)
        logits = fold(conditionals, self.parents, self.order)
        penalty = shared.penalty
        if self.training and self.penalises_outputs:
            probabilities = torch.sigmoid(logits.index_select(1, self.first))  # (B, T)
            penalty = penalty + self.sharing.output_penalty(probabilities, self.binary)  # type: ignore[attr-defined]
        imputed = self.imputation(shared.z) if self.training and self.imputation is not None else None
        return Outputs(logits, conditionals, shared.gates, penalty, imputed)

    def _check_shared(self, shared: Any, x: Tensor) -> None:
        """Raise ``ExperimentError`` where a structure of one's own returns anything else than it should."""
        name, rows = type(self.sharing).__name__, x.shape[0]
        if not isinstance(shared, Shared):
            raise ExperimentError(
                f"{name} wants to return Shared(z, gates, penalty), of multigate.sharing, found {type(shared).__name__}"
            )
        # towers would read some of the tasks, or one for all; an exported graph has no count of rows to look at
        tasks = len(self.first)
        wanted = (tasks, self.sharing.d_out)
        if shared.z.shape[1:] != wanted or (self.training and shared.z.shape[0] != rows):
            raise ExperimentError(
                f"{name} wants to return z of ({f'{rows} ' if self.training else ''}rows, {tasks} tasks, d_out "
                f"{self.sharing.d_out}), found a tensor of {tuple(shared.z.shape)}"
            )
        if shared.z.dtype not in (x.dtype, torch.float32) and shared.z.dtype != multiplied_in(x):
            raise ExperimentError(
                f"{name} wants to return z of the type of x, found {shared.z.dtype}; add .to(x.dtype)"
            )
        if shared.penalty is None:
            raise ExperimentError(
                f"{name} wants to return one penalty, a scalar, found None; x.new_zeros(()) adds none"
            )
        if isinstance(shared.penalty, Tensor) and shared.penalty.numel() != 1:
            raise ExperimentError(
                f"{name} wants to return one penalty, a scalar, found a tensor of {tuple(shared.penalty.shape)}; "
                "take the mean or the sum"
            )
        if self.training:  # bundles look up gates by their names; models that only predict may be made of others
            self._check_gates(shared.gates, rows)

    def _check_gates(self, gates: Any, rows: int) -> None:
        """Raise ``ExperimentError`` where gates are neither none nor one for each level of the wiring."""
        wanted = [(rows, len(level.readers), len(level.sources)) for level in self.sharing.wiring]
        several = isinstance(gates, tuple | list)
        found = [tuple(getattr(gate, "shape", ())) for gate in gates] if several else type(gates).__name__
        if found not in ([], wanted):
            raise ExperimentError(
                f"{type(self.sharing).__name__} wants to return gates of (rows, readers, sources), one for each level "
                f"of its wiring, or an empty tuple: {wanted}, found {found}"
            )

    def multiply_adds(self) -> int:
        """Multiply-adds of one row through sharing, towers and heads (embeddings are look-ups, biases constants)."""
        sharing = self.sharing.multiply_adds
        if isinstance(self.embed, OwnEmbeds):  # a few structures do work on a common x that is done once
            sharing = getattr(self.sharing, "multiply_adds_apart", sharing)
        return int(sharing()) + self.towers.multiply_adds() + self.heads.weight.numel()


class Heads(nn.Module):
    """The last linear map of every tower. (B, T, H) -> (B, O).

    The bias starts at the base rate of the training rows, so that training starts from calibrated predictions.
    """

    def __init__(self, tasks: Sequence[TaskColumn], parents: Sequence[int | None], d_in: int) -> None:
        super().__init__()
        self.outputs = sum(task.outputs for task in tasks)
        self.alike = [(len([*some]), outputs) for outputs, some in groupby(task.outputs for task in tasks)]
        """So many neighbouring tasks with so many outputs each, which have one product."""
        self.one_each = self.outputs == len(tasks)
        bound = 1 / math.sqrt(max(d_in, 1))
        self.weight = nn.Parameter(torch.empty(self.outputs, d_in).uniform_(-bound, bound))
        start = [value for i in range(len(tasks)) for value in _base_logits(tasks, parents, i)]
        self.bias = nn.Parameter(torch.tensor(start, dtype=torch.float32))

    def forward(self, towers: Tensor) -> Tensor:
        if self.one_each:
            return _one_each(towers, self.weight) + self.bias
        task, output, made = 0, 0, []
        for n, outputs in self.alike:
            some, of_some = neighbours(towers, task, task + n), slice(output, output + n * outputs)
            weight, bias = self.weight[of_some], self.bias[of_some]
            made.append(_one_each(some, weight) + bias if outputs == 1 else _several_each(some, weight, bias))
            task, output = task + n, of_some.stop
        return made[0] if len(made) == 1 else torch.cat(made, dim=1)


def _one_each(towers: Tensor, weight: Tensor) -> Tensor:
    """(B, n, H), a row of the weight (n, H) each -> (B, n)."""
    if lies_last(towers):
        return (towers.permute(1, 2, 0) * weight.unsqueeze(2)).sum(1).t()
    return (towers * weight).sum(-1)


def _several_each(towers: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, n, H), m / n rows of the weight (m, H) each -> (B, m), in the weight's precision, as one output each is.

    Classes lie last: thousands of them are compared row by row.
    """
    n, width = towers.shape[1:]
    with torch.autocast(towers.device.type, enabled=False):
        rows, each = towers.to(weight.dtype).transpose(0, 1), weight.view(n, -1, width).transpose(1, 2)
        return torch.baddbmm(bias.view(n, 1, -1), rows, each).transpose(0, 1).flatten(1)


class Bias(nn.Module):
    """A shallow tower of its own columns, added to one task's outputs (Zhao et al. 2019, section 4.3). Starts at zero.

    Its columns are known of rows that were logged, and not of rows to predict (the place on a page): in evaluation they
    are missing in every row, and in training in a tenth, so that "missing" is learnt.
    """

    own: Tensor

    HIDDEN = 16
    UNKNOWN = 0.1

    def __init__(self, layout: Layout, embedding: Embedding, task: str, span: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.embed = Embed(layout, embedding.with_(dropout=0, unseen=0), BIAS + task)
        self.hidden = nn.Linear(self.embed.d_out, self.HIDDEN)
        self.out = nn.Linear(self.HIDDEN, span[1] - span[0], bias=False)
        nn.init.zeros_(self.out.weight)
        self.margins = (span[0], outputs - span[1])
        self.register_buffer("own", functional.pad(torch.ones(span[1] - span[0]), self.margins) > 0, persistent=False)

    def forward(self, numbers: Tensor, categories: Tensor, bags: Sequence[BagIds] = ()) -> Biased:
        rows, ends = numbers.shape[0], torch.arange(2, device=numbers.device)
        missing = self._tower(
            numbers.new_full((1, numbers.shape[1]), math.nan),
            categories.new_full((1, categories.shape[1]), MISSING),
            [BagIds(bag.values.new_full((1,), MISSING), ends.to(bag.offsets.dtype)) for bag in bags],
        )
        missing = functional.pad(missing.expand(rows, -1), self.margins)
        if not self.training:
            return Biased(missing, None)
        bias = functional.pad(self._tower(numbers, categories, bags), self.margins)
        unknown = chance((rows, 1), self.UNKNOWN, numbers.device) & self.own
        return Biased(torch.where(unknown, missing, bias), unknown)

    def _tower(self, numbers: Tensor, categories: Tensor, bags: Sequence[BagIds]) -> Tensor:
        hidden: Tensor = self.out(functional.relu(self.hidden(self.embed(numbers, categories, bags))))
        return hidden


class Imputation(nn.Module):
    """Towers that expect the loss of p(task | parent) in any row (Wang et al. 2022, ESCM2-DR). z (B, T, H) -> (B, I).

    ``places`` are those of the I tasks. The bias starts at the entropy of the task's rate under its parent.
    """

    places: Tensor

    def __init__(
        self,
        tasks: Sequence[TaskColumn],
        parents: Sequence[int | None],
        places: Sequence[int],
        d_in: int,
        tower: Tower,
    ) -> None:
        super().__init__()
        self.towers = ParallelMLP(len(places), d_in, tower.hidden, dropout=tower.dropout)
        bound = 1 / math.sqrt(max(self.towers.d_out, 1))
        self.weight = nn.Parameter(torch.empty(len(places), self.towers.d_out).uniform_(-bound, bound))
        base = torch.tensor([_base_logits(tasks, parents, i)[0] for i in places])
        entropy = functional.binary_cross_entropy_with_logits(base, torch.sigmoid(base), reduction="none")
        self.bias = nn.Parameter(entropy.expm1().log())  # softplus gives the entropy back
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        towers = self.towers(z.index_select(1, self.places))
        return functional.softplus((towers * self.weight).sum(-1) + self.bias)


def check_reads(structure: Structure, embedding: Embedding, gates: Sequence[str]) -> None:
    """Raise ``ExperimentError`` where a structure cannot have tables of the tasks' own, or features for gates alone."""
    if embedding.tables == "own" and structure.inputs(2) is None:
        able = ", ".join(one for one, kind in STRUCTURES.items() if kind().inputs(2) is not None)
        raise ExperimentError(
            f"structure {structure.name!r} has one input for all tasks and cannot read embedding.tables 'own'; "
            f"take one of {able}, or leave 'tables' out"
        )
    if gates and not isinstance(structure, GatedStructure):
        able = ", ".join(one for one, kind in STRUCTURES.items() if issubclass(kind, GatedStructure))
        raise ExperimentError(
            f"structure {structure.name!r} has no gates to read feature {gates[0]!r}, whose use is 'gate'; "
            f"take one of {able}, or leave 'use' out"
        )


def _base_logits(tasks: Sequence[TaskColumn], parents: Sequence[int | None], i: int) -> list[float]:
    """Outputs that predict the base rate of task i (given its parent), one per output."""
    task = tasks[i]
    if task.kind == "regression":
        return [task.mean]
    if task.kind == "multiclass":
        return [math.log(max(rate, 1e-6)) for rate in task.class_rates] or [0.0] * task.outputs
    parent = parents[i]
    rate = task.mean / max(tasks[parent].mean, 1e-6) if parent is not None else task.mean
    rate = min(max(rate, 1e-6), 1 - 1e-6)
    return [math.log(rate / (1 - rate))]
