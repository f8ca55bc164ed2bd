"""Tables that are not what they should be, or only look so."""

import base64
import bz2
import datetime as dt
import gzip
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import good
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import yaml
from case import Case, Make

from multigate.sharing import MMoE

ROWS = good.ROWS
RISING = [float(at) for at in range(ROWS)]
HALVES = [0, 1] * (ROWS // 2)
COLOUR, PRICE = {"name": "colour", "kind": "category"}, {"name": "price", "kind": "number"}
CLICK, BUY = {"name": "click"}, {"name": "buy", "given": "click"}
RATING, SECONDS = {"name": "rating", "kind": "multiclass"}, {"name": "seconds", "kind": "regression"}


def one_of(value: Any, at: int = 6) -> list[Any]:
    """Numbers that rise from 0 with one value in their midst, in row 7; all text where that is text."""
    cast = str if isinstance(value, str) else float
    return [value if row == at else cast(number) for row, number in enumerate(RISING)]


def init(name: str = "rows.parquet", tasks: str = "click") -> list[str]:
    return ["init", name, "--set", f"tasks={tasks}"]


def train(folder: Path, data: dict[str, Any]) -> list[str]:
    text = yaml.safe_dump(data, allow_unicode=True, sort_keys=False)
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    return ["train", "x.yaml", "--out", "run"]


def written(name: str, content: str | bytes) -> Make:
    """A file of this content, met by ``init``."""

    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return init(name)

    return make


def placed(make: Callable[[Path], object], name: str = "rows.csv") -> Make:
    """What is made under this name, met by ``init``."""

    def place(folder: Path) -> list[str]:
        make(folder / name)
        return init(name)

    return place


def broken(change: Callable[[bytes], bytes], name: str = "rows.parquet", called: str = "") -> Make:
    """The good table with its bytes changed (and called otherwise), met by ``init``."""

    def make(folder: Path) -> list[str]:
        path = good.table(folder / name)
        content = path.read_bytes()
        path.unlink()
        return written(called or name, change(content))(folder)

    return make


def drafts(tasks: str = "click", rows: int = ROWS, **columns: Any) -> Make:
    """The good table with some columns replaced, met by ``init``."""

    def make(folder: Path) -> list[str]:
        good.table(folder / "rows.parquet", rows, **columns)
        return init(tasks=tasks)

    return make


def trains(
    features: Sequence[Any] = (COLOUR, PRICE),
    tasks: Sequence[Any] = (CLICK,),
    *,
    schema: dict[str, Any] | None = None,
    split: dict[str, Any] | None = None,
    valid: dict[str, Any] | None = None,
    rows: int = ROWS,
    **columns: Any,
) -> Make:
    """The good table with some columns replaced, met by ``train``; ``valid`` are changes of a table of its own."""

    def make(folder: Path) -> list[str]:
        good.table(folder / "rows.parquet", rows, **columns)
        data = good.experiment().to_dict()
        data["schema"] |= {"features": list(features), "tasks": list(tasks)} | (schema or {})
        if split is not None:
            data["split"] = split
        if valid is not None:
            good.table(folder / "valid.parquet", **valid)
            data["valid"] = "valid.parquet"
        return train(folder, data)

    return make


def drafted(**columns: Any) -> Make:
    """The good table with some columns replaced, met by ``train`` with what ``init`` drafted."""

    def make(folder: Path) -> list[str]:
        from multigate.draft import draft

        good.table(folder / "rows.parquet", **columns)
        small = ("epochs=1", "precision=float32", "sharing.experts=2", "sharing.hidden=[4]", "tower=[4]")
        (folder / "x.yaml").write_text(draft("rows.parquet", ["click"], small), encoding="utf-8")
        return ["train", "x.yaml", "--out", "run"]

    return make


def predicts(rows: int = ROWS, **columns: Any) -> Make:
    """A run, and the good table with some columns replaced for it to predict."""

    def make(folder: Path) -> list[str]:
        good.trained(folder)
        good.table(folder / "new.parquet", rows, **columns)
        return ["score", "run", "new.parquet", "--out", "predicted.parquet"]

    return make


def scores(**columns: Any) -> Make:
    """A run, and the good table with some columns replaced for it to be scored on."""

    def make(folder: Path) -> list[str]:
        good.trained(folder)
        good.table(folder / "new.parquet", **columns)
        return ["score", "run", "new.parquet", "--replicates", "0"]

    return make


def described(table: Callable[[], Any]) -> Make:
    """A table in memory, met by ``mg.infer_schema(table, ["click"])``."""

    def make(_: Path) -> Callable[[], object]:
        import multigate as mg

        data = table()
        return lambda: mg.infer_schema(data, ["click"])

    return make


def streamed(second: dict[str, list[Any]] | None) -> pa.RecordBatchReader:
    """A reader of a good batch and a second one, or of an error in its place."""
    first = pa.record_batch({"a": [1, 2], "click": [0, 1]})

    def batches() -> Iterator[pa.RecordBatch]:
        yield first
        if second is None:
            raise OSError("the line is dead")
        yield pa.record_batch(second)

    return pa.RecordBatchReader.from_batches(first.schema, batches())


def trained(out: Callable[[], Any], **options: Any) -> Make:
    """A folder and what else is given to ``mg.train(experiment, out, ...)``."""

    def make(_: Path) -> Callable[[], object]:
        import multigate as mg

        return lambda: mg.train(good.experiment(), out(), quiet=True, **options)

    return make


def handed_over(**tables: Any) -> Make:
    """Tables in memory, met by ``mg.train(experiment, "run", tables=tables)``."""
    return trained(lambda: "run", tables=tables)


def bundled(rows: Callable[[], Any]) -> Make:
    """Rows in memory, met by ``bundle.predict(rows)``."""

    def make(folder: Path) -> Callable[[], object]:
        import multigate as mg

        bundle, given = mg.load(good.trained(folder)), rows()
        return lambda: bundle.predict(given)

    return make


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns | {"click": [0, 1] * 20})


