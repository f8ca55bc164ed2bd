"""A recommender (Ma et al. 2018, section 6.4): Table 3 on public rows, and on a simulated feed of any size."""

import math
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from multigate.bundle import ROWS, sigmoid
from multigate.data.prepared import Prepared
from multigate.data.rows import pick_tasks
from multigate.evaluate import forward, spaces
from multigate.experiment import Experiment, Optimizer
from multigate.metrics import auc, bootstrap, normalised_entropy, r2
from multigate.model import Model, Tower
from multigate.options import Options
from multigate.paper.account import Account
from multigate.paper.ledger import Row
from multigate.paper.recommender.account import tell
from multigate.paper.recommender.bottoms import BOTTOM, EXPERTS, structures_on
from multigate.paper.recommender.points import train_to_points
from multigate.paper.recommender.sources import Source, feed, kuairand, prepare_once
from multigate.paper.study import Count, Rate, Site, Study
from multigate.sharing import Structure

POINTS = 3
"""Of training, as in Table 3: after 2, 4 and 6 million steps."""
TUNING_SEED = 1_000_000
"""Of the trainings that choose learning rates: no run that is told of has it."""
REPLICATES = 200
"""Draws of test users behind an interval."""


class RecommenderStudy(Options):
    """Settings of the study; what the paper does not say is a choice of ours."""

    runs: int = Field(default=8, ge=2)
    """Of each structure."""
    epochs: int = Field(default=3, ge=1)
    """Over KuaiRand's training rows. The paper's are seen once, and so are the feed's."""
    batch: int = Field(default=1024, ge=1)
    """Rows of a step, as in the paper."""
    bottom: tuple[Count, ...] = Field(default=BOTTOM, min_length=2)
    """Widths of every network; the top layer is where MMoE and OMoE have experts."""
    experts: int = Field(default=EXPERTS, ge=1)
    tower: tuple[Count, ...] = (32,)
    strength: float = Field(default=1e-4, ge=0)
    """Of the L2 constraint."""
    rates: tuple[Rate, ...] = Field(default=(0.0005, 0.001, 0.002), min_length=1)
    """Learning rates that each structure (of single-task models, each task) chooses from by validation rows. Rates are
    constant: what a model is at a point must not depend on how long its training is to go on."""
    test_rows: int = Field(default=1_000_000, ge=1)
    """Test rows that are scored at most, evenly spread: as many as in the paper."""
    feed_rows: int = Field(default=0, ge=0)
    """Rows of a simulated feed that is streamed through the same structures; 0 for none."""
    feed_runs: int = Field(default=3, ge=2)
    feed_rate: Rate = 0.001
    """Learning rate of all structures on the feed."""
    feed_known: float = Field(default=0.05, gt=0, le=1)
    """Share of the feed's rows whose satisfaction is known: the paper's label is "much sparser"."""


QUICK = {"runs": 3, "epochs": 1, "bottom": (64, 32), "rates": (0.002,)}


class Learner(NamedTuple):
    """A structure that learns all tasks, or one task alone."""

    name: str
    structure: Structure
    task: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}-{self.task}" if self.task else self.name


class Ground(NamedTuple):
    """What all trainings on one source stand on."""

    source: Source
    experiment: Experiment
    prepared: Prepared
    learners: tuple[Learner, ...]
    test_rows: int
    site: Site


def run(settings: RecommenderStudy, site: Site) -> list[Account]:
    """Run the parts that are not there yet, and tell what was found."""
    chapters = _compared(settings, site, kuairand(site.data), settings.runs, settings.epochs)
    if settings.feed_rows:
        folder = site.ledger.folder / f"feed-{settings.feed_rows}"
        streamed = feed(settings.feed_rows, settings.feed_known, folder, site.report)
        alike = settings.with_(rates=(settings.feed_rate,))
        chapters += _compared(alike, site, streamed, settings.feed_runs, epochs=1)
    return chapters


def _compared(settings: RecommenderStudy, site: Site, source: Source, runs: int, epochs: int) -> list[Account]:
    """Every structure on a source, seed by seed, so that what is there can be compared wherever it is stopped."""
    ground = ground_for(settings, site, source, epochs)
    rows: list[Row] = []
    done, total = 0, runs * len(ground.learners)
    for seed in range(runs):
        for learner in ground.learners:
            rate = chosen_rate(ground, learner, settings.rates)
            rows.append(_trained(ground, learner, seed, rate, "test"))
            done += 1
            site.report(f"{source.name} (trainings)", done, total)
    return tell(source, rows, settings.rates)


