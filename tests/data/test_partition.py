from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import multigate as mg
from multigate.data.files import open_table
from multigate.data.types import type_name
from multigate.errors import DataError

SALES = pa.table(
    {
        "x": [float(at) for at in range(12)],
        "year": [2023, 2024] * 6,
        "day": ["2024-05-01", "2024-05-02", "2024-05-03"] * 4,
        "shop": ["a/b", "Köln 1", None] * 4,
        "click": [0, 1, 1, 0] * 3,
    }
)


def rows_of(source, columns=None):
    table = pa.Table.from_batches(list(source.batches(columns)))
    return sorted(table.to_pylist(), key=lambda row: row["x"]) if "x" in table.column_names else table.to_pylist()


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_folder_that_arrow_wrote_by_keys_is_the_table_it_was(kind: str, tmp_path: Path) -> None:
    keys = ds.partitioning(SALES.select(["year", "day", "shop"]).schema, flavor="hive")
    ds.write_dataset(SALES, tmp_path / "sales", format=kind, partitioning=keys)
    for given in (tmp_path / "sales", str(tmp_path / "sales" / "year=*" / "**" / f"*.{kind}")):
        source = open_table(given)
        assert {name: type_name(source.schema.field(name).type) for name in ("year", "day", "shop")} == {
            "year": "int64",
            "day": "date32[day]",
            "shop": "string",
        }
        found = rows_of(source, SALES.column_names)
        assert [row | {"day": str(row["day"])} for row in found] == SALES.to_pylist()
    assert sorted(row["year"] for row in rows_of(source, ["year"])) == sorted(SALES["year"].to_pylist())


def write(path: Path, **columns: list) -> None:
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path)


def test_keys_are_text_where_they_are_codes_and_are_read_with_the_types_of_the_schema(tmp_path: Path) -> None:
    write(tmp_path / "month=01" / "a.parquet", x=[1.0])
    write(tmp_path / "month=12" / "a.parquet", x=[2.0])
    assert [row["month"] for row in rows_of(open_table(tmp_path))] == ["01", "12"]
    assert [row["month"] for row in rows_of(open_table(tmp_path, {"month": "int64"}))] == [1, 12]
    with pytest.raises(DataError, match=r"column 'month', row 1: '01' is not bool"):
        rows_of(open_table(tmp_path, {"month": "bool"}))


def test_a_column_in_a_file_is_read_there_and_a_key_that_not_all_files_have_is_none(tmp_path: Path) -> None:
    write(tmp_path / "year=1" / "v=1" / "a.parquet", x=[1.0], year=[2023])
    write(tmp_path / "year=2" / "a.parquet", x=[2.0], year=[2024])
    assert rows_of(open_table(tmp_path)) == [{"x": 1.0, "year": 2023}, {"x": 2.0, "year": 2024}]


def test_a_part_given_by_itself_is_these_rows_of_the_table(tmp_path: Path) -> None:
    write(tmp_path / "year=3" / "day=1" / "a.parquet", x=[3.0])
    write(tmp_path / "year=3" / "day=2" / "b.parquet", x=[4.0])
    first, second = {"x": 3.0, "year": 3, "day": 1}, {"x": 4.0, "year": 3, "day": 2}
    assert rows_of(open_table(tmp_path / "year=3")) == [first, second]
    assert rows_of(open_table(tmp_path / "year=3" / "day=2")) == [second]
    files = [tmp_path / "year=3" / "day=1" / "a.parquet", tmp_path / "year=3" / "day=2" / "b.parquet"]
    assert rows_of(open_table(files[0])) == [first]
    assert rows_of(open_table(files)) == [first, second]
    assert rows_of(open_table(str(tmp_path / "year=3" / "day=2" / "*.parquet"))) == [second]


def test_a_key_can_be_a_feature_and_a_label(tmp_path: Path) -> None:
    for shop in ("a", "b"):
        for click in (0, 1):
            write(tmp_path / f"click={click}" / f"shop={shop}" / "a.parquet", x=[0.5, 1.5, 2.5])
    schema = mg.infer_schema(tmp_path, ["click"])
    assert {feature.name: feature.kind for feature in schema.features} == {"x": "number", "shop": "category"}
    assert schema.types == {"x": "double", "shop": "string", "click": "int64"}
