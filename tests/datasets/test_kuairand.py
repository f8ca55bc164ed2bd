"""KuaiRand-Pure: joined and split as published, whatever form it comes in, and nothing of the future among features."""

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from multigate.datasets import kuairand
from multigate.datasets.kuairand import (
    OUTCOMES,
    PARTS,
    POSITIVES,
    ROWS,
    TABLE,
    is_written,
    join_kuairand,
    open_kuairand,
    write_kuairand,
)
from multigate.draft import draft
from multigate.errors import DataError
from multigate.experiment import read_experiment

EXAMPLE = Path(__file__).parents[2] / "examples" / "kuairand.yaml"
LOG, USERS, VIDEOS = (
    "log_standard_4_22_to_5_08_pure.csv",
    "user_features_pure.csv",
    "video_features_basic_pure.csv",
)
DAYS = [*range(20220422, 20220431), *range(20220501, 20220509)]


def small(rows=170, users=12, videos=9):
    """The published layout, small: a log of all 17 days in no order, with rows that repeat; features with gaps."""
    random = np.random.default_rng(0)
    day = np.arange(rows) % 17
    log = pd.DataFrame({
        "user_id": random.integers(0, users, rows), "video_id": random.integers(0, videos, rows),
        "date": np.array(DAYS)[day], "hourmin": random.integers(0, 24, rows) * 100,
        "time_ms": 1650556800000 + 86_400_000 * day + random.integers(0, 5, rows),
        **{name: random.integers(0, 2, rows) for name in OUTCOMES[:6]},
        "long_view": random.integers(0, 2, rows), "play_time_ms": random.integers(0, 99_999, rows),
        "duration_ms": random.integers(0, 99_999, rows), "profile_stay_time": 0, "comment_stay_time": 0,
        "is_profile_enter": random.integers(0, 2, rows), "is_rand": 0, "tab": random.integers(0, 15, rows),
    })  # fmt: skip
    counts = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
    user = pd.DataFrame({
        "user_id": range(users), "user_active_degree": random.choice(["full_active", "UNKNOWN"], users),
        "is_lowactive_period": 0, "is_live_streamer": random.choice([-124, 1], users), "is_video_author": 1,
        **{name: value for count in counts for name, value in ((count, range(users)), (f"{count}_range", "(0,10]"))},
        **{f"onehot_feat{at}": random.integers(0, 9, users) for at in range(18)},
    })  # fmt: skip
    user["onehot_feat4"] = np.where(np.arange(users) % 3 == 0, np.nan, 14.0)
    video = pd.DataFrame({
        "video_id": range(videos), "author_id": 7_349_781 + np.arange(videos), "video_type": "NORMAL",
        "upload_dt": "2022-04-10", "upload_type": random.choice(["Web", "Kmovie"], videos), "visible_status": 0.0,
        "video_duration": np.where(np.arange(videos) == 2, np.nan, 9233.0), "server_width": 720, "server_height": 1280,
        "music_id": 9_155_697_141, "music_type": np.where(np.arange(videos) == 3, np.nan, 9.0),
        "tag": np.where(np.arange(videos) == 4, None, "39,12"),
    })  # fmt: skip
    return {LOG: pd.concat([log, log[-5:]]).sample(frac=1, random_state=0), USERS: user, VIDEOS: video}


