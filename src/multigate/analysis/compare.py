"""Several structures on the same rows, seeds and budget: what does sharing gain?"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.console import Group
from rich.table import Table

from multigate.analysis.boosting import available, boosting_baseline
from multigate.analysis.budget import TOLERANCE, multiply_adds, within_budget
from multigate.analysis.intervals import Summary, mtl_gain, summary
from multigate.bundle import ROWS, Bundle, build_model
from multigate.data.encoder import Encoder
from multigate.data.prepared import Prepared
from multigate.data.rows import join, pick_tasks
from multigate.errors import ExperimentError, RunError, nearest
from multigate.evaluate import Scored, forward, scores, spaces
from multigate.experiment import Experiment, make_experiment
from multigate.metrics import HIGHER_IS_BETTER, PRIMARY
from multigate.run import MEMBERS, claimed, stored_values, strict
from multigate.schema import Schema
from multigate.sharing import STRUCTURES, VARIANTS, structure_named
from multigate.training.checkpoint import load_weights
from multigate.training.interrupts import interruptible
from multigate.training.loop import BEST, CHECKPOINT, Fitted, choose_device, fit
from multigate.training.progress import Reporter
from multigate.training.train import PREPARED, open_sources, prepare_sources
from multigate.writing import write_text, writing

ALL = (*STRUCTURES, *VARIANTS)
"""Every structure and variant there is, in the order of the zoo."""
BASELINE = "single_task"
BOOSTING = "boosting"
REACHED = "reached"
"""The prepared rows of conditionals: labels known only where the parent is 1."""
RUNS, RESULT = "runs.parquet", "result.json"
Row = dict[str, Any]


class Comparison:
    """The finished runs of a comparison. ``rows`` hold one dict per run: structure, seed, cost and metrics."""

    def __init__(self, folder: Path, schema: Schema, rows: Sequence[Row]) -> None:
        self.folder = folder
        self.schema = schema
        self.rows = list(rows)

    @property
    def structures(self) -> list[str]:
        """In the order of the zoo, those of one's own after it, boosting last."""
        order = {name: place for place, name in enumerate((*ALL, "", BOOSTING))}
        return sorted({row["structure"] for row in self.rows}, key=lambda name: (order.get(name, order[""]), name))

    def values(self, structure: str, column: str) -> dict[int, float]:
        """A column by seed; runs without it are left out."""
        return {
            row["seed"]: row[column]
            for row in self.rows
            if row["structure"] == structure and row.get(column) is not None
        }

    def summary(self, structure: str, metric: str) -> Summary:
        """Mean, sd and interval over the seeds."""
        return summary(list(self.values(structure, metric).values()))

    def gain(self, structure: str, metric: str) -> Summary | None:
        """MTL gain over the single-task models, paired by seed (Tang et al. 2020, Eq. 11)."""
        multi, single = self.values(structure, metric), self.values(BASELINE, metric)
        seeds = sorted(multi.keys() & single.keys())
        if structure in (BASELINE, BOOSTING) or not seeds:
            return None
        higher = HIGHER_IS_BETTER[metric.rpartition("/")[2]]
        return mtl_gain([multi[seed] for seed in seeds], [single[seed] for seed in seeds], higher)

    def bundle(self, structure: str, seed: int = 0) -> Bundle:
        """The trained model of one run, ready to predict; ``single_task``, being T models, has none of this kind."""
        place = self.folder / "runs" / f"{structure}-{seed}"
        row = _remembered(place)
        if row is None or "sharing" not in row:
            names = sorted({one["structure"] for one in self.rows} - {BASELINE, BOOSTING})
            found = f"{self.folder} holds no joint model {structure!r} of seed {seed}"
            raise RunError(f"{found}; {nearest(structure, names)}")
        own = make_experiment(stored_values(self.folder), name=str(self.folder))
        experiment = own.with_(seed=seed, sharing=json.loads(row["sharing"]))
        encoder = Encoder.load(self.folder / PREPARED / "encoder")
        with torch.random.fork_rng(devices=[]):
            model = build_model(experiment, encoder)
        model.load_state_dict(load_weights(place / BEST, torch.device("cpu")))
        return Bundle(experiment, encoder, model)

    def metrics(self) -> list[str]:
        """The main metric of every task, and of every conditional after its task; where rows have groups GAUC too."""
        found = []
        for metric in _main_metrics(self.schema):
            name = metric.rpartition("/")[0]
            grouped = self.schema.group is not None and self.schema.task(name.partition("|")[0]).kind == "binary"
            found += [metric, f"{name}/gauc"] if grouped else [metric]
        return found

    def table(self) -> Group:
        """The comparison for people: mean, sd, interval and MTL gain by task and structure; then what each costs."""
        return Group(self._quality(), self._cost())

    def _quality(self) -> Table:
        seeds = len({row["seed"] for row in self.rows})
        about = f"{self.rows[0]['part']} rows: {self.rows[0]['rows']:,}; seeds: {seeds}; intervals at 95 %"
        table = Table(title=about, title_justify="left")
        for name in ("task", "structure", "mean", "sd", "interval", "MTL gain over single task"):
            table.add_column(name, justify="left" if name in ("task", "structure") else "right")
        for metric in self.metrics():
            first = True
            for structure in self.structures:
                if self.values(structure, metric):
                    numbers = _numbers(self.summary(structure, metric))
                    table.add_row(metric if first else "", structure, *numbers, self._gain(structure, metric))
                    first = False
            table.add_section()
        return table

    def _gain(self, structure: str, metric: str) -> str:
        gain = self.gain(structure, metric)
        if gain is None:
            return ""
        text = f"{gain.mean:+.4f}"
        return text if gain.n == 1 else f"{text} [{gain.low:+.4f}, {gain.high:+.4f}]{' *' if gain.clear else '  '}"

    def _cost(self) -> Table:
        table = Table(caption="* the interval lies on one side of zero", caption_justify="left")
        table.add_column("structure")
        columns = {
            "parameters": "parameters",
            "multiply_adds": "multiply-adds a row",
            "rows_per_second": "training rows/s",
        }
        for name in columns.values():
            table.add_column(name, justify="right")
        for structure in self.structures:
            found = [list(self.values(structure, column).values()) for column in columns]
            if found[0]:
                table.add_row(structure, *(f"{sum(values) / len(values):,.0f}" for values in found))
        return table


