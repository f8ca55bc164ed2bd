"""Whether other programs hold the cores that a thread computes on."""

from pathlib import Path
from typing import NamedTuple


class Cores(NamedTuple):
    """Seconds that a thread has had a core, and that it was ready and waited for one."""

    had: float
    waited: float

    @classmethod
    def of(cls, thread: int) -> "Cores | None":
        """So far, of a thread of this process, by the operating system's number. None where that does not count."""
        try:
            had, waited, _ = counted(thread).split()
            return cls(int(had) / 1e9, int(waited) / 1e9)
        except (OSError, ValueError):
            return None

    def waiting_since(self, before: "Cores", least: float) -> float:
        """The share of the time since then in which it waited; 0 where it was not ready for so many seconds."""
        had, waited = self.had - before.had, self.waited - before.waited
        return waited / (had + waited) if had + waited >= least else 0.0


def counted(thread: int) -> str:
    """Linux: nanoseconds that the thread has run, that it was ready and had no core, and how often it ran."""
    return Path(f"/proc/self/task/{thread}/schedstat").read_text()