def ground_for(settings: RecommenderStudy, site: Site, source: Source, epochs: int) -> Ground:
    """The rows of a source, prepared, and the structures to train on them."""
    experiment = Experiment(
        schema=source.schema,
        train=source.tables["train"],
        valid=source.tables["valid"],
        test=source.tables["test"],
        tower=Tower(hidden=settings.tower),
        optimizer=Optimizer(schedule="constant"),
        epochs=epochs,
        batch_size=settings.batch,
    )
    learners = []
    for name, structure in structures_on(settings.bottom, settings.experts, settings.strength).items():
        alone = source.schema.task_names if name == "single_task" else ("",)
        learners += [Learner(name, structure, task) for task in alone]
    prepared = prepare_once(source.name, experiment, site)
    return Ground(source, experiment, prepared, tuple(learners), settings.test_rows, site)


def chosen_rate(ground: Ground, learner: Learner, rates: Sequence[float]) -> float:
    """The learning rate of a structure: where there is a choice, that of the best of trainings on a seed of their own.

    They are looked at on validation rows alone.
    """
    if len(rates) == 1:
        return rates[0]
    tuned = [_trained(ground, learner, TUNING_SEED, rate, "valid") for rate in rates]
    return best_rate(tuned, ground.source.engagement[0])


def best_rate(tuned: Sequence[Row], main: str) -> float:
    """The rate with the best last validation AUC of the main task, or of the one task there is."""

    def last(row: Row) -> float:
        value = row[f"valid/{row['task'] or main}/auc"][-1]
        return -math.inf if math.isnan(value) else value

    return float(max(tuned, key=last)["learning_rate"])


def _trained(ground: Ground, learner: Learner, seed: int, rate: float, on: Literal["valid", "test"]) -> Row:
    """The row of one training, which is done now if it was not before."""
    site, source = ground.site, ground.source
    part = f"{source.name}-{learner.title}-{seed if on == 'test' else f'rate-{rate:g}'}"
    if not site.ledger.has(part):
        folder = site.ledger.folder / "work" / part
        row = _train(ground, learner, seed, rate, on, folder)
        site.ledger.keep(part, [row])
        shutil.rmtree(folder, ignore_errors=True)
        main = learner.task or source.engagement[0]
        shown = ", ".join(f"{value:.4f}" for value in row[f"{on}/{main}/auc"])
        site.report.line(f"{part}: {main} AUC {shown}; {row['seconds']:.0f} s")
    return dict(site.ledger.rows(part)[0])


def _train(ground: Ground, learner: Learner, seed: int, rate: float, on: Literal["valid", "test"], folder: Path) -> Row:
    names = ground.source.schema.task_names
    places = [names.index(learner.task)] if learner.task else list(range(len(names)))
    optimizer = ground.experiment.optimizer.with_(learning_rate=rate)
    watched = train_to_points(
        ground.experiment.with_(sharing=learner.structure, seed=seed, optimizer=optimizer),
        ground.prepared,
        folder,
        partial(scored_at, ground, places, on),
        points=POINTS,
        device=ground.site.device,
        report=ground.site.report,
        tasks=places if learner.task else None,
    )
    seen = {name: [point.seen[name] for point in watched.points] for name in watched.points[-1].seen}
    return {
        "data": ground.source.name,
        "structure": learner.name,
        "task": learner.task,
        "seed": seed,
        "learning_rate": rate,
        "rows": [point.rows for point in watched.points],
        **{f"{on}/{name}": values for name, values in seen.items()},
        "parameters": watched.parameters,
        "multiply_adds": watched.multiply_adds,
        "seconds": watched.seconds,
    }


def scored_at(ground: Ground, places: Sequence[int], on: Literal["valid", "test"], model: Model) -> dict[str, float]:
    """By ``<task>/<metric>``: AUC, of sparse tasks with its interval over users, and two R2 of the probabilities.

    ``r2`` is 1 - sum (y - p)^2 / sum (y - mean y)^2, that of any regression; ``mcfadden`` is 1 - log loss over that of
    the base rate. The paper does not say which it has.
    """
    schema = ground.source.schema.only([ground.source.schema.task_names[place] for place in places])
    batches = ground.prepared.parts[on].sample(ROWS, ground.test_rows)
    scored = forward(model, (pick_tasks(batch, list(places)) for batch in batches), ground.site.device)
    found: dict[str, float] = {}
    for space in spaces(schema, ground.prepared.encoder, scored, places):
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


STUDY = Study(
    "A recommender: Table 3 on public rows", RecommenderStudy, QUICK, run, may_change=("runs", "feed_runs", "feed_rows")
)