def compare(
    experiment: Experiment,
    out: str | Path,
    *,
    structures: Sequence[str] = ("single_task", "shared_bottom", "omoe", "mmoe"),
    seeds: int = 5,
    device: str = "auto",
    tables: Mapping[str, Any] | None = None,
    boosting: bool = True,
    quiet: bool = False,
) -> Comparison:
    """Train each structure with seeds 0 .. seeds - 1 and score it on the test rows (validation rows without any).

    Every structure gets the multiply-adds per row of the experiment's own (sharing and towers, within 2 %) by one
    factor on its widths; a structure of one's own is compared under the name in its ``structure`` tag where it is the
    experiment's. ``single_task`` is T separate models: own embeddings, own early stopping, the full budget each; a task
    with a ``given`` parent has one more, trained on the rows where the parent is 1. Weights are chosen on validation
    rows alone. Curves of ``recalibrate`` are left out. Called again with the same folder it goes on where it stopped;
    ``runs.parquet`` there has one row per run. A gradient-boosting row per task is added where scikit-learn is there.
    """
    chosen = choose_device(device)
    known = {*ALL, experiment.sharing.name}
    for name in structures:
        if name not in known:
            raise ExperimentError(f"there is no structure {name!r}; {nearest(name, known)}")
        experiment.with_(sharing=structure_named(name) or experiment.sharing)  # refused now, not when its turn comes
    if experiment.warm_start is not None:
        raise ExperimentError("a comparison trains every model from the start; leave warm_start out")
    folder = Path(out)
    sources = open_sources(experiment, tables or {})
    with (
        interruptible(lambda: "the same command goes on from here"),
        claimed(folder, experiment, resume=True, progress=MEMBERS),
        Reporter(quiet=quiet, detail=False) as report,
    ):
        fresh = not (folder / MEMBERS).is_dir()
        prepared = prepare_sources(experiment, sources, folder / PREPARED, report, replace=fresh)
        reached = None
        if BASELINE in structures and any(task.given and not task.where for task in experiment.schema.tasks):
            reached = prepare_sources(_reached(experiment), sources, folder / REACHED, report, replace=fresh)
        budget = multiply_adds(experiment.sharing, experiment, prepared.encoder)
        rows: list[Row] = []
        for seed in range(seeds):
            # boosting does not depend on the seed: the rows are the same
            for name in (*structures, *([BOOSTING] if seed == 0 and boosting and available() else [])):
                place = folder / MEMBERS / f"{name}-{seed}"
                row = _remembered(place)
                if row is None:
                    if name == BOOSTING:
                        row = _boost(prepared, experiment, seed)
                    else:
                        seeded = experiment.with_(seed=seed)
                        row = _train(seeded, name, budget, prepared, reached, place, chosen, report)
                    row = {"structure": name, "seed": seed, **row}
                    place.mkdir(parents=True, exist_ok=True)
                    write_text(place / RESULT, json.dumps(row, indent=1))
                    _write_rows(folder)
                    shown = (
                        f"{metric} {row[metric]:.4f}"
                        for metric in _main_metrics(experiment.schema)
                        if row.get(metric) is not None
                    )
                    report.line(f"seed {seed}  {name:<14} {'  '.join(shown)}  {row['seconds']:.0f} s")
                rows.append(row)
        _write_rows(folder)  # a process killed after its last result had no time to
    return Comparison(folder, experiment.schema, rows)


