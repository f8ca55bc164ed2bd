"""What a float32 holds: the largest number, and each as the shortest decimal that means it."""

from struct import Struct

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
"""Numbers beyond it, infinities included, are taken as missing: their squares must stay finite in a fit."""
_FLOAT32, _DIGITS = Struct("f"), range(6, 10)
"""A float32 in bytes; the significant digits that tell all float32s apart."""


def shortest(x: np.ndarray) -> np.ndarray:
    """Numbers (R,) float64; each that a float32 holds exactly as the shortest decimal that is this float32.

    So 0.99 is one number in a column of any width, in a text and in a row: 0.9900000095, which the float32 is, would be
    another category, and in another bin.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = x.astype(np.float32)
    left = np.flatnonzero((narrow == x) & (x != np.trunc(x)))
    if not len(left):
        return x
    found = x.copy()
    for digits in _DIGITS:
        y = x[left]
        # a whole number over a power of ten up to 10^22, both exact: the nearest double to the decimal
        places = digits - 1 - np.floor(np.log10(np.abs(y))).astype(np.int64)
        power = 10.0 ** np.minimum(places, 22)
        decimal = np.rint(y * power) / power
        same = (decimal.astype(np.float32) == narrow[left]) & (places <= 22)
        found[left[same]] = decimal[same]
        left = left[~same]
    found[left] = [shortest_of(value) for value in x[left].tolist()]
    return found


def are_shortest(x: np.ndarray) -> bool:
    """Whether each of some numbers is the shortest decimal of a float32: float32s lie to them as to their float32s."""
    return np.array_equal(shortest(x.astype(np.float32).astype(np.float64)), x)


def shortest_of(value: float) -> float:
    """``shortest`` of one number."""
    if value.is_integer() or not abs(value) <= LARGEST:
        return value
    narrow = _FLOAT32.pack(value)
    if _FLOAT32.unpack(narrow)[0] != value:
        return value
    for digits in _DIGITS:
        decimal = float(f"{value:.{digits}g}")
        if decimal == value or (abs(decimal) <= LARGEST and _FLOAT32.pack(decimal) == narrow):
            return decimal
    return value
