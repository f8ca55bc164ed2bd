"""Checkpoints: everything a run needs to go on exactly where it stopped, in one safetensors file."""

import json
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multigate.errors import RunError, shortage
from multigate.writing import held_apart, writing

UNREADABLE = (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError)
"""What reading a torn or damaged file raises."""
MATCHED = "matched"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON state, whole or not at all. Raises ``RunError`` where the disk refuses."""
    _write(path, tensors, json.dumps(state))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``save_checkpoint`` wrote. Raises ``RunError`` where the file is torn or damaged."""
    try:
        tensors, state = _read(path)
        return tensors, dict(json.loads(state))
    except PermissionError as error:
        raise RunError(f"checkpoint {path} cannot be read ({error.strerror}); ask its owner for it") from None
    except UNREADABLE as error:
        if shortage(error) is not None:
            raise
        raise RunError(f"checkpoint {path} cannot be read ({error}); delete it and --resume trains anew") from None


def rows_of_checkpoint(path: Path) -> str | None:
    """The prepared rows that a training was on, by their ``content``; None where it does not tell, or is torn."""
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
        return str(state["prepared"])
    except UNREADABLE:
        return None


def save_weights(path: Path, weights: dict[str, Tensor], step: int = 0, *, matched: bool = False) -> None:
    """Write a model's weights after so many steps to a file of their own, as ``save_checkpoint`` does; ``matched``
    where their intercepts were."""
    _write(path, weights, f"{step} {MATCHED}" if matched else str(step))


def load_weights(path: Path, device: torch.device) -> dict[str, Tensor]:
    """A model's weights from a file of their own. Raises ``RunError`` where it is missing, torn or damaged."""
    try:
        return {name: tensor.to(device) for name, tensor in _read(path)[0].items()}
    except PermissionError as error:
        raise RunError(f"weights {path} cannot be read ({error.strerror}); ask their owner for them") from None
    except UNREADABLE as error:
        if shortage(error) is not None:
            raise
        raise RunError(f"weights {path} cannot be read ({error}); train again in another folder") from None


def origin_of_weights(path: Path) -> tuple[int, bool]:
    """After how many steps a model had the weights in a file, which is whole, 0 where it does not tell; and whether
    their intercepts were matched since."""
    with safe_open(path, framework="pt") as file:
        step, _, mark = ((file.metadata() or {}).get("state") or "0").partition(" ")  # older files do not
    return int(step), mark == MATCHED


def _write(path: Path, tensors: dict[str, Tensor], state: str) -> None:
    held = held_apart(tensors)
    with writing(path) as temporary:
        save_file(held, temporary, {"state": state, "checksum": _checksum(held, state)})


def _read(path: Path) -> tuple[dict[str, Tensor], str]:
    with path.open("rb"):  # where it may not be read, safetensors says that it is not there
        pass
    with safe_open(path, framework="pt") as file:
        kept = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    state = kept.get("state", "")
    if kept.get("checksum") not in (None, _checksum(tensors, state)):  # older files have none
        raise ValueError("it is not what was written")
    return tensors, state


def _checksum(tensors: dict[str, Tensor], state: str) -> str:
    """XXH3 of names, types, shapes and values, and of the state; a fifteenth of the time that writing takes."""
    digest = xxhash.xxh3_64(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
