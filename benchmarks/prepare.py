"""Preparing rows: statistics pass and encoding, beside what the tutorial does before it trains.

    MULTIGATE_DATA=... python benchmarks/prepare.py --rounds 3

Census-Income's 199,523 training rows, 40 columns, from dictionary Parquet, from plain-string Parquet and from CSV.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.csv as pv
import pyarrow.parquet as pq

import tutorial
from machine import describe
from multigate.data.encoder import Encoder
from multigate.data.files import Source, open_table
from multigate.data.prepared import prepare
from multigate.data.split import Split
from multigate.datasets.census_income import census_schema
from multigate.datasets.fetch import fetch


def seconds(work: Callable[[], object]) -> float:
    """How long some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(describe())
    schema = census_schema(1)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tables = fetch("census-income", folder)
        whole = pq.read_table(tables / "train.parquet")
        rows = whole.num_rows
        pq.write_table(whole, folder / "plain.parquet", use_dictionary=False)
        pv.write_csv(whole, folder / "train.csv")
        valid = open_table(tables / "valid.parquet")
        sources = {"Parquet": tables / "train.parquet", "plain": folder / "plain.parquet", "CSV": folder / "train.csv"}
        types = {field.name: str(field.type) for field in whole.schema}

        def fit_encoder(source: Source) -> Encoder:
            return Encoder.fit(schema, source.batches(schema.columns(carried=False)))

        for number in range(rounds):
            times.setdefault("tutorial: pandas and LabelEncoder, test rows too", []).append(seconds(tutorial.load_data))
            for name, path in sources.items():
                source = open_table(path, types=types)
                fit = seconds(partial(fit_encoder, source))
                place = folder / f"{name}-{number}"
                work = partial(prepare, schema, source, valid, None, Split(), place)
                both = seconds(work)
                times.setdefault(f"{name}: statistics pass", []).append(fit)
                times.setdefault(
                    f"{name}: prepare (both passes, shards written, 49,881 validation rows too)", []
                ).append(both)
            again = seconds(work)
            times.setdefault("second start: shards reused", []).append(again)
    print("| | seconds (min to max) | training rows/s |")
    print("|---|---|---|")
    for name, values in times.items():
        middle = statistics.median(values)
        print(f"| {name} | {middle:.2f} ({min(values):.2f} to {max(values):.2f}) | {rows / middle:,.0f} |")


if __name__ == "__main__":
    main()
