"""Precision: what matrix products are computed in."""

import time
from contextlib import AbstractContextManager
from functools import cache
from typing import Literal, get_args

import torch

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
SIDE = 256
"""Of a square matmul that takes some .1 ms in float32."""
SLOWER = 2.0
"""Times the seconds of a float32 matmul that one in bfloat16 takes where people are told of it."""


def choose_precision(name: str, device: torch.device) -> str:
    """What ``auto`` means on this device: bfloat16 where it is multiplied natively."""
    if name != "auto":
        return name
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


@cache
def times_float32() -> float:
    """How many times as long as one in float32 a matmul in bfloat16 takes on this processor; measured once."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(SIDE, SIDE, dtype=dtype, device="cpu")
        taken = []
        for _ in range(4):
            began = time.perf_counter()
            torch.mm(x, x)
            taken.append(time.perf_counter() - began)
        seconds[dtype] = min(taken)
    return seconds[torch.bfloat16] / seconds[torch.float32]


def warning(precision: str, device: torch.device) -> str | None:
    """What to say of bfloat16 on a processor that takes much longer to multiply it; None of what ``auto`` would be."""
    if precision != "bfloat16" or device.type != "cpu" or choose_precision("auto", device) == precision:
        return None
    times = times_float32()
    if times < SLOWER:
        return None
    return (
        f"this processor takes {times:.0f} times as long to multiply in bfloat16 as in float32, which precision: auto "
        "would choose"
    )


def multiplying(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """While entered, matrix products on the device are computed in this precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
