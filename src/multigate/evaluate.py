"""How good predictions are: each task scored on its own rows, in the label's own unit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from multigate.batch import Batch, output_columns
from multigate.data.encoder import Encoder
from multigate.data.missingness import weights_of
from multigate.data.rows import cuts, to_device
from multigate.errors import ExperimentError, nearest
from multigate.metrics import BY_KIND, HIGHER_IS_BETTER, LOSS, PRIMARY, bootstrap, score_task
from multigate.model import TOGETHER, Model
from multigate.precision import multiplying
from multigate.schema import Schema

Array = NDArray[np.float32]


class Scored(NamedTuple):
    """Outputs and labels of R rows: logits, conditionals (R, O); labels, weights, known (R, T); groups (R,)."""

    logits: Array
    conditionals: Array
    labels: Array
    known: NDArray[np.bool_]
    weights: Array
    groups: NDArray[np.int64]


class Space(NamedTuple):
    """One thing that is scored: a task, or a task given its parent, on the rows where its label means something."""

    name: str
    kind: str
    outputs: Array
    labels: Array
    weights: Array | None
    groups: NDArray[np.int64] | None


def forward(model: Model, batches: Iterable[Batch], device: torch.device, *, precision: str = "float32") -> Scored:
    """Run batches through a model in evaluation mode; everything comes back on the CPU."""
    training = model.training
    model.eval()
    parts: list[tuple[Array, ...]] = []
    with torch.inference_mode(), multiplying(precision, device):
        for whole in batches:
            for batch in cuts(whole, TOGETHER) if device.type == "cpu" else [whole]:
                at = to_device(batch, device)
                out = model(at.numbers, at.categories, at.bags)
                logits = out.logits.float().cpu().numpy()
                same = out.conditionals is out.logits
                conditionals = logits if same else out.conditionals.float().cpu().numpy()
                told = (one.cpu().numpy() for one in (batch.labels, batch.known, batch.weights, batch.groups))
                parts.append((logits, conditionals, *told))
    model.train(training)
    every, given, *others = zip(*parts, strict=True)
    logits = np.concatenate(every)
    same = all(one is other for one, other in zip(every, given, strict=True))
    return Scored(logits, logits if same else np.concatenate(given), *map(np.concatenate, others))


def spaces(schema: Schema, encoder: Encoder, scored: Scored, tasks: Sequence[int] | None = None) -> list[Space]:
    """What there is to score: every task on its known rows, every conditional on the rows where its parent is 1.

    ``schema`` holds the tasks that were trained; ``tasks`` are their places among the encoder's. Where labels of a task
    are unknown on a part of these rows where its parent is 1, the known ones count for them.
    """
    places = list(tasks if tasks is not None else range(len(schema.tasks)))
    spans = output_columns([encoder.layout.tasks[place] for place in places])
    grouped = schema.group is not None
    weighed = weights_of(schema, scored.labels, scored.known, scored.weights)
    found = []
    for t, task in enumerate(schema.tasks):
        start, end = spans[t]
        choices = [(task.name, scored.logits, scored.known[:, t])]
        if task.given is not None:
            parent = schema.task_names.index(task.given)
            reached = scored.known[:, t] & scored.known[:, parent] & (scored.labels[:, parent] == 1)
            choices.append((f"{task.name}|{task.given}", scored.conditionals, reached))
        for name, source, rows in choices:
            outputs, labels = source[rows, start:end], scored.labels[rows, t]
            if task.kind != "multiclass":
                outputs = outputs[:, 0]
            if task.kind == "regression":
                outputs, labels = encoder.decode(places[t], outputs), encoder.decode(places[t], labels)
            counts = weighed[rows, t]
            weights = counts if task.sample_weight or (counts != counts[:1]).any() else None
            groups = each_alone(scored.groups[rows]) if grouped else None
            found.append(Space(name, task.kind, outputs, labels, weights, groups))
    return found


def each_alone(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups (R,) in which a row of group 0, which is none, is a group of its own."""
    found = np.unique(groups, return_inverse=True)[1]
    return np.where(groups == 0, -1 - np.arange(len(groups)), found)


def scores(found: Iterable[Space]) -> dict[str, float]:
    """Metrics by ``<task>/<metric>`` or ``<task>|<parent>/<metric>``."""
    return {
        f"{space.name}/{metric}": value
        for space in found
        for metric, value in score_task(space.kind, space.outputs, space.labels, space.weights, space.groups).items()
    }


