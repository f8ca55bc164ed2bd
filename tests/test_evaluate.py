"""What is scored: labels in their own unit, rows that belong to no group; what weights may be chosen by."""

import re
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score

import multigate as mg
from multigate.batch import Batch, Layout, NumberColumn, TaskColumn
from multigate.data.encoder import Encoder
from multigate.errors import ExperimentError
from multigate.evaluate import Monitor, Scored, forward, intervals, scores, spaces
from multigate.metrics import HIGHER_IS_BETTER
from multigate.model import Model, Tower
from multigate.sharing import SharedBottom


def scored_by(schema: mg.Schema, table: pa.Table, outputs: np.ndarray) -> tuple[Encoder, Scored]:
    """Labels and groups as an encoder reads them, beside outputs (R, 1)."""
    encoder = Encoder.fit(schema, table.to_batches())
    batch = encoder.columns(table.combine_chunks().to_batches()[0])
    return encoder, Scored(
        outputs, outputs, *(one.numpy() for one in (batch.labels, batch.known, batch.weights, batch.groups))
    )


@pytest.mark.parametrize("transform", ["standard", "log1p"])
def test_a_target_far_from_zero_keeps_its_digits(transform: str) -> None:
    random = np.random.default_rng(0)
    due = 1_700_000_000 + 10 * random.standard_normal(500)
    guess = (0.9 * (due - due.mean()) / due.std() + 0.3 * random.standard_normal(500)).astype(np.float32)
    schema = mg.Schema(features=[mg.Number("x")], tasks=[mg.Task("due", kind="regression", transform=transform)])
    encoder, scored = scored_by(schema, pa.table({"x": due, "due": due}), guess[:, None])
    predicted = encoder.decode(0, guess)
    found = scores(spaces(schema, encoder, scored))
    assert len(set(predicted)) > 490
    assert found["due/r2"] == pytest.approx(r2_score(due, predicted), abs=1e-4)
    assert found["due/mae"] == pytest.approx(np.abs(due - predicted).mean(), rel=1e-4)


@pytest.mark.parametrize("transform", ["standard", "log1p", "none"])
def test_amounts_of_which_many_are_zero_have_a_calibration(transform: str) -> None:
    """Scaled in float32 and back, a zero may be a little less than that."""
    random = np.random.default_rng(0)
    found = [set(), set()]
    for scale in (1e-3, 1.0, 1e6):
        amounts = scale * random.lognormal(3, 2, 500) * random.integers(0, 2, 500)
        for at, due in enumerate((amounts, amounts - amounts.mean() / 100)):
            schema = mg.Schema(
                features=[mg.Number("x")], tasks=[mg.Task("due", kind="regression", transform=transform)]
            )
            if due.min() <= -1 and transform == "log1p":
                continue
            encoder, scored = scored_by(schema, pa.table({"x": np.zeros(500), "due": due}), np.zeros((500, 1)))
            found[at].add("due/calibration" in scores(spaces(schema, encoder, scored)))
    assert found == [{True}, {False}]


def test_rows_without_a_group_are_no_group() -> None:
    random = np.random.default_rng(0)
    rows = 4_000
    users = random.integers(0, 40, rows)
    click = (random.random(rows) < 0.2 + 0.6 * (users % 2)).astype(int)
    logits = (click + 2 * (users % 2) + random.standard_normal(rows)).astype(np.float32)
    known = random.random(rows) < 0.3
    named = [f"u{user}" if one else None for user, one in zip(users, known, strict=True)]
    schema = mg.Schema(features=[mg.Number("x")], tasks=[mg.Task("click")], group="user")
    encoder, scored = scored_by(schema, pa.table({"x": users, "click": click, "user": named}), logits[:, None])
    found = spaces(schema, encoder, scored)
    groups = [one for one in (known & (users == user) for user in range(40)) if 0 < click[one].sum() < one.sum()]
    by_hand = [roc_auc_score(click[one], logits[one]) for one in groups]
    assert scores(found)["click/gauc"] == pytest.approx(np.average(by_hand, weights=[one.sum() for one in groups]))
    low, high = intervals(found)["click/log_loss"]
    alone = intervals([one._replace(groups=None) for one in found])["click/log_loss"]
    # 2,800 of 4,000 rows are drawn one by one: as one group they would be in a replicate twice or not at all
    assert high - low < 2 * (alone[1] - alone[0])


