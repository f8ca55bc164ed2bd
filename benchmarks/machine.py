"""Where and when a figure was measured: commit, processor, versions."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

import torch

from multigate.precision import choose_precision

ROOT = Path(__file__).parent.parent
NATIVE = choose_precision("auto", torch.device("cpu"))
PRECISIONS = tuple(dict.fromkeys(("float32", NATIVE)))
"""Those that are measured: bfloat16 where the processor multiplies it; elsewhere it takes many times as long."""


def describe() -> str:
    """One line for the head of a result."""
    models = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = models[0] if models else platform.processor()
    bf16 = "bf16" if NATIVE == "bfloat16" else "no bf16"
    return (
        f"commit {_commit()}; {processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, {bf16}; "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def stamp() -> str:
    """The same, with the day."""
    return f"{datetime.date.today()}; {describe()}"


def available_memory() -> int:
    """Bytes that a process may still take."""
    found = [line.split()[1] for line in _lines("/proc/meminfo") if line.startswith("MemAvailable")]
    return int(found[0]) * 1024 if found else 8 << 30


def _commit() -> str:
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", "src", "benchmarks/*.py")
    return (commit or "unknown") + (" with changes" if changed else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
