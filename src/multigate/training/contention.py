"""Whether other programs hold the cores that a training computes on, as the operating system counts it."""

from pathlib import Path
from typing import NamedTuple

OURS = Path("/proc/thread-self/schedstat")
"""Linux: nanoseconds that this thread ran, nanoseconds that it could have but had no core, and how often it ran."""
SHARE = 0.15
"""Of the time that it wants a core, the part for which it waits from which on threads wait for each other instead of
computing; alone on a machine it is .02 (measured)."""
LEAST = 2.0
"""Seconds after which that is told."""


class Cores(NamedTuple):
    """Seconds that this thread had a core, and that it waited for one, since it began."""

    had: float
    waited: float

    @classmethod
    def so_far(cls) -> "Cores | None":
        """None where nobody counts."""
        try:
            had, waited, *_ = OURS.read_text().split()
            return cls(int(had) / 1e9, int(waited) / 1e9)
        except (OSError, ValueError):
            return None

    def lacking_since(self, before: "Cores") -> bool:
        """Whether other programs had so much of the cores since then that fewer threads would be faster."""
        had, waited = self.had - before.had, self.waited - before.waited
        return had + waited >= LEAST and waited >= SHARE * (had + waited)
