"""What a module computes with and its state does not hold: buffers that are not persistent, and plain tensors."""

from torch import Tensor, nn


def constants(module: nn.Module) -> dict[str, Tensor]:
    """By name, those of all modules within."""
    held = module.state_dict(keep_vars=True).keys()
    found = {name: buffer for name, buffer in module.named_buffers() if name not in held}
    for place, one in module.named_modules():
        plain = {name: value for name, value in vars(one).items() if isinstance(value, Tensor)}
        found |= {f"{place}.{name}" if place else name: value for name, value in plain.items()}
    return found


def differing(module: nn.Module, other: nn.Module) -> list[str]:
    """The names of the constants that are not the same in both."""
    ours, theirs = constants(module), constants(other)
    return [name for name in ours if name not in theirs or not _same(ours[name], theirs[name])]


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    one, other = one.detach().cpu(), other.detach().cpu()
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
