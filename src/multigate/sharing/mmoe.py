"""Multi-gate mixture-of-experts: shared experts, a gate per task (MMoE); or one gate for all (OMoE)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from multigate.nn.gate import Gate, mix
from multigate.sharing.structure import Level, Shared, Structure, all_read_all, experts_named


class MMoE(Structure):
    """f^k(x) = sum_i g^k(x)_i f_i(x), g^k(x) = softmax(W_k x) (Ma et al. 2018, Eq. 6 to 8)."""

    structure: Literal["mmoe"] = "mmoe"
    experts: int = Field(default=8, ge=1)
    gate_dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, d_in: int, tasks: tuple[str, ...]) -> "MixtureSharing":
        return MixtureSharing(self, d_in, tasks, readers=tasks)


class OMoE(Structure):
    """f(x) = sum_i g(x)_i f_i(x): the one-gate mixture all tasks read (Ma et al. 2018, Eq. 5 and Fig. 1b)."""

    structure: Literal["omoe"] = "omoe"
    experts: int = Field(default=8, ge=1)
    gate_dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, d_in: int, tasks: tuple[str, ...]) -> "MixtureSharing":
        return MixtureSharing(self, d_in, tasks, readers=("all tasks",))


class MixtureSharing(nn.Module):
    """x (B, D) -> z (B, T, H), gates ((B, readers, E),); a single reader speaks for every task."""

    def __init__(self, options: MMoE | OMoE, d_in: int, tasks: tuple[str, ...], readers: tuple[str, ...]) -> None:
        super().__init__()
        self.experts = options.parallel_mlp(options.experts, d_in)
        self.gate = Gate(len(readers), options.experts, d_in, dropout=options.gate_dropout)
        self.tasks = len(tasks)
        self.d_out = self.experts.d_out
        sources = experts_named(options.experts)
        self.wiring = (Level(readers, sources, all_read_all(readers, sources)),)

    def forward(self, x: Tensor) -> Shared:
        gate = self.gate(x)  # (B, readers, E)
        z = mix(gate, self.experts(x)).expand(-1, self.tasks, -1)
        return Shared(z, gates=(gate,), penalty=x.new_zeros(()))

    def multiply_adds(self) -> int:
        readers, experts = len(self.wiring[0].readers), len(self.wiring[0].sources)
        return self.experts.multiply_adds() + self.gate.multiply_adds() + readers * experts * self.d_out
