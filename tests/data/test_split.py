import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from multigate.data.files import open_table
from multigate.data.split import Split
from multigate.errors import DataError, ExperimentError, SettingError
from multigate.schema import Number, Schema, Task


def schema(**carried):
    return Schema(features=(Number("x"),), tasks=(Task("y"),), **carried)


def parts_of(split, table, described, rows=1000):
    source = open_table(table)
    splitter = split.resolve(source, described)
    found, first = [], 0
    for batch in source.batches(rows=rows):
        found.append(splitter.assign(batch, first))
        first += batch.num_rows
    return np.concatenate(found), splitter


TIMES = pa.table({"x": range(5000), "t": np.repeat(np.arange(100), 50)[::-1], "u": np.arange(5000) % 700})


@pytest.mark.parametrize("by", ["fraction", "group", "time"])
def test_the_part_of_a_row_does_not_depend_on_how_rows_come_in_batches(by):
    groups = pa.array([None if row % 3 == 0 else row % 700 for row in range(5000)])
    table, described = TIMES.set_column(2, "u", groups), schema(time="t", group="u")
    whole, _ = parts_of(Split(by=by, test=0.2), table, described, rows=5000)
    small, _ = parts_of(Split(by=by, test=0.2), table, described, rows=7)
    assert (whole == small).all()
    assert whole.dtype == np.uint8


def test_by_chance_the_shares_are_as_asked_and_the_seed_decides():
    table = pa.table({"x": np.arange(200_000)})
    found, _ = parts_of(Split(valid=0.1, test=0.25), table, schema())
    # three standard deviations of a binomial share
    assert abs((found == 1).mean() - 0.1) < 3 * (0.1 * 0.9 / 200_000) ** 0.5
    assert abs((found == 2).mean() - 0.25) < 3 * (0.25 * 0.75 / 200_000) ** 0.5
    other, _ = parts_of(Split(valid=0.1, test=0.25, seed=1), table, schema())
    assert abs(((found == 1) & (other == 1)).mean() - 0.01) < 0.002


def test_no_group_lies_in_two_parts_and_rows_without_one_go_one_by_one():
    groups = np.random.default_rng(0).integers(0, 3000, 30_000)
    table = pa.table({"x": groups, "u": pa.array([f"u{g}" if g else None for g in groups % 2000])})
    found, _ = parts_of(Split(valid=0.2, test=0.2), table, schema(group="u"))
    names = table["u"].to_pylist()
    home = {}
    for name, part in zip(names, found, strict=True):
        if name is not None:
            assert home.setdefault(name, part) == part
    assert abs(np.mean(np.array(list(home.values())) == 1) - 0.2) < 0.04
    assert len(set(found[[name is None for name in names]])) > 1
    other, _ = parts_of(Split(valid=0.2, test=0.2, seed=1), table, schema(group="u"))
    known = [name is not None for name in names]
    assert abs(((found == 1) & (other == 1))[known].mean() - 0.2**2) < 0.02, "the seed decides"


def test_a_group_is_one_however_its_number_is_written():
    """As in later rows, which are read as text beside whole numbers of training."""
    numbers = np.arange(300)
    described = schema(group="u", types={"u": "int64"})
    wanted, _ = parts_of(Split(valid=0.3), pa.table({"x": numbers, "u": numbers}), described)
    assert 0 < (wanted == 1).sum() < 300
    for written in ("{}", "0{}", "{}.0", " {}"):
        texts = pa.array([written.format(one) for one in numbers])
        found, _ = parts_of(Split(valid=0.3), pa.table({"x": numbers, "u": texts}), described.with_(types={}))
        spelled = Split(valid=0.3).resolve(open_table({"u": texts}), described).assign(pa.record_batch({"u": texts}), 0)
        assert (spelled == wanted).all(), written
        assert written == "{}" or (found != wanted).any(), "without its type it would be another"


def test_by_time_the_last_rows_validate_and_equal_times_stay_together():
    found, splitter = parts_of(Split(valid=0.2, test=0.1), TIMES, schema(time="t"))
    times = TIMES["t"].to_numpy()
    assert set(times[found == 2]) == set(range(90, 100))
    assert set(times[found == 1]) == set(range(70, 90))
    assert splitter.thresholds == {"valid_from": "70", "test_from": "90"}