def test_a_conditional_is_scored_where_the_parent_is_1_and_both_labels_are_known() -> None:
    random = np.random.default_rng(0)
    click = [[None, 0, 1, 1][i] for i in random.integers(0, 4, 600)]
    buy = [None if random.random() < 0.3 else int(one == 1 and random.random() < 0.5) for one in click]
    schema = mg.Schema(features=[mg.Number("x")], tasks=[mg.Task("click"), mg.Task("buy", given="click")])
    outputs = random.standard_normal((600, 4)).astype(np.float32)
    encoder, scored = scored_by(schema, pa.table({"x": range(600), "click": click, "buy": buy}), outputs[:, :2])
    found = {one.name: one for one in spaces(schema, encoder, scored._replace(conditionals=outputs[:, 2:]))}
    assert list(found) == ["click", "buy", "buy|click"]
    rows = [i for i in range(600) if click[i] == 1 and buy[i] is not None]
    assert 150 < len(rows) < sum(one == 1 for one in click)
    np.testing.assert_array_equal(found["buy|click"].outputs, outputs[rows, 3])
    np.testing.assert_array_equal(found["buy|click"].labels, [buy[i] for i in rows])
    rows = [i for i in range(600) if click[i] is not None]
    np.testing.assert_array_equal(found["click"].outputs, outputs[rows, 0])


def monitored(group: str | None = None) -> mg.Schema:
    """A task of each kind, and one that has a parent."""
    tasks = [
        mg.Task("click"),
        mg.Task("buy", given="click"),
        mg.Task("amount", kind="regression"),
        mg.Task("size", kind="multiclass"),
    ]
    return mg.Schema(features=[mg.Number("x")], tasks=tasks, group=group)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("click/rmse", r"'click' has no rmse; valid names: 'auc', 'log_loss', 'ne', 'pr_auc'$"),
        ("click/accuracy", r"'click' has no accuracy; .*auc"),
        ("buy|click/mae", r"'buy\|click' has no mae; .*auc"),
        ("amount/auc", r"'amount' has no auc; .*r2"),
        ("amount/gauc", r"'amount' has no gauc; .*r2"),
        ("size/pr_auc", r"'size' has no pr_auc; .*auc"),
        ("click/gauc", r"'click' has no gauc without a column 'group' of the schema; .*auc"),
        ("buy|click/gauc", r"'buy\|click' has no gauc without a column 'group' of the schema; .*auc"),
        ("amount/rsme", r"there is no metric 'rsme'; did you mean 'rmse'\?"),
    ],
)
def test_a_monitor_that_its_task_cannot_have_is_refused_with_those_there_are(name: str, says: str) -> None:
    with pytest.raises(ExperimentError, match=rf"^monitor '{re.escape(name)}': {says}"):
        Monitor(name, monitored())


def test_the_monitors_that_are_taken_are_the_metrics_that_are_scored() -> None:
    """All of them but calibration, and no other; with groups and without."""
    random = np.random.default_rng(0)
    click = random.integers(0, 2, 400)
    table = {
        "x": np.arange(400.0),
        "user": random.integers(0, 20, 400),
        "click": click,
        "buy": click * random.integers(0, 2, 400),
        "amount": random.random(400),
        "size": np.array(["s", "m", "l"])[random.integers(0, 3, 400)],
    }
    outputs = random.standard_normal((400, 6)).astype(np.float32)
    for group in (None, "user"):
        schema = monitored(group)
        encoder, scored = scored_by(schema, pa.table(table), outputs)
        found = scores(spaces(schema, encoder, scored))
        assert ("click/gauc" in found) == (group is not None)
        taken = {}
        for name in {f"{one.rpartition('/')[0]}/{metric}" for one in found for metric in HIGHER_IS_BETTER}:
            with suppress(ExperimentError):
                taken[name] = abs(Monitor(name, schema).value(found))
        assert taken == {name: abs(value) for name, value in found.items() if not name.endswith("/calibration")}


def test_a_model_in_training_is_scored_without_its_dropout_and_goes_on_with_it() -> None:
    layout = Layout(
        numbers=(NumberColumn(feature="x"),),
        categories=(),
        bags=(),
        tables={},
        tasks=(TaskColumn(name="click", kind="binary"), TaskColumn(name="buy", kind="binary")),
    )
    model = Model(layout, SharedBottom(dropout=0.5), tower=Tower(hidden=(8,)), parents=(None, 0), order=(0, 1))
    numbers, ids = torch.randn(30, 1), torch.zeros(30, 0, dtype=torch.int32)
    labels, known = torch.zeros(30, 2), torch.ones(30, 2, dtype=torch.bool)
    parts = [
        Batch(numbers[rows], ids[rows], (), labels[rows], known[rows], labels[rows] + 1, rows)
        for rows in torch.arange(30).split(13)
    ]
    wanted = model.eval()(numbers, ids, ())
    for training in (True, False):
        model.train(training)
        found = forward(model, parts, torch.device("cpu"))
        assert model.training == training
        np.testing.assert_allclose(found.logits, wanted.logits.detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.conditionals, wanted.conditionals.detach(), rtol=1e-4, atol=1e-5)
        assert found.groups.tolist() == list(range(30))
    assert abs(found.logits - found.conditionals)[:, 1].min() > 0.1
