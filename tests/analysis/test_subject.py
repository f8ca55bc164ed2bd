"""What an analysis looks at: rows of a long table are thinned evenly, and few are held."""

from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import roc_auc_score

import multigate as mg
from multigate.analysis.subject import _thinned, find_subject
from multigate.assembly import build_model
from multigate.batch import Batch
from multigate.bundle import Bundle
from multigate.data.encoder import Encoder
from multigate.experiment import Experiment
from multigate.schema import Number, Schema, Task
from multigate.sharing import MMoE


def numbered(at: int, rows: int = 100) -> Batch:
    nothing = torch.empty(rows, 0)
    return Batch(torch.full((rows, 1), float(at)), nothing, (), nothing, nothing, nothing, torch.zeros(rows))


def test_a_long_table_is_thinned_evenly() -> None:
    kept, count = _thinned((numbered(at) for at in range(1_000)), most=2_000)
    places = [int(batch.numbers[0, 0]) for batch in kept]
    assert count == 100_000
    assert 1_000 <= 100 * len(places) <= 2_000
    assert len({b - a for a, b in pairwise(places)}) == 1, "evenly spread"
    assert places[0] == 0
    assert places[-1] >= 900


def test_few_rows_are_of_the_whole_table_too() -> None:
    rows = torch.arange(20_000)
    batches = (numbered(0, 5_000)._replace(numbers=rows[at : at + 5_000, None]) for at in range(0, 20_000, 5_000))
    kept, count = _thinned(batches, most=600)
    found = torch.cat([batch.numbers[:, 0] for batch in kept])
    assert count == 20_000
    assert 300 <= len(found) <= 600
    assert set((found // 5_000).tolist()) == {0, 1, 2, 3}


def test_a_short_one_is_taken_whole() -> None:
    kept, count = _thinned((numbered(at) for at in range(7)), most=700)
    assert (len(kept), count) == (7, 700)


class Mine(MMoE):
    structure: Literal["mine"] = "mine"  # type: ignore[assignment]


def test_a_structure_of_ones_own_may_be_looked_at(tmp_path: Path) -> None:
    table = pa.table({"x": [0.0, 1.0, 2.0, 3.0], "click": [0, 1, 0, 1]})
    schema = Schema(features=(Number("x"),), tasks=(Task("click"),))
    experiment = Experiment(schema=schema, sharing=Mine(experts=2, hidden=(4,)))
    encoder = Encoder.fit(schema, table.to_batches())
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    bundle.save(tmp_path)
    subject = find_subject(tmp_path, table, structures=[Mine])
    assert subject.count == 4
    assert find_subject(tmp_path, table, structures=Mine).bundle.experiment == experiment, "one of them by itself"
    assert find_subject(bundle, table).bundle is bundle
    with pytest.raises(mg.MultigateError, match="give a table with labels"):
        find_subject(bundle)
    with pytest.raises(mg.MultigateError, match="has no prepared rows; name a table with labels"):
        find_subject(tmp_path)
    np.testing.assert_array_equal(subject.bundle.predict(table)["click"], bundle.predict(table)["click"])


def test_a_run_knows_its_own_structure_wherever_it_is_given(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=200)
    table = pa.table({"x": x, "click": (x > 0).astype(int)})
    schema = Schema(features=(Number("x"),), tasks=(Task("click"),))
    sharing = Mine(experts=2, hidden=(4,))
    run = mg.train(
        Experiment(schema=schema, train="memory:train", sharing=sharing, epochs=2),
        tmp_path / "run",
        tables={"train": table},
        quiet=True,
    )
    expected = run.bundle().predict(table)["click"]
    metrics, _ = mg.score_table(run, table, replicates=0)
    assert metrics["click/auc"] == pytest.approx(roc_auc_score(table["click"], expected))
    assert mg.score_part(run, "valid", replicates=0)[0]["click/auc"] == pytest.approx(run.best["click/auc"])
    assert mg.write_predictions(run, table, tmp_path / "predictions.parquet") == 200
    np.testing.assert_array_equal(pq.read_table(tmp_path / "predictions.parquet")["click"], expected)
    assert mg.recalibrate(run, table).curves.keys() == {"click"}
    assert mg.inspect_model(run, repeats=1).structure == "mine"
