"""One training of the recommender study, as a process does it."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from multigate.analysis.trials import opened
from multigate.bundle import ROWS
from multigate.data.rows import pick_tasks
from multigate.evaluate import forward, spaces
from multigate.experiment import Experiment
from multigate.metrics import auc, bootstrap, normalised_entropy, r2
from multigate.model import Model
from multigate.naming import sigmoid
from multigate.paper.ledger import Row
from multigate.paper.recommender.points import train_to_points
from multigate.paper.recommender.sources import Source
from multigate.sharing import Structure
from multigate.training.loop import choose_device
from multigate.training.progress import Reporter

POINTS = 3
"""Of training, as in Table 3: after 2, 4 and 6 million steps."""
REPLICATES = 200
"""Draws of test users behind an interval."""
On = Literal["valid", "test"]


class Learner(NamedTuple):
    """A structure that learns all tasks, or one task alone."""

    name: str
    structure: Structure
    task: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}-{self.task}" if self.task else self.name


class Ground(NamedTuple):
    """What all trainings on one source stand on: prepared rows, and a place for what each is at."""

    source: Source
    experiment: Experiment
    prepared: Path
    test_rows: int
    work: Path
    device: str


class Training(NamedTuple):
    """A learner with a seed and a learning rate, looked at on these rows."""

    learner: Learner
    seed: int
    rate: float
    on: On

    @property
    def title(self) -> str:
        return f"{self.learner.title}-{self.seed if self.on == 'test' else f'rate-{self.rate:g}'}"


def train_one(ground: Ground, training: Training, name: str) -> Row:
    """What was seen at each point, and what it cost. Where it was begun before, under this name, it goes on."""
    names = ground.source.schema.task_names
    alone = training.learner.task
    places = [names.index(alone)] if alone else list(range(len(names)))
    optimizer = ground.experiment.optimizer.with_(learning_rate=training.rate)
    watched = train_to_points(
        ground.experiment.with_(sharing=training.learner.structure, seed=training.seed, optimizer=optimizer),
        opened(ground.prepared),
        ground.work / name,
        partial(scored_at, ground, places, training.on),
        points=POINTS,
        device=choose_device(ground.device),
        report=Reporter(quiet=True),
        tasks=places if alone else None,
    )
    seen = {name: [point.seen[name] for point in watched.points] for name in watched.points[-1].seen}
    return {
        "data": ground.source.name,
        "structure": training.learner.name,
        "task": alone,
        "seed": training.seed,
        "learning_rate": training.rate,
        "rows": [point.rows for point in watched.points],
        **{f"{training.on}/{name}": values for name, values in seen.items()},
        "parameters": watched.parameters,
        "multiply_adds": watched.multiply_adds,
        "seconds": watched.seconds,
    }


def scored_at(ground: Ground, places: Sequence[int], on: On, model: Model) -> dict[str, float]:
    """By ``<task>/<metric>``: AUC, of sparse tasks with its interval over users, and two R2 of the probabilities.

    ``r2`` is 1 - sum (y - p)^2 / sum (y - mean y)^2, that of any regression; ``mcfadden`` is 1 - log loss over that of
    the base rate. The paper does not say which it has.
    """
    schema = ground.source.schema.only([ground.source.schema.task_names[place] for place in places])
    prepared = opened(ground.prepared)
    batches = prepared.parts[on].sample(ROWS, ground.test_rows)
    scored = forward(model, (pick_tasks(batch, list(places)) for batch in batches), choose_device(ground.device))
    found: dict[str, float] = {}
    for space in spaces(schema, prepared.encoder, scored, places):
        if on == "test" and space.name in ground.source.satisfaction:
            drawn = bootstrap("binary", space.outputs, space.labels, None, space.groups, replicates=REPLICATES)
            found |= dict(zip((f"{space.name}/low", f"{space.name}/high"), drawn["auc"], strict=True))
        found |= {
            f"{space.name}/auc": auc(space.outputs, space.labels),
            f"{space.name}/r2": r2(sigmoid(space.outputs), space.labels),
            f"{space.name}/mcfadden": 1 - normalised_entropy(space.outputs, space.labels),
            f"{space.name}/positives": float(space.labels.sum()),
        }
    return found
