"""Shortcuts: open where operators run one by one, may look at values and where they lie, and nobody looks on."""

import torch
from torch import Tensor, nn

RECORDING = torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY
"""Modes in which tensors hold no numbers, or operators are written down."""


def transformed(x: Tensor) -> bool:
    """Whether ``torch.func`` is at work on a tensor, by ``vmap`` or ``grad``."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x)


def eager(x: Tensor) -> bool:
    """Whether x is computed now: not in a graph being captured or traced, nor under ``torch.func``."""
    return not (torch.compiler.is_compiling() or torch._C._is_tracing() or transformed(x) or _recorded())


def _recorded() -> bool:
    among = torch._C._len_torch_dispatch_stack()
    return among > 0 and any(torch._C._get_dispatch_mode(mode) is not None for mode in RECORDING)


def multiplied_in(x: Tensor) -> torch.dtype:
    """What matmuls of x are computed in: what autocast says where it is on, which leaves float64 alone."""
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if cast else x.dtype


MANY = 512
"""Rows for which evaluation takes compiled code, which may first have to be built, and forms of its own."""


def pays(x: Tensor) -> bool:
    """Whether x is many rows on a CPU, computed now, of which no gradient will be asked."""
    return eager(x) and len(x) >= MANY and x.device.type == "cpu" and not torch.is_grad_enabled()


def watched(*modules: nn.Module) -> bool:
    """Whether a hook waits for one of these to be called, or for gradients to come back through it."""
    return any(
        one._forward_hooks or one._forward_pre_hooks or one._backward_hooks or one._backward_pre_hooks
        for one in modules
    )
