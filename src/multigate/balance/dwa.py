"""Dynamic weight average: tasks whose losses fall slowly count more."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from multigate.balance.balance import Balance, Balancer, shares
from multigate.schema import Task


class DWA(Balance):
    """T softmax(r / temperature), r_t the mean loss of the last epoch over that of the one before it.

    Equal in the first two epochs (Liu, Johns, Davison 2019, Eq. 7).
    """

    method: Literal["dwa"] = "dwa"
    temperature: float = Field(default=2.0, gt=0, allow_inf_nan=False)

    def build(self, tasks: Sequence[Task]) -> "DWABalancer":
        return DWABalancer(self, tasks)


class DWABalancer(Balancer):
    """Keeps the mean losses of two epochs (2, T), the older first; -1 where there was none."""

    means: Tensor

    def __init__(self, options: DWA, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.temperature = options.temperature
        self.register_buffer("means", torch.full((2, len(tasks)), -1.0))

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        older, newer = self.means
        rates = torch.where(older > 0, newer / older, 1.0)
        return shares(rates / self.temperature, active)

    def after_epoch(self, losses: Tensor) -> None:
        super().after_epoch(losses)
        self.means.copy_(torch.stack((self.means[1], losses)))
