"""The Open Inference Protocol (V2, REST): a tensor for each feature column in, a tensor for each prediction out."""

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multigate.bundle import Bundle
from multigate.data.cells import short
from multigate.data.features import missing
from multigate.errors import nearest
from multigate.schema import Bag, Feature, Number, Vector
from multigate.serve.body import Refused

INTEGERS = tuple(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
KINDS: dict[str, tuple[type, ...]] = {
    "BYTES": (str,),
    "BOOL": (bool,),
    **dict.fromkeys(INTEGERS, (int,)),
    **dict.fromkeys(("FP32", "FP64"), (int, float)),
}
"""What JSON holds of each datatype; besides it null, for what is missing."""
DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64", np.dtype(object): "BYTES"}
FORM = "an inference request wants 'inputs', a list of tensors with name, shape, datatype and data"


def infer(bundle: Bundle, name: str, asked: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """The protocol's inference response, and of how many rows; predicted as by ``Bundle.predict_rows``.

    Raises ``Refused`` for a request that is not of the protocol, ``DataError`` as ``Bundle.predict_rows`` does.
    """
    tensors = _tensors(asked)
    rows, cells = None, {}
    for column in bundle.schema.columns(labels=False, carried=False):
        if column not in tensors:
            raise missing(column, tensors)
        lists = any(isinstance(one, Vector) for one in bundle.schema.features if one.source == column)
        many, cells[column] = _cells(column, tensors[column], lists=lists)
        if rows is not None and many != rows:
            raise Refused(400, f"input {column!r} has {many} rows, others have {rows}; give all the same number")
        rows = many
    wanted = _wanted(asked)
    named = bundle.predict_rows(
        [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)],
        gates=any(one.startswith("gate/") for one in wanted),
    )
    for one in wanted:
        if one not in named:
            raise Refused(400, f"there is no output {one[:60]!r}; {nearest(one, named)}")
    answer: dict[str, Any] = {"model_name": name}
    if "id" in asked:
        if not isinstance(asked["id"], str):
            raise Refused(400, "the 'id' of a request is text; give it as such, or leave it out")
        answer["id"] = asked["id"]
    return answer | {"outputs": [_output(one, named[one]) for one in wanted or named]}, rows or 0


def _tensors(asked: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The inputs by name."""
    inputs = asked.get("inputs")
    if not isinstance(inputs, list) or not all(isinstance(one, dict) for one in inputs):
        raise Refused(400, f"{FORM}; give them")
    tensors: dict[str, Mapping[str, Any]] = {}
    for one in inputs:
        name = one.get("name")
        if not isinstance(name, str):
            raise Refused(400, f"{FORM}; name each")
        if name in tensors:
            raise Refused(400, f"two inputs are named {name[:60]!r}; leave one out")
        tensors[name] = one
    return tensors


def _cells(name: str, tensor: Mapping[str, Any], *, lists: bool) -> tuple[int, list[Any]]:
    """How many rows an input has, and a cell for each: of shape (rows, n) a list where ``lists`` or n is not 1."""
    datatype, data, shape = tensor.get("datatype"), tensor.get("data"), _shape(name, tensor.get("shape"))
    if not isinstance(datatype, str) or datatype not in KINDS:
        shown = str(datatype)[:60]
        raise Refused(400, f"input {name!r}: there is no datatype {shown!r} here; {nearest(shown, KINDS)}")
    if not isinstance(data, list):
        raise Refused(400, f"input {name!r}: its data are no list; send them as JSON, not as binary data")
    if any(isinstance(one, list) for one in data):
        data = list(chain.from_iterable(one if isinstance(one, list) else [one] for one in data))
    if len(data) != math.prod(shape):
        raise Refused(400, f"input {name!r}: its shape {shape} wants {math.prod(shape):,} values, found {len(data):,}")
    for at, value in enumerate(data, 1):
        if value is not None and type(value) not in KINDS[datatype]:
            raise Refused(400, f"input {name!r}: value {at:,} is {short(value)}, which is not {datatype}; mend one")
    if len(shape) == 1 or (shape[1] == 1 and not lists):
        return shape[0], data
    return shape[0], [data[at * shape[1] : (at + 1) * shape[1]] for at in range(shape[0])]


def _shape(name: str, shape: Any) -> list[int]:
    most = 1 << 31
    if isinstance(shape, list) and len(shape) in (1, 2) and all(type(one) is int and 0 <= one < most for one in shape):
        if shape[0] and not shape[-1]:  # no value tells how many such rows there are, and any number can be said
            raise Refused(
                400, f"input {name!r}: its shape {shape} has rows without values; give null for a missing one"
            )
        return shape
    raise Refused(400, f"input {name!r}: its shape is not [rows] or [rows, n]; give one of these")


def _wanted(asked: Mapping[str, Any]) -> list[str]:
    """The names of the outputs that a request asks for; none for all."""
    outputs = asked.get("outputs", [])
    if not isinstance(outputs, list):
        raise Refused(400, "'outputs' is no list; give one of objects with a name, or leave it out")
    names = [one["name"] for one in outputs if isinstance(one, dict) and isinstance(one.get("name"), str)]
    if len(names) < len(outputs):
        raise Refused(400, "an output has no name; give each one")
    return list(dict.fromkeys(names))


def _output(name: str, values: NDArray[Any]) -> dict[str, Any]:
    return {
        "name": name,
        "shape": list(values.shape),
        "datatype": DATATYPES[values.dtype],
        "data": values.ravel().tolist(),
    }


def metadata(bundle: Bundle, name: str) -> dict[str, Any]:
    """The protocol's model metadata."""
    outputs = bundle.predict_rows([])
    return {
        "name": name,
        "platform": f"multigate_{bundle.engines.row.name}",
        "inputs": list(_inputs(bundle)),
        "outputs": [
            {"name": one, "datatype": DATATYPES[values.dtype], "shape": [-1]} for one, values in outputs.items()
        ],
    }


def _inputs(bundle: Bundle) -> Iterator[dict[str, Any]]:
    for column in bundle.schema.columns(labels=False, carried=False):
        feature = next(one for one in bundle.schema.features if one.source == column)
        shape = [-1, feature.size] if isinstance(feature, Vector) else [-1]
        yield {"name": column, "datatype": _datatype(feature, bundle.schema.types.get(column, "")), "shape": shape}


def _datatype(feature: Feature, kind: str) -> str:
    """What a column is best sent as; all others that hold its values are read as well."""
    if isinstance(feature, Number | Vector):
        return "FP64"
    if isinstance(feature, Bag):
        return "BYTES"
    return "BOOL" if kind == "bool" else "INT64" if kind.startswith(("int", "uint")) else "BYTES"
