"""A model card: what a model predicts, from what, how well and where not, as Markdown that Hugging Face reads."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from multigate.analysis.inspection import inspect_model
from multigate.analysis.reliability import reliability
from multigate.analysis.subject import Subject
from multigate.data.prepared import open_prepared
from multigate.data.vocabulary import UNSEEN
from multigate.evaluate import Space, intervals, scores, spaces
from multigate.folders import at_home
from multigate.formats import directed, interval, listed, number, share
from multigate.report.origin import chosen_by, facts, typical
from multigate.report.trained import Trained
from multigate.report.write import target
from multigate.run import Run, open_run
from multigate.schema import Task
from multigate.sharing import STRUCTURES
from multigate.training.train import BUNDLE, PREPARED
from multigate.writing import write_text
from multigate.yaml_text import dump_yaml

FEW = 100
"""Fewer rows of a class say little of how well it is ranked."""
NOTABLE = 0.01
"""Smaller shares of rows with a value never seen are not told."""
NAMES = 40
"""Features that are named."""
KINDS = {"binary": "classification", "multiclass": "classification", "regression": "regression"}
HUB = {"auc": "roc_auc", "pr_auc": "average_precision", "r2": "r_squared"}
"""Metrics that Hugging Face calls otherwise."""

_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\s]+")
_MARKUP = re.compile(r"[\\`*{}\[\]<>|~#$&@]|:(?=//)|(?<![^\W_])_|_(?![^\W_])")


def write_card(run: str | Path | Run, out: str | Path) -> Path:
    """Write a model card of one run, a Markdown file, and return where it is.

    Metrics with bootstrap intervals, calibration and gates are of the validation rows prepared beside the run; where
    they are gone, its card has the metrics that the training kept. Test rows are never looked at. The file appears
    only once it is whole.

    Raises ``RunError`` where there is no run or ``out`` cannot be written or does not end in ``.md``.
    """
    at = target(at_home(out), "a model card is a Markdown file", ".md")
    chosen = run if isinstance(run, Run) else open_run(run)
    one = _Card(chosen, chosen.folder.resolve().name)
    write_text(at, _page(one, at))
    return at


class _Card(Trained):
    """A run, and what its validation rows say of it, as far as they are still there."""

    @cached_property
    def prepared(self) -> dict[str, Any]:
        """What is known of the prepared rows."""
        found = open_prepared(self.folder / PREPARED)
        return found.manifest if found else {}

    @cached_property
    def seen(self) -> Subject | None:
        return self.looked_at if self.prepared and self.rows.get("valid") else None

    @cached_property
    def spaces(self) -> list[Space]:
        return spaces(self.seen.bundle.schema, self.encoder, self.seen.scored()) if self.seen else []

    @cached_property
    def metrics(self) -> dict[str, float]:
        return scores(self.spaces) if self.seen or not self.run else self.run.best

    @property
    def tables(self) -> dict[str, str]:
        """Names of the tables of each part, without their folders."""
        return {part: Path(name).name for part, name in self.prepared.get("tables", {}).items()}


def _page(one: _Card, at: Path) -> str:
    return "\n\n".join([f"---\n{dump_yaml(_front(one))}---", *_body(one, at)]) + "\n"


def _front(one: _Card) -> dict[str, Any]:
    """The front matter: what the Hub files a model under."""
    tasks = one.experiment.schema.tasks
    kinds = {name: f"tabular-{KINDS[it.kind]}" for it in tasks for name in (it.name, f"{it.name}|{it.given}")}
    dataset = {"type": "tabular", "name": one.tables.get("train", "training table"), "split": "validation"}
    results: dict[str, Any] = {}
    for name, value in one.metrics.items():
        space, _, metric = name.rpartition("/")
        if math.isfinite(value):
            entry = {"task": {"type": kinds[space], "name": space}, "dataset": dict(dataset), "metrics": []}
            figure = {"type": HUB.get(metric, metric), "name": metric, "value": float(f"{value:.6g}")}
            results.setdefault(space, entry)["metrics"].append(figure)
    used = {figure["type"] for entry in results.values() for figure in entry["metrics"]}
    return {
        "library_name": "multigate",
        "pipeline_tag": next(iter(kinds.values())),
        "tags": ["multi-task-learning", *dict.fromkeys(kinds.values()), one.experiment.sharing.name],
        "metrics": sorted(used),
        "model-index": [{"name": one.name, "results": list(results.values())}],
    }


def _body(one: _Card, at: Path) -> Iterator[str]:
    experiment, schema = one.experiment, one.experiment.schema
    read = [feature for feature in schema.features if feature.biased is None]
    biasing = [feature for feature in schema.features if feature.biased is not None]
    yield f"# {_text(one.name)}"
    yield (
        f"A multi-task model ({_text(experiment.sharing.name)}) that predicts {_text(listed(schema.task_names))} from "
        f"{len(read)} feature{'' if len(read) == 1 else 's'} of a table's row, trained with multigate."
    )
    yield "## What it predicts"
    yield _table(
        ("task", "kind", "label", "of which rows", "known labels in training", "base rate or typical value"),
        [_task(one, place, task) for place, task in enumerate(schema.tasks)],
        words=4,
    )
    outputs = [f"{output.name} = {output.expression}" for output in schema.outputs]
    yield from [f"From these it computes {_text(listed(outputs, most=NAMES))}."] if outputs else []
    yield "## What it was trained on"
    yield _table(("", ""), [*_rows(one), *facts(one).items()], words=2)
    yield "## What it reads"
    kinds = dict.fromkeys(feature.kind for feature in read)
    of_kind = {kind: [feature.name for feature in read if feature.kind == kind] for kind in kinds}
    rows = [(kind, str(len(names)), listed(names, most=NAMES)) for kind, names in of_kind.items()]
    yield _table(("kind", "features", "names"), rows, words=3)
    told = [f"{feature.name} ({feature.biased})" for feature in biasing]
    yield from (
        [f"Read in training alone, to explain a task's bias away: {_text(listed(told, most=NAMES))}."] if told else []
    )
    yield from _quality(one)
    yield from _gates(one)
    yield "## How to use it"
    yield _usage(one, at)
    yield "## Limitations"
    yield "\n".join(f"- {_text(limit)}" for limit in _limits(one))


def _task(one: _Card, place: int, task: Task) -> tuple[str, ...]:
    stats = one.encoder.stats[place]
    values = task.positive if isinstance(task.positive, tuple) else (task.positive,)
    label = f"column {task.source}" + (f" is {' or '.join(map(str, values))}" if task.positive is not None else "")
    label += f", one of {listed(stats.classes)}" if task.kind == "multiclass" else ""
    of = f"where {task.where} is 1" if task.where else "all"
    if task.given:
        of += f", as {task.name}|{task.given} times {task.given}; {task.name}|{task.given} where {task.given} is 1"
    of += f"; weighted by {task.sample_weight}" if task.sample_weight else ""
    known = f"{stats.known:,} ({share(stats.known / max(one.encoder.rows, 1))})"
    return task.name, task.kind, label, of, known, typical(place, task, stats, one.encoder)


def _rows(one: _Card) -> Iterator[tuple[str, str]]:
    """Where the rows came from, as far as the prepared ones tell."""
    cuts = one.prepared.get("thresholds", {})
    if one.tables:
        yield "training table", one.tables["train"]
        yield "validated on", one.tables.get("valid", "rows set aside from the training table")
    if "valid_from" in cuts:
        until = f", before {cuts['test_from']}" if "test_from" in cuts else ""
        yield "training window", f"{one.experiment.schema.time} before {cuts['valid_from']}"
        yield "validation window", f"{one.experiment.schema.time} from {cuts['valid_from']}{until}"


def _quality(one: _Card) -> Iterator[str]:
    """Metrics and calibration."""
    bounds = intervals(one.spaces)
    yield "## How good it is"
    if one.seen:
        yield f"On {one.seen.rows}, with 95 % intervals from drawing the rows anew; no test row was looked at."
    else:
        yield "On the validation rows, as the training kept it; without intervals, for the rows are no longer there."
    rows = []
    for name, value in one.metrics.items():
        task, _, metric = name.rpartition("/")
        rows.append((task, directed(metric), number(value), interval(*bounds.get(name, (math.nan, math.nan)))))
    yield _table(("task", "metric", "validation", "95 % interval"), rows, words=2)
    curves = reliability(one.seen, bins=10) if one.seen else ()
    if curves:
        yield "### Calibration"
        yield "The same rows by rising prediction, in bins of equally many: what was predicted, and what happened."
    for curve in curves:
        yield f"{_text(curve.target)} (mean distance {number(curve.ece)}):"
        bins = zip(curve.rows, curve.predicted, curve.observed, curve.low, curve.high, strict=True)
        told = [(f"{many:,}", number(p), number(seen), interval(low, high)) for many, p, seen, low, high in bins]
        yield _table(("rows", "predicted", "observed", "95 % interval"), told, words=0)


def _gates(one: _Card) -> Iterator[str]:
    """The mean weight each reader gives each expert, and what calls for an action."""
    if one.seen is None:
        return
    found = inspect_model(one.seen, importance=False)
    learned = [(at, level) for at, level in enumerate(found.levels, 1) if level.learned]
    if learned:
        yield "## What its tasks share"
        yield f"Mean gate weights on {found.rows}: how much a column's task reads of a row's expert."
    for at, level in learned:
        yield from [f"Level {at}:"] if len(found.levels) > 1 else []
        gates = [*zip(level.mean, level.mask, strict=True)]
        rows = [
            (source, *(f"{mean[s]:.3f}" if mask[s] else "" for mean, mask in gates))
            for s, source in enumerate(level.sources)
        ]
        yield _table(("expert", *level.readers), rows)
    yield from ["\n".join(f"- To note: {_text(finding.what)}." for finding in found.findings)] if found.findings else []


def _usage(one: _Card, at: Path) -> str:
    place = os.path.relpath((one.folder / BUNDLE).resolve(), at.resolve().parent)
    own = type(one.experiment.sharing)
    known = "" if own in STRUCTURES.values() else f", structures=[{own.__name__}]"
    again = "To train it again, where its tables are: `multigate train experiment.yaml`, the file in the run's folder."
    return f"""From the folder of this card; a table or its path does as well as a row:

