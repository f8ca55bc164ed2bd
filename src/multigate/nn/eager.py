"""Whether tensors are what they seem: operators run one by one, and may look at values and at where they lie."""

import torch
from torch import Tensor


def transformed(x: Tensor) -> bool:
    """Whether ``torch.func`` is at work on a tensor, by ``vmap`` or ``grad``."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def eager(x: Tensor) -> bool:
    """Whether x is computed now: not in a graph being captured, nor under ``torch.func``."""
    return not (torch.compiler.is_compiling() or transformed(x))
