"""Cores that may be used: by affinity, and by the quota of a container."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from multigate.cores import usable_cores

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
needs_two = pytest.mark.skipif(ALL < 2, reason="this machine has one core")
V2, V1 = "0::/a/b\n", "3:memory:/x\n1:cpu,cpuacct:/a/b\n0::/\n"


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@needs_two
@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        (V2, {}, ALL),
        (V2, {"a/b/cpu.max": "max 100000\n"}, ALL),
        (V2, {"a/b/cpu.max": "100000 100000\n"}, 1),
        (V2, {"a/b/cpu.max": "190000 100000\n"}, 1),
        (V2, {"a/b/cpu.max": "20000 100000\n"}, 1),
        (V2, {"a/b/cpu.max": "6400000 100000\n"}, ALL),
        (V2, {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 50000\n"}, 1),
        (V2, {"cpu.max": "100000 100000\n"}, 1),
        (V2, {"other/cpu.max": "100000 100000\n"}, ALL),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "-1\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, ALL),
        (V1, {"cpu/a/b/cpu.cfs_quota_us": "150000\n", "cpu/a/b/cpu.cfs_period_us": "100000\n"}, 1),
        (V1, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        (V1, {"memory/x/cpu.cfs_quota_us": "100000\n", "memory/x/cpu.cfs_period_us": "100000\n"}, ALL),
        ("nonsense\n", {"cpu.max": "100000 100000\n"}, ALL),
        (V2, {"a/b/cpu.max": "what is this\n"}, ALL),
    ],
)
def test_a_quota_of_any_group_above_counts(tmp_path: Path, groups: str, files: dict[str, str], cores: int) -> None:
    root = machine(tmp_path, groups, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert usable_cores(root) == cores


def test_without_control_groups_affinity_decides(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == ALL


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_a_process_bound_to_a_core_has_one() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " \
        "from multigate.cores import usable_cores; print(usable_cores())"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"


@needs_two
def test_the_command_line_computes_with_no_more_threads_than_there_are_cores() -> None:
    """Where OpenMP would see more: a quota is no affinity. What the user asks for stays."""
    code = """if True:
        import os, multigate.cli as cli, multigate.cores as cores
        cores.usable_cores = lambda: 1
        cli.app = lambda: print(os.environ["OMP_NUM_THREADS"], __import__("torch").get_num_threads())
        cli.main()"""
    for asked, told in ({}, "1 1"), ({"OMP_NUM_THREADS": "2"}, "2 2"):
        environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | asked
        done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == told
