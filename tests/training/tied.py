"""A structure of one's own two of whose layers have one weight."""

from typing import Literal

from torch import Tensor, nn

from multigate.sharing import SharedBottom
from multigate.sharing.shared_bottom import SharedBottomSharing
from multigate.sharing.structure import Shared


class Tied(SharedBottom):
    structure: Literal["tied"] = "tied"  # type: ignore[assignment]

    def build(self, d_in: int, tasks: tuple[str, ...]) -> nn.Module:  # type: ignore[override]
        return TiedSharing(self, d_in, tasks)


class TiedSharing(SharedBottomSharing):
    def __init__(self, options: Tied, d_in: int, tasks: tuple[str, ...]) -> None:
        super().__init__(options, d_in, tasks)
        self.one, self.other = nn.Linear(self.d_out, self.d_out), nn.Linear(self.d_out, self.d_out)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Shared:
        shared = super().forward(x)
        return shared._replace(z=self.other(self.one(shared.z).relu()))