def write_csv(folder, tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.to_csv(folder / name, index=False)
    return folder


def as_archive(path, tables):
    """KuaiRand-Pure.tar.gz as published: one folder in another, beside files that are not wanted."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        files = {f"data/{name}": table.to_csv(index=False).encode() for name, table in tables.items()}
        files |= {
            "LICENSE": b"share alike",
            f"data/._{LOG}": b"junk",
            "data/log_random_4_22_to_5_08_pure.csv": b"x,y\n",
        }
        for name, content in files.items():
            member = tarfile.TarInfo(f"KuaiRand-Pure/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def counted(monkeypatch):
    """The small data in place of the published counts."""
    tables = small()
    log = tables[LOG]
    used = log[log.date >= 20220425]
    sizes = {name: int(used.date.between(*days).sum()) for name, days in PARTS.items()}
    monkeypatch.setattr(kuairand, "ROWS", sizes)
    monkeypatch.setattr(kuairand, "POSITIVES", {name: int(used[name].sum()) for name in POSITIVES})
    files = [file._replace(rows=len(tables[file.csv]) if file.rows else None) for file in kuairand._FILES]
    monkeypatch.setattr(kuairand, "_FILES", tuple(files))
    return tables


@pytest.fixture(scope="module")
def published(shared_data: Path) -> Path:
    folder = shared_data / "kuairand"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder


@pytest.fixture(scope="module")
def written(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kuairand")
    write_kuairand(published, folder)
    return folder


def test_every_exposure_has_its_user_and_video(tmp_path):
    tables = small()
    joined = join_kuairand(open_kuairand(write_csv(tmp_path, tables)))
    assert joined.schema == TABLE
    wanted = tables[LOG].merge(tables[USERS], on="user_id").merge(tables[VIDEOS], on="video_id")
    wanted = wanted[wanted.date >= 20220425]
    names = list(wanted.columns)
    assert joined.column_names == names
    rows = [tuple(row.values()) for row in joined.to_pylist()]
    plain = [tuple(None if pd.isna(value) else value for value in row) for row in wanted.itertuples(index=False)]
    assert sorted(rows, key=repr) == sorted(plain, key=repr)
    assert joined["time_ms"].to_pylist() == sorted(joined["time_ms"].to_pylist())
    assert {None, 14} == set(joined["onehot_feat4"].to_pylist())
    assert {None, "39,12"} == set(joined["tag"].to_pylist())


@pytest.mark.parametrize("form", ["folder of csv", "extracted archive", "archive", "parquet"])
def test_every_form_gives_the_same_tables(counted, tmp_path, form):
    write_kuairand(write_csv(tmp_path / "plain", counted), tmp_path / "wanted")
    shuffled = {name: table.sample(frac=1, random_state=1) for name, table in counted.items()}
    source = tmp_path / "source"
    if form == "archive":
        source = as_archive(tmp_path / "KuaiRand-Pure.tar.gz", shuffled)
    elif form == "parquet":
        source.mkdir()
        for file in kuairand._FILES:
            shuffled[file.csv].to_parquet(source / file.table, index=False)
    else:
        write_csv(source / ("KuaiRand-Pure/data" if form == "extracted archive" else "."), shuffled)
    told = []
    write_kuairand(source, tmp_path / "out", progress=lambda stage, done, total: told.append((stage, done, total)))
    for part in PARTS:
        found, wanted = (pq.read_table(tmp_path / name / f"{part}.parquet") for name in ("out", "wanted"))
        assert found.schema == wanted.schema
        assert found.to_pylist() == wanted.to_pylist()
    assert is_written(tmp_path / "out")
    assert told[-1] == ("writing KuaiRand-Pure", 5, 5)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"train.parquet", "valid.parquet", "test.parquet", "CREDIT.md"} | (
        {"LICENSE"} if form == "archive" else set()
    )
    assert "Attribution-ShareAlike 4.0" in (tmp_path / "out" / "CREDIT.md").read_text()


def test_parts_follow_each_other_in_days(counted, tmp_path):
    write_kuairand(write_csv(tmp_path / "source", counted), tmp_path / "out")
    days = {part: pq.read_table(tmp_path / "out" / f"{part}.parquet")["date"].to_pylist() for part in PARTS}
    assert sorted(set(days["train"])) == DAYS[3:13]
    assert sorted(set(days["valid"])) == DAYS[13:15]
    assert sorted(set(days["test"])) == DAYS[15:]
    assert sum(map(len, days.values())) == int((counted[LOG].date >= 20220425).sum())


def _with_a_flipped_label(tables):
    log = tables[LOG].copy()
    at = log.columns.get_loc("is_like")
    log.iloc[int(np.argmax(log.date == 20220507)), at] ^= 1
    return tables | {LOG: log}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tables: tables | {LOG: tables[LOG][tables[LOG].date != 20220505]}, "20220505 to 20220506 where"),
        (_with_a_flipped_label, "with is_like 1 where"),
        (lambda tables: tables | {USERS: tables[USERS][1:]}, "11 rows in user_features_pure.csv where"),
        (
            lambda tables: tables | {USERS: tables[USERS].assign(user_id=range(1, 13))},
            "user_id 0 of the log has no row",
        ),
        (lambda tables: tables | {VIDEOS: tables[VIDEOS].drop(columns="tag")}, "no column 'tag'"),
        (lambda tables: tables | {LOG: tables[LOG].assign(tab="home")}, "home"),
        (lambda tables: {LOG: tables[LOG], USERS: tables[USERS]}, "holds no KuaiRand-Pure.*video_features_basic_pure"),
    ],
)
def test_other_data_are_refused_in_one_sentence_and_nothing_is_written(counted, tmp_path, change, says):
    source = write_csv(tmp_path / "source", change(counted))
    with pytest.raises(DataError, match=says) as caught:
        write_kuairand(source, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "KuaiRand-Pure.tar.gz").write_bytes(b"<html>sorry</html>")
    with pytest.raises(DataError, match="cannot read archive"):
        open_kuairand(tmp_path / "KuaiRand-Pure.tar.gz")
    archive = as_archive(tmp_path / "cut.tar.gz", small())
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"cut\.tar\.gz"):
        open_kuairand(archive)
    with pytest.raises(DataError, match="holds no KuaiRand-Pure"):
        open_kuairand(tmp_path / "absent")


def test_two_that_write_at_once_are_not_in_each_others_way(counted, tmp_path):
    source = write_csv(tmp_path / "source", counted)

    def write_too(stage, done, total):
        if stage.startswith("writing") and 2 <= done < total:
            write_kuairand(source, tmp_path / "together")

    write_kuairand(source, tmp_path / "together", progress=write_too)
    write_kuairand(source, tmp_path / "alone")
    together, alone = (
        {path.name: path.read_bytes() for path in (tmp_path / one).iterdir()} for one in ("together", "alone")
    )
    assert together == alone


def test_written_tables_are_the_published_rows(published, written):
    assert is_written(written)
    assert not is_written(published)
    assert (written / "LICENSE").read_bytes() == (published / "LICENSE").read_bytes()
    log = pq.read_table(published / "kuairand_pure_log_standard_0425_0508.parquet").to_pandas()
    parts = {name: pq.read_table(written / f"{name}.parquet") for name in PARTS}
    assert {name: part.num_rows for name, part in parts.items()} == ROWS
    together = pa.concat_tables(parts.values()).select(list(log.columns)).to_pandas()
    names = list(log.columns)
    pd.testing.assert_frame_equal(
        together.sort_values(names, ignore_index=True), log.sort_values(names, ignore_index=True), check_dtype=False
    )
    assert int(log.duplicated().sum()) == 5_460
    assert int((log.long_view & ~log.is_click & 1).sum()) == 250
    assert int((log.is_like & ~log.is_click & 1).sum()) == 703
    user = pq.read_table(published / "kuairand_pure_user_features.parquet").to_pandas().set_index("user_id")
    video = pq.read_table(published / "kuairand_pure_video_features_basic.parquet").to_pandas().set_index("video_id")
    for row in parts["test"].slice(0, 2_000).to_pylist()[::97]:
        for table, key in ((user, "user_id"), (video, "video_id")):
            for name, value in table.loc[row[key]].items():
                assert row[name] == (None if pd.isna(value) else value), name


def test_the_example_reads_what_is_written_and_nothing_of_the_future():
    data = yaml.safe_load(EXAMPLE.read_text())
    experiment = read_experiment(EXAMPLE)
    schema = experiment.schema
    assert set(schema.columns()) <= set(TABLE.names)
    sources = {feature.source for feature in schema.features}
    assert not sources & set(OUTCOMES)
    assert not {"time_ms", "date"} & sources, "days to come have other dates"
    assert {task.source for task in schema.tasks} < set(OUTCOMES)
    assert [task.given for task in schema.tasks] == [None, "click", None, None, None]
    assert (schema.funnel, schema.group, schema.time) == ("loose", "user_id", "time_ms")
    assert [data[part] for part in PARTS] == [f"data/kuairand/{part}.parquet" for part in PARTS]
    text = EXAMPLE.read_text()
    assert all(name in text for name in OUTCOMES), "a comment names what must never be a feature"
    unsaid = set(TABLE.names) - {name for name in TABLE.names if name in text}
    assert unsaid == {name for name in unsaid if name.endswith("_range")}, "so it does what else is left out"


def test_init_warns_of_an_outcome_among_the_features(written):
    text = draft(written / "valid.parquet", ["is_click", "long_view|is_click", "is_profile_enter"])
    warnings = {line.split(":")[0].strip("# ") for line in text.splitlines() if "alone predicts" in line}
    assert "play_time_ms" in warnings
    assert not warnings & {"video_duration", "tab", "user_id", "video_id"}


def test_the_csv_of_the_test_is_what_a_csv_reader_sees(tmp_path):
    """The small data have the columns in the published order, gaps empty and bags quoted."""
    write_csv(tmp_path, small())
    with (tmp_path / VIDEOS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[2]["video_duration"] == ""
    assert rows[4]["tag"] == ""
    assert rows[0]["tag"] == "39,12"
    assert list(rows[0]) == ["video_id", *TABLE.names[-11:]]
