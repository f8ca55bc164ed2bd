"""Times with zones: the moments of a later table are read on the clock of the training table's zone, at every door."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multigate.data.encoder import Encoder
from multigate.data.files import open_table
from multigate.schema import Category, Schema, Task, Time

MOMENTS = [
    datetime(2026, 1, 5, 23, 30, tzinfo=UTC),
    datetime(2026, 3, 29, 0, 59, tzinfo=UTC),
    datetime(2026, 3, 29, 1, 0, tzinfo=UTC),  # where clocks went from 2 to 3
    datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
    datetime(2026, 10, 25, 1, 30, tzinfo=UTC),  # the same on the clock again
]
BERLIN = [(0, 1), (1, 6), (3, 6), (2, 6), (2, 6)]
"""Hour and weekday there, by hand."""
ELSEWHERE = [UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York"), timezone(timedelta(hours=5, minutes=30))]


def fitted(kind: str) -> Encoder:
    schema = Schema(features=[Time("at"), Category("c")], tasks=[Task("y")], types={"at": kind})
    return Encoder.fit(schema, [pa.RecordBatch.from_pydict({"at": MOMENTS[:2], "c": ["a", "b"], "y": [0, 1]})])


def read(encoder: Encoder, table: object) -> list[tuple[int, int]]:
    batch = next(open_table(table, types=encoder.schema.later_types()).batches())
    return [(hour - 2, day - 2) for hour, day in encoder.columns(batch, labels=False).categories[:, :2].tolist()]


@pytest.mark.parametrize("zone", ELSEWHERE, ids=str)
def test_the_same_moments_in_any_zone_are_the_same_hours_at_every_door(zone: timezone, tmp_path: Path) -> None:
    encoder = fitted("timestamp[us, tz=Europe/Berlin]")
    at = [one.astimezone(zone) for one in MOMENTS]
    named = "+05:30" if isinstance(zone, timezone) and zone is not UTC else str(zone)
    table = pa.table(
        {"at": pa.array(MOMENTS, pa.timestamp("ns", "UTC")).cast(pa.timestamp("ns", named)), "c": ["a"] * 5}
    )
    pq.write_table(table, tmp_path / "later.parquet")
    lines = [one.isoformat(" ") for one in at], [one.strftime("%Y%m%dT%H%M%S%z") for one in at]
    for name, texts in zip(("one.csv", "other.csv"), lines, strict=True):
        (tmp_path / name).write_text("at,c\n" + "".join(f"{one},a\n" for one in texts))
        assert read(encoder, tmp_path / name) == BERLIN, name
        assert [_row(encoder, one) for one in texts] == BERLIN
        assert read(encoder, {"at": texts, "c": ["a"] * 5}) == BERLIN
    assert read(encoder, tmp_path / "later.parquet") == BERLIN
    assert read(encoder, pd.DataFrame({"at": at, "c": "a"})) == BERLIN
    if named != "+05:30":  # polars knows zones of places alone
        assert read(encoder, pl.from_arrow(table)) == BERLIN
    assert [_row(encoder, one) for one in at] == BERLIN
    assert [_row(encoder, pd.Timestamp(one)) for one in at] == BERLIN


@pytest.mark.parametrize("unit", [1, 10**3, 10**6])
def test_counted_numbers_are_moments_that_a_zone_has_on_its_clock(unit: int) -> None:
    """Of a client that sends seconds since 1970 where the training table had a zone; a day is that day anywhere."""
    at = [int(one.timestamp()) * unit for one in MOMENTS]
    for kind, wanted in (
        ("timestamp[us, tz=Europe/Berlin]", BERLIN),
        ("timestamp[us, tz=UTC]", [(one.hour, one.weekday()) for one in MOMENTS]),
        ("timestamp[us]", [(one.hour, one.weekday()) for one in MOMENTS]),
    ):
        encoder = fitted(kind)
        assert read(encoder, {"at": at, "c": ["a"] * 5}) == wanted
        assert read(encoder, {"at": [*map(float, at), None], "c": ["a"] * 6}) == [*wanted, (-1, -1)]
        assert [_row(encoder, one) for one in at] == wanted
        assert _row(encoder, 20260105) == read(encoder, {"at": [20260105], "c": ["a"]})[0] == (0, 0)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Australia/Sydney"])
def test_clocks_have_summers_after_2037_too_at_every_door(zone: str, tmp_path: Path) -> None:
    encoder = fitted(f"timestamp[us, tz={zone}]")
    at = [datetime(year, month, 1, 12, tzinfo=UTC) for year in (2037, 2038, 2050, 2099, 9998) for month in (1, 7)]
    there = [one.astimezone(ZoneInfo(zone)) for one in at]
    wanted = [(one.hour, one.weekday()) for one in there]
    standing = [str(one.replace(tzinfo=None)) for one in there]
    assert [_row(encoder, one) for one in at] == wanted
    for unit in ("s", "ms", "us"):
        table = pa.table({"at": pa.array([*at, None], pa.timestamp(unit, "UTC")), "c": ["a"] * 11})
        assert read(encoder, table) == [*wanted, (-1, -1)]
    for texts in ([one.isoformat() for one in there], standing):
        (tmp_path / "later.csv").write_text("at,c\n" + "".join(f"{one},a\n" for one in texts))
        assert read(encoder, tmp_path / "later.csv") == wanted
        assert read(encoder, {"at": [*texts, None], "c": ["a"] * 11}) == [*wanted, (-1, -1)]
    latest = "9999-12-31 23:00"
    assert read(encoder, {"at": [latest], "c": ["a"]}) == [_row(encoder, latest)] == [(23, 4)]


def _row(encoder: Encoder, value: object) -> tuple[int, int]:
    hour, day = encoder.row({"at": value, "c": "a"}).categories[0, :2].tolist()
    return hour - 2, day - 2


@pytest.mark.parametrize("zone", ["Europe/Berlin", None])
def test_without_a_zone_on_either_side_times_are_read_as_they_stand(zone: str | None, tmp_path: Path) -> None:
    encoder = fitted("timestamp[us]" if zone is None else f"timestamp[us, tz={zone}]")
    at = [one.astimezone(ZoneInfo("America/New_York")) for one in MOMENTS]
    standing = [(one.hour, one.weekday()) for one in at]
    texts = [one.isoformat() if zone is None else one.replace(tzinfo=None).isoformat() for one in at]
    (tmp_path / "later.csv").write_text("at,c\n" + "".join(f"{one},a\n" for one in texts))
    assert read(encoder, tmp_path / "later.csv") == standing
    assert [_row(encoder, one) for one in texts] == standing
    bare = [one.replace(tzinfo=None) for one in at]
    assert read(encoder, {"at": bare if zone else at, "c": ["a"] * 5}) == standing


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["2026-01-05 10:00:00Z", "2026-01-06 10:00:00+00:00"], pa.timestamp("us", "UTC")),
        (["2026-01-05 10:00:00+01:00", "2026-07-06 10:00:00+02:00"], pa.timestamp("us")),
        (["2026-01-05 10:00:00-00:30", "2026-01-06 10:00:00Z"], pa.timestamp("us")),
        (["", "2026-07-06 10:00:00-05"], pa.timestamp("us")),
    ],
)
def test_times_of_other_zones_than_utc_stay_what_stands_in_a_csv_file(texts: list, kind: pa.DataType, tmp_path: Path):
    (tmp_path / "rows.csv").write_text("at,c\n" + "".join(f"{one},a\n" for one in texts))
    source = open_table(tmp_path / "rows.csv")
    found = source.schema.field("at").type
    assert (found.tz, pa.types.is_timestamp(found)) == (kind.tz, True)
    there = [one for one in next(source.batches())["at"].to_pylist() if one is not None]
    assert {one.hour for one in there} == {10}


def test_files_of_one_place_in_winter_and_in_summer_are_one_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("at\n2026-01-05 10:00:00+00:00\n")
    (tmp_path / "b.csv").write_text("at\n2026-07-05 10:00:00+01:00\n")
    rows = [one for batch in open_table(tmp_path).batches() for one in batch["at"].to_pylist()]
    assert rows == [datetime(2026, 1, 5, 10), datetime(2026, 7, 5, 10)]
