"""The main job on real data: Census-Income from the published files to predictions, every step typed."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

import multigate as mg
from multigate.score import score_table
from processes import run

ROOT = Path(__file__).parent.parent


def typed(*words: object, cwd: Path) -> str:
    ended = run(words, cwd)
    assert ended.code == 0, ended.told
    return ended.said


def test_census_from_fetch_to_predictions(shared_data: Path, tmp_path: Path) -> None:
    typed("fetch", "census-income", "--from", shared_data / "census-income", cwd=tmp_path)
    file = ROOT / "examples" / "census.yaml"
    small = ["--set", "epochs=1", "--set", "sharing.experts=2", "--set", "sharing.hidden=[32]"]
    typed("train", file, "--out", "run", *small, cwd=tmp_path)
    typed("score", "run", "data/census-income/test.parquet", "--out", "p.parquet", cwd=tmp_path)
    assert pq.read_metadata(tmp_path / "p.parquet").num_rows == 49_881
    bundle = mg.load(tmp_path / "run")
    test = tmp_path / "data" / "census-income" / "test.parquet"
    metrics, intervals = score_table(bundle, test, replicates=20)
    assert metrics["income/auc"] > 0.93, "one epoch of a small model reaches this; a broken feature does not"
    assert metrics["never_married/auc"] > 0.99
    assert 0.85 < metrics["income/calibration"] < 1.15
    assert intervals["income/auc"][0] < metrics["income/auc"] < intervals["income/auc"][1]
    shuffled = pq.read_table(test).take(np.random.default_rng(0).permutation(1000))
    rows = shuffled.to_pylist()[:5]
    together = bundle.predict(shuffled)["income"]
    assert np.allclose([bundle.predict(row)["income"] for row in rows], together[:5], atol=1e-6)


def test_a_table_nobody_tuned_for(shared_data: Path, tmp_path: Path) -> None:
    """init then train, nothing edited: education and income of the Census, drafted from the raw columns."""
    table = shared_data / "census-income" / "train.parquet"
    text = typed("init", table, "--set", "tasks=income_50k,education", "--set", "epochs=1", cwd=tmp_path)
    assert "instance_weight" in text.split("schema:")[0], "the sampling weight is told to be left out"
    (tmp_path / "x.yaml").write_text(text)
    typed("train", "x.yaml", "--out", "run", "--set", "sharing.experts=2", cwd=tmp_path)
    best = mg.open_run(tmp_path / "run").best
    assert best["income_50k/auc"] > 0.93
    assert best["education/auc"] > 0.8, "macro AUC of 17 classes"
