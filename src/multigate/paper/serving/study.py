"""The cost of serving (Ma et al. 2018, sections 6.4 and 7): what one more task costs, by structure."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from pydantic import Field, field_validator
from torch import nn

from multigate.batch import IdColumn, Layout, NumberColumn, TaskColumn
from multigate.data.encoder import Arrays
from multigate.doctor import processor
from multigate.engine import Torch, arrays, made_up
from multigate.model import Model, Tower
from multigate.nn.embed import Embedding
from multigate.options import Options
from multigate.paper.account import Account
from multigate.paper.ledger import Row
from multigate.paper.recommender.bottoms import BOTTOM, EXPERTS, structures_on
from multigate.paper.serving.account import tell
from multigate.paper.study import Count, Site, Study
from multigate.sharing import Structure

CALLS = 20
"""Predictions of one row that are timed together."""


class ServingStudy(Options):
    """Settings of the study; what the paper does not say is a choice of ours."""

    runs: int = Field(default=9, ge=2)
    """Rounds, in which every structure is timed once, one after the other."""
    tasks: tuple[Count, ...] = Field(default=(1, 2, 4, 8, 16, 32), min_length=2)
    bottom: tuple[Count, ...] = Field(default=BOTTOM, min_length=2)
    """Widths of every network; the top layer is where MMoE has experts."""
    experts: int = Field(default=EXPERTS, ge=1)
    tower: tuple[Count, ...] = (32,)
    columns: int = Field(default=20, ge=1)
    """Id columns, embedded in 16 numbers each, of ``vocabulary`` ids ..."""
    vocabulary: int = Field(default=2_000, ge=1)
    numbers: int = Field(default=10, ge=0)
    """... and columns of numbers."""
    batch: int = Field(default=4_096, ge=1)
    """Rows that are predicted together where throughput is measured."""
    threads: int = Field(default=0, ge=0, le=1_024)
    """Of torch; 0 for as many as it takes by itself."""

    @field_validator("tasks")
    @classmethod
    def _different(cls, tasks: tuple[int, ...]) -> tuple[int, ...]:
        found = tuple(dict.fromkeys(tasks))
        if len(found) < 2:
            raise ValueError(f"two numbers of tasks are wanted, found {found[0]} alone; add another")
        return found


QUICK = {"runs": 3, "tasks": (1, 2, 8)}


def run(settings: ServingStudy, site: Site) -> list[Account]:
    """Run the parts that are not there yet, and tell what was found."""
    rows: list[Row] = []
    for at, tasks in enumerate(settings.tasks):
        part = f"tasks-{tasks}"
        if not site.ledger.has(part):
            with _threads(settings.threads):
                site.ledger.keep(part, _timed(tasks, settings))
        rows += site.ledger.rows(part)
        site.report("serving (numbers of tasks)", at + 1, len(settings.tasks))
    return tell(rows)


class Served(NamedTuple):
    """What answers for all tasks: one model, or one for each."""

    name: str
    models: tuple[Model, ...]

    def predict(self, rows: Arrays) -> None:
        for model in self.models:
            Torch(model)(rows)

    def parameters(self, part: Callable[[Model], nn.Module] = lambda model: model) -> int:
        """Of all models, or of a part of each."""
        return sum(parameter.numel() for model in self.models for parameter in part(model).parameters())

    def multiply_adds(self) -> int:
        """Of one row, for all tasks."""
        return sum(model.multiply_adds() for model in self.models)


def served(tasks: int, settings: ServingStudy) -> list[Served]:
    """Every structure for so many binary tasks, OMoE left out; single-task models have embeddings of their own."""
    found = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, structure in structures_on(settings.bottom, settings.experts).items():
            if name == "single_task":
                models = tuple(_model(1, structure, settings) for _ in range(tasks))
            elif name != "omoe":
                models = (_model(tasks, structure, settings),)
            else:
                continue
            found.append(Served(name, models))
    return found


def _model(tasks: int, structure: Structure, settings: ServingStudy) -> Model:
    tower = Tower(hidden=settings.tower)
    return Model(layout_of(tasks, settings), structure, embedding=Embedding(dim=16), tower=tower).eval()


def layout_of(tasks: int, settings: ServingStudy) -> Layout:
    """Columns as ``made_up`` makes rows of."""
    named = [f"id{at}" for at in range(settings.columns)]
    return Layout(
        numbers=tuple(NumberColumn(feature=f"number{at}") for at in range(settings.numbers)),
        categories=tuple(IdColumn(feature=name, table=name) for name in named),
        bags=(),
        tables=dict.fromkeys(named, settings.vocabulary),
        tasks=tuple(TaskColumn(name=f"task{at}", kind="binary", mean=0.1) for at in range(tasks)),
    )


def _timed(tasks: int, settings: ServingStudy) -> list[Row]:
    """A row for each structure: what it has, and the milliseconds of each round."""
    all_served = served(tasks, settings)
    one, many = (arrays(made_up(layout_of(1, settings), rows)) for rows in (1, settings.batch))
    one_row = {each.name: lambda each=each: [each.predict(one) for _ in range(CALLS)] for each in all_served}
    batches = {each.name: lambda each=each: each.predict(many) for each in all_served}
    row_seconds, batch_seconds = in_turn(one_row, settings.runs), in_turn(batches, settings.runs)
    return [
        {
            "tasks": tasks,
            "structure": each.name,
            "seed": 0,
            "models": len(each.models),
            "parameters": each.parameters(),
            "embedded": each.parameters(lambda model: model.embed),
            "multiply_adds": each.multiply_adds(),
            "row_ms": [1e3 * seconds / CALLS for seconds in row_seconds[each.name]],
            "batch_ms": [1e3 * seconds for seconds in batch_seconds[each.name]],
            "batch": settings.batch,
            "threads": torch.get_num_threads(),
            "machine": f"{processor()}, torch {torch.__version__}",
            "load": _load(),
        }
        for each in all_served
    ]


def in_turn(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work in each round, in their order: what slows the machine for a while slows all.

    A round before, which nobody times, warms up.
    """
    for work in works.values():
        work()
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            found[name].append(time.perf_counter() - began)
    return found


def _load() -> float:
    """Processes that wanted to compute in the last minute, this one among them; 0 where nothing tells."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


@contextmanager
def _threads(asked: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(asked or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


STUDY = Study("Serving: what one more task costs", ServingStudy, QUICK, run, may_change=("tasks",))
