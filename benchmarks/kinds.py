"""Tables and tasks of other kinds than Census-Income's: a step beside one of a plain loop, on the same encoded batches.

    python benchmarks/kinds.py --rounds 3

MMoE, 8 experts of [128, 64], towers [32], embedding 16, batch 1,024 unless the kind says otherwise, float32. The plain
side is what a careful person writes in an afternoon: a module per column, expert, gate and tower in Python loops,
without dropout, AdamW in one call. Both move their weights by the same batches, which are in memory.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional

import multigate as mg
from machine import describe
from multigate.batch import Batch, Layout, TaskColumn
from quiet import LEGEND, Watch, options, spread
from results import show, table
from steps import begun, first_batches, prepared_rows, step_ms

BATCH, STEPS, DIM, EXPERTS, HIDDEN, TOWER = 1024, 6, 16, 8, (128, 64), 32
Columns = dict[str, Any]
Blocks = list[dict[str, Any]]


class Kind(NamedTuple):
    """A table to be, as columns and blocks of the schema, and the rows of a batch."""

    columns: Callable[[np.random.Generator, int], Columns]
    features: Blocks
    tasks: Blocks
    batch: int = BATCH

    def experiment(self) -> mg.Experiment:
        return mg.Experiment(
            schema=mg.Schema(features=self.features, tasks=self.tasks),  # type: ignore[arg-type]
            sharing=mg.MMoE(experts=EXPERTS, hidden=HIDDEN),
            tower=(TOWER,),
            batch_size=self.batch,
            precision="float32",
        )


def named(kind: str, prefix: str, many: int, **more: Any) -> Blocks:
    return [{"name": f"{prefix}{i}", "kind": kind, **more} for i in range(many)]


def drawn(features: Blocks, tasks: Blocks, *, ids: int = 1000, items: tuple[int, int] = (0, 0)) -> Kind:
    """Independent columns: ids of ``ids`` values, few of them frequent, bags of about so many items of so many."""

    def columns(draw: np.random.Generator, rows: int) -> Columns:
        found: Columns = {}
        for one in (*features, *tasks):
            match one["kind"]:
                case "category":
                    found[one["name"]] = (ids * draw.random(rows) ** 2).astype(np.int64)
                case "number" | "regression":
                    found[one["name"]] = draw.normal(size=rows)
                case "vector":
                    values = pa.array(draw.normal(size=rows * one["size"]).astype(np.float32))
                    found[one["name"]] = pa.FixedSizeListArray.from_arrays(values, one["size"])
                case "bag":
                    sizes = draw.integers(1, 2 * items[0], rows)
                    values = pa.array((items[1] * draw.random(sizes.sum()) ** 2).astype(np.int64))
                    found[one["name"]] = pa.ListArray.from_arrays(pa.array(np.append(0, sizes.cumsum())), values)
                case "binary":
                    found[one["name"]] = draw.integers(0, 2, rows)
                case "multiclass":
                    found[one["name"]] = np.arange(rows) % len(one["classes"])
        return found

    return Kind(columns, features, tasks)


def classes(many: int) -> list[str]:
    return [str(one) for one in range(many)]


USUAL = [*named("category", "c", 20), *named("number", "n", 10, embedding="none")]
TWO = named("binary", "y", 2)
KINDS = {
    "20 categories, 10 numbers, 2 tasks": drawn(USUAL, TWO),
    "the same, batch 64": drawn(USUAL, TWO)._replace(batch=64),
    "the same, 100 tasks": drawn(USUAL, named("binary", "y", 100)),
    "the same, 10 binary tasks, 10 regressions, 10 of 5 classes": drawn(
        USUAL,
        [
            *named("binary", "y", 10),
            *named("regression", "r", 10),
            *named("multiclass", "m", 10, classes=classes(5)),
        ],
    ),
    "the same, 20 tasks of 20 classes": drawn(USUAL, named("multiclass", "m", 20, classes=classes(20))),
    "the same, a task of 1,000 classes": drawn(USUAL, named("multiclass", "m", 1, classes=classes(1000))),
    "300 categories of 100 values": drawn(named("category", "c", 300), TWO, ids=100),
    "500 numbers": drawn(named("number", "n", 500, embedding="none"), TWO),
    "100 numbers in bins": drawn(named("number", "n", 100, embedding="bins", values=0), TWO),
    "a vector of 768": drawn(named("vector", "v", 1, size=768), TWO),
    "5 bags of 5 items of 10,000": drawn([*USUAL, *named("bag", "b", 5)], TWO, items=(5, 10_000)),
    "3 bags of 200 items of 100,000": drawn([*USUAL, *named("bag", "b", 3)], TWO, items=(200, 100_000)),
}


class Plain(nn.Module):
    """MMoE over the columns of a layout, one module each."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.columns = nn.ModuleList(nn.Embedding(layout.tables[one.table], DIM) for one in layout.categories)
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(layout.tables[one.table], DIM, mode="mean", include_last_offset=True) for one in layout.bags
        )
        width = len(layout.numbers) + DIM * (len(layout.categories) + len(layout.bags))
        self.experts = nn.ModuleList(dense(width, *HIDDEN) for _ in range(EXPERTS))
        self.gates = nn.ModuleList(nn.Linear(width, EXPERTS, bias=False) for _ in layout.tasks)
        self.towers = nn.ModuleList(
            nn.Sequential(dense(HIDDEN[-1], TOWER), nn.Linear(TOWER, task.outputs)) for task in layout.tasks
        )

    def forward(self, batch: Batch) -> list[Tensor]:
        x = torch.cat(
            [
                batch.numbers.nan_to_num(0),
                *(one(batch.categories[:, i]) for i, one in enumerate(self.columns)),
                *(one(bag.values, bag.offsets) for one, bag in zip(self.bags, batch.bags, strict=True)),
            ],
            dim=1,
        )
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)  # (B, E, H)
        mixed = ((gate(x).softmax(1).unsqueeze(2) * experts).sum(1) for gate in self.gates)
        return [tower(one) for tower, one in zip(self.towers, mixed, strict=True)]


