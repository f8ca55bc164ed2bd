"""Precision: what matrix products are computed in."""

from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def choose_precision(name: str, device: torch.device) -> str:
    """What ``auto`` means on this device: bfloat16 where it is multiplied natively."""
    if name != "auto":
        return name
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


def multiplying(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """While entered, matrix products on the device are computed in this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
