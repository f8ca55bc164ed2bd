"""Optimisers, the learning rate's way, and the average of the weights."""

import math
from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from multigate.experiment import Optimizer
from multigate.training.adam import Adam

RISE = 0.3
"""Share of the steps in which one_cycle's learning rate rises."""
START, END = 1 / 25, 1e-4
"""one_cycle starts at START and ends at START * END of the highest rate (Smith and Topin 2018, as torch's defaults)."""
NORMALISERS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)
"""Torch's, which modules of one's own may have under any name."""


def build_optimizer(module: nn.Module, balance: nn.Module, options: Optimizer, *, but: Iterable[Tensor] = ()) -> Adam:
    """Adam or AdamW of all weights ``but`` some. Biases, normalisers and the balance's own do not decay."""
    left_out = {id(parameter) for parameter in but}
    moved = [(name, p) for name, p in module.named_parameters() if id(p) not in left_out]
    normal = {
        id(p) for part in module.modules() if isinstance(part, NORMALISERS) for p in part.parameters(recurse=False)
    }
    weights = [p for name, p in moved if _decays(name)]
    others = [p for name, p in moved if not _decays(name)] + list(balance.parameters())
    # by name first, whatever decays: it is the order in which checkpoints hold their moments
    runs = groupby(weights, key=lambda p: id(p) in normal)
    groups = [(list(run), 0.0 if of_normalisers else options.decay) for of_normalisers, run in runs]
    return Adam([*groups, (others, 0.0)], options.rate(), decoupled=options.name == "adamw")


def _decays(name: str) -> bool:
    return name.endswith("weight") and ".norms." not in name


def clip(gradients: Iterable[Tensor], limit: float) -> None:
    """Scale gradients in place so that the norm of all together is at most ``limit``."""
    held = list(gradients)
    norm = torch.nn.utils.get_total_norm(held)
    torch._foreach_mul_(held, (limit / (norm + 1e-6)).clamp(max=1.0))


def rate_at(options: Optimizer, step: int, steps: int) -> float:
    """The learning rate of step 0 .. steps - 1."""
    highest = options.rate()
    if options.schedule == "constant":
        return highest
    last = max(steps - 1, 1)
    step = min(step, last)  # beyond its end a schedule stays where it ended
    if options.schedule == "cosine":
        return highest * _between(1.0, END, step / last)
    top = RISE * steps - 1  # the step of the highest rate
    if step <= top:
        return highest * _between(START, 1.0, step / top if top > 0 else 1.0)
    return highest * _between(1.0, START * END, (step - top) / max(last - top, 1e-9))


class Rate:
    """The learning rate of an optimiser: a number, and on a GPU a place in its memory, for what is recorded there."""

    def __init__(self, optimizer: Adam, device: torch.device) -> None:
        self.value = 0.0
        self._groups = optimizer.param_groups
        self._place = torch.zeros((), device=device) if device.type == "cuda" else None
        for group in self._groups if self._place is not None else ():
            group["lr"] = self._place

    def set(self, value: float) -> None:
        """Let the next step go by this rate."""
        self.value = value
        if self._place is not None:
            self._place.fill_(value)
            return
        for group in self._groups:
            group["lr"] = value


def _between(start: float, end: float, progress: float) -> float:
    """Half a cosine wave from start to end."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


class Average:
    """An exponential moving average of parameters, corrected for its start as Adam's moments are.

    ``update`` after each step; ``swap`` exchanges the average and the weights in place, so that the same module
    evaluates with either.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.steps = 0
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def begin(self) -> None:
        """Take the weights as they are, where others were put into the module before the first step."""
        torch._foreach_copy_(self.values, self.parameters)

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        # the weight that makes step s the corrected average of steps 1 .. s
        weight = (1 - self.decay) / (1 - self.decay**self.steps)
        torch._foreach_lerp_(self.values, self.parameters, weight)

    @torch.no_grad()
    def swap(self) -> None:
        for parameter, value in zip(self.parameters, self.values, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)
