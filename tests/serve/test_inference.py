"""The Open Inference Protocol: the same predictions, as tensors; what is not of the protocol is told."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Rows, Serving, read

from multigate.bundle import Bundle
from multigate.errors import DataError
from multigate.serve.inference import infer

KINDS = {
    "user": "INT64",
    "word": "BYTES",
    "member": "BOOL",
    "price": "FP32",
    "tags": "BYTES",
    "face": "FP64",
    "when": "BYTES",
}


def tensors(rows: Rows) -> list[dict[str, Any]]:
    """The rows column by column; bags as text, for tensors have one length."""
    cells = {name: [row[name] for row in rows] for name in KINDS}
    cells["tags"] = [None if one is None else ",".join(one) for one in cells["tags"]]
    shapes = {name: [len(rows)] for name in KINDS} | {"price": [len(rows), 1], "face": [len(rows), 2]}
    cells["face"] = [number for one in cells["face"] for number in one or (None, None)]
    return [{"name": name, "shape": shapes[name], "datatype": KINDS[name], "data": cells[name]} for name in KINDS]


def test_tensors_are_predicted_as_rows(server: Serving, bundle: Bundle, rows: Rows) -> None:
    expected = bundle.predict(rows)
    nested = [one | {"data": np.array(one["data"], object).reshape(one["shape"]).tolist()} for one in tensors(rows)]
    for inputs in (tensors(rows), nested):
        answer = server.client.post("/v2/models/shop/infer", json={"id": "a1", "parameters": {}, "inputs": inputs})
        assert answer.status_code == 200
        found = read(answer)
        assert (found["model_name"], found["id"]) == ("shop", "a1")
        assert [one["name"] for one in found["outputs"]] == list(expected)
        for one in found["outputs"]:
            assert one["shape"] == [len(rows)]
            assert one["datatype"] == {"mood": "BYTES", "seconds": "FP64"}.get(one["name"], "FP32")
            assert one["data"] == expected[one["name"]].tolist()


def test_outputs_are_those_asked_for(bundle: Bundle, rows: Rows) -> None:
    asked = {"inputs": tensors(rows[:4]), "outputs": [{"name": "gate/buy"}, {"name": "click"}]}
    found, many = infer(bundle, "shop", asked)
    expected = bundle.predict(rows[:4], gates=True)
    assert many == 4
    assert found == {
        "model_name": "shop",
        "outputs": [
            {"name": "gate/buy", "shape": [4, 3], "datatype": "FP32", "data": expected["gate/buy"].ravel().tolist()},
            {"name": "click", "shape": [4], "datatype": "FP32", "data": expected["click"].tolist()},
        ],
    }


def test_no_rows_have_no_predictions(bundle: Bundle) -> None:
    found, many = infer(bundle, "shop", {"inputs": tensors([])})
    assert many == 0
    assert {(*one["shape"], *one["data"]) for one in found["outputs"]} == {(0,)}


def test_what_the_metadata_name_can_be_sent(server: Serving, rows: Rows) -> None:
    """A client that knows nothing but the metadata sends a row and gets the outputs announced."""
    about = read(server.client.get("/v2/models/shop"))
    assert about["platform"] == "multigate_torch"
    assert {one["name"]: one["shape"] for one in about["inputs"]} == {name: [-1] for name in KINDS} | {"face": [-1, 2]}
    made = {"INT64": 3, "FP64": 1.5, "BYTES": "", "BOOL": True}
    inputs = [
        one | {"shape": [2, *one["shape"][1:]], "data": [made[one["datatype"]]] * (4 if one["name"] == "face" else 2)}
        for one in about["inputs"]
    ]
    answer = server.client.post("/v2/models/shop/infer", json={"inputs": inputs})
    assert answer.status_code == 200, answer.text
    found = [{"name": one["name"], "datatype": one["datatype"], "shape": [-1]} for one in read(answer)["outputs"]]
    assert found == about["outputs"]


def test_health_and_server(server: Serving) -> None:
    paths = ("/v2/health/live", "/v2/health/ready", "/v2/models/shop/ready", "/v2")
    answers = [server.client.get(path) for path in paths]
    assert [one.status_code for one in answers] == [200] * 4
    assert [read(one) for one in answers[:3]] == [{"live": True}, {"ready": True}, {"name": "shop", "ready": True}]
    assert read(answers[3])["name"] == "multigate"
    for path in ("/v2/models/shoop", "/v2/models/shoop/ready"):
        answer = server.client.get(path)
        assert answer.status_code == 404
        assert read(answer) == {"error": "there is no model 'shoop'; did you mean 'shop'?"}


def changed(rows: Rows, name: str, **fields: Any) -> dict[str, Any]:
    return {"inputs": [one | (fields if one["name"] == name else {}) for one in tensors(rows[:2])]}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda rows: {}, "an inference request wants 'inputs', a list of tensors"),
        (lambda rows: {"inputs": [3]}, "an inference request wants 'inputs', a list of tensors"),
        (lambda rows: {"inputs": [{"data": []}]}, "an inference request wants 'inputs', a list of tensors"),
        (lambda rows: {"inputs": [*tensors(rows[:2]), tensors(rows[:2])[0]]}, "two inputs are named 'user'; leave one"),
        (lambda rows: {"inputs": tensors(rows[:2])[1:]}, "there is no column 'user'; "),
        (
            lambda rows: changed(rows, "word", datatype="BYTE"),
            "input 'word': there is no datatype 'BYTE' here; did",
        ),
        (lambda rows: changed(rows, "word", datatype=[1]), "input 'word': there is no datatype '[1]' here; valid"),
        (lambda rows: changed(rows, "word", shape=[2, 1, 1]), "input 'word': its shape is not [rows] or [rows, n]; "),
        (lambda rows: changed(rows, "word", shape=[-2]), "input 'word': its shape is not [rows] or [rows, n]; "),
        (lambda rows: changed(rows, "word", shape=[10**4000] * 2), "input 'word': its shape is not [rows] or"),
        (
            lambda rows: changed(rows, "word", shape=[2**28, 0], data=[]),
            "input 'word': its shape [268435456, 0] has rows without values; give null",
        ),
        (lambda rows: changed(rows, "word", shape=[3]), "input 'word': its shape [3] wants 3 values, found 2"),
        (lambda rows: changed(rows, "word", data=None), "input 'word': its data are no list; send them as JSON"),
        (lambda rows: changed(rows, "user", data=[1, 2.0]), "input 'user': value 2 is 2.0, which is not INT64; "),
        (lambda rows: changed(rows, "user", data=[True, 2]), "input 'user': value 1 is True, which is not INT64; "),
        (lambda rows: changed(rows, "user", data=[1], shape=[1]), "input 'word' has 2 rows, others have 1; give all"),
        (
            lambda rows: changed(rows, "user", data=[1, 2, 3, 4], shape=[2, 2]),
            "row 1: column 'user': wanted a single",
        ),
        (lambda rows: changed(rows, "when", data=["", "soon"]), "row 2: column 'when': wanted a time such as"),
        (
            lambda rows: {"inputs": tensors(rows), "outputs": [{"name": "clik"}]},
            "there is no output 'clik'; did you",
        ),
        (lambda rows: {"inputs": tensors(rows), "outputs": [{}]}, "an output has no name; give each one"),
        (lambda rows: {"inputs": tensors(rows), "outputs": {}}, "'outputs' is no list; give one"),
        (lambda rows: {"inputs": tensors(rows), "id": 3}, "the 'id' of a request is text; give it as such"),
    ],
)
def test_what_is_not_of_the_protocol_is_told(bundle: Bundle, rows: Rows, spoil: Any, told: str) -> None:
    with pytest.raises(DataError) as error:
        infer(bundle, "shop", spoil(rows))
    assert str(error.value).startswith(told)


odd = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.integers(0, 3), max_size=3)


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 6),
    st.sampled_from(["name", "shape", "datatype", "data"]),
    odd | st.sampled_from([*KINDS, *KINDS.values(), [2], [2, 1], [1, 2]]),
    st.sampled_from(["inputs", "outputs", "id", "parameters"]),
    st.none() | odd,
)
def test_a_damaged_request_is_answered_or_refused(
    server: Serving, rows: Rows, at: int, field: str, value: Any, beside: str, other: Any
) -> None:
    inputs = tensors(rows[:2])
    inputs[at][field] = value
    asked = {"inputs": inputs} | ({} if other is None else {beside: other})
    answer = server.client.post("/v2/models/shop/infer", content=json.dumps(asked))
    assert answer.status_code in (200, 400)
    assert read(answer).keys() == {"error"} if answer.status_code == 400 else "outputs" in read(answer)
