"""Planted leaks are found, honest columns are not called leaks."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from multigate.data import leaks as leaks_module
from multigate.data.leaks import Target, _auc, _recoded, auc, leaks

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


@pytest.mark.parametrize("rows", [60, 150, 400, 1_000])
def test_a_number_behind_the_label_of_a_small_table_is_told(rows: int) -> None:
    rng = np.random.default_rng(rows)
    score = rng.normal(size=rows)
    label = (score > 0.4).astype(float)
    for values in (score, -score, np.where(rng.random(rows) < 0.2, np.nan, score), label + rng.normal(size=rows) / 99):
        (reason,) = found(values, label)
        assert reason.startswith("alone predicts task 'y' with AUC ")
    rare, seen = rng.normal(size=ROWS), np.full(ROWS, np.nan)
    seen[:rows] = rare[:rows] > 0.4
    assert len(found(rare, seen)) == 1
    assert found(score + rng.normal(size=rows), label) == []
    assert found(rng.permutation(rows), label) == []
    if rows >= 400:
        ends = (np.abs(score) > 1).astype(float)
        thirds = np.digitize(score, [-0.5, 0.5]).astype(float)
        assert len(found(score, ends)) == len(found(score, thirds, "multiclass")) == 1


@pytest.mark.parametrize("share", [0.002, 0.01, 0.15])
def test_an_amount_that_only_the_positives_have_is_told(share: float) -> None:
    rare = (RNG.random(ROWS) < share).astype(float)
    amount = rare * RNG.lognormal(size=ROWS)
    for values in (amount, -amount, np.where(rare == 1, amount, 7)):
        (reason,) = found(values, rare)
        assert reason.startswith("alone predicts task 'y' with AUC ")
    assert found(np.where(RNG.random(ROWS) < share, RNG.lognormal(size=ROWS), 0), rare) == []


def test_a_recoded_label_is_told() -> None:
    for values in (["no" if y == 0 else "yes" for y in CLICK], 7 - 3 * CLICK, CLICK == 1):
        assert found(values, CLICK) == [
            "says the same as the label of task 'y' in other words, on all 6,000 sampled rows"
        ]
    third = RNG.integers(0, 3, ROWS)
    assert found([f"c{one}" for one in third], third.astype(float), "multiclass")[0].startswith("says the same")


MODE = RNG.choice(4, ROWS, p=[0.6, 0.2, 0.15, 0.05]).astype(float)
PART = [None if one == 0 else f"{one:.0f}-{RNG.integers(3)}" for one in MODE]
"""Of what failed: several parts for each mode, so that the mode does not tell the part."""


def test_columns_that_tell_classes_are_told_by_the_mean_auc() -> None:
    for values in (PART, MODE + RNG.uniform(0, 0.9, ROWS), np.where(RNG.random(ROWS) < 0.001, 0, MODE)):
        (reason,) = found(values, MODE, "multiclass")
        assert reason.startswith("alone predicts task 'y' with AUC ")
    codes = np.where(RNG.random(ROWS) < 0.001, (MODE + 1) % 4, MODE)
    share = np.array([[(MODE[codes == code] == one).mean() for one in range(4)] for code in range(4)])
    truth = np.mean([roc_auc_score(one == MODE, share[codes.astype(int), one]) for one in range(4)])
    (reason,) = found(codes, MODE, "multiclass")
    assert float(reason.split("AUC ")[1].split(" on")[0]) == pytest.approx(truth, abs=0.002)


def test_columns_that_tell_some_of_the_classes_are_no_leak() -> None:
    for values in (MODE == 3, np.where(MODE < 2, 0, MODE), SIGNAL, [f"u{row}" for row in range(ROWS)]):
        assert found(values, MODE, "multiclass") == []
    assert found(PART[:20], np.arange(20) % 10.0, "multiclass") == [], "classes of two rows say nothing"


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


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0, 2.5])), min_size=1, max_size=12))
def test_another_spelling_of_a_label_is_one_to_one_and_repeats(rows: list[tuple[int, float]]) -> None:
    codes, y = np.array([code for code, _ in rows]), np.array([label for _, label in rows])
    pairs, labels = set(rows), set(y.tolist())
    assert _recoded(codes, y) == (len(pairs) == len(set(codes.tolist())) == len(labels) <= len(rows) / 2)


def test_a_label_is_not_sorted_for_a_column_of_other_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each column is looked at for each task; this took half the time of a draft of many tasks."""
    monkeypatch.setattr(np, "unique", None)
    assert not _recoded(np.arange(20), np.arange(20) % 2.0)


@pytest.mark.parametrize("values", [2, 40, ROWS])
def test_an_auc_is_that_of_the_guess_for_every_row(values: int) -> None:
    codes = RNG.integers(0, values, ROWS)
    target = Target("y", "binary", CLICK)
    guess = []
    for code, half in zip(codes, target.half, strict=True):
        other = CLICK[target.half != half]
        same = CLICK[(target.half != half) & (codes == code)]
        guess.append((same.sum() + other.mean()) / (len(same) + 1))
    assert _auc(codes, CLICK, target) == pytest.approx(roc_auc_score(CLICK, guess), abs=1e-12)


def test_columns_and_labels_are_ranked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each column is looked at for each task: ranking both for each pair was nearly all of a draft of many tasks."""
    asked, ranks = [], leaks_module._ranks
    monkeypatch.setattr(leaks_module, "_ranks", lambda x: asked.append(1) or ranks(x))
    targets = [Target(f"y{at}", "regression", WATCH + at) for at in range(4)]
    targets += [Target(f"z{at}", "binary", CLICK) for at in range(4)]
    for _ in range(3):
        assert list(leaks(pa.array(RNG.normal(size=ROWS)), "x", targets)) == []
    assert len(asked) == 3 + 4
