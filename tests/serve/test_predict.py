"""Predictions over HTTP are those of Python, to the bit, whoever asks at the same time and whatever else they send."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving import SCHEMA, Rows, Serving, read

from multigate.assembly import build_model
from multigate.bundle import Bundle, load
from multigate.data.encoder import Encoder
from multigate.errors import DataError
from multigate.experiment import Experiment
from multigate.schema import Bag, Category, Schema, Task
from multigate.serve.body import DRAINED, LARGEST, to_json
from multigate.serve.models import load_models
from multigate.serve.predictions import predictions


def in_rows(named: dict[str, Any]) -> Rows:
    columns = [values.tolist() for values in named.values()]
    return [dict(zip(named, one, strict=True)) for one in zip(*columns, strict=True)]


def test_no_request_waits_for_what_values_are_looked_up_in(folder: Path) -> None:
    """Of a million values that takes a second. A table wants none of it."""
    assert not any("_id" in vars(one) for one in load(folder / "shop").encoder.fitted.vocabularies.values())
    served = load_models({"shop": folder / "shop"}, "torch")["shop"].encoder.fitted.vocabularies
    assert len(served) > 1
    assert all("_id" in vars(one) for one in served.values())


@pytest.mark.parametrize("gates", [False, True])
def test_rows_are_answered_as_python_answers_them(server: Serving, bundle: Bundle, rows: Rows, gates: bool) -> None:
    """More of them than are computed together, and few; a list, a list of one, and none."""
    for some in (rows * 2, rows[:3], rows[:1], []):
        answer = server.client.post("/predict", json={"rows": some, "gates": gates})
        assert answer.status_code == 200
        assert read(answer) == {"predictions": in_rows(bundle.predict(some, gates=gates))}
    found = read(answer := server.client.post("/predict", json={"rows": rows, "gates": gates}))["predictions"]
    assert answer.status_code == 200
    assert len({one["click"] for one in found}) > 250, "rows are told apart"
    assert {one["mood"] for one in found} <= {"glad", "sad", "odd"}
    assert ("gate/click" in found[0]) == gates


def test_one_row_is_answered_as_python_answers_it(server: Serving, bundle: Bundle, rows: Rows, many: Rows) -> None:
    for bare, whole in zip(rows[:20], many[:20], strict=True):
        expected = {"predictions": [bundle.predict(bare)]}
        for asked in (bare, whole, {"rows": bare}, {"rows": bare, "gates": False}):  # columns beyond are not read
            assert read(server.client.post("/predict", json=asked)) == expected
        for path in ("/models/shop/predict", "/models/sho%70/predict"):
            assert read(server.client.post(path, json=bare)) == expected
    assert read(server.client.post("/predict", json={"rows": rows[0], "gates": True})) == {
        "predictions": [bundle.predict(rows[0], gates=True)]
    }


def test_answers_of_many_who_ask_at_once_are_not_mixed_up(server: Serving, bundle: Bundle, rows: Rows) -> None:
    """Short requests, which are answered at once, and long ones, which go through a thread."""

    def ask(first: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for at in range(first, first + 20):
                found = client.post("/predict", json=rows[at])
                assert read(found)["predictions"] == singles[at]
                if at % 5 == 0:
                    found = client.post("/predict", json={"rows": rows[at : at + 100]})
                    assert read(found)["predictions"] == tables[at]

    singles = [[bundle.predict(row)] for row in rows[:160]]
    tables = {at: in_rows(bundle.predict(rows[at : at + 100])) for at in range(0, 160, 5)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(0, 160, 20)))


def without(row: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


WRONG = [
    (lambda row: without(row, "price") | {"pirce": 1}, "there is no column 'price'; did you mean 'pirce'?"),
    (lambda row: row | {"price": "dear"}, "column 'price': wanted a number, found 'dear'; mend"),
    (lambda row: row | {"price": [1]}, "column 'price': wanted a number, found [1]; mend"),
    (lambda row: row | {"user": [3]}, "column 'user': wanted a single value, found [3]; only"),
    (lambda row: row | {"face": [1, 2, 3]}, "column 'face': wanted 2 numbers in a list, found 3; correct"),
    (lambda row: row | {"when": "soon"}, "column 'when': wanted a time such as"),
]


@pytest.mark.parametrize(("spoil", "told"), WRONG)
def test_a_wrong_cell_is_named_by_row_and_column(server: Serving, rows: Rows, spoil: Any, told: str) -> None:
    one = server.client.post("/predict", json=spoil(rows[0]))
    assert one.status_code == 400
    assert read(one)["error"].startswith(told)
    some = server.client.post("/predict", json={"rows": [*rows[:2], spoil(rows[2]), rows[3]]})
    assert some.status_code == 400
    assert read(some)["error"].startswith(f"row 3: {told}")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "the request is not JSON (Expecting value"),
        (b"user=3&price=9.5", "the request is not JSON (Expecting value"),
        (b'{"rows": [', "the request is not JSON"),
        (b'{"rows": [{"price": NaN}]}', "the request holds NaN, which JSON does not have; send null"),
        (b'{"price": -Infinity}', "the request holds -Infinity, which"),
        (b'{"rows": [], "rows": []}', "an object of the request has 'rows' twice; leave one out"),
        (b'{"rows": [{"user": 1, "user": 2}]}', "an object of the request has 'user' twice; leave one out"),
        (b'{"user": "\xff"}', "the request is not valid UTF-8; send JSON"),
        (b"[]", "wanted a JSON object, found a list; send one"),
        (b"null", "wanted a JSON object, found null; send one"),
        (b"3", "wanted a JSON object, found a single value; send one"),
        (b'{"rows": 3}', "'rows' is int; give a list of rows"),
        (b'{"rows": [1]}', "row 1: wanted a dict of values, found int"),
        (b'{"rows": ["shop/test.parquet"]}', "row 1: wanted a dict of values, found str"),
        (b'{"rows": [], "gates": 1}', "'gates' is int; give true or false"),
        (b'{"rows": [], "gate": true}', "beside 'rows' there is nothing called 'gate'; did you mean 'gates'?"),
        (b'{"a": ' * 100_000, "the request is nested too deeply; "),
        (b'{"user": ' + b"[" * 900 + b"]" * 900 + b"}", ""),
        (b'{"price": ' + b"9" * 5_000 + b"}", "the request holds what cannot be read (Exceeds the limit"),
    ],
)  # fmt: skip
def test_a_body_that_asks_nothing_is_told_why(server: Serving, body: bytes, told: str) -> None:
    answer = server.client.post("/predict", content=body)
    assert answer.status_code == 400
    found = read(answer)
    assert found.keys() == {"error"}
    assert found["error"].startswith(told)
    assert "\n" not in found["error"]
    assert "Traceback" not in found["error"]


def test_a_name_that_is_there_twice_is_found_among_many_at_once(server: Serving) -> None:
    """Not by looking at all names for each: a request of a megabyte held up all others for minutes."""
    names = ",".join(f'"{at}": 0' for at in (*range(100_000), 99_999))
    began = time.monotonic()
    answer = server.client.post("/predict", content=f"{{{names}}}")
    assert answer.status_code == 400
    assert read(answer)["error"].startswith("an object of the request has '99999' twice; ")
    assert time.monotonic() - began < 20


def test_a_body_that_is_too_long_is_refused_and_the_next_one_served(server: Serving, rows: Rows) -> None:
    for size, chunked in ((LARGEST + 1, False), (LARGEST + 1, True), (3 * LARGEST, True)):
        body = iter([b" " * (1 << 20)] * (size // (1 << 20)) + [b" "]) if chunked else b" " * size
        answer = server.client.post("/predict", content=body)
        assert answer.status_code == 413
        assert read(answer)["error"].startswith("the request has more than 16 MB, which is the limit; ")
    assert size < DRAINED
    full = json.dumps({"rows": rows}).encode()
    answer = server.client.post("/predict", content=full + b" " * (LARGEST - len(full)))
    assert answer.status_code == 200
    assert len(read(answer)["predictions"]) == len(rows)


def test_a_packed_body_is_refused(server: Serving, rows: Rows) -> None:
    assert server.client.post("/predict", json=rows[0], headers={"content-encoding": "Identity"}).status_code == 200
    answer = server.client.post("/predict", content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert answer.status_code == 415
    assert read(answer)["error"].startswith("the request is packed (gzip); ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
cells = json_values | st.sampled_from(
    [
        "1_000",
        "NaN",
        "-1e400",
        "2026-02-30",
        "2026-02-03T04:05:06+01:00",
        "",
        "\x00",
        "\ud800",
        10**400,
        -(10**18),
        1e308,
    ]
)
columns = SCHEMA.columns(labels=False, carried=False)


def by_python(bundle: Bundle, rows: Any) -> tuple[int, dict[str, Any]]:
    """The status and the answer that rows should have."""
    try:
        found = bundle.predict(rows)
    except DataError as error:
        return 400, {"error": " ".join(str(error).split())}
    return 200, {"predictions": [found] if isinstance(rows, dict) else in_rows(found)}


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.sampled_from([*columns, "place"]), cells, min_size=1, max_size=3), st.booleans())
@example({"user": "\ud800", "word": "\ud800"}, True)
def test_any_cell_is_read_or_refused_as_python_does(
    server: Serving, bundle: Bundle, rows: Rows, spoilt: dict[str, Any], listed: bool
) -> None:
    row = rows[0] | spoilt
    answer = server.client.post("/predict", content=json.dumps({"rows": [row]} if listed else row))
    assert (answer.status_code, read(answer)) == by_python(bundle, [row] if listed else row)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=60) | json_values.map(json.dumps), st.sampled_from(["/predict", "/v2/models/shop/infer"]))
def test_no_body_is_a_fault_of_the_server(server: Serving, body: bytes | str, path: str) -> None:
    answer = server.client.post(path, content=body)
    assert answer.status_code == 400
    assert read(answer).keys() == {"error"}


def test_a_column_called_rows_is_a_column() -> None:
    schema = Schema(features=(Bag("rows"), Category("user")), tasks=(Task("click"),))
    experiment = Experiment(schema=schema)
    train = [{"rows": ["a", "b"] if at % 3 else ["c"], "user": at % 5, "click": at % 2} for at in range(60)]
    encoder = Encoder.fit(schema, pa.Table.from_pylist(train).to_batches())
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    row = {"rows": ["a"], "user": 3}
    one = bundle.predict(row)["click"]
    assert one != bundle.predict(row | {"rows": ["c"]})["click"]
    assert predictions(bundle, row) == ({"predictions": [{"click": one}]}, 1)
    assert predictions(bundle, {"rows": row}) == ({"predictions": [{"click": one}]}, 1)
    assert predictions(bundle, {"rows": [row]})[1] == 1


def test_a_number_that_is_none_is_null() -> None:
    assert to_json({"a": [float("nan"), 1.5, -float("inf")], "b": "ü"}) == b'{"a":[null,1.5,null],"b":"\\u00fc"}'
