"""What is scored: labels in their own unit, rows that belong to no group."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import r2_score, roc_auc_score

import multigate as mg
from multigate.data.encoder import Encoder
from multigate.evaluate import Scored, intervals, scores, spaces


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
