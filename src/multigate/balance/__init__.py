"""How the losses of the tasks combine into one."""

from typing import Literal

from multigate.balance.fixed import Fixed
from multigate.balance.uncertainty import Uncertainty

Balance = Fixed | Uncertainty
Name = Literal["fixed", "uncertainty"]


def build_balance(name: Name, task_weights: tuple[float, ...]) -> Balance:
    """The balance of that name over tasks with these declared weights."""
    return Fixed(task_weights) if name == "fixed" else Uncertainty(task_weights)


__all__ = ["Balance", "Fixed", "Name", "Uncertainty", "build_balance"]
