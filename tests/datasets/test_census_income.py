import csv
import gzip
import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from multigate.datasets.census_income import (
    COLLEGE,
    COLUMNS,
    TABLE,
    census_schema,
    is_written,
    open_census,
    read_census,
    render_census,
    write_census,
)
from multigate.errors import DataError
from multigate.schema import Category, Schema

EXAMPLES = Path(__file__).parents[2] / "examples"
TEST_SHA256 = "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c"
LINE = (
    "38, Private, 6, 36, 1st 2nd 3rd or 4th grade, 0, Not in universe, Married-civilian spouse present, "
    "Manufacturing-durable goods, Handlers equip cleaners etc , White, NA, Female, Not in universe, "
    "Not in universe, Full-time schedules, 0, 0, 0, Joint one under 65 & one 65+, Not in universe, Not in universe, "
    "Spouse of householder, Spouse of householder, {weight}, ?, ?, ?, Not in universe under 1 year old, ?, 4, "
    "Not in universe, Mexico, Mexico, ?, Foreign born- Not a citizen of U S , 0, Not in universe, 2, 12, 95, {income}"
)
TEXT = "".join(
    LINE.format(weight=weight, income=income) + "\n"
    for weight, income in (("1032.38", "- 50000."), ("1700", "50000+."), ("37.5", "- 50000."))
)


@pytest.fixture(scope="module")
def census(shared_data: Path) -> Path:
    folder = shared_data / "census-income"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="module")
