"""Scoring a table, or writing predictions for it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multigate.bundle import Bundle
from multigate.errors import DataError
from multigate.evaluate import forward, intervals, scores, spaces

Progress = Callable[[str, int, int | None], None]


def score_table(
    bundle: Bundle, table: Any, *, replicates: int = 200, progress: Progress | None = None
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Metrics of a bundle on rows with labels, and their bootstrap intervals, by ``<task>/<metric>``.

    Raises ``DataError`` where label columns are missing.
    """

    def told() -> Any:
        done = 0
        for batch, _ in bundle.batches(table, labels=True):
            done += batch.rows
            yield batch
            if progress is not None:
                progress("scoring", done, None)

    device = next(bundle.model.parameters()).device
    found = spaces(bundle.schema, bundle.encoder, forward(bundle.model, told(), device))
    return scores(found), intervals(found, replicates=replicates) if replicates else {}


def write_predictions(bundle: Bundle, table: Any, out: Path, *, progress: Progress | None = None) -> int:
    """Write predictions beside the key columns, in the order of the rows, as Parquet; returns the number of rows.

    The file appears only once it is whole.
    """
    if out.suffix != ".parquet":
        raise DataError(f"predictions are written as Parquet: name the file {out.with_suffix('.parquet')}, not {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(out.name + ".writing")
    writer: pq.ParquetWriter | None = None
    done = 0
    try:
        for named, keys in bundle.predict_batches(table):
            columns = {name: keys.column(i) for i, name in enumerate(keys.schema.names)}
            record = pa.table(columns | {name: pa.array(value) for name, value in named.items()})
            if writer is None:
                writer = pq.ParquetWriter(temporary, record.schema)
            writer.write_table(record)
            done += record.num_rows
            if progress is not None:
                progress("predicting", done, None)
        if writer is not None:
            writer.close()
            os.replace(temporary, out)
    finally:
        if writer is not None:
            writer.close()
        temporary.unlink(missing_ok=True)
    return done