def test_a_heavy_last_time_is_not_cut():
    table = pa.table({"x": range(100), "t": [1] * 55 + [2] * 45})
    found, _ = parts_of(Split(valid=0.1), table, schema(time="t"))
    assert found.sum() == 45


def test_some_rows_train_however_large_a_share_is_asked():
    table = pa.table({"x": range(100), "t": [1] * 5 + [2] * 95})
    found, _ = parts_of(Split(valid=0.99), table, schema(time="t"))
    assert found.tolist() == [0] * 5 + [1] * 95


def test_a_share_for_testing_lies_behind_the_time_given_for_validating():
    found, splitter = parts_of(Split(valid_from="95", test=0.2), TIMES, schema(time="t"))
    assert splitter.thresholds == {"valid_from": "95", "test_from": "96"}
    assert np.bincount(found).tolist() == [95 * 50, 50, 4 * 50]


def test_shares_are_of_the_rows_that_have_a_time():
    days = [dt.datetime(2022, 1, 1) + dt.timedelta(days=i) for i in range(100)]
    table = pa.table({"x": range(200), "t": pa.array([*[None] * 100, *days], pa.timestamp("us"))})
    found, splitter = parts_of(Split(valid=0.2, test=0.1), table, schema(time="t"))
    assert found.tolist() == [0] * 170 + [1] * 20 + [2] * 10
    assert splitter.thresholds == {"valid_from": str(days[70]), "test_from": str(days[90])}


def test_times_that_are_decimal_numbers_are_cut_as_numbers():
    table = pa.table({"x": range(4), "t": pa.array([1, 2, 3, 4], pa.int32()).cast(pa.decimal128(12, 2))})
    found, _ = parts_of(Split(valid_from="2.5"), table, schema(time="t"))
    assert found.tolist() == [0, 0, 1, 1]


def test_numbers_that_are_categories_of_pandas_are_cut_as_numbers():
    years = pa.array([2019, 2020, 2021, 2022])
    for split in (Split(valid_from="2021"), Split(valid=0.5)):
        for column in (years, years.dictionary_encode()):
            found, splitter = parts_of(split, pa.table({"x": range(4), "t": column}), schema(time="t"))
            assert found.tolist() == [0, 0, 1, 1]
            assert splitter.thresholds == {"valid_from": "2021"}


def test_a_time_given_makes_a_part_whatever_the_shares_are():
    assert Split(valid=0, valid_from="2022").parts == ("train", "valid")
    assert Split(valid=0, test_from="2022").parts == ("train", "test")
    assert Split(valid_from="2022", test_from="2023").without(valid=True, test=False).parts == ("train", "test")
    assert Split(valid_from="2022", test_from="2023").without(valid=False, test=True).parts == ("train", "valid")


@pytest.mark.parametrize("kind", ["timestamp", "date", "text", "seconds", "milliseconds", "days as numbers"])
def test_thresholds_in_iso_text_fit_every_kind_of_time(kind):
    days = [dt.datetime(2022, 4, 25) + dt.timedelta(hours=6 * i) for i in range(56)]
    values = {
        "timestamp": pa.array(days, pa.timestamp("ms")),
        "date": pa.array([day.date() for day in days]),
        "text": pa.array([day.isoformat(" ") for day in days]),
        "seconds": pa.array([int((day - dt.datetime(1970, 1, 1)).total_seconds()) for day in days]),
        "days as numbers": pa.array([int(day.strftime("%Y%m%d")) for day in days]),
        "milliseconds": pa.array([int((day - dt.datetime(1970, 1, 1)).total_seconds() * 1000) for day in days]),
    }[kind]
    table = pa.table({"x": range(56), "t": values})
    split = Split(valid_from="2022-05-05", test_from="2022-05-07")
    found, splitter = parts_of(split, table, schema(time="t"))
    wanted = [2 if day >= dt.datetime(2022, 5, 7) else 1 if day >= dt.datetime(2022, 5, 5) else 0 for day in days]
    assert found.tolist() == wanted
    assert splitter.thresholds == {"valid_from": "2022-05-05", "test_from": "2022-05-07"}


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", None])
def test_the_zone_of_a_threshold_counts_where_the_column_has_one(zone):
    moments = [dt.datetime(2024, 5, 1, hour) + dt.timedelta(days=day) for day in range(2) for hour in range(24)]
    table = pa.table({"x": range(48), "t": pa.array(moments, pa.timestamp("us", zone and "UTC"))})
    if zone is not None:
        table = table.set_column(1, "t", table["t"].cast(pa.timestamp("us", zone)))
    for given in ("2024-05-02T00:00:00Z", "2024-05-02T02:00:00+02:00") if zone else ("2024-05-02T00:00:00Z",):
        assert parts_of(Split(valid_from=given), table, schema(time="t"))[0].tolist() == [0] * 24 + [1] * 24
    on_the_clock = 26 if zone == "Europe/Berlin" else 24
    assert parts_of(Split(valid_from="2024-05-02"), table, schema(time="t"))[0].sum() == on_the_clock


