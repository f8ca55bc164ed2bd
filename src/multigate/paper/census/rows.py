"""Rows of the census study as the paper's protocol has them, and as well-known mistakes have them."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file

from multigate.data.files import open_table
from multigate.data.prepared import Prepared, prepare, write_manifest
from multigate.data.shards import checksum
from multigate.data.split import Split
from multigate.datasets.census_income import census_schema, is_written
from multigate.errors import DataError
from multigate.paper.census.one_hot import AS_ONE, ONE_HOT, OneHot
from multigate.paper.numbers import binned
from multigate.progress import Progress
from multigate.schema import Bag, Category, Number, Schema
from multigate.writing import remove

MAINS = {1: "income", 2: "college"}
"""Main task of each of the paper's groups."""
AUXILIARY = "never_married"
PARTS = ("train", "valid", "test")
WEIGHT = "instance_weight"


class Tables(NamedTuple):
    """The three tables, the test file of the data set being cut in two by ``fetch``."""

    train: pa.Table
    valid: pa.Table
    test: pa.Table


def protocol() -> Schema:
    """All three tasks, and the features of both groups: neither education nor marital status, no instance weight."""
    first, second = census_schema(1), census_schema(2)
    return binned(first.with_(tasks=(first.task("income"), second.task("college"), first.task(AUXILIARY))))


def read_tables(folder: Path) -> Tables:
    """The tables that ``fetch census-income`` wrote. Raises ``DataError`` where they are not there."""
    if not is_written(folder):
        raise DataError(f"{folder} holds no Census-Income; write it there with: multigate fetch census-income")
    train, valid, test = (pq.read_table(folder / f"{part}.parquet") for part in PARTS)
    return Tables(train, valid, test)


def sampled(tables: Tables, rows: int) -> Tables:
    """With so many training rows, drawn at random, in their order."""
    if rows >= tables.train.num_rows:
        return tables
    drawn = np.random.default_rng(0).choice(tables.train.num_rows, rows, replace=False)
    return tables._replace(train=tables.train.take(np.sort(drawn)))


def label_correlation(tables: Tables, main: str) -> float:
    """Pearson's r of a main task's label and the auxiliary one, over all rows."""
    schema = protocol()
    table = pa.concat_tables(one.select(schema.columns()) for one in tables)
    labels = [_labels(table, schema, name) for name in (main, AUXILIARY)]
    return float(np.corrcoef(labels)[0, 1])


def _labels(table: pa.Table, schema: Schema, name: str) -> np.ndarray:
    task = schema.task(name)
    wanted = task.positive if isinstance(task.positive, tuple) else (task.positive,)
    found = pc.is_in(table[task.source].cast(pa.string()), pa.array(list(wanted), pa.string()))
    return np.asarray(found, dtype=np.float64)


def prepare_search(tables: Tables, folder: Path, report: Progress) -> Prepared:
    """Rows to tune on: no test rows."""
    return _prepared(protocol(), tables, folder, report, test=False)


def prepare_runs(tables: Tables, folder: Path, report: Progress) -> Prepared:
    """Rows of the final runs."""
    return _prepared(protocol(), tables, folder, report)


def prepare_education(tables: Tables, folder: Path, report: Progress) -> Prepared:
    """Education kept as a feature, as many public copies have it. It is a label of group 2: here is group 1 alone."""
    return _prepared(_with_feature(Category("education")), tables, folder, report)


def prepare_weight(tables: Tables, folder: Path, report: Progress) -> Prepared:
    """The instance weight kept as a number like the others, standardised."""
    return _prepared(_with_feature(Number(WEIGHT, embedding="bins")), tables, folder, report)


def prepare_raw_weight(tables: Tables, folder: Path, report: Progress) -> Prepared:
    """The instance weight kept as it is in the file, from 37 to 18,656, beside standardised numbers."""
    if not folder.is_dir():
        beside = folder.with_name(f"{folder.name}.scaled")
        remove(beside)  # of what was stopped here nobody knows which rows were scaled back
        scaled = _prepared(_with_feature(Number(WEIGHT, embedding="none")), tables, beside, report)
        at = [column.feature for column in scaled.layout.numbers].index(WEIGHT)
        scale = scaled.encoder.fitted.scales[at]
        checksums = scaled.manifest["checksums"]
        for path in beside.glob("*.safetensors"):
            tensors = load_file(path)
            tensors["numbers"][:, at] = tensors["numbers"][:, at] * scale.sd + scale.mean
            save_file(tensors, path, {"bags": "0"})
            checksums[path.name] = checksum(path)
        write_manifest(beside, scaled.manifest)
        shutil.move(beside, folder)
    return Prepared(folder)


def prepare_one_hot(columns: OneHot, tables: Tables, folder: Path, report: Progress) -> Prepared:
    """Categories as one-hot columns: a bag of the names of those that are 1."""
    kept = (one for one in protocol().features if one.source not in ONE_HOT)
    bag = Bag(AS_ONE, separator="|", dim=64)
    schema = protocol().with_(features=(*kept, bag))
    return _prepared(schema, Tables(*(columns.added(table) for table in tables)), folder, report)


def _with_feature(feature: Category | Number) -> Schema:
    """Group 1 with one feature more."""
    schema = binned(census_schema(1))
    return schema.with_(features=(*schema.features, feature))


def _prepared(schema: Schema, tables: Tables, folder: Path, report: Progress, *, test: bool = True) -> Prepared:
    train, valid, tested = (open_table(table) for table in tables)
    # trials and runs that are there are of these rows: others would be told of as the same
    return prepare(schema, train, valid, tested if test else None, Split(), folder, report, replace=False)


def places(prepared: Prepared, tasks: Sequence[str]) -> list[int]:
    """Where tasks are among those prepared."""
    return [prepared.encoder.schema.task_names.index(name) for name in tasks]
