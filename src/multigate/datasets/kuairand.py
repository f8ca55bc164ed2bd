"""KuaiRand-Pure: what users of a short-video app did with what it showed them (Gao et al., CIKM 2022), CC BY-SA 4.0.

Three of the published files are used: the log of standard recommendations from 2022-04-22 to 05-08, the features of
users and the basic features of videos. Of the log the exposures from 04-25 on are kept, 228,329 of them, each joined
with its user and its video. What to know before using them:

- ``OUTCOMES`` are only known after the exposure: labels or nothing, never features.
- ``is_click`` means a click where several covers are shown, and a play of more than 7 seconds (or to the end) where
  videos play by themselves. ``long_view`` is a play of at least 18 seconds (or to the end).
- The funnel leaks: 250 of 70,963 long views and 703 of 3,915 likes have ``is_click`` 0.
- Days and hours are read from ``date`` and ``hourmin``; ``time_ms`` lies in another hour in 18 % of the rows and in
  the day before in 1 %. 5,460 rows repeat an earlier one in every column and stay.
- ``duration_ms`` is 0 where the duration is unknown; ``video_duration`` is the same with null for unknown.
- ``is_live_streamer`` is 1 or the undocumented -124. Three columns never vary: ``is_rand``, ``is_lowactive_period`` and
  ``visible_status``.
- The features of users were taken once, on a day that is not told. The published statistics of videos
  (``video_features_statistic_pure.csv``) were taken over the month that holds the test rows and are not read at all.
"""

import tarfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from multigate.errors import DataError
from multigate.progress import Progress, silent
from multigate.schema import Bag, Category, Number, Schema, Task
from multigate.writing import write_text, writing

OUTCOMES = (
    *("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view", "is_profile_enter"),
    *("play_time_ms", "profile_stay_time", "comment_stay_time"),
)
"""Columns only known after the exposure."""
PARTS = {"train": (20220425, 20220504), "valid": (20220505, 20220506), "test": (20220507, 20220508)}
"""First and last day of each part."""
ROWS = {"train": 171_671, "valid": 27_224, "test": 29_434}
POSITIVES = {
    "is_click": 100_900,
    "long_view": 70_963,
    "is_like": 3_915,
    "is_profile_enter": 4_231,
    "is_comment": 579,
    "is_follow": 304,
    "is_forward": 195,
    "is_hate": 190,
}
"""Ones of each label in all three parts."""

CREDIT = """\
# KuaiRand-Pure

Gao, Li, Zhang, Chen, Li, Lei, Jiang, He: KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed
Videos. CIKM 2022, https://doi.org/10.1145/3511808.3557624. Data: https://kuairand.com,
https://zenodo.org/records/10439422.

Licence: Creative Commons Attribution-ShareAlike 4.0 International, https://creativecommons.org/licenses/by-sa/4.0/.
What is made from these tables and passed on has to carry the same licence.

Changed here: the standard log from 2022-04-25 on, joined with the features of users and the basic features of videos,
sorted by time and split by day into train (04-25 to 05-04), valid (05-05, 05-06) and test (05-07, 05-08).
"""

_WORD = pa.dictionary(pa.int32(), pa.string())
_FLAG, _CODE, _COUNT = pa.int8(), pa.int16(), pa.int32()

_LOG = pa.schema(
    [("user_id", _COUNT), ("video_id", _COUNT), ("date", pa.int32()), ("hourmin", _CODE), ("time_ms", pa.int64())]
    + [(f"is_{name}", _FLAG) for name in ("click", "like", "follow", "comment", "forward", "hate")]
    + [("long_view", _FLAG)]
    + [(name, _COUNT) for name in ("play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time")]
    + [("is_profile_enter", _FLAG), ("is_rand", _FLAG), ("tab", _FLAG)]
)
_USERS = pa.schema(
    [("user_id", _COUNT), ("user_active_degree", _WORD)]
    + [(f"is_{name}", _CODE) for name in ("lowactive_period", "live_streamer", "video_author")]
    + [
        (f"{name}{range_}", kind)
        for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
        for range_, kind in (("", _COUNT), ("_range", _WORD))
    ]
    + [(f"onehot_feat{at}", _CODE) for at in range(18)]
)
_VIDEOS = pa.schema(
    [
        ("video_id", _COUNT),
        ("author_id", pa.int64()),
        ("video_type", _WORD),
        ("upload_dt", _WORD),
        ("upload_type", _WORD),
        ("visible_status", _CODE),
        ("video_duration", _COUNT),
        ("server_width", _CODE),
        ("server_height", _CODE),
        ("music_id", pa.int64()),
        ("music_type", _CODE),
        ("tag", _WORD),
    ]
)
TABLE = pa.schema([*_LOG, *list(_USERS)[1:], *list(_VIDEOS)[1:]])
"""The columns of the written tables: log, user, video, each as published."""


