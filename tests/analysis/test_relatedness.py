"""Relatedness against gradients worked out by hand and plain loops."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.testing import assert_allclose

from multigate.analysis import relatedness as module
from multigate.analysis.relatedness import Directions, label_correlations, relatedness
from multigate.analysis.subject import Subject
from multigate.assembly import build_model
from multigate.batch import TaskColumn
from multigate.bundle import Bundle
from multigate.calibration import Curve
from multigate.data.encoder import Encoder
from multigate.data.rows import cut, join
from multigate.errors import DataError
from multigate.schema import Number, Schema, Task
from multigate.sharing import SingleTask

FEATURES = (Number("x", embedding="none"), Number("y", embedding="none"))
SCHEMA = Schema(
    features=FEATURES,
    tasks=(
        Task("click"),
        Task("buy", given="click"),
        Task("like", sample_weight="likes"),
        Task("watch", kind="regression", transform="none"),
        Task("topic", kind="multiclass"),
    ),
)
HEADS = {
    "click": [0.7, -0.2],
    "buy": [-0.4, 0.9],
    "like": [0.3, 0.3],
    "watch": [-0.5, 0.1],
    "topic": [[0.2, 0.4], [0.0, -0.3], [-0.6, 0.1]],
}


def table(rows, seed=0, schema=SCHEMA):
    random = np.random.default_rng(seed)
    click = random.integers(0, 2, rows)
    columns = {
        "x": random.normal(size=rows).clip(-3, 3),
        "y": random.normal(size=rows).clip(-3, 3),
        "click": click,
        "buy": [int(random.random() < 0.5) if one else None for one in click],
        "like": [None if random.random() < 0.4 else int(random.random() < 0.3 + 0.5 * one) for one in click],
        "likes": random.random(rows),
        "watch": [None if random.random() < 0.2 else float(random.normal() + 2 * one) for one in click],
        "topic": [str(one) for one in random.integers(0, 3, rows)],
    }
    return {name: columns[name] for name in schema.columns()}


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def gradients_by_hand(batch):
    """d loss / d x of every task, row by row, up to a factor each, (T, R, 2)."""
    click, buy, like, watch = (np.array(HEADS[name]) for name in ("click", "buy", "like", "watch"))
    topic = np.array(HEADS["topic"])
    found = np.zeros((5, batch.rows, 2))
    for r in range(batch.rows):
        x, labels = batch.numbers[r].double().numpy(), batch.labels[r].tolist()
        p, q = sigmoid(click @ x), sigmoid(buy @ x)
        found[0, r] = (p - labels[0]) * click
        # p(buy) = p q: -log(p q), or -log(1 - p q)
        outer = -1 if labels[1] else p * q / (1 - p * q)
        found[1, r] = outer * ((1 - p) * click + (1 - q) * buy)
        found[2, r] = float(batch.weights[r, 2]) * (sigmoid(like @ x) - labels[2]) * like
        found[3, r] = 2 * (watch @ x - labels[3]) * watch
        chances = np.exp(topic @ x) / np.exp(topic @ x).sum()
        found[4, r] = (chances - np.eye(3)[int(labels[4])]) @ topic
        found[:, r] *= batch.known[r].double().numpy()[:, None]
    return found


def cosine(a, b):
    dot, left, right = 0.0, 0.0, 0.0
    for one, other in zip(a.ravel(), b.ravel(), strict=True):
        dot, left, right = dot + one * other, left + one * one, right + other * other
    return dot / math.sqrt(left * right)


def test_gradient_cosines_equal_those_worked_out_by_hand(linear):
    subject = linear(SCHEMA, table(3000), HEADS, rows=700)
    found = relatedness(subject)
    assert found.tasks == SCHEMA.task_names
    assert found.rows == "3,000 rows"
    gradients = gradients_by_hand(join(subject.batches))
    for i in range(5):
        for j in range(5):
            # 3,000 rows are three batches, whatever the subject's own
            cosines = [cosine(gradients[i, at : at + 1000], gradients[j, at : at + 1000]) for at in (0, 1000, 2000)]
            assert found.gradients[i][j] == pytest.approx(np.mean(cosines), abs=2e-5)
            assert found.gradients_sd[i][j] == pytest.approx(np.std(cosines, ddof=1), abs=2e-5)
    assert 0.05 < found.gradients[0][1] < 0.95, "the chain ties buy to click"


def test_equal_tasks_agree_and_opposed_ones_conflict(linear):
    schema = Schema(
        features=FEATURES,
        tasks=[Task(name, kind="regression", transform="none") for name in ("one", "same", "twice", "opposed")],
    )
    columns = table(900)
    random = np.random.default_rng(1)
    one = random.normal(size=900)
    head = np.array([0.5, -0.25])
    encoded = np.stack([(columns[name] - np.mean(columns[name])) / np.std(columns[name]) for name in "xy"], axis=1)
    predicted = encoded @ head
    labels = {"one": one, "same": one, "twice": 2 * one - predicted, "opposed": 2 * predicted - one}
    values = {name: columns[name] for name in "xy"} | labels
    found = relatedness(linear(schema, values, dict.fromkeys(labels, head)))
    signs = np.array([1, 1, 1, -1])
    assert_allclose(np.array(found.gradients), np.outer(signs, signs), atol=1e-5)
    assert found.gradients[0][0] == found.gradients[0][1] == pytest.approx(1, abs=1e-12)
    assert {value for row in found.gradients_sd for value in row} == {None}, "one batch has no deviation"


def test_a_batch_without_a_tasks_labels_is_left_out_of_its_mean(linear):
    columns = table(3000)
    columns["like"] = [None] * 2000 + columns["like"][2000:]
    subject = linear(SCHEMA, columns, HEADS)
    found = relatedness(subject)
    gradients = gradients_by_hand(cut(join(subject.batches), 2000, 3000))
    assert found.gradients[2][0] == pytest.approx(cosine(gradients[2], gradients[0]), abs=2e-5)
    assert found.gradients_sd[2] == (None,) * 5
    assert None not in (found.gradients[0][3], found.gradients_sd[0][3])
    nothing = replace(subject, batches=subject.batches[:2])
    assert relatedness(nothing).gradients[2] == (None,) * 5
    assert relatedness(nothing).labels[2] == (None,) * 5


def test_dropout_and_calibration_play_no_part_and_nothing_is_left_behind(linear):
    subject = linear(SCHEMA, table(1500), HEADS)
    expected = relatedness(subject)
    bundle = subject.bundle
    calibrated = type(bundle)(
        bundle.experiment, bundle.encoder, bundle.model, {"click": Curve(at=(-1.0, 0.0), to=(-3.0, 0.0), slope=0.1)}
    )
    calibrated.model.train()
    with torch.no_grad():
        assert relatedness(replace(subject, bundle=calibrated)) == expected
    assert calibrated.model.training
    assert all(parameter.grad is None for parameter in calibrated.model.parameters())


def test_at_most_twenty_batches_of_about_a_thousand_rows_spread_over_all(linear):
    schema = Schema(features=FEATURES, tasks=[Task("click")])
    for rows, batches in ((10, 1), (1500, 1), (2600, 3), (60_000, 20)):
        columns = table(rows, schema=schema) | {"x": np.arange(rows)}
        parts = list(module._regrouped(join(linear(schema, columns, HEADS, rows=8192).batches)))
        assert len(parts) == batches
        assert batches == 1 or all(abs(part.rows - 1024) < 400 for part in parts)
        positions = np.concatenate([part.numbers[:, 0].numpy() for part in parts])
        assert (np.diff(positions) > 0).all(), "no row twice"
        assert positions[0] == pytest.approx(-math.sqrt(3), rel=0.2)
        assert positions[-1] == pytest.approx(math.sqrt(3), rel=0.2)


def test_label_correlations_equal_plain_loops(linear):
    columns = table(800)
    found = relatedness(linear(SCHEMA, columns, HEADS)).labels
    buy = [0 if click == 0 else buy for click, buy in zip(columns["click"], columns["buy"], strict=True)]
    labels = [list(columns["click"]), buy, columns["like"], columns["watch"]]
    for i, first in enumerate(labels):
        for j, second in enumerate(labels):
            pairs = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
            a_mean, b_mean = (sum(side) / len(pairs) for side in zip(*pairs, strict=True))
            above = sum((a - a_mean) * (b - b_mean) for a, b in pairs)
            below = math.sqrt(sum((a - a_mean) ** 2 for a, _ in pairs) * sum((b - b_mean) ** 2 for _, b in pairs))
            assert found[i][j] == pytest.approx(above / below, abs=1e-6)
    assert found[0][3] > 0.5, "the simulated link"
    assert found[4] == (None,) * 5, "three classes have no order"


def test_two_classes_correlate_like_a_binary_label(linear):
    schema = Schema(features=FEATURES, tasks=[Task("click"), Task("topic", kind="multiclass")])
    columns = table(400, schema=schema)
    columns["topic"] = ["yes" if one else "no" for one in columns["click"]]
    found = relatedness(linear(schema, columns, {"click": HEADS["click"], "topic": HEADS["topic"][:2]}))
    assert found.labels[0][1] == pytest.approx(1)


def test_a_label_that_does_not_vary_where_both_are_known_has_no_correlation(linear):
    schema = Schema(features=FEATURES, tasks=[Task("click"), Task("watch", kind="regression", where="click")])
    columns = {name: values for name, values in table(300).items() if name in ("x", "y", "click", "watch")}
    found = relatedness(linear(schema, columns, HEADS)).labels
    assert found[0][1] is None
    assert found[1][0] is None
    assert found[1][1] == pytest.approx(1)


def test_overlap_is_the_cosine_of_the_directions_read_in_deviations_of_x(linear):
    """A task whose output is h . x reads one direction; x and y are correlated, so angles are those of h' S h."""
    heads = {"one": [1.0, 0.0], "other": [0.6, 0.8], "minus": [-0.6, -0.8], "across": [0.5, -1.0]}
    schema = Schema(features=FEATURES, tasks=[Task(name, kind="regression", transform="none") for name in heads])
    random = np.random.default_rng(3)
    x, y = random.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 5000).T.clip(-4, 4)
    values = {"x": 3 + x, "y": 10 * y} | {name: random.normal(size=5000) for name in heads}
    found = relatedness(linear(schema, values, heads)).overlap
    seen = np.stack([(one - one.mean()) / one.std() for one in (x, y)])
    covariance = seen @ seen.T / 5000
    for i, a in enumerate(heads.values()):
        for j, b in enumerate(heads.values()):
            a_b, a_a, b_b = (np.array(p) @ covariance @ np.array(q) for p, q in ((a, b), (a, a), (b, b)))
            assert found[i][j] == pytest.approx(abs(a_b) / math.sqrt(a_a * b_b), abs=2e-3)
    assert found[1][2] == pytest.approx(1), "whatever is made of them"


