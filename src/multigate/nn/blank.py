"""Modules made to be filled with weights from a file, while another thread may be training."""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

RANDOM = (
    torch.bernoulli, torch.multinomial, torch.normal, torch.rand, torch.randint, torch.randn, torch.randperm,
    torch.Tensor.bernoulli_, torch.Tensor.exponential_, torch.Tensor.normal_, torch.Tensor.random_,
    torch.Tensor.uniform_,
)  # fmt: skip


class Blank(TorchFunctionMode):
    """While entered, what this thread draws comes from a generator of its own, and torch's stays where it is.

    Putting torch's back afterwards would not do: it would undo the draws of a training in another thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in RANDOM or "generator" in given:  # those of nn.init name it
            given["generator"] = given.get("generator") or self._generator
        return func(*args, **given)
