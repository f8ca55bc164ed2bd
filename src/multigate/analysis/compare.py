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
from rich.table import Table

from multigate.analysis.boosting import available, boosting_baseline
from multigate.analysis.budget import TOLERANCE, multiply_adds, within_budget
from multigate.analysis.intervals import Summary, mtl_gain, summary
from multigate.bundle import ROWS
from multigate.data.prepared import Prepared
from multigate.data.rows import join, pick_tasks
from multigate.errors import ExperimentError, RunError, nearest
from multigate.evaluate import Scored, forward, scores, spaces
from multigate.experiment import Experiment
from multigate.metrics import HIGHER_IS_BETTER, PRIMARY
from multigate.run import claim, stored_values
from multigate.schema import Schema
from multigate.sharing import STRUCTURES
from multigate.training.loop import CHECKPOINT, choose_device, fit
from multigate.training.progress import Reporter
from multigate.training.train import PREPARED, open_sources, prepare_sources

BASELINE = "single_task"
BOOSTING = "boosting"
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
        return list(dict.fromkeys(row["structure"] for row in self.rows))

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

    def metrics(self) -> list[str]:
        """The main metric of every task, and of every conditional after its task."""
        names = []
        for task in self.schema.tasks:
            names.append(f"{task.name}/{PRIMARY[task.kind]}")
            if task.given:
                names.append(f"{task.name}|{task.given}/{PRIMARY[task.kind]}")
        return names

    def table(self) -> Table:
        """The comparison for people: mean and 95 % interval over seeds, sd, gain, cost."""
        seeds = len({row["seed"] for row in self.rows})
        rows = self.rows[0]["rows"]
        title = (
            f"{self.rows[0]['part']} rows ({rows:,}), {seeds} seed{'s' * (seeds != 1)}: mean ± half 95 % interval (sd)"
        )
        table = Table(title=title, title_justify="left")
        table.add_column("structure")
        for metric in self.metrics():
            table.add_column(metric, justify="right")
            if len(self.values(BASELINE, metric)) and len(self.structures) > 1:
                table.add_column("gain", justify="right")
        for name in ("parameters", "multiply-adds", "rows/s"):
            table.add_column(name, justify="right")
        for structure in self.structures:
            table.add_row(*self._cells(structure))
        return table

    def _cells(self, structure: str) -> list[str]:
        cells = [structure]
        for metric in self.metrics():
            values = self.values(structure, metric)
            cells.append(_spread(self.summary(structure, metric)) if values else "")
            if len(self.values(BASELINE, metric)) and len(self.structures) > 1:
                gain = self.gain(structure, metric)
                cells.append("" if gain is None else f"{gain.mean:+.4f}{_half(gain)}{' *' if gain.clear else ''}")
        for column in ("parameters", "multiply_adds", "rows_per_second"):
            found = list(self.values(structure, column).values())
            cells.append(f"{sum(found) / len(found):,.0f}" if found else "")
        return cells


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
    factor on its widths. ``single_task`` is T separate models: own embeddings, own early stopping, the full budget
    each. Weights are chosen on validation rows alone. Called again with the same folder it goes on where it stopped;
    ``runs.parquet`` there has one row per run. A gradient-boosting row per task is added where scikit-learn is there.
    """
    chosen = choose_device(device)
    for name in structures:
        if name not in STRUCTURES:
            raise ExperimentError(f"there is no structure {name!r}; {nearest(name, STRUCTURES)}")
    folder = Path(out)
    sources = open_sources(experiment, tables or {})
    claim(folder, experiment, resume=True)
    with Reporter(quiet=quiet) as report:
        prepared = prepare_sources(experiment, sources, folder / PREPARED, report)
        budget = multiply_adds(experiment.sharing, experiment, prepared.encoder)
        rows: list[Row] = []
        for seed in range(seeds):
            # boosting does not depend on the seed: the rows are the same
            for name in (*structures, *([BOOSTING] if seed == 0 and boosting and available() else [])):
                place = folder / "runs" / f"{name}-{seed}"
                row = _remembered(place)
                if row is None:
                    report.line(f"{name}, seed {seed}")
                    if name == BOOSTING:
                        row = _boost(prepared, experiment, seed)
                    else:
                        row = _train(experiment.with_(seed=seed), name, budget, prepared, place, chosen, report)
                    row = {"structure": name, "seed": seed, **row}
                    place.mkdir(parents=True, exist_ok=True)
                    (place / RESULT).write_text(json.dumps(row, indent=1), encoding="utf-8")
                    _write_rows(folder)
                rows.append(row)
    order = [*structures, BOOSTING]
    rows.sort(key=lambda row: (order.index(row["structure"]), row["seed"]))
    return Comparison(folder, experiment.schema, rows)


def open_comparison(path: str | Path) -> Comparison:
    """The comparison in a folder, as far as it got. Raises ``RunError`` where there is none."""
    folder = Path(path)
    if not (folder / RUNS).is_file():
        raise RunError(f"there is no comparison in {folder}: it has no {RUNS}")
    rows = pq.read_table(folder / RUNS).to_pylist()
    return Comparison(folder, Schema.model_validate(stored_values(folder)["schema"]), rows)


def _train(
    experiment: Experiment,
    name: str,
    budget: int,
    prepared: Prepared,
    place: Path,
    device: torch.device,
    report: Reporter,
) -> Row:
    """One structure, one seed: its cost and its metrics. ``single_task`` sums the cost of its T models."""
    own = experiment.sharing if experiment.sharing.to_dict()["structure"] == name else STRUCTURES[name]()
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
        schema = (
            experiment.schema if places is None else experiment.schema.only([experiment.schema.tasks[places[0]].name])
        )
        # a single-task model is chosen on its own task, whatever the joint ones are chosen on
        one = experiment.with_(sharing=structure, monitor="mean" if places is not None else experiment.monitor)
        folder = place if places is None else place / schema.tasks[0].name
        folder.mkdir(parents=True, exist_ok=True)
        fitted = fit(one, prepared, folder, device=device, report=report, tasks=places, resume=True)
        chosen = list(places if places is not None else tasks)
        batches = (pick_tasks(batch, chosen) for batch in part.batches(ROWS))
        found = scores(spaces(schema, prepared.encoder, forward(fitted.model, batches, device), chosen))
        metrics |= found
        costs["parameters"] += sum(p.numel() for p in fitted.model.parameters())
        costs["multiply_adds"] += fitted.model.multiply_adds()
        costs["seconds"] += fitted.seconds
        costs["epochs"] += fitted.epochs
        (folder / CHECKPOINT).unlink(missing_ok=True)
    trained = prepared.train.rows * costs["epochs"]
    return row | costs | {"rows_per_second": trained / max(costs["seconds"], 1e-9) / len(trainings)} | metrics


def _boost(prepared: Prepared, experiment: Experiment, seed: int) -> Row:
    """Gradient boosting, one model per task, on the same encoded rows; conditionals it has none of."""
    part = prepared.test or prepared.valid
    train, valid, scored = (join(list(one.batches(ROWS))) for one in (prepared.train, prepared.valid, part))
    began = time.perf_counter()
    outputs = boosting_baseline(prepared.layout, train, valid, scored, seed).test
    seconds = time.perf_counter() - began
    columns = [outputs[task.name].reshape(scored.rows, -1) for task in experiment.schema.tasks]
    logits = np.concatenate(columns, axis=1).astype(np.float32)
    labels = (one.numpy() for one in (scored.labels, scored.known, scored.weights, scored.groups))
    found = spaces(experiment.schema, prepared.encoder, Scored(logits, logits, *labels))
    metrics = scores(space for space in found if "|" not in space.name)
    about = {"part": "test" if prepared.test else "validation", "rows": scored.rows, "seconds": seconds}
    return about | metrics


def _remembered(place: Path) -> Row | None:
    """The result of a run that was finished earlier."""
    file = place / RESULT
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _write_rows(folder: Path) -> None:
    """All finished runs as Parquet, one row each; a metric a run does not have is null."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob(f"runs/*/{RESULT}"))]
    path = folder / RUNS
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    temporary = path.with_suffix(".writing")
    pq.write_table(table, temporary)
    temporary.replace(path)


def _spread(one: Summary) -> str:
    return f"{one.mean:.4f}{_half(one)}" + (f" ({one.sd:.4f})" if one.n > 1 else "")


def _half(one: Summary) -> str:
    """Half the interval; nothing for a single seed, which has none."""
    return f" ±{(one.high - one.low) / 2:.4f}" if one.n > 1 else ""