def row(**cells: Any) -> dict[str, Any]:
    return {"colour": "red", "price": 1.0, "tags": ["new"], "at": None} | cells


def csv(*more: str, names: str = "colour,price,click") -> str:
    """Forty rows and ``more`` behind them."""
    rows = [f"{colour},{at}.5,{at % 2}" for at, colour in enumerate(["red", "green"] * 20)]
    return "\n".join([names, *rows, *more]) + "\n"


def lines(*more: str) -> str:
    """Those forty rows as JSON lines, and ``more`` behind them."""
    rows = [line.split(",") for line in csv().split()[1:]]
    return "\n".join([f'{{"colour": "{c}", "price": {p}, "click": {label}}}' for c, p, label in rows] + [*more]) + "\n"


def of_decimals(*more: str) -> Make:
    """Those forty rows and ``more``, met by a training whose schema says that prices are decimals."""

    def make(folder: Path) -> list[str]:
        (folder / "rows.csv").write_text(csv(*more))
        schema = {"features": [COLOUR, PRICE], "tasks": [CLICK], "types": {"price": "decimal128(4, 2)"}}
        return train(folder, {"schema": schema, "train": "rows.csv", "epochs": 1})

    return make


def late(value: str) -> Make:
    """Whole numbers for longer than the first 8 MB, then this."""
    return written("rows.csv", "colour,price,click\n" + "red,1,0\ngreen,2,1\n" * 600_000 + f"red,{value},0\n")


def zeroed(content: bytes) -> bytes:
    at = len(content) // 8
    return content[:at] + bytes(at) + content[2 * at :]


def of_128_bits(content: bytes) -> bytes:
    """The file with a whole number of 64 bits called one of 128, in what it says of its types to Arrow alone."""
    told = re.search(rb"/////[A-Za-z0-9+/=]+", content)
    assert told is not None
    types = base64.b64decode(told[0])
    at = types.rfind(b"\x40\0\0\0")
    return content.replace(told[0], base64.b64encode(types[:at] + b"\x80" + types[at + 1 :]))


