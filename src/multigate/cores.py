"""The processor's cores that this process may use: those it may run on, and no more than its container is given."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath


def usable_cores(root: Path = Path("/")) -> int:
    """At least 1. Of a core and a half 1 is used: the container would be stopped for a while in each tenth of a second.

    ``root`` is where ``proc`` and ``sys`` are.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Cores that the control groups this process is in are given, of those that are given less than all."""
    groups: list[str] = []
    with suppress(OSError, ValueError):
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    for _, controllers, path in (line.split(":", 2) for line in groups if line.count(":") >= 2):
        if not controllers or "cpu" in controllers.split(","):
            inside = PurePosixPath(path.lstrip("/"))
            for group in (inside, *inside.parents):  # a container may not see its own folder, but the root as it
                yield from _quota(root / "sys/fs/cgroup" / ("cpu" if controllers else "") / group)


def _quota(group: Path) -> Iterator[float]:
    """What one group is given: time in each period, in microseconds (cgroup v2: one file; v1: two)."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):  # no such file; "max" or -1 is all there is
            quota, period = " ".join((group / name).read_text(encoding="utf-8") for name in names).split()
            if int(quota) > 0:
                yield int(quota) / int(period)
