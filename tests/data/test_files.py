"""Every door into the data gives the same rows, and every broken file a sentence that says what is wrong."""

import bz2
import csv
import datetime as dt
import gzip
import os
import random
import sys
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multigate.data.cells import placed
from multigate.data.files import Source, _merged, open_table
from multigate.data.types import check_names, parse_type, type_name
from multigate.errors import DataError

ROWS = {"user": ["u1", None, "u3", "u1"], "age": [31, 44, None, 7], "rate": [0.5, None, 2.0, -1.0]}


def rows_of(source: Source, columns: list[str] | None = None, rows: int = 65_536) -> list[dict[str, Any]]:
    return [row for batch in source.batches(columns, rows) for row in batch.to_pylist()]


def expected(data: dict[str, list[Any]] = ROWS) -> list[dict[str, Any]]:
    return [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]


def write_parquet(folder: Path, name: str = "a.parquet", /, **columns: Any) -> Path:
    pq.write_table(pa.table(columns or ROWS), folder / name)
    return folder / name


def write_csv(folder: Path, text: str | bytes, name: str = "a.csv") -> Path:
    raw = text if isinstance(text, bytes) else text.encode()
    (folder / name).write_bytes(gzip.compress(raw) if name.lower().endswith(".gz") else raw)
    return folder / name


def csv_text(delimiter: str = ",") -> str:
    lines = [ROWS.keys(), *zip(*ROWS.values(), strict=True)]
    return "".join(delimiter.join("" if cell is None else str(cell) for cell in line) + "\n" for line in lines)


def write_packed(folder: Path, name: str, pack: Callable[[bytes], Any], delimiter: str = ",") -> Path:
    (folder / name).write_bytes(bytes(pack(csv_text(delimiter).encode())))
    return folder / name


def write_arrow(folder: Path, name: str = "a.arrow", stream: bool = False) -> Path:
    table = pa.table(ROWS)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(folder / name, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return folder / name


def write_feather(folder: Path) -> Path:
    pl.DataFrame(ROWS).write_ipc(folder / "a.feather", compression="lz4", compat_level=pl.CompatLevel.newest())
    return folder / "a.feather"


def write_json_lines(folder: Path) -> Path:
    pl.DataFrame(ROWS).write_ndjson(folder / "a.jsonl")
    return folder / "a.jsonl"


DOORS: dict[str, Callable[[Path], Any]] = {
    "parquet": write_parquet,
    "csv": lambda folder: write_csv(folder, csv_text()),
    "csv.gz": lambda folder: write_csv(folder, csv_text(), "a.csv.gz"),
    "csv.bz2": lambda folder: write_packed(folder, "a.csv.bz2", bz2.compress),
    "tsv.zst": lambda folder: write_packed(folder, "a.tsv.zst", pa.Codec("zstd").compress, "\t"),
    "CSV.GZ": lambda folder: write_csv(folder, csv_text(), "A.CSV.GZ"),
    "tsv": lambda folder: write_csv(folder, csv_text("\t"), "a.tsv"),
    "semicolons": lambda folder: write_csv(folder, csv_text(";")),
    "crlf and byte order mark": lambda folder: write_csv(
        folder, b"\xef\xbb\xbf" + csv_text().replace("\n", "\r\n").encode()
    ),
    "semicolons behind blank lines": lambda folder: write_csv(folder, "\n\r\n" + csv_text(";")),
    "semicolons and cr alone": lambda folder: write_csv(folder, csv_text(";").replace(".", ",").replace("\n", "\r")),
    "arrow": write_arrow,
    "arrow stream": lambda folder: write_arrow(folder, stream=True),
    "feather of views, compressed": write_feather,
    "json lines": write_json_lines,
    "text path": lambda folder: str(write_parquet(folder)),
    "folder": lambda folder: write_parquet(folder).parent,
    "glob": lambda folder: str(write_parquet(folder).parent / "*.parquet"),
    "table": lambda _: pa.table(ROWS),
    "record batch": lambda _: pa.record_batch(ROWS),
    "record batch reader": lambda _: pa.table(ROWS).to_reader(),
    "dict": lambda _: ROWS,
    "pandas": lambda _: pd.DataFrame(ROWS | {"age": pd.array(ROWS["age"], "Int64")}, index=[7, 5, 3, 1]),
    "polars": lambda _: pl.DataFrame(ROWS),
}


@pytest.mark.parametrize("door", DOORS)
def test_all_doors_give_the_same_rows(door: str, tmp_path: Path) -> None:
    source = open_table(DOORS[door](tmp_path))
    assert rows_of(source) == rows_of(source) == expected()
    assert rows_of(source, ["rate", "user"], rows=3) == [
        {"rate": row["rate"], "user": row["user"]} for row in expected()
    ]
    assert source.schema.names == list(ROWS)
    assert source.rows == (
        None if any(word in door.lower() for word in ("sv", "semi", "crlf", "stream", "json")) else 4
    )
    assert sum(batch.num_rows for batch in source.batches([])) == 4


def test_batches_hold_at_most_the_rows_asked_for(tmp_path: Path) -> None:
    numbers = list(range(10_000))
    pq.write_table(pa.table({"n": numbers}), tmp_path / "a.parquet", row_group_size=1_500)
    text = "n\n" + "".join(f"{n}\n" for n in numbers)
    with pa.ipc.new_file(tmp_path / "a.ipc", pa.schema([("n", pa.int64())])) as writer:
        writer.write_table(pa.table({"n": numbers}), max_chunksize=1_500)
    for data in (tmp_path / "a.parquet", tmp_path / "a.ipc", write_csv(tmp_path, text), {"n": numbers}):
        batches = list(open_table(data).batches(rows=700))
        assert max(batch.num_rows for batch in batches) <= 700
        assert [n for batch in batches for n in batch["n"].to_pylist()] == numbers


def test_pandas_columns_of_types_that_arrow_has_not_are_read_as_they_stand(tmp_path: Path) -> None:
    """Sparse ones are dense; periods, which Arrow counts from 1970, and intervals are text, as in CSV files."""
    month = pd.PeriodIndex(["2024-01", None, "2024-03"], freq="M")
    columns = {
        "sparse": pd.arrays.SparseArray([0.0, 2.5, 0.0], fill_value=0.0),
        "dummy": pd.get_dummies(["a", "b", "a"], sparse=True, dtype=int)["b"],
        "gaps": pd.arrays.SparseArray([1.0, np.nan, np.nan]),
        "month": month,
        "period": pd.Categorical(month),
        "range": pd.cut([0.5, 1.5, 7.0], [0.0, 1.0, 2.0]),
        "interval": pd.arrays.IntervalArray.from_breaks([0, 1, 2, 3], closed="left"),
        "plain": pd.Series([1, None, 3], dtype="Int64"),
    }
    wanted = {
        "sparse": [0.0, 2.5, 0.0],
        "dummy": [0, 1, 0],
        "gaps": [1.0, None, None],
        "month": ["2024-01", None, "2024-03"],
        "period": ["2024-01", None, "2024-03"],
        "range": ["(0.0, 1.0]", "(1.0, 2.0]", None],
        "interval": ["[0, 1)", "[1, 2)", "[2, 3)"],
        "plain": [1, None, 3],
    }
    frame = pd.DataFrame(columns)
    frame.to_csv(tmp_path / "a.csv", index=False)
    before = frame.dtypes.to_dict()
    for data in (frame, {name: frame[name] for name in frame}, tmp_path / "a.csv"):
        found = pa.Table.from_batches(list(open_table(data).batches())).to_pydict()
        empty = {None, ""}
        assert {name: [None if one in empty else one for one in found[name]] for name in found} == wanted
    assert frame.dtypes.to_dict() == before


def test_an_opened_source_is_passed_through() -> None:
    source = open_table(ROWS)
    assert open_table(source) is source


def test_files_of_one_table_are_read_in_order(tmp_path: Path) -> None:
    b = write_parquet(tmp_path, "b.parquet", name=pa.array(["x"]), n=pa.array([1], pa.int8()))
    a = write_parquet(tmp_path, "a.parquet", n=[2.5], name=pa.array(["y"]).dictionary_encode())
    (tmp_path / "_SUCCESS").write_text("")
    want = [{"name": "x", "n": 1.0}, {"name": "y", "n": 2.5}]
    assert rows_of(open_table([b, a])) == want
    assert rows_of(open_table(tmp_path), ["name", "n"]) == want[::-1]
    assert type_name(open_table([b, a]).schema.field("n").type) == "double"


def test_text_beside_numbers_in_files_of_parquet_is_called_text(tmp_path: Path) -> None:
    paths = [write_parquet(tmp_path, "a.parquet", n=[1] * 40), write_parquet(tmp_path, "b.parquet", n=["1"] * 40)]
    with pytest.raises(DataError, match="column 'n' is string, but int64 in the files before"):
        open_table(paths)
    with pytest.raises(DataError, match="column 'n' is int64, but string in the files before"):
        open_table(paths[::-1])


@pytest.mark.parametrize("kind", [pa.decimal128(6, 2), pa.decimal256(50, 12)])
def test_decimals_beside_floats_are_the_nearest_floats(kind: pa.DataType, tmp_path: Path) -> None:
    prices = [cents / 100 for cents in range(10_000)]  # Arrow makes 41.980000000000004 of 41.98
    pq.write_table(pa.table({"x": pa.array([Decimal(f"{one:.2f}") for one in prices], kind)}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": [0.5, None]}), tmp_path / "b.parquet")
    table = pa.Table.from_batches(open_table(tmp_path).batches())
    assert table["x"].to_pylist() == [*prices, 0.5, None]


@pytest.mark.parametrize("decimal", [pa.decimal128(4, 2), pa.decimal128(38, 30)])
def test_decimals_and_whole_numbers_are_one_column(decimal: pa.DataType, tmp_path: Path) -> None:
    prices = pa.array([Decimal("2.50"), Decimal("-1.25"), None]).cast(decimal)
    for kind in (pa.int8(), pa.int64(), pa.uint64()):
        largest = np.iinfo(kind.to_pandas_dtype()).max
        a = write_parquet(tmp_path, "a.parquet", n=pa.array([1, largest, None], kind))
        b = write_parquet(tmp_path, "b.parquet", n=prices)
        wanted = [1, largest, None, Decimal("2.5"), Decimal("-1.25"), None]
        for paths, found in (([a, b], wanted), ([b, a], wanted[3:] + wanted[:3])):
            assert [row["n"] for row in rows_of(open_table(paths))] == found


def test_whole_numbers_beyond_int64_are_read_from_lists() -> None:
    hashes = [2**63 + 10, None, 5]
    source = open_table({"user": hashes})
    assert type_name(source.schema.field("user").type) == "uint64"
    assert rows_of(source) == [{"user": one} for one in hashes]
    in_pandas = open_table(pd.DataFrame({"user": hashes}, dtype=object))
    assert type_name(in_pandas.schema.field("user").type) == "uint64"
    assert rows_of(in_pandas) == rows_of(source)
    bags = [[2**64 - 1, None], None, [], [5]]
    for data in ({"users": bags}, pd.DataFrame({"users": bags})):
        assert rows_of(open_table(data)) == [{"users": one} for one in bags]
    for wrong in ([2**64, 1], [2**63, -1], [[2**64], [1]]):
        with pytest.raises(DataError, match="column 'user' cannot be read"):
            open_table({"user": wrong})


def test_whole_numbers_that_no_column_holds_are_told_to_be_given_as_text() -> None:
    """As pandas and polars read them from a CSV file, where they are text."""
    long = [10**21, 10**21 + 1]
    for data in (
        {"user": long},
        pd.DataFrame({"user": long}),
        pl.DataFrame({"user": pl.Series(long, dtype=pl.Int128)}),
    ):
        with pytest.raises(
            DataError, match=r"column 'user' cannot be read, .* too large for an int64; give them as text"
        ):
            open_table(data)
    short = pl.DataFrame({"user": pl.Series([5, None, 7], dtype=pl.Int128)})
    assert rows_of(open_table(short)) == [{"user": 5}, {"user": None}, {"user": 7}]


def test_files_that_differ_are_refused_by_file_and_column(tmp_path: Path) -> None:
    first = write_parquet(tmp_path, "a.parquet", n=[1])
    with pytest.raises(DataError, match=r"b\.parquet: column 'n' is string, but int64"):
        open_table([first, write_parquet(tmp_path, "b.parquet", n=["x"])])
    with pytest.raises(DataError, match=r"c\.parquet has no column 'n'"):
        open_table([first, pq_without(tmp_path / "c.parquet")])
    with pytest.raises(DataError, match=r"d\.parquet has a column 'm'"):
        open_table([first, write_parquet(tmp_path, "d.parquet", n=[1], m=[1])])


def pq_without(path: Path) -> Path:
    pq.write_table(pa.table({}), path)
    return path


def test_text_columns_stored_as_codes_come_as_dictionaries(tmp_path: Path) -> None:
    few, many = ["low", "high"] * 5_000, [f"row {i}, of its own" for i in range(10_000)]
    source = open_table(write_parquet(tmp_path, few=few, many=many))
    assert pa.types.is_dictionary(source.schema.field("few").type)
    assert pa.types.is_string(source.schema.field("many").type)
    assert rows_of(source) == expected({"few": few, "many": many})


@pytest.mark.parametrize("door", ["plain", "codes", "csv", "memory"])
def test_text_as_it_is_read_is_the_same_text(door: str, tmp_path: Path) -> None:
    """As dictionaries where the file has them; text that the schema types as something else is that, as ever."""
    text, numbers = ["low", "", "high", "low"] * 500, ["1.5", "2", "", "-1"] * 500
    columns: dict[str, list[Any]] = {"text": text, "n": numbers, "k": list(range(2_000))}
    data: Any = columns
    if door == "csv":
        lines = [",".join(columns), *(f"{t},{n},{k}" for t, n, k in zip(*columns.values(), strict=True))]
        data = write_csv(tmp_path, "\n".join(lines))
    elif door != "memory":
        data = tmp_path / "a.parquet"
        pq.write_table(pa.table(columns), data, use_dictionary=door == "codes")
    source = open_table(data, {"n": "double", "text": "string"})
    batches = list(source.batches(["n", "text"], rows=300, as_read=True))
    assert [one for batch in batches for one in batch["text"].to_pylist()] == text
    assert [one for batch in batches for one in batch["n"].to_pylist()] == [float(n) if n else None for n in numbers]
    kinds = {batch.schema.field("text").type for batch in batches}
    assert all(pa.types.is_dictionary(kind) == (door == "codes") for kind in kinds)
    wrong = open_table({"n": ["1", "2", "x"]}, {"n": "double"})
    with pytest.raises(DataError, match="column 'n', row 3: 'x' is not double"):
        list(wrong.batches(as_read=True))


def test_a_column_may_be_named_like_a_field_of_another(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, **{"a": [{"b": 1}], "a.b": [2]})
    assert rows_of(open_table(path), ["a.b"]) == [{"a.b": 2}]


# --- types -----------------------------------------------------------------------------------------------------------

PLAIN = [
    *(getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *(pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.string(), pa.large_string(), pa.binary(), pa.null()),
    *(pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us"), pa.duration("ms")),
    *(
        pa.timestamp(unit, zone)
        for unit in ("s", "ms", "us", "ns")
        for zone in (None, "UTC", "Europe/Berlin", "+02:00")
    ),
    *(pa.decimal128(5, 2), pa.decimal128(38, -3), pa.decimal256(60, 10)),
]
TYPES = st.recursive(
    st.sampled_from(PLAIN),
    lambda inner: st.one_of(
        inner.map(pa.list_),
        inner.map(pa.large_list),
        st.builds(pa.list_, inner, st.integers(0, 99)),
        st.builds(
            pa.dictionary, st.sampled_from([pa.int8(), pa.int32(), pa.uint16()]), st.sampled_from(PLAIN), st.booleans()
        ),
    ),
    max_leaves=3,
)


@given(TYPES)
def test_a_type_reads_back_from_its_name(kind: pa.DataType) -> None:
    assert parse_type(type_name(kind)) == kind
    assert parse_type(str(kind)) == kind


def test_names_of_fields_inside_lists_do_not_matter() -> None:
    assert parse_type("list<element: int64 not null>") == pa.list_(pa.int64())
    assert type_name(pa.list_(pa.field("element", pa.string(), nullable=False))) == "list<item: string>"
    with pytest.raises(DataError, match=r"'strin' is not the name.*did you mean 'string'"):
        parse_type("strin")


def test_names_of_columns_are_there_once_and_not_empty() -> None:
    check_names(["", *map(str, range(9))], "rows", first=1)
    for names, told in (
        (["", "a", "b", "a"], "rows: two columns are named 'a'; rename one"),
        (["a", "b", "a"], "rows: two columns are named 'a'; rename one"),
        (["", "a", " "], "rows: column 3 has an empty name; name every column"),
    ):
        with pytest.raises(DataError) as caught:
            check_names(names, "rows", first=1)
        assert str(caught.value) == told


def test_csv_types_are_inferred_and_can_be_frozen(tmp_path: Path) -> None:
    text = "id,code,note,when,empty\n1,007,NA,2022-04-25,\nNA,012,,2022-04-26,\n"
    path = write_csv(tmp_path, text)
    source = open_table(path)
    assert [type_name(kind) for kind in source.schema.types] == ["int64", "string", "string", "date32[day]", "string"]
    assert rows_of(source)[1] == {"id": None, "code": "012", "note": None, "when": dt.date(2022, 4, 26), "empty": None}
    assert rows_of(source)[0]["note"] == "NA"  # text is left as it stands
    types = {"id": "string", "code": "int8", "when": "timestamp[us]", "empty": "double", "absent": "int64"}
    frozen = rows_of(open_table(path, types))
    assert frozen[0] == {
        "id": "1",
        "code": 7,
        "note": "NA",
        "when": dt.datetime(2022, 4, 25),
        "empty": None,
    }
    dictionary = {"note": "dictionary<values=string, indices=int8, ordered=0>", "code": "list<item: string>"}
    assert rows_of(open_table(path, dictionary))[0]["code"] == "007"
    zoned = rows_of(open_table(path, {"when": "timestamp[us, tz=UTC]"}))
    assert zoned[0]["when"] == dt.datetime(2022, 4, 25, tzinfo=dt.UTC)
    with pytest.raises(DataError, match=r"column 'when', row 2 .*'2022-04-25' is not int64"):
        rows_of(open_table(path, {"when": "int64"}))


def test_a_csv_column_that_starts_empty_gets_its_type_from_later_rows(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "a,b\n" + "1,\n" * (5 << 19) + "1,7.5\n")
    source = open_table(path)
    assert type_name(source.schema.field("b").type) == "double"
    last = list(source.batches(["b"]))[-1]
    assert last["b"][-1].as_py() == 7.5


def test_numbers_in_csv_that_no_number_holds_stay_text(tmp_path: Path) -> None:
    """Ids beyond int64 and zeros in front of them, which a float64 would round or drop, and times of day."""
    long = [str(17_345_678_901_234_567_000 + at) for at in range(3)]
    rows = [f"{one},0{one},{at}.5,1e20,{at}8:30,{at}" for at, one in enumerate(long)]
    path = write_csv(tmp_path, "\n".join(["id,code,x,far,clock,n", *rows, ",,,,,"]))
    source = open_table(path)
    assert [type_name(kind) for kind in source.schema.types] == [
        "string",
        "string",
        "double",
        "double",
        "string",
        "int64",
    ]
    assert [row["id"] for row in rows_of(source)] == [*long, None]
    assert [row["code"] for row in rows_of(source)] == [*(f"0{one}" for one in long), None]
    assert [row["clock"] for row in rows_of(source)] == ["08:30", "18:30", "28:30", None]
    late = write_csv(tmp_path, "id\n" + "1\n" * (5 << 20) + long[0] + "\n")
    with pytest.raises(DataError, match="set the column's type to 'string'"):
        list(open_table(late).batches())


def test_whole_numbers_written_in_hexadecimal_stay_text(tmp_path: Path) -> None:
    source = open_table(write_csv(tmp_path, "a,b,c\n0x1F,1, -0X2\n0x20,0x2,3\n"))
    assert rows_of(source) == [{"a": "0x1F", "b": "1", "c": " -0X2"}, {"a": "0x20", "b": "0x2", "c": "3"}]


def test_decimal_commas_and_points_in_one_file(tmp_path: Path) -> None:
    rows = [f"{at},5;{at}.25;1.{at:03};NA;{at}" if at else "0,5;;1.000;7.5;0" for at in range(4)]
    source = open_table(write_csv(tmp_path, "\n".join(["comma;point;thousand;few;n", *rows, ""])))
    assert [type_name(kind) for kind in source.schema.types] == ["double", "double", "string", "double", "int64"]
    wanted = [(0.5, None, "1.000", 7.5, 0), *((at + 0.5, at + 0.25, f"1.{at:03}", None, at) for at in range(1, 4))]
    assert [tuple(row.values()) for row in rows_of(source)] == wanted
    types = dict(zip(source.schema.names, map(type_name, source.schema.types), strict=True))
    swapped = write_csv(tmp_path, "comma;point;thousand;few;n\n1.5;1,5;2.000;8,5;1\n")
    assert [tuple(row.values()) for row in rows_of(open_table(swapped, types))] == [(1.5, 1.5, "2.000", 8.5, 1)]


def test_a_column_of_thousands_with_decimal_commas_tells_what_points_of_others_are(tmp_path: Path) -> None:
    source = open_table(write_csv(tmp_path, "salary;visitors;share\n52.300,00;1.234;1.5\n1.048.300,50;-7.025;2.25\n"))
    assert [type_name(kind) for kind in source.schema.types] == ["string", "string", "double"]
    assert [tuple(row.values()) for row in rows_of(source)] == [
        ("52.300,00", "1.234", 1.5),
        ("1.048.300,50", "-7.025", 2.25),
    ]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (["2.217;7", "369;8", "1.045;9"], "string"),
        (["2.217;7", "0.369;8", "104;9"], "double"),
        (["2.217;7", "3.369;8", "1.045;9"], "double"),
        (["2.217;7", "3;8", "1.045;9"], "double"),
        (["2.217;7.5", "369;8", "1.045;9"], "double"),
        (["2.217;7", "369.5;8", "1.045;9"], "double"),
        (["2.217,7", "369,8", "1.045,9"], "double"),
    ],
    ids=["thousands", "below_one", "always", "small", "points_elsewhere", "fractions", "between_commas"],
)
def test_whole_numbers_with_points_between_semicolons_may_be_thousands(
    rows: list[str], kind: str, tmp_path: Path
) -> None:
    """As numbers 2.217 would be less than 369; where the file has no decimal comma, nothing else says so."""
    mark = "," if "," in rows[0] else ";"
    path = write_csv(tmp_path, "\n".join([f"visitors{mark}n", *rows, ""]))
    assert type_name(open_table(path).schema.field("visitors").type) == kind
    assert rows_of(open_table(path, {"visitors": "double"}))[0]["visitors"] == 2.217


def test_a_point_among_decimal_commas_is_told_for_what_it_is(tmp_path: Path) -> None:
    """To set the type to double, which it is, would be no help."""
    path = write_csv(tmp_path, "share;salary\n0,5;900\n1,5;3.380\n")
    with pytest.raises(DataError, match=r"row 3 .*'3\.380' is not double, for other .*without points \(1234,56\)$"):
        rows_of(open_table(path, {"share": "double", "salary": "double"}))


@pytest.mark.parametrize(
    ("kind", "held", "found"), [("date32", "2024-01-31", "1.2.2024"), ("bool", "true", "n.a."), ("int64", "7", "v.2")]
)
def test_a_point_in_what_is_no_number_is_not_told_of_as_one(tmp_path: Path, kind: str, held: str, found: str) -> None:
    path = write_csv(tmp_path, f"share;x\n0,5;{held}\n1,5;{found}\n")
    with pytest.raises(DataError, match=rf"row 3 .*{found!r} is not {kind}.*; mend the value, or set .* to 'string'"):
        rows_of(open_table(path, {"share": "double", "x": kind}))


def test_decimal_commas_are_found_as_far_as_types_are(tmp_path: Path) -> None:
    whole, fractional = ["1;2"] * 30_000, ["3,5;2.25"] * 10
    for at, rows in enumerate((whole + fractional, fractional + whole)):
        source = open_table(write_csv(tmp_path, "\n".join(["x;y", *rows, ""]), f"{at}.csv"))
        assert [type_name(kind) for kind in source.schema.types] == ["double", "double"]
        assert {tuple(row.values()) for row in rows_of(source)} == {(1, 2), (3.5, 2.25)}


def test_text_with_commas_makes_no_decimal_commas_of_other_columns(tmp_path: Path) -> None:
    path = write_csv(tmp_path, "tags;x\n39,12;1.234\n")
    assert rows_of(open_table(path, {"tags": "string", "x": "double"})) == [{"tags": "39,12", "x": 1.234}]


def test_frozen_types_turn_text_of_any_table_into_what_the_schema_says() -> None:
    types = {"n": "double", "t": "timestamp[us]", "v": "fixed_size_list<item: double>[2]", "k": "string"}
    data = {"n": ["1.5", ""], "t": ["2022-04-25 10:00:00", None], "v": [[1.0, 2.0], [3.0, 4.0]], "k": [1, 2]}
    source = open_table(data, types)
    assert [type_name(kind) for kind in source.schema.types] == [*list(types.values())[:3], "int64"]
    assert rows_of(source)[0] == {"n": 1.5, "t": dt.datetime(2022, 4, 25, 10), "v": [1.0, 2.0], "k": 1}
    with pytest.raises(DataError, match="column 'n', row 3: 'x' is not double"):
        rows_of(open_table({"n": ["1", "2", "x"]}, types))
    with pytest.raises(DataError, match=r"column 'v', row 2: \[3.0\] is not fixed_size_list"):
        rows_of(open_table({"v": [[1.0, 2.0], [3.0]]}, types))


def test_two_dimensional_arrays_are_lists() -> None:
    assert rows_of(open_table({"v": np.eye(2)})) == [{"v": [1.0, 0.0]}, {"v": [0.0, 1.0]}]


CELLS = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8", exclude_characters="\0\r")), st.integers(-99, 99)), min_size=1
)


@pytest.mark.parametrize("delimiter", ",;\t|")
def test_what_separates_is_looked_for_outside_of_quotes(delimiter: str, tmp_path: Path) -> None:
    names = ["a, b", "c\nd", 'e "f;, g"', 'h" i', "j"]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerow(names)
        csv.writer(file, delimiter=delimiter).writerow(range(5))
    assert rows_of(open_table(tmp_path / "a.csv")) == [dict(zip(names, range(5), strict=True))]


@pytest.mark.parametrize("delimiter", ",;\t|^")
@pytest.mark.parametrize("first", ["sep={}\n", '"sep={}"\r\n', "\ufeffsep={} \n\n"])
def test_a_line_that_names_the_separator_for_excel_is_read_past(first: str, delimiter: str, tmp_path: Path) -> None:
    rows = delimiter.join("ab") + "\n" + f"007{delimiter}1\n" * 3
    (tmp_path / "a.csv").write_text(first.format(delimiter) + rows, newline="")
    source = open_table(tmp_path / "a.csv")
    assert rows_of(source) == [{"a": "007", "b": 1}] * 3
    (tmp_path / "a.csv").write_text(first.format(delimiter).strip("\n") + "\n" + rows + "3\n", newline="")
    with pytest.raises(DataError, match=r"row 5 \(row 1 holds the column names\) has 1 fields"):
        open_table(tmp_path / "a.csv")


def test_names_may_begin_with_a_hash(tmp_path: Path) -> None:
    assert rows_of(open_table(write_csv(tmp_path, '#id,b\n1,"x,y"\n'))) == [{"#id": 1, "b": "x,y"}]
    long = ",".join(f"#{at}" for at in range(10_000))
    assert open_table(write_csv(tmp_path, f"{long}\n{long}\n")).schema.names == long.split(",")


def test_the_index_that_pandas_writes_is_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2, 3], "b": ["x", "y", None]}, index=[7, 8, 9])
    frame.to_csv(tmp_path / "1.csv")
    frame[:0].to_csv(tmp_path / "2.csv")
    assert rows_of(open_table(tmp_path)) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 3, "b": None}]


@settings(max_examples=50, deadline=None)
@given(CELLS)
def test_csv_cells_equal_the_standard_librarys(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("text", "n"), *cells])
    got = [(row["text"], row["n"]) for row in rows_of(open_table(path, {"text": "string"}))]
    assert got == [(text or None, n) for text, n in cells]


# --- what is wrong ---------------------------------------------------------------------------------------------------

BAD_CSV: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "is empty; a CSV file starts with"),
    "blank": ("\n\n", "is empty"),
    "nothing but a separator": ("sep=;\n", "is empty; a CSV file starts with"),
    "a comment": ("# of May\na,b\n1,2\n", "begins with '# of May', which looks like a comment"),
    "a comment above semicolons": ("# of May\n\na;b\n1;2\n", "begins with '# of May'"),
    "comments with commas": ("# of May, all\n# of us\na,b,c\n1,2,3\n", "begins with '# of May, all'"),
    "no rows": ("a,b\n", "column names but no rows"),
    "duplicate": ("a,a\n1,2\n", "two columns are named 'a'"),
    "unnamed": ("a,,c\n1,2,3\n", "column 2 has an empty name"),
    "unnamed after an index": (",a,\n1,2,3\n", "column 3 has an empty name"),
    "unnamed alone": (" \n1\n", "column 1 has an empty name"),
    "ragged": ("a,b\n1,2\n3,4\n5\n", "row 4 .* has 1 fields where the column names are 2"),
    "latin-1": (b"a,b\n1,caf\xe9\n", "column 'b' is not UTF-8"),
    "latin-1 names": (b"a,caf\xe9\n1,2\n", "row 1 .the column names. is not UTF-8"),
    "latin-1 names on a later line": (b'\n"a\nb",caf\xe9\n1,2\n', "row 1 .the column names. is not UTF-8"),
    "latin-1 names without rows": (b"a,caf\xe9\n", "row 1 .the column names. is not UTF-8"),
    "utf-16": ("a,b\n1,2\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_broken_csv_file_is_explained(case: str, tmp_path: Path) -> None:
    text, message = BAD_CSV[case]
    with pytest.raises(DataError, match=message):
        rows_of(open_table(write_csv(tmp_path, text)))


def test_names_longer_than_what_is_looked_at_first_are_utf_8_wherever_that_ends(tmp_path: Path) -> None:
    for blanks in range(3):
        name = "a" * blanks + "\N{CJK UNIFIED IDEOGRAPH-5217}" * 30_000
        assert open_table(write_csv(tmp_path, f"{name},b\n1,2\n")).schema.names == [name, "b"]


@pytest.mark.parametrize(("bad", "cure"), [("x", "string"), ("1.5", "double")])
def test_a_value_that_does_not_convert_is_named_with_its_row(bad: str, cure: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path, "a,b,c\n" + "1,2,3\n" * 1_800_000 + f"1,{bad},3\n" + "1,2,3\n" * 10)
    source = open_table(path)
    with pytest.raises(DataError, match=f"column 'b', row 1,800,002 .*: '{bad}' is not int64.* type to '{cure}'"):
        rows_of(source, ["c", "b"])
    assert list(open_table(path, {"b": cure}).batches(["b"]))[-1]["b"].to_pylist()[-11] == parse_like(bad)


def parse_like(text: str) -> Any:
    return float(text) if text == "1.5" else text


def test_later_rows_of_another_encoding_are_named(tmp_path: Path) -> None:
    path = write_csv(tmp_path, b"a,b\n" + b"1,cafe\n" * 1_800_000 + b"1,caf\xe9\n")
    with pytest.raises(DataError, match=r"column 'b', row 1,800,002 .*is not UTF-8"):
        rows_of(open_table(path))


def test_a_torn_file_is_explained(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 1 << 60, 200_000)
    whole = write_parquet(tmp_path, n=noise).read_bytes()
    for name, raw in {
        "empty": b"",
        "cut": whole[: len(whole) // 2],
        "footless": whole[:-8],
        "text": b"a,b\n1,2\n",
    }.items():
        (tmp_path / "a.parquet").write_bytes(raw)
        with pytest.raises(DataError, match=r"a\.parquet is (empty|not a (whole )?Parquet file)"):
            open_table(tmp_path / "a.parquet")
        assert name
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 1_000_000)[:-500])
    with pytest.raises(DataError, match=r"b\.csv\.gz cannot be read"):
        rows_of(open_table(tmp_path / "b.csv.gz"))
    (tmp_path / "c.csv.gz").write_bytes(b"a,b\n1,2\n")
    with pytest.raises(DataError, match=r"c\.csv\.gz is not compressed with gzip; name it c\.csv"):
        open_table(tmp_path / "c.csv.gz")


def test_damage_inside_a_parquet_file_is_explained(tmp_path: Path) -> None:
    table = pa.table({"s": [f"{i:x}" * 5 for i in range(50_000)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    raw[1_000:50_000] = bytes(49_000)
    (tmp_path / "a.parquet").write_bytes(raw)
    with pytest.raises(DataError, match=r"a\.parquet is damaged"):
        rows_of(open_table(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.arrow"])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            pa.ArrowMemoryError("malloc failed"),
            "needs more memory than there is, or is .*; free some memory first",
        ),
        (
            pa.ArrowException("Failed to launch worker thread: no"),
            "cannot be read: no more threads can be started; raise",
        ),
    ],
    ids=["memory", "threads"],
)
def test_a_file_is_not_called_damaged_alone_where_the_machine_may_have_too_little(
    name: str, error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"a": [1, 2]})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    elif name == "a.arrow":
        with pa.ipc.new_file(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    else:
        (tmp_path / name).write_text("a\n1\n2\n")

    def refused(*_: Any, **__: Any) -> None:
        raise error

    for place in ("csv.open_csv", "parquet.ParquetFile", "ipc.open_file", "ipc.open_stream"):
        monkeypatch.setattr(f"pyarrow.{place}", refused)
    with pytest.raises(DataError, match=f"{name} {told}"):
        rows_of(open_table(tmp_path / name))


def test_damage_that_arrow_hands_on_is_explained(tmp_path: Path) -> None:
    """Bytes changed in pages that are not packed: Arrow reads other numbers, text of no letters, codes of no value."""
    path = tmp_path / "a.parquet"

    def altered(values: list[Any], old: bytes, new: bytes, **options: Any) -> Source:
        pq.write_table(pa.table({"a": values}), path, compression="none", write_statistics=False, **options)
        whole = path.read_bytes()
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        return open_table(path)

    numbers, others = [1.5, 2.5], [1.5, 3.5]
    old, new = np.float64(numbers).tobytes(), np.float64(others).tobytes()
    assert rows_of(altered(numbers, old, new, use_dictionary=False)) == expected({"a": others}), "nothing tells it"
    with pytest.raises(DataError, match=r"a\.parquet is damaged and cannot be read to its end; write or fetch"):
        rows_of(altered(numbers, old, new, use_dictionary=False, write_page_checksum=True))
    garbled = altered(["mauve", "olive"], b"olive", b"ol\xffve")
    with pytest.raises(DataError, match=r"a\.parquet holds text that is not UTF-8; write"), placed(garbled.name, ()):
        rows_of(garbled)
    codes = bytes([0b00_10_01_00, 0b01_00_10_01, 0b10_01_00_10] * 4)  # of the 48 values, two bits each
    with pytest.raises(DataError, match=r"a\.parquet is damaged"):
        list(altered(["a", "b", "c"] * 16, codes, b"\xff" * 12).batches(as_read=True))


@pytest.mark.parametrize("given", [pa.Table, pa.RecordBatch, pa.RecordBatchReader, dict, pd.DataFrame])
def test_arrow_in_memory_that_points_beside_its_values_is_refused(given: type) -> None:
    """As Arrow hands on a damaged stream: to read such a text would end the process."""

    def opened(array: pa.Array) -> Source:
        batch = pa.record_batch({"a": array, "b": range(3)})
        table = pa.Table.from_batches([batch])
        columns = {"a": array, "b": list(range(3))}
        arrow = pd.Series(pd.arrays.ArrowExtensionArray(pa.chunked_array([array])))
        ways = {
            pa.Table: table,
            pa.RecordBatch: batch,
            dict: columns,
            pd.DataFrame: pd.DataFrame({**columns, "a": arrow}),
        }
        return open_table(ways.get(given, table.to_reader()))

    far, two = np.array([0, 2, 1 << 30, 3], np.int32).tobytes(), pa.array(["mauve", "olive"])
    texts = pa.StringArray.from_buffers(3, pa.py_buffer(far), pa.py_buffer(b"abc"))
    lists = pa.Array.from_buffers(pa.list_(pa.int64()), 3, [None, pa.py_buffer(far)], children=[pa.array([1, 2, 3])])
    for array in (texts, lists, pa.DictionaryArray.from_arrays(pa.array([0, 9, 1]), two, safe=False)):
        with pytest.raises(DataError, match=r"column 'a' of the table is damaged \(.+\); write or fetch it again"):
            opened(array)
    latin = pa.StringArray.from_buffers(3, pa.py_buffer(np.arange(4, dtype=np.int32)), pa.py_buffer(b"\xe4\xf6\xfc"))
    times = pa.array([1, 2, 3]).cast(pa.timestamp("ms")).view(pa.date64())
    for array in (latin, times):  # nothing of them lies elsewhere
        assert rows_of(opened(array), ["b"]) == [{"b": at} for at in range(3)]
    with pytest.raises(DataError, match="column 'a' of the table is damaged"):
        open_table(pa.table({"a": pa.chunked_array([latin, texts])}))


def test_of_what_slices_share_only_what_they_hold_is_looked_at() -> None:
    """A table read slice by slice would take the square of its time; days in lists and dictionaries are as others."""
    latin = pa.StringArray.from_buffers(3, pa.py_buffer(np.arange(4, dtype=np.int32)), pa.py_buffer(b"ab\xfc"))
    tags = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), latin)
    assert rows_of(open_table(pa.table({"a": tags.slice(0, 2)})), ["a"]) == [{"a": ["a"]}, {"a": ["b"]}]
    with pytest.raises(DataError, match=r"column 'a' of the table is damaged"):
        open_table(pa.table({"a": tags.slice(1)}))
    times = pa.array([1, 2, 3]).cast(pa.timestamp("ms")).view(pa.date64())
    within = [pa.ListArray.from_arrays(pa.array([0, 1, 2, 3]), times), pa.DictionaryArray.from_arrays([0, 1, 2], times)]
    for array in within:
        assert open_table(pa.table({"a": array})).rows == 3


@pytest.mark.parametrize("stream", [False, True])
def test_arrow_files_damaged_anywhere_are_refused_or_read(stream: bool, tmp_path: Path) -> None:
    """Never a crash: of codes and text that point beside their values nothing else would tell."""
    table = pa.table({"word": ["red", "blue", None] * 40, "n": range(120)})
    table = table.append_column("code", table["word"].dictionary_encode())
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(tmp_path / "whole.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=50)
    whole = (tmp_path / "whole.arrow").read_bytes()
    random = np.random.default_rng(0)
    outcomes = set()
    for trial in range(300):
        content = bytearray(whole)
        if trial % 3:
            for at in random.integers(0, len(content), 4):
                content[at] = random.integers(256)
        else:
            content = content[: random.integers(1, len(content))]
        (tmp_path / "a.arrow").write_bytes(content)
        try:
            for batch in open_table(tmp_path / "a.arrow").batches():
                batch.to_pylist()
            outcomes.add("read")
        except DataError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1, 7], pa.int8()), ["a", "b"], safe=False)
    with pa.ipc.new_stream(tmp_path / "b.arrow", pa.schema([("code", codes.type)])) as writer:
        writer.write_batch(pa.record_batch({"code": codes}))
    with pytest.raises(DataError, match=r"b\.arrow is damaged and cannot be read to its end; write or fetch it again"):
        list(open_table(tmp_path / "b.arrow").batches())


def test_paths_that_lead_nowhere_are_explained(tmp_path: Path) -> None:
    path = write_parquet(tmp_path, "train.parquet")
    with pytest.raises(DataError, match=r"no 'trian\.parquet'; did you mean 'train\.parquet'\?"):
        open_table(tmp_path / "trian.parquet")
    with pytest.raises(DataError, match="has no 'nowhere'"):
        open_table(tmp_path / "nowhere" / "deep" / "a.parquet")
    with pytest.raises(DataError, match="no file matches"):
        open_table(str(tmp_path / "*.csv"))
    with pytest.raises(DataError, match=r"unsupported extension; these are read: \.parquet"):
        open_table(write_csv(tmp_path, "a\n1\n", "a.xlsx"))
    with pytest.raises(DataError, match="is empty; give"):
        open_table("")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no Parquet, Arrow, CSV or JSON lines file is in folder"):
        open_table(tmp_path / "none")
    write_csv(tmp_path, "a\n1\n")
    with pytest.raises(DataError, match=r"holds CSV and Parquet files; give a glob such as .*/\*\.csv$"):
        open_table(tmp_path)
    with pytest.raises(DataError, match="has no column 'aeg'; did you mean 'age'"):
        next(open_table(path).batches(["aeg"]))


BAD_TABLES: dict[str, tuple[Any, str]] = {
    "no rows": (pa.table({"a": pa.array([], pa.int64())}), "no rows"),
    "no columns": (pd.DataFrame(), "no columns"),
    "duplicate": (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns"),
    "duplicate arrow": (pa.table([[1], [2]], names=["a", "a"]), "two columns are named 'a'"),
    "duplicate as text": ({5: [1], "5": [1]}, "two columns of the table are named '5'"),
    "duplicate as text, pandas": (
        pd.DataFrame([[1, 2, 3], [1, 2, "x"]], columns=[5, "5", "mixed"]),
        "two columns of the table are named '5'",
    ),
    "unnamed": ({"": [1]}, "empty name"),
    "mixed": ({"a": [1, "x"]}, "column 'a' cannot be read as one type"),
    "mixed pandas": (pd.DataFrame({"a": [1, "x"]}), "column 'a' cannot be read as one type"),
    "lengths": ({"a": [1, 2], "b": [1]}, r"differ in length \('a' 2, 'b' 1\)"),
    "a scalar": ({"a": 1}, r"column 'a' is one int, not a list; write \[1\]"),
    "an array of no axes": ({"a": np.array(1)}, r"column 'a' is one ndarray, not a list; write \[array\(1\)\]"),
    "text": ({"a": "abc"}, "column 'a' is one str"),
    "lazy": (pl.LazyFrame({"a": [1]}), "found LazyFrame"),
    "series": (pl.Series("a", [1]), "found Series"),
    "nothing": (None, "found NoneType"),
    "empty list": ([], "found list"),
    "rows": ([{"a": 1}], "found list"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_what_is_no_table_is_explained(case: str) -> None:
    data, message = BAD_TABLES[case]
    with pytest.raises(DataError, match=message):
        open_table(data)


@pytest.mark.parametrize("form", ["lists", "array", "pandas", "beside what cannot be read"])
def test_times_behind_a_day_keep_their_hour(form: str) -> None:
    """Arrow itself takes all for what the first is."""
    day, moment = dt.date(2024, 1, 2), dt.datetime(2024, 1, 2, 17, 30)
    values = [None, day, moment, pd.NaT, pd.Timestamp("2024-01-03 05:00")]
    frame = pd.DataFrame(
        {"t": pd.Series(values, dtype=object), "d": pd.Series([day, pd.NaT] + [day] * 3, dtype=object)}
    )
    table = {
        "lists": {"t": values, "d": [day, None, day, day, day]},
        "array": {"t": np.array(values, dtype=object), "d": frame["d"]},
        "pandas": frame,
        "beside what cannot be read": frame.assign(odd=[1, "x", 1, 1, 1]),
    }[form]
    found = pa.Table.from_batches(open_table(table).batches())
    wanted = [None, dt.datetime(2024, 1, 2), moment, None, dt.datetime(2024, 1, 3, 5)]
    assert found["t"].cast(pa.timestamp("us")).to_pylist() == wanted
    assert found["d"].type == pa.date32(), "days alone stay days"


# --- fingerprint -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    before = open_table(path).fingerprint
    assert open_table(path).fingerprint == before
    os.utime(path, ns=(1, 1))
    assert open_table(path).fingerprint != before
    changed = ROWS | {"age": [31, 44, None, 8]}
    renamed = {"who" if name == "user" else name: values for name, values in ROWS.items()}
    prints = {open_table(data).fingerprint for data in (ROWS, dict(ROWS), pa.table(ROWS), changed, renamed)}
    assert len(prints) == 3


def test_the_fingerprint_of_a_table_in_memory_is_that_of_its_rows_however_they_are_chunked() -> None:
    """polars and others cut the same rows otherwise from one reading to the next."""
    some = np.random.default_rng(0).integers(0, 9, 70_000)
    columns = {
        "x": pa.array([None if one == 3 else one / 7 for one in some.tolist()]),
        "text": pa.array([None if one == 5 else "é" * one for one in some.tolist()]),
        "codes": pa.array([f"c{one}" for one in some.tolist()]).dictionary_encode(),
        "tags": pa.array([["t"] * one for one in some.tolist()]),
        "yes": pa.array([one > 4 for one in some.tolist()]),
    }
    whole = pa.table(columns)
    for size in (1_000, 9_999, 65_536):
        pieces = pa.concat_tables([whole.slice(at, size) for at in range(0, whole.num_rows, size)])
        assert pieces.column("x").num_chunks > 1
        assert open_table(pieces).fingerprint == open_table(whole).fingerprint
    assert open_table(whole.slice(1)).fingerprint != open_table(whole).fingerprint


def test_census_comes_as_it_is_stored(shared_data: Path) -> None:
    source = open_table(shared_data / "census-income" / "train.parquet")
    assert source.rows == 199_523
    table = pa.Table.from_batches(source.batches(["income_50k", "age"]))
    stored = pq.read_table(shared_data / "census-income" / "train.parquet", columns=["income_50k", "age"])
    assert table["age"].to_pylist() == stored["age"].to_pylist()
    assert table["income_50k"].to_pylist() == stored["income_50k"].to_pylist()


def test_a_column_that_cannot_be_read_is_refused_only_where_it_is_asked_for() -> None:
    mixed = {"a": [1, 2], "note": [1, "x"]}
    for table in (mixed, pd.DataFrame(mixed)):
        source = open_table(table)
        assert source.schema.names == ["a"]
        assert rows_of(source, ["a"]) == [{"a": 1}, {"a": 2}]
        with pytest.raises(DataError, match="column 'note' cannot be read as one type"):
            rows_of(source, ["a", "note"])


def test_csv_files_whose_guessed_types_differ_are_one_table(tmp_path: Path) -> None:
    parts = {"1": "code,coupon,note\n1234,,5\n", "2": "code,coupon,note\n0123,7,abc\n", "3": "code,coupon,note\n"}
    for name, text in parts.items():
        (tmp_path / f"{name}.csv").write_text(text)
    source = open_table(tmp_path)
    assert source.schema.types == [pa.string(), pa.int64(), pa.string()]
    wanted = [{"code": "1234", "coupon": None, "note": "5"}, {"code": "0123", "coupon": 7, "note": "abc"}]
    assert rows_of(source) == wanted
    with pytest.raises(DataError, match="column names but no rows"):
        open_table(tmp_path / "3.csv")


VIEWS = (pa.list_(pa.string_view()), pa.large_list(pa.string_view()), pa.list_(pa.string_view(), 2))


def test_text_views_in_parquet_are_text(tmp_path: Path) -> None:
    view = pa.string_view()
    texts = {"c": (["a", None, "b"], view)}
    texts |= {str(kind): ([["a", "b"], None, ["b", None]], kind) for kind in VIEWS}
    table = pa.table({name: pa.array(values, kind) for name, (values, kind) in texts.items()})
    pq.write_table(table, tmp_path / "views.parquet")
    for data in (table, tmp_path / "views.parquet"):
        source = open_table(data)
        assert "view" not in " ".join(map(type_name, source.schema.types))
        assert source.schema.field("c").type == pa.large_string()
        assert pa.Table.from_batches(source.batches()).to_pydict() == {name: text for name, (text, _) in texts.items()}


@pytest.mark.skipif(not hasattr(pa, "decimal32"), reason="this Arrow has no narrow decimals")
def test_narrow_decimals_and_truth_values_of_a_byte_are_what_they_stand_for(tmp_path: Path) -> None:
    cents = [Decimal("1.25"), None, Decimal("-3.00")]
    columns = {str(kind): pa.array(cents, kind) for kind in (pa.decimal32(5, 2), pa.decimal64(12, 2))}
    columns["list"] = pa.array([cents, None, []], pa.list_(pa.decimal32(5, 2)))
    columns["truth"] = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None, 0], pa.int8()))
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    for data in (table, tmp_path / "a.parquet", tmp_path / "a.arrow"):
        source = open_table(data)
        assert [parse_type(type_name(kind)) for kind in source.schema.types] == source.schema.types
        assert source.schema.types[:2] == [pa.decimal128(5, 2), pa.decimal128(12, 2)]
        found = pa.Table.from_batches(source.batches()).to_pydict()
        assert found.pop("truth") == [True, None, False]
        assert found.pop("list") == [cents, None, []]
        assert list(found.values()) == [cents, cents]


@pytest.mark.skipif(not hasattr(pa, "uuid"), reason="this Arrow has no UUIDs")
def test_uuids_are_text_in_every_door(tmp_path: Path) -> None:
    found = [None if at % 4 == 3 else uuid.UUID(int=random.Random(at).getrandbits(128)) for at in range(11)]
    texts = [None if one is None else str(one) for one in found]
    table = pa.table({"id": pa.chunked_array([pa.array(found[:3]), pa.array(found)[3:9], pa.array(found[9:])])})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    frames = [pd.DataFrame({"id": values}) for values in (found, pd.Categorical(found))]
    for data in (table, tmp_path / "a.parquet", tmp_path / "a.arrow", {"id": found}, *frames):
        source = open_table(data)
        assert source.schema.types == [pa.large_string()]
        assert rows_of(source) == [{"id": one} for one in texts]
    assert rows_of(open_table(table[1:5])) == [{"id": one} for one in texts[1:5]]


def test_whole_numbers_too_long_for_the_fractions_of_another_file(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [10**18 + 93]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [0.5]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: column 'id', row 1: 1000000000000000093 has too many digits"):
        rows_of(open_table(tmp_path))


def test_long_whole_numbers_in_text_are_never_rounded() -> None:
    long = str(10**18 + 93)
    assert rows_of(open_table({"id": [long, "7"]}, {"id": "int64"})) == [{"id": 10**18 + 93}, {"id": 7}]
    assert rows_of(open_table({"id": [" 8", "7.0"]}, {"id": "int64"})) == [{"id": 8}, {"id": 7}]
    with pytest.raises(DataError, match="column 'id' does not convert to int64"):
        rows_of(open_table({"id": [long, " 7"]}, {"id": "int64"}))


def test_whole_numbers_beyond_int64_beside_a_file_of_int64_are_told_and_the_advice_helps(tmp_path):
    def write(name, values, kind):
        pq.write_table(pa.table({"id": pa.array(values, pa.uint64()).cast(kind)}), tmp_path / name)

    write("a.parquet", [7, 2**62], pa.int64())
    write("b.parquet", [1, 2**63], pa.uint64())
    told = (
        r"b.parquet: column 'id', row 2: 9223372036854775808 is too large for int64, .*; write it as uint64 or as text"
    )
    with pytest.raises(DataError, match=told):
        list(open_table(tmp_path).batches())
    for kind in (pa.uint64(), pa.string()):
        write("a.parquet", [7, 2**62], kind)
        write("b.parquet", [1, 2**63], kind)
        rows = [int(one) for batch in open_table(tmp_path).batches() for one in batch["id"].to_pylist()]
        assert rows == [7, 2**62, 1, 2**63]


def test_what_wide_tables_are_is_asked_of_arrow_as_often_as_of_narrow_ones(tmp_path, monkeypatch):
    """It makes schemas and their names anew each time, so that asking for every column takes the square of them."""
    asked = []

    def counted(kind: type, name: str) -> None:
        own = getattr(kind, name)
        monkeypatch.setattr(kind, name, property(lambda one: (asked.append(name), own.fget(one))[1]))

    counted(pq.ParquetFile, "schema_arrow")
    counted(pq.ParquetFile, "metadata")
    often = []
    for columns in (2, 30):
        folder = tmp_path / str(columns)
        folder.mkdir()
        for name in ("a.parquet", "b.parquet"):
            write_parquet(folder, name, **{f"c{at}": ["x", "y", "x"] for at in range(columns)})
        asked.clear()
        assert open_table(folder).schema.names == [f"c{at}" for at in range(columns)]
        often.append(len(asked))
    assert often[0] == often[1]


def test_files_of_one_table_are_each_asked_once_for_their_columns() -> None:
    class Part:
        name, guessed, sparse, rows = "a part", False, False, 0

        def __init__(self, columns: int) -> None:
            self.columns, self.asked = columns, 0

        @property
        def schema(self) -> pa.Schema:
            self.asked += 1
            return pa.schema([(f"c{at}", pa.int64()) for at in range(self.columns)])

    few, many = ([Part(columns) for _ in range(3)] for columns in (2, 50))
    for parts in (few, many):
        assert len(_merged(parts, {}).names) == parts[0].columns
    assert [part.asked for part in many] == [part.asked for part in few]


@pytest.mark.parametrize("batches", [0, 2])
def test_a_stream_without_rows_is_told_of_by_who_reads_it(batches: int, tmp_path: Path) -> None:
    """Nothing tells before how many rows it has: predictions of none came back."""
    schema = pa.schema([("a", pa.int64())])
    for name, rows in (("none", []), ("some", [{"a": 1}])):
        with pa.OSFile(str(tmp_path / f"{name}.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for _ in range(batches):
                writer.write_batch(pa.RecordBatch.from_pylist([], schema=schema))
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
    for columns in (["a"], []):
        with pytest.raises(DataError, match="column names but no rows; give a table with at least one row"):
            list(open_table(tmp_path / "none.arrow").batches(columns))
    assert sum(batch.num_rows for batch in open_table(tmp_path).batches(["a"])) == 1, "beside one with rows"


@pytest.mark.parametrize("change", ["appended to", "replaced", "removed and made anew", "another added", "nothing"])
def test_files_that_change_between_the_first_batch_and_the_last_are_told(tmp_path: Path, change: str) -> None:
    """By whoever reads them, such as for scores or predictions: rows of two tables would go together."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("a.csv", "b.csv"):
        write_csv(folder, "id,x\n" + "1,2\n" * 50, name)
    batches = open_table(folder).batches(rows=50)
    assert next(batches).num_rows == 50
    match change:
        case "appended to":
            with (folder / "b.csv").open("a") as file:
                file.write("3,4")
        case "replaced":
            write_csv(tmp_path, "id,x\n5,6\n", "b.csv").replace(folder / "b.csv")
        case "removed and made anew":
            (folder / "b.csv").unlink()
            write_csv(folder, "id,x\n5,6\n", "b.csv")
        case "another added":
            write_csv(folder, "id,x\n7,8\n", "c.csv")
    if change in ("another added", "nothing"):
        assert sum(batch.num_rows for batch in batches) == 50
        return
    with pytest.raises(DataError, match="rows changed while it was read; go on once nothing writes to it"):
        list(batches)


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.csv.gz", "a.jsonl", "a.arrow"])
@pytest.mark.parametrize("given", ["itself", "its folder", "a glob"])
def test_a_file_whose_name_is_no_text_is_told_by_it(tmp_path: Path, name: str, given: str) -> None:
    """Arrow takes no such name: a whole file was called damaged, or it ended in a traceback."""
    path = tmp_path / f"caf\udce9-{name}"
    path.write_bytes(b"x")
    table = {"itself": path, "its folder": tmp_path, "a glob": str(tmp_path / "*.*")}[given]
    with pytest.raises(DataError, match=r"caf\\udce9-a.* holds bytes that are not UTF-8; rename it"):
        open_table(table)