def test_overlap_equals_plain_loops_and_does_not_depend_on_batches():
    torch.manual_seed(0)
    x, gradients = torch.randn(60, 4) @ torch.randn(4, 4), torch.randn(3, 60, 4)
    mean = x.mean(0)
    covariance = sum(torch.outer(row - mean, row - mean) for row in x) / 60
    products = torch.zeros(3, 3)
    for i in range(3):
        for j in range(3):
            # tr(C_i S C_j S) = sum over pairs of rows of (g S g')^2
            products[i, j] = sum(float(a @ covariance @ b) ** 2 for a in gradients[i] for b in gradients[j])
    sizes = products.diagonal().sqrt()
    expected = (products / torch.outer(sizes, sizes)).sqrt()
    whole, pieces, turned = Directions(), Directions(), Directions()
    whole.add(x, gradients)
    for at in (0, 7, 30):
        stop = {0: 7, 7: 30, 30: 60}[at]
        pieces.add(x[at:stop], gradients[:, at:stop])
    a = torch.randn(4, 4)
    turned.add(
        torch.cat((x @ a.T, torch.ones(60, 2)), dim=1), torch.cat((gradients @ a.inverse(), 9 * gradients[..., :2]), 2)
    )
    for one in (whole, pieces, turned):
        assert_allclose(one.overlap(), expected, atol=1e-4)


