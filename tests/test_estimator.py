"""``MultiTaskEstimator`` keeps scikit-learn's conventions and says what ``train`` and a bundle say."""

import json
import pickle
import pickletools
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from scipy import sparse
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import multigate as mg
from multigate.estimator import InputError, MultiTaskEstimator
from multigate.sharing import SharedBottom
from processes import run_program

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": (
        "A row of weight 2 is one step with twice the loss, a row that is there twice is two steps, in other batches "
        "and after another draw of validation rows. A row of weight 0 is left out exactly."
    ),
    "check_sample_weight_equivalence_on_sparse_data": "The same.",
}
"""The checks of scikit-learn that do not hold, and why; docs/estimator.md shows them."""

DOCS = Path(__file__).parent.parent / "docs" / "estimator.md"


def small(**changes: Any) -> MultiTaskEstimator:
    settings: dict[str, Any] = {
        "sharing": mg.MMoE(experts=2, hidden=(16,)),
        "tower": (8,),
        "epochs": 6,
        "learning_rate": 0.05,
        "settings": ("embedding.dim=4", "embedding.dropout=0", "precision=float32"),
    }
    return MultiTaskEstimator(**settings | changes)


def checks() -> list[Any]:
    """Every check there is for labels of any kind, then those that only classifiers, or only regressors, have."""
    seen: set[str] = set()
    found = []
    for kind in (None, "classifier", "regressor"):
        for one in estimator_checks_generator(
            small(kind=kind, epochs=2), expected_failed_checks=EXPECTED_FAILURES, mark="xfail"
        ):
            check = getattr(one, "values", one)[1]
            name = f"{check.func.__name__}{check.keywords or ''}"
            if name not in seen:
                found.append(pytest.param(*getattr(one, "values", one), marks=getattr(one, "marks", ()), id=name))
            seen.add(name)
    return found


@pytest.mark.parametrize(("estimator", "check"), checks())
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
def test_scikit_learns_own_checks(estimator: MultiTaskEstimator, check: Any) -> None:
    check(estimator)


