"""Preparing rows, and a raw file to the end of the first epoch, beside the tutorial and beside reading alone.

    MULTIGATE_DATA=... python benchmarks/prepare.py --rounds 3

Census-Income's 199,523 training rows of 40 columns, from Parquet that stores text as codes, from Parquet that stores it
plain, and from CSV; the 49,881 validation rows are always Parquet. The statistics pass is run alone. Preparing is that
pass, encoding, and writing the shards. What is left when the pass is taken off it is told once as it is, from what the
pass kept, and once where nothing is kept and every row is read again. Then 200,000 rows of 8 ids, each of a million
values.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq
import torch
from sklearn.preprocessing import LabelEncoder

import multigate as mg
import multigate.data.prepared as prepared_rows
import tutorial
from census import experiment, need_data
from machine import PRECISIONS, describe
from multigate.data.ahead import ahead
from multigate.data.encoder import Encoder
from multigate.data.files import Source, open_table
from multigate.data.loader import Loader
from multigate.data.prepared import prepare
from multigate.data.split import Split
from multigate.datasets.census_income import census_schema
from multigate.datasets.fetch import fetch
from quiet import LEGEND, Spread, Watch, options, spread
from race import Folders, trained
from results import show, table

SCHEMA = census_schema(1)
ROWS, IDS, VALUES = 200_000, 8, 1_000_000


class Prepared(NamedTuple):
    """Seconds of the statistics pass alone, and of preparing."""

    fit: float
    whole: float

    @property
    def rest(self) -> float:
        return self.whole - self.fit


def seconds(work: Callable[[], object]) -> float:
    """How long some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def write_sources(tables: Path, folder: Path) -> dict[str, Path]:
    """The training table as three files."""
    coded = pq.read_table(tables / "train.parquet")
    text = [(one.name, pa.string() if pa.types.is_dictionary(one.type) else one.type) for one in coded.schema]
    plain = coded.cast(pa.schema(text))
    pq.write_table(plain, folder / "plain.parquet", use_dictionary=False)
    pv.write_csv(plain, folder / "train.csv")
    names = ("Parquet, text as codes", "Parquet, plain text", "CSV")
    return dict(zip(names, (tables / "train.parquet", folder / "plain.parquet", folder / "train.csv"), strict=True))


def prepared(source: Source, valid: Source, folders: Folders, kept: int = prepared_rows.KEPT) -> Prepared:
    """Preparing with room to keep so many bytes, right after its first pass alone."""
    before, prepared_rows.KEPT = prepared_rows.KEPT, kept
    try:
        fit = seconds(lambda: Encoder.fit(SCHEMA, ahead(source.batches(SCHEMA.columns(carried=False), as_read=True))))
        whole = seconds(lambda: prepare(SCHEMA, source, valid, None, Split(), folders()))
    finally:
        prepared_rows.KEPT = before
    return Prepared(fit, whole)


def read_csv(path: Path) -> None:
    """What reading alone takes, as pyarrow does it if nothing is said."""
    with pv.open_csv(path) as reader:
        for _ in reader:
            pass


def second_start(one: mg.Experiment, folder: Path) -> None:
    """From the files' names to the first batch, where the rows are prepared."""
    train, valid = (open_table(path, types=one.schema.types) for path in (one.train, one.valid))
    part = prepare(one.schema, train, valid, None, one.split, folder).train
    batches = Loader(part, one.batch_size).epoch(0)
    next(batches)
    batches.close()


def from_raw_tutorial(threads: int) -> float:
    """Seconds that reading, encoding and one epoch take."""
    found = tutorial.train(epochs=1, threads=threads)
    return float(found["seconds_to_load"] + found["seconds"])


