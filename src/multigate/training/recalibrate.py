"""Recalibration: after training, a curve for each task that makes its probabilities, or its totals, true to size."""

import copy
import math
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch

from multigate.batch import Batch
from multigate.bundle import ROWS, Bundle
from multigate.calibration import FITS, Curve, Method, true_in_total
from multigate.data.encoder import Encoder
from multigate.data.prepared import Prepared
from multigate.errors import ExperimentError, nearest
from multigate.evaluate import forward, spaces
from multigate.experiment import Experiment
from multigate.model import Model
from multigate.run import bundle_of
from multigate.schema import Schema, Task


def recalibrate(bundle: Bundle | str | PathLike[str], table: Any, method: Method = "isotonic") -> Bundle:
    """The bundle (of a run, loaded) with curves fitted to a table with labels, in place of those it had.

    The one given stays as it was; the new one computes with torch, in the precision of the old one. The table's rows
    are taken as they are met in use: no correction for ``negatives_kept`` is added. A task of which the table knows one
    class only, or no label, keeps the curve it had, and so does one that ``platt`` would turn upside down.
    Raises ``DataError`` where label columns are missing.
    """
    old = bundle_of(bundle)
    model = copy.deepcopy(old.model)
    model.calibration = None
    batches = (batch for batch, _ in old.batches(table, labels=True))
    curves = _fitted(old.schema, old.encoder, model, batches, torch.device("cpu"), method)
    return Bundle(old.experiment, old.encoder, model, {**old.curves, **curves}, old.precision)


def fit_curves(experiment: Experiment, prepared: Prepared, model: Model, device: torch.device) -> dict[str, Curve]:
    """Curves by task: fitted to the validation rows if the experiment asks for it, then moved by what sampling took."""
    curves: Mapping[str, Curve] = {}
    if experiment.recalibrate != "none":
        batches = prepared.valid.batches(ROWS)
        curves = _fitted(experiment.schema, prepared.encoder, model, batches, device, experiment.recalibrate)
    return {**curves, **sampling_curves(experiment.schema, curves)}


def sampling_curves(schema: Schema, curves: Mapping[str, Curve] = {}) -> dict[str, Curve]:
    """Of the tasks with ``negatives_kept``: their curve, a straight line if none is given, moved by what sampling took.

    Where a share w of the rows with label 0 was kept, a model's odds are 1 / w times too high, so log w is added to
    its logit (King and Zeng 2001, section 4.1). Rows that a child's sampling took had a label of 1 of all tasks above
    it, whose curves name it as ``thinned``.
    """
    kept = {task.name: task.negatives_kept for task in schema.tasks if task.negatives_kept < 1}
    moved = {name: curves.get(name, Curve()).shifted(math.log(share)) for name, share in kept.items()}
    for at in reversed(schema.order()):  # children first
        name = schema.tasks[at].name
        thinned = [one for one in schema.tasks if one.given == name and _takes_rows(one, moved)]
        if thinned:
            curve = moved.get(name, curves.get(name, Curve()))
            moved[name] = curve.with_(thinned=tuple((one.name, one.negatives_kept) for one in thinned))
    return moved


def _takes_rows(task: Task, curves: Mapping[str, Curve]) -> bool:
    """Whether rows where its parent is 1 were left out, for its own label or one below."""
    return task.negatives_kept < 1 or bool(task.name in curves and curves[task.name].thinned)


def _fitted(
    schema: Schema, encoder: Encoder, model: Model, batches: Iterable[Batch], device: torch.device, method: Method
) -> dict[str, Curve]:
    """The curve of each binary task's tower: of p(task | parent), on the rows where the parent is 1, in a chain.

    Regressions through ``log1p`` are moved, whatever the method, so that they are true in total.
    """
    if method not in FITS:
        raise ExperimentError(f"recalibration by {method!r}: {nearest(method, FITS)}")
    found = {space.name: space for space in spaces(schema, encoder, forward(model, batches, device))}
    curves = {}
    for task, stats in zip(schema.tasks, encoder.stats, strict=True):
        space = found[f"{task.name}|{task.given}" if task.given else task.name]
        curve = None
        if task.kind == "binary":
            curve = FITS[method](space.outputs, space.labels, space.weights)
        elif task.kind == "regression" and task.transform == "log1p":
            offset = true_in_total(space.outputs, space.labels, space.weights)
            curve = None if offset is None else Curve().shifted(offset / stats.sd)
        if curve is not None:
            curves[task.name] = curve
    return curves
