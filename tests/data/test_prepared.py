import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import torch

from multigate.data.encoder import Encoder
from multigate.data.files import open_table
from multigate.data.prepared import Prepared, prepare
from multigate.data.rows import cut, join
from multigate.data.split import Split
from multigate.errors import DataError, RunError
from multigate.schema import Bag, Category, Number, Schema, Task

SCHEMA = Schema(
    features=(Number("x", embedding="none"), Category("c"), Bag("b"), Bag("l", buckets=5)),
    tasks=(Task("y"), Task("z", kind="regression")),
    group="u",
)


def table(rows, seed=0):
    draw = np.random.default_rng(seed)
    return pa.table({
        "x": np.arange(rows, dtype=float), "c": draw.integers(0, 9, rows).astype(str),
        "b": [",".join(map(str, range(i))) for i in draw.integers(0, 4, rows)],
        "l": [list(range(i)) for i in draw.integers(0, 3, rows)], "y": draw.integers(0, 2, rows),
        "z": draw.normal(size=rows), "u": draw.integers(0, 50, rows), "t": np.arange(rows),
    })  # fmt: skip


TENTH = Split()


def make(folder, train=None, valid=None, test=None, split=TENTH, schema=SCHEMA, **more):
    opened = [None if one is None else open_table(one) for one in (train or table(1000), valid, test)]
    return prepare(schema, *opened, split, folder, **more)


def rows_of(part):
    return join(list(part.shards))


def equal(left, right):
    assert torch.equal(left.numbers.nan_to_num(-7), right.numbers.nan_to_num(-7))
    for name in ("categories", "labels", "known", "weights", "groups"):
        assert torch.equal(getattr(left, name), getattr(right, name))
    for one, other in zip(left.bags, right.bags, strict=True):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.offsets, other.offsets)


@pytest.mark.parametrize(
    ("size", "most"), [(400, 100), (400, 20), (8192, 1), (10, 100), (100, 1000), (64, 999), (8192, 999)]
)
def test_a_sample_is_of_about_as_many_rows_as_asked_for_and_evenly_spread(tmp_path, size, most):
    part = make(tmp_path / "p", table(1000), valid=table(1000), shard_rows=300).valid
    pieces = list(part.sample(size, most))
    assert len(pieces) >= 6 or most < 6 or most >= 1000
    rows = join(pieces).numbers[:, 0]
    every = rows_of(part).numbers[:, 0]
    assert len(rows) <= max(most * 1.2, 1)
    places = (rows - every[0]) / (every[-1] - every[0])
    assert most < 6 or (places.min() < 0.01 and 0.4 < places.mean() < 0.6 and places.max() > 0.8)
    if most >= 1000:
        equal(join(list(part.sample(size, most))), rows_of(part))


def test_the_rows_on_disk_are_those_the_encoder_gives(tmp_path):
    prepared = make(tmp_path / "p", split=Split(by="fraction", valid=0.2, test=0.1), shard_rows=64)
    whole = prepared.encoder.columns(table(1000).combine_chunks().to_batches()[0])
    sd = prepared.encoder.fitted.scales[0]
    seen = []
    for part in (prepared.train, prepared.valid, prepared.test):
        found = rows_of(part)
        places = (found.numbers[:, 0].double() * sd.sd + sd.mean).round().long()
        assert (places.diff() > 0).all()
        for at, place in enumerate(places.tolist()):
            equal(cut(found, at, at + 1), cut(whole, place, place + 1))
        assert part.sizes[:-1] == (64,) * (len(part.sizes) - 1)
        assert sum(part.sizes) == part.rows == found.rows
        seen += places.tolist()
    assert sorted(seen) == list(range(1000))
    assert prepared.manifest["rows"] == {name: part.rows for name, part in prepared.parts.items()}
    assert prepared.layout == prepared.encoder.layout


def test_the_encoder_sees_training_rows_only(tmp_path):
    schema = SCHEMA.with_(time="t")
    prepared = make(tmp_path / "p", schema=schema, split=Split(valid=0.2, test=0.2))
    assert prepared.train.rows == 600
    assert prepared.encoder.fingerprint == Encoder.fit(schema, table(1000).slice(0, 600).to_batches()).fingerprint
    assert prepared.manifest["thresholds"] == {"valid_from": "600", "test_from": "800"}