def passes(watch: Watch, tables: Path, folder: Path, rounds: int) -> list[str]:
    """The table of what preparing takes."""
    files, folders = write_sources(tables, folder), Folders(folder)
    types = {one.name: str(one.type) for one in pq.read_schema(tables / "train.parquet")}
    sources = {name: open_table(path, types=types) for name, path in files.items()}
    valid = open_table(tables / "valid.parquet")
    rows, others, tests = (pq.read_metadata(tables / f"{name}.parquet").num_rows for name in ("train", "valid", "test"))
    one, done = experiment(tables, "float32"), folders()
    second_start(one, done)
    alone = watch.in_turn(
        {
            "load": partial(seconds, tutorial.load_data),
            "csv": partial(seconds, partial(read_csv, files["CSV"])),
            "second": partial(seconds, partial(second_start, one, done)),
        },
        rounds,
    )
    once = watch.in_turn({name: partial(prepared, source, valid, folders) for name, source in sources.items()}, rounds)
    twice = watch.in_turn(
        {name: partial(prepared, source, valid, folders, 0) for name, source in sources.items()}, rounds
    )
    csv = spread(alone["csv"], float)
    lines = [
        line(
            f"tutorial: pandas and LabelEncoder, {tests + others:,} test rows too", spread(alone["load"], float), rows
        ),
        line("CSV: `pyarrow.csv.open_csv` alone", csv, rows),
    ]
    for name in sources:
        lines += [
            line(f"{name}: statistics pass", spread(once[name], lambda run: run.fit), rows),
            line(f"{name}: preparing", spread(once[name], lambda run: run.whole), rows),
            line("of it, encoding and writing", spread(once[name], lambda run: run.rest), rows + others),
            line("the same, every row read again", spread(twice[name], lambda run: run.rest), rows + others),
        ]
    lines.append(line("second start, to the first batch", spread(alone["second"], float), None))
    share = csv.middle / spread(once["CSV"], lambda run: run.whole).middle
    disturbed = any(run.disturbed for found in (alone, once, twice) for runs in found.values() for run in runs)
    return [
        table(["", "seconds", "rows/s"], lines),
        f"Rows/s are of the {rows:,} training rows; those of encoding and writing are of the {rows + others:,} rows "
        f"written. Preparing from CSV has {share:.0%} of the rows/s of reading it alone.",
        *([LEGEND] if disturbed else []),
    ]


def ids(watch: Watch, folder: Path, rounds: int) -> list[str]:
    """The table of what preparing ids takes, most of whose values are seen once, few often."""
    draw, folders = np.random.default_rng(0), Folders(folder)
    drawn = {f"id{i}": (VALUES * draw.random(ROWS) ** 2).astype(np.int64) for i in range(IDS)}
    label = draw.integers(0, 2, ROWS)
    schema = mg.Schema(features=[{"name": name, "kind": "category"} for name in drawn], tasks=["label"])
    lines = []
    for kind, prefix in (("whole numbers", None), ("texts", "user")):
        columns = drawn if prefix is None else {k: [f"{prefix}{one:x}" for one in v.tolist()] for k, v in drawn.items()}
        path = folder / "ids.parquet"
        pq.write_table(pa.table({**columns, "label": label}), path)
        sides = {
            "tutorial": partial(seconds, partial(labelled, path)),
            "multigate": partial(
                seconds, lambda path=path: prepare(schema, open_table(path), None, None, Split(), folders())
            ),
        }
        found = {name: spread(runs, float) for name, runs in watch.in_turn(sides, rounds).items()}
        lines.append(line(f"{kind}: pandas and LabelEncoder", found["tutorial"], ROWS))
        lines.append(line(f"{kind}: preparing", found["multigate"], ROWS))
    return [
        f"\n{ROWS:,} rows of {IDS} ids, each of {VALUES:,} values, from Parquet:",
        table(["", "seconds", "rows/s"], lines),
    ]


def labelled(path: Path) -> None:
    """What the tutorial does with a table of categories."""
    for _, column in pd.read_parquet(path).items():
        LabelEncoder().fit_transform(column)


def line(name: str, found: Spread, rows: int | None) -> list[str]:
    return [name, found.text(3), "" if rows is None else f"{rows / found.middle:,.0f}"]


def first_epoch(watch: Watch, tables: Path, folder: Path, rounds: int, threads: int) -> list[str]:
    """The table of what it takes to have trained for an epoch, beside the tutorial."""
    folders = Folders(folder / "epochs")

    def side(precision: str) -> Callable[[], float]:
        return lambda: trained(experiment(tables, precision), folders)[1]

    sides = {"tutorial, float32": partial(from_raw_tutorial, threads)}
    sides |= {f"multigate, {precision}": side(precision) for precision in PRECISIONS}
    found = watch.in_turn(sides, rounds)
    yardstick = spread(found["tutorial, float32"], float).middle
    lines = []
    for name, runs in found.items():
        taken = spread(runs, float)
        lines.append([name, taken.text(2), f"{yardstick / taken.middle:.2f}"])
    disturbed = any(run.disturbed for runs in found.values() for run in runs)
    head = ["raw file to the end of the first epoch", "seconds", "x tutorial"]
    return [table(head, lines), *([LEGEND] if disturbed else [])]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--no-epoch", action="store_true", help="leave out training, of which the tutorial's is slow")
    arguments = parser.parse_args()
    need_data()
    torch.set_num_threads(arguments.threads)
    print(describe())
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tables = fetch("census-income", folder)
        watch, rounds = Watch(arguments.patience), arguments.rounds
        parts = [*passes(watch, tables, folder, rounds), *ids(watch, folder, rounds)]
        if not arguments.no_epoch:
            parts += first_epoch(watch, tables, folder, rounds, arguments.threads)
    show("prepare", *parts)


if __name__ == "__main__":
    main()