def test_directions_of_wide_rows_are_compared_row_by_row_to_the_same_overlap(monkeypatch):
    torch.manual_seed(0)
    x, gradients = 3 + torch.randn(60, 9) @ torch.randn(9, 9), torch.randn(3, 60, 9)
    narrow, wide = Directions(), Directions()
    narrow.add(x, gradients)
    monkeypatch.setattr(module, "WIDE", 8)
    for at, stop in ((0, 25), (25, 60)):
        wide.add(x[at:stop], gradients[:, at:stop])
    assert_allclose(wide.overlap(), narrow.overlap(), atol=1e-5)


def test_of_rows_wider_than_many_so_many_are_compared_evenly(linear, monkeypatch):
    seen = []

    class Watched(Directions):
        def add(self, x, gradients):
            seen.append(x.shape)
            assert gradients.shape[1:] == x.shape
            super().add(x, gradients)

    monkeypatch.setattr(module, "Directions", Watched)
    for wide, rows in ((1, 1), (2, 1024)):
        seen.clear()
        monkeypatch.setattr(module, "WIDE", wide)
        relatedness(linear(SCHEMA, table(2048), HEADS))
        assert seen == [(rows, 2)] * 2


def test_correlations_of_many_labels_copy_two_of_them_at_a_time():
    tasks = [TaskColumn(name=str(at), kind="binary", outputs=1) for at in range(60)]
    labels = np.random.default_rng(0).integers(0, 2, (2000, 60)).astype(np.float32)
    known = np.ones(labels.shape, bool)
    tracemalloc.start()
    found = label_correlations(tasks, labels, known)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert_allclose(found, np.corrcoef(labels.T.astype(np.float64)), atol=1e-12)
    assert peak < 1.5 * 8 * labels.size, "one copy as float64 is all that there is to hold"


def test_a_task_without_gradient_overlaps_with_none():
    gradients = torch.randn(2, 30, 3)
    gradients[1] = 0
    directions = Directions()
    directions.add(torch.randn(30, 3), gradients)
    found = directions.overlap()
    assert found[0, 0] == pytest.approx(1)
    assert np.isnan(found[[0, 1, 1], [1, 0, 1]]).all()


def test_tasks_with_tables_of_their_own_have_no_overlap(feed_experiment):
    rows = pq.read_table(feed_experiment.train).to_batches()
    encoder = Encoder.fit(feed_experiment.schema, rows)
    embedding = feed_experiment.embedding.with_(tables="own")
    experiment = feed_experiment.with_(sharing=SingleTask(hidden=(4,)), embedding=embedding)
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    found = relatedness(Subject("a model", bundle, (encoder.columns(rows[0]),), "rows"))
    assert {value for row in found.overlap for value in row} == {None}
    assert found.gradients[2][0] == pytest.approx(0, abs=1e-9), "like reads nothing that click reads"


def test_no_rows_are_refused(linear):
    subject = linear(SCHEMA, table(100), HEADS)
    with pytest.raises(DataError, match="found none"):
        relatedness(replace(subject, batches=()))
