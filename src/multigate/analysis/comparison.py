"""A comparison: what several structures, trained on the same rows, seeds and budget, came to."""

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from rich.console import Group
from rich.table import Table
from rich.text import Text

from multigate.analysis.intervals import Summary, mtl_gain, summary
from multigate.assembly import build_model
from multigate.bundle import Bundle
from multigate.data.prepared import Prepared
from multigate.engine import CPU
from multigate.errors import ExperimentError, RunError, nearest
from multigate.experiment import make_experiment, unknown_structure, with_balance, with_structures
from multigate.folders import EXPERIMENT, MEMBERS, SUMMARY, at_home, holds_members
from multigate.metrics import HIGHER_IS_BETTER, PRIMARY
from multigate.nn.blank import Blank
from multigate.options import explain
from multigate.run import stored_values
from multigate.schema import Schema
from multigate.sealed import unsealed
from multigate.sharing import STRUCTURES, VARIANTS, Structures
from multigate.training.checkpoint import load_weights
from multigate.training.fit import BEST
from multigate.training.recalibrate import sampling_curves
from multigate.training.train import PREPARED

ALL = (*STRUCTURES, *VARIANTS)
"""Every structure and variant there is, in the order of the zoo."""
BASELINE = "single_task"
BOOSTING = "boosting"
RUNS, RESULT = "runs.parquet", "result.json"
UNSCORED = "unscored"
"""Of a run: the tasks and conditionals that the rows cannot score, and why, as JSON."""
Row = dict[str, Any]


class Comparison:
    """The finished runs of a comparison. ``rows`` hold one dict per run: structure, seed, cost and metrics."""

    def __init__(self, folder: Path, schema: Schema, rows: Sequence[Row]) -> None:
        self.folder = folder
        self.schema = schema
        self.rows = list(rows)

    def __repr__(self) -> str:
        many = max(self.seeds().values(), default=0)
        return f"<Comparison in {self.folder}: {', '.join(self.structures)}; {many} seed{'s' * (many != 1)}>"

    @property
    def structures(self) -> list[str]:
        """In the order of the zoo, those of one's own after it, boosting last."""
        order = {name: place for place, name in enumerate((*ALL, "", BOOSTING))}
        return sorted({row["structure"] for row in self.rows}, key=lambda name: (order.get(name, order[""]), name))

    def seeds(self) -> dict[str, int]:
        """Of each structure but boosting, how many it was trained with."""
        found = {name: len({row["seed"] for row in self.rows if row["structure"] == name}) for name in self.structures}
        return {name: many for name, many in found.items() if name != BOOSTING} or found

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
        """MTL gain over the single-task models, paired by seed (Tang et al. 2020, Eq. 11); None without these.

        Raises ``ExperimentError`` for what has no direction, such as calibration, whose best value is 1.
        """
        multi, single = self.values(structure, metric), self.values(BASELINE, metric)
        seeds = sorted(multi.keys() & single.keys())
        if structure in (BASELINE, BOOSTING) or not seeds:
            return None
        higher = HIGHER_IS_BETTER.get(metric.rpartition("/")[2])
        if higher is None:
            raise ExperimentError(
                f"no gain is known in {metric!r}, of which neither more nor less is better; see summary"
            )
        return mtl_gain([multi[seed] for seed in seeds], [single[seed] for seed in seeds], higher)

    def bundle(self, structure: str, seed: int = 0, *, structures: Structures = ()) -> Bundle:
        """The trained model of one run, ready to predict; ``single_task``, being T models, has none of this kind.

        ``structures`` names structures of your own that it may be of. Corrected for ``negatives_kept``; the curves of
        ``recalibrate`` are not fitted in a comparison.
        """
        place = self.folder / MEMBERS / f"{structure}-{seed}"
        row = remembered(place)
        if row is None or "sharing" not in row:
            names = sorted({one["structure"] for one in self.rows} - {BASELINE, BOOSTING})
            found = f"{self.folder} holds no joint model {structure!r} of seed {seed}"
            seeds = sorted(self.values(structure, "seed")) if structure in names else []
            if seed in seeds:  # its scores are in the table of the comparison
                raise RunError(f"{place} is gone or not whole; run multigate compare again")
            advice = f"it has seeds {', '.join(map(str, seeds))}" if seeds else nearest(structure, names)
            raise RunError(f"{found}; {advice}")
        sharing = json.loads(row["sharing"])
        values = with_balance(stored_values(self.folder)) | {"seed": seed, "sharing": sharing}
        values = with_structures(values, structures)
        unknown = unknown_structure(f"comparison {self.folder}", values)
        if unknown is not None:
            raise RunError(unknown)
        experiment = make_experiment(values, name=str(self.folder))
        encoder = Prepared(self.folder / PREPARED).encoder
        with CPU, Blank():
            model = build_model(experiment, encoder)
        model.load_state_dict(load_weights(place / BEST, CPU))
        return Bundle(experiment, encoder, model, sampling_curves(experiment.schema))

    def metrics(self) -> list[str]:
        """The main metric of every task, and of every conditional after its task; where rows have groups GAUC too."""
        found = []
        for metric in main_metrics(self.schema):
            name = metric.rpartition("/")[0]
            grouped = self.schema.group is not None and self.schema.task(name.partition("|")[0]).kind == "binary"
            found += [metric, f"{name}/gauc"] if grouped else [metric]
        return found

    def lacks(self, structure: str, metric: str) -> bool:
        """Whether the runs of a structure have no such metric because the rows cannot tell it."""
        name = metric.rpartition("/")[0]
        told = any(name in _unscored(row) for row in self.rows if row["structure"] == structure)
        return told and not self.values(structure, metric)

    def notes(self) -> list[str]:
        """Which tasks and conditionals could not be scored on which rows, and why; and where seeds are not as many."""
        told = {name: (reason, row) for row in self.rows for name, reason in _unscored(row).items()}
        blank = [
            f"{name} cannot be scored on the {row['rows']:,} {row['part']} rows: {reason}"
            for name, (reason, row) in told.items()
        ]
        seeds = self.seeds()
        if len(set(seeds.values())) == 1:
            return blank
        many = ", ".join(f"{name} {number}" for name, number in seeds.items())
        return [
            *blank,
            f"structures have unequal numbers of seeds ({many}): a mean is over its own, a gain over common ones",
        ]

    def table(self) -> Group:
        """The comparison for people: mean, sd, interval and MTL gain by task and structure; then what each costs."""
        return Group(self._quality(), self._cost())

    def _quality(self) -> Table:
        seeds = spread(self.seeds().values())
        about = f"{self.rows[0]['part']} rows: {self.rows[0]['rows']:,}; seeds: {seeds}; intervals at 95 %"
        table = Table(title=about, title_justify="left")
        for name in ("task", "structure", "mean", "sd", "interval", "MTL gain over single task"):
            word = name in ("task", "structure")
            # a name that is cut loses what it ends in: its metric
            table.add_column(name, justify="left" if word else "right", overflow="fold" if word else "ellipsis")
        for metric in self.metrics():
            first = True
            for structure in self.structures:
                if self.values(structure, metric):
                    numbers = _numbers(self.summary(structure, metric))
                    cells = [structure, *numbers, self._gain(structure, metric)]
                elif self.lacks(structure, metric):
                    cells = [structure, "-", "", "", ""]
                else:
                    continue
                table.add_row(*map(Text, [metric if first else "", *cells]))
                first = False
            table.add_section()
        if self.notes():
            table.caption, table.caption_justify = Text("\n".join(f"- {note}" for note in self.notes())), "left"
        return table

    def _gain(self, structure: str, metric: str) -> str:
        gain = self.gain(structure, metric)
        if gain is None:
            return ""
        text = f"{gain.mean:+.4f}"
        return (
            text
            if math.isnan(gain.low)
            else f"{text} [{gain.low:+.4f}, {gain.high:+.4f}]{' *' if gain.clear else '  '}"
        )

    def _cost(self) -> Table:
        table = Table(caption="* the interval lies on one side of zero", caption_justify="left")
        table.add_column("structure", overflow="fold")
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
                table.add_row(Text(structure), *(f"{sum(values) / len(values):,.0f}" for values in found))
        return table


