"""Census-Income for the benchmarks: the tutorial's model as an experiment, and all rows that the tutorial scores."""

import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import multigate as mg
from multigate.datasets.census_income import census_schema
from multigate.experiment import Optimizer
from multigate.nn.embed import Embedding
from multigate.score import score_table
from multigate.sharing import Structure

BATCH = 1024
DIM = 8
TASKS = ("income", "never_married")


def has_data() -> bool:
    """Whether ``MULTIGATE_DATA`` names a folder with both files of Census-Income."""
    folder = Path(os.environ.get("MULTIGATE_DATA") or "nowhere") / "census-income"
    return all((folder / name).is_file() for name in ("train.parquet", "test.parquet"))


def need_data() -> None:
    """Leave, saying so, where the data is not there."""
    if not has_data():
        found = os.environ.get("MULTIGATE_DATA")
        told = f"is {found!r}, which holds no census-income/train.parquet and test.parquet" if found else "is not set"
        sys.exit(f"MULTIGATE_DATA {told}; set it to the folder that holds census-income/")


def experiment(tables: Path, precision: str, sharing: Structure | None = None) -> mg.Experiment:
    """The tutorial's model and optimiser, for one epoch; ``sharing`` in place of its MMoE."""
    schema = census_schema(1)
    features = [
        feature.with_(embedding="none", transform="standard") if feature.kind == "number" else feature
        for feature in schema.features
    ]
    return mg.Experiment(
        schema=schema.with_(features=features),
        train=str(tables / "train.parquet"),
        valid=str(tables / "valid.parquet"),
        sharing=sharing or mg.MMoE(experts=8, hidden=(128, 64)),
        tower=(32,),
        embedding=Embedding(dim=DIM, dropout=0.0, unseen=0.0, scale=1.0),
        optimizer=Optimizer(name="adam", learning_rate=1e-3, weight_decay=0.0, schedule="constant"),
        epochs=1,
        batch_size=BATCH,
        precision=precision,
    )


def scored_rows(tables: Path) -> pa.Table:
    """All rows of the published test file, as the tutorial scores them: one epoch, nothing is chosen by any of them."""
    return pa.concat_tables([pq.read_table(tables / f"{name}.parquet") for name in ("valid", "test")])


def aucs(run: mg.Run, rows: pa.Table) -> tuple[float, ...]:
    """AUC of each task."""
    metrics, _ = score_table(run.bundle(), rows, replicates=0)
    return tuple(metrics[f"{task}/auc"] for task in TASKS)