def test_the_docs_list_the_checks_that_do_not_hold() -> None:
    rows = re.findall(r"^\| `(check_\w+)` \| (.*) \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert dict(rows) == EXPECTED_FAILURES
    assert set(EXPECTED_FAILURES) <= {one.id for one in checks()}


RANDOM = np.random.default_rng(0)
ROWS = 240
TABLE = {
    "colour": RANDOM.choice(["red", "green", "blue"], ROWS).tolist(),
    "size": [None if one % 17 == 0 else float(one % 23) / 3 for one in range(ROWS)],
    "shop": RANDOM.integers(1, 9, ROWS).tolist(),
}
CLICK = [int(colour == "red" or shop > 6) for colour, shop in zip(TABLE["colour"], TABLE["shop"], strict=True)]
LABELS = {
    "click": CLICK,
    "buy": [int(shop > 4) if click else None for click, shop in zip(CLICK, TABLE["shop"], strict=True)],
    "grade": ["high" if shop > 5 else "low" if shop < 3 else "middle" for shop in TABLE["shop"]],
    "price": [shop * 2.5 + one % 3 for one, shop in enumerate(TABLE["shop"])],
}


def test_it_says_what_train_says(tmp_path: Path) -> None:
    """Without validation rows of its own, the estimator is ``train`` on the table with itself as validation rows."""
    tasks = [
        mg.Task("click"),
        mg.Task("buy", given="click"),
        mg.Task("grade", kind="multiclass"),
        mg.Task("price", kind="regression"),
    ]
    fitted = small(tasks=tasks, validation_fraction=0, random_state=3).fit(TABLE, LABELS)
    experiment = mg.Experiment(
        schema=mg.infer_schema(TABLE | LABELS, tasks=tasks),
        sharing=mg.MMoE(experts=2, hidden=(16,)),
        tower=(8,),
        epochs=6,
        embedding={"dim": 4, "dropout": 0},
        optimizer={"learning_rate": 0.05},
        precision="float32",
        seed=3,
    )
    both = dict.fromkeys(("train", "valid"), TABLE | LABELS)
    expected = mg.train(experiment, tmp_path / "run", tables=both, quiet=True).bundle().predict(TABLE)
    click, buy, grade, price = fitted.predict_proba(TABLE)
    assert click[:, 1] == pytest.approx(expected["click"], abs=1e-7)
    assert buy[:, 1] == pytest.approx(expected["buy"], abs=1e-7)
    assert grade[:, 2] == pytest.approx(expected["grade=middle"], abs=1e-7)
    assert price is None
    predicted = fitted.predict(TABLE)
    assert predicted.shape == (ROWS, 4)
    assert predicted.dtype == object
    assert predicted[:, 2].tolist() == expected["grade"].tolist()
    assert predicted[:, 3].astype(float) == pytest.approx(expected["price"])
    assert fitted.bundle_.predict(TABLE)["buy|click"] == pytest.approx(expected["buy|click"])
    assert [task.name for task in fitted.tasks_] == ["click", "buy", "grade", "price"]
    assert fitted.n_iter_ == len(fitted.history_) <= 6


@pytest.mark.parametrize(
    ("labels", "kind", "classes"),
    [
        ([0, 1], "binary", [0, 1]),
        ([0.0, 1.0, np.nan], "binary", [0.0, 1.0]),
        ([True, False, None], "binary", [False, True]),
        (["alive", "dead", None, ""], "binary", ["alive", "dead"]),
        ([-1, 1], "binary", [-1, 1]),
        ([0.25, 0.75], "binary", [0.25, 0.75]),
        ([3.0, 1.0, 2.0, np.nan], "multiclass", [1.0, 2.0, 3.0]),
        (["b", "a", "c"], "multiclass", ["a", "b", "c"]),
        ([0.5, 1.0, 1.5], "regression", None),
        (list(range(60)), "regression", None),
        (list(range(50)), "multiclass", list(range(50))),
    ],
)
def test_kinds_are_read_off_the_labels(labels: list[Any], kind: str, classes: list[Any] | None) -> None:
    y = pd.Series(labels * (120 // len(labels)))
    X = np.random.default_rng(0).normal(size=(len(y), 2))
    fitted = small(epochs=1).fit(X, y)
    assert [task.kind for task in fitted.tasks_] == [kind]
    if classes is None:
        assert not hasattr(fitted, "classes_")
        assert not hasattr(fitted, "predict_proba")
        assert is_regressor(fitted)
        assert fitted.predict(X).dtype == np.float64
        return
    assert fitted.classes_.tolist() == classes
    assert is_classifier(fitted)
    assert set(fitted.predict(X)) <= set(classes)
    assert fitted.predict_proba(X).sum(axis=1) == pytest.approx(1)


def test_the_rarer_of_two_classes_is_found_wherever_it_sorts() -> None:
    """``infer_schema`` takes the rarer word as the positive one, here the first of ``classes_``."""
    X = np.random.default_rng(0).normal(size=(400, 2))
    y = np.where(X[:, 0] > 1, "bad", "fine")
    fitted = small(epochs=12).fit(X, y)
    assert fitted.tasks_[0].positive == "bad"
    assert fitted.classes_.tolist() == ["bad", "fine"]
    assert (fitted.predict(X) == y).mean() > 0.95
    assert roc_auc_score(y, fitted.predict_proba(X)[:, 1]) > 0.95  # of "fine", the greater


def test_kind_and_tasks_say_otherwise() -> None:
    X, y = load_iris(return_X_y=True)
    assert small(kind="regressor", epochs=1).fit(X, y).tasks_[0].kind == "regression"
    named = small(tasks=["buy|click", "click"], epochs=1).fit(
        TABLE, [[b, c] for b, c in zip(LABELS["buy"], CLICK, strict=True)]
    )
    buy, click = named.predict_proba(TABLE)
    assert (buy[:, 1] <= click[:, 1]).all()
    ages = mg.Task("old", column="age", positive=(3, 4))
    several = small(tasks=[ages], epochs=1).fit(X, np.arange(150) % 5)
    assert several.classes_.tolist() == [0, 1]
    wide = small(tasks=[mg.Task("size", classes=("1", "0", "2", "9"))], epochs=1).fit(X, y.astype(str))
    assert wide.classes_.tolist() == ["1", "0", "2", "9"]
    assert wide.predict_proba(X).shape == (150, 4)


def test_nobody_is_warned_of_classes_that_have_many_rows() -> None:
    """scikit-learn says that labels which are nearly all different may be numbers; these are 30 of 300."""
    X = np.random.default_rng(0).normal(size=(300, 2))
    assert len(small(kind="classifier", epochs=1).fit(X, np.arange(300) % 30).classes_) == 30


def test_a_zero_with_a_sign_is_zero() -> None:
    signed = [-0.0 if at % 2 and not label else float(label) for at, label in enumerate(CLICK)]
    assert 0 < np.signbit(signed).sum() < CLICK.count(0)
    fitted = small().fit(TABLE, signed)
    assert (fitted.tasks_[0].kind, fitted.classes_.tolist()) == ("binary", [0, 1])
    assert (fitted.predict_proba(TABLE) == small().fit(TABLE, np.array(CLICK, dtype=float)).predict_proba(TABLE)).all()


@pytest.mark.parametrize("tower", [[5, 4], np.array([5, 4]), (np.int64(5), 4), range(5, 3, -1)])
def test_widths_of_towers_are_any_list_of_numbers(tower: Any) -> None:
    assert small(tower=tower, epochs=1).fit(TABLE, CLICK).bundle_.experiment.tower.hidden == (5, 4)


def test_features_may_be_declared() -> None:
    fitted = small(features=[mg.Category("shop"), mg.Number("cost", column="size")], epochs=1).fit(TABLE, CLICK)
    assert [feature.name for feature in fitted.bundle_.schema.features] == ["shop", "cost"]
    changed = TABLE | {"colour": ["purple"] * ROWS}
    assert (fitted.predict_proba(changed) == fitted.predict_proba(TABLE)).all()


def test_features_may_be_declared_by_name_as_in_a_schema() -> None:
    fitted = small(features={"shop": "category", "cost": {"kind": "number", "column": "size"}}, epochs=1)
    listed = small(features=[mg.Category("shop"), mg.Number("cost", column="size")], epochs=1)
    assert fitted.fit(TABLE, CLICK).bundle_.schema == listed.fit(TABLE, CLICK).bundle_.schema


def test_settings_change_a_structure_given_by_its_options_as_one_given_by_name() -> None:
    """A search that moves ``sharing__experts`` leaves options in place of the name."""
    by_name = small(sharing="mmoe", settings=["sharing.experts=2", "sharing.hidden=[4]", "schema.group=shop"], epochs=1)
    moved = small(sharing="mmoe", settings=["sharing.hidden=[4]", "schema.group=shop"], epochs=1)
    moved.set_params(sharing__experts=2)
    experiments = [one.fit(TABLE, CLICK).bundle_.experiment for one in (by_name, moved)]
    assert experiments[0] == experiments[1]
    assert experiments[0].schema.group == "shop"
    assert small(settings="epochs=1").fit(TABLE, CLICK).n_iter_ == 1


def test_features_may_be_declared_where_none_would_be_found() -> None:
    """A text in every row another, whose words are all there is."""
    rows = [f"{'good' if at % 2 else 'bad'} number{at}" for at in range(1_500)]
    words = small(features=[mg.Bag("text", separator=" ")], epochs=3)
    fitted = words.fit({"text": rows}, [at % 2 for at in range(1_500)])
    assert (fitted.predict({"text": ["good", "bad"]}) == [1, 0]).all()


def test_tables_of_every_make_are_the_same_table() -> None:
    make = [dict, pd.DataFrame, pl.DataFrame, pa.table, pa.RecordBatch.from_pydict]
    frames, labels = [one(TABLE) for one in make], [one(LABELS) for one in make]
    tasks = ["click", "buy|click", "price"]
    answers = [
        small(tasks=tasks, epochs=2).fit(X, y).predict(Z)
        for X, y, Z in zip(frames, labels, reversed(frames), strict=True)
    ]
    for answer in answers[1:]:
        assert (answer == answers[0]).all()


def test_columns_of_a_record_batch_are_known_by_name() -> None:
    """As those of a table: in another order they would be taken one for another."""
    batch = pa.RecordBatch.from_pydict({"a": np.arange(60.0), "b": np.arange(60.0)[::-1]})
    fitted = small(epochs=1).fit(batch, np.arange(60) % 2)
    assert fitted.feature_names_in_.tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="must be in the same order"):
        fitted.predict(batch.select(["b", "a"]))


@pytest.mark.parametrize("series", [pd.Series, pl.Series, pa.array])
def test_a_column_of_labels_without_a_name_is_one(series: Any) -> None:
    """That of a polars series is ''."""
    fitted = small(epochs=2).fit(TABLE, series(CLICK))
    assert [task.name for task in fitted.tasks_] == ["target"]
    assert (fitted.predict(TABLE) == small(epochs=2).fit(TABLE, CLICK).predict(TABLE)).all()


@pytest.mark.parametrize("y", [CLICK, np.stack([CLICK, CLICK[::-1]], axis=1)], ids=["one", "two"])
def test_labels_without_names_go_with_columns_of_any_name(y: Any) -> None:
    names = {"colour": "target", "shop": "target_0"}
    table = {names.get(name, name): values for name, values in TABLE.items()}
    fitted = small(epochs=2).fit(table, y)
    expected = ["target_"] if np.ndim(y) == 1 else ["target__0", "target__1"]
    assert [task.name for task in fitted.tasks_] == expected
    assert fitted.feature_names_in_.tolist() == list(table)
    assert fitted.predict(table).shape == np.shape(y)
    assert np.isfinite(fitted.score(table, y))


def test_arrays_lists_and_sparse_matrices_are_the_same_rows() -> None:
    X = np.random.default_rng(0).integers(0, 3, (120, 4)).astype(float)
    y = X[:, 0] * X[:, 1] + X[:, 2] / 7
    expected = small(epochs=2).fit(X, y).predict(X)
    assert (small(epochs=2).fit(X.tolist(), y.tolist()).predict(X.tolist()) == expected).all()
    assert (small(epochs=2).fit(sparse.csr_array(X), y).predict(sparse.coo_matrix(X)) == expected).all()
    mixed = np.array(
        [[colour, size] for colour, size in zip(TABLE["colour"], TABLE["size"], strict=True)], dtype=object
    )
    kinds = [feature.kind for feature in small(epochs=1).fit(mixed, CLICK).bundle_.schema.features]
    assert kinds == ["category", "number"]


def test_unknown_values_and_labels() -> None:
    fitted = small().fit(TABLE, LABELS)
    unseen = {"colour": ["purple", None], "size": [None, 1e300], "shop": [99, 1]}
    assert fitted.predict(unseen).shape == (2, 4)
    half = [label if at % 2 else None for at, label in enumerate(CLICK)]
    assert small().fit(TABLE, half).score(TABLE, CLICK) > 0.9
    assert fitted.score(TABLE, LABELS | {"price": [None] * ROWS}) == pytest.approx(
        (4 * fitted.score(TABLE, LABELS) - r2_score(LABELS["price"], fitted.predict(TABLE)[:, 3])) / 3
    )


def test_score_is_the_mean_of_auc_and_r2() -> None:
    fitted = small(tasks=["click", "price"]).fit(TABLE, LABELS)
    named = small(tasks={"click": "multiclass", "price": "regression"}, epochs=1).fit(TABLE, LABELS)
    assert [task.kind for task in named.tasks_] == ["multiclass", "regression"]
    assert [task.name for task in small(tasks="click", epochs=1).fit(TABLE, LABELS).tasks_] == ["click"]
    click, _ = fitted.predict_proba(TABLE)
    price = fitted.predict(TABLE)[:, 1]
    weights = np.random.default_rng(0).integers(0, 4, ROWS)
    for w in (None, weights):
        expected = roc_auc_score(CLICK, click[:, 1], sample_weight=w) + r2_score(
            LABELS["price"], price, sample_weight=w
        )
        assert fitted.score(TABLE, LABELS, sample_weight=w) == pytest.approx(expected / 2, abs=1e-5)


def test_known_labels_speak_for_the_unknown_as_in_a_training() -> None:
    """Of half of the clicked rows, unless weights are given; p(buy) would be .13."""
    draw = np.random.default_rng(0)
    click = draw.random(4_000) < 0.5
    buy = np.where(draw.random(4_000) < 0.5, click & (draw.random(4_000) < 0.4), np.where(click, np.nan, 0))
    X, y = draw.normal(size=(4_000, 2)), {"click": click * 1.0, "buy": buy}
    fitted = small(tasks=["click", "buy|click"], epochs=5, learning_rate=0.005).fit(X, y)
    assert fitted.predict_proba(X)[1][:, 1].mean() == pytest.approx(0.2, abs=0.02)
    assert [task.sample_weight for task in fitted.tasks_] == [None, None]
    known = ~np.isnan(buy)
    for w in (None, draw.uniform(0, 2, 4_000), 3.0):
        given = np.ones(4_000) if w is None else w * np.ones(4_000)
        counted = given * np.where(click, click.sum() / (click & known).sum(), 1)
        found = [one[:, 1] for one in fitted.predict_proba(X)]
        wanted = (
            roc_auc_score(click, found[0], sample_weight=given),
            roc_auc_score(buy[known], found[1][known], sample_weight=counted[known]),
        )
        assert fitted.score(X, y, sample_weight=w) == pytest.approx(np.mean(wanted), abs=1e-5)


def test_weights() -> None:
    X = np.random.default_rng(0).normal(size=(200, 2))
    y = (np.arange(200) % 2).astype(float)
    kept = np.arange(200) % 5 > 0
    without = small().fit(X[kept], y[kept]).predict_proba(X)
    assert (small().fit(X, y, sample_weight=kept).predict_proba(X) == without).all()
    heavy = small().fit(X, y, sample_weight=np.where(y == 1, 20, 1)).predict_proba(X)
    assert heavy[:, 1].mean() > 0.8  # 20 of 21
    own = small(tasks=[mg.Task("y", sample_weight="w")]).fit(X, {"y": y, "w": np.where(y == 1, 20, 1)})
    assert own.predict_proba(X)[:, 1] == pytest.approx(heavy[:, 1])
    both = small(tasks=[mg.Task("y", sample_weight="w")])
    both.fit(X, {"y": y, "w": np.where(y == 1, 20, 1)}, sample_weight=1 + np.arange(200.0))
    assert both.bundle_.schema == own.bundle_.schema, "the weights of fit, which no task uses, are no feature"
    assert both.predict_proba(X).shape == (200, 2)


def test_score_takes_weights_of_any_size() -> None:
    fitted = small().fit(TABLE, LABELS)
    w = np.exp(np.linspace(0, 2, ROWS))
    score = fitted.score(TABLE, LABELS, w)
    for factor in (1e-60, 1e60):
        assert fitted.score(TABLE, LABELS, w * factor) == pytest.approx(score)
    decaying = np.exp(-np.arange(ROWS, dtype=float) * 200 / ROWS)  # float32 ends at 1e-45
    assert 0 < decaying.min() < 1e-80
    assert np.isfinite(fitted.score(TABLE, LABELS, decaying))


BIG = 2**60
"""Whole numbers from which on floats are not told apart."""


@pytest.mark.parametrize(
    ("y", "classes"),
    [
        (pd.Series([True, None, False] * (ROWS // 3), dtype="boolean"), [False, True]),
        (pd.Series([BIG, None, BIG + 1] * (ROWS // 3), dtype="Int64"), [BIG, BIG + 1]),
        (pd.Series([BIG, None, BIG + 1] * (ROWS // 3), dtype="Int64").astype("category"), [BIG, BIG + 1]),
        (pd.array([BIG, None, BIG + 1] * (ROWS // 3), dtype="Int64"), [BIG, BIG + 1]),
        (pl.Series([BIG, None, BIG + 1] * (ROWS // 3)), [BIG, BIG + 1]),
        (pa.array([BIG, None, BIG + 1] * (ROWS // 3)), [BIG, BIG + 1]),
        (pa.chunked_array([[BIG, None, BIG + 1] * (ROWS // 3)]), [BIG, BIG + 1]),
        (torch.tensor([BIG, BIG, BIG + 1] * (ROWS // 3)), [BIG, BIG + 1]),
    ],
)
def test_labels_beside_unknown_ones_stay_what_they_are(y: Any, classes: list[Any]) -> None:
    found = small(epochs=1).fit(TABLE, y).classes_
    assert found.tolist() == classes
    assert found.dtype == np.array(classes).dtype


def test_the_same_random_state_gives_the_same_predictions() -> None:
    answers = [small(random_state=seed).fit(TABLE, LABELS["price"]).predict(TABLE) for seed in (1, 1, 2)]
    assert (answers[0] == answers[1]).all()
    assert (answers[0] != answers[2]).any()
    drawn = [
        small(random_state=np.random.RandomState(5), epochs=1).fit(TABLE, CLICK).predict_proba(TABLE) for _ in "ab"
    ]
    assert (drawn[0] == drawn[1]).all()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    small(epochs=1).fit(TABLE, CLICK)
    assert (torch.get_rng_state() == before).all()


def test_validation_rows_hold_labels_like_the_rest(tmp_path: Path) -> None:
    y = np.column_stack([np.arange(200) % 20 == 0, np.arange(200) % 4 == 0, np.random.default_rng(0).normal(size=200)])
    y[1::2, 1] = np.nan
    X = np.random.default_rng(1).normal(size=(200, 2))
    small(epochs=1, validation_fraction=0.2, out=tmp_path / "run").fit(X, y)
    from multigate.data.prepared import Prepared

    prepared = Prepared(tmp_path / "run" / "prepared")
    [valid] = list(prepared.parts["valid"].batches(1000))
    assert {name: part.rows for name, part in prepared.parts.items()} == {"train": 160, "valid": 40}
    assert valid.labels[:, 0].sum() == 2  # of 10
    assert valid.known[:, 1].sum() == pytest.approx(20, abs=1)  # of 100
    small(epochs=1, out=tmp_path / "few").fit(X[:8], y[:8, 1])
    assert mg.open_run(tmp_path / "few").summary["rows"] == {"train": 8, "valid": 8}


def test_clone_search_and_cross_validation() -> None:
    X, y = load_diabetes(return_X_y=True)
    searched = GridSearchCV(
        make_pipeline(StandardScaler(), small(epochs=2)),
        {"multitaskestimator__sharing": ["shared_bottom", mg.MMoE(experts=2, hidden=(8,))]},
        cv=2,
        error_score="raise",
    ).fit(X[:150], y[:150])
    assert searched.best_estimator_[-1].sharing in ("shared_bottom", mg.MMoE(experts=2, hidden=(8,)))
    assert set(searched.cv_results_["rank_test_score"]) == {1, 2}
    options = {"sharing__experts": [1, 3], "sharing__hidden": [(4,)]}
    searched = GridSearchCV(small(epochs=1), options, cv=2, error_score="raise").fit(X[:80], y[:80])
    sharing = searched.best_estimator_.bundle_.experiment.sharing
    assert sharing == mg.MMoE(experts=searched.best_params_["sharing__experts"], hidden=(4,))
    aucs = cross_val_score(
        small(kind="classifier"), pd.DataFrame(TABLE), CLICK, cv=3, scoring="roc_auc", error_score="raise"
    )
    assert aucs.min() > 0.9
    labels = pd.DataFrame({name: LABELS[name] for name in ("click", "buy", "price")})
    assert cross_val_score(small(), pd.DataFrame(TABLE), labels, cv=2, error_score="raise").min() > 0.5
    copy = clone(small(tasks=["buy|click"], random_state=7))
    assert copy.get_params()["tasks"] == ["buy|click"]
    assert not hasattr(copy, "tasks_")
    named = mg.MultiTaskEstimator().set_params(sharing__experts=3, sharing="omoe", sharing__gate_dropout=0.5)
    assert named.sharing == mg.OMoE(experts=3, gate_dropout=0.5)
    assert named.get_params()["sharing__experts"] == 3
    assert not [name for name in named.get_params(deep=False) if name.startswith("sharing__")]
    with pytest.raises(ValueError, match="'experts'"):
        named.set_params(sharing__expert=3)
    with pytest.raises(InputError, match="no structure 'mmo'"):
        named.set_params(sharing="mmo", sharing__experts=3)


def test_what_a_column_transformer_makes() -> None:
    made = ColumnTransformer([("colour", OneHotEncoder(), ["colour", "shop"])], remainder="passthrough")
    for threshold in (0, 1):
        made.set_params(sparse_threshold=threshold)
        fitted = make_pipeline(made, small()).fit(pd.DataFrame(TABLE), CLICK)
        assert fitted.score(pd.DataFrame(TABLE), CLICK) > 0.9


class Own(SharedBottom):
    structure: Literal["own"] = "own"  # type: ignore[assignment]


def test_a_fitted_estimator_pickles_as_files(tmp_path: Path) -> None:
    fitted = small(sharing=Own(hidden=(8,))).fit(TABLE, LABELS)
    expected = fitted.predict(TABLE)
    data = pickle.dumps(fitted)
    names = [argument for _, argument, _ in pickletools.genops(data) if isinstance(argument, str)]
    assert "multigate.estimator" in names
    assert not [name for name in names if name.partition(".")[0] == "torch"]
    joblib.dump(fitted, tmp_path / "model.joblib", compress=3)
    for copy in (pickle.loads(data), joblib.load(tmp_path / "model.joblib")):
        assert (copy.predict(TABLE) == expected).all()
        assert copy.tasks_ == fitted.tasks_
        assert copy.score(TABLE, LABELS) == fitted.score(TABLE, LABELS)


def test_a_pickle_opens_in_another_process(tmp_path: Path) -> None:
    fitted = small(epochs=1).fit(TABLE, CLICK)
    joblib.dump(fitted, tmp_path / "model.joblib")
    few = {name: values[:5] for name, values in TABLE.items()}
    program = (
        "import joblib, json; model = joblib.load('model.joblib');"
        f"print(json.dumps(model.predict_proba({few!r}).tolist()))"
    )
    done = run_program(program, tmp_path)
    assert done.code == 0, done.told
    assert np.array(json.loads(done.said)) == pytest.approx(fitted.predict_proba(few))


def test_a_run_may_be_kept(tmp_path: Path) -> None:
    fitted = small(out=tmp_path / "run", epochs=2).fit(TABLE, CLICK)
    assert (
        mg.load(tmp_path / "run").predict(TABLE)["target"] == fitted.predict_proba(TABLE)[:, 1].astype(np.float32)
    ).all()
    with pytest.raises(mg.MultigateError, match="holds a run already"):
        fitted.fit(TABLE, CLICK)


@pytest.mark.parametrize(
    ("changes", "X", "y", "message"),
    [
        ({}, TABLE | {"click": CLICK}, {"click": CLICK}, "column 'click' is in X and in y"),
        ({"tasks": ["a", "b"]}, TABLE, CLICK, "y has 1 columns for 2 tasks"),
        ({"tasks": ["clack"]}, TABLE, LABELS, "no column 'clack'.*did you mean 'click'"),
        ({"kind": "classification"}, TABLE, CLICK, "'classifier', 'regressor' or None"),
        ({}, TABLE, [1] * ROWS, "one class, 1;"),
        ({}, TABLE, [0.5] * (ROWS - 1) + [np.inf], "infinity"),
        ({}, TABLE, [None] * ROWS, "holds no value in any row"),
        ({}, TABLE, {"a": [[0], [1]] * (ROWS // 2)}, "column 'a' of y is list.*labels are numbers, text or booleans"),
        ({}, TABLE, pd.Series(pd.to_datetime(["2020", "2021"] * (ROWS // 2))).astype("category"), "is timestamp"),
        ({}, TABLE, [{"a": 0}, {"a": 1}] * (ROWS // 2), "column 'target' of y is struct.*labels are numbers"),
        ({}, TABLE, {"a/b": CLICK}, "neither .* nor '/'.*rename the column of y"),
        ({"settings": ["embedding.dims=4"]}, TABLE, CLICK, "did you mean 'dim'"),
        ({"sharing": "mmo"}, TABLE, CLICK, "did you mean 'mmoe'"),
        ({"validation_fraction": 1}, TABLE, CLICK, "from 0 up to below 1"),
        ({"validation_fraction": "0.1"}, TABLE, CLICK, "from 0 up to below 1, found '0.1'"),
        ({"tower": 32}, TABLE, CLICK, r"tower: .*\(found 32\)"),
        ({"tower": None}, TABLE, CLICK, r"tower: .*\(found None\)"),
        ({"tower": np.array(32)}, TABLE, CLICK, r"tower: .*\(found 32\)"),
        ({"features": [mg.Number("weight")]}, TABLE, CLICK, "weight"),
        ({}, {"all": [1.0] * ROWS}, CLICK, "no column to predict from"),
        ({}, pd.DataFrame([[1.0, 2.0]] * ROWS, columns=["a", "a"]), CLICK, "two columns of the table are named 'a'"),
    ],
)
def test_what_cannot_be_fitted_is_a_value_error(changes: Any, X: Any, y: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        small(**changes).fit(X, y)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, mg.MultigateError)


def test_cells_of_mixed_types_and_other_columns() -> None:
    with pytest.raises(TypeError, match="column 1 of X: every argument must be a string"):
        small().fit([[1, "a"], [2, 3]] * 20, [0, 1] * 20)
    for frame in (pd.DataFrame, dict):
        with pytest.raises(InputError, match="column 'b' cannot be read as one type"):
            small().fit(frame({"a": [1, 2] * 20, "b": [1, "x"] * 20}), [0, 1] * 20)
    fitted = small(epochs=1).fit(pd.DataFrame(TABLE), CLICK)
    with pytest.raises(ValueError, match="size"):
        fitted.predict(pd.DataFrame(TABLE).drop(columns="size"))
    with pytest.raises(NotFittedError):
        small().predict(TABLE)


def test_ctrl_c_ends_a_search_and_not_one_fit() -> None:
    with pytest.raises(KeyboardInterrupt):
        GridSearchCV(small(sharing=Stopped(hidden=(4,))), {"epochs": [1, 2]}, cv=2).fit(pd.DataFrame(TABLE), CLICK)


class Stopped(SharedBottom):
    """Ctrl-C is pressed while its model is built."""

    structure: Literal["stopped"] = "stopped"  # type: ignore[assignment]

    def build(self, d_in: int, tasks: tuple[str, ...]) -> Any:
        signal.raise_signal(signal.SIGINT)
        return super().build(d_in, tasks)


def test_import_stays_light_and_says_what_is_missing() -> None:
    program = (
        "import sys, multigate; assert not {'sklearn', 'torch'} & sys.modules.keys(); sys.modules['sklearn'] = None\n"
        "try: multigate.MultiTaskEstimator\n"
        "except multigate.MultigateError as error: print(error)\n"
        "multigate.train, multigate.compare"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'multigate[sklearn]'" in done.stdout
