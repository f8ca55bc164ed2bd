"""Batches of few rows put together: each costs what some hundred rows do, however few it has."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

FEW = 1024
"""Rows; a batch of as many stands for itself."""
BYTES = 16 << 20
"""What is put together at most, or a batch that is longer by itself."""


def gathered(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in the same order; ``rows`` at most in what is put together."""
    few: list[pa.RecordBatch] = []
    many = size = 0
    for batch in batches:
        alone = batch.num_rows >= min(FEW, rows) or not batch.num_columns
        own = 0 if alone else batch.nbytes
        full = many + batch.num_rows > rows or size + own > BYTES
        if few and (alone or full or not batch.schema.equals(few[0].schema)):
            yield from _joined(few)
            few, many, size = [], 0, 0
        if alone:
            yield batch
        else:
            few.append(batch)
            many, size = many + batch.num_rows, size + own
    yield from _joined(few)


def _joined(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """One batch, or the same where Arrow cannot: of dictionaries with nulls, or of more values than their codes tell
    apart."""
    if len(batches) < 2:
        return batches
    try:
        return pa.Table.from_batches(batches).combine_chunks().to_batches()
    except pa.ArrowException:
        return batches
