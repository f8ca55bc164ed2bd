"""Adam and AdamW by torch's fused kernel, called as it is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8


class Adam:
    """Kingma and Ba 2015, Algorithm 1; ``decoupled`` decay as in Loshchilov and Hutter 2019, Algorithm 2.

    Decay that is not decoupled is L2: added to the gradient and, as all of it, divided by the root of its mean square,
    so that a weight without any other gradient walks to zero by whole steps, however small the decay.

    The numbers are those of ``torch.optim.Adam(fused=True)``. That takes .35 ms a step for what it looks after besides,
    and importing it the compiler, more than a second of a process's life. ``param_groups`` hold ``params``, ``lr`` and
    ``weight_decay``; ``state`` holds ``step``, ``exp_avg`` and ``exp_avg_sq`` of each parameter.
    """

    def __init__(self, groups: Sequence[tuple[Sequence[Tensor], float]], rate: float, *, decoupled: bool) -> None:
        """``groups``: parameters and their weight decay."""
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(params), "lr": rate, "weight_decay": decay} for params, decay in groups if params
        ]
        self.decoupled = decoupled
        self.state = {
            p: {
                "step": torch.zeros((), dtype=torch.float32, device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
            for p in self.parameters
        }

    @property
    def parameters(self) -> list[Tensor]:
        """Of all groups, in order."""
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient."""
        kernel = torch._fused_adamw_ if self.decoupled else torch._fused_adam_
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            if moved:
                first, second, steps = (
                    [self.state[p][name] for p in moved] for name in ("exp_avg", "exp_avg_sq", "step")
                )
                torch._foreach_add_(steps, 1)
                kernel(
                    moved, [p.grad for p in moved], first, second, [], steps,
                    lr=group["lr"], beta1=BETAS[0], beta2=BETAS[1], weight_decay=group["weight_decay"], eps=EPSILON,
                    amsgrad=False, maximize=False,
                )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The state, by the place of a parameter and a name."""
        return {
            f"{at}/{name}": tensor for at, p in enumerate(self.parameters) for name, tensor in self.state[p].items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put back what ``tensors`` gave; raises ``KeyError`` or ``RuntimeError`` where it is that of others."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
