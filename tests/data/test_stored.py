"""However a table is stored, its rows are prepared alike: against ids, numbers and labels counted in plain loops."""

import math
import threading
import time
from collections import Counter

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch

from multigate.data.files import open_table
from multigate.data.prepared import prepare
from multigate.data.rows import join
from multigate.data.split import Split
from multigate.errors import DataError
from multigate.schema import Bag, Category, Hashed, Number, Schema, Task

ROWS = 3_000
DRAW = np.random.default_rng(0)
WORDS = ["red", "green", "café", "a,b", 'say "hi"', "007", " ", "", None]


def drawn(values, share=None):
    return [values[at] for at in DRAW.choice(len(values), ROWS, p=share)]


WORD = drawn(WORDS)
RARE = [f"u{at}" for at in DRAW.zipf(1.5, ROWS) % 2_000]
CODE = drawn([-3, 0, 7, 1_000, None])
AMOUNT = [None if one > 80_000 else int(one) for one in DRAW.exponential(20_000, ROWS)]
LEVEL = drawn(["low", "mid", "high"], [0.5, 0.3, 0.2])
LABEL = drawn([0, 1, None], [0.6, 0.3, 0.1])
TABLE = pa.table({
    "word": pa.array(WORD), "rare": RARE, "code": pa.array(CODE, pa.int16()), "amount": pa.array(AMOUNT, pa.int32()),
    "level": LEVEL, "y": pa.array(LABEL, pa.int8()),
})  # fmt: skip
TEXT = ("word", "rare", "level")
TYPES = {field.name: str(field.type) for field in TABLE.schema}
SCHEMA = Schema(
    features=(
        Category("word"), Category("rare", min_count=3), Hashed("user", column="rare", buckets=50), Category("code"),
        Number("amount", embedding="none"), Bag("bag", column="word"),
    ),
    tasks=(Task("level", kind="multiclass"), Task("y")),
    group="rare",
)  # fmt: skip


def with_columns(change, names=TEXT, table=TABLE):
    for name in names:
        table = table.set_column(table.column_names.index(name), name, change(table[name]))
    return table


SHORT = pa.int32()


def as_codes(column, kind=SHORT):
    return pa.chunked_array([one.dictionary_encode().cast(pa.dictionary(kind, one.type)) for one in column.chunks])


def with_odd_dictionary(column):
    """Values twice, a null and many that no row has among the values; nulls among the codes too."""
    text = column.to_pylist()
    values = [*dict.fromkeys(text), *dict.fromkeys(text), None, *(f"unused{at}" for at in range(9_000))]
    places = {}
    for at, value in enumerate(values):
        places.setdefault(value, []).append(at)
    codes = [None if value is None and at % 2 else places[value][at % 2] for at, value in enumerate(text)]
    return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), pa.array(values))


def parquet(folder, table=TABLE, **options):
    pq.write_table(table, folder / "t.parquet", **options)
    return folder / "t.parquet"


def parquet_of_changing_codes(folder):
    table = with_columns(as_codes)
    with pq.ParquetWriter(folder / "t.parquet", table.schema) as writer:
        for start in range(0, ROWS, 400):
            part = with_columns(lambda column: column.combine_chunks(), TEXT, TABLE.slice(start, 400))
            writer.write_table(with_columns(as_codes, TEXT, part))
    return folder / "t.parquet"


def csv(folder):
    pyarrow.csv.write_csv(TABLE, folder / "t.csv")
    return folder / "t.csv"


def two_files(folder):
    """Text plain in one and as codes in the other, integers of two widths, a number whole in one only."""
    wide = with_columns(lambda column: column.cast(pa.int64()), ("code", "y"), TABLE.slice(0, 1_000))
    wide = with_columns(lambda column: column.cast(pa.large_string()), TEXT, wide)
    pq.write_table(wide, folder / "a.parquet", use_dictionary=False)
    later = with_columns(lambda column: column.cast(pa.float64()), ("amount",), TABLE.slice(1_000))
    pq.write_table(with_columns(as_codes, TEXT, later), folder / "b.parquet", row_group_size=900)
    return folder


