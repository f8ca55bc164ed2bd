"""What modules must have in common to be stacked, and what a step must leave as it is; the errors say where not."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from multigate.errors import ExperimentError
from multigate.nn.constants import differing


def check_alike(modules: Sequence[nn.Module], *kinds: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise ``ExperimentError`` where modules differ in more than what their tensors hold, each of the ``kinds`` those
    of every module by name."""
    _check_untied(modules[0])
    for tensors in kinds:
        _check_shapes(tensors)
    _check_constants(modules)


def _check_untied(module: nn.Module) -> None:
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        other = names.setdefault(id(parameter), name)
        if other != name:
            raise ExperimentError(f"replicas want weights of their own; {name!r} is the same tensor as {other!r}")


def _check_shapes(tensors: Sequence[Mapping[str, Tensor]]) -> None:
    shapes = [{name: tuple(tensor.shape) for name, tensor in own.items()} for own in tensors]
    for run, found in enumerate(shapes):
        other = next((name for name in {**shapes[0], **found} if shapes[0].get(name) != found.get(name)), None)
        if other is not None:
            raise ExperimentError(
                f"replicas want modules of one kind; {other!r} is {shapes[0].get(other)} in the first and "
                f"{found.get(other)} in module {run}"
            )


def _check_constants(modules: Sequence[nn.Module]) -> None:
    for run, module in enumerate(modules):
        names = differing(modules[0], module)
        if names:
            raise ExperimentError(
                f"replicas want the same of what is in no state_dict; {names[0]!r} differs between the first and "
                f"module {run}; keep it by register_buffer"
            )


def held(module: nn.Module) -> dict[str, Any]:
    """Buffers, and whatever else the modules within hold in Python, by name."""
    found: dict[str, Any] = dict(module.named_buffers())
    for place, one in module.named_modules():
        found |= {f"{place}.{name}" if place else name: value for name, value in vars(one).items()}
    return found


def check_in_place(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Raise ``ExperimentError`` where a step changed what the next one, or a traced one, would find as it was."""
    for name, value in after.items():
        if name not in before or before[name] is not value:
            raise ExperimentError(
                f"{name!r} is set anew in a step, and replicas keep what is changed in place, in buffers, alone; write "
                "it by copy_, or mul_ and add_"
            )
