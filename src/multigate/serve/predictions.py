"""Rows in, predictions out: the door for people and for programs that know nothing else."""

from collections.abc import Mapping
from typing import Any

from multigate.bundle import Bundle
from multigate.errors import nearest
from multigate.serve.body import Refused

ENVELOPE = ("rows", "gates")


def predictions(bundle: Bundle, asked: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
    """What ``{"rows": [row, ...], "gates": false}`` or one row is answered with, and of how many rows.

    A list is answered as ``Bundle.predict_rows`` does, one row as ``Bundle.predict_row``; raises as they do, and
    ``Refused`` where the envelope holds something else.
    """
    rows, gates = _opened(bundle, asked)
    if isinstance(rows, dict):
        return {"predictions": [bundle.predict_row(rows, gates=gates)]}, 1
    named = bundle.predict_rows(rows, gates=gates)
    columns = [values.tolist() for values in named.values()]
    return {"predictions": [dict(zip(named, one, strict=True)) for one in zip(*columns, strict=True)]}, len(rows)


def _opened(bundle: Bundle, asked: Mapping[str, Any]) -> tuple[Any, bool]:
    """The rows, or the row, and whether gates are wanted."""
    if "rows" not in asked:
        return asked, False
    for name in asked.keys() - set(ENVELOPE):
        if any(feature.source == "rows" for feature in bundle.schema.features):
            return asked, False
        raise Refused(400, f"beside 'rows' there is nothing called {name[:60]!r}; {nearest(name, ENVELOPE)}")
    rows, gates = asked["rows"], asked.get("gates", False)
    if not isinstance(rows, list | dict):
        raise Refused(400, f"'rows' is {type(rows).__name__}; give a list of rows, each an object of values by column")
    if not isinstance(gates, bool):
        raise Refused(400, f"'gates' is {type(gates).__name__}; give true or false")
    return rows, gates