def test_rows_without_a_time_train():
    table = pa.table({"x": range(4), "t": [1, 2, None, 3]})
    found, _ = parts_of(Split(valid_from="2"), table, schema(time="t"))
    assert found.tolist() == [0, 1, 0, 1]


def test_yaml_dates_and_numbers_are_taken_as_text():
    assert Split(valid_from=dt.date(2022, 5, 5)).valid_from == "2022-05-05"
    assert Split(valid_from=20220505).valid_from == "20220505"


def test_a_table_of_its_own_takes_no_rows_from_training():
    split = Split(valid=0.3, test=0.3, test_from="2022-01-01").without(valid=True, test=True)
    assert split.parts == ("train",)
    found, _ = parts_of(split, TIMES, schema(time="t"))
    assert found.sum() == 0


@pytest.mark.parametrize(
    ("split", "carried", "error", "words"),
    [
        ({"by": "time"}, {}, ExperimentError, "names no 'time' column"),
        ({"by": "group"}, {}, ExperimentError, "names no 'group' column"),
        ({"valid_from": "2022"}, {}, ExperimentError, "'time' column"),
        ({"valid_from": "soon"}, {"time": "t"}, ExperimentError, "'soon' is not a time"),
        ({"valid_from": "nan"}, {"time": "t"}, ExperimentError, "'nan' is not a time"),
        ({"by": "time", "valid_from": ""}, {"time": "t"}, ExperimentError, "valid_from '' is not a time"),
        ({"valid_from": "50", "test_from": "50"}, {"time": "t"}, ExperimentError, "later than valid_from 50"),
        ({}, {"time": "x1"}, DataError, "no column 'x1'"),
        ({}, {"time": "same"}, DataError, "one and the same time"),
    ],
)
def test_what_cannot_be_split_is_refused(split, carried, error, words):
    table = TIMES.append_column("same", pa.array([1] * 5000))
    with pytest.raises(error, match=words):
        parts_of(Split(**split), table, schema(**carried))


def test_shares_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(SettingError, match="leave no rows to train on"):
        Split(valid=0.6, test=0.4)


def test_kuairand_splits_by_day(shared_data):
    path = shared_data / "kuairand" / "kuairand_pure_log_standard_0425_0508.parquet"
    described = Schema(features=(Number("duration_ms"),), tasks=(Task("is_click"),), time="date")
    split = Split(valid_from="20220505", test_from="20220507")
    found, _ = parts_of(split, path, described)
    assert np.bincount(found).tolist() == [171_671, 27_224, 29_434]


def test_times_that_are_fractions_are_cut_as_numbers_and_a_wrong_one_is_named_by_its_row() -> None:
    seconds = pa.table({"t": [0.25, 1.5, 2.75, None], "y": [0, 1, 0, 1]})
    splitter = Split(by="time", valid_from="1.5").resolve(open_table(seconds), schema(time="t"))
    assert splitter.assign(seconds.to_batches()[0], 0).tolist() == [0, 1, 1, 0]
    wrong = pa.record_batch({"t": pa.array(["0.5", "soon"])})
    with pytest.raises(DataError, match="row 8"):
        splitter.assign(wrong, 6)
