"""What every balance is: frozen options that build a small module, from task losses to the weights they add up with."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multigate.errors import ExperimentError
from multigate.options import Options
from multigate.schema import Task


class Balance(Options):
    """Options of a balance. A subclass adds ``method: Literal["its_name"]`` and its own knobs."""

    method: str

    @abstractmethod
    def build(self, tasks: Sequence[Task]) -> "Balancer":
        """The module for these tasks, at the start of training."""


class Balancer(nn.Module):
    """weights(losses (T,), gramian (T, T) or None, present (T,) bool) -> (T,); all its state is in ``state_dict``.

    ``present`` are the tasks with a label in the batch. They and no others are balanced, as far as their declared
    weight is above zero; the rest get 0. A subclass says in ``balanced`` how much of its declared weight each task
    gets: 1 each is the weighted sum of the losses, and methods whose papers weigh tasks to a sum of 1 are scaled to
    a mean of 1, so that penalties and clipping mean the same whatever the balance.
    """

    needs_gramian = False
    """Wants the inner products of the tasks' gradients at x."""
    every = 1
    """Steps between two Gramians; the steps between get None."""
    looks_back = False
    """Wants the losses of the same rows after the step."""
    declared: Tensor
    factors: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.register_buffer("declared", torch.tensor([task.weight for task in tasks]))
        self.register_buffer("factors", torch.tensor([task.weight_factor for task in tasks]), persistent=False)

    def weights(self, losses: Tensor, gramian: Tensor | None, present: Tensor) -> Tensor:
        """What each task's loss is multiplied by."""
        active = present & (self.declared > 0)
        shares: Any = self.balanced(losses, gramian, active)
        shape = () if isinstance(shares, int | float) else getattr(shares, "shape", None)
        if shape not in ((), losses.shape):  # it would be multiplied out with every loss
            found = type(shares).__name__ if shape is None else f"a tensor of {tuple(shape)}"
            raise ExperimentError(
                f"{type(self).__name__}.balanced wants to return a share of each of the {len(losses)} tasks, "
                f"found {found}"
            )
        weights = self.declared * shares
        return torch.where(active, weights, torch.zeros_like(weights))

    @abstractmethod
    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        """Shares (T,) of the declared weights; those of tasks that are not active do not matter."""

    def penalty(self, present: Tensor) -> Tensor:
        """What the balance itself adds to the loss."""
        return self.declared.new_zeros(())

    def after_step(self, before: Tensor, after: Tensor, present: Tensor) -> None:
        """Losses (T,) of one batch before and after a step down it; called where ``looks_back`` is true."""

    def after_epoch(self, losses: Tensor) -> None:
        """Mean losses (T,) of the epoch that ended. Weights follow w_t gamma_t^epoch (Tang et al. 2020, Eq. 10)."""
        self.declared.mul_(self.factors)


def shares(logits: Tensor, active: Tensor) -> Tensor:
    """A softmax (T,) over the active tasks, scaled to a mean of 1 over them."""
    return active.sum() * torch.softmax(logits.masked_fill(~active, -torch.inf), dim=0)
