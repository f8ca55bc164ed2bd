"""Linear maps one after another are one map, whose weight can be made once for all rows of a batch."""

import torch


def composes(rows: int, apart: int, as_one: int, making: int) -> bool:
    """Whether rows take fewer multiply-adds through one map, ``as_one`` each and ``making`` once, than ``apart``.

    In a graph that is being captured a weight made of weights is a constant, or made for many rows.
    """
    if torch.compiler.is_compiling():
        return as_one < apart
    return making < rows * (apart - as_one)
