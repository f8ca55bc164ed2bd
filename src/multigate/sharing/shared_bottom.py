"""Shared-Bottom: one network that every task reads (hard parameter sharing)."""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from multigate.nn.layout import for_each
from multigate.sharing.structure import Level, Shared, Structure, Widths, all_read_all


class SharedBottom(Structure):
    """y_k = h^k(f(x)) (Caruana 1997; Ma et al. 2018, Eq. 1)."""

    structure: Literal["shared_bottom"] = "shared_bottom"
    hidden: Widths = Field(default=(512, 128), min_length=1)

    def build(self, d_in: int, tasks: tuple[str, ...]) -> "SharedBottomSharing":
        return SharedBottomSharing(self, d_in, tasks)


class SharedBottomSharing(nn.Module):
    """x (B, D) -> z (B, T, H), the same for every task."""

    def __init__(self, options: SharedBottom, d_in: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.bottom = options.parallel_mlp(1, d_in)
        self.tasks = len(tasks)
        self.d_out = self.bottom.d_out
        sources = ("shared bottom",)
        self.wiring = (Level(tasks, sources, all_read_all(tasks, sources)),)

    def forward(self, x: Tensor) -> Shared:
        return Shared(for_each(self.bottom(x), self.tasks), gates=(), penalty=x.new_zeros(()))

    def multiply_adds(self) -> int:
        return self.bottom.multiply_adds()