def open_comparison(path: str | Path) -> Comparison:
    """The comparison in a folder, as far as it got. Raises ``RunError`` where there is none."""
    folder = Path(path)
    if not (folder / RUNS).is_file():
        raise RunError(f"there is no comparison in {folder}: it has no {RUNS}; name the --out folder of a comparison")
    try:
        rows = pq.read_table(folder / RUNS).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{folder / RUNS} cannot be read ({error}); the same multigate compare writes it anew") from None
    return Comparison(folder, Schema.model_validate(stored_values(folder)["schema"]), rows)


def _train(
    experiment: Experiment,
    name: str,
    budget: int,
    prepared: Prepared,
    reached: Prepared | None,
    place: Path,
    device: torch.device,
    report: Reporter,
) -> Row:
    """One structure, one seed: its cost and its metrics.

    ``single_task`` sums the cost of its T models, those of conditionals not counted: they answer another question.
    """
    own = experiment.sharing if experiment.sharing.name == name else structure_named(name)
    assert own is not None, name  # names were checked before anything was trained
    tasks = range(len(experiment.schema.tasks))
    trainings = [[task] for task in tasks] if name == BASELINE else [None]
    part = prepared.test or prepared.valid
    row: Row = {"part": "test" if prepared.test else "validation", "rows": part.rows}
    costs = {"parameters": 0, "multiply_adds": 0, "seconds": 0.0, "epochs": 0}
    metrics: dict[str, float] = {}
    for places in trainings:
        structure = within_budget(own, budget, experiment, prepared.encoder, places)
        cost = multiply_adds(structure, experiment, prepared.encoder, places)
        if abs(cost - budget) > TOLERANCE * budget:
            report.line(f"{name}: no width comes within {TOLERANCE:.0%} of {budget:,} multiply-adds; it has {cost:,}")
        one = experiment.with_(sharing=structure)
        folder = place if places is None else place / experiment.schema.tasks[places[0]].name
        fitted, found = _fit(one, prepared, places, folder, device, report)
        metrics |= found
        if places is None:
            row["sharing"] = json.dumps(structure.to_dict(full=True))
        costs["parameters"] += sum(p.numel() for p in fitted.model.parameters())
        costs["multiply_adds"] += fitted.model.multiply_adds()
        costs["seconds"] += fitted.seconds
        costs["epochs"] += fitted.epochs
        task = None if places is None else experiment.schema.tasks[places[0]]
        if reached is not None and task is not None and task.given and not task.where:
            _, found = _fit(_reached(one), reached, places, folder / "given", device, report)
            metrics |= {f"{task.name}|{task.given}/{metric.rpartition('/')[2]}": found[metric] for metric in found}
    trained = prepared.train.rows * costs["epochs"]
    return row | costs | {"rows_per_second": trained / max(costs["seconds"], 1e-9) / len(trainings)} | strict(metrics)


