"""Random small tables through init, train and score: a model comes out, or a kind refusal, and nothing half-written.

The suite runs a few; ``python tests/test_fuzz.py --tables 2000`` runs as many as asked and tells what came of them.
"""

import argparse
import contextlib
import datetime
import decimal
import io
import json
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from multigate.bundle import load
from multigate.cli import main

SECONDS = 60
"""What one table may take before it counts as a hang."""
Random = np.random.Generator

WORDS = ["a", "b", "red", "blue", "0", "1", "NA", "null", "", " ", "é", "🙂🙂", "x\ty", "a,b", 'say "hi"', "two\nlines",
         "nul\0nul", "007", "1e5", "-", "2024-01-01", "true", "=1+1", "\u202eabc", "z" * 3_000]  # fmt: skip
NAMES = ["user", "item id", "price", "x.y", "naïve", "🙂", "on", "no", "null", "1", "2024-01-01", 'q"q', "it's", "a|b",
         "a/b", "line\nbreak", " padded ", "label", "features", "kind", "{x}", "%s", "#hash", "c:d", "[1]", "~",
         "n" * 300]  # fmt: skip
LABELS = ["click", "buy", "watch", "y", "target 1", "no", "1"]
STRUCTURES = ["mmoe", "omoe", "shared_bottom", "single_task"]


def a_column(random: Random, rows: int) -> pa.Array:
    """Values of one kind or another, some of them missing."""
    kinds: list[Callable[[], Any]] = [
        lambda: random.integers(-5, 50, rows),
        lambda: random.integers(0, 2**62, rows),
        lambda: random.normal(size=rows),
        lambda: random.choice([0.0, -0.0, 1e-320, 1e38, -1e38, 1e300, np.inf, -np.inf, np.nan, 3.5], rows),
        lambda: np.exp(random.normal(0, 6, rows)),
        lambda: random.choice(np.array(WORDS, dtype=object), rows),
        lambda: np.array([f"id{one}" for one in random.integers(0, 10**9, rows)], dtype=object),
        lambda: random.random(rows) < 0.3,
        lambda: np.zeros(rows),
        lambda: [None] * rows,
        lambda: [
            datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=int(h)) for h in random.integers(0, 9_999, rows)
        ],
        lambda: [datetime.date(1, 1, 1) + datetime.timedelta(days=int(d)) for d in random.integers(0, 3_652_058, rows)],
        lambda: pa.array(random.integers(-(2**60), 2**60, rows), pa.timestamp("ns", "UTC")),
        lambda: [[int(one) for one in random.integers(0, 9, random.integers(0, 5))] for _ in range(rows)],
        lambda: [[str(one) for one in random.choice(WORDS, random.integers(0, 4))] for _ in range(rows)],
        lambda: [{"a": int(one), "b": str(one)} for one in random.integers(0, 9, rows)],
        lambda: [decimal.Decimal(int(one)).scaleb(-2) for one in random.integers(-(10**6), 10**6, rows)],
        lambda: [bytes(random.integers(0, 256, 3).tolist()) for _ in range(rows)],
        lambda: [[float(one) for one in random.normal(size=3)] for _ in range(rows)],
        lambda: pa.array(random.choice(["u", "v", "w"], rows)).dictionary_encode(),
        lambda: pa.array(random.integers(0, 10**6, rows), pa.duration("ms")),
    ]
    values = kinds[random.integers(len(kinds))]()
    array = values if isinstance(values, pa.Array) else pa.array(values)
    return with_nulls(random, array, random.choice([0, 0, 0.1, 0.9]))


