"""A GPU that is pretended: tensors that say they lie on one, and whose numbers lie in the processor's memory.

They refuse what a GPU refuses: operators that read tensors of both places, numpy, generators of the processor, code
compiled for the processor, and while launches are recorded whatever waits for the GPU. What only a GPU can tell is its
own kernels: their rounding, their limits, and how fast they are.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from multigate.training import recorded

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
AMONG_BOTH = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::index_put_"}
"""Operators that read tensors of both places; indices may lie on the processor."""
WAITS = {"aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::_unique2"}
"""Operators after which Python knows what the GPU has computed."""
HOLDS_NOTHING = {"aten::empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty", "aten::_unsafe_view"}


class OnGPU(Tensor):
    """To torch's own code, which has no GPU to ask for, it is of the device "meta"; to everybody else of the GPU."""

    numbers: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __new__(cls, numbers: Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, numbers.size(), strides=numbers.stride(), storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype, layout=numbers.layout, device="meta",
        )  # fmt: skip
        made.numbers = numbers.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    device = property(lambda self: GPU)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    is_meta = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.numbers})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            made: Tensor = OnGPU(self.numbers.clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(made, self.requires_grad) if is_parameter else made
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a tensor on the GPU is pickled")

    def cpu(self, **_: Any) -> Tensor:
        return self.to(CPU)

    def tolist(self) -> Any:
        return self.numbers.tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=GPU)

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy


class _Everywhere(TorchDispatchMode):
    """Sees what makes new tensors too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Launches:
    """Those of a call, each with what it reads and where it writes; recorded as the call is computed."""

    recording: "_Launches | None" = None

    def __init__(self, function: Callable[..., Sequence[Tensor]], batch: tuple[Any, ...]) -> None:
        held = tree_map(torch.clone, batch)
        self.held, self.launches, self.computed = list(recorded._leaves(held)), [], True
        _Launches.recording = self
        try:
            self.results = function(*held)
        finally:
            _Launches.recording = None

    def __call__(self, batch: Sequence[Tensor]) -> list[Tensor]:
        for place, tensor in zip(self.held, batch, strict=True):
            place.copy_(tensor)
        for func, args, kwargs, made in () if self.computed else self.launches:
            with torch.no_grad():
                again = func(*_in_memory(args), **_in_memory(kwargs))
            for place, tensor in zip(tree_leaves(made), tree_leaves(again), strict=True) if made is not None else ():
                if isinstance(place, OnGPU):
                    place.numbers.copy_(tensor)
        self.computed = False
        return [result.clone() for result in self.results]


@contextmanager
def pretended_gpu() -> Iterator[torch.device]:
    """While entered, this thread has a GPU; processes that it starts have none."""
    tensor, autocast = torch.tensor, torch.autocast

    def on_device(data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Tensor:
        wanted = torch.empty(0).device if device is None else device
        made = tensor(data, dtype=dtype, device=CPU)
        made = made.to(GPU) if _is_gpu(wanted) else made
        return made.requires_grad_(requires_grad)

    def in_float32(kind: str, *args: Any, enabled: bool = True, **kwargs: Any) -> Any:
        there = kind in ("cuda", "meta")
        return autocast("cpu" if there else kind, *args, enabled=enabled and not there, **kwargs)

    of_torch = {"tensor": on_device, "autocast": in_float32, "inference_mode": _inference_mode}
    of_cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "current_device": lambda: GPU.index,
        "is_bf16_supported": lambda: False,
        "get_rng_state": lambda device=None: torch.get_rng_state(),  # that of the processor, whose numbers are drawn
        "set_rng_state": lambda state, device=None: None,
    }
    converts = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            patch.multiple(torch, **of_torch), patch.multiple(torch.cuda, **of_cuda),
            patch.object(recorded, "_Recording", _Launches), patch.dict(os.environ), _Everywhere(),
        ):  # fmt: skip
            yield GPU
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(converts)


def _inference_mode(mode: bool = True) -> Any:
    """Views of tensors of inference cannot be wrapped."""
    return torch.no_grad() if mode else torch.set_grad_enabled(torch.is_grad_enabled())


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name
    tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
    here = [one for one in tensors if not isinstance(one, OnGPU)]
    is_there, wanted = len(here) < len(tensors), kwargs.get("device")
    if not is_there and not _is_gpu(wanted):
        return func(*args, **kwargs)
    if is_there:
        _refuse(name, here, kwargs)
    if _Launches.recording is not None:
        _refuse_recording(name, here, wanted)
    if wanted is not None:
        kwargs = kwargs | {"device": CPU}
    if kwargs.get("non_blocking"):
        kwargs = kwargs | {"non_blocking": False}
    made = func(*_in_memory(args), **_in_memory(kwargs))
    given = [*zip(func._schema.arguments, args, strict=False)]
    given += [(one, kwargs[one.name]) for one in func._schema.arguments if one.name in kwargs]
    written = [one for argument, one in given if argument.alias_info is not None and argument.alias_info.is_write]
    if written:
        _record(func, args, kwargs, None)
        returns = func._schema.returns
        return None if not returns else written[0] if len(returns) == 1 else tuple(written)
    if wanted is not None and not _is_gpu(wanted):
        return made
    wrapped = tree_map(lambda one: OnGPU(one) if isinstance(one, Tensor) else one, made)
    if name not in HOLDS_NOTHING and func._schema.returns[0].alias_info is None:  # views are what they look at
        _record(func, args, kwargs, wrapped)
    return wrapped


def _refuse(name: str, here: Sequence[Tensor], kwargs: dict[str, Any]) -> None:
    """What reads a tensor on the GPU."""
    if name.partition("::")[0] not in ("aten", "prims"):
        raise NotImplementedError(f"{name} is compiled for the processor")
    if kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
    if name not in AMONG_BOTH and any(one.dim() for one in here):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu in {name}")


def _refuse_recording(name: str, here: Sequence[Tensor], wanted: Any) -> None:
    if name in WAITS or (wanted is not None and not _is_gpu(wanted)) or (here and name in AMONG_BOTH):
        raise RuntimeError(f"operation not permitted when stream is capturing: {name}")


def _record(func: Any, args: Any, kwargs: Any, made: Any) -> None:
    if _Launches.recording is not None:
        _Launches.recording.launches.append((func, args, kwargs, made))


def _in_memory(given: Any) -> Any:
    return tree_map(lambda one: one.numbers if isinstance(one, OnGPU) else one, given)


def _is_gpu(device: Any) -> bool:
    """What torch's own code makes for a tensor on the GPU, it asks of the device that it thinks that one to be on."""
    return device is not None and torch.device(device).type in ("cuda", "meta")
