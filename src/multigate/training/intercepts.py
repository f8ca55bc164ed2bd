"""Intercepts: each task's last bias, moved once the best weights are chosen so that predictions add up to the labels.

Weights are chosen by how well rows are ranked, often while steps are still large, and where such steps leave the level
of the outputs is chance: totals were .83 to 1.27 of the labels' on tables whose rows were ranked well.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from multigate.batch import Batch, TaskColumn, output_columns
from multigate.bundle import ROWS
from multigate.data.rows import cuts, pick, pick_tasks
from multigate.data.shards import Part
from multigate.evaluate import forward
from multigate.model import Model
from multigate.schema import Schema

Floats = NDArray[np.float64]

LOOKED_AT, OUTPUTS = 1 << 16, 1 << 25
"""About how many rows' predictions are added up, and how many outputs they have, at most."""
MOST_CLASSES = 100
"""Of more the levels stay as they are: seldom ones are told by too few rows."""
FURTHEST = 1.0
"""How far an intercept is moved at most, in logits, or standard deviations of the labels: beyond, it is not the level
that is wrong."""


@torch.no_grad()
def match_totals(
    model: Model, schema: Schema, columns: Sequence[TaskColumn], rows: Part, places: Sequence[int], device: torch.device
) -> None:
    """Move the last biases of a model so that the mean prediction of each task over training rows is that of its
    labels, by their weights, as far as the two differ by more than chance.

    Of classes, that of each; of a task with a ``given`` parent over all rows on which it is known, its parent's moved
    first. ``columns`` and ``places`` are those of the schema's tasks among the columns of labels. Tasks of weight 0, of
    labels of one class, or of more than 100 classes stay as they are, and so do regressions through ``log1p``, of which
    the mean logarithm tells no total.
    """
    spans, parents = output_columns(columns), schema.parents()
    looked_at = min(LOOKED_AT, max(1, OUTPUTS // spans[-1][1]))
    seen = forward(model, (pick_tasks(batch, places) for batch in _drawn(rows, looked_at)), device)
    share = len(seen.labels) / rows.rows
    reached: dict[int, Floats] = {}
    shifts = np.zeros(spans[-1][1])
    for at in schema.order():
        task, (start, end), parent = schema.tasks[at], spans[at], parents[at]
        if end - start > MOST_CLASSES:
            continue
        own, labels = seen.conditionals[:, start:end].astype(np.float64), seen.labels[:, at, None].astype(np.float64)
        above = np.ones(len(own)) if parent is None else reached[parent]
        counts = np.where(seen.known[:, at], seen.weights[:, at], 0).astype(np.float64)
        wanted = _mean_labels(rows, places[at], columns[at])
        logarithm = task.kind == "regression" and task.transform == "log1p"
        level = task.weight > 0 and not logarithm
        if level and counts.any() and wanted is not None:
            counts /= counts.sum()
            if task.kind == "multiclass":
                labels = (labels == np.arange(end - start)).astype(np.float64)
                predicted, found = _softmax(own), _levels(own, counts, wanted)
            elif task.kind == "regression":
                most = FURTHEST * np.sqrt(counts @ (labels - wanted) ** 2)
                predicted, found = own, np.clip(wanted - counts @ own, -most, most)
            else:
                predicted = above[:, None] * _sigmoid(own)
                found = np.array([_level(own[:, 0], above, counts, wanted[0])])
            shifts[start:end] = found * _beyond_chance(predicted, labels, counts, wanted, share)
        if task.kind == "binary":
            reached[at] = above * _sigmoid(own[:, 0] + shifts[start])
    if np.isfinite(shifts).all():
        model.heads.bias.add_(torch.from_numpy(shifts).to(model.heads.bias))


def _drawn(rows: Part, most: int) -> Iterator[Batch]:
    """About ``most`` rows, drawn at random, the same each time: those side by side in a table are often of one user,
    shop or day."""
    draw = np.random.default_rng(0)
    for shard in rows.shards:
        drawn = shard
        if rows.rows > most:
            many = math.ceil(shard.rows * most / rows.rows)
            drawn = pick(shard, torch.from_numpy(np.sort(draw.choice(shard.rows, many, replace=False))))
        yield from cuts(drawn, ROWS)


def _beyond_chance(predicted: Floats, labels: Floats, counts: Floats, wanted: Floats, share: float) -> float:
    """How much of the difference of mean predictions (R, K) and labels is more than chance, 0 to 1, as James and Stein
    (1961) shrink means: no more than a standard error of the labels' mean is left. A ``share`` of rows was looked at.

    By what labels differ from predictions, chance would be less, but those of rows learnt by heart do not differ.
    """
    mean = counts @ predicted
    chance = counts**2 @ (share * (labels - wanted) ** 2 + (1 - share) * (predicted - mean) ** 2)
    differ = chance > 0
    free = max(1, int(differ.sum()) - 1)
    square = float(((wanted - mean)[differ] ** 2 / chance[differ]).sum())
    return max(0.0, 1 - free / square) if square > 0 else 0.0


def _mean_labels(rows: Part, place: int, column: TaskColumn) -> Floats | None:
    """The mean of a task's labels, or the share of each class, by their weights; None where nothing weighs."""
    classes = column.outputs if column.kind == "multiclass" else 1
    sums, all_in_all = np.zeros(classes), 0.0
    for shard in rows.shards:
        known = shard.known[:, place]
        labels, weights = (one[:, place][known].double().numpy() for one in (shard.labels, shard.weights))
        if classes > 1:
            sums += np.bincount(labels.astype(np.int64), weights, classes)
        else:
            sums += labels @ weights
        all_in_all += weights.sum()
    return sums / all_in_all if all_in_all > 0 else None


def _sigmoid(logits: Floats) -> Floats:
    p: Floats = 1 / (1 + np.exp(-np.clip(logits, -500, 500)))
    return p


def _softmax(logits: Floats) -> Floats:
    p: Floats = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _level(logits: Floats, above: Floats, counts: Floats, wanted: float) -> float:
    """What to add to logits so that the mean of above * p is what is wanted, by Newton's method between two ends."""
    low, high, shift = -FURTHEST, FURTHEST, 0.0
    for _ in range(50 if 0 < wanted < 1 else 0):
        p = _sigmoid(logits + shift)
        off, slope = float(counts @ (above * p)) - wanted, float(counts @ (above * p * (1 - p)))
        low, high = (low, shift) if off > 0 else (shift, high)
        newton = shift - off / slope if slope > 0 else math.nan
        found = newton if low < newton < high else (low + high) / 2
        if abs(found - shift) < 1e-7:
            break
        shift = found
    return shift


def _levels(logits: Floats, counts: Floats, wanted: Floats) -> Floats:
    """What to add to the logits of classes so that their mean probabilities are what is wanted, by Newton's method."""
    shifts = np.zeros(logits.shape[1])
    for _ in range(50):
        p = _softmax(logits + shifts)
        off = np.where(wanted > 0, wanted - counts @ p, 0)
        if np.abs(off).max() < 1e-7:
            break
        curvature = np.diag(counts @ p) - (p.T * counts) @ p
        shifts += np.clip(np.linalg.lstsq(curvature, off, rcond=1e-9)[0], -0.5, 0.5)
    return np.clip(shifts, -FURTHEST, FURTHEST)
