"""Declared outputs: numbers made of predictions and of the row's own numbers, beside the predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from multigate.data import arrow, cells
from multigate.data.features import by_name
from multigate.schema import Schema

Rows = Sequence[Mapping[str, Any]]


class DeclaredOutputs:
    """Computes what a schema declares; R rows at a time."""

    def __init__(self, schema: Schema) -> None:
        self._expressions = {output.name: output.compiled() for output in schema.outputs}
        read = {name for expression in self._expressions.values() for name in expression.names}
        self._columns = {name: column for name, column in schema.raw_numbers().items() if name in read}

    def add(self, named: dict[str, NDArray[Any]], rows: pa.RecordBatch | Rows) -> None:
        """Put the outputs (R,), float64, beside the predictions of raw rows, which the encoder has read."""
        if not self._expressions:
            return
        values: dict[str, NDArray[Any]] = {name: _numbers(rows, column) for name, column in self._columns.items()}
        values |= named
        for name, expression in self._expressions.items():
            named[name] = values[name] = expression(values)


def _numbers(rows: pa.RecordBatch | Rows, column: str) -> NDArray[np.float64]:
    if isinstance(rows, pa.RecordBatch):
        return arrow.numbers(by_name(rows)(column), column)
    if not all(column in row for row in rows):  # pandas has names that are no text, as 0
        rows = [{str(name): value for name, value in row.items()} for row in rows]
    return np.array([cells.number(row[column]) for row in rows], np.float64)
