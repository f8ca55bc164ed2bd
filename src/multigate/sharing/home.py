"""Hierarchy of multi-gate experts: groups of tasks share first, then each task reads on, with normalised experts."""

from typing import Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from multigate.errors import ExperimentError, nearest
from multigate.nn.activation import Activation
from multigate.nn.eager import pays
from multigate.nn.feature_gate import FeatureGate
from multigate.nn.gate import LinearGate, beside, softmax
from multigate.nn.layout import side_by_side, turned, units
from multigate.nn.mixture import mix
from multigate.nn.ownership import among_all
from multigate.nn.parallel import ParallelLinear
from multigate.nn.together import gated, together
from multigate.sharing.levels import dealt, experts_of, experts_read, own_only, shared_experts, through
from multigate.sharing.ple import SHARED
from multigate.sharing.structure import GatedStructure, Level, Shared, Widths


class HoME(GatedStructure):
    """Experts Swish(BatchNorm(W (x * 2 sigmoid(x A B)))) of groups of tasks and of all, then of tasks, groups and all
    (Wang et al. 2024).

    A reader makes softmax(W v) S of the experts S it may read, plus a self gate of its own experts, softmax(W' v) or,
    of a single one, sigmoid(W' v). The paper's ideas; our reading of what it leaves open: at the first level groups
    read their experts and the shared ones, and a shared module reads all. At the second, experts of tasks and groups
    read what the first made of the group, shared ones what the shared module made, and v is both side by side. All
    layers of an expert are normalised.
    """

    structure: Literal["home"] = "home"
    groups: tuple[tuple[str, ...], ...] = ()
    """Names of the tasks that share most, every task in one group; empty is all tasks in one."""
    experts: int = Field(default=2, ge=1)
    """Of each group, at both levels, and of each task."""
    shared: int = Field(default=2, ge=1)
    """Experts that all read, at either level."""
    rank: int = Field(default=8, ge=0)
    """Of the feature gates; 0 is none."""
    hidden: Widths = Field(default=(128, 64), min_length=2)
    activation: Activation = "silu"
    normalisation: Literal["none", "layer", "batch"] = "batch"  # type: ignore[assignment]

    @field_validator("groups")
    @classmethod
    def _each_once(cls, groups: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        names = [name for group in groups for name in group]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'groups' name {twice!r} twice; each task is in one group")
        if not all(groups):
            raise ValueError("'groups' hold a group without tasks; leave it out")
        return groups

    def check(self, tasks: tuple[str, ...]) -> None:
        self.group_of(tasks)

    def for_tasks(self, tasks: tuple[str, ...]) -> Self:
        groups = (tuple(name for name in group if name in tasks) for group in self.groups)
        return self.with_(groups=tuple(group for group in groups if group))

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> "HoMESharing":
        return HoMESharing(self, d_in, tasks, d_context)

    def group_of(self, tasks: tuple[str, ...]) -> list[int]:
        """The group of each task; raises ``ExperimentError`` where groups are not all tasks."""
        groups = self.groups or (tasks,)
        of = {name: group for group, names in enumerate(groups) for name in names}
        for name in of:
            if name not in tasks:
                raise ExperimentError(f"groups of home: there is no task {name!r}; {nearest(name, tasks)}")
        for name in tasks:
            if name not in of:
                raise ExperimentError(f"groups of home name every task, and {name!r} is in none; add it to one")
        return [of[name] for name in tasks]


class HoMESharing(nn.Module):
    """x (B, D) -> z (B, T, H), gates ((B, G + 1, E), (B, T, E')), what softmax and self gate weigh together."""

    def __init__(self, options: HoME, d_in: int, tasks: tuple[str, ...], d_context: int) -> None:
        super().__init__()
        m, s = options.experts, options.shared
        group_of = options.group_of(tasks)
        groups = range(max(group_of) + 1)
        first, second = dealt(options.hidden, 2)
        self.levels = nn.ModuleList(
            (
                Grouped(options, first, d_in, d_context, len(groups)),
                Tasked(options, second, first[-1], d_context, group_of, len(groups)),
            )
        )
        self.d_out = second[-1]
        named = tuple(f"group {group}" for group in groups)
        common = (*experts_of(named, m), *shared_experts(s))
        all_shared = (True,) * s
        own_group = tuple((*row, *all_shared) for row in own_only(groups, len(groups), m))
        self.wiring = (
            Level((*named, SHARED), common, (*own_group, (True,) * len(common)), distribution=False),
            Level(
                tasks,
                (*experts_of(tasks, m), *common),
                tuple(
                    (*of_task, *own_group[group])
                    for of_task, group in zip(own_only(range(len(tasks)), len(tasks), m), group_of, strict=True)
                ),
                distribution=False,
            ),
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Shared:
        return through(self.levels, x, context)

    def multiply_adds(self) -> int:
        return sum(level.multiply_adds() for level in self.levels if isinstance(level, Grouped | Tasked))


class Grouped(nn.Module):
    """The first level: x (B, D) -> (B, G + 1, H), what groups and the shared module read."""

    owners: Tensor

    def __init__(self, options: HoME, hidden: tuple[int, ...], d_in: int, d_context: int, groups: int) -> None:
        super().__init__()
        self.m, self.s = options.experts, options.shared
        n, d_gate = groups * self.m + self.s, d_in + d_context
        self.features = FeatureGate(n, d_in, options.rank) if options.rank else None
        self.experts = options.parallel_mlp(n, d_in, hidden)
        read = experts_read(([group] for group in range(groups)), groups, self.m, self.s)
        self.gate = options.gate(groups, self.m + self.s, d_gate, experts=read)
        self.shared_gate = options.gate(1, n, d_gate)
        self.self_gate, self.shared_self_gate = SelfGate(groups, self.m, d_gate), SelfGate(1, self.s, d_gate)
        self.register_buffer("owners", torch.tensor(own_only(range(groups), groups, 1)), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None) -> Shared:
        gates = self.gate, self.shared_gate, self.self_gate, self.shared_self_gate
        if self.features is None:
            experts, found = together(self.experts, gates, x, context)  # (B, E, H)
        else:
            x = turned(x) if self.training or pays(x) else x
            experts, found = self.experts(self.features(x)), gated(gates, beside(x, context))
        gate, shared, own, of_shared = found
        read, common = gate.weights.split((self.m, self.s), dim=-1)
        of_groups = side_by_side((among_all(read + own, self.owners), common), -1)
        others, last = shared.weights.split((self.experts.n - self.s, self.s), dim=-1)
        weights = side_by_side((of_groups, side_by_side((others, last + of_shared), -1)), 1)
        return Shared(mix(weights, experts), (weights,), gate.penalty + shared.penalty)

    def multiply_adds(self) -> int:
        parts = (self.experts, self.gate, self.shared_gate, self.self_gate, self.shared_self_gate)
        features = 0 if self.features is None else self.features.multiply_adds()
        mixing = (len(self.owners) + 1) * self.experts.n * self.experts.d_out
        return sum(part.multiply_adds() for part in parts) + features + mixing


class Tasked(nn.Module):
    """The second level: what groups and the shared module read, (B, G + 1, D) -> what tasks read, (B, T, H)."""

    tasks: Tensor
    groups: Tensor
    read_by_experts: Tensor
    read_by_gates: Tensor | None

    def __init__(
        self, options: HoME, hidden: tuple[int, ...], d_in: int, d_context: int, group_of: list[int], groups: int
    ) -> None:
        super().__init__()
        self.m, self.s = options.experts, options.shared
        tasks = len(group_of)
        n, d_gate = (tasks + groups) * self.m + self.s, 2 * d_in + d_context
        self.features = FeatureGate(n, d_in, options.rank) if options.rank else None
        self.experts = options.parallel_mlp(n, d_in, hidden)
        units = ([task, tasks + group] for task, group in enumerate(group_of))
        read = experts_read(units, tasks + groups, self.m, self.s)
        self.gate = options.gate(tasks, 2 * self.m + self.s, d_gate, experts=read)
        self.self_gate = SelfGate(tasks, self.m, d_gate)
        self.register_buffer("tasks", torch.tensor(own_only(range(tasks), tasks, 1)), persistent=False)
        self.register_buffer("groups", torch.tensor(own_only(group_of, groups, 1)), persistent=False)
        of_experts = [group for group in (*group_of, *range(groups)) for _ in range(self.m)] + [groups] * self.s
        of_gates = [unit for group in group_of for unit in (group, groups)]
        self.register_buffer("read_by_experts", torch.tensor(of_experts), persistent=False)
        # of each task its group and the shared module; all read both where there is one group
        self.register_buffer("read_by_gates", torch.tensor(of_gates) if groups > 1 else None, persistent=False)

    def forward(self, x: Tensor, context: Tensor | None) -> Shared:
        read = self.read_by_experts
        experts = self.experts(units(x, read) if self.features is None else self.features(x, read))  # (B, E, H)
        if self.read_by_gates is None:
            v = x.flatten(1)  # the only group's and the shared module's
        else:
            v = units(x, self.read_by_gates).view(x.shape[0], len(self.tasks), 2 * x.shape[2])
        gate, own = gated((self.gate, self.self_gate), beside(v, context))
        read, of_group, common = gate.weights.split((self.m, self.m, self.s), dim=-1)
        weights = side_by_side((among_all(read + own, self.tasks), among_all(of_group, self.groups), common), -1)
        return Shared(mix(weights, experts), (weights,), gate.penalty)

    def multiply_adds(self) -> int:
        features = 0 if self.features is None else self.features.multiply_adds()
        mixing = len(self.tasks) * self.experts.n * self.experts.d_out
        gates = self.gate.multiply_adds() + self.self_gate.multiply_adds()
        return self.experts.multiply_adds() + gates + features + mixing


class SelfGate(LinearGate):
    """softmax(W' v) over the m experts of each reader, or sigmoid(W' v) of a single one, beside the gate's weights.

    v (B, D) or (B, readers, D) -> (B, readers, m).
    """

    def __init__(self, readers: int, m: int, d_in: int) -> None:
        super().__init__()
        self.linear = ParallelLinear(readers, d_in, m, bias=False)
        self.single = m == 1

    def of_logits(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits) if self.single else softmax(logits)