def test_tables_of_their_own_take_nothing_from_training(tmp_path):
    prepared = make(tmp_path / "p", valid=table(300, 1), test=table(70, 2), split=Split(valid=0.5, test=0.3))
    assert {name: part.rows for name, part in prepared.parts.items()} == {"train": 1000, "valid": 300, "test": 70}
    equal(rows_of(prepared.valid), prepared.encoder.columns(table(300, 1).to_batches()[0]))
    only_valid = make(tmp_path / "q", valid=table(300, 1))
    assert (only_valid.train.rows, only_valid.test) == (1000, None)


@pytest.mark.parametrize("size", [1, 10, 64, 100, 5000])
def test_a_part_gives_its_rows_in_order(tmp_path, size):
    part = make(tmp_path / "p", shard_rows=64).train
    batches = list(part.batches(size))
    assert [batch.rows for batch in batches[:-1]] == [size] * (len(batches) - 1)
    equal(join(batches), rows_of(part))


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_key_reuses_and_another_one_rewrites(tmp_path):
    folder = tmp_path / "p"
    told = []
    first = make(folder, progress=lambda *told_now: told.append(told_now))
    assert told[0] == ("fit encoder", 0, 1000)
    assert told[-1] == ("encode train", 1000, 1000)
    before, stamps = digest(folder), {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    told.clear()
    again = make(folder, progress=lambda *told_now: told.append(told_now))
    assert told == []
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    assert again.encoder.fingerprint == first.encoder.fingerprint
    keys = {first.manifest["key"]}
    for change in (
        {"split": Split(seed=1)}, {"schema": SCHEMA.with_(group=None)}, {"train": table(999)},
        {"valid": table(10)}, {"shard_rows": 100},
    ):  # fmt: skip
        keys.add(make(folder, **change).manifest["key"])
        assert digest(folder) != before
    assert len(keys) == 6
    make(folder)
    assert digest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_files_are_known_by_their_bytes_wherever_they_are(tmp_path):
    """The same at another place and time are opened, and others of the same size and time are not."""
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    pq.write_table(table(1000), here)
    make(tmp_path / "p", train=str(here))
    before = digest(tmp_path / "p")
    shutil.copyfile(here, there)
    make(tmp_path / "p", train=str(there), replace=False)
    os.utime(here, ns=(1, 1))
    make(tmp_path / "p", train=str(here), replace=False)
    assert digest(tmp_path / "p") == before
    pq.write_table(table(1000).set_column(4, "y", pc.subtract(1, table(1000)["y"])), there)
    assert there.stat().st_size == here.stat().st_size
    os.utime(there, ns=(1, 1))
    with pytest.raises(RunError, match="tables changed"):
        make(tmp_path / "p", train=str(there), replace=False)
    make(tmp_path / "p", train=str(there))
    assert digest(tmp_path / "p") != before


def test_the_order_of_files_and_where_each_ends_is_content(tmp_path):
    for name, rows in (("a", 300), ("b", 700), ("c", 1000)):
        pq.write_table(table(rows, seed=rows), tmp_path / f"{name}.parquet")
    places = [["a", "b", "c"], ["b", "a", "c"], ["c", "a", "b"], ["a", "b"]]
    contents = {open_table([tmp_path / f"{name}.parquet" for name in names]).content() for names in places}
    assert len(contents) == 4
    assert open_table(tmp_path / "a.parquet").content() == open_table([str(tmp_path / "a.parquet")]).content()


def test_what_folders_say_of_files_is_content(tmp_path):
    for folder in ("one/year=2023", "two/year=2024", "three/year=2023"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(table(300), tmp_path / folder / "a.parquet")
    one, two, three = (open_table(tmp_path / name).content() for name in ("one", "two", "three"))
    assert one == three != two


def test_rows_prepared_before_their_content_was_known_are_known_by_place_and_time(tmp_path):
    path = tmp_path / "here.parquet"
    pq.write_table(table(1000), path)
    first = make(tmp_path / "p", train=str(path))
    manifest = {name: value for name, value in first.manifest.items() if name != "content"}
    (tmp_path / "p" / "manifest.json").write_text(json.dumps(manifest))
    again = make(tmp_path / "p", train=str(path), replace=False)
    assert again.content == first.manifest["key"]
    assert first.is_known_as(again.content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(RunError, match="tables changed"):
        make(tmp_path / "p", train=str(path), replace=False)


def test_a_failure_leaves_nothing_behind_and_an_old_folder_alone(tmp_path):
    folder = tmp_path / "p"
    make(folder)
    before = digest(folder)
    broken = table(1000).set_column(4, "y", pa.array([0, 1] * 499 + [5, 5]))
    with pytest.raises(DataError, match="found 5"):
        make(folder, train=broken)
    assert digest(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("change", ["appended to", "replaced"])
def test_a_table_that_changes_while_it_is_read_is_told(tmp_path, change):
    """A log that is still written: the encoder would be fitted to some rows, others known by the name of the first."""
    path = tmp_path / "rows.csv"
    pacsv.write_csv(table(500).drop(["l"]), path)
    schema = SCHEMA.with_(features=SCHEMA.features[:3])
    stages = []

    def disturb(stage, done, total):
        if not stages:
            match change:
                case "appended to":
                    path.write_text(path.read_text() + path.read_text().partition("\n")[2])
                case "replaced":
                    pacsv.write_csv(table(400, seed=1).drop(["l"]), tmp_path / "new.csv")
                    (tmp_path / "new.csv").replace(path)
        stages.append(stage)

    split = Split(by="fraction", valid=0.2)
    with pytest.raises(DataError, match=r"rows\.csv changed while it was read; go on once nothing writes to it"):
        prepare(schema, open_table(path), None, None, split, tmp_path / "p", progress=disturb)
    assert stages
    assert not (tmp_path / "p").exists()
    pacsv.write_csv(table(500).drop(["l"]), path)
    assert prepare(schema, open_table(path), None, None, split, tmp_path / "p").train.rows > 300, "and then it goes"


def test_a_bad_cell_of_a_later_part_is_named_by_its_row(tmp_path):
    rows = 66_000  # in the second batch that is read
    bad = table(1).take(pa.array([0] * rows)).set_column(4, "y", pa.array([0] * (rows - 1) + [7]))
    with pytest.raises(DataError, match="column 'y', row 66,000: wanted 0/1"):
        make(tmp_path / "p", valid=bad)


def test_a_folder_of_other_things_is_not_touched(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="holds files but no prepared rows"):
        make(tmp_path)
    (tmp_path / "manifest.json").write_text('{"key": "of something else"}')
    with pytest.raises(RunError, match="holds files but no prepared rows"):
        make(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letter.txt", "manifest.json"]
    with pytest.raises(RunError, match="is a file"):
        make(tmp_path / "letter.txt")


@pytest.mark.parametrize(
    ("schema", "split", "words"),
    [
        (SCHEMA, Split(valid=0.0), "no valid rows: its valid is 0"),
        (
            SCHEMA,
            Split(valid=1e-9),
            "leaves no valid rows of table.* with valid 1e-09 and test 0.0 by column 'u'; change",
        ),
        (SCHEMA.with_(time="t"), Split(valid_from="5000"), "leaves no valid rows of .* with valid_from 5000"),
        (SCHEMA.with_(time="t"), Split(valid_from="0"), "leaves no train rows of .* with valid_from 0"),
        (SCHEMA.with_(time="t"), Split(test=0.2, valid_from="500", test_from="2000"), "leaves no test rows"),
    ],
)
def test_an_empty_part_is_refused(tmp_path, schema, split, words):
    with pytest.raises(DataError, match=words):
        make(tmp_path / "p", schema=schema, split=split)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["header", "first", "last"])
def test_a_bit_that_flipped_in_a_shard_is_told_and_not_trained_on(tmp_path, place):
    make(tmp_path / "p", shard_rows=400)
    path = tmp_path / "p" / "train-00001.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    content[{"header": start - 1, "first": start, "last": len(content) - 1}[place]] ^= 1 << 6
    path.write_bytes(content)
    prepared = make(tmp_path / "p", shard_rows=400)
    assert prepared.train.shards[0].rows == 400
    with pytest.raises(RunError, match=r"train-00001\.safetensors are damaged.*delete the folder .*p,"):
        prepared.train.shards[1]


def test_whoever_may_read_the_encoder_may_read_the_rows(tmp_path):
    make(tmp_path / "p")
    files = [path for path in (tmp_path / "p").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".parquet", ".safetensors"}
    assert len({path.stat().st_mode for path in files}) == 1


def test_rows_that_may_not_be_read_are_not_called_damaged(tmp_path, monkeypatch):
    prepared = make(tmp_path / "p")

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("multigate.data.shards.checksum", refused)
    with pytest.raises(RunError, match=r"safetensors cannot be read \(Permission denied\)"):
        prepared.train.shards[0]


SHORT = [
    pa.ArrowMemoryError("malloc of size 64 failed"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    OSError(errno.EMFILE, "Too many open files"),
    RuntimeError("can't start new thread"),
]


@pytest.mark.parametrize("error", SHORT, ids=str)
@pytest.mark.parametrize("place", ["shards", "prepared"])
def test_rows_are_not_called_damaged_where_the_machine_has_too_little(tmp_path, monkeypatch, place, error):
    """Who deletes them as told loses what models were trained on."""

    def refused(*_):
        raise error

    prepared = make(tmp_path / "p")
    monkeypatch.setattr(f"multigate.data.{place}.checksum", refused)
    with pytest.raises(type(error), match=str(error.args[-1])):
        prepared.train.shards[0] if place == "shards" else Prepared(tmp_path / "p")


@pytest.mark.parametrize("name", ["encoder.json", "vocabularies.parquet"])
def test_a_bit_that_flipped_in_the_encoder_is_told_and_not_put_into_a_bundle(tmp_path, name):
    """A digit of a mean is another digit: rows were encoded by the one, and raw rows would be by the other."""
    make(tmp_path / "p")
    path = tmp_path / "p" / "encoder" / name
    content = bytearray(path.read_bytes())
    content[content.index(b'"mean": ') + 8 if name == "encoder.json" else 10] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"p are damaged.*{name} is not what was written.*delete the folder"):
        make(tmp_path / "p")


def test_rows_prepared_before_there_were_checksums_are_read(tmp_path):
    first = make(tmp_path / "p")
    manifest = first.manifest.copy()
    encoder, shards = (tmp_path / "p" / "encoder").iterdir(), (tmp_path / "p").glob("*.safetensors")
    assert set(manifest.pop("checksums")) == {path.name for path in (*encoder, *shards)}
    (tmp_path / "p" / "manifest.json").write_text(json.dumps(manifest))
    again = make(tmp_path / "p")
    assert again.manifest == manifest
    equal(rows_of(again.train), rows_of(first.train))


def test_a_damaged_shard_says_what_to_do(tmp_path):
    prepared = make(tmp_path / "p")
    path = tmp_path / "p" / "train-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(RunError, match=r"are damaged.*delete"):
        next(prepared.train.batches(10))


def test_a_schema_of_bags_alone_and_of_numbers_alone(tmp_path):
    for name, features in (("a", (Bag("b"),)), ("b", (Number("x", embedding="none"),))):
        prepared = make(tmp_path / name, schema=SCHEMA.with_(features=features), shard_rows=64)
        assert next(prepared.train.batches(100)).rows == 100


MEMORY = """
import sys
from pathlib import Path
from multigate.data.files import open_table
from multigate.data.loader import Loader
from multigate.data.prepared import prepare
from multigate.data.split import Split
from multigate.schema import *
features = (*(Number(f"n{i}") for i in range(6)), *(Category(f"c{i}") for i in range(6)), Bag("b"))
schema = Schema(features=features, tasks=(Task("y"),))
source, folder = open_table(sys.argv[1]), Path(sys.argv[2])
most = 0
def look(*told):
    global most
    found = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    most = max(most, int(found[0].split()[1]))
prepared = prepare(schema, source, None, None, Split(), folder, look, shard_rows=8192)
for batch in Loader(prepared.train, 1024).epoch(0):
    look()
for batch in prepared.train.batches(1024):
    look()
assert "pandas" not in sys.modules, "importing it takes longer than preparing most tables"
print(most)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_anonymous_memory_does_not_grow_with_the_rows(tmp_path):
    draw = np.random.default_rng(0)
    block = pa.table({f"n{i}": draw.normal(size=40_000) for i in range(6)}
                     | {f"c{i}": draw.integers(0, 100, 40_000).astype(str) for i in range(6)}
                     | {"b": draw.choice(["1,2", "3", ""], 40_000), "y": draw.integers(0, 2, 40_000)})  # fmt: skip
    found = []
    # one allocator that gives back at once: reserves kept for later differ by more than what is measured
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    environment |= {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    for blocks in (8, 20):  # both fill the sample that quantiles are taken from, and the window that is shuffled
        path = tmp_path / f"{blocks}.parquet"
        with pq.ParquetWriter(path, block.schema) as writer:
            for _ in range(blocks):
                writer.write_table(block)
        command = [sys.executable, "-c", MEMORY, str(path), str(tmp_path / f"p{blocks}")]
        out = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        found.append(int(out.stdout) / 1024)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "p20").iterdir() if path.is_file()) / 2**20
    assert on_disk > 40, "of which two thirds would be held besides"
    assert found[1] - found[0] < 15, f"{found} MiB"


def test_census_is_reused_at_once(shared_data, tmp_path):
    folder = tmp_path / "p"
    schema = Schema(
        features=(Number("age"), Category("class_worker")), tasks=(Task("i", column="income_50k", positive="50000+."),)
    )
    source = open_table(shared_data / "census-income" / "train.parquet")
    first = prepare(schema, source, None, None, Split(), folder)
    assert json.loads((folder / "manifest.json").read_text())["labels"]["i"]["known"] == first.train.rows
    assert abs(first.valid.rows / 199_523 - 0.1) < 0.003
    again = prepare(schema, source, None, None, Split(), folder)
    equal(next(again.train.batches(500)), next(first.train.batches(500)))


def test_what_a_vocabulary_cannot_hold_is_unseen_and_told(tmp_path):
    """10,000 different ids under a cap of 100: the most frequent stay, the manifest counts the others."""
    ids = [f"u{at}" for at in range(10_000)] + [f"u{at}" for at in range(100)]
    data = {"u": ids, "y": [0, 1] * (len(ids) // 2)}
    schema = Schema(features=(Category("u", max_size=100),), tasks=(Task("y"),))
    prepared = make(tmp_path / "p", data, data, schema=schema)
    assert prepared.layout.tables == {"u": 102}
    assert set(prepared.encoder.fitted.vocabularies["u"].values) == set(ids[:100])
    assert prepared.manifest["left_out"] == {"u": 9_900}
    assert (rows_of(prepared.train).categories[100:10_000] == 0).all()
    assert make(tmp_path / "q").manifest["left_out"] == {}


def test_shards_and_samples_of_a_wide_table_have_fewer_rows(tmp_path, monkeypatch):
    """A loader holds several shards and a fit a sample of every column: both are bounded in bytes, not in rows."""
    monkeypatch.setattr("multigate.data.prepared.SHARD_BYTES", 100_000)
    monkeypatch.setattr("multigate.data.numbers.SAMPLE_VALUES", 50_000)
    monkeypatch.setattr("multigate.data.numbers.BLOCK_VALUES", 10_000)
    names = [f"n{at}" for at in range(100)]
    values = np.random.default_rng(0).normal(3, 2, (1000, 100))
    data = pa.table(dict(zip(names, values.T, strict=True)) | {"y": [0, 1] * 500})
    schema = Schema(features=[Number(name, transform="quantile") for name in names], tasks=(Task("y"),))
    prepared = make(tmp_path / "p", data, schema=schema)
    row = 100 * 4 + 9 + 8
    assert prepared.train.sizes[0] == 100_000 // row
    assert prepared.train.rows + prepared.valid.rows == 1000
    scales = prepared.encoder.fitted.scales
    assert max(len(scale.knots) for scale in scales) <= 500
    plain = make(tmp_path / "q", data, schema=schema.with_(features=[Number(name) for name in names]))
    found = torch.cat([rows_of(plain.train).numbers, rows_of(plain.valid).numbers]).double()
    assert found.mean(0).abs().max() < 0.2, "moments are those of all rows, whatever the block"
    mean = torch.tensor([scale.mean for scale in plain.encoder.fitted.scales])
    assert (mean - torch.from_numpy(values.mean(0))).abs().max() < 0.2


@pytest.mark.parametrize("part", ["train", "valid"])
def test_a_cell_that_cannot_be_read_is_named_with_table_and_row(tmp_path, part):
    """Also where the fit sees only some of the rows, and the cell lies in a later batch."""
    good, bad = table(3000), table(70_000)
    cells = bad["x"].cast(pa.string()).to_pylist()
    train = Split(by="group").resolve(open_table(bad), SCHEMA).assign(bad.combine_chunks().to_batches()[0], 0) == 0
    row = int(np.flatnonzero(train)[-1])
    cells[row] = "cheap"
    pq.write_table(bad.set_column(0, "x", pa.array(cells)), tmp_path / "bad.parquet")
    tables = {"train": good, "valid": None, part: str(tmp_path / "bad.parquet")}
    with pytest.raises(DataError, match=rf"bad\.parquet: column 'x', row {row + 1:,}: wanted a number, found 'cheap'"):
        make(tmp_path / "p", tables["train"], tables["valid"], split=Split(by="group"))