def is_comparison(folder: Path) -> bool:
    """Whether a folder holds one, and be it that none of its runs is finished."""
    begun = holds_members(folder) and not (folder / SUMMARY).is_file()
    return begun or (folder / RUNS).is_file()


def open_comparison(path: str | Path) -> Comparison:
    """The comparison in a folder, as far as it got. Raises ``RunError`` where there is none."""
    folder = at_home(path)
    if not (folder / RUNS).is_file():
        if is_comparison(folder):
            raise RunError(
                f"the comparison in {folder} has no {RUNS}: none of its runs is finished, or it was removed; "
                "go on with the same multigate compare"
            )
        raise RunError(f"there is no comparison in {folder}: it has no {RUNS}; name the --out folder of a comparison")
    try:
        rows = pq.read_table(folder / RUNS, page_checksum_verification=True).to_pylist()
        if not all(map(_is_result, rows)):
            raise ValueError("without structure or seed")
    except (OSError, ValueError, pa.ArrowException) as error:
        raise RunError(f"{folder / RUNS} cannot be read ({error}); the same multigate compare writes it anew") from None
    try:
        return Comparison(folder, Schema.model_validate(stored_values(folder).get("schema")), rows)
    except ValidationError as error:
        raise RunError(
            f"{folder / EXPERIMENT} is damaged ({explain(error)}); restore the file, or start again in another folder"
        ) from None


def spread(numbers: Collection[int]) -> str:
    """A number, or the least and the greatest: "5", "3 to 5"."""
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def main_metrics(schema: Schema) -> list[str]:
    """The main metric of every task, that of a conditional after its task's."""
    names = []
    for task in schema.tasks:
        names.append(f"{task.name}/{PRIMARY[task.kind]}")
        if task.given:
            names.append(f"{task.name}|{task.given}/{PRIMARY[task.kind]}")
    return names


def _unscored(row: Row) -> dict[str, str]:
    return dict(json.loads(row.get(UNSCORED) or "{}"))


def remembered(place: Path) -> Row | None:
    """The result of a run that was finished earlier."""
    return read_result(place / RESULT) if (place / RESULT).is_file() else None


def read_result(file: Path) -> Row:
    """The result of one run. Raises ``RunError`` where the file is damaged."""
    try:
        row = unsealed(dict(json.loads(file.read_text(encoding="utf-8"))))
        if not _is_result(row):
            raise ValueError("without structure or seed")
        run = f"{row['structure']}-{row['seed']}"
        if file.parent.name != run:
            raise ValueError(f"it is that of {run}")
        return row
    except (OSError, ValueError, TypeError) as error:
        raise RunError(f"{file} is damaged ({error}); delete it and run multigate compare again") from None


def _is_result(row: Row) -> bool:
    return isinstance(row.get("structure"), str) and isinstance(row.get("seed"), int)


def _numbers(one: Summary) -> tuple[str, str, str]:
    """Mean, sd and interval; of one seed there is only the value itself, and of equal ones no interval."""
    if one.n == 1:
        return f"{one.mean:.4f}", "", ""
    return f"{one.mean:.4f}", f"{one.sd:.4f}", "" if math.isnan(one.low) else f"[{one.low:.4f}, {one.high:.4f}]"
