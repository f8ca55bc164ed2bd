"""Multi-gate mixture-of-experts: shared experts, a gate per task (MMoE); or one gate for all (OMoE)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from multigate.nn.gate import beside, mix
from multigate.sharing.structure import GatedStructure, Level, Shared, all_read_all, experts_named


class MMoE(GatedStructure):
    """f^k(x) = sum_i g^k(x)_i f_i(x), g^k(x) = softmax(W_k x) (Ma et al. 2018, Eq. 6 to 8)."""

    structure: Literal["mmoe"] = "mmoe"
    experts: int = Field(default=8, ge=1)

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> "MixtureSharing":
        return MixtureSharing(self, d_in, tasks, d_context, readers=tasks)


class OMoE(GatedStructure):
    """f(x) = sum_i g(x)_i f_i(x): the one-gate mixture all tasks read (Ma et al. 2018, Eq. 5 and Fig. 1b)."""

    structure: Literal["omoe"] = "omoe"
    experts: int = Field(default=8, ge=1)

    def build(self, d_in: int, tasks: tuple[str, ...], d_context: int = 0) -> "MixtureSharing":
        return MixtureSharing(self, d_in, tasks, d_context, readers=("all tasks",))


class MixtureSharing(nn.Module):
    """x (B, D) -> z (B, T, H), gates ((B, readers, E),); a single reader speaks for every task."""

    def __init__(
        self, options: MMoE | OMoE, d_in: int, tasks: tuple[str, ...], d_context: int, readers: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.experts = options.parallel_mlp(options.experts, d_in)
        self.gate = options.gate(len(readers), options.experts, d_in + d_context)
        self.tasks = len(tasks)
        self.d_out = self.experts.d_out
        sources = experts_named(options.experts)
        self.wiring = (Level(readers, sources, all_read_all(readers, sources)),)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Shared:
        gate = self.gate(beside(x, context))  # weights (B, readers, E)
        z = mix(gate.weights, self.experts(x)).expand(-1, self.tasks, -1)
        return Shared(z, gates=(gate.weights,), penalty=gate.penalty)

    def multiply_adds(self) -> int:
        readers, experts = len(self.wiring[0].readers), len(self.wiring[0].sources)
        return self.experts.multiply_adds() + self.gate.multiply_adds() + readers * experts * self.d_out
