"""A recommender (Ma et al. 2018, section 6.4): Table 3 on public rows, and on a simulated feed of any size."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Self

from pydantic import Field, model_validator

from multigate.analysis.budget import multiply_adds, within_budget
from multigate.analysis.trials import opened
from multigate.analysis.workers import Workers
from multigate.cores import usable_cores
from multigate.experiment import Experiment, Optimizer
from multigate.model import Tower
from multigate.options import Options
from multigate.paper.account import Account
from multigate.paper.ledger import Row
from multigate.paper.numbers import EMBEDDING
from multigate.paper.parts import run_parts
from multigate.paper.recommender.account import tell
from multigate.paper.recommender.bottoms import BOTTOM, EXPERTS, structures_on
from multigate.paper.recommender.sources import Source, feed, kuairand, prepare_once
from multigate.paper.recommender.training import POINTS, Ground, Learner, Training, train_one
from multigate.paper.study import Count, Rate, Site, Study
from multigate.writing import remove

TUNING_SEED = 1_000_000
"""Of the trainings that choose learning rates: no run that is told of has it."""


class RecommenderStudy(Options):
    """Settings of the study; what the paper does not say is a choice of ours."""

    kuairand: bool = True
    """Whether there are runs on KuaiRand; where not, the feed alone."""
    runs: int = Field(default=8, ge=2)
    """Of each structure on KuaiRand."""
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
    rates: tuple[Rate, ...] = Field(default=(0.002, 0.004, 0.008), min_length=1)
    """Learning rates that each structure (of single-task models, each task) chooses from by validation rows. Rates are
    constant: what a model is at a point must not depend on how long its training is to go on."""
    test_rows: int = Field(default=1_000_000, ge=1)
    """Test rows that are scored at most, evenly spread: as many as in the paper."""
    feed_rows: int = Field(default=0, ge=0)
    """Rows of a simulated feed that is streamed through the same structures; 0 for none."""
    feed_runs: int = Field(default=3, ge=2)
    feed_rate: Rate = 0.001
    """Learning rate of all structures on the feed."""
    workers: int | None = Field(default=None, ge=1)
    """Trainings at a time, each on its part of the processor's cores; by default one for each core, on a GPU one."""
    feed_known: float = Field(default=0.05, gt=0, le=1)
    """Share of the feed's rows whose satisfaction is known: the paper's label is "much sparser"."""

    @model_validator(mode="after")
    def _rows_enough(self) -> Self:
        if not (self.kuairand or self.feed_rows):
            raise ValueError("without KuaiRand there are the rows of the feed alone; set feed_rows, such as 1000000")
        # 8 of 10 rows are trained on, once; a point after each third of the steps
        fewest = math.ceil((POINTS - 1) * self.batch / 0.8) + 10
        if 0 < self.feed_rows < fewest:
            raise ValueError(
                f"feed_rows={self.feed_rows} are fewer than {POINTS} steps of batch={self.batch}; set {fewest} or more"
            )
        return self


QUICK = {"runs": 3, "epochs": 1, "bottom": (64, 32), "rates": (0.002,)}


def run(settings: RecommenderStudy, site: Site) -> list[Account]:
    """Run the parts that are not there yet, and tell what was found."""
    chapters: list[Account] = []
    with Workers(settings.workers or (1 if site.device.type == "cuda" else usable_cores())) as workers:
        if settings.kuairand:
            chapters += _compared(settings, site, kuairand(site.data), settings.runs, settings.epochs, workers)
        if settings.feed_rows:
            folder = site.ledger.folder / f"feed-{settings.feed_rows}"
            streamed = feed(settings.feed_rows, settings.feed_known, folder, site.report)
            alike = settings.with_(rates=(settings.feed_rate,))
            chapters += _compared(alike, site, streamed, settings.feed_runs, 1, workers)
    return chapters