def texts(census: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two UCI text files."""
    folder = tmp_path_factory.mktemp("uci")
    for table, text in (("train.parquet", "census-income.data"), ("test.parquet", "census-income.test")):
        (folder / text).write_bytes(render_census(pq.read_table(census / table)))
    return folder


@pytest.fixture(scope="module")
def written(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_census(texts, folder, seed=3)
    return folder


def test_every_value_is_read_as_the_text_has_it(tmp_path):
    path = tmp_path / "few.data"
    path.write_text(TEXT)
    table = read_census(path)
    assert table.schema == TABLE
    wanted = [dict(zip(COLUMNS, line.split(", "), strict=True)) for line in TEXT.splitlines()]
    assert [
        {name: str(value) for name, value in row.items() if name != "instance_weight"} for row in table.to_pylist()
    ] == [{name: value for name, value in row.items() if name != "instance_weight"} for row in wanted]
    assert table["instance_weight"].to_pylist() == [1032.38, 1700.0, 37.5]
    assert table["hisp_origin"].to_pylist() == ["NA"] * 3
    assert table["country_self"].to_pylist() == ["?"] * 3
    assert table["major_occ_code"][0].as_py().endswith("etc ")
    assert table["citizenship"][0].as_py().endswith("U S ")
    assert all(column.null_count == 0 for column in table.columns)
    assert render_census(table).decode() == TEXT


@pytest.mark.parametrize("change", ["gzip", "crlf", "parquet", "no last line end"])
def test_other_forms_of_the_same_file_are_the_same_table(tmp_path, change):
    plain = tmp_path / "few.data"
    plain.write_text(TEXT)
    table = read_census(plain)
    path = tmp_path / ("few.parquet" if change == "parquet" else "few.data.gz" if change == "gzip" else "other.data")
    if change == "parquet":
        columns = [
            column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column for column in table.columns
        ]
        pq.write_table(pa.table(columns, names=list(COLUMNS)).select(COLUMNS[::-1]), path)
    elif change == "gzip":
        path.write_bytes(gzip.compress(TEXT.encode()))
    else:
        path.write_bytes(TEXT.replace("\n", "\r\n").encode() if change == "crlf" else TEXT.rstrip("\n").encode())
    assert read_census(path).equals(table)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (TEXT.replace(", Private", ""), "42 fields"),
        (TEXT.replace("38,", "young,"), "young"),
        ("", "Census-Income"),
    ],
)
def test_other_text_is_refused_in_one_sentence(tmp_path, content, says):
    path = tmp_path / "other.data"
    path.write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        read_census(path)
    assert "\n" not in str(caught.value)
    assert "other.data" in str(caught.value)


def test_broken_and_absent_files_are_refused(tmp_path):
    (tmp_path / "cut.data.gz").write_bytes(gzip.compress(TEXT.encode())[:-20])
    (tmp_path / "not.parquet").write_bytes(b"PAR0")
    pq.write_table(pa.table({"age": [1]}), tmp_path / "few.parquet")
    for name in ("cut.data.gz", "not.parquet", "few.parquet", "absent.data"):
        with pytest.raises(DataError, match=name):
            read_census(tmp_path / name)


def test_the_published_text_is_read_without_loss(census, texts):
    """The reader is proven on text whose sha256 is that of the file UCI offers."""
    path = texts / "census-income.test"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == TEST_SHA256
    table, original = read_census(path), pq.read_table(census / "test.parquet")
    assert table.num_rows == 99_762
    assert table.schema.equals(original.schema, check_metadata=False)
    for name in COLUMNS:
        values = [
            column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
            for column in (table[name], original[name])
        ]
        assert values[0].equals(values[1]), name
    with path.open(newline="") as file:  # another reader's view of some rows
        for number, row in enumerate(csv.reader(file, quoting=csv.QUOTE_NONE)):
            if number % 9_973 == 0:
                fields = [row[0], *(field.removeprefix(" ") for field in row[1:])]
                found = table.slice(number, 1).to_pylist()[0]
                assert [str(found[name]).removesuffix(".0") for name in COLUMNS] == fields


def test_written_tables_hold_every_row_once(census, written):
    assert is_written(written)
    train, valid, test = (pq.read_table(written / f"{name}.parquet") for name in ("train", "valid", "test"))
    assert (train.num_rows, valid.num_rows, test.num_rows) == (199_523, 49_881, 49_881)
    original = read_census(census / "test.parquet")
    order = np.random.default_rng(3).permutation(99_762)
    for half, rows in ((valid, np.sort(order[:49_881])), (test, np.sort(order[49_881:]))):
        for name in ("age", "instance_weight", "income_50k", "country_father"):
            wanted = [None if value == "?" else value for value in original[name].take(rows).to_pylist()]
            assert half[name].to_pylist() == wanted
    for table in (train, valid, test):
        assert table.schema == TABLE
        words = {
            value
            for column in table.columns
            if column.type == TABLE.field("sex").type
            for value in column.unique().to_pylist()
        }
        assert "?" not in words
        assert "NA" in words
    original_train = read_census(census / "train.parquet")
    assert sum(column.null_count for column in train.columns) == sum(
        column.cast(pa.string()).to_pylist().count("?")
        for column in original_train.columns
        if pa.types.is_dictionary(column.type)
    )


@pytest.mark.parametrize("form", ["texts", "one of the texts", "gzipped texts", "tar.gz", "zip of tar.gz", "zip of gz"])
def test_the_data_are_found_in_every_form(tmp_path, form):
    texts = {"census-income.data": TEXT.encode(), "census-income.test": TEXT.replace("38,", "83,", 1).encode()}
    given = tmp_path
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz") as archive:
        for name, text in texts.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    if form == "tar.gz":
        given = tmp_path / "census.tar.gz"
        given.write_bytes(tar.getvalue())
    elif form == "zip of tar.gz":
        given = tmp_path / "census+income+kdd.zip"
        with zipfile.ZipFile(given, "w") as archive:
            archive.writestr("census.tar.gz", tar.getvalue())
    elif form == "zip of gz":  # given is the folder it lies in
        with zipfile.ZipFile(tmp_path / "any name.zip", "w") as archive:
            archive.writestr("read me", "nothing")
            for name, text in texts.items():
                archive.writestr(f"folder/{name}.gz", gzip.compress(text))
    elif form == "gzipped texts":
        for name, text in texts.items():
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text))
    else:
        for name, text in texts.items():
            (tmp_path / name).write_bytes(text)
        given = tmp_path / "census-income.test" if form == "one of the texts" else tmp_path
    train, test = open_census(given)
    assert render_census(train) == texts["census-income.data"]
    assert render_census(test) == texts["census-income.test"]


def test_an_archive_that_wants_a_password_is_told(tmp_path):
    path = tmp_path / "census.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("census-income.data", "census-income.test"):
            archive.writestr(name, TEXT)
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # of members, and of the list of them
        at = content.find(mark)
        while at >= 0:
            content[at + flags] |= 1
            at = content.find(mark, at + 4)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read archive .*census\.zip.*password"):
        open_census(path)


def test_altered_data_are_refused_and_nothing_is_written(census, tmp_path):
    out = tmp_path / "out"
    for change, says in (("a row less", "99,761 rows"), ("a value", "sha256")):
        source = tmp_path / change
        source.mkdir()
        (source / "train.parquet").symlink_to(census / "train.parquet")
        table = pq.read_table(census / "test.parquet")
        if change == "a value":
            ages = table["age"].to_pylist()
            ages[5_000] += 1
            table = table.set_column(0, "age", pa.array(ages, pa.int8()))
        else:
            table = table.slice(1)
        pq.write_table(table, source / "test.parquet")
        with pytest.raises(DataError, match=says):
            write_census(source, out)
        assert not out.exists()


def test_written_tables_are_no_source(written, tmp_path):
    with pytest.raises(DataError, match="values that differ"):
        write_census(written, tmp_path / "out")  # its train has the rows, but nulls for "?"
    with pytest.raises(DataError, match="overwrite"):
        write_census(written, written)
    assert is_written(written)
    assert not is_written(tmp_path)


def test_sources_without_the_data_are_refused(tmp_path):
    (tmp_path / "some.zip").write_bytes(b"no archive")
    with zipfile.ZipFile(tmp_path / "half.zip", "w") as archive:
        archive.writestr("census-income.data", TEXT)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.tar.gz").write_bytes(b"no archive")
    for source, says in (
        ("some.zip", "cannot read archive"),
        ("bad.tar.gz", "cannot read archive"),
        ("half.zip", "should hold"),
        ("empty", "holds no Census-Income"),
        ("absent", "holds no Census-Income"),
    ):
        with pytest.raises(DataError, match=says):
            write_census(tmp_path / source, tmp_path / "out")


@pytest.mark.parametrize(("example", "group"), [("census.yaml", 1), ("census_group2.yaml", 2)])
def test_the_examples_read_what_is_written(example, group):
    data = yaml.safe_load((EXAMPLES / example).read_text())
    schema = Schema.model_validate(data["schema"])
    assert schema == census_schema(group)
    assert set(schema.columns()) <= set(COLUMNS)
    features = {feature.source for feature in schema.features}
    assert set(COLUMNS) - features == {"education", "marital_stat", "income_50k", "instance_weight"}
    codes = {"det_ind_code", "det_occ_code", "own_or_self", "vet_benefits", "year"}
    assert all(isinstance(feature, Category) for feature in schema.features if feature.name in codes)
    assert [data[split] for split in ("train", "valid", "test")] == [
        f"data/census-income/{split}.parquet" for split in ("train", "valid", "test")
    ]


def test_the_labels_have_their_published_rates(census):
    table = read_census(census / "test.parquet")
    rates = {}
    for group in (1, 2):
        for task in census_schema(group).tasks:
            positive = task.positive if isinstance(task.positive, tuple) else (task.positive,)
            rates[task.name] = np.isin(table[task.source].to_pylist(), positive).mean()
    assert rates == pytest.approx({"income": 0.062, "never_married": 0.4325, "college": 0.195}, abs=0.001)
    college = np.isin(table["education"].to_pylist(), COLLEGE)
    married_not = np.array(table["marital_stat"].to_pylist()) == "Never married"
    assert abs(np.corrcoef(college, married_not)[0, 1]) == pytest.approx(0.2376, abs=1e-4)
