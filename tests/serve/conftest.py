"""One small model of every kind of feature and task, and servers of it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from serving import SCHEMA, Rows, Serving, serving

from multigate.assembly import build_model
from multigate.bundle import Bundle, load
from multigate.data.encoder import Encoder
from multigate.experiment import Experiment
from multigate.sharing import MMoE


@pytest.fixture(scope="session")
def many() -> Rows:
    """300 rows with features and labels, as JSON can hold them; a tenth of the cells is missing."""
    draw = np.random.default_rng(0)

    def maybe(value: Any) -> Any:
        return None if draw.random() < 0.1 else value

    return [
        {
            "user": maybe(int(draw.integers(1, 40))),
            "word": maybe(f"wort ü{draw.integers(100)}"),
            "member": maybe(bool(draw.integers(2))),
            "price": maybe(float(np.round(draw.lognormal(2, 1), 2))),
            "tags": maybe([f"t{one}" for one in draw.integers(0, 9, draw.integers(0, 4))]),
            "face": maybe([float(one) for one in draw.normal(size=2).round(3)]),
            "when": maybe(f"2026-02-{draw.integers(1, 28):02} {draw.integers(24):02}:15:00"),
            "place": int(draw.integers(9)),
            "click": at % 2,
            "buy": at % 4 == 1,
            "seconds": float(draw.normal(1e6, 3)),
            "mood": ["glad", "sad", "odd"][at % 3],
        }
        for at in range(300)
    ]


@pytest.fixture(scope="session")
def folder(many: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a bundle ``shop`` lies; its weights are fresh, and large enough to tell rows apart."""
    torch.default_generator.manual_seed(1)
    table = pa.Table.from_pylist(many)
    experiment = Experiment(schema=SCHEMA, sharing=MMoE(experts=3, hidden=(8,)), tower=(4,), embedding={"scale": 1})
    encoder = Encoder.fit(SCHEMA, table.to_batches())
    made = tmp_path_factory.mktemp("serve")
    Bundle(experiment, encoder, build_model(experiment, encoder)).save(made / "shop")
    return made


@pytest.fixture(scope="session")
def rows(many: Rows) -> Rows:
    """Rows without labels, and without what serving does not want."""
    left_out = {"place", *SCHEMA.task_names}
    return [{name: value for name, value in row.items() if name not in left_out} for row in many]


@pytest.fixture(scope="session")
def bundle(folder: Path) -> Bundle:
    return load(folder / "shop")


@pytest.fixture(scope="session")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of one model, computed by torch."""
    with serving(tmp_path_factory.mktemp("server"), folder / "shop", "--engine", "torch") as one:
        yield one
