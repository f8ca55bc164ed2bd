"""Whether all that a structure of one's own computes with is in its state: a bundle builds it again and fills it from
there."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from multigate.errors import ExperimentError
from multigate.model import Model
from multigate.nn.constants import differing
from multigate.nn.embed import OwnEmbeds
from multigate.sharing import STRUCTURES, Shared, Structure
from multigate.training.randomness import devices

ROWS, STEPS = 8, 2
NEAR = 1e-4
"""Of the largest output: how far those of the same weights may lie apart."""
KEEP = "bundles keep what is in its state_dict alone"


def check_rebuilt(model: Model, structure: Structure, device: torch.device) -> None:
    """Raise ``ExperimentError`` where a structure of one's own draws or counts what no bundle or checkpoint keeps.

    It is built twice, for nothing that the model holds is to change; one is run as in training, the other takes its
    state. What it raises when it is run, training tells of. Tensors beside the state may differ as long as nothing is
    run, as the weight does that ``spectral_norm`` computes from others each time.
    """
    if type(structure) in STRUCTURES.values():
        return
    sharing = cast(nn.Module, model.sharing)
    for name, parameter in sharing.named_parameters():
        if is_lazy(parameter):
            raise ExperimentError(
                f"structure {structure.name!r} leaves the size of {name!r} to the first rows that it reads; build it "
                "for inputs of width d_in, with layers that are not lazy"
            )
    with torch.random.fork_rng(devices=devices(device)), _draws_put_back():  # in states that the model has moved on
        first, second = (cast(nn.Module, model.build_sharing(structure)).float() for _ in range(2))
        drawn = differing(sharing, first)
        one = _tensors(sharing) & _tensors(first)  # one module, whenever it is built: what it holds would move
        alike = one or _alike(first.to(device), second.to(device), _inputs(model, structure, device))
        drawn = [name for name in drawn if one or name in differing(first, second)]  # spectral_norm has made the others
        if drawn:
            raise ExperimentError(
                f"structure {structure.name!r} makes {drawn[0]!r} anew each time it is built, and {KEEP}; keep it by "
                "register_buffer, not with persistent=False"
            )
        if not alike:
            raise ExperimentError(
                f"structure {structure.name!r} predicts otherwise when it is built again and given its state_dict, and "
                f"{KEEP}; hold layers as modules (ModuleList, not a list), and what it draws or counts by "
                "register_buffer"
            )


def _tensors(module: nn.Module) -> set[int]:
    return {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}


def _inputs(model: Model, structure: Structure, device: torch.device) -> tuple[Tensor, ...]:
    """Rows for it, drawn: x (B, D) or (B, n, D), and what only gates read (B, G), if anything."""
    n = structure.inputs(len(model.tasks)) if isinstance(model.embed, OwnEmbeds) else None
    shapes = [(ROWS, model.embed.d_out) if n is None else (ROWS, n, model.embed.d_out)]
    shapes += [] if model.context is None else [(ROWS, model.context.d_out)]
    return tuple(torch.randn(shape, device=device) for shape in shapes)


@torch.no_grad()
def _alike(first: nn.Module, second: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether ``second`` in evaluation computes what ``first`` does, some steps on, once it has its state."""
    try:
        for _ in range(STEPS):
            _z(first.train(), inputs)
        ours = _z(first.eval(), inputs)
    except Exception:  # whatever it is, the first step of the training raises it as well
        return True
    try:
        second.load_state_dict(first.state_dict())
        theirs = _z(second.eval(), inputs)
    except Exception:  # it has grown, or wants what training left beside its state
        return False
    if ours.shape != theirs.shape:
        return False
    apart = (ours - theirs).abs().nan_to_num()
    return bool(apart.max() <= NEAR * ours.abs().nan_to_num().max())


def _z(sharing: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """Of the same draws each time."""
    torch.manual_seed(0)
    shared: Any = sharing(*(one.clone() for one in inputs))
    if not isinstance(shared, Shared):
        raise TypeError
    return shared.z.float()


@contextmanager
def _draws_put_back() -> Iterator[None]:
    """Those of Python and numpy, which a structure may draw from too."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
