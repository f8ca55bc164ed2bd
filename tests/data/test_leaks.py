"""Planted leaks are found, honest columns are not called leaks."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from multigate.data.leaks import Target, auc, leaks

RNG = np.random.default_rng(5)
ROWS = 6_000
SIGNAL = RNG.normal(size=ROWS)
CLICK = (SIGNAL + RNG.normal(size=ROWS) > 1).astype(float)
WATCH = np.exp(SIGNAL) + 1


def found(values: Any, labels: np.ndarray, kind: str = "binary") -> list[str]:
    return list(leaks(pa.array(values, from_pandas=True), "x", [Target("y", kind, labels)]))


@given(st.lists(st.tuples(st.sampled_from([-np.inf, 0.0, 0.5, 1.0, 2.0]), st.booleans()), min_size=2))
def test_auc_equals_scikit_learns(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = (np.array(part, dtype=float) for part in zip(*pairs, strict=True))
    if len(set(labels)) == 2:
        assert auc(scores, labels) == pytest.approx(roc_auc_score(labels, np.maximum(scores, -9)))


LEAKS = {
    "a threshold": np.where(CLICK == 1, RNG.uniform(1, 2, ROWS), RNG.uniform(0, 1, ROWS)),
    "the reverse": -np.where(CLICK == 1, RNG.uniform(1, 2, ROWS), RNG.uniform(0, 1, ROWS)),
    "both ends": np.where(CLICK == 1, RNG.choice([-1, 1], ROWS), 0) + RNG.uniform(-0.4, 0.4, ROWS),
    "being missing": np.where(CLICK == 1, RNG.normal(size=ROWS), np.nan),
    "many values": [f"{int(y)}{k}" for y, k in zip(CLICK, RNG.integers(0, 200, ROWS), strict=True)],
    "one row in five hundred wrong": np.where(RNG.random(ROWS) < 0.002, 1 - CLICK, CLICK),
}


@pytest.mark.parametrize("case", LEAKS)
def test_a_planted_leak_is_told_with_its_auc(case: str) -> None:
    (reason,) = found(LEAKS[case], CLICK)
    assert reason.startswith("alone predicts task 'y' with AUC ")
    assert float(reason.split("AUC ")[1].split(" on")[0]) > 0.99
    assert "on 6,000 sampled rows" in reason


def test_a_recoded_label_is_told() -> None:
    for values in (["no" if y == 0 else "yes" for y in CLICK], 7 - 3 * CLICK, CLICK == 1):
        assert found(values, CLICK) == [
            "says the same as the label of task 'y' in other words, on all 6,000 sampled rows"
        ]
    third = RNG.integers(0, 3, ROWS)
    assert found([f"c{one}" for one in third], third.astype(float), "multiclass")[0].startswith("says the same")


HONEST = {
    "noise": RNG.normal(size=ROWS),
    "the signal": SIGNAL,
    "ids of their own": [f"u{row}" for row in range(ROWS)],
    "numbers of their own": RNG.permutation(ROWS),
    "constant": np.zeros(ROWS),
    "nothing": pa.nulls(ROWS, pa.float64()),
}


@pytest.mark.parametrize("case", HONEST)
def test_an_honest_column_is_not_called_a_leak(case: str) -> None:
    assert found(HONEST[case], CLICK) == []
    if case != "the signal":
        assert found(HONEST[case], WATCH, "regression") == []


def test_regression_leaks_are_found_by_r2() -> None:
    for values in (WATCH, 60 * WATCH + 3, np.round(WATCH, 1), SIGNAL):
        (reason,) = found(values, WATCH, "regression")
        assert reason.startswith("alone predicts task 'y' with R2 ")
    assert found(WATCH + RNG.normal(size=ROWS), WATCH, "regression") == []


def test_unknown_labels_and_few_positives_say_nothing() -> None:
    assert found(CLICK, np.full(ROWS, np.nan)) == []
    rare = np.zeros(ROWS)
    rare[:5] = 1
    assert found(rare + RNG.uniform(0, 0.1, ROWS), rare) == []
    half = np.where(np.arange(ROWS) % 2, np.nan, CLICK)
    assert "on 3,000 sampled rows" in found(LEAKS["a threshold"], half)[0]