PARQUET = "Parquet files"
STRUCT = [{"a": at} for at in range(ROWS)]
MAP = pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64()))
DURATION = pa.array(range(ROWS), pa.duration("s"))
PARQUET_CASES = [
    Case(PARQUET, "cut off in the middle", broken(lambda whole: whole[: len(whole) // 2]), ("not a whole", "cut off")),
    Case(PARQUET, "cut off just before its end", broken(lambda whole: whole[:-5]), ("not a whole", "write or fetch")),
    Case(PARQUET, "of 0 bytes", written("rows.parquet", b""), ("is empty (0 bytes)",)),
    Case(PARQUET, "of 4 bytes", written("rows.parquet", b"PAR1"), ("not a whole Parquet file",)),
    Case(PARQUET, "zeros in its midst", broken(zeroed), ("is damaged",)),
    Case(PARQUET, "encrypted", broken(lambda whole: b"PARE" + whole[4:-4] + b"PARE"), ("is encrypted",)),
    Case(PARQUET, "encrypted, its footer too", broken(lambda whole: whole[:-4] + b"PARE"), ("is encrypted",)),
    Case(PARQUET, "whole numbers of 128 bits", broken(of_128_bits), ("holds what Arrow does not read", "more than 64")),
    Case(PARQUET, "CSV called .parquet", broken(bytes, "rows.csv", "rows.parquet"), ("not a Parquet file", "name it")),
    Case(PARQUET, "gzip called .parquet", broken(gzip.compress), ("compressed with gzip",)),
    Case(PARQUET, "no rows", drafts(rows=0), ("has column names but no rows",)),
    Case(PARQUET, "no columns", drafts(**dict.fromkeys(good.columns(1))), ("rows.parquet has no columns",)),
    Case(PARQUET, "an extension that is not read", written("rows.xlsx", b"PK"), ("unsupported extension", ".csv.gz")),
]

ARROW = "Arrow files"


def as_arrow(change: Callable[[bytes], bytes] = bytes, called: str = "rows.arrow") -> Make:
    """The good table as an Arrow file with its bytes changed, met by ``init``."""

    def make(folder: Path) -> list[str]:
        table = pq.read_table(good.table(folder / "good.parquet"))
        (folder / "good.parquet").unlink()
        pyarrow.feather.write_feather(table, folder / called)
        return written(called, change((folder / called).read_bytes()))(folder)

    return make


ARROW_CASES = [
    Case(ARROW, "cut off in the middle", as_arrow(lambda whole: whole[: len(whole) // 2]), ("not a whole Arrow file",)),
    Case(
        ARROW, "zeros in its midst", as_arrow(lambda whole: whole[:-3000] + bytes(600) + whole[-2400:]), ("is damaged",)
    ),
    Case(ARROW, "of 0 bytes", written("rows.arrow", b""), ("is empty (0 bytes)",)),
    Case(ARROW, "Parquet called .feather", broken(bytes, called="rows.feather"), ("not an Arrow file", "name it")),
    Case(ARROW, "Arrow called .parquet", as_arrow(called="rows.parquet"), ("an Arrow (Feather) file; name it .arrow",)),
    Case(ARROW, "Feather of version 1", written("rows.feather", b"FEA1" + bytes(60)), ("version 1", "as version 2")),
]

CSV = "CSV files"
CSV_CASES = [
    Case(CSV, "a row with too many fields", written("rows.csv", csv("red,2,1,9")), ("row 42", "4 fields", "quote")),
    Case(CSV, "a row with too few fields", written("rows.csv", csv("red,2")), ("row 42", "2 fields", "mend the row")),
    Case(CSV, "a quote that is never closed", written("rows.csv", csv('"red,2,1')), ("row 42", "close its quote")),
    Case(CSV, "such a quote in the column names", written("rows.csv", csv(names='"a,b,c')), ("row 1", "close it")),
    Case(CSV, "a cell of 20 MB", written("rows.csv", csv("x" * (20 << 20) + ",1,1")), ("more than 8 MB",)),
    Case(CSV, "Latin-1", written("rows.csv", csv("rôt,2,1").encode("latin-1")),
         ("column 'colour'", "save the file as")),
    Case(CSV, "Latin-1 in the column names", written("rows.csv", csv(names="côl,price,click").encode("latin-1")),
         ("row 1", "not UTF-8")),
    Case(CSV, "UTF-16", written("rows.csv", csv().encode("utf-16")), ("is UTF-16 text; save it as UTF-8",)),
    Case(CSV, "zero bytes", written("rows.csv", csv("a\0b,1,1")), ("holds zero bytes",)),
    Case(CSV, "two columns of one name", written("rows.csv", csv(names="price,price,click")), ("are named 'price'",)),
    Case(CSV, "a column without a name", written("rows.csv", csv(names="colour,,click")),
         ("column 2 has an empty name",)),
    Case(CSV, "text after 8 MB of whole numbers", late("n.a."),
         ("row 1,200,002", "'n.a.'", "schema.types.price=string")),
    Case(CSV, "a fraction after 8 MB of whole numbers", late("1.5"),
         ("'1.5' is not int64", "schema.types.price=double")),
    Case(CSV, "a decimal of more digits than its type", of_decimals("red,2.505,1"),
         ("column 'price', row 42", "schema.types.price=double")),
    Case(CSV, "only column names", written("rows.csv", "colour,price,click\n"), ("column names but no rows",)),
    Case(CSV, "only column names, no end of line", written("rows.csv", "colour,price,click"), ("but no rows",)),
    Case(CSV, "blank", written("rows.csv", "\n\n"), ("is empty; a CSV file starts with",)),
    Case(CSV, "a comment above the column names", written("rows.csv", "# exported in May\n" + csv()),
         ("begins with '# exported in May'", "looks like a comment", "delete the line")),
    Case(CSV, "no column names", written("rows.csv", csv().split("\n", 1)[1]), ("no column 'click'", "valid names")),
    Case(CSV, ".csv.gz that is cut off", broken(lambda whole: gzip.compress(whole)[:-9], "rows.csv", "rows.csv.gz"),
         ("rows.csv.gz cannot be read", "write or fetch it again")),
    Case(CSV, ".csv.gz that is not compressed", written("rows.csv.gz", csv()), ("not compressed", "name it rows.csv")),
    Case(CSV, ".csv.bz2 that is cut off", broken(lambda whole: bz2.compress(whole)[:-9], "rows.csv", "rows.csv.bz2"),
         ("rows.csv.bz2 cannot be read", "write or fetch it again")),
    Case(CSV, "bzip2 called .csv.zst", written("rows.csv.zst", bz2.compress(csv().encode())),
         ("not compressed with zstd but compressed with bz2; name it .csv.bz2",)),
    Case(CSV, "gzip called .csv", written("rows.csv", gzip.compress(csv().encode())), ("gzip; name it .csv.gz",)),
    Case(CSV, "Parquet called .csv", broken(bytes, "rows.parquet", "rows.csv"), ("a Parquet file; name it .parquet",)),
    Case(CSV, "a spreadsheet called .csv", written("rows.csv", b"PK\x03\x04\x14\0"), ("spreadsheet; unpack it",)),
    Case(CSV, "a byte order mark", written("rows.csv", csv().encode("utf-8-sig")), ("name: colour,",), 0,
         "Read; the mark is no part of the first name."),
    Case(CSV, "a link to what is gone", placed(lambda path: path.symlink_to("gone.csv")),
         ("rows.csv is a link to gone.csv, which is not there",)),
    Case(CSV, "a pipe", placed(os.mkfifo), ("rows.csv is no file but a pipe or device",)),
    Case(CSV, "in the home of nobody", lambda folder: init("~nobody-of-this-name/rows.csv"), ("no home folder",)),
    Case(CSV, "line breaks within quotes", written("rows.csv", csv('"dark\nred",2,1')), ("(41 rows)",), 0,
         "Read; a quoted cell may hold them."),
    Case(CSV, "semicolons", written("rows.csv", csv().replace(",", ";")), ("price: double",), 0,
         "Read; so are tabs and bars, where the column names hold no comma."),
    Case(CSV, "semicolons and decimal commas", written("rows.csv", csv().replace(",", ";").replace(".", ",")),
         ("price: double",), 0, "Read; 1,5 is one and a half."),
    Case(CSV, "a line for Excel, sep=;", written("rows.csv", "sep=;\n" + csv().replace(",", ";")), ("(40 rows)",), 0,
         "Read; it names the separator."),
    Case(CSV, "carriage returns alone", written("rows.csv", csv().replace("\n", "\r")), ("(40 rows)",), 0, "Read."),
]  # fmt: skip

JSON_LINES = "JSON lines"
JSON_CASES = [
    Case(JSON_LINES, "text among numbers", written("rows.jsonl", lines('{"colour": "red", "price": "n.a."}')),
         ("column 'price', row 41: found string where rows before have number", "as one type")),
    Case(JSON_LINES, "an object that is cut off", written("rows.jsonl", lines('{"colour": "re')), ("row 41",)),
    Case(JSON_LINES, "commas between lines", written("rows.jsonl", lines().replace("\n", ",\n")),
         ("nothing between lines",)),
    Case(JSON_LINES, "one list of objects", written("rows.jsonl", f"[{lines().strip().replace(chr(10), ',')}]"),
         ("no JSON object but array",)),
    Case(JSON_LINES, "a key twice in an object", written("rows.jsonl", lines('{"price": 1.5, "price": 2.5}')),
         ("row 41 has column 'price' twice",)),
    Case(JSON_LINES, "Latin-1", written("rows.jsonl", lines('{"colour": "rôt"}').encode("latin-1")), ("not UTF-8",)),
    Case(JSON_LINES, "of 0 bytes", written("rows.jsonl", b""), ("has no rows",)),
    Case(JSON_LINES, "gzip called .jsonl", written("rows.jsonl", gzip.compress(lines().encode())),
         ("gzip; name it .jsonl.gz",)),
    Case(JSON_LINES, ".jsonl.gz that is cut off", written("rows.jsonl.gz", gzip.compress(lines().encode())[:-9]),
         ("is damaged",)),
    Case(JSON_LINES, "keys that some objects have not", written("rows.jsonl", lines('{"click": 1}', '{"new": "x"}')),
         ("(42 rows)",), 0, "Read; they are null there."),
]  # fmt: skip

COLUMNS = "Columns of a kind that does not fit"
COLUMN_CASES = [
    Case(COLUMNS, "a column that is not there", trains([{"name": "prise", "kind": "number"}]),
         ("did you mean 'price'?",)),
    Case(COLUMNS, "structs, drafted", drafts(price=STRUCT), ("price: its type struct<a: int64> is not",), 0,
         "Read; the column is left out, and the draft says so. So are maps, durations and binary values."),
    Case(COLUMNS, "structs as a number", trains(price=STRUCT),
         ("column 'price'", "struct<a: int64>", "columns of their")),
    Case(COLUMNS, "a map as a label", trains(tasks=[SECONDS], seconds=MAP), ("column 'seconds'", "map<")),
    Case(COLUMNS, "lists as a category", trains([{"name": "tags", "kind": "category"}]), ("only bags and vectors",)),
    Case(COLUMNS, "lists of lists as a bag", trains([{"name": "tags", "kind": "bag"}], tags=[[["a"]]] * ROWS),
         ("list<",)),
    Case(COLUMNS, "lists of another length", trains([{"name": "tags", "kind": "vector", "size": 2}],
         tags=[[1.0, 2.0]] * 6 + [[1.0]] + [[1.0, 2.0]] * (ROWS - 7)), ("row 7", "wanted 2 numbers", "found 1")),
    Case(COLUMNS, "durations as a number", trains(price=DURATION), ("duration[s]; write it as a number of seconds",)),
    Case(COLUMNS, "durations as a label, drafted", drafts("seconds", seconds=DURATION),
         ("duration[s]", "choose another")),
    Case(COLUMNS, "times as a number", trains([{"name": "at", "kind": "number"}]), ("declare it a time",)),
    Case(COLUMNS, "text in a number", trains(price=one_of("cheap")), ("column 'price', row 7", "found 'cheap'")),
    Case(COLUMNS, "text in a time", trains([{"name": "at", "kind": "time"}],
         at=["2024-05-01", "soon"] * (ROWS // 2)), ("column 'at', row 2", "found 'soon'", "ISO 8601")),
    Case(COLUMNS, "an unknown time zone", trains([COLOUR, {"name": "at", "kind": "time"}],
         at=pa.array(range(ROWS), pa.timestamp("us", "Mars/Olympus"))), ("'Mars/Olympus'; write it in UTC",)),
    Case(COLUMNS, "times with and without a zone", drafts(at=["2024-05-01T00:00:00+02:00", "2024-05-01T00:00:00"]
         * (ROWS // 2)), ("some with a zone and some without",), 0, "Read; the draft leaves the column out, and why."),
    Case(COLUMNS, "times beyond the year 9999", trains([PRICE, {"name": "at", "kind": "time"}],
         at=pa.array([2**62 - at for at in range(ROWS)], pa.timestamp("us"))), ("click/auc",), 0,
         "Read as missing, like numbers that are no time."),
    Case(COLUMNS, "decimals", drafted(price=[Decimal("1.25") * (at % 60) for at in range(ROWS)]), ("click/auc",), 0,
         "Read as numbers."),
    Case(COLUMNS, "nothing but nulls", trains(price=pa.nulls(ROWS), colour=pa.nulls(ROWS)), ("click/auc",), 0,
         "Read as missing; `init` leaves such a column out."),
    Case(COLUMNS, "a dictionary of numbers", trains(price=pa.array([at % 5 for at in range(ROWS)]).dictionary_encode()),
         ("click/auc",), 0, "Read as the numbers it stands for."),
    Case(COLUMNS, "infinities and 1e300", drafted(price=one_of(math.inf)[:100] + one_of(1e300)[:100]),
         ("click/auc",), 0,
         "Read as missing, like every number beyond float32 (3.4e38)."),
    Case(COLUMNS, "1e38", drafted(price=one_of(1e38)), ("click/auc",), 0, "Read; what is encoded is clipped."),
    Case(COLUMNS, "zero bytes, emoji and the like in text", drafted(colour=["a\0b", "🦄", "\u202e", "e\u0301"] * 50),
         ("click/auc",), 0, "Read; every different text is a value of its own."),
    Case(COLUMNS, "cells of 1 MB", drafted(colour=(["a" * 2**20, "b" * 2**20] + ["c"] * 98) * 2), ("click/auc",), 0,
         "Read."),
]  # fmt: skip

LABELS = "Labels"
HUGE = [1e36 * x for x in RISING]
WEIGHTED = {"name": "click", "sample_weight": "price"}
LABEL_CASES = [
    Case(LABELS, "a label that is not there", trains(tasks=[{"name": "clik"}]), ("'clik'; did you mean 'click'?",)),
    Case(LABELS, "a label that is not there, drafted", drafts("clik"), ("'clik'", "did you mean 'click'?")),
    Case(LABELS, "all the same", trains(click=[1] * ROWS), ("column 'click'", "different values", "all of them (184)")),
    Case(LABELS, "all the same, drafted", drafts(click=[1] * ROWS), ("is 1 wherever it is known",)),
    Case(LABELS, "all unknown", trains(click=pa.nulls(ROWS, pa.int64())), ("wanted known values", "found none")),
    Case(LABELS, "all unknown, drafted", drafts(click=pa.nulls(ROWS)), ("holds no value in any row",)),
    Case(LABELS, "0, 1 and 2 in a binary one", trains(click=[at % 3 for at in range(ROWS)]),
         ("'click', row", "found 2")),
    Case(LABELS, "yes and no, which is 1?", trains(click=["no", "yes"] * (ROWS // 2)),
         ("found 'no'; name the value that means 1 as 'positive'",)),
    Case(LABELS, "a positive value that never occurs", trains(tasks=[{"name": "rating", "positive": "god"}]),
         ("column 'rating'", "and 'positive'")),
    Case(LABELS, "a class that is not declared", trains(tasks=[RATING | {"classes": ["good", "fair"]}]),
         ("column 'rating', row", "found 'bad'", "valid names: 'fair', 'good'")),
    Case(LABELS, "a label that is also a feature", trains([{"name": "click", "kind": "number"}]),
         ("remove the feature",)),
    Case(LABELS, "a child of 1 under a parent of 0", trains(tasks=[CLICK, BUY], buy=[1, 0, 1, 1] * (ROWS // 4)),
         ("'buy' is given 'click'", "funnel: loose")),
    Case(LABELS, "a parent that is no task", drafts("buy|click"), ("'click' is not another binary task", "add one")),
    Case(LABELS, "a parent that is not binary", trains(tasks=[RATING, {"name": "buy", "given": "rating"}]),
         ("it is multiclass",)),
    Case(LABELS, "parents in a circle", trains(tasks=[CLICK | {"given": "buy"}, BUY]), ("comes back to itself",)),
    Case(LABELS, "no row that 'where' asks for", trains(tasks=[CLICK, SECONDS | {"where": "click"}], click=HALVES,
         seconds=[1.0, None] * (ROWS // 2)), ("rows where 'click' is 1", "found none")),
    Case(LABELS, "text in a regression", trains(tasks=[SECONDS], seconds=one_of("long")), ("row 7", "found 'long'")),
    Case(LABELS, "-5 under log1p", trains(tasks=[SECONDS | {"transform": "log1p"}], seconds=one_of(-5.0)),
         ("row 7", "labels above -1 for log1p", "transform: standard")),
    Case(LABELS, "infinities alone", trains(tasks=[SECONDS], seconds=[math.inf] * ROWS), ("count as unknown",)),

    Case(LABELS, "1e38 without a scale", trains(tasks=[SECONDS | {"transform": "none"}], seconds=HUGE),
         ("too large to be fitted as they are", "transform: standard")),
    Case(LABELS, "1e36 to 1e38", trains(tasks=[SECONDS], seconds=HUGE), ("seconds/r2",), 0,
         "Read; the labels are standardised."),
    Case(LABELS, "an infinity and 1e300 among others", trains(tasks=[SECONDS], seconds=[math.inf, 1e300, *RISING[2:]]),
         ("seconds/r2",), 0, "Read; both are unknown labels."),
    Case(LABELS, "a weight of NaN", trains(tasks=[WEIGHTED], price=one_of(math.nan)),
         ("column 'price', row 7", "found nan")),
    Case(LABELS, "a weight of -1", trains(tasks=[WEIGHTED], price=one_of(-1.0)), ("row 7", "0 or more", "found -1.0")),
    Case(LABELS, "a weight of infinity", trains(tasks=[WEIGHTED], price=one_of(math.inf)), ("row 7", "found inf")),
    Case(LABELS, "weights of 0", trains(tasks=[WEIGHTED], price=[0.0] * ROWS), ("column 'price'", "a weight above 0")),
    Case(LABELS, "weights of 1e38", trains(tasks=[WEIGHTED], price=[1e38] * ROWS), ("row 1", "at most 1e+30")),
]  # fmt: skip

NAMES = "Names of columns"
ODD = {
    "dots, blanks, quotes, emoji": ("a.b", " a", "b ", "'\"", "🦄"),
    "line breaks": ("a\nb", "c\x85d", "e\u2028f", "\tg\r"),
    "words of YAML": ("no", "null", "007", "- a", "#b", "a: b", "*"),
    "300 characters": ("x" * 300,),
}
NAME_CASES = [
    *(Case(NAMES, what, drafted(**dict.fromkeys(names, HALVES)), ("click/auc",), 0, "Read.")
      for what, names in ODD.items()),
    Case(NAMES, "a label with a blank around it", drafts("click", click=None, **{" click ": HALVES}),
         ("column: ' click '",), 0, "Read; the task goes without the blanks."),
    Case(NAMES, "a task with a bar or a slash", trains(tasks=[{"name": "a/b"}]),
         ("neither '|' nor '/'", "as 'column'")),
    Case(NAMES, "a key of a task's name", trains(schema={"keys": ["click"]}), ("key 'click' has the name of a task",)),
]  # fmt: skip

SPLITS = "Few rows and splits"
TIMED = {"time": "at"}
SPLIT_CASES = [
    Case(SPLITS, "one row", trains(rows=1), ("the same in all of them (1)",)),
    Case(SPLITS, "two rows", trains(rows=2, click=[0, 1]), ("leaves no valid rows", "give a valid table")),
    Case(SPLITS, "three rows", trains(rows=3, click=[0, 1, 1]), ("one known label only", "chosen by click/log_loss"),
         0, "Trained; weights are chosen by log loss, and a line says why."),
    Case(SPLITS, "one row, drafted", drafts(rows=1), ("at least two values",)),
    Case(SPLITS, "no share for validation", trains(split={"valid": 0}), ("its valid is 0",)),
    Case(SPLITS, "validation from a day after all rows", trains(schema=TIMED, split={"valid_from": "2030-01-01"}),
         ("leaves no valid rows", "2030-01-01")),
    Case(SPLITS, "validation from a day before all rows", trains(schema=TIMED, split={"valid_from": "2000-01-01"}),
         ("leaves no train rows", "2000-01-01")),
    Case(SPLITS, "by time, all rows of one time", trains(schema=TIMED, split={"by": "time"}, at=[0] * ROWS),
         ("one and the same time", "split by fraction")),
    Case(SPLITS, "by time, a column of text", trains(schema={"time": "colour"}),
         ("column 'colour', row 1", "ISO 8601")),
    Case(SPLITS, "by time, beyond the year 9999", trains(schema=TIMED,
         at=pa.array([2**62 - at for at in range(ROWS)], pa.timestamp("us"))), ("found no times",)),
    Case(SPLITS, "by group, one group", trains(schema={"group": "colour"}, colour=["red"] * ROWS),
         ("leaves no valid rows", "column 'colour'")),
    Case(SPLITS, "a group that is not there", trains(schema={"group": "user"}), ("no column 'user'", "valid names")),
    Case(SPLITS, "validation rows of one class", trains(valid={"click": [0] * ROWS}),
         ("all 200 known labels are 0", "chosen by click/log_loss"), 0,
         "Trained; weights are chosen by log loss, and a line says why."),
    Case(SPLITS, "validation rows without a known label", trains(valid={"click": pa.array([None] * ROWS, pa.int64())}),
         ("'mean' cannot be computed", "task 'click' (no label is known)")),
    Case(SPLITS, "a validation table without the label", trains(valid={"click": None}),
         ("valid.parquet has no column",)),
    Case(SPLITS, "a validation table of other types", trains(valid={"price": one_of("cheap")}),
         ("valid.parquet: column 'price', row 7",)),
    Case(SPLITS, "a validation table of other labels",
         trains(tasks=[{"name": "rating", "positive": "good"}], valid={"rating": ["Good", "Bad"] * (ROWS // 2)}),
         ("valid.parquet: column 'rating'", "('bad', 'fair', 'good'), found 'Bad', 'Good'")),
    Case(SPLITS, "a validation table without rows", trains(valid={"rows": 0}),
         ("valid.parquet has column names but no rows",)),
]  # fmt: skip

PREDICTING = "Predicting and scoring"
PREDICT_CASES = [
    Case(PREDICTING, "a column that is missing", predicts(colour=None), ("new.parquet has no column 'colour'",)),
    Case(PREDICTING, "a column of another name", predicts(colour=None, Color=["red"] * ROWS),
         ("did you mean 'Color'?",)),
    Case(PREDICTING, "a key that is missing", predicts(row_id=None), ("new.parquet has no column 'row_id'",)),
    Case(PREDICTING, "text in a number", predicts(price=one_of("cheap")), ("column 'price'", "found 'cheap'")),
    Case(PREDICTING, "text in a time", predicts(at=["2024-05-01", "soon"] * (ROWS // 2)),
         ("column 'at'", "found 'soon'")),
    Case(PREDICTING, "times for a number", predicts(price=[dt.datetime(2024, 5, 1)] * ROWS), ("found timestamp[us]",)),
    Case(PREDICTING, "lists for a category", predicts(colour=[["red"]] * ROWS), ("only bags and vectors read lists",)),
    Case(PREDICTING, "structs for a bag", predicts(tags=STRUCT), ("column 'tags'", "struct<")),
    Case(PREDICTING, "no rows", predicts(rows=0), ("has column names but no rows",)),
    Case(PREDICTING, "no label to score", scores(click=None), ("new.parquet has no column 'click'",)),
    Case(PREDICTING, "labels of 0 and 2", scores(click=[0, 2] * (ROWS // 2)), ("column 'click'", "found 2")),
    Case(PREDICTING, "no labels to predict", predicts(click=None, buy=None, rating=None, seconds=None),
         ("200 predictions",), 0, "Read; predictions want features and keys only."),
    Case(PREDICTING, "more columns", predicts(weather=["wet"] * ROWS), ("200 predictions",), 0,
         "Read; they are ignored."),
    Case(PREDICTING, "numbers and times as text, decimals, whole numbers for text",
         predicts(price=[str(x) for x in RISING], at=["2024-05-01 10:00"] * ROWS, colour=[1] * ROWS),
         ("200 predictions",), 0, "Read; a value is the same whatever its type."),

    Case(PREDICTING, "nulls in every column",
         predicts(**dict.fromkeys(("price", "colour", "tags", "at"), pa.nulls(ROWS))),
         ("200 predictions",), 0, "Read as missing."),
    Case(PREDICTING, "one row", predicts(rows=1), ("1 predictions",), 0, "Read."),
]  # fmt: skip

PYTHON = "Tables and rows in Python"
TWO = pd.MultiIndex.from_tuples([("a", "b"), ("click", "")])
PYTHON_CASES = [
    Case(PYTHON, "lists of different lengths", described(lambda: {"a": [1, 2], "click": [0]}), ("('a' 2, 'click' 1)",)),
    Case(PYTHON, "a value that is no list", described(lambda: {"a": 1, "click": [0]}), ("'a' is one int", "write [1]")),
    Case(PYTHON, "a set", described(lambda: {"a": {1, 2}, "click": [0, 1]}), ("'a' is one set",)),
    Case(PYTHON, "numbers and text in one list", described(lambda: {"a": [1, "b"], "click": [0, 1]}),
         ("column 'a' cannot",)),
    Case(PYTHON, "whole numbers beyond 64 bits", described(lambda: {"a": [2**70, 1], "click": [0, 1]}), ("too large",)),
    Case(PYTHON, "a lone surrogate", described(lambda: {"a": ["\ud800", "b"], "click": [0, 1]}),
         ("not valid Unicode",)),
    Case(PYTHON, "a lone surrogate in a name", described(lambda: {"\ud800": [1, 2], "click": [0, 1]}),
         ("not valid Unicode",)),
    Case(PYTHON, "nothing", described(lambda: {}), ("has no columns",)),
    Case(PYTHON, "an array", described(lambda: np.zeros((3, 2))), ("a table is wanted, found ndarray",)),
    Case(PYTHON, "pandas: a column of mixed types", described(lambda: frame(a=[1, "b"] * 20)), ("column 'a' cannot",)),
    Case(PYTHON, "pandas: objects", described(lambda: frame(a=[object()] * 40)), ("column 'a' cannot",)),

    Case(PYTHON, "pandas: two columns of one name",
         described(lambda: frame(a=1, b=2).rename(columns={"b": "a"})), ("are named 'a'; rename one",)),
    Case(PYTHON, "pandas: columns of two levels", described(lambda: pd.DataFrame([[1, 0], [1, 1]], columns=TWO)),
         ("no column 'click'", "('click', '')")),
    Case(PYTHON, "pandas: no rows", described(lambda: frame(a=1)[:0]), ("no rows",)),
    Case(PYTHON, "pandas: no columns", described(lambda: pd.DataFrame(index=range(4))), ("has no columns",)),
    Case(PYTHON, "pandas: a Series", described(lambda: pd.Series([1, 2])), ("found Series",)),
    Case(PYTHON, "pandas: the column is the index", bundled(lambda: pd.DataFrame(good.columns()).set_index("colour")),
         ("no column 'colour'",)),
    Case(PYTHON, "pandas: categorical and nullable columns", described(lambda: frame(
        a=pd.Categorical(["x", "y"] * 20), b=pd.array([1, None] * 20, "Int64"), c=pd.array(["x", None] * 20, "string"),
        d=pd.array([True, None] * 20, "boolean"), e=pd.array([1.5, None] * 20, "Float32"))), (), 0, "Read."),
    Case(PYTHON, "polars: lazy", described(lambda: pl.LazyFrame({"a": [1]})), ("found LazyFrame", "collected first")),
    Case(PYTHON, "Arrow: a reader whose second batch has its columns in another order",
         described(lambda: streamed({"click": [0, 1], "a": [1, 2]})),
         ("batch 2 of the reader has column 'click' of int64 where its schema has column 'a' of int64",)),
    Case(PYTHON, "Arrow: a reader whose second batch has another type",
         described(lambda: streamed({"a": [1.5, 2.5], "click": [0, 1]})), ("'a' of double", "'a' of int64")),
    Case(PYTHON, "Arrow: a reader whose second batch lacks a column", described(lambda: streamed({"a": [1, 2]})),
         ("has no column where its schema has column 'click'",)),
    Case(PYTHON, "Arrow: a reader whose source ends in an error", described(lambda: streamed(None)),
         ("the reader cannot be read to its end (the line is dead)",)),
    Case(PYTHON, "Arrow: a table with a code of no value", described(lambda: pa.table({
        "a": pa.DictionaryArray.from_arrays(pa.array([0, 9] * (ROWS // 2)), pa.array(["x", "y"]), safe=False),
        "click": HALVES})),
         ("column 'a' of the table is damaged",)),
    Case(PYTHON, "Arrow: unions", described(lambda: {"b": RISING, "a": UNION, "click": HALVES}), (), 0,
         "Read; the column is left out, and `inspect_table` tells why."),
    Case(PYTHON, "Arrow: run ends and views", described(lambda: {
        "a": pa.RunEndEncodedArray.from_arrays([100, ROWS], [1, 2]),
        "b": pa.array(["x", "y"] * (ROWS // 2), pa.string_view()), "click": HALVES}), (), 0, "Read."),
    Case(PYTHON, "a setting that cannot be", lambda _: lambda: MMoE(experts=0), ("MMoE: experts", "found 0")),
    Case(PYTHON, "a setting there is not", lambda _: lambda: MMoE(expert=3), ("did you mean 'experts'?",)),
    Case(PYTHON, "a setting in the wrong place", lambda _: lambda: good.experiment().with_(learning_rate=0.1),
         ("optimizer.learning_rate",)),
    Case(PYTHON, "a table in an experiment", lambda _: lambda: good.experiment().with_(train=frame(a=1)),
         ("train: a file, folder or glob is wanted, found DataFrame", "tables={'train': table}")),
    Case(PYTHON, "a table in place of the folder", trained(lambda: frame(a=1)),
         ("the path of a folder is wanted, found DataFrame",)),
    Case(PYTHON, "a table in place of tables", trained(lambda: "run", tables=frame(a=1)),
         ("'tables' wants parts of the rows", "found DataFrame")),
    Case(PYTHON, "a table for a part there is not", handed_over(validation={"colour": ["red"]}),
         ("'tables' names 'validation'", "did you mean 'valid'?")),
    Case(PYTHON, "a row without a column", bundled(lambda: {"colour": "red"}), ("no column 'price'",)),
    Case(PYTHON, "a list of rows, one without a column", bundled(lambda: [row(), {"colour": "red"}]),
         ("row 2: there is no column 'price'",)),
    Case(PYTHON, "a row with text for a number", bundled(lambda: row(price="cheap")),
         ("column 'price'", "found 'cheap'")),
    Case(PYTHON, "a row with a list for a category", bundled(lambda: row(colour=["red"])), ("only bags and vectors",)),
    Case(PYTHON, "a row with text for a time", bundled(lambda: row(at="soon")), ("column 'at'", "ISO 8601")),
    Case(PYTHON, "a row with a dict for a bag", bundled(lambda: row(tags={"new": 1})),
         ("column 'tags'", "found {'new': 1}")),
    Case(PYTHON, "a row of a lone surrogate, 2**5000, a far time", bundled(lambda: row(
        colour="\ud800", price=2**5000, tags=[2**80], at=np.datetime64(2**62, "s"))), (), 0,
        "Read; what no float32 and no calendar holds is missing."),
]  # fmt: skip
UNION = pa.UnionArray.from_sparse(pa.array(HALVES, pa.int8()), [pa.array(RISING), pa.array(["a"] * ROWS)])

TABLES: list[Case] = [
    *PARQUET_CASES, *ARROW_CASES, *CSV_CASES, *JSON_CASES, *COLUMN_CASES, *LABEL_CASES, *NAME_CASES, *SPLIT_CASES,
    *PREDICT_CASES, *PYTHON_CASES,
]  # fmt: skip