def in_chunks(_):
    """Chunks without rows among the others."""
    chunks = [TABLE.slice(start, many) for start, many in ((0, 0), (0, 5), (5, 0), (5, 1), (6, ROWS), (0, 0))]
    return pa.concat_tables(chunks)


def pandas(_):
    frame = TABLE.to_pandas(integer_object_nulls=True)
    frame["level"] = frame["level"].astype(pd.CategoricalDtype(["high", "unused", "mid", "low"]))
    frame["rare"] = frame["rare"].astype("category")
    return frame.assign(**{name: pd.array(TABLE[name].to_pylist(), "Int64") for name in ("code", "amount", "y")})


STORED = {
    "Parquet, plain": lambda folder: parquet(folder, use_dictionary=False, row_group_size=700),
    "Parquet, coded": parquet,
    "Parquet, changing codes": parquet_of_changing_codes,
    "Parquet, beside a struct": lambda folder: parquet(folder, TABLE.append_column("s", pa.array([{"a": 1}] * ROWS))),
    "CSV": csv,
    "two files": two_files,
    "memory": lambda _: TABLE,
    "chunks": in_chunks,
    "large text": lambda _: with_columns(lambda column: column.cast(pa.large_string())),
    "odd dictionaries": lambda _: with_columns(with_odd_dictionary),
    "long codes": lambda _: with_columns(lambda column: as_codes(column, pa.uint64())),
    "coded numbers": lambda _: with_columns(as_codes, ("code", "amount", "y")),
    "short codes": lambda _: with_columns(lambda column: as_codes(column, pa.int8()), ("word", "level")),
    "pandas": pandas,
    "polars": lambda _: pl.from_arrow(TABLE),
}
SPLIT = Split(by="fraction", valid=0.2)


def rows_of(prepared):
    """Training rows, then the rest."""
    return join([batch for part in (prepared.train, prepared.valid) for batch in part.shards])


@pytest.fixture(scope="module")
def order():
    """Places in the table of the training rows, then of the rest."""
    parts = SPLIT.resolve(open_table(TABLE), SCHEMA).assign(TABLE.combine_chunks().to_batches()[0], 0)
    return np.flatnonzero(parts == 0).tolist(), np.flatnonzero(parts == 1).tolist()


def ids_of(values, train, least=1):
    counts = Counter(str(values[at]) for at in train if values[at] not in (None, ""))
    kept = sorted((one for one in counts if counts[one] >= least), key=lambda one: (-counts[one], one))
    ids = {one: at for at, one in enumerate(kept, 2)}
    return [1 if one in (None, "") else ids.get(str(one), 0) for one in values]


@pytest.mark.parametrize("parsed", ["once", "twice"])
@pytest.mark.parametrize("stored", STORED)
def test_rows_are_prepared_alike_however_they_are_stored(stored, parsed, order, tmp_path, monkeypatch):
    if parsed == "twice":
        monkeypatch.setattr("multigate.data.prepared.KEPT", 0)
    source = open_table(STORED[stored](tmp_path), types=TYPES if stored == "CSV" else {})
    prepared = prepare(SCHEMA, source, None, None, SPLIT, tmp_path / "p", shard_rows=1_000)
    train, rest = order
    found, every = rows_of(prepared), [*train, *rest]
    assert prepared.train.rows == len(train)
    for at, (values, least) in ((0, (WORD, 1)), (1, (RARE, 3)), (3, (CODE, 1))):
        ids = ids_of(values, train, least)
        assert found.categories[:, at].tolist() == [ids[row] for row in every]
    known = [AMOUNT[row] for row in train if AMOUNT[row] is not None]
    mean = sum(known) / len(known)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in known) / len(known))
    wanted = [math.nan if AMOUNT[row] is None else (AMOUNT[row] - mean) / deviation for row in every]
    assert torch.allclose(found.numbers[:, 0], torch.tensor(wanted), atol=1e-5, equal_nan=True)
    items = [[one for one in (WORD[row] or "").split(",") if one] for row in every]
    assert found.bags[0].offsets.diff().tolist() == [max(len(one), 1) for one in items]
    assert found.labels[:, 0].tolist() == [["high", "low", "mid"].index(LEVEL[row]) for row in every]
    assert prepared.encoder.classes(0) == ("high", "low", "mid")
    assert found.known[:, 1].tolist() == [LABEL[row] is not None for row in every]
    assert found.labels[:, 1].tolist() == [LABEL[row] or 0 for row in every]
    pairs = set(zip([RARE[row] for row in every], found.groups.tolist(), strict=True))
    assert len(pairs) == len({user for user, _ in pairs}) == len({group for _, group in pairs})


