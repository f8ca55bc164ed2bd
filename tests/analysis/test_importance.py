"""Permutation importance against a permutation by hand, and with planted worth."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import roc_auc_score

from multigate.analysis import importance as module
from multigate.analysis.importance import Importance, permutation_importance
from multigate.assembly import build_model
from multigate.bundle import Bundle
from multigate.data.encoder import Encoder
from multigate.data.rows import join
from multigate.experiment import Experiment
from multigate.schema import Bag, Category, Number, Schema, Task, Time, Vector
from multigate.sharing import MMoE

FEATURES = (
    Number("x", embedding="none"),
    Number("idle", embedding="none"),
    Number("binned", bins=4, values=50),
    Category("colour"),
    Bag("tags"),
    Time("at"),
    Vector("v", size=2),
)
TASKS = (Task("click"), Task("buy", given="click"), Task("watch", kind="regression"))


def table_of(rows, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=rows)
    click = random.random(rows) < 1 / (1 + np.exp(-2 * x))
    return pa.table(
        {
            "x": np.where(random.random(rows) < 0.05, np.nan, x),
            "idle": random.normal(size=rows),
            "binned": random.integers(0, 20, rows).astype(float),
            "colour": random.choice(["red", "blue"], rows),
            "tags": [",".join(random.choice(["a", "b", "c"], random.integers(0, 4))) for _ in range(rows)],
            "at": [f"2026-01-01 {hour:02}:00" for hour in random.integers(0, 24, rows)],
            "v": list(random.normal(size=(rows, 2))),
            "click": click,
            "buy": click & (random.random(rows) < 0.5),
            "watch": random.normal(size=rows),
        }
    )


def bundle_of(table, features=FEATURES, tasks=TASKS):
    """An untrained model."""
    schema = Schema(features=features, tasks=tasks)
    experiment = Experiment(schema=schema, train="rows.parquet", sharing=MMoE(experts=2, hidden=(8,)), tower=(4,))
    encoder = Encoder.fit(schema, table.to_batches())
    torch.manual_seed(0)
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    return bundle, join([encoder.columns(batch) for batch in table.combine_chunks().to_batches()])


def reads_only_x(bundle):
    """Every expert and gate made blind to all of x but its first number."""
    with torch.no_grad():
        for linear in (bundle.model.sharing.experts.layers[0], bundle.model.sharing.gate.linear):
            linear.weight[..., 1:] = 0


def shuffled_by_hand(table, name, bundle, target, seed, repeats):
    """The AUC that is lost, with raw cells moved between rows and everything predicted anew."""
    random = np.random.default_rng(seed)
    labels = table[target.partition("|")[0]].to_numpy()
    reached = table["click"].to_numpy() if "|" in target else np.ones(len(table), dtype=bool)

    def auc(rows):
        return roc_auc_score(labels[reached], bundle.predict(rows)[target][reached])

    lost = []
    for _ in range(repeats):
        order = random.permutation(len(table))
        moved = table.set_column(table.column_names.index(name), name, table[name].take(pa.array(order)))
        lost.append(auc(table) - auc(moved))
    return np.mean(lost), np.std(lost, ddof=1)


@pytest.mark.parametrize("target", ["click", "buy", "buy|click"])
def test_it_is_what_moving_raw_cells_between_rows_costs(target):
    table = table_of(400)
    bundle, batch = bundle_of(table)
    found = permutation_importance(bundle, batch, repeats=3, seed=5)
    of_target = {one.feature: one for one in found if one.target == target}
    assert of_target.keys() == {feature.name for feature in FEATURES}
    for name, one in of_target.items():
        by_hand = shuffled_by_hand(table, name, bundle, target, 5, 3)
        assert (one.loss, one.sd) == pytest.approx(by_hand, abs=2e-4), name  # pairs of rows that are all but tied
        assert one.metric == "auc"


def test_the_only_feature_that_is_read_has_all_the_worth():
    bundle, batch = bundle_of(table_of(1500))
    reads_only_x(bundle)
    with torch.no_grad():  # towers that pass on more of what rises with x, so that the model is right
        labels, x = batch.labels[:, 0], batch.numbers[:, 0].nan_to_num()
        outputs = bundle.model(batch.numbers, batch.categories, batch.bags).logits[:, 0]
        if np.corrcoef(outputs, x)[0, 1] < 0:
            bundle.model.heads.weight[0] *= -1
        outputs = bundle.model(batch.numbers, batch.categories, batch.bags).logits[:, 0]
    auc = roc_auc_score(labels, outputs)
    found = [one for one in permutation_importance(bundle, batch) if one.target == "click"]
    assert found[0].feature == "x"
    assert found[0].loss == pytest.approx(auc - 0.5, abs=0.05)
    assert all((one.loss, one.sd) == (0, 0) for one in found[1:])


def test_targets_are_tasks_and_conditionals_by_falling_loss():
    bundle, batch = bundle_of(table_of(400))
    found = permutation_importance(bundle, batch, repeats=1)
    targets = list(dict.fromkeys((one.target, one.metric) for one in found))
    assert targets == [("click", "auc"), ("buy", "auc"), ("buy|click", "auc"), ("watch", "r2")]
    for target, _ in targets:
        losses = [one.loss for one in found if one.target == target]
        assert losses == sorted(losses, reverse=True)
        assert len(losses) == len(FEATURES)
    assert {one.sd for one in found} == {0}


def test_a_target_without_a_metric_is_left_out():
    bundle, batch = bundle_of(table_of(200))
    batch.labels[:, 2] = 1  # r2 has nothing to explain
    found = permutation_importance(bundle, batch, repeats=1)
    assert "watch" not in {one.target for one in found}
    assert all(math.isfinite(one.loss) for one in found)


def test_a_seed_gives_the_same_again_and_another_does_not():
    bundle, batch = bundle_of(table_of(300))
    first = permutation_importance(bundle, batch, repeats=2)
    assert first == permutation_importance(bundle, batch, repeats=2)
    assert first != permutation_importance(bundle, batch, repeats=2, seed=1)


def test_a_large_table_is_thinned_evenly(monkeypatch):
    bundle, batch = bundle_of(table_of(600))
    batch.numbers[:, 1] = torch.nan  # "idle" is missing in every row
    seen = []
    original = module.forward

    def counted(model, batches, device):
        scored = original(model, batches, device)
        seen.append(len(scored.logits))
        return scored

    monkeypatch.setattr(module, "MOST", 150)
    monkeypatch.setattr(module, "forward", counted)
    permutation_importance(bundle, batch, repeats=1)
    assert seen[0] == 150
    assert max(seen) == 150
    assert len(seen) == 1 + len(FEATURES) - 1, "what is the same in all rows is not run again"
    assert seen[3] < 150, "nor are rows whose colour stays the same"
    seen.clear()
    monkeypatch.setattr(module, "LEAST", 50)
    monkeypatch.setattr(module, "RUN", 2 * len(FEATURES) * 100)
    permutation_importance(bundle, batch, repeats=2)
    assert seen[0] == 100, "as many as all shuffles may have in all"


def test_progress_is_told_and_weights_stay():
    bundle, batch = bundle_of(table_of(100))
    before = {name: tensor.clone() for name, tensor in bundle.model.state_dict().items()}
    told = []
    permutation_importance(bundle, batch, repeats=1, progress=lambda *one: told.append(one))
    assert told == [("importance (features)", at, len(FEATURES)) for at in range(len(FEATURES))]
    assert all(torch.equal(before[name], tensor) for name, tensor in bundle.model.state_dict().items())
    assert not bundle.model.training


def test_a_constant_feature_is_worth_exactly_nothing():
    table = table_of(100)
    table = table.set_column(1, "idle", pa.array(np.zeros(100)))
    bundle, batch = bundle_of(table)
    found = [one for one in permutation_importance(bundle, batch) if one.feature == "idle"]
    assert Importance(feature="idle", target="click", metric="auc", loss=0, sd=0) in found