def dense(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())))


def loss_of(task: TaskColumn, outputs: Tensor, label: Tensor) -> Tensor:
    if task.kind == "multiclass":
        return functional.cross_entropy(outputs, label.long())
    if task.kind == "binary":
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], label)
    return functional.mse_loss(outputs[:, 0], label)


class Plainly(NamedTuple):
    """A plain training amid its steps."""

    model: Plain
    tasks: Sequence[TaskColumn]
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(cls, layout: Layout) -> "Plainly":
        model = Plain(layout)
        return cls(model, layout.tasks, torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True))

    def step_ms(self, batches: Sequence[Batch]) -> float:
        began = time.perf_counter()
        for batch in batches:
            outputs = self.model(batch)
            losses = (loss_of(task, outputs[t], batch.labels[:, t]) for t, task in enumerate(self.tasks))
            self.optimizer.zero_grad()
            torch.stack([*losses]).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return 1e3 * (time.perf_counter() - began) / len(batches)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS), help="some of them (all)")
    parser.add_argument("--rows", type=int, default=STEPS * BATCH, help="of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe())
    watch, lines = Watch(arguments.patience), []
    for name in arguments.kinds:
        with tempfile.TemporaryDirectory() as folder:
            lines.append([name, *measured(KINDS[name], Path(folder), arguments, watch)])
    head = ["", "multiply-adds of a row", "plain, ms a step", "multigate, ms a step", "x plain"]
    show("kinds", table(head, lines), *([LEGEND] if any("~" in one for line in lines for one in line) else []))


def measured(kind: Kind, folder: Path, arguments: argparse.Namespace, watch: Watch) -> list[str]:
    rows = kind.columns(np.random.default_rng(0), arguments.rows + arguments.rows // 8)
    one = kind.experiment()
    prepared = prepared_rows(one, folder / "prepared", {"train": pa.table(rows)})
    fit = begun(one, prepared, folder / "run")
    batches, plainly = first_batches(fit, STEPS), Plainly.of(prepared.layout)
    sides = {"plain": lambda: plainly.step_ms(batches), "multigate": lambda: step_ms(fit, batches)}
    for warm in sides.values():
        warm()
    found = {name: spread(runs, float) for name, runs in watch.in_turn(sides, arguments.rounds).items()}
    ratio = found["plain"].middle / found["multigate"].middle
    work = f"{fit.model.multiply_adds() / 1e6:.2f} M"
    return [work, found["plain"].text(1), found["multigate"].text(1), f"{ratio:.2f}"]


if __name__ == "__main__":
    main()
