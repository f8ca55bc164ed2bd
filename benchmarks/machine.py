"""Where a figure was measured: commit, processor, versions."""

import platform
import subprocess
from pathlib import Path

import torch


def describe() -> str:
    """One line for the head of a result."""
    root = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    models = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    processor = models[0] if models else platform.processor()
    bf16 = "bf16" if torch.cpu._is_avx512_bf16_supported() else "no bf16"
    return (
        f"commit {commit or 'unknown'}; {processor}, {torch.get_num_threads()} threads, {bf16}; "
        f"torch {torch.__version__}, Python {platform.python_version()}"
    )


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []
