"""JSON lines against the standard library's reading of them."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from multigate.data import json_lines, json_reader
from multigate.data.files import open_table
from multigate.data.infer import inspect_table
from multigate.data.json_lines import JsonLinesFile
from multigate.errors import DataError

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
CELLS = {
    "whole": st.integers(-(2**63), 2**63 - 1),
    "fraction": st.floats(allow_nan=False, allow_infinity=False),
    "text": TEXTS.filter(bool),
    "flag": st.booleans(),
    "bag": st.lists(TEXTS | st.none(), max_size=3),
    "when": st.dates().map(str),
}


def write(folder: Path, *rows: Any, name: str = "a.jsonl") -> Path:
    (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return folder / name


def rows_of(data: Any, **types: str) -> list[dict[str, Any]]:
    return [row for batch in open_table(data, types).batches(rows=3) for row in batch.to_pylist()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({}, optional={name: cell | st.none() for name, cell in CELLS.items()})))
@example([{"fraction": 2.0**63}, {"whole": 2**63 - 1, "fraction": -1e300}])
def test_cells_equal_the_standard_librarys(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    rows = [dict.fromkeys(CELLS) | {"text": "first"}, *rows]
    path = write(tmp_path_factory.mktemp("json"), *rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "BLOCK", 64)  # lines go over the ends of blocks
        patch.setattr(json_lines, "LOOKED_AT", 1_000)
        found = rows_of(path)
    assert [{name: row.get(name) for name in CELLS} for row in rows] == found


def test_text_stays_text_and_whole_numbers_keep_their_digits(tmp_path: Path) -> None:
    long = 123456789012345678901
    path = write(tmp_path, {"code": "007", "day": "2026-01-05", "days": ["2026-01-05"], "id": 5}, {"id": long}, {})
    source = open_table(path)
    assert dict(zip(source.schema.names, map(str, source.schema.types), strict=True)) == {
        "code": "string", "day": "string", "days": "list<item: string>", "id": "string",
    }  # fmt: skip
    assert [row["id"] for row in rows_of(path)] == ["5", str(long), None]
    assert rows_of(path, day="timestamp[us]")[0]["day"].year == 2026


@pytest.mark.parametrize("key", ["é", "\\u00e9", "\\u00E9", "a\\/b", 'a\\"b'])
def test_whole_numbers_keep_their_digits_however_their_key_is_written(tmp_path: Path, key: str) -> None:
    long = 2**63 + 5
    (path := tmp_path / "a.jsonl").write_text(f'{{"{key}": {long}, "y": 9.3e+18}}\n' * 2, encoding="utf-8")
    assert rows_of(path)[1] == {json.loads(f'"{key}"'): str(long), "y": 9.3e18}


@pytest.mark.parametrize(
    "first", [[None, "a"], [None, 1.5], [None, None, True], [None, "2026-01-05"], [None, [None, 1]]]
)
def test_lists_may_begin_with_a_null(tmp_path: Path, first: list[Any]) -> None:
    rows = [{"f": first, "of": {"l": first}}, {"f": None, "of": None}, {"f": [*first, None], "of": {"l": None}}]
    assert rows_of(write(tmp_path, *rows)) == rows


def test_lists_of_nothing_but_nulls_hold_nothing(tmp_path: Path) -> None:
    nothing = write(tmp_path, {"f": [None, None], "x": 1}, {"f": [], "x": 2}, {})
    assert str(open_table(nothing).schema.field("f").type) == "list<item: null>"
    assert [row["x"] for row in rows_of(nothing)] == [1, 2, None]
    assert not any(one for row in rows_of(nothing) for one in row["f"] or ())
    assert [row["f"] for row in rows_of(nothing, f="list<item: string>")] == [[None, None], [], None]
    some = write(tmp_path, {"f": ["a"], "x": 3}, name="b.jsonl")
    assert [row["f"] for row in rows_of([nothing, some], f="list<item: string>")][-1] == ["a"]


@pytest.mark.parametrize("last", [2**64 - 1, 123456789012345678901, -(2**63) - 1])
def test_whole_numbers_in_lists_keep_their_digits(tmp_path: Path, last: int) -> None:
    lists = [[5], [2**62 + 1, None, last], None, [last, 7], []]
    texts = [None if one is None else [None if item is None else str(item) for item in one] for one in lists]
    path = write(tmp_path, *({"ids": one, "x": 0.5} for one in lists))
    assert str(open_table(path).schema.field("ids").type) == "list<item: string>"
    assert [row["ids"] for row in rows_of(path)] == texts
    fractions = write(tmp_path, {"ids": [1e19, 0.5]}, {"ids": [12345678901234567890, 2.5]}, name="b.jsonl")
    assert [row["ids"] for row in rows_of(fractions)] == [[1e19, 0.5], [12345678901234567890.0, 2.5]]


def test_whole_numbers_in_lists_keep_their_digits_wherever_they_become_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 64)
    path = write(tmp_path, *({"ids": [at, 2]} for at in range(9)), {"ids": [2**64 - 1]}, {"ids": [3]})
    assert [row["ids"] for row in rows_of(path)][7:] == [["7", "2"], ["8", "2"], [str(2**64 - 1)], ["3"]]


def test_columns_and_types_are_of_all_the_rows_that_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 16)
    monkeypatch.setattr(json_lines, "LOOKED_AT", 9)
    path = write(tmp_path, {"n": 1}, {"n": 2}, {"n": 2.5, "late": True}, {"n": None, "tags": []}, {"tags": ["a"]})
    source = open_table(path)
    assert list(map(str, source.schema.types)) == ["double", "bool", "list<item: string>"]
    assert next(source._parts[0].read(source.schema, 65_536)).num_rows == 1, "blocks are as small as asked for"
    assert [row["n"] for row in rows_of(path)] == [1, 2, 2.5, None, None]


def test_what_comes_later_is_read_if_the_schema_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 8)
    monkeypatch.setattr(json_lines, "LOOKED_AT", 1)
    path = write(tmp_path, {"n": 1, "day": None, "bag": []}, {"n": 2.0}, {"n": 2.5}, {"day": "2026-01-05", "bag": [1]})
    with pytest.raises(DataError, match=r"column 'n', row 3: 2.5 is not int64"):
        list(open_table(path).batches(["n"]))
    found = rows_of(path, n="double", day="timestamp[us]", bag="list<item: int64>")
    assert [row["n"] for row in found] == [1, 2, 2.5, None]
    assert (found[3]["day"].day, [row["bag"] for row in found]) == (5, [[], None, None, [1]])


def test_files_may_be_compressed_and_lie_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "day=1").mkdir()
    (tmp_path / "day=2").mkdir()
    whole = write(tmp_path, {"x": 1}, {"x": 2}).read_bytes()
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "day=1" / "a.JSONL.GZ").write_bytes(gzip.compress(whole))
    (tmp_path / "day=2" / "a.ndjson.zst").write_bytes(pa.Codec("zstd").compress(whole).to_pybytes())
    assert rows_of(tmp_path) == [{"x": x, "day": day} for day in (1, 2) for x in (1, 2)]
    assert sum(batch.num_rows for batch in open_table(tmp_path).batches([])) == 4


def test_a_key_that_a_file_has_not_is_null_there(tmp_path: Path) -> None:
    write(tmp_path, {"x": 1}, name="a.jsonl")
    write(tmp_path, {"x": 2.5, "buy": True}, name="b.jsonl")
    write(tmp_path, {"buy": False, "tag": "new"}, name="c.jsonl")
    assert rows_of(tmp_path) == [
        {"x": 1.0, "buy": None, "tag": None},
        {"x": 2.5, "buy": True, "tag": None},
        {"x": None, "buy": False, "tag": "new"},
    ]
    (tmp_path / "d.csv").write_text("buy\nTrue\n")
    with pytest.raises(DataError, match=r"d.csv has no column 'tag'"):
        rows_of([tmp_path / "c.jsonl", tmp_path / "d.csv"])


@pytest.mark.parametrize("empty", [b"", b"\n", b"\n \n\n"])
@pytest.mark.parametrize("name", ["a.jsonl", "c.jsonl"])
def test_files_without_rows_lie_among_others(tmp_path: Path, empty: bytes, name: str) -> None:
    write(tmp_path, {"x": 1, "tag": "new"}, {"x": 2}, name="b.jsonl")
    (tmp_path / name).write_bytes(empty)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b""))
    assert rows_of(tmp_path) == [{"x": 1, "tag": "new"}, {"x": 2, "tag": None}]
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(DataError, match="has no rows; write one JSON object a line"):
        open_table(tmp_path)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (('{"x": 1}', '{"x": "a"}'), "column 'x', row 2: found string where rows before have number"),
        (('{"x": 1}', '{"x": 2'), "row 2 is no JSON object"),
        (('{"x": 1}', "7"), "row 2 is no JSON object but number"),
        (("[", '{"x": 1}', "]"), "is no JSON object"),
        (('[{"x": 1}]',), "row 1 is no JSON object but array"),
        (('{"x": 1},', '{"x": 2}'), "nothing between lines"),
        (('{"x": 1, "x": 2}',), "row 1 has column 'x' twice"),
        (('{"": 1}',), "column 1 has an empty name"),
        (("",), "has no rows"),
        (("{}",), "has no columns"),
    ],
)
def test_files_that_are_no_such_lines_are_told_of(tmp_path: Path, lines: tuple[str, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_table(write(tmp_path, *lines))


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (1, "a", "column 'x', row 3: found string where rows before have number"),
        ("a", ["a"], "column 'x', row 3: found array where rows before have string"),
        ({"a": 1}, {"a": "b"}, "column 'x/a', row 3: found string where rows before have number"),
        ([{"a": [1]}], [{"a": ["b"]}], "column 'x/\\[\\]/a/\\[\\]', row 3: found string where"),
        ({"a": 1}, "b", "column 'x', row 3: found string where rows before have object"),
    ],
)
@pytest.mark.parametrize("block", [4 << 20, 32], ids=["one block", "a block a row"])
def test_a_column_of_several_types_stops_only_who_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Any, second: Any, said: str, block: int
) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", block)
    rows = [{"x": None, "n": 2**63 + 5}, {"x": first, "n": 1}, {"x": second, "é": "ü", "n": 7}, {"n": 8, "x": second}]
    path = write(tmp_path, *rows, {"x": first})
    source = open_table(path)
    kept = [row for batch in source.batches(["n", "é"]) for row in batch.to_pylist()]
    assert kept == [{"n": row.get("n") and str(row["n"]), "é": row.get("é")} for row in [*rows, {}]]
    for columns in (["x"], ["n", "x"], None):
        with pytest.raises(DataError, match=said if block > 32 else "column 'x"):
            list(source.batches(columns))
    other = write(tmp_path, {"x": 3, "n": 4}, name="other.jsonl")
    if not isinstance(first, dict | list) and isinstance(second, str):
        with pytest.raises(DataError, match="column 'x"):
            rows_of([other, path])


def test_objects_of_several_kinds_are_left_out_of_a_draft(tmp_path: Path) -> None:
    rows = [{"x": at % 7, "extra": {"a": at} if at % 2 else {"a": "b"}, "click": at % 3 == 0} for at in range(60)]
    found = inspect_table(open_table(write(tmp_path, *rows)), ["click"])
    assert [one.name for one in found.schema.features] == ["x"]
    assert [one.column for one in found.left_out] == ["extra"]


def test_a_row_further_on_is_counted_from_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", 16)
    monkeypatch.setattr(json_lines, "LOOKED_AT", 1_000)
    path = write(tmp_path, *({"x": at} for at in range(50)), "{")
    with pytest.raises(DataError, match=r"row 51 is no JSON object"):
        open_table(path)
    monkeypatch.setattr(json_lines, "LOOKED_AT", 1)
    with pytest.raises(DataError, match=r"row 51 is no JSON object"):
        rows_of(path)


@pytest.mark.parametrize("text", [b'{"x": "\xff"}\n', b'{"\xff": 1}\n'])
def test_what_is_not_utf8_is_told_of(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(text)
    with pytest.raises(DataError, match="not UTF-8"):
        open_table(tmp_path / "a.jsonl")


def test_what_columns_a_batch_has_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow makes their names anew each time, so that asking for every column takes the square of them."""
    asked = []

    class Batch:
        def __init__(self, batch: pa.RecordBatch) -> None:
            self._batch = batch

        def __getattr__(self, name: str) -> Any:
            asked.append(name)
            return getattr(self._batch, name)

    class Table:
        def __init__(self, table: pa.Table) -> None:
            self.num_rows, self._table = table.num_rows, table

        def to_batches(self, max_chunksize: int) -> list[Batch]:
            return [Batch(one) for one in self._table.to_batches(max_chunksize)]

    parsed, often = json_lines.parsed, []
    monkeypatch.setattr(json_lines, "parsed", lambda block, kinds: Table(parsed(block, kinds)))
    for columns in (2, 30):
        path = write(tmp_path, {f"c{at}": at for at in range(columns)})
        asked.clear()
        assert rows_of(path) == [{f"c{at}": at for at in range(columns)}]
        often.append(len(asked))
    assert often[0] == often[1]