```python
import multigate as mg

bundle = mg.load({place!r}{known})
row = dict.fromkeys(bundle.schema.columns(labels=False, carried=False))  # nothing is known of it: fill in what is
print(bundle.predict(row))
```{f"{chr(10)}{chr(10)}{again}" if one.experiment.train else ""}"""


def _limits(one: _Card) -> Iterator[str]:
    """What the rows say about where not to trust it."""
    experiment, encoder = one.experiment, one.encoder
    by = chosen_by(one)
    by = f"the {by}" if by.startswith("mean of ") else by
    yield f"Its weights were chosen by {by} on validation rows, so metrics there flatter it a little."
    if experiment.recalibrate != "none":
        told = "calibration there flatters it" if one.seen else "the metrics here are from before that"
        yield f"Its probabilities were recalibrated on the validation rows, so {told}."
    for task, stats in zip(experiment.schema.tasks, encoder.stats, strict=True):
        if task.weight == 0:
            yield f"{task.name} had weight 0: no loss of it was learnt from, and its predictions are of no use."
        if task.where:
            yield f"{task.name} was learnt only where {task.where} is 1; elsewhere its predictions are untested."
        elif stats.known < encoder.rows:
            part = share(1 - stats.known / encoder.rows)
            made_up = stats.followed is not None and stats.followed < 1 and not task.sample_weight
            weighed = f"; where {task.given} is 1 the others count for them" if made_up else ""
            yield (
                f"{task.name} is unknown in {part} of the training rows{weighed}; no figure tells if they are like the "
                "others."
            )
        if stats.violations:
            yield f"In {stats.violations:,} training rows {task.name} is 1 though {task.given} is 0."
        if task.negatives_kept < 1:
            reached = f"{task.given} is 1 and " if task.given else ""
            yield (
                f"The tables kept {share(task.negatives_kept)} of the rows where {reached}{task.name} is 0; "
                "predictions are corrected for that, the rows that metrics and calibration are of are not."
            )
    if one.seen:
        yield from _of_rows(one, one.seen)


def _of_rows(one: _Card, seen: Subject) -> Iterator[str]:
    """Tasks with too few rows or probabilities that are off, features with new values."""
    for space in one.spaces:
        labels = space.labels if space.weights is None else space.labels[space.weights > 0]
        rows = len(labels)
        what = "validation rows" if rows == len(space.labels) else "validation rows that weigh anything"
        if space.kind == "binary":
            ones = int(labels.sum())
            value, fewer = min((1, ones), (0, rows - ones), key=lambda pair: pair[1])
            if fewer < FEW:
                yield f"{space.name} is {value} in {fewer:,} of {rows:,} {what}: its metrics are rough."
        elif rows < FEW:
            yield f"{space.name} is known in {rows:,} {what}: its metrics are rough."
        times = one.metrics.get(f"{space.name}/calibration", math.nan)  # of binary tasks and of amounts
        if math.isfinite(times) and not 0.9 <= times <= 1.1:
            told = "often as it happens" if space.kind == "binary" else "large as it is, in total,"
            yield f"{space.name} is predicted {times:.2f} times as {told} on validation rows."
    unseen = (np.concatenate([batch.categories.numpy() for batch in seen.batches]) == UNSEEN).mean(axis=0)
    for column, part in zip(one.encoder.layout.categories, unseen, strict=True):
        if part >= NOTABLE:
            yield f"{share(float(part))} of validation rows have a {column.feature} that no training row has."


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table; columns after the first ``words`` hold numbers."""
    line = ["---" if at < words else "--:" for at in range(len(head))]
    cells = [[_text(cell) for cell in row] for row in (head, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], line, *cells[1:]))


def _text(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKUP.sub(lambda found: "\\" + found[0], _BREAKS.sub(" ", text).strip())