_WORDS = ("user_active_degree", "is_live_streamer", "is_video_author")
_LOGGED = ("follow_user_num", "fans_user_num", "friend_user_num")
_OF_VIDEO = ("video_id", "author_id", "music_id", "music_type", "video_type", "upload_dt", "upload_type")


def kuairand_schema() -> Schema:
    """Features and tasks of the tables that ``write_kuairand`` writes, as the example ``kuairand.yaml`` has them.

    The weights of the rare tasks were chosen on validation rows.
    """
    return Schema(
        features=(
            *(Category(name=name) for name in ("user_id", *_WORDS)),
            *(Number(name=name, transform="log") for name in _LOGGED),
            Number(name="register_days"),
            *(Category(name=f"onehot_feat{at}") for at in range(18)),
            *(Category(name=name) for name in _OF_VIDEO),
            Number(name="video_duration", transform="log"),
            Number(name="server_width"),
            Number(name="server_height"),
            Bag(name="tag"),
            *(Category(name=name) for name in ("tab", "hourmin")),
        ),
        tasks=(
            Task(name="click", column="is_click"),
            Task(name="long_view", given="click"),
            Task(name="like", column="is_like", weight=5),
            Task(name="follow", column="is_follow", weight=20),
            Task(name="profile_enter", column="is_profile_enter", weight=5),
        ),
        keys=("user_id", "video_id", "time_ms"),
        time="time_ms",
        group="user_id",
        funnel="loose",
    )


class _File(NamedTuple):
    csv: str
    """Its name as published."""
    table: str
    """Its name as Parquet."""
    schema: pa.Schema
    rows: int | None
    """None where it holds more than is used."""


_FILES = (
    _File("log_standard_4_22_to_5_08_pure.csv", "kuairand_pure_log_standard_0425_0508.parquet", _LOG, None),
    _File("user_features_pure.csv", "kuairand_pure_user_features.parquet", _USERS, 27_285),
    _File("video_features_basic_pure.csv", "kuairand_pure_video_features_basic.parquet", _VIDEOS, 7_583),
)
_LICENCE = "LICENSE"


class Published(NamedTuple):
    """The published tables, and the licence where the source brings it."""

    log: pa.Table
    users: pa.Table
    videos: pa.Table
    licence: bytes | None


def open_kuairand(source: Path) -> Published:
    """Log, users and videos with their columns as published, wherever they lie.

    ``source`` is the published archive, a folder that it was extracted to, or a folder with the three as Parquet. They
    are not compared with the published ones. ``DataError`` where they are not found or cannot be read.
    """
    found = _members(source) if source.is_file() else _files(source)
    tables = []
    for file in _FILES:
        name = next((name for name in (file.csv, file.table) if name in found), None)
        if name is None:
            raise DataError(
                f"{str(source)!r} holds no KuaiRand-Pure: wanted KuaiRand-Pure.tar.gz, or {file.csv} (or {file.table}) "
                "and the other two tables beside it"
            )
        tables.append(_read(found[name], file, f"{source}: {name}"))
    log, users, videos = tables
    return Published(log, users, videos, found.get(_LICENCE))


def join_kuairand(published: Published) -> pa.Table:
    """One row an exposure from 04-25 on, with the columns of ``TABLE``, in order of time.

    Equal times are ordered by the other columns, so that the order of the source does not matter. ``DataError`` where a
    user or video of the log has no features.
    """
    log = published.log.filter(pc.field("date") >= PARTS["train"][0])
    log = log.sort_by([(name, "ascending") for name in sorted(_LOG.names, key=lambda name: name != "time_ms")])
    columns = dict(zip(log.column_names, log.columns, strict=True))
    for key, table in (("user_id", published.users), ("video_id", published.videos)):
        at = pc.index_in(log[key], value_set=table[key])
        if at.null_count:
            absent = log[key].filter(pc.is_null(at))[0].as_py()
            raise DataError(f"KuaiRand-Pure: {key} {absent} of the log has no row among the features; get the original")
        columns |= {name: table[name].take(at) for name in table.column_names if name != key}
    return pa.table(columns, schema=TABLE)


