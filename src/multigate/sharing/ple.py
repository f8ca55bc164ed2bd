"""Progressive layered extraction: experts of each task and shared ones, level by level (PLE); or one level (CGC)."""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from multigate.errors import ExperimentError
from multigate.nn.gate import beside
from multigate.nn.layout import neighbours, side_by_side
from multigate.nn.mixture import mix
from multigate.nn.ownership import among_all, dealt_inputs
from multigate.nn.together import together
from multigate.sharing.levels import dealt, experts_of, experts_read, own_only, shared_experts, through
from multigate.sharing.structure import GatedStructure, Level, Shared, all_read_all

SHARED = "shared module"
"""What reads for all tasks, at every level but the last."""


def not_shared(tasks: tuple[str, ...]) -> None:
    """Raise ``ExperimentError`` where a task has the name of what reads for all of them."""
    if SHARED in tasks:
        raise ExperimentError(f"task {SHARED!r} has the name of what reads for all tasks; give the task another name")


class TaskExperts(GatedStructure):
    """Options of a structure whose tasks have experts of their own and share others."""

    experts: int = Field(default=2, ge=1)
    """Of each task."""
    shared: int = Field(default=2, ge=1)
    """Experts that all tasks read."""
    reads_others: Literal["never", "detached"] = "never"
    """Whether a task also reads the experts of other tasks, which then learn nothing from it; its gate reads the mean
    of its input and the shared one (STEM-Net, Su et al. 2024, for ``tables: own``)."""

    def inputs(self, tasks: int) -> int | None:
        return tasks + 1


class CGC(TaskExperts):
    """g^k(x) = softmax(W_k x) S^k(x), S^k the experts of task k and the shared ones (Tang et al. 2020, Eq. 2 to 5)."""

    structure: Literal["cgc"] = "cgc"

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> "ExtractionSharing":
        return ExtractionSharing(self, d_in, tasks, d_context, levels=1)


class PLE(TaskExperts):
    """g^{k,j} = softmax(W_{k,j} g^{k,j-1}) S^{k,j}: levels of CGC that read what the level before made for each task,
    and for a shared module that reads all experts (Tang et al. 2020, Eq. 6 and 7)."""

    structure: Literal["ple"] = "ple"
    levels: int = Field(default=2, ge=1)
    """The layers ``hidden`` of an expert are dealt out to so many levels in order."""

    @model_validator(mode="after")
    def _layers_for_each_level(self) -> Self:
        dealt(self.hidden, self.levels)
        return self

    def check(self, tasks: tuple[str, ...]) -> None:
        if self.levels > 1:
            not_shared(tasks)

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> "ExtractionSharing":
        return ExtractionSharing(self, d_in, tasks, d_context, levels=self.levels)


class ExtractionSharing(nn.Module):
    """x (B, D), or (B, T + 1, D) of tasks and what they share -> z (B, T, H), gates (B, readers, E) of each level."""

    def __init__(self, options: TaskExperts, d_in: int, tasks: tuple[str, ...], d_context: int, levels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList()
        for level, hidden in enumerate(dealt(options.hidden, levels)):
            last = level == levels - 1
            self.levels.append(Extraction(options, hidden, d_in, d_context, len(tasks), last=last))
            d_in = hidden[-1]
        self.d_out = d_in
        sources = (*experts_of(tasks, options.experts), *shared_experts(options.shared))
        mask = all_read_all(tasks, sources)
        if options.reads_others == "never":
            own = own_only(range(len(tasks)), len(tasks), options.experts)
            mask = tuple((*row, *(True for _ in range(options.shared))) for row in own)
        between = Level((*tasks, SHARED), sources, (*mask, tuple(True for _ in sources)))
        self.wiring = (*(between for _ in range(levels - 1)), Level(tasks, sources, mask))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Shared:
        return through(self.levels, x, context)

    def multiply_adds(self) -> int:
        return sum(level.multiply_adds() for level in self.levels if isinstance(level, Extraction))


class Extraction(nn.Module):
    """A level: x (B, D) or (B, T + 1, D) -> (B, T + 1, H) for tasks and shared module, the last one (B, T, H)."""

    owners: Tensor
    trained: Tensor | None

    def __init__(
        self, options: TaskExperts, hidden: tuple[int, ...], d_in: int, d_context: int, tasks: int, *, last: bool
    ) -> None:
        super().__init__()
        self.own, self.shared = options.experts, options.shared
        n = tasks * self.own + self.shared
        detached = options.reads_others == "detached"
        self.experts = options.parallel_mlp(n, d_in, hidden)
        read = None if detached else experts_read(([task] for task in range(tasks)), tasks, self.own, self.shared)
        self.gate = options.gate(tasks, n if detached else self.own + self.shared, d_in + d_context, experts=read)
        self.shared_gate = None if last else options.gate(1, n, d_in + d_context)
        self.register_buffer("owners", torch.tensor(own_only(range(tasks), tasks, 1)), persistent=False)
        trained = torch.ones(tasks if last else tasks + 1, n, dtype=torch.bool)
        trained[:tasks, : tasks * self.own] = self.owners.repeat_interleave(self.own, dim=1)
        self.register_buffer("trained", trained if detached else None, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None) -> Shared:
        gates = [self.gate] if self.shared_gate is None else [self.gate, self.shared_gate]
        if x.dim() == 2:
            experts, (gate, *of_all) = together(self.experts, gates, x, context)
        else:
            many, read = [*[self.own] * len(self.owners), self.shared], beside(x, context)
            tasks = len(self.owners)
            own, shared = neighbours(read, 0, tasks), neighbours(read, tasks, tasks + 1)
            experts = self.experts(dealt_inputs(x, many))
            gate = self.gate(own if self.trained is None else (own + shared) / 2)
            of_all = [one(shared) for one in gates[1:]]
        if self.trained is None:  # weights (B, T, m + s)
            mine, common = gate.weights[..., : self.own], gate.weights[..., self.own :]
            weights = side_by_side((among_all(mine, self.owners), common), -1)
        else:
            weights = gate.weights
        penalty = gate.penalty
        for one in of_all:  # weights (B, 1, E)
            weights, penalty = side_by_side((weights, one.weights), 1), penalty + one.penalty
        if self.trained is None:
            fused = mix(weights, experts)
        else:
            fused = mix(weights * self.trained, experts) + mix(weights * ~self.trained, experts.detach())
        return Shared(fused, (weights,), penalty)

    def multiply_adds(self) -> int:
        gates = self.gate.multiply_adds() + (0 if self.shared_gate is None else self.shared_gate.multiply_adds())
        readers = len(self.owners) + (self.shared_gate is not None)
        mixing = readers * self.experts.n * self.experts.d_out * (1 if self.trained is None else 2)
        return self.experts.multiply_adds() + gates + mixing