def a_label(random: Random, rows: int) -> pa.Array:
    """Mostly something that can be learnt."""
    good: list[Callable[[], Any]] = [
        lambda: (random.random(rows) < 0.3).astype(int),
        lambda: random.random(rows) < 0.4,
        lambda: (random.random(rows) < 0.5).astype(float),
        lambda: random.choice(np.array(["yes", "no"], dtype=object), rows),
        lambda: random.normal(size=rows),
        lambda: np.exp(random.normal(0, 8, rows)),
        lambda: random.choice(np.array(["low", "mid", "high"], dtype=object), rows),
    ]
    bad: list[Callable[[], Any]] = [
        lambda: random.random(rows) < 0.02,
        lambda: np.ones(rows, dtype=int),
        lambda: [None] * rows,
        lambda: random.choice([0, 1, 2], rows),
        lambda: random.choice([0.0, 1e38, np.inf], rows),
        lambda: random.choice(np.array(WORDS, dtype=object), rows),
    ]
    kinds = bad if random.random() < 0.12 else good
    array = pa.array(kinds[random.integers(len(kinds))]())
    return with_nulls(random, array, random.choice([0, 0, 0.2]))


def with_nulls(random: Random, array: pa.Array, share: float) -> pa.Array:
    if not share:
        return array
    taken = np.where(random.random(len(array)) < share, None, np.arange(len(array)))
    return array.take(pa.array(taken, pa.int64()))


def write_table(random: Random, folder: Path) -> tuple[str, list[str]]:
    """A file, damaged now and then, and the names of its labels."""
    rows = int(random.choice([0, 1, 2, 5, 30, 120, 400], p=[0.02, 0.02, 0.02, 0.04, 0.1, 0.4, 0.4]))
    names = random.permutation(NAMES)[: random.integers(1, 9)].tolist()
    labels = random.permutation([name for name in LABELS if name not in names])[: random.integers(1, 4)].tolist()
    columns = {name: a_column(random, rows) for name in names} | {name: a_label(random, rows) for name in labels}
    order = random.permutation(list(columns))
    table = pa.table({str(name): columns[name] for name in order})
    parquet = random.random() < 0.5
    path = folder / ("t.parquet" if parquet else "t.csv")
    if parquet:
        pq.write_table(table, path, row_group_size=int(random.choice([7, 100, 10_000])))
    else:
        write_csv(table, path)
    if random.random() < 0.12:
        damage(random, path)
    return path.name, [str(name) for name in labels]


def write_csv(table: pa.Table, path: Path) -> None:
    """As text, whatever the types: nested values and bytes as Python prints them."""
    plain = {}
    for name in table.column_names:
        array = table[name]
        if pa.types.is_nested(array.type) or pa.types.is_binary(array.type) or pa.types.is_duration(array.type):
            array = pa.array([None if one is None else str(one) for one in array.to_pylist()], pa.string())
        plain[name] = array.combine_chunks().dictionary_decode() if pa.types.is_dictionary(array.type) else array
    pyarrow.csv.write_csv(pa.table(plain), path)


