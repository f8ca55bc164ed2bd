"""Predictions over HTTP beside those in Python: one raw row, and lists of a thousand, by engine.

    MULTIGATE_DATA=... python benchmarks/serve.py --rounds 3

The tutorial's MMoE on Census-Income, trained for an epoch and exported, behind ``multigate serve`` in a process of its
own, on one thread. The client asks by one connection that stays open, and shares the machine. The health check, which
computes nothing, tells what HTTP alone takes.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import torch

import multigate as mg
from census import experiment, need_data, scored_rows
from machine import describe
from multigate.datasets.fetch import fetch
from predict import ENGINES, SINGLE, Figures, latencies, rate
from quiet import LEGEND, Watch, options, spread
from results import table

LIST = 1_000
"""Rows of one request."""


@contextmanager
def served(folder: Path, engine: str) -> Iterator[HTTPConnection]:
    """A connection to a server of the bundle in a folder."""
    command = [sys.executable, "-m", "multigate", "serve", str(folder), "--engine", engine, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        found = re.search(r"http://([^:]+):(\d+)", server.stderr.readline())
        assert found is not None
        connection = HTTPConnection(found[1], int(found[2]))
        try:
            yield connection
        finally:
            connection.close()
            server.terminate()


def ask(connection: HTTPConnection, body: bytes | None, path: str = "/predict") -> None:
    connection.request("GET" if body is None else "POST", path, body)
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(content)


def over_http(folder: Path, engine: str, single: list[bytes], lists: list[bytes]) -> dict[str, Figures]:
    """Of each way to ask."""
    with served(folder, engine) as connection:
        live = latencies(lambda _: ask(connection, None, "/v2/health/live"), single)
        return {
            "nothing": live,
            "one": latencies(partial(ask, connection), single),
            "many": rate(map(partial(ask, connection), lists), LIST * len(lists)),
        }


def in_python(bundle: mg.Bundle, single: list[Any], lists: list[Any]) -> dict[str, Figures]:
    return {
        "one": latencies(bundle.predict, single),
        "many": rate(map(bundle.predict, lists), sum(map(len, lists))),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--lists", type=int, default=20, help=f"requests of {LIST:,} rows")
    arguments = parser.parse_args()
    need_data()
    torch.set_num_threads(1)
    print(describe())
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tables = fetch("census-income", folder)
        mg.train(experiment(tables, "float32"), folder / "run", quiet=True).bundle().export(folder / "exported")
        rows = scored_rows(tables).slice(0, LIST * arguments.lists).to_pylist()
        single, lists = rows[:SINGLE], [rows[at : at + LIST] for at in range(0, len(rows), LIST)]
        bodies = [json.dumps(row).encode() for row in single]
        requests = [json.dumps({"rows": some}).encode() for some in lists]
        sides = {}
        for engine in ENGINES:
            bundle = mg.load(folder / "exported", engine=engine)
            sides[f"Python, {engine}"] = partial(in_python, bundle, single, lists)
            sides[f"HTTP, {engine}"] = partial(over_http, folder / "exported", engine, bodies, requests)
        found = Watch(arguments.patience).in_turn(sides, arguments.rounds)
    lines = []
    for name, runs in found.items():
        columns = [spread(runs, lambda run, at=at: run["one"][at]).text(3) for at in ("p50", "p99")]
        nothing = spread(runs, lambda run: run["nothing"]["p50"]).text(3) if "nothing" in runs[0].value else ""
        lines.append([name, *columns, nothing, spread(runs, lambda run: run["many"]["rows/s"]).text()])
    print(table(["", "one row: p50, ms", "p99, ms", "health check: p50, ms", f"lists of {LIST:,}: rows/s"], lines))
    if any(run.disturbed for runs in found.values() for run in runs):
        print(LEGEND)


if __name__ == "__main__":
    main()
