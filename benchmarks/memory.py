"""Anonymous memory while preparing and training does not grow with the rows of the table.

    python benchmarks/memory.py 1000000 20000000

Each size runs in a process of its own: a simulated feed is written, then prepared and trained for some steps' worth
of one epoch. What is watched is the process's anonymous memory (RssAnon): pages of mapped files are the system's.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from machine import describe


def anonymous() -> float:
    """Anonymous memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) / 1024


def watched(rows: int) -> dict[str, float]:
    """Peaks of anonymous memory in MB by stage, and seconds."""
    import torch

    import multigate as mg
    from multigate.datasets.feed import Feed, feed_schema, write_feed

    torch.set_num_threads(2)
    peaks: dict[str, float] = {}
    stage = "import"
    done = threading.Event()
    run = Path()

    def watch() -> None:
        while not done.wait(0.02):
            now = "train" if (run / "prepared").is_dir() else stage
            peaks[now] = max(peaks.get(now, 0.0), anonymous())

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        stage = "write the feed"
        began = time.perf_counter()
        write_feed(Feed(rows=rows, users=20_000, items=5_000), folder)
        stage, run = "prepare", folder / "run"
        prepared = time.perf_counter()
        experiment = mg.Experiment(
            schema=feed_schema(),
            train=str(folder / "train.parquet"),
            valid=str(folder / "valid.parquet"),
            sharing=mg.MMoE(experts=2, hidden=(16,)),
            tower=(8,),
            embedding={"dim": 4},
            epochs=1,
            batch_size=16_384,
        )
        mg.train(experiment, run, quiet=True)
        done.set()
        return {
            **peaks,
            "seconds to write": prepared - began,
            "seconds to prepare and train": time.perf_counter() - prepared,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=int, nargs="*", default=[1_000_000, 20_000_000])
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(watched(arguments.one)))
        return
    print(describe())
    results = {}
    for rows in arguments.rows:
        command = [sys.executable, __file__, "--one", str(rows)]
        results[rows] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print("| | " + " | ".join(f"{rows:,} rows" for rows in results) + " |")
    print("|---" * (len(results) + 1) + "|")
    for name in next(iter(results.values())):
        unit = "s" if name.startswith("seconds") else "MB"
        print(f"| {name} | " + " | ".join(f"{result[name]:,.0f} {unit}" for result in results.values()) + " |")


if __name__ == "__main__":
    main()
