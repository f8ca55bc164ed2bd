"""What a table looks like decides what its columns become; checked on made and on real tables."""

import datetime as dt
import decimal
import math
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multigate.data.encoder import Encoder
from multigate.data.files import open_table
from multigate.data.infer import Findings, infer_schema, inspect_table
from multigate.errors import DataError, ExperimentError, MultigateError
from multigate.schema import Bag, Category, Feature, Hashed, Number, Schema, Task, Time, Vector

RNG = np.random.default_rng(11)
ROWS = 3_000
CLICK = RNG.integers(0, 2, ROWS)
DAY = dt.datetime(2024, 5, 31)


def inspect(tasks: Any = ("click",), rows: int = ROWS, **columns: Any) -> Findings:
    table = pa.table({"noise": RNG.normal(size=rows), "click": RNG.integers(0, 2, rows)} | columns)
    return inspect_table(open_table(table), tasks)


def feature(values: Any, name: str = "x") -> Feature | str:
    """The feature a column becomes, or the reason it does not."""
    findings = inspect(rows=len(values), **{name: values})
    reasons = [note.reason for note in findings.left_out if note.column == name]
    return reasons[0] if reasons else next(one for one in findings.schema.features if one.name == name)


def words(count: int, rows: int = ROWS) -> list[str]:
    return [f"w{one}" for one in RNG.integers(0, count, rows)]


