"""Good things to break: a small table, an experiment on it, a finished run."""

import shutil
import tempfile
from atexit import register
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from multigate.experiment import Experiment

ROWS = 200


def columns(rows: int = ROWS) -> dict[str, Any]:
    """A shop's log: row_id, colour, price, tags, at; labels click, buy (only after a click), rating and seconds."""
    random = np.random.default_rng(0)
    price = random.gamma(2, 10, rows).round(2)
    click = (random.random(rows) < 0.5).astype(int)
    return {
        "row_id": np.arange(rows) + 1_000,
        "colour": np.array(["red", "green", "blue"])[random.integers(0, 3, rows)],
        "price": price,
        "tags": [["new", "sale"][: at % 3] for at in range(rows)],
        "at": np.datetime64("2024-05-01T00:00:00", "us") + np.arange(rows) * np.timedelta64(3_600_000_000, "us"),
        "click": click,
        "buy": click * (random.random(rows) < 0.4),
        "rating": np.array(["bad", "fair", "good"])[random.integers(0, 3, rows)],
        "seconds": random.gamma(2, 5, rows).round(1) * click,
    }


def table(path: Path, rows: int = ROWS, **changes: Any) -> Path:
    """The log as Parquet or CSV (by the path's ending), some columns replaced or, where None, left out."""
    held = pa.table({name: one for name, one in (columns(rows) | changes).items() if one is not None})
    if path.suffix == ".csv":
        flat = [name for name in held.column_names if not pa.types.is_nested(held.schema.field(name).type)]
        pyarrow.csv.write_csv(held.select(flat), path)
    else:
        pq.write_table(held, path)
    return path


def experiment(**changes: Any) -> Experiment:
    """One short epoch of a small model on ``rows.parquet`` in the working folder."""
    settings: dict[str, Any] = {
        "schema": {
            "features": [
                {"name": "colour", "kind": "category"},
                {"name": "price", "kind": "number"},
                {"name": "tags", "kind": "bag"},
                {"name": "at", "kind": "time"},
            ],
            "tasks": [
                {"name": "click"},
                {"name": "buy", "given": "click"},
                {"name": "rating", "kind": "multiclass"},
                {"name": "seconds", "kind": "regression", "transform": "log1p"},
            ],
            "keys": ["row_id"],
        },
        "train": "rows.parquet",
        "sharing": {"structure": "mmoe", "experts": 2, "hidden": [4]},
        "tower": {"hidden": [4]},
        "epochs": 1,
        "batch_size": 64,
        "precision": "float32",
    }
    return Experiment.model_validate(settings | changes)


def trained(folder: Path) -> Path:
    """A finished run of that experiment as ``run`` in the folder, beside its table and ``x.yaml``; a copy to break."""
    shutil.copytree(_trained(), folder, dirs_exist_ok=True)
    return folder / "run"


@cache
def _trained() -> Path:
    from multigate.training.train import train

    folder = Path(tempfile.mkdtemp())
    register(shutil.rmtree, folder, ignore_errors=True)
    train(experiment(train=str(table(folder / "rows.parquet"))), folder / "run", quiet=True, device="cpu")
    (folder / "x.yaml").write_text(experiment().to_yaml(), encoding="utf-8")
    return folder
