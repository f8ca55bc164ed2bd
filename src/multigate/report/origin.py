"""What was trained, and on what."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from multigate.analysis.comparison import spread
from multigate.data.encoder import Encoder
from multigate.data.labels import LabelStats
from multigate.evaluate import Monitor
from multigate.formats import listed, number, share
from multigate.report.blocks import Block, Folded, Table, Text
from multigate.report.trained import Trained
from multigate.schema import Task
from multigate.sharing import Structure

PARTS = {"train": "training", "valid": "validation"}
"""Words for the parts of a table."""


def models(trained: Sequence[Trained]) -> Iterator[Block]:
    """One column for each run and comparison: structure, rows, cost, versions."""
    told = [facts(one) for one in trained]
    names = list(dict.fromkeys(name for one in told for name in one))
    rows = tuple((name, *(one.get(name, "") for one in told)) for name in names)
    yield Table("What was trained", ("", *(one.name for one in trained)), rows, words=1 + len(trained))


def data(one: Trained) -> Iterator[Block]:
    """The tasks and features of one run or comparison, and its experiment file."""
    schema, encoder = one.experiment.schema, one.encoder
    kinds = Counter(feature.kind for feature in schema.features)
    yield Text(
        f"{len(schema.features)} features: {listed(f'{many} {kind}' for kind, many in kinds.most_common())}. "
        f"The encoder was fitted on {encoder.rows:,} training rows."
    )
    rows = [_task(place, task, encoder) for place, task in enumerate(schema.tasks)]
    head = ("task", "kind", "label and rows", "known", "base rate or typical value")
    yield Table("Tasks, as the training rows have them", head, tuple(rows), words=3)
    yield Folded(f"Experiment file of {one.name}", one.experiment.to_yaml())


def chosen_by(one: Trained) -> str:
    """What chose its weights: where the validation rows cannot tell every main metric, what they tell."""
    monitor = Monitor(one.experiment.monitor, one.experiment.schema)
    if monitor.name != "mean":
        return monitor.name
    told = monitor.counted(one.run.best) if one.run else monitor.main
    if told == monitor.main:
        return "mean of the tasks' main metrics"
    return f"mean of {listed(told)}" if len(told) > 1 else "".join(told)


def facts(one: Trained) -> dict[str, str]:
    """Structure, rows, cost and versions, for people."""
    experiment = one.experiment
    told = {
        "structure": _described(experiment.sharing),
        "towers": " x ".join(str(width) for width in experiment.tower.hidden) or "a single layer",
        "balance of losses": experiment.balance.method,
        "chosen by": chosen_by(one),
    }
    told |= {f"{PARTS.get(name, name)} rows": f"{many:,}" for name, many in one.rows.items()}
    if one.comparison:
        seeds = spread(one.comparison.seeds().values())
        told |= {"compared": listed(one.comparison.structures), "seeds": seeds}
    if one.run:
        summary = one.run.summary
        told |= {
            "seed": str(experiment.seed),
            "epochs": f"{summary['epochs']} of at most {experiment.epochs}",
            "parameters": f"{summary['parameters']:,}",
            "multiply-adds a row": f"{summary['multiply_adds']:,}",
            "training rows a second": f"{summary['rows_per_second']:,}",
            "training time": f"{summary['seconds']:,.1f} s",
            "device": summary["device"],
            "versions": ", ".join(f"{name} {version}" for name, version in summary["versions"].items()),
        }
    return told


def _described(structure: Structure) -> str:
    """The structure's name and sizes: its options that are numbers, or lists of numbers, of things.

    ``k`` is one where gates are sparse; else they read all there is.
    """
    options = structure.to_dict(full=True)
    dense = options.get("gating") == "softmax"
    sizes = [
        f"{name} {_size(value)}" for name, value in options.items() if _size(value) and not (dense and name == "k")
    ]
    gating = [f"gating {options['gating']}"] if "gating" in options and not dense else []
    return ", ".join([options["structure"], *gating, *sizes])


def _size(value: object) -> str:
    if isinstance(value, list):
        return " x ".join(map(str, value))
    return str(value) if type(value) is int else ""


def _task(place: int, task: Task, encoder: Encoder) -> tuple[str, ...]:
    stats = encoder.stats[place]
    about = [f"column {task.source}"] if task.source != task.name else []
    about += [f"given {task.given}"] if task.given else []
    about += [f"only where {task.where}"] if task.where else []
    about += [f"weight {task.weight:g}"] if task.weight != 1 else []
    about += ["auxiliary"] if task.auxiliary else []
    known = share(stats.known / max(encoder.rows, 1))
    return task.name, task.kind, ", ".join(about), known, typical(place, task, stats, encoder)


def typical(place: int, task: Task, stats: LabelStats, encoder: Encoder) -> str:
    """Share of ones, shares of the most frequent classes, or what the mean encoded label stands for: as labels count in
    training, by weight and for the unknown that they speak for."""
    if task.kind == "binary":
        return share(stats.average)
    if task.kind == "multiclass":
        shares = stats.shares or [many / max(stats.known, 1) for many in stats.counts]
        common = Counter(dict(zip(stats.classes, shares, strict=True))).most_common(3)
        return listed(f"{name} {share(part)}" for name, part in common)
    return number(float(encoder.decode(place, np.array([stats.average]))[0]))