def test_many_keys_of_which_rows_have_few_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"x": at, f"k{at % 40}": {"of": [at, None]}} for at in range(300)]
    path = write(tmp_path, *rows)
    whole, named = rows_of(path), open_table(path).schema
    made, read = [], json_reader._read

    def counted(*given: Any) -> pa.Table:
        made.append(read(*given))
        return made[-1]

    monkeypatch.setattr(json_reader, "_read", counted)
    monkeypatch.setattr(json_lines, "CELLS", 41 * 64)
    assert rows_of(path) == whole
    assert open_table(path).schema == named
    assert (whole[41]["k1"], whole[41]["k2"]) == ({"of": [41, None]}, None)
    assert max(table.num_rows * table.num_columns for table in made) <= 41 * 64


def test_many_keys_are_read_in_parts_where_a_column_changes_its_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"x": at if at < 100 else at + 0.5, f"k{at % 40}": at} for at in range(300)]
    path = write(tmp_path, *rows)
    made, inferred = [], JsonLinesFile._inferred

    def counted(*given: Any) -> pa.Table:
        made.append(inferred(*given))
        return made[-1]

    monkeypatch.setattr(json_lines, "BLOCK", 1_000)
    monkeypatch.setattr(json_lines, "LOOKED_AT", 1)
    file = JsonLinesFile(path, {})
    assert str(file.schema.field("x").type) == "int64"
    monkeypatch.setattr(JsonLinesFile, "_inferred", counted)
    monkeypatch.setattr(json_lines, "BLOCK", 1 << 20)
    monkeypatch.setattr(json_lines, "CELLS", 41 * 16)
    found = [row["x"] for batch in file.read(pa.schema([("x", pa.float64())]), 1_000) for row in batch.to_pylist()]
    assert found == [row["x"] for row in rows]
    assert 0 < max(table.num_rows * table.num_columns for table in made) <= 41 * 16


def test_objects_over_several_lines_stay_whole_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"x": at, "of": {"y": at}} for at in range(20)]
    path = write(tmp_path, *(json.dumps(row, indent=1) for row in rows))
    monkeypatch.setattr(json_lines, "CELLS", 8)
    assert rows_of(path) == rows


def test_a_value_behind_rows_without_one_is_named_with_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells without one before it, in its block, are not what is wrong."""
    monkeypatch.setattr(json_lines, "BLOCK", 80)
    monkeypatch.setattr(json_lines, "LOOKED_AT", 1)
    path = write(tmp_path, *({"a": at, "b": 1.5 if at == 8 else None} for at in range(10)))
    with pytest.raises(DataError, match=r"column 'b', row 9: found 1\.5, but no value in the first rows"):
        rows_of(path)
    assert [row["b"] for row in rows_of(path, b="double")] == [None] * 8 + [1.5, None]
