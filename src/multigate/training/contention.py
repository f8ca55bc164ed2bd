"""Whether other programs hold the cores that a training computes on: its threads then wait for each other."""

from pathlib import Path
from typing import NamedTuple

OURS = Path("/proc/thread-self/schedstat")
"""Linux: nanoseconds that this thread has run, nanoseconds that it was ready and had no core, how often it ran."""
SHARE = 0.15
"""Of the time in which it is ready. A thread alone on its core has none of it; beside one busy process on two cores two
threads have .35 each, and take twice as long as one (measured)."""
LEAST = 2.0
"""Seconds before that is judged."""


class Cores(NamedTuple):
    """Seconds that this thread has had a core, and that it has waited for one."""

    had: float
    waited: float

    @classmethod
    def so_far(cls) -> "Cores | None":
        """None where the operating system does not count."""
        try:
            had, waited, _ = OURS.read_text().split()
            return cls(int(had) / 1e9, int(waited) / 1e9)
        except (OSError, ValueError):
            return None

    def lacking_since(self, before: "Cores") -> bool:
        """Whether this thread has had to wait so much since then that fewer threads would be faster."""
        had, waited = self.had - before.had, self.waited - before.waited
        return had + waited >= LEAST and waited >= SHARE * (had + waited)
