"""What a setting may be: a number of a range, or one of some values."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from multigate.options import Options

Value = bool | int | float | str
Point = dict[str, Value]
"""A value for every setting."""


EXACT = 2**53
"""Whole numbers up to this are exact, as ends of a range and in a table of the trials."""


class Range(Options):
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = False
    """Evenly spread in their logarithm."""
    whole: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> "Range":
        if not self.low <= self.high or (self.log and self.low <= 0):
            raise ValueError(f"a range goes up, and from above 0 with 'log'; found {self.low:g} to {self.high:g}")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"a range of whole numbers has whole ends; found {self.low:g} to {self.high:g}")
        if self.whole and max(-self.low, self.high) > EXACT:
            raise ValueError(f"a range of whole numbers ends at {EXACT:,}; found {self.low:g} to {self.high:g}")
        return self

    def at(self, part: float) -> Value:
        """The number at a part in [0, 1) of the way."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        found = low * (high / low) ** part if self.log else low + part * (high - low)
        found = min(max(found, self.low), self.high)
        return round(found) if self.whole else found

    def suggested(self, trial: Any, name: str) -> Value:
        """The number that a trial of Optuna is at."""
        if self.whole:
            return int(trial.suggest_int(name, int(self.low), int(self.high), log=self.log))
        return float(trial.suggest_float(name, self.low, self.high, log=self.log))


class Choice(Options):
    """One of some values."""

    values: tuple[Value, ...] = Field(min_length=1)

    def at(self, part: float) -> Value:
        """The value at a part in [0, 1) of the way."""
        return self.values[int(part * len(self.values))]

    def suggested(self, trial: Any, name: str) -> Value:
        """The value that a trial of Optuna is at."""
        found: Value = trial.suggest_categorical(name, self.values)
        return found


Space = Mapping[str, Range | Choice]