def _compared(
    settings: RecommenderStudy, site: Site, source: Source, runs: int, epochs: int, workers: Workers
) -> list[Account]:
    """Every structure on a source, seed by seed, so that what is there can be compared wherever it is stopped."""
    ground = ground_for(settings, site, source, epochs)
    learners = learners_of(settings, ground)
    rates = chosen_rates(ground, learners, settings.rates, site, workers)
    wanted = [Training(one, seed, rates[one.title], "test") for seed in range(runs) for one in learners]
    return tell(source, list(_train(ground, wanted, site, "runs (trainings)", workers).values()), settings.rates)


def ground_for(settings: RecommenderStudy, site: Site, source: Source, epochs: int) -> Ground:
    """The rows of a source, prepared, and what all trainings on them have in common."""
    experiment = Experiment(
        schema=source.schema,
        train=source.tables["train"],
        valid=source.tables["valid"],
        test=source.tables["test"],
        tower=Tower(hidden=settings.tower),
        embedding=EMBEDDING,
        optimizer=Optimizer(schedule="constant", intercepts="trained"),
        epochs=epochs,
        batch_size=settings.batch,
    )
    prepared = prepare_once(source.name, experiment, site)
    work = site.ledger.folder.resolve() / "work"
    return Ground(source, experiment, prepared.folder.resolve(), settings.test_rows, work, site.device.type)


def learners_of(settings: RecommenderStudy, ground: Ground) -> list[Learner]:
    """The structures, of single task one model for each; and a shared bottom that may cost what Cross-Stitch does."""
    structures = structures_on(settings.bottom, settings.experts, settings.strength)
    encoder = opened(ground.prepared).encoder
    dearest = multiply_adds(structures["cross_stitch"], ground.experiment, encoder)
    structures["large_bottom"] = within_budget(structures["shared_bottom"], dearest, ground.experiment, encoder)
    return [
        Learner(name, structure, task)
        for name, structure in structures.items()
        for task in (ground.source.schema.task_names if name == "single_task" else ("",))
    ]


def chosen_rates(
    ground: Ground, learners: Sequence[Learner], rates: Sequence[float], site: Site, workers: Workers
) -> dict[str, float]:
    """By learner, its learning rate: where there is a choice, that of the best of trainings on a seed of their own.

    They are looked at on validation rows alone.
    """
    if len(rates) == 1:
        return {one.title: rates[0] for one in learners}
    wanted = [Training(one, TUNING_SEED, rate, "valid") for one in learners for rate in rates]
    tuned = _train(ground, wanted, site, "learning rates (trainings)", workers)
    main = ground.source.engagement[0]
    return {one.title: best_rate([tuned[of.title] for of in wanted if of.learner is one], main) for one in learners}


def best_rate(tuned: Sequence[Row], main: str) -> float:
    """The rate with the best last validation AUC of the main task, or of the one task there is."""

    def last(row: Row) -> float:
        value = row[f"valid/{row['task'] or main}/auc"][-1]
        return -math.inf if math.isnan(value) else value

    return float(max(tuned, key=last)["learning_rate"])


def _train(ground: Ground, wanted: Sequence[Training], site: Site, what: str, workers: Workers) -> dict[str, Row]:
    """By title, the row of each training; those that were not done before are done now."""
    source = ground.source
    parts = {one.title: f"{source.name}-{one.title}" for one in wanted}
    jobs = {parts[one.title]: partial(train_one, ground, one, parts[one.title]) for one in wanted}

    def kept(part: str, row: Row) -> None:
        remove(ground.work / part)
        main = row["task"] or source.engagement[0]
        shown = ", ".join(f"{value:.4f}" for value in row.get(f"test/{main}/auc") or row[f"valid/{main}/auc"])
        site.report.line(f"{part}: {main} AUC {shown}; {row['seconds']:.0f} s")

    run_parts(site, f"{source.name}, {what}", jobs, workers, kept)
    return {title: site.ledger.rows(part)[0] for title, part in parts.items()}


STUDY = Study(
    "A recommender: Table 3 on public rows",
    RecommenderStudy,
    QUICK,
    run,
    may_change=("kuairand", "runs", "feed_runs", "feed_rows", "workers"),
)
