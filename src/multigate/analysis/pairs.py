"""The trainings behind a verdict on pairs of tasks: all together, side by side, each alone, and in twos."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from multigate.analysis.affinity import Watch
from multigate.analysis.budget import TOLERANCE, multiply_adds, within_budget
from multigate.analysis.gates import divergences
from multigate.analysis.relatedness import Matrix, as_matrix, relatedness
from multigate.analysis.subject import Subject
from multigate.bundle import ROWS, Bundle
from multigate.data.prepared import Prepared
from multigate.data.rows import pick_tasks, to_device
from multigate.errors import RunError
from multigate.evaluate import forward, spaces
from multigate.experiment import Experiment
from multigate.metrics import PRIMARY, bootstrap, score_task
from multigate.model import Model
from multigate.run import difference, strict
from multigate.sealed import sealed, unsealed
from multigate.sharing import Structure
from multigate.training.fit import BEST, CHECKPOINT
from multigate.training.loop import Fitted, fit
from multigate.training.progress import Reporter
from multigate.unscored import why
from multigate.writing import write_text

RESULT = "result.json"
LOOKED_AT = 50_000
"""Validation rows, about, at most, that trained models are looked at with."""
Row = dict[str, Any]
"""What one training found, as JSON."""
Look = Callable[[Model], Row]
"""What there is to find in a trained model."""


class Trainings:
    """Trains models on prepared rows, each once: what is finished is read back from its folder.

    Every model has the multiply-adds per row of the experiment's own, within 2 % where whole widths allow it. Weights
    are those of the epoch with the best mean of the main metrics of the tasks in the model, auxiliary ones too.
    """

    def __init__(
        self,
        experiment: Experiment,
        prepared: Prepared,
        folder: Path,
        device: torch.device,
        report: Reporter,
        total: int,
    ) -> None:
        self.experiment = experiment.with_(
            schema=experiment.schema.with_(tasks=[task.with_(auxiliary=False) for task in experiment.schema.tasks]),
            embedding=experiment.embedding.with_(tables="shared"),  # x is what tasks are compared at
            monitor="mean",
            recalibrate="none",
        )
        self.prepared, self.folder, self.device, self.report, self.total = prepared, folder, device, report, total
        self.names = experiment.schema.task_names
        self.done = 0
        self.budget = multiply_adds(experiment.sharing, self.experiment, prepared.encoder)
        self._sizes: dict[tuple[str, tuple[int, ...]], Structure] = {}
        list(prepared.valid.shards)  # opened now: what is first read in inference mode has no gradients

    def together(self, seed: int) -> Row:
        """The experiment's own model of all tasks, watched: skills, affinity, gate divergences.

        If it was stopped, it starts again: what was seen until then is lost.
        """
        watch, places = Watch(), range(len(self.names))

        def look(model: Model) -> Row:
            return self._skills(model, places) | watch.affinity().to_dict(full=True) | {"gates": self._gates(model)}

        return self._once("together", "together", self.experiment.sharing, places, seed, look, watch)

    def side_by_side(self, structure: Structure, seed: int) -> Row:
        """Networks of the tasks' own on one x: skills and overlap."""
        places = range(len(self.names))

        def look(model: Model) -> Row:
            return self._skills(model, places) | {"overlap": self._overlap(model)}

        return self._once("side-by-side", "side by side", structure, places, seed, look)

    def alone(self, name: str, structure: Structure, place: int, seed: int) -> Row:
        """A model of one task, with a structure that goes by a name: metric and skill."""
        return self._once(
            f"alone-{place}-{name}", name, structure, [place], seed, lambda model: self._skills(model, [place])
        )

    def pair(self, name: str, structure: Structure, places: tuple[int, int], seed: int) -> Row:
        """A model of two tasks, with a structure that goes by a name: metrics."""
        return self._once(f"pair-{places[0]}-{places[1]}-{name}", name, structure, places, seed, lambda model: {})

    def _once(
        self,
        name: str,
        shown: str,
        structure: Structure,
        places: Sequence[int],
        seed: int,
        look: Look,
        watch: Watch | None = None,
    ) -> Row:
        place = self.folder / f"{name}-{seed}"
        self.done += 1
        if (place / RESULT).is_file():
            row = _read(place / RESULT)
            if (row.get("tasks"), row.get("seed")) != ([self.names[at] for at in places], seed):
                raise RunError(
                    f"{place / RESULT} is that of another training; delete it and run multigate relate again"
                )
            changed = difference(row.get("structure"), structure.to_dict(full=True), "structure")
            if changed:
                raise RunError(f"{place} was trained with other settings ({changed}); choose another folder")
            return row
        fitted = self._fit(structure, places, seed, place, watch)
        row = {
            "tasks": [self.names[at] for at in places],
            "seed": seed,
            "structure": structure.to_dict(full=True),
            "metrics": strict({self.metric(at): fitted.best[self.metric(at)] for at in places}),
            "multiply_adds": fitted.model.multiply_adds(),
            "seconds": round(fitted.seconds, 3),
            **look(fitted.model),
        }
        write_text(place / RESULT, json.dumps(sealed(row), indent=1))
        for left in (CHECKPOINT, BEST):  # the weights of many pairs would fill a disk
            (place / left).unlink(missing_ok=True)
        told = "  ".join(f"{metric} {value:.4f}" for metric, value in row["metrics"].items() if value is not None)
        self.report.line(f"{self.done}/{self.total}  seed {seed}  {shown:<13} {told}  {fitted.seconds:.0f} s")
        return row

    def _fit(self, structure: Structure, places: Sequence[int], seed: int, place: Path, watch: Watch | None) -> Fitted:
        place.mkdir(parents=True, exist_ok=True)
        return fit(
            self.experiment.with_(sharing=self._sized(structure, places), seed=seed),
            self.prepared,
            place,
            device=self.device,
            report=self.report,
            tasks=None if len(places) == len(self.names) else list(places),
            resume=watch is None,
            observe=watch,
        )

    def _sized(self, structure: Structure, places: Sequence[int]) -> Structure:
        """The structure, as wide as the budget allows for these tasks."""
        key = (json.dumps(structure.to_dict(full=True)), tuple(places))
        if key not in self._sizes:
            encoder = self.prepared.encoder
            sized = within_budget(structure, self.budget, self.experiment, encoder, places)
            cost = multiply_adds(sized, self.experiment, encoder, places)
            if abs(cost - self.budget) > TOLERANCE * self.budget:
                told = f"no width comes within {TOLERANCE:.0%} of {self.budget:,} multiply-adds; it has {cost:,}"
                self.report.line(f"{structure.name} of {len(places)} tasks: {told}")
            self._sizes[key] = sized
        return self._sizes[key]

    def metric(self, place: int) -> str:
        """The main metric of the task at a place, as models call it."""
        task = self.experiment.schema.tasks[place]
        return f"{task.name}/{PRIMARY[task.kind]}"

    def _skills(self, model: Model, places: Sequence[int]) -> Row:
        """Main metric and its standard error over rows, by task; whole groups are drawn where there are groups.

        Beside them, why the rows cannot score a task, of those that they cannot.
        """
        schema = self.experiment.schema.only([self.names[at] for at in places])
        batches = (pick_tasks(batch, places) for batch in self.prepared.valid.sample(ROWS, LOOKED_AT))
        scored = forward(model, batches, self.device)
        skills, reasons = {}, {}
        for space in spaces(schema, self.prepared.encoder, scored, places):
            if space.name in schema.task_names:  # conditionals are no tasks
                rows = (space.outputs, space.labels, space.weights, space.groups)
                metric = PRIMARY[space.kind]
                low, high = bootstrap(space.kind, *rows)[metric]
                both = score_task(space.kind, *rows)[metric], (high - low) / (2 * 1.96)
                skills[space.name] = [value if math.isfinite(value) else None for value in both]
                if math.isnan(both[0]):
                    reasons[space.name] = why(space)
        return {"skills": skills, "unscored": reasons}

    def _overlap(self, model: Model) -> Matrix:
        rows = tuple(self.prepared.valid.sample(ROWS, LOOKED_AT))
        bundle = Bundle(self.experiment, self.prepared.encoder, model.cpu())
        found = relatedness(Subject("side by side", bundle, rows, "validation rows")).overlap
        model.to(self.device)
        return found

    def _gates(self, model: Model) -> Matrix | None:
        """Divergences by row of the tasks' gates, (T, T), at the last level where each has one that is learnt."""
        wiring = model.sharing.wiring
        levels = [at for at, level in enumerate(wiring) if level.distribution and {*self.names} <= {*level.readers}]
        parts: list[NDArray[np.float32]] = []
        model.eval()
        with torch.inference_mode():
            for batch in self.prepared.valid.sample(ROWS, LOOKED_AT):
                at = to_device(batch, self.device)
                gates = model(at.numbers, at.categories, at.bags).gates
                if not (gates and levels):
                    return None
                parts.append(gates[levels[-1]].float().cpu().numpy())
        order = [wiring[levels[-1]].readers.index(name) for name in self.names]
        return as_matrix(divergences(np.concatenate(parts)[:, order]))


def _read(file: Path) -> Row:
    try:
        row = unsealed(dict(json.loads(file.read_text(encoding="utf-8"))))
        if not isinstance(row.get("metrics"), dict):
            raise ValueError("without metrics")
        return row
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}); delete it and run multigate relate again") from None