def intervals(found: Iterable[Space], *, replicates: int = 200, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Bootstrap intervals at 95 % of the same metrics; whole groups are drawn where there are groups."""
    return {
        f"{space.name}/{metric}": interval
        for space in found
        for metric, interval in bootstrap(
            space.kind, space.outputs, space.labels, space.weights, space.groups, replicates=replicates, seed=seed
        ).items()
    }


class Monitor:
    """The one number that chooses the best weights: any ``<task>/<metric>``, or the mean of the tasks' main metrics."""

    def __init__(self, name: str, schema: Schema) -> None:
        self.name = name
        alone = len(schema.tasks) == 1  # a single-task model of an auxiliary task is chosen on that task
        trained = [task for task in schema.tasks if task.weight > 0] or schema.tasks
        counted = [task for task in trained if alone or not task.auxiliary]
        self.main = [f"{task.name}/{PRIMARY[task.kind]}" for task in counted]
        self.losses = [f"{task.name}/{LOSS[task.kind]}" for task in counted]
        if name != "mean":
            task, _, metric = name.partition("/")
            conditionals = {f"{one.name}|{one.given}" for one in schema.tasks if one.given}
            names = {*schema.task_names, *conditionals}
            if task not in names:
                raise ExperimentError(f"monitor {name!r}: there is no task {task!r}; {nearest(task, names)}")
            kind = next((one.kind for one in schema.tasks if one.name == task), "binary")
            able = [one for one in BY_KIND[kind] if one != "gauc" or schema.group is not None]
            if metric not in able:
                known = metric in HIGHER_IS_BETTER
                why = f"{task!r} has no {metric}" if known else f"there is no metric {metric!r}"
                why += " without a column 'group' of the schema" if metric == "gauc" and kind == "binary" else ""
                raise ExperimentError(f"monitor {name!r}: {why}; {nearest(metric, able)}")
        elif not self.main:
            untrained = " or has weight 0" if any(task.weight == 0 for task in schema.tasks) else ""
            raise ExperimentError(
                f"monitor 'mean': every task is auxiliary{untrained}; name one '<task>/<metric>' instead"
            )

    def value(self, metrics: dict[str, float]) -> float:
        """Higher is better; NaN where the metric cannot be computed on these rows."""
        if self.name == "mean":
            # infinite where predictions are: worse than any other, not left out of the mean
            values = [metrics[name] for name in self.main if not np.isnan(metrics[name])]
            return float(np.mean(values)) if values else float("nan")
        if self.name not in metrics:
            raise ExperimentError(f"monitor {self.name!r} is not among the metrics; {nearest(self.name, metrics)}")
        value = metrics[self.name]
        return value if HIGHER_IS_BETTER[self.name.partition("/")[2]] else -value

    def choice(self, metrics: dict[str, float]) -> float:
        """What weights are chosen by, higher is better: the value, or less the mean loss where no main metric is there.

        That depends on the labels of the rows alone, so that it is the same in all epochs. NaN where neither is there.
        Beside other tasks an R2 below 0 counts as R2 / (1 - R2), above -1: it may be -100,000 where the training rows
        have labels far from all others, and would choose for all tasks.
        """
        value = self.value(metrics)
        if self.name != "mean":
            return value
        if not np.isnan(value):
            told = [metrics[name] for name in self.counted(metrics)]
            alone = len(told) == 1 or np.isinf(value)
            return value if alone else float(np.mean([one / (1 - one) if one < 0 else one for one in told]))
        losses = [metrics[name] for name in self._finite_losses(metrics)]
        return -float(np.mean(losses)) if losses else float("nan")

    @property
    def averaged(self) -> list[str]:
        """The tasks whose main metrics it is the mean of; none where it is a single metric."""
        return [name.rpartition("/")[0] for name in self.main] if self.name == "mean" else []

    def counted(self, metrics: Mapping[str, float]) -> list[str]:
        """The metrics that ``choice`` is the mean of."""
        if self.name != "mean":
            return [self.name]
        return [name for name in self.main if not np.isnan(metrics.get(name, np.nan))] or self._finite_losses(metrics)

    def _finite_losses(self, metrics: Mapping[str, float]) -> list[str]:
        return [name for name in self.losses if np.isfinite(metrics.get(name, np.nan))]
