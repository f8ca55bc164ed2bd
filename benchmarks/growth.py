"""What one more task, expert, feature or row costs, in training and in predicting.

    python benchmarks/growth.py --rounds 3 --picture

Single task (T networks), Shared-Bottom and MMoE (8 experts of [128, 64]), as large as each other where there is one
task; towers [32], 20 id columns of dim 16 and 10 numbers, 2 tasks, batches of 1024 in float32: one of these is varied,
the others stay. A step is the real training's, on batches in memory; predicting is a forward pass over encoded rows.
The vocabulary's growth is in wide.py.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch

import multigate as mg
from machine import describe
from multigate.batch import Batch
from multigate.evaluate import forward
from multigate.experiment import Optimizer
from multigate.nn.embed import Embedding
from multigate.sharing import Structure
from multigate.training.fit import Fit
from quiet import LEGEND, MARK, Spread, Watch, options, spread
from race import Folders
from results import show, table
from steps import begun, first_batches, prepared_rows, step_ms
from zipf import Law, draw, schema

BATCH, STEPS = 1024, 8
LAW = Law(columns=20, vocabulary=2_000, numbers=10, tasks=2)
Structures = dict[str, Structure]
THREE: Structures = {
    "single task": mg.SingleTask(hidden=(768, 192)),
    "Shared-Bottom": mg.SharedBottom(hidden=(768, 192)),
    "MMoE": mg.MMoE(experts=8, hidden=(128, 64)),
}
PICTURE = Path(__file__).parent / "growth.svg"


class Point(NamedTuple):
    """One model at a place on an axis, and the batches it is timed on."""

    name: str
    at: int
    fit: Fit
    batches: list[Batch]

    @property
    def multiply_adds(self) -> int:
        return self.fit.model.multiply_adds()

    def times(self) -> tuple[float, float]:
        """Milliseconds of a step, microseconds of predicting a row."""
        step = step_ms(self.fit, self.batches)
        began = time.perf_counter()
        forward(self.fit.model, self.batches, self.fit.device)
        return step, 1e6 * (time.perf_counter() - began) / sum(batch.rows for batch in self.batches)


class Cost(NamedTuple):
    """What was found of a point."""

    name: str
    at: int
    multiply_adds: int
    step: Spread
    row: Spread


def experiment(law: Law, sharing: Structure) -> mg.Experiment:
    return mg.Experiment(
        schema=schema(law),
        sharing=sharing,
        tower=(32,),
        embedding=Embedding(dim=16, dropout=0.0, unseen=0.0),
        optimizer=Optimizer(schedule="constant"),
        epochs=1,
        batch_size=BATCH,
        precision="float32",
    )


def points(law: Law, at: int, structures: Structures, folder: Path) -> list[Point]:
    """Models on rows of one kind, each brought to where its steps can be timed."""
    rows = draw(law, BATCH * STEPS, every_id=True)
    prepared, found = None, []
    for name, sharing in structures.items():
        one = experiment(law, sharing)
        if prepared is None:
            prepared = prepared_rows(one, folder / "prepared", {"train": rows, "valid": rows.slice(0, 1_000)})
        fit = begun(one, prepared, folder / name)
        found.append(Point(name, at, fit, first_batches(fit, STEPS)))
        found[-1].times()
    return found


def costs(found: Sequence[Point], watch: Watch, rounds: int) -> list[Cost]:
    """All points of an axis, timed in turn."""
    runs = watch.in_turn({f"{one.name} {one.at}": one.times for one in found}, rounds)
    result = []
    for one in found:
        times = runs[f"{one.name} {one.at}"]
        step, row = spread(times, lambda pair: pair[0]), spread(times, lambda pair: pair[1])
        result.append(Cost(one.name, one.at, one.multiply_adds, step, row))
    return result


def axis_table(axis: str, found: Sequence[Cost]) -> str:
    """A line for each place on the axis, and in it the structures side by side, figure by figure."""
    names = list(dict.fromkeys(one.name for one in found))
    lines = []
    for at in dict.fromkeys(one.at for one in found):
        here = [next(one for one in found if (one.name, one.at) == (name, at)) for name in names]
        counted = " / ".join(f"{one.multiply_adds / 1e6:.3f}" for one in here)
        lines.append([str(at), counted, *(one.step.text(1) for one in here), *(one.row.text(1) for one in here)])
    head = [f"{unit}: {name}" for unit in ("ms a step", "µs to predict a row") for name in names]
    return table([axis, "M mult-adds a row", *head], lines)


def one_more(found: Sequence[Cost]) -> str:
    """What one more task adds, as a share of the network of its own that it would otherwise need."""
    first, last = min(one.at for one in found), max(one.at for one in found)
    ends = {(one.name, one.at): (one.multiply_adds, one.step.middle, one.row.middle) for one in found}
    added = {
        name: [late - early for early, late in zip(ends[name, first], ends[name, last], strict=True)] for name in THREE
    }
    shares = {
        name: [one / network for one, network in zip(values, added["single task"], strict=True)]
        for name, values in added.items()
    }
    told = [
        f"{name} {counted:.0%} of the multiply-adds, {step:.0%} of the time of a step, {row:.0%} of that of predicting"
        for name, (counted, step, row) in shares.items()
        if name != "single task"
    ]
    return f"One more task against one more network, from {first} to {last} tasks: {'; '.join(told)}."


def row_lines(counts: Sequence[int], watch: Watch, rounds: int, folder: Path) -> list[list[str]]:
    """Seconds of preparing and of an epoch of MMoE for so many rows of a table."""
    fresh, one, lines = Folders(folder), experiment(LAW, THREE["MMoE"]), []

    def times(tables: dict[str, pa.Table]) -> tuple[float, float]:
        began = time.perf_counter()
        prepared_rows(one, fresh(), tables)
        prepared = time.perf_counter() - began
        return prepared, mg.train(one, fresh(), tables=tables, quiet=True).summary["seconds"]

    for count in counts:
        rows = draw(LAW, count, every_id=True)
        tables = {"train": rows, "valid": rows.slice(0, 5_000)}
        runs = [watch.take(partial(times, tables)) for _ in range(rounds)]
        prepare, epoch = spread(runs, lambda pair: pair[0]), spread(runs, lambda pair: pair[1])
        each = [f"{1e6 * figure.middle / count:.2f}" for figure in (prepare, epoch)]
        lines.append([f"{count:,}", prepare.text(2), each[0], epoch.text(2), each[1]])
    return lines


def draw_picture(tasks: Sequence[Cost], experts: Sequence[Cost], path: Path) -> None:
    """Milliseconds of a step against tasks and against experts, as an SVG for light and dark pages."""
    import altair as alt
    import vl_convert

    def panel(axis: str, found: Sequence[Cost]) -> alt.Chart:
        values = [{"x": one.at, "ms": round(one.step.middle, 3), "structure": one.name} for one in found]
        return (
            alt.Chart(alt.Data(values=values), width=260, height=200)
            .mark_line(point=True)
            .encode(
                x=alt.X("x:Q", title=axis, axis=alt.Axis(format="d", grid=False)),
                y=alt.Y("ms:Q", title="ms a step"),
                color=alt.Color("structure:N", title=None, sort=list(THREE)),
                shape=alt.Shape("structure:N", legend=None, sort=list(THREE)),
            )
        )

    grey = "#777777"
    words = {"labelColor": grey, "titleColor": grey}
    picture = (
        alt.hconcat(panel("tasks", tasks), panel("experts", experts))
        .configure(background="transparent")
        .configure_axis(**words, domainColor=grey, tickColor=grey, gridColor=grey, gridOpacity=0.2)
        .configure_legend(**words, orient="bottom")
        .configure_view(stroke=None)
    )
    path.write_text(vl_convert.vegalite_to_svg(json.dumps(picture.to_dict(validate=False))) + "\n", encoding="utf-8")


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--tasks", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--experts", type=int, nargs="*", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--features", type=int, nargs="*", default=[10, 20, 40, 80, 160], help="id columns")
    parser.add_argument("--rows", type=int, nargs="*", default=[50_000, 100_000, 200_000, 400_000], help="of the table")
    parser.add_argument("--picture", action="store_true", help=f"draw {PICTURE.name} anew")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe())
    watch = Watch(arguments.patience)
    with tempfile.TemporaryDirectory() as text:
        measure(arguments, watch, Path(text))


def measure(arguments: argparse.Namespace, watch: Watch, folder: Path) -> None:
    def axis(
        word: str, values: Sequence[int], law: Callable[[int], Law], kinds: Callable[[int], Structures]
    ) -> list[Cost]:
        models = [one for at in values for one in points(law(at), at, kinds(at), folder / f"{word}-{at}")]
        return costs(models, watch, arguments.rounds)

    def mixture(experts: int) -> Structures:
        return {"MMoE": mg.MMoE(experts=experts)}

    def of_columns(columns: int) -> Law:
        return LAW._replace(columns=columns, vocabulary=100 * columns)

    by_task = axis("tasks", arguments.tasks, lambda at: LAW._replace(tasks=at), lambda _: THREE)
    by_expert = axis("experts", arguments.experts, lambda _: LAW, mixture)
    by_feature = axis("features", arguments.features, of_columns, lambda _: THREE)
    lines = row_lines(arguments.rows, watch, arguments.rounds, folder)
    parts = [
        axis_table("tasks", by_task),
        one_more(by_task),
        axis_table("experts", by_expert),
        axis_table("id columns", by_feature),
        table(["rows", "s to prepare", "µs a row", "s an epoch of MMoE", "µs a row"], lines),
    ]
    if arguments.picture:
        draw_picture(by_task, by_expert, PICTURE)
        parts.append(f"![Milliseconds of a step against tasks and against experts]({PICTURE.name})\n")
    show("growth", *parts, *([LEGEND] if any(MARK in part for part in parts) else []))


if __name__ == "__main__":
    main()