def test_a_class_that_no_training_row_has_is_no_class(tmp_path):
    """Though it stands in the dictionary of its column, for rows that validate have it."""
    valid = SPLIT.resolve(open_table(TABLE), SCHEMA).assign(TABLE.combine_chunks().to_batches()[0], 0) == 1
    level = np.where(valid & (np.arange(ROWS) % 2 == 0), "never", np.array(LEVEL))
    for at, column in enumerate((pa.array(level), pa.array(level).dictionary_encode())):
        table = with_columns(lambda _, column=column: column, ("level",))
        prepared = prepare(SCHEMA, open_table(table), None, None, SPLIT, tmp_path / str(at))
        assert prepared.encoder.classes(0) == ("high", "low", "mid")
        assert not join(list(prepared.valid.shards)).known[:, 0].all()


@pytest.mark.parametrize("stored", ["plain", "coded", "CSV"])
def test_the_first_row_that_is_wrong_is_named(stored, tmp_path):
    """Of two, though the value of the later one comes first in the dictionary, and none has a row of its own."""
    label = ["0", "1", "maybe", "never"]
    cells = pa.array([0, 1] * 100 + [3, 2, 3] + [1] * 20, pa.int32())
    column = pa.DictionaryArray.from_arrays(cells, pa.array([*label, "unused"]))
    table = pa.table({"x": range(len(cells)), "y": column if stored == "coded" else column.cast(pa.string())})
    schema = Schema(features=(Number("x"),), tasks=(Task("y"),))
    if stored == "CSV":
        pyarrow.csv.write_csv(table, tmp_path / "t.csv")
        table = tmp_path / "t.csv"
    with pytest.raises(DataError, match=r"column 'y', row 201: wanted 0/1 or true/false .*, found 'never'"):
        prepare(schema, open_table(table), None, None, Split(), tmp_path / "p")
    assert [path for path in tmp_path.iterdir() if path.suffix != ".csv"] == []


def test_text_of_another_encoding_is_named_with_its_row(tmp_path):
    """A file of Windows-1252 whose first such letter comes late."""
    lines = ["c,y"] + [f"plain{at % 7},{at % 2}" for at in range(1_000_000)] + ["caf\xe9 10 \x80,1"]
    (tmp_path / "t.csv").write_bytes("\n".join(lines).encode("latin-1"))
    schema = Schema(features=(Category("c"),), tasks=(Task("y"),))
    with pytest.raises(DataError, match=r"t\.csv: column 'c', row 1,000,002 .*is not UTF-8 text"):
        prepare(schema, open_table(tmp_path / "t.csv"), None, None, Split(), tmp_path / "p")


def test_a_file_is_parsed_once(tmp_path, monkeypatch):
    """It is gone while rows are encoded, which is too early only where nothing may be kept."""
    path = csv(tmp_path)

    def remove(stage, done, total):
        if (stage, done) == ("fit encoder", ROWS):
            while any(thread.name == "multigate-ahead" for thread in threading.enumerate()):
                time.sleep(0.001)  # until it was seen that nobody wrote to it while it was read
            path.rename(tmp_path / "aside")
        if (stage, done) == ("encode train", ROWS):
            (tmp_path / "aside").rename(path)

    assert rows_of(prepare(SCHEMA, open_table(path), None, None, SPLIT, tmp_path / "p", remove)).rows == ROWS
    assert path.exists()
    monkeypatch.setattr("multigate.data.prepared.KEPT", 0)
    with pytest.raises(DataError, match=r"t\.csv cannot be read"):
        prepare(SCHEMA, open_table(csv(tmp_path)), None, None, SPLIT, tmp_path / "q", remove)


def test_a_table_at_hand_is_not_written_a_second_time():
    assert open_table({"n": [1, 2]}).at_hand
    assert open_table(with_columns(as_codes)).at_hand
    assert not open_table(TABLE).at_hand, "its text would be hashed again"