def write_kuairand(source: Path, out: Path, seed: int = 0, progress: Progress | None = None) -> None:
    """Write train.parquet (171,671 rows), valid.parquet (27,224), test.parquet (29,434), credit and licence to ``out``.

    ``source`` is what ``open_kuairand`` takes; ``seed`` changes nothing, for days split the rows. Rows and positive
    labels are counted first and compared with the published ones: ``DataError`` where they differ.
    """
    report = progress or silent
    steps = 5
    report("reading KuaiRand-Pure", 0, steps)
    published = open_kuairand(source)
    report("checking KuaiRand-Pure", 1, steps)
    for file, table in zip(_FILES, published, strict=False):
        if file.rows is not None:
            _same(table.num_rows, file.rows, f"rows in {file.csv}", source)
    table = join_kuairand(published)
    parts = {
        name: table.filter((pc.field("date") >= first) & (pc.field("date") <= last))
        for name, (first, last) in PARTS.items()
    }
    for name, part in parts.items():
        _same(part.num_rows, ROWS[name], "log rows from day {} to {}".format(*PARTS[name]), source)
    for name, positives in POSITIVES.items():
        _same(pc.sum(table[name]).as_py(), positives, f"log rows with {name} 1", source)

    write_text(out / "CREDIT.md", CREDIT)
    if published.licence is not None:
        with writing(out / _LICENCE) as path:
            path.write_bytes(published.licence)
    with ExitStack() as placed_together:
        for step, (name, part) in enumerate(parts.items(), start=2):
            report("writing KuaiRand-Pure", step, steps)
            path = placed_together.enter_context(writing(out / f"{name}.parquet"))
            pq.write_table(part, path, compression="zstd", row_group_size=65_536)
    report("writing KuaiRand-Pure", steps, steps)


def is_written(out: Path) -> bool:
    """Whether ``write_kuairand`` has written all of its tables to this folder."""
    try:
        return all(pq.read_metadata(out / f"{name}.parquet").num_rows == rows for name, rows in ROWS.items())
    except (OSError, pa.ArrowException):
        return False


def _files(folder: Path) -> dict[str, bytes]:
    """The files that are wanted of a folder, by name; the archive keeps them two folders down."""
    wanted = (_LICENCE, *(name for file in _FILES for name in (file.csv, file.table)))
    below = (folder / "KuaiRand-Pure" / "data", folder / "KuaiRand-Pure", folder / "data", folder)
    try:
        return {name: (one / name).read_bytes() for one in below for name in wanted if (one / name).is_file()}
    except OSError as error:
        raise DataError(f"cannot read {str(folder)!r}: {_one_line(error)}") from None


def _members(archive: Path) -> dict[str, bytes]:
    """The files that are wanted of an archive, by name."""
    wanted = {_LICENCE, *(file.csv for file in _FILES)}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as members:
            for member in members:
                name = Path(member.name).name
                stream = members.extractfile(member) if member.isfile() and name in wanted else None
                if stream is not None:
                    found[name] = stream.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"cannot read archive {str(archive)!r}: {_one_line(error)}") from None
    return found


def _read(content: bytes, file: _File, name: str) -> pa.Table:
    """A published table with the columns and types of its schema."""
    try:
        if name.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(content))
        else:
            # Columns with nulls were published as 1.0; a float64 holds every id exactly.
            types = {field.name: field.type if field.type == _WORD else pa.float64() for field in file.schema}
            table = pyarrow.csv.read_csv(
                pa.py_buffer(content),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=types, null_values=["", "NaN", "nan"], strings_can_be_null=True
                ),
            )
        missing = [column for column in file.schema.names if column not in table.column_names]
        if missing:
            raise DataError(f"{name!r} has no column {missing[0]!r}; {file.csv} has {len(file.schema)} columns")
        return table.select(file.schema.names).cast(file.schema).unify_dictionaries().combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {name!r} as {file.csv}: {_one_line(error)}") from None


def _same(found: int, wanted: int, what: str, source: Path) -> None:
    """That a count is the published one."""
    if found != wanted:
        raise DataError(
            f"{str(source)!r} has {found:,} {what} where KuaiRand-Pure has {wanted:,}; it is cut short or another file"
        )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
