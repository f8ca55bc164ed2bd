"""Multi-gate mixture-of-experts: shared experts, a gate per task (MMoE); or one gate for all (OMoE)."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from multigate.errors import ExperimentError
from multigate.nn.dispatch import multiply_adds
from multigate.nn.layout import for_each
from multigate.nn.together import mixture
from multigate.sharing.structure import GatedStructure, Level, Shared, Widths, all_read_all, experts_named


class Mixture(GatedStructure):
    """Options of a structure whose tasks read mixtures of the same experts."""

    experts: int = Field(default=8, ge=1)
    bottom: Widths = ()
    """Widths of layers below, whose output experts and gates read in place of x: the mixture is then the top layer of a
    shared bottom (Ma et al. 2018, section 6.4; Zhao et al. 2019, section 4.2)."""

    def widened(self, factor: float) -> Self:
        bottom = tuple(max(1, round(width * factor)) for width in self.bottom)
        return super().widened(factor).with_(bottom=bottom)

    @property
    def conditional(self) -> bool:  # type: ignore[override]
        return self.gating != "softmax"


class MMoE(Mixture):
    """f^k(x) = sum_i g^k(x)_i f_i(x), g^k(x) = softmax(W_k x) (Ma et al. 2018, Eq. 6 to 8).

    With ``exclusive`` or ``exclusion`` it is MMoEEx (Aoki et al. 2021): the first experts are read by one task only,
    the next ones by all tasks but one, dealt round the tasks in order.
    """

    structure: Literal["mmoe"] = "mmoe"
    exclusive: float = Field(default=0.0, ge=0, le=1)
    """Share of the experts that a single task reads."""
    exclusion: float = Field(default=0.0, ge=0, le=1)
    """Share of the experts that a single task may not read."""

    @model_validator(mode="after")
    def _at_most_all(self) -> Self:
        if self.exclusive + self.exclusion > 1:
            raise ValueError(
                f"exclusive={self.exclusive:g} and exclusion={self.exclusion:g} are shares of the same experts, and "
                "together at most 1"
            )
        return self

    def idle(self) -> Mapping[str, str]:
        shares = {"exclusive": self.exclusive, "exclusion": self.exclusion}
        none = [name for name, share in shares.items() if not round(share * self.experts)]
        why = f"of {self.experts} experts it comes to none; {1 / self.experts:.2g} is one of them"
        return {**super().idle(), **dict.fromkeys(none, why)}

    def check(self, tasks: tuple[str, ...]) -> None:
        self.mask(tasks)

    def for_tasks(self, tasks: tuple[str, ...]) -> Self:
        return self.with_(exclusion=0.0) if len(tasks) == 1 else self

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> "MixtureSharing":
        return MixtureSharing(self, d_in, tasks, d_context, tasks, self.mask(tasks))

    def mask(self, tasks: tuple[str, ...]) -> tuple[tuple[bool, ...], ...]:
        """Who may read whom; raises ``ExperimentError`` where a task, or an expert, is left alone."""
        exclusive, exclusion = (round(share * self.experts) for share in (self.exclusive, self.exclusion))
        if exclusion and len(tasks) == 1:
            raise ExperimentError(f"exclusion={self.exclusion:g} would bar the only task from experts; set it to 0")
        owned = {i: i % len(tasks) for i in range(exclusive)}
        barred = {i: i % len(tasks) for i in range(exclusive, exclusive + exclusion)}
        mask = tuple(
            tuple(owned.get(i, task) == task and barred.get(i) != task for i in range(self.experts))
            for task in range(len(tasks))
        )
        for task, row in zip(tasks, mask, strict=True):
            if not any(row):
                raise ExperimentError(
                    f"task {task!r} may read none of the {self.experts} experts; set more experts, or lower "
                    f"exclusive={self.exclusive:g} or exclusion={self.exclusion:g}"
                )
        return mask


class OMoE(Mixture):
    """f(x) = sum_i g(x)_i f_i(x): the one-gate mixture all tasks read (Ma et al. 2018, Eq. 5 and Fig. 1b)."""

    structure: Literal["omoe"] = "omoe"

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> "MixtureSharing":
        readers = ("all tasks",)
        mask = all_read_all(readers, experts_named(self.experts))
        return MixtureSharing(self, d_in, tasks, d_context, readers, mask)


class MixtureSharing(nn.Module):
    """x (B, D) -> z (B, T, H), gates ((B, readers, E),); a single reader speaks for every task."""

    def __init__(
        self,
        options: Mixture,
        d_in: int,
        tasks: tuple[str, ...],
        d_context: int,
        readers: tuple[str, ...],
        mask: tuple[tuple[bool, ...], ...],
    ) -> None:
        super().__init__()
        self.bottom = options.parallel_mlp(1, d_in, options.bottom)
        read = self.bottom.d_out
        self.experts = options.parallel_mlp(options.experts, read)
        self.gate = options.gate(len(readers), options.experts, read + d_context, mask)
        self.tasks = len(tasks)
        self.d_out = self.experts.d_out
        self.wiring = (Level(readers, experts_named(options.experts), mask),)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Shared:
        if self.bottom.layers:
            x = self.bottom(x).squeeze(1)
        z, gate = mixture(self.experts, self.gate, x, context)  # weights (B, readers, E)
        return Shared(for_each(z, self.tasks), gates=(gate.weights,), penalty=gate.penalty)

    def multiply_adds(self) -> int:
        readers, read = len(self.wiring[0].readers), self.gate.most_read()
        mixing = self.gate.multiply_adds() + multiply_adds(self.experts, readers, read)
        return self.bottom.multiply_adds() + mixing