def _fit(
    experiment: Experiment,
    prepared: Prepared,
    places: list[int] | None,
    folder: Path,
    device: torch.device,
    report: Reporter,
) -> tuple[Fitted, dict[str, float]]:
    """A model of all tasks or of those at some places, and its metrics on the rows to compare on."""
    if places is None:
        schema, chosen = experiment.schema, list(range(len(experiment.schema.tasks)))
    else:
        schema, chosen = experiment.schema.only([experiment.schema.tasks[at].name for at in places]), places
        experiment = experiment.with_(monitor="mean")  # chosen on its own task, whatever the joint ones are chosen on
    folder.mkdir(parents=True, exist_ok=True)
    fitted = fit(experiment, prepared, folder, device=device, report=report, tasks=places, resume=True)
    part = prepared.test or prepared.valid
    batches = (pick_tasks(batch, chosen) for batch in part.batches(ROWS))
    found = scores(spaces(schema, prepared.encoder, forward(fitted.model, batches, device), chosen))
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return fitted, found


def _reached(experiment: Experiment) -> Experiment:
    """The experiment with labels known only where their ``given`` parent is 1: the rows that conditionals are about."""
    tasks = (
        task.with_(given=None, risk="joint", where=task.given) if task.given else task
        for task in experiment.schema.tasks
    )
    return experiment.with_(schema=experiment.schema.with_(tasks=tuple(tasks)))


def _boost(prepared: Prepared, experiment: Experiment, seed: int) -> Row:
    """Gradient boosting on the same encoded rows, one model per task and conditional."""
    part = prepared.test or prepared.valid
    train, valid, scored = (join(list(one.batches(ROWS))) for one in (prepared.train, prepared.valid, part))
    began = time.perf_counter()
    parents = experiment.schema.parents()
    outputs = boosting_baseline(prepared.layout, train, valid, scored, seed, parents=parents).test
    seconds = time.perf_counter() - began
    tasks = experiment.schema.tasks
    logits = _side_by_side([outputs[task.name] for task in tasks])
    conditionals = _side_by_side([outputs[f"{task.name}|{task.given}" if task.given else task.name] for task in tasks])
    labels = (one.numpy() for one in (scored.labels, scored.known, scored.weights, scored.groups))
    metrics = scores(spaces(experiment.schema, prepared.encoder, Scored(logits, conditionals, *labels)))
    about = {"part": "test" if prepared.test else "validation", "rows": scored.rows, "seconds": seconds}
    return about | strict(metrics)


def _side_by_side(outputs: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Outputs (R,) or (R, K) of each task as columns (R, O)."""
    return np.concatenate([one.reshape(len(one), -1) for one in outputs], axis=1).astype(np.float32)


def _main_metrics(schema: Schema) -> list[str]:
    names = []
    for task in schema.tasks:
        names.append(f"{task.name}/{PRIMARY[task.kind]}")
        if task.given:
            names.append(f"{task.name}|{task.given}/{PRIMARY[task.kind]}")
    return names


def _remembered(place: Path) -> Row | None:
    """The result of a run that was finished earlier."""
    return _read_result(place / RESULT) if (place / RESULT).is_file() else None


def _read_result(file: Path) -> Row:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}); delete it and run multigate compare again") from None


def _write_rows(folder: Path) -> None:
    """All finished runs as Parquet, one row each; a metric a run does not have is null."""
    rows = [_read_result(file) for file in sorted(folder.glob(f"{MEMBERS}/*/{RESULT}"))]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    with writing(folder / RUNS) as temporary:
        pq.write_table(table, temporary)


def _numbers(one: Summary) -> tuple[str, str, str]:
    """Mean, sd and interval; of one seed there is only the value itself."""
    if one.n == 1:
        return f"{one.mean:.4f}", "", ""
    return f"{one.mean:.4f}", f"{one.sd:.4f}", f"[{one.low:.4f}, {one.high:.4f}]"
