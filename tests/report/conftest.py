"""A page about three small trainings on a table whose names and values are as bad as they come."""

import numpy as np
import pyarrow as pa
import pytest
from reading import BAD, BAD_TASK, QUOTES, Html, Trainings

from multigate.analysis.compare import compare
from multigate.experiment import Experiment
from multigate.report.write import write_report
from multigate.schema import Category, Number, Schema, Task
from multigate.sharing import MMoE, SharedBottom
from multigate.training.train import train

ROWS = 900


def bad_table(rows: int = ROWS) -> pa.Table:
    random = np.random.default_rng(0)
    x, word = random.normal(size=rows), np.array([BAD, QUOTES, "plain"])[random.integers(0, 3, rows)]
    click = random.random(rows) < 1 / (1 + np.exp(-2 * x))
    return pa.table(
        {
            "x": x,
            BAD: word,
            BAD_TASK: click.astype(int),
            "buy": (click & (random.random(rows) < np.where(word == BAD, 0.6, 0.2))).astype(int),
            "rare": (random.random(rows) < 0.04).astype(int),
            "value": 3 * x + random.normal(size=rows),
            "size": np.array(["small", QUOTES, "huge"])[np.digitize(x, [-0.5, 0.5])],
        }
    )


def bad_experiment() -> Experiment:
    tasks = [
        Task(BAD_TASK),
        Task("buy", given=BAD_TASK),
        Task("rare"),
        Task("value", kind="regression"),
        Task("size", kind="multiclass"),
    ]
    return Experiment(
        schema=Schema(features=[Number("x"), Category(BAD)], tasks=tasks),
        sharing=MMoE(experts=3, hidden=(8,)),
        tower=(4,),
        split={"by": "fraction", "valid": 0.25, "test": 0.25},
        optimizer={"learning_rate": 0.02},
        epochs=3,
        batch_size=64,
        precision="float32",
    )


@pytest.fixture(scope="session")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    folder = tmp_path_factory.mktemp("report")
    table, experiment = bad_table(), bad_experiment()
    tables = {"train": table}
    run = train(experiment, folder / "runs" / "mmoe", tables=tables, quiet=True)
    bottom = experiment.with_(sharing=SharedBottom(hidden=(8,)))
    other = train(bottom, folder / "runs" / "bottom", tables=tables, quiet=True)
    names = ("single_task", "shared_bottom", "mmoe")
    one = experiment.with_(schema=experiment.schema.only([BAD_TASK, "rare"]), epochs=1)
    comparison = compare(one, folder / "cmp", structures=names, seeds=2, tables=tables, boosting=False, quiet=True)
    told: list[tuple[str, int, int | None]] = []
    page = write_report(
        [run, other.folder, comparison], folder / "new" / "page.html", progress=lambda *one: told.append(one)
    )
    return Trainings(table, run, other, comparison, told, page)


@pytest.fixture(scope="session")
def html(trainings: Trainings) -> Html:
    return Html(trainings.page.read_text(encoding="utf-8"))
