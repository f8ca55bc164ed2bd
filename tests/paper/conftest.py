"""Small tables for studies."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from multigate.datasets.kuairand import OUTCOMES, PARTS, TABLE

ROWS = {"train": 700, "valid": 400, "test": 400}


@pytest.fixture(scope="session")
def small_kuairand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with tables like KuaiRand's, made up; half of what makes a click is the tab."""
    folder = tmp_path_factory.mktemp("data") / "kuairand"
    folder.mkdir()
    random = np.random.default_rng(0)
    for part, (first, last) in PARTS.items():
        rows = ROWS[part]
        columns = {}
        for field in TABLE:
            few = random.integers(0, 4, rows)
            words = pa.types.is_dictionary(field.type)
            columns[field.name] = pa.array([f"w{one}" for one in few] if words else few).cast(field.type)
        columns["user_id"] = pa.array(random.integers(0, 60, rows)).cast(TABLE.field("user_id").type)
        columns["tag"] = pa.array([f"{one},{one + 1}" for one in random.integers(0, 9, rows)]).cast(pa.string())
        day = np.sort(random.integers(first, last + 1, rows))
        columns["date"] = pa.array(day, pa.int32())
        columns["time_ms"] = pa.array(day.astype(np.int64) * 1000)
        chance = np.where(np.asarray(columns["tab"]) > 1, 0.8, 0.2)
        for name in OUTCOMES:
            drawn = random.random(rows) < (chance if name in ("is_click", "long_view") else 0.2 * chance)
            columns[name] = pa.array(drawn.astype(np.int8)).cast(TABLE.field(name).type)
        pq.write_table(pa.table(columns), folder / f"{part}.parquet")
    return folder.parent
