"""Checkpoints: everything a run needs to go on exactly where it stopped, in one safetensors file."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from multigate.errors import RunError
from multigate.writing import writing


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and JSON state, whole or not at all. Raises ``RunError`` where the disk refuses."""
    held = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with writing(path) as temporary:
        save_file(held, temporary, {"state": json.dumps(state)})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``save_checkpoint`` wrote. Raises ``RunError`` where the file is torn."""
    try:
        with safe_open(path, framework="pt") as file:
            state = dict(json.loads(file.metadata()["state"]))
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"checkpoint {path} cannot be read ({error}); delete it and --resume trains anew") from None


def load_weights(path: Path, device: torch.device) -> dict[str, Tensor]:
    """A model's weights from a file of their own. Raises ``RunError`` where it is missing or torn."""
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise RunError(f"weights {path} cannot be read ({error}); train again in another folder") from None
