"""What a model that has learnt nothing comes to: the same prediction for every row."""

import numpy as np

from multigate.batch import output_columns
from multigate.bundle import ROWS
from multigate.data.prepared import Prepared
from multigate.evaluate import Array, Monitor, Scored, Space, spaces
from multigate.experiment import Experiment

SMALLEST = 1e-6
"""Share that a class without rows counts as."""


def chance(experiment: Experiment, metrics: dict[str, float]) -> float:
    """The number that chooses weights, higher is better, of metrics of ``constants``; 0 where the rows cannot tell."""
    value = Monitor(experiment.monitor, experiment.schema).choice(metrics)
    return value if np.isfinite(value) else 0.0


def constants(experiment: Experiment, prepared: Prepared) -> list[Space]:
    """What there is to score where all validation rows are predicted to be the mean of their labels."""
    schema, layout = experiment.schema, prepared.layout
    batches = list(prepared.looked_at(ROWS, experiment.valid_rows))
    labels, known, weights, groups = (
        np.concatenate([getattr(batch, name).numpy() for batch in batches])
        for name in ("labels", "known", "weights", "groups")
    )
    spans = output_columns(layout.tasks)
    logits = np.zeros((len(labels), spans[-1][1]), np.float32)
    conditionals = logits.copy()
    for at, task in enumerate(schema.tasks):
        (start, end), there = spans[at], known[:, at]
        logits[:, start:end] = _constant(task.kind, labels[there, at], end - start)
        parent = None if task.given is None else schema.task_names.index(task.given)
        reached = there if parent is None else there & known[:, parent] & (labels[:, parent] == 1)
        conditionals[:, start:end] = _constant(task.kind, labels[reached, at], end - start)
    return spaces(schema, prepared.encoder, Scored(logits, conditionals, labels, known, weights, groups))


def _constant(kind: str, labels: Array, outputs: int) -> Array:
    """Outputs (O,) that say what labels (R,) are on average."""
    if not len(labels):
        return np.zeros(outputs, np.float32)
    if kind == "regression":
        return np.full(outputs, labels.mean(), np.float32)
    classes = 2 if kind == "binary" else outputs
    shares = np.bincount(labels.astype(np.int64), minlength=classes) / len(labels)
    logs = np.log(np.maximum(shares, SMALLEST))
    return np.asarray([logs[1] - logs[0]] if kind == "binary" else logs, np.float32)
