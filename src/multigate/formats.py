"""How numbers are written for people."""

import math
from collections.abc import Iterable

from multigate.metrics import HIGHER_IS_BETTER

SMALLEST = 0.0001
"""Of what is smaller four digits after the point tell nothing."""
LARGEST = 1e15
"""What is larger is more digits than anybody reads."""


def number(value: float | None) -> str:
    """Four digits after the point for shares and the like, fewer for large quantities, three digits of what would be 0
    and of what is beyond all measure; n/a where there is none.
    """
    if value is None or not math.isfinite(value):
        return "n/a"
    if 0 < abs(value) < SMALLEST or abs(value) > LARGEST:
        return f"{value:.3g}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def signed(value: float, digits: int = 4) -> str:
    """A difference with its sign; what is written as 0 is +0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}" if math.isfinite(value) else "n/a"


def signed_number(value: float, beside: float) -> str:
    """A difference of quantities in any unit: its sign, and the digits that ``number`` has; of those that have four
    digits after the point, like ``beside``, no others."""
    if abs(value) < SMALLEST <= abs(beside):
        return signed(value)
    return f"{'-' if value < 0 else '+'}{number(abs(value))}" if math.isfinite(value) else "n/a"


def directed(metric: str) -> str:
    """A metric's name with an arrow to where it is better, where there is such a direction."""
    better = HIGHER_IS_BETTER.get(metric)
    return metric if better is None else f"{metric} {'↑' if better else '↓'}"


def interval(low: float, high: float) -> str:
    """A 95 % interval, or nothing where it is not known."""
    return f"{number(low)} to {number(high)}" if math.isfinite(low) and math.isfinite(high) else ""


def bracketed(middle: float, low: float, high: float, digits: int = 4, *, sign: bool = False) -> str:
    """A value and its interval: 0.12 [0.10, 0.15]; with ``sign`` as a difference is written. The value alone where the
    interval is not known, n/a where it is not either."""
    if not math.isfinite(middle):
        return "n/a"
    middle_, low_, high_ = (signed(one, digits) if sign else f"{one:.{digits}f}" for one in (middle, low, high))
    return f"{middle_} [{low_}, {high_}]" if math.isfinite(low) and math.isfinite(high) else middle_


def plus_minus(middle: float, low: float, high: float, digits: int = 4) -> str:
    """A value and half the width of its interval: 0.12 ± 0.02; the value alone where the interval is not known."""
    if not math.isfinite(middle):
        return "n/a"
    half = (high - low) / 2
    return f"{middle:.{digits}f} ± {half:.{digits}f}" if math.isfinite(half) else f"{middle:.{digits}f}"


def share(value: float) -> str:
    """A percentage with two digits that count: 12 %, 1.2 %, 0.12 %; 100 % is all, and nearly all is 99.96 %."""
    digits = 0 if value == 0 else max(0, 1 - math.floor(math.log10(abs(value) * 100)))
    if 0.995 <= value < 1:
        digits = -math.floor(math.log10(max(round(100 - value * 100, 9), 1e-6)))
    return f"{value * 100:.{min(digits, 6)}f} %"


def listed(names: Iterable[str], most: int = 6) -> str:
    """Names as a sentence has them: a, b and c."""
    chosen = list(names)
    if len(chosen) > most:
        return f"{', '.join(chosen[:most])} and {len(chosen) - most} more"
    return " and ".join([", ".join(chosen[:-1]), chosen[-1]] if len(chosen) > 1 else chosen)
