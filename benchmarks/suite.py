"""Every benchmark in one go; ``make bench`` rewrites the tables of RESULTS.md, ``make bench-quick`` prints comparisons.

    MULTIGATE_DATA=... python benchmarks/suite.py
    MULTIGATE_DATA=... python benchmarks/suite.py --quick

Each script runs in a process of its own, so that none inherits another's memory, and RESULTS.md is written after each:
what it printed between markers takes the place of what stood between the same ones. Prose stays as it is.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from census import has_data
from machine import stamp
from quiet import PATIENCE
from results import RESULTS, block, blocks, replaced

FOLDER = Path(__file__).parent


class Part(NamedTuple):
    """A script, its words in full and quickly, and whether it needs Census-Income."""

    script: str
    full: tuple[str, ...] = ()
    quick: tuple[str, ...] | None = ()
    """None: it is left out."""
    census: bool = False

    def words(self, *, quick: bool) -> tuple[str, ...]:
        return (self.quick or ()) if quick else self.full


ONE = ("--rounds", "1")
SPARSE = ("lazy_adam", "rowwise_adagrad")
FEWER = ("--experts", "1", "4", "16", "64", "--features", "10", "40", "160")
"""Points of a curve in place of twice as many."""
PARTS = (
    Part("roofline.py", ("--rounds", "3"), ONE),
    Part("startup.py", ("--rounds", "3"), (*ONE, "--rows", "5000")),
    Part("train.py", ("--rounds", "3"), (*ONE, "--structures"), True),
    Part("train.py", ("--profile",), None, True),
    Part("kinds.py", ("--rounds", "3"), (*ONE, "--kinds", "the same, a task of 1,000 classes", "a vector of 768")),
    Part(
        "wide.py",
        ("--rounds", "2", "--rows", "98304", "--ways", *SPARSE),
        (*ONE, "--rows", "40960", "--vocabulary", "100000", "--ways", "lazy_adam"),
    ),
    Part("wide.py", ("--rounds", "2", "--growth", "--sizes", "1e4", "1e6", "1e8", "--steps", "6"), None),
    Part("prepare.py", ("--rounds", "3"), (*ONE, "--no-epoch"), True),
    Part("predict.py", ("--rounds", "2"), (*ONE, "--rows", "50000", "--no-tutorial"), True),
    Part("replicas.py", ("--rounds", "3"), (*ONE, "--runs", "40")),
    Part("growth.py", ("--rounds", "2", *FEWER, "--rows", "50000", "200000", "--picture"), None),
    Part("time_to_quality.py", (), None, True),
)


def run(part: Part, words: Sequence[str]) -> tuple[dict[str, str], str | None]:
    """The blocks a script printed, and what went wrong, if anything; what it says is passed on as it comes."""
    command = [sys.executable, str(FOLDER / part.script), *words]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    found = blocks("".join(lines))
    if process.returncode:
        return found, f"{part.script} ended with status {process.returncode}"
    return found, None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one round, no curves; RESULTS.md is left alone"
    )
    parser.add_argument("--threads", type=int, help="threads of torch (all cores)")
    parser.add_argument("--patience", type=float, help="seconds each script spends at most on a machine not quiet")
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", help="some of the scripts, such as train.py wide.py")
    arguments = parser.parse_args()
    common = [] if arguments.threads is None else ["--threads", str(arguments.threads)]
    patience = arguments.patience if arguments.patience is not None else (3.0 if arguments.quick else PATIENCE)
    common += ["--patience", f"{patience:g}"]
    began = time.perf_counter()
    problems = [
        problem
        for part in PARTS
        if (problem := measured(part, common, quick=arguments.quick, only=arguments.only)) is not None
    ]
    print(f"in all {time.perf_counter() - began:.0f} s", file=sys.stderr)
    if not arguments.quick and not problems and arguments.only is None:
        torch.set_num_threads(arguments.threads or torch.get_num_threads())
        rewrite({"head": block("head", f"`make bench`, {stamp()}.")})
    if problems:
        sys.exit("\n".join(["not measured:", *problems]))


def measured(part: Part, common: Sequence[str], *, quick: bool, only: Sequence[str] | None) -> str | None:
    """Run one part and write its tables; returns what went wrong."""
    if (only is not None and part.script not in only) or (quick and part.quick is None):
        return None
    words = part.words(quick=quick)
    named = " ".join((part.script, *words))
    if not (FOLDER / part.script).is_file():
        return f"{named}: there is no such script"
    if part.census and not has_data():
        return f"{named}: set MULTIGATE_DATA to the folder that holds census-income/"
    began = time.perf_counter()
    found, problem = run(part, [*words, *common])
    print(f"{named}: {time.perf_counter() - began:.0f} s\n", file=sys.stderr, flush=True)
    if not quick and found:
        rewrite(found)
    return problem if problem is not None or found else f"{named}: it printed no table between markers"


def rewrite(new: dict[str, str]) -> None:
    """Put new blocks into RESULTS.md."""
    RESULTS.write_text(replaced(RESULTS.read_text(encoding="utf-8"), new), encoding="utf-8")


if __name__ == "__main__":
    main()
