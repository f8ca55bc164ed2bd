"""Scoring a table or a run's own rows, or writing predictions for a table."""

import glob
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multigate.analysis.subject import find_subject
from multigate.batch import Batch
from multigate.bundle import Bundle
from multigate.data.types import type_name
from multigate.errors import DataError, SettingError, one_line
from multigate.evaluate import forward, intervals, scores, spaces
from multigate.folders import at_home
from multigate.progress import Progress
from multigate.run import bundle_of, open_run
from multigate.unscored import listed_reasons, unscored
from multigate.writing import writing

Tell = Callable[[str], None]
Metrics = dict[str, float]
Intervals = dict[str, tuple[float, float]]


def score_table(
    bundle: Bundle | str | PathLike[str],
    table: Any,
    *,
    replicates: int = 200,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> tuple[Metrics, Intervals]:
    """Metrics of a bundle (or run) on rows with labels, and their bootstrap intervals, by ``<task>/<metric>``.

    ``tell`` gets a sentence on why tasks have no main metric here, if there are such. Raises ``DataError`` where label
    columns are missing, or none of the labels was there in training.
    """
    model = bundle_of(bundle)
    batches = (batch for batch, _ in model.batches(table, labels=True))
    return _scored(model, batches, replicates, progress, tell)


def score_part(
    run: str | PathLike[str],
    part: str = "test",
    *,
    replicates: int = 200,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> tuple[Metrics, Intervals]:
    """The same of all rows that a run set aside (or was given) as its ``test`` or ``valid`` part.

    Raises ``RunError`` where the folder holds no finished run or its prepared rows are gone, ``DataError`` where it
    has no such part.
    """
    open_run(run)  # a bundle alone, and a comparison, have no rows that are one model's own
    subject = find_subject(run, part=part, most=sys.maxsize)
    return _scored(subject.bundle, subject.batches, replicates, progress, tell)


def _scored(
    bundle: Bundle, batches: Iterable[Batch], replicates: int, progress: Progress | None, tell: Tell | None
) -> tuple[Metrics, Intervals]:
    if type(replicates) is not int or replicates < 0:
        raise SettingError(f"replicates={replicates!r}: a whole number of draws is wanted; 0 leaves intervals out")

    def told() -> Iterable[Batch]:
        done = 0
        for batch in batches:
            done += batch.rows
            yield batch
            if progress is not None:
                progress("scoring", done, None)

    device = next(bundle.model.parameters()).device
    found = spaces(bundle.schema, bundle.encoder, forward(bundle.model, told(), device, precision=bundle.precision))
    metrics = scores(found)
    reasons = unscored(found, metrics)
    if reasons and tell is not None:
        tell(f"these rows cannot score {listed_reasons(reasons)}")
    return metrics, intervals(found, replicates=replicates) if replicates else {}


def write_predictions(
    bundle: Bundle | str | PathLike[str], table: Any, out: str | Path, *, progress: Progress | None = None
) -> int:
    """Write predictions beside the key columns, in the order of the rows, as Parquet; returns the number of rows.

    The file appears only once it is whole; until then one that was there before stays. Raises ``DataError`` for a name
    that cannot be and for rows that cannot be read, ``RunError`` where the disk refuses.
    """
    out = at_home(out)
    if out.is_dir():
        raise DataError(f"{out} is a folder; name a file for the predictions, such as {out / 'predictions.parquet'}")
    if out.suffix != ".parquet":
        raise DataError(f"predictions are written as Parquet; name the file {out.with_suffix('.parquet')}, not {out}")
    if _is_read(table, out):
        raise DataError(f"{out} is among the rows to predict; write the predictions to another folder")
    done = 0
    with writing(out) as temporary, ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for named, keys in bundle_of(bundle).predict_batches(table):
            columns = {name: keys.column(i) for i, name in enumerate(keys.schema.names)}
            record = pa.table(columns | {name: pa.array(value) for name, value in named.items()})
            try:
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(temporary, record.schema))
                writer.write_table(record)
            except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
                told = ", ".join(f"{field.name!r} of type {type_name(field.type)}" for field in keys.schema)
                raise DataError(
                    f"keys cannot be written as Parquet ({one_line(error)}): {told}; make them text or numbers, or "
                    "leave them out of schema.keys"
                ) from error
            done += record.num_rows
            if progress is not None:
                progress("predicting", done, None)
        if writer is None:
            raise DataError(f"{table} has no rows; give a table with at least one row")
    return done


def _is_read(table: Any, out: Path) -> bool:
    """Whether a file would be read as (part of) a table given by paths."""
    if isinstance(table, str | Path):
        given = at_home(table)  # as the table is read
        found = [given, *map(Path, glob.glob(str(given), recursive=True))]
        return any(out.resolve().is_relative_to(one.resolve()) for one in found)
    return isinstance(table, Sequence) and any(_is_read(one, out) for one in table if isinstance(one, str | Path))
