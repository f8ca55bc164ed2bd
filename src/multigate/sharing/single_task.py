"""Single task: nothing is shared, each task has a network of its own."""

from typing import Literal

from torch import Tensor, nn

from multigate.sharing.structure import Level, Shared, Structure


class SingleTask(Structure):
    """T unconnected networks on one set of embeddings. (``compare`` trains them as T separate models instead.)"""

    structure: Literal["single_task"] = "single_task"

    def build(self, d_in: int, tasks: tuple[str, ...]) -> "SingleTaskSharing":
        return SingleTaskSharing(self, d_in, tasks)

    def inputs(self, tasks: int) -> int | None:
        return tasks


class SingleTaskSharing(nn.Module):
    """x (B, D) or (B, T, D) -> z (B, T, H): y_k = h^k(f_k(x_k))."""

    def __init__(self, options: SingleTask, d_in: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.networks = options.parallel_mlp(len(tasks), d_in)
        self.d_out = self.networks.d_out
        own = tuple(tuple(reader == source for source in tasks) for reader in tasks)
        self.wiring = (Level(tasks, tuple(f"network of {task}" for task in tasks), own),)

    def forward(self, x: Tensor) -> Shared:
        return Shared(self.networks(x), gates=(), penalty=x.new_zeros(()))

    def multiply_adds(self) -> int:
        return self.networks.multiply_adds()
