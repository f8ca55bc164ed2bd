"""The state of torch's generators, kept and put back."""

import torch
from torch import Tensor


def devices(device: torch.device) -> list[torch.device]:
    """What ``torch.random.fork_rng`` wants to know beside the CPU."""
    return [device] if device.type == "cuda" else []


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that a step on this device draws from."""
    state = {"random": torch.get_rng_state()}
    if device.type == "cuda":
        state["random/cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back what ``random_state`` gave."""
    torch.set_rng_state(state["random"])
    if "random/cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["random/cuda"], device)