def damage(random: Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    match random.integers(4):
        case 0:
            content = content[: int(len(content) * random.random())]
        case 1:
            for at in random.integers(0, max(len(content), 1), 8):
                content[at : at + 1] = bytes([int(random.integers(256))])
        case 2:
            content += bytes(random.integers(0, 256, 50).tolist())
        case _:
            content = bytearray("\ufeff".encode()) + content
    path.write_bytes(bytes(content))


def commands(random: Random, table: str, labels: list[str]) -> list[list[str]]:
    """init, train, score and predict; now and then with something that does not fit."""
    tasks = list(labels)
    if len(tasks) > 1 and random.random() < 0.25:
        tasks[1] = f"{tasks[1]}|{tasks[0]}"
    if random.random() < 0.05:
        tasks.append("nowhere")
    structure = str(random.choice(STRUCTURES))
    settings = [f"sharing.structure={structure}", "sharing.hidden=[8]", "tower=[4]", "embedding.dim=4", "epochs=1"]
    if structure in ("mmoe", "omoe"):
        settings.append("sharing.experts=2")
    extras = ["balance=uncertainty", "split.by=group", "split.test=0.2", "recalibrate=isotonic", "batch_size=7",
              "seed=3", "optimizer.learning_rate=100", "optimizer.learning_rate=1e20", "split.valid=0.001",
              "split.valid=0.9", "schema.funnel=loose", "monitor=click/auc", "precision=bfloat16"]  # fmt: skip
    settings += [str(one) for one in random.choice(extras, random.integers(0, 3), replace=False)]
    typed = [word for setting in settings for word in ("--set", setting)]
    return [
        ["init", table, "--set", f"tasks={','.join(tasks)}"],
        ["train", "x.yaml", "--out", "run", "--device", "cpu", *typed],
        ["score", "run", table, "--replicates", "3"],
        ["score", "run", table, "--out", "predictions.parquet"],
    ]


class Hang(Exception):
    """A command took too long."""


def run(words: list[str]) -> tuple[int, str, str]:
    """A command in this process: exit code, what it printed, what it said on stderr."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["multigate", *words]

    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        sys.argv = before
    return code, out.getvalue(), err.getvalue()


def one_table(seed: int, folder: Path) -> str:
    """What came of one random table: "model", or the verb that refused it. Raises AssertionError for a fault."""
    random = np.random.default_rng(seed)
    table, labels = write_table(random, folder)
    for words in commands(random, table, labels):
        before = {path.name for path in folder.iterdir()}
        code, out, err = run(words)
        if code == 2 and "Usage:" not in err:
            said = [line for line in err.splitlines() if line.startswith("error: ")]
            assert len(said) == 1, f"{words}: not one sentence but {err!r}"
            assert err.strip().endswith(said[0]), f"{words}: something follows the error: {err!r}"
            assert len(said[0]) < 1_000, f"{words}: {len(said[0])} characters: {said[0][:300]}"
            assert "valid YAML" not in said[0], f"the draft cannot be read: {said[0]}"
            left = {path.name for path in folder.iterdir()} - before
            assert not left, f"{words}: it refused ({said[0]}) and left {left}"
            return words[0] if "--out" not in words or words[0] != "score" else "predict"
        assert code == 0, f"{words}: exit code {code}: {err}"
        if words[0] == "init":
            (folder / "x.yaml").write_text(out, encoding="utf-8")
    check_model(folder)
    return "model"


def check_model(folder: Path) -> None:
    """A whole run, and predictions that are numbers."""
    schema = load(folder / "run").schema
    json.loads((folder / "run" / "summary.json").read_text())
    predicted = pq.read_table(folder / "predictions.parquet")
    assert predicted.num_rows > 0
    for task in schema.tasks:
        if task.kind == "binary":
            values = predicted[task.name].to_numpy()
            assert ((values >= 0) & (values <= 1)).all(), f"{task.name}: {values.min()} to {values.max()}"
    leftover = [path.name for path in folder.rglob("*") if "writing" in path.name or path.name.endswith(".old")]
    assert not leftover, leftover


@pytest.mark.parametrize("seed", range(40))
def test_a_random_table_ends_in_a_model_or_a_kind_refusal(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one_table(seed, tmp_path)


def fuzz(tables: int, first: int) -> int:
    """Run many; print every fault with its seed and what came of the rest. Returns the number of faults."""
    warnings.simplefilter("error")
    ended: Counter[str] = Counter()
    slowest, faults, began = (0.0, 0), 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as base:
        for seed in range(first, first + tables):
            folder = Path(base) / str(seed)
            folder.mkdir()
            start = time.perf_counter()
            with contextlib.chdir(folder):
                try:
                    ended[one_table(seed, folder)] += 1
                except Exception as error:
                    faults += 1
                    print(f"seed {seed}: {type(error).__name__}: {error}"[:1_500], flush=True)
            slowest = max(slowest, (time.perf_counter() - start, seed))
            shutil.rmtree(folder)
    print(f"{tables} tables in {time.perf_counter() - began:.0f} s: {dict(ended)}, {faults} faults; "
          f"slowest {slowest[0]:.1f} s (seed {slowest[1]})")  # fmt: skip
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=1_000, help="first seed")
    asked = parser.parse_args()
    sys.exit(1 if fuzz(asked.tables, asked.first) else 0)