KINDS: dict[str, tuple[str, Any, Feature]] = {
    "fractions": ("x", RNG.normal(size=ROWS), Number("x")),
    "money": ("x", np.exp(3 * RNG.normal(size=ROWS)), Number("x", transform="log")),
    "mostly zero": ("x", RNG.integers(1, 10**5, ROWS) * (RNG.random(ROWS) < 0.02), Number("x", transform="log")),
    "many whole numbers": ("x", RNG.integers(0, 10**6, ROWS), Number("x")),
    "a smooth count": ("x", RNG.poisson(80, ROWS), Number("x")),
    "an even spread": ("x", RNG.integers(0, 90, ROWS), Number("x")),
    "a falling count": ("x", np.minimum(RNG.geometric(0.04, ROWS) - 1, 100), Number("x")),
    "a short table": ("x", RNG.integers(0, 30, 60), Number("x")),
    "decimals": ("x", [decimal.Decimal(int(n)) / 4 for n in RNG.integers(0, 9, ROWS)], Number("x")),
    "codes or counts": ("x", RNG.integers(0, 9, ROWS), Number("x", embedding="bins")),
    "some missing": ("x", [None, *RNG.integers(0, 9, ROWS - 1).tolist()], Number("x", embedding="bins")),
    "few codes, often seen": ("x", RNG.permutation(ROWS) % 3, Category("x")),
    "a sentinel": ("x", RNG.choice([-124, 1], ROWS), Category("x")),
    "few counts by name": ("num_children", RNG.integers(0, 9, ROWS), Number("num_children")),
    "codes by name": ("zip_code", 100 * RNG.integers(0, 900, ROWS), Category("zip_code")),
    "ids by name": ("itemId", RNG.integers(0, 900, ROWS), Category("itemId")),
    "ids by size": ("x", RNG.integers(0, 900, ROWS) + 2**60, Category("x")),
    "ids up to the last": ("x", np.uint64(2**64 - 1) - RNG.integers(0, 9, ROWS, np.uint64), Category("x")),
    "the least int64 for missing": (
        "x",
        np.where(np.arange(ROWS) % 50 == 0, -(2**63), RNG.poisson(12, ROWS)),
        Number("x", transform="log", embedding="bins"),
    ),
    "huge quantities": ("x", 1e25 * RNG.normal(size=ROWS), Number("x")),
    "codes by frequency": ("x", RNG.choice(120, ROWS, p=RNG.dirichlet(np.full(120, 0.5))), Category("x")),
    "booleans": ("x", CLICK == 0, Category("x")),
    "text": ("x", words(900), Category("x")),
    "UUIDs": ("x", [uuid.UUID(int=n % 900) for n in range(ROWS)], Category("x")),
    "phrases": ("x", [f"not in {one} universe" for one in words(20)], Category("x")),
    "ranges": ("x", RNG.choice(["(0,10]", "(10,50]", "(50,100]", "500+"], ROWS), Category("x")),
    "dictionary of numbers": ("x", pa.array(RNG.integers(0, 10**6, ROWS)).dictionary_encode(), Category("x")),
    "items in text": ("x", [",".join(words(30, n)) for n in RNG.integers(1, 4, ROWS)], Bag("x")),
    "items and blanks": ("x", [", ".join(words(30, n)) for n in RNG.integers(1, 4, ROWS)], Bag("x", separator=", ")),
    "items by semicolons": ("x", [";".join(words(30, n)) for n in RNG.integers(1, 4, ROWS)], Bag("x", separator=";")),
    "semicolons and blanks": (
        "x",
        ["; ".join(words(30, n)) for n in RNG.integers(1, 4, ROWS)],
        Bag("x", separator="; "),
    ),
    "bars and blanks": ("x", [" | ".join(words(30, n)) for n in RNG.integers(1, 4, ROWS)], Bag("x", separator=" | ")),
    "items by bars": ("x", ["|".join(words(30, n)) for n in RNG.integers(0, 4, ROWS)], Bag("x", separator="|")),
    "sentences": ("x", [" ".join(words(80, 6)) for _ in range(ROWS)], Bag("x", separator=" ")),
    "lists": ("x", [words(30, n) for n in RNG.integers(0, 4, ROWS)], Bag("x")),
    "lists of ids": ("x", [RNG.integers(0, 30, 2).tolist() for _ in range(ROWS)], Bag("x")),
    "days as numbers": ("date", 20240501 + RNG.integers(0, 30, ROWS), Time("date", parts=("weekday",))),
    "numbers that are no days": ("date", 20240571 + RNG.integers(0, 30, ROWS), Number("date", embedding="bins")),
    "vectors": ("x", pa.FixedSizeListArray.from_arrays(pa.array(RNG.normal(size=4 * ROWS)), 4), Vector("x", size=4)),
    "lists of one length": ("x", RNG.normal(size=(ROWS, 3)).tolist(), Vector("x", size=3)),
    "timestamps": ("x", [DAY + dt.timedelta(minutes=n) for n in range(ROWS)], Time("x")),
    "dates": ("x", [DAY.date() + dt.timedelta(days=n % 90) for n in range(ROWS)], Time("x", parts=("weekday",))),
    "times as text": ("x", [f"2024-05-{1 + n % 31:02} 10:{n % 60:02}:00" for n in range(ROWS)], Time("x")),
    "epoch milliseconds": ("time_ms", 1_650_000_000_000 + RNG.integers(0, 10**9, ROWS), Time("time_ms")),
    "one value and missing": ("x", [None, "a"] * (ROWS // 2), Category("x")),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_a_column_becomes_the_feature_it_looks_like(case: str) -> None:
    name, values, want = KINDS[case]
    assert feature(values, name) == want


@pytest.mark.parametrize("name", ["id", "PatientID", "Unnamed: 0", "rownames", "row_id", "index"])
def test_ids_and_numbers_of_rows_are_keys_in_short_tables(name: str) -> None:
    """A number of its own in each row is no feature where its name says so; one that comes back is."""
    assert "kept as a key" in str(feature(np.arange(1, 401), name))
    assert not isinstance(feature(np.arange(400) // 2, name), str)
    assert feature(np.arange(1, 401), "day") == Number("day")


def test_counts_that_become_rare_steeply_are_numbers() -> None:
    """Visits of many people: half as many have one more, over more than fifty values; codes are no such curve."""
    random = np.random.default_rng(0)
    visits = np.concatenate([random.poisson(random.gamma(0.7, 6, 20_000)), np.arange(60)])
    assert feature(visits).kind == "number"
    assert feature(random.permutation(90)[visits % 90]) == Category("x")


def test_very_many_values_are_hashed_into_a_power_of_two() -> None:
    ids = [f"u{n}" for n in RNG.integers(0, 150_000, 400_000)]
    kept = feature(ids, "user_id")
    assert isinstance(kept, Hashed)
    assert kept.buckets == 2**18
    bag = feature([[one, "w"] for one in ids])
    assert isinstance(bag, Bag)
    assert bag.buckets == 2**18


LEFT_OUT: dict[str, tuple[str, Any, str]] = {
    "constant": ("x", ["a"] * ROWS, "holds 'a' in every row"),
    "empty": ("x", pa.nulls(ROWS), "holds no value"),
    "nothing but NaN": ("x", np.full(ROWS, np.nan), "holds no value"),
    "nothing but empty text": ("x", [""] * ROWS, "holds no value"),
    "empty lists": ("x", pa.array([[]] * ROWS, pa.list_(pa.string())), "holds no value"),
    "row numbers": ("x", range(ROWS), "a number of its own in almost every row; kept as a key"),
    "unique ids": ("order_id", RNG.integers(0, 2**60, ROWS), "kept as a key"),
    "unique texts": ("x", [f"{n:x}-{n}" for n in range(ROWS)], "kept as a key"),
    "unique phrases": ("x", [f"a{n} b{n}" for n in range(ROWS)], "a text of its own in almost every row, which"),
    "struct": ("x", [{"a": 1}] * ROWS, "type struct<a: int64> is not one"),
    "map": ("x", pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())), "is not one that features can read"),
    "binary": ("x", [b"a", b"b"] * (ROWS // 2), "type binary is not one"),
    "duration": ("x", [dt.timedelta(1), dt.timedelta(2)] * (ROWS // 2), "is not one that features can read"),
    "nested lists": ("x", [[["a"]]] * ROWS, "is not one that features can read"),
    "ragged numbers": ("x", [[0.5], [1.5, 2.5]] * (ROWS // 2), "holds lists of 1 to 2 fractional numbers"),
    "weights": ("instance_weight", RNG.uniform(1, 9, ROWS), "weighs the rows"),
    "nearly times": ("x", ["2024-05-31"] * (ROWS - 2) + ["2024-06-01", "soon"], "99.97% of its values are times and"),
    "impossible times": ("x", ["2024-05-31"] * (ROWS - 2) + ["2024-06-01", "2024-02-31"], "are times and the others"),
    "mixed zones": ("x", ["2024-05-31 10:00", "2024-05-31 10:00Z"] * (ROWS // 2), "some with a zone"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_column_is_left_out_for_a_reason(case: str) -> None:
    name, values, reason = LEFT_OUT[case]
    found = feature(values, name)
    assert isinstance(found, str)
    assert reason in found


def test_text_of_times_may_hold_some_of_no_year() -> None:
    times = [f"2024-05-{day:02} 10:{day:02}" for day in range(1, 31)]
    for odd in (["0000-01-01 00:00"], ["0000-01-01", "0000-02-29"]):
        assert feature((times + odd) * 10, "at") == Time("at")


def test_keys_time_group_and_types() -> None:
    schema = inspect(
        order_id=pa.array(range(ROWS)),
        birth_date=[DAY.date() - dt.timedelta(days=int(n)) for n in RNG.integers(9_000, 20_000, ROWS)],
        shipped=[DAY + dt.timedelta(hours=int(n)) for n in RNG.integers(0, 99, ROWS)],
        created_at=[f"2024-05-31T10:{n // 60:02}:{n % 60:02}+02:00" for n in range(ROWS)],
        user_id=pa.array(RNG.integers(0, 300, ROWS), pa.int16()),
        session=words(ROWS // 3),
        price=pa.array(RNG.uniform(size=ROWS), pa.float32()),
        seller=pa.array(words(9)).dictionary_encode(),
    ).schema
    assert schema.keys == ("order_id",)
    assert schema.time == "created_at"
    assert schema.group == "user_id"
    assert {"birth_date", "shipped", "created_at", "user_id", "session"} <= {one.name for one in schema.features}
    assert schema.types == {
        "noise": "double",
        "birth_date": "date32[day]",
        "shipped": "timestamp[us]",
        "created_at": "timestamp[us, tz=UTC]",
        "user_id": "int64",
        "session": "string",
        "price": "double",
        "seller": "string",
        "click": "int64",
        "order_id": "int64",
    }
    assert inspect(patient_id=RNG.integers(0, 300, ROWS), session_id=words(300)).schema.group == "patient_id"
    assert inspect(inpatient=words(300)).schema.group is None
    assert inspect(user=words(3)).schema.group is None
    assert inspect(union_member=words(300), date=20240501 + RNG.integers(0, 30, ROWS)).schema.group is None
    assert inspect(date=20240501 + RNG.integers(0, 30, ROWS)).schema.time == "date"
    assert inspect(birth_date=[DAY.date() - dt.timedelta(days=n % 99) for n in range(ROWS)]).schema.time is None
    two = {"user_id": RNG.integers(0, 99, ROWS), "friend_user_id": RNG.integers(0, 99, ROWS)}
    assert inspect(**two).schema.group is None


@pytest.mark.parametrize("name", ["Patient No.", "patient_no", "Customer Number", "PatientNr", "member number"])
def test_a_patient_number_names_a_patient(name: str) -> None:
    numbers = RNG.integers(10_000, 10_300, ROWS)
    schema = inspect(**{name: numbers}).schema
    assert Category(name) in schema.features
    assert schema.group == name
    assert inspect(**{name: [f"P{one}" for one in numbers]}).schema.group == name
    for other in ("number of visits", "Session No.", "answer no", "number"):
        schema = inspect(**{other: numbers}).schema
        assert Number(other) in schema.features
        assert schema.group is None


@pytest.mark.parametrize("name", ["patient", "subject", "person", "firm", "Company", "hospital", "nr"])
def test_numbers_of_whom_or_what_a_panel_follows_are_ids(name: str) -> None:
    """Rows of neighbouring numbers have nothing in common."""
    assert Category(name) in inspect(**{name: np.repeat(np.arange(ROWS // 8 + 1) * 7 + 13, 8)[:ROWS]}).schema.features


PICKED = Task("one", column="y", positive="a")
RAW = Task("y", transform="none")
GRADES = Task("y", kind="multiclass", classes=("2", "9", "10"))
LABELS: dict[str, tuple[str | Task, Any, Task]] = {
    "0 and 1": ("y", CLICK, Task("y")),
    "true and false": ("y", CLICK == 1, Task("y")),
    "text 0 and 1": ("y", [str(one) for one in CLICK], Task("y")),
    "0.0 and 1.0 with unknown": ("y", np.where(RNG.random(ROWS) < 0.3, np.nan, CLICK), Task("y")),
    "yes": ("y", ["Yes", "No", "Yes"] * (ROWS // 3), Task("y", positive="Yes")),
    "ja": ("y", ["ja", "nein", "ja"] * (ROWS // 3), Task("y", positive="ja")),
    "oui": ("y", ["Oui", "Non", "Oui"] * (ROWS // 3), Task("y", positive="Oui")),
    "minus one": ("y", [1, 1, -1] * (ROWS // 3), Task("y", positive=1)),
    "census": ("y", ["- 50000.", "50000+.", "- 50000."] * (ROWS // 3), Task("y", positive="50000+.")),
    "the rarer": ("y", ["good", "bad", "good"] * (ROWS // 3), Task("y", positive="bad")),
    "texts": ("y", ["b", "a", "c"] * (ROWS // 3), Task("y", kind="multiclass", classes=("a", "b", "c"))),
    "grades": ("y", [10, 9, 2] * (ROWS // 3), GRADES),
    "grades with unknown": ("y", [10.0, 9.0, 2.0, math.nan] * (ROWS // 4), GRADES),
    "fractions": ("y", RNG.normal(size=ROWS), Task("y", kind="regression")),
    "seconds": ("y", np.exp(3 * RNG.normal(size=ROWS)), Task("y", kind="regression", transform="log1p")),
    "large and signed": ("y", 9 * RNG.standard_t(1, ROWS), Task("y", kind="regression")),
    "counts": ("num_y", RNG.integers(0, 9, ROWS), Task("num_y", kind="regression")),
    "positive declared": (PICKED, ["b", "a", "c"] * (ROWS // 3), PICKED),
    "kind declared": (Task("y", kind="regression"), CLICK, Task("y", kind="regression")),
    "transform declared": (RAW, RNG.lognormal(0, 3, ROWS), RAW.with_(kind="regression")),
    "kind left open": (Task("y", weight=2), RNG.normal(size=ROWS), Task("y", kind="regression", weight=2)),
    "conditional": ("y|click", CLICK, Task("y", given="click")),
    "conditional, null elsewhere": ("y|click", [1, None, None] * (ROWS // 3), Task("y", given="click")),
}  # fmt: skip


@pytest.mark.parametrize("case", LABELS)
def test_a_task_is_filled_in_from_its_column(case: str) -> None:
    asked, values, want = LABELS[case]
    schema = inspect(("click", asked), **{want.source: values}).schema
    assert schema.tasks[1] == want
    assert [one.name for one in schema.features] == ["noise"]


BAD_LABELS: dict[str, tuple[Any, Any, str]] = {
    "not there": ("clik", CLICK, "no column 'clik' for task 'clik'; did you mean 'click'"),
    "constant": ("y", np.ones(ROWS), "'y', the label of task 'y', is 1.0 wherever it is known"),
    "marks": ("y", ["x", None] * (ROWS // 2), r"is 'x' wherever it is known; .* two values; empty cells are unknown"),
    "marks for given": ("y|click", ["x", None] * (ROWS // 2), "is 'x' wherever it is known; .* cells are unknown"),
    "marks as positive": (Task("y", given="click", positive="x"), ["x", None] * (ROWS // 2), "cells are unknown"),
    "unknown": ("y", np.full(ROWS, np.nan), "holds no value in any row"),
    "null": ("y", pa.nulls(ROWS), "holds no value in any row"),
    "lists": ("y", [[1]] * ROWS, "is list<item: int64>, but labels are numbers, text or booleans"),
    "times": ("y", [DAY] * ROWS, r"is timestamp\[us\], but labels"),
    "days as categories": ("y", pa.array([DAY.date() + dt.timedelta(n % 4) for n in range(ROWS)]).dictionary_encode(),
                           r"is dictionary<values=date32\[day\].*, but labels are"),
    "three for given": ("y|click", [*"abc"] * (ROWS // 3), r"3 different values \('a', 'b', 'c', ...\), but a binary"),
    "positive not there": (Task("y", positive="yes"), ["yea", "no"] * (ROWS // 2), "never holds 'yes'.* mean 'yea'"),
    "all positive": (Task("y", positive=(0, 1)), CLICK, "nothing but its positive values"),
    "text for regression": (Task("y", kind="regression"), words(9), "is string, but a regression wants numbers"),
    "text of numbers for regression": (Task("y", kind="regression"), ["2.50", "1.25", "NA"] * (ROWS // 3),
                                       r"wants numbers; .* whose text is numbers \(schema\.types\.y=double\)"),
    "thousands for regression": (Task("y", kind="regression"), ["567", "1.234", ""] * (ROWS // 3),
                                 r"wants numbers; '1\.234' may be thousands: .*\(schema\.types\.y=double\)"),
    "weight not there": (Task("y", sample_weight="w"), CLICK, "no column 'w' for task 'y'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_LABELS)
def test_a_label_that_cannot_be_learnt_is_refused(case: str) -> None:
    task, values, message = BAD_LABELS[case]
    with pytest.raises(DataError, match=message):
        inspect(("click", task), y=values)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((), "at least one task"),
        (("click|click",), "is not another binary task"),
        (("click|buy",), "given 'buy' is not another binary task"),
        (("click|buy|see",), "a name may hold neither"),
        (("click", "click"), "two tasks are named 'click'"),
        (("",), "is not a task"),
        (("a|b",), "a name may hold neither '|' nor '/'; choose another and give this one as 'column'"),
    ],
)
def test_tasks_that_do_not_fit_together_are_refused(tasks: tuple[str, ...], message: str) -> None:
    with pytest.raises(ExperimentError, match=re.escape(message)):
        inspect(tasks, **{"a|b": CLICK})


@pytest.mark.parametrize("tasks", [[5], 5, None, Number("x")])
def test_tasks_that_are_no_names_are_told(tasks: Any) -> None:
    with pytest.raises(ExperimentError, match="label column"):
        infer_schema({"x": [1.0, 2.0], "5": [0, 1]}, tasks)


def test_kinds_of_tasks_may_be_given_by_name() -> None:
    table = {"grade": [0, 1, 2] * 20, "click": CLICK[:60], "x": list(range(60))}
    schema = infer_schema(table, {"grade": "regression", "click": "binary"})
    assert [(task.name, task.kind) for task in schema.tasks] == [("grade", "regression"), ("click", "binary")]
    with pytest.raises(ExperimentError, match=r"Task: kind: Input should be .*found 'count'"):
        infer_schema(table, {"grade": "count"})


def test_labels_that_files_spell_in_two_ways_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("x,click\n" + "1.5,0\n2.5,1\n" * 20)
    (tmp_path / "2.csv").write_text("x,click\n" + "1.5,False\n2.5,True\n" * 20)
    with pytest.raises(DataError, match=r"has 4 different values .*, but a binary task wants two; say which mean 1"):
        infer_schema(tmp_path, ["click"])
    schema = infer_schema(tmp_path, [Task("click", positive=("1", "True"))])
    assert Encoder.fit(schema, open_table(tmp_path).batches()).stats[0].positives == 40


def test_a_label_is_the_column_of_just_its_name_before_one_that_differs_in_blanks() -> None:
    table = {"y": [0, 1] * 20, "y ": ["a", "b"] * 20, " y": [1.5, 2.5] * 20, "x": list(range(40))}
    for name in ("y", "y ", " y"):
        assert infer_schema(table, [name]).tasks[0].source == name
    assert infer_schema(table, ["  y"]).tasks[0].source == "y"


def test_a_chain_is_meant_where_its_first_name_is_a_column() -> None:
    assert inspect(("click", "a|click"), a=CLICK, **{"a|click": CLICK}).schema.tasks[1] == Task("a", given="click")


def test_names_of_tables_of_bins_and_parts_may_be_names_of_columns() -> None:
    table = open_table(pa.table({"x": RNG.normal(size=60), "x:value": ["a", "b", "c"] * 20, "y": [0, 1] * 30}))
    schema = infer_schema(table, ["y"])
    encoder = Encoder.fit(schema, table.batches())
    assert encoder.layout.tables["x:value:category"] == 5
    assert {feature.name for feature in schema.features} == {"x", "x:value"}


def test_a_drafted_schema_has_a_table_for_each_number_and_time_whatever_their_names() -> None:
    moments = [dt.datetime(2026, 1, 1) + dt.timedelta(hours=at) for at in range(ROWS)]
    often = RNG.permutation(ROWS) % 20
    columns = {
        "price": np.arange(ROWS) % 300, "price:value": often, "price:value:value": often + 1.5, "seen": moments,
        "seen:hour": often, "price:value:number": often, "seen:hour:number:value": ["a", "b", "c"] * (ROWS // 3),
        "old:value": ["a", "b", "c"] * (ROWS // 3), "old": often, "old:value:category": often,
    }  # fmt: skip
    table = open_table({name: list(values) for name, values in (columns | {"click": CLICK}).items()})
    schema = infer_schema(table, ["click"])
    assert {one.source for one in schema.features} == set(columns)
    schema = schema.with_(
        features=tuple(
            one.with_(embedding="bins")
            if isinstance(one, Number)
            else one  # what ``auto`` may come to in a later table
            for one in schema.features
        )
    )
    encoder = Encoder.fit(schema, table.batches())
    encoded = next(iter(table.batches()))
    ids = encoder.columns(encoded)
    assert len(encoder.layout.tables) == len(encoder.layout.categories), "no two share a table"
    for at, one in enumerate(encoder.layout.categories):
        assert int(ids.categories[:, at].max()) < encoder.layout.tables[one.table]


def test_a_leak_is_told_of_the_column_whatever_its_feature_is_called() -> None:
    found = inspect(**{"price": RNG.normal(size=ROWS), "price:value": CLICK + RNG.random(ROWS) / 2, "click": CLICK})
    assert [one.name for one in found.schema.features if one.source == "price:value"] == ["price:value:number"]
    assert {note.column for note in found.leaks} == {"price:value"}


def test_a_table_of_labels_alone_is_refused() -> None:
    with pytest.raises(DataError, match="no column to predict from"):
        inspect_table(open_table({"click": [0, 1]}), ["click"])
    with pytest.raises(DataError, match=r"no column to predict from .*column 'x': holds 3 in every row"):
        inspect_table(open_table({"x": [3, 3], "click": [0, 1]}), ["click"])


def test_missing_text_in_a_dict_of_lists_is_missing() -> None:
    """As a frame of pandas gives it: ``to_dict("list")``."""
    table = {"colour": ["red", math.nan, "blue"] * 20, "click": [0, 1] * 30}
    assert infer_schema(table, ["click"]).features == (Category("colour"),)
    assert open_table(table).batches().__next__()["colour"].null_count == 20


def test_leaks_stay_and_copies_of_a_label_go() -> None:
    buy = RNG.integers(0, 2, ROWS)
    watch = RNG.uniform(size=ROWS)
    findings = inspect(
        ("buy", "watch"),
        buy=buy,
        watch=watch,
        bought=np.where(buy, "yes", "no"),
        paid=np.where(buy, RNG.uniform(1, 9, ROWS), 0.0),
        buy_again=buy,
        seconds=60 * watch,
        watch_again=watch,
    )
    assert [(note.column, note.reason.split(" ")[0]) for note in findings.leaks] == [
        ("bought", "says"),
        ("paid", "alone"),
        ("seconds", "alone"),
    ]
    assert [note.column for note in findings.left_out] == ["buy_again", "watch_again"]
    assert "same values as 'buy', the label of task 'buy'" in findings.left_out[0].reason
    assert {one.name for one in findings.schema.features} == {"noise", "click", "bought", "paid", "seconds"}


def test_a_csv_file_and_a_parquet_file_give_one_schema(tmp_path: Path) -> None:
    table = pa.table(
        {
            "age": RNG.integers(18, 90, ROWS).astype(np.int8),
            "city": pa.array(words(40)).dictionary_encode(),
            "tags": [",".join(words(30, n)) for n in RNG.integers(1, 4, ROWS)],
            "when": pa.array([DAY + dt.timedelta(minutes=n) for n in range(ROWS)], pa.timestamp("s")),
            "price": RNG.uniform(size=ROWS).astype(np.float32),
            "click": CLICK,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    text = table.set_column(1, "city", table["city"].cast(pa.string()))
    pyarrow.csv.write_csv(text, tmp_path / "a.csv")
    schema = infer_schema(tmp_path / "a.parquet", ["click"])
    assert infer_schema(tmp_path / "a.csv", ["click"]) == schema
    rows = [
        pa.Table.from_batches(open_table(tmp_path / name, schema.types).batches()) for name in ("a.csv", "a.parquet")
    ]
    assert rows[0].drop_columns("price").to_pylist() == rows[1].drop_columns("price").to_pylist()


def test_a_schema_survives_yaml_words() -> None:
    schema = inspect(x=words(9), t=[DAY + dt.timedelta(hours=n) for n in range(ROWS)]).schema
    assert Schema.model_validate(schema.to_dict()) == schema


# --- any table -------------------------------------------------------------------------------------------------------

CELLS: dict[str, tuple[st.SearchStrategy[Any], pa.DataType]] = {
    "ints": (st.integers(-(2**63), 2**63 - 1), pa.int64()),
    "small": (st.integers(0, 3), pa.int8()),
    "unsigned": (st.integers(0, 2**64 - 1), pa.uint64()),
    "floats": (st.floats(), pa.float64()),
    "halves": (st.sampled_from([0.0, 1.5, float("nan"), float("-inf")]), pa.float16()),
    "booleans": (st.booleans(), pa.bool_()),
    "texts": (st.text(max_size=6), pa.string()),
    "labels": (st.sampled_from(["yes", "no", "", "a,b", "a"]), pa.large_string()),
    "times": (st.datetimes(), pa.timestamp("us")),
    "zoned": (st.integers(-(2**55), 2**55), pa.timestamp("us", "Europe/Berlin")),
    "nanoseconds": (st.integers(-(2**62), 2**62), pa.timestamp("ns")),
    "dates": (st.dates(), pa.date32()),
    "iso": (st.datetimes().map(str), pa.string()),
    "decimals": (st.decimals(-99, 99, places=2), pa.decimal128(6, 2)),
    "lists": (st.lists(st.sampled_from("abc"), max_size=3), pa.list_(pa.string())),
    "vectors": (st.lists(st.floats(), min_size=2, max_size=2), pa.list_(pa.float64(), 2)),
    "float lists": (st.lists(st.floats(), max_size=2), pa.large_list(pa.float64())),
    "categories": (st.sampled_from(["a", "b"]), pa.dictionary(pa.int8(), pa.string())),
    "coded ints": (st.integers(0, 3), pa.dictionary(pa.int8(), pa.int64())),
    "structs": (st.just({"a": 1}), pa.struct([("a", pa.int64())])),
    "bytes": (st.binary(max_size=2), pa.binary()),
    "durations": (st.integers(0, 9), pa.duration("s")),
    "nulls": (st.none(), pa.null()),
}  # fmt: skip


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(1, 12))
    columns: dict[str, pa.Array] = {}
    for at in range(draw(st.integers(1, 4))):
        cells, kind = CELLS[draw(st.sampled_from(sorted(CELLS)))]
        values = draw(st.lists(st.one_of(st.none(), cells, cells, cells), min_size=rows, max_size=rows))
        columns[draw(st.sampled_from(["user_id", "time", "weight", "age"])) if at else "y"] = pa.array(values, kind)
    return pa.table(columns)


def test_labels_beyond_the_whole_numbers_of_floats_are_drafted() -> None:
    """Nearly all 0, so that they are looked at for totals that fall short."""
    table = {"x": list(range(40)), "spent": [0] * 36 + [1, 5, 9, 2**53 + 1]}
    task = infer_schema(table, {"spent": "regression"}).task("spent")
    assert (task.kind, task.transform) == ("regression", "log1p")


@settings(max_examples=200, deadline=None)
@given(tables(), st.sampled_from(["y", "y|age", "user_id"]), st.integers(1, 12))
def test_any_table_gives_a_schema_that_encodes_it_or_an_error_of_ours(table: pa.Table, task: str, size: int) -> None:
    tasks = [task, *(["age"] if task == "y|age" else [])]
    try:
        findings = inspect_table(open_table(table), tasks)
    except MultigateError:
        return
    schema = findings.schema
    assert Schema.model_validate(schema.model_dump()) == schema
    assert findings.rows == table.num_rows
    assert set(schema.types) == set(schema.columns())
    placed = [one.name for one in schema.features] + [one.column for one in findings.left_out]
    assert sorted(placed + [one.source for one in schema.tasks]) == sorted(table.column_names)
    source = open_table(table, schema.types)
    try:
        encoder = Encoder.fit(schema, source.batches(schema.columns(), size))
    except MultigateError:
        return
    assert sum(encoder.columns(batch).rows for batch in source.batches(schema.columns())) == table.num_rows


# --- real tables -----------------------------------------------------------------------------------------------------


def test_census_is_read_as_its_documentation_says(shared_data: Path) -> None:
    tasks = [Task("income", column="income_50k"), Task("marital", column="marital_stat", positive="Never married")]
    findings = inspect_table(open_table(shared_data / "census-income" / "train.parquet"), tasks)
    assert findings.rows == 199_523
    assert [note.column for note in findings.left_out] == ["instance_weight"]
    assert findings.leaks == ()
    schema = findings.schema
    assert schema.tasks == (Task("income", column="income_50k", positive="50000+."), tasks[1])
    numbers = {one.name: one.transform for one in schema.features if isinstance(one, Number)}
    assert numbers == {
        "age": "standard",
        "wage_per_hour": "log",
        "capital_gains": "log",
        "capital_losses": "log",
        "stock_dividends": "log",
        "num_emp": "standard",
        "weeks_worked": "standard",
    }
    others = {one.name for one in schema.features if isinstance(one, Category)}
    assert {"det_ind_code", "det_occ_code", "own_or_self", "vet_benefits", "year"} <= others
    assert len(others) + len(numbers) == len(schema.features) == 39
    assert (schema.keys, schema.time, schema.group) == ((), None, None)


@pytest.fixture(scope="session")
def feed(shared_data: Path) -> pa.Table:
    """KuaiRand's exposures with the features of the user and the video, in their order."""
    log, users, videos = (
        pq.read_table(shared_data / "kuairand" / f"kuairand_pure_{name}.parquet")
        for name in ("log_standard_0425_0508", "user_features", "video_features_basic")
    )
    ids = [pa.field("user_id", pa.int64()), pa.field("video_id", pa.int64())]
    log = log.cast(pa.schema([*ids, *log.schema][:2] + list(log.schema)[2:])).append_column("row", [range(len(log))])
    return log.join(users, "user_id").join(videos, "video_id").sort_by("row").drop_columns("row")


def test_kuairand_is_read_as_a_feed(feed: pa.Table) -> None:
    findings = inspect_table(open_table(feed), ["is_click", "long_view|is_click", "is_like", "play_time_ms"])
    schema = findings.schema
    assert findings.rows == 228_329
    assert (schema.time, schema.group, schema.keys) == ("time_ms", "user_id", ())
    assert [note.column for note in findings.left_out] == ["is_rand", "is_lowactive_period", "visible_status"]
    assert schema.tasks == (
        Task("is_click"),
        Task("long_view", given="is_click"),
        Task("is_like"),
        Task("play_time_ms", kind="regression"),
    )
    kinds = {one.name: one for one in schema.features}
    assert kinds["tag"] == Bag("tag")
    assert kinds["time_ms"] == Time("time_ms")
    assert kinds["date"] == Time("date", parts=("weekday",))
    assert kinds["upload_dt"] == Time("upload_dt", parts=("weekday",))
    numbers = {one.name for one in schema.features if isinstance(one, Number)}
    assert numbers == {
        *("duration_ms", "video_duration", "server_width", "server_height", "register_days"),
        *("follow_user_num", "fans_user_num", "friend_user_num", "profile_stay_time", "comment_stay_time"),
    }
    codes = {f"onehot_feat{at}" for at in range(18)} | {
        "user_id",
        "video_id",
        "author_id",
        "music_id",
        "music_type",
        "tab",
    }
    assert all(isinstance(kinds[name], Category) for name in codes)
    assert schema.types["upload_dt"] == "timestamp[us]"


def test_kuairand_users_and_videos_have_keys(shared_data: Path) -> None:
    videos = shared_data / "kuairand" / "kuairand_pure_video_features_basic.parquet"
    assert infer_schema(videos, ["server_width"]).keys == ("video_id",)
