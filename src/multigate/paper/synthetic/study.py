"""Synthetic tasks (Ma et al. 2018, sections 3 and 5): what relatedness does to sharing. Figures 2 to 5."""

from collections.abc import Iterator, Mapping
from typing import Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from multigate.analysis.workers import Workers
from multigate.cores import usable_cores
from multigate.datasets.synthetic import Synthetic
from multigate.options import Options
from multigate.paper.account import Account
from multigate.paper.ledger import Row
from multigate.paper.published import figure_2
from multigate.paper.study import Rate, Site, Study
from multigate.paper.synthetic import beyond, choices
from multigate.paper.synthetic.account import MODELS, tell
from multigate.paper.synthetic.cells import cell, choose_rates, run_cells, train_cells, with_runs
from multigate.paper.synthetic.draws import Draws
from multigate.paper.synthetic.toy import Training
from multigate.sharing import MMoE, OMoE, SharedBottom, Structure

EXPERTS, UNITS, TOWER = 8, 16, (8,)
"""Of MMoE and OMoE: experts of one layer, its units, and the units of a task's tower (section 3.3)."""
SMALL = 16
"""Units of the Shared-Bottom model of Figure 3."""
DEFAULT_RATE = 0.001
"""Adam's, with which the model of Figure 3 is trained: the paper has its "default setting" there."""
COSINES = (0.5, 0.9, 1.0)


def equal_units(size: int = 100, tasks: int = 2) -> int:
    """Units of a shared bottom with as many weights as MMoE: 13,056 of them make 113 (section 3.3).

    Counted are experts and the hidden layers of towers, as in the paper: neither gates nor biases nor output layers.
    """
    return round(counted_weights(size, tasks) / (size + TOWER[0] * tasks))


def counted_weights(size: int = 100, tasks: int = 2) -> int:
    """100 * 16 * 8 + 16 * 8 * 2 = 13,056."""
    return size * UNITS * EXPERTS + UNITS * TOWER[0] * tasks


class SyntheticStudy(Options):
    """Settings of the study; what the paper does not say is a choice of ours."""

    runs: int = Field(default=200, ge=2)
    """Of each structure and cosine, as in the paper; each has data and weights of its own."""
    steps: int = Field(default=10_000, ge=100, multiple_of=100)
    """As the axes of Figures 3 and 4 are read."""
    batch: int = Field(default=64, ge=1)
    """Rows of a step: not in the paper. All are new, so that the training loss is a fair one."""
    standardise: bool = True
    """Whether labels have mean 0 and variance 1: not in the paper, whose losses begin a little above 1."""
    biases: bool = False
    """Whether experts and bottoms have biases: not in the paper, which counts none. It decides what is found."""
    rates: tuple[Rate, ...] = Field(default=(0.0001, 0.001, 0.01), min_length=1)
    """Adam's learning rates in Figures 4 and 5, as in the paper. The one with the least mean loss is taken, each
    structure and cosine its own, after ``pilot`` runs of each that are not told of otherwise."""
    pilot: int = Field(default=20, ge=1)
    cosines: tuple[float, ...] = Field(default=COSINES, min_length=1)
    """Some of the paper's."""
    data: Synthetic = Synthetic()
    """The generator; c, alpha and beta are not in the paper. Relatedness, seeds and rows are the study's."""
    trials: int = Field(default=100, ge=2)
    """Of Figure 2, as in the paper, of ``points`` rows each."""
    points: int = Field(default=10_000, ge=10)

    choices: bool = False
    """Also what the paper left open, one choice at a time, ``choice_runs`` runs of each."""
    choice_runs: int = Field(default=20, ge=2)
    beyond: bool = False
    """Also cosines from -1 to 1, other structures and more tasks, ``beyond_runs`` runs of each."""
    beyond_runs: int = Field(default=30, ge=2)
    workers: int | None = Field(default=None, ge=1)
    """Processes, each with one stack of models; as many as there are cores if not told, one on a GPU."""

    @field_validator("data")
    @classmethod
    def _is_the_papers(cls, data: Synthetic) -> Synthetic:
        for name in ("rows", "correlations", "cosines", "noise_tasks", "known", "seed"):
            if getattr(data, name) != getattr(Synthetic(), name):
                raise ValueError(f"{name} of the generator is what the study sets itself; leave it out")
        return data

    @model_validator(mode="after")
    def _inputs_enough(self) -> Self:
        if self.beyond and self.data.size < max(beyond.MANY):
            raise ValueError(
                f"with beyond=true there are runs of {max(beyond.MANY)} tasks, which want as many inputs; "
                f"set data.size to that or more, found {self.data.size}"
            )
        return self

    @field_validator("cosines")
    @classmethod
    def _are_the_papers(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            if value not in COSINES:
                raise ValueError(f"the paper has curves for {', '.join(map(str, COSINES))}; found {value:g}")
        return values


QUICK = {"runs": 20, "steps": 5_000, "rates": (DEFAULT_RATE,), "choice_runs": 4, "beyond_runs": 4}


def structures(size: int = 100) -> dict[str, Structure]:
    """What is trained, by name; ``small_bottom`` is the one of Figure 3."""
    return {
        "small_bottom": SharedBottom(hidden=(SMALL,)),
        "shared_bottom": SharedBottom(hidden=(equal_units(size),)),
        "omoe": OMoE(experts=EXPERTS, hidden=(UNITS,)),
        "mmoe": MMoE(experts=EXPERTS, hidden=(UNITS,)),
    }


def run(settings: SyntheticStudy, site: Site) -> list[Account]:
    """Run the parts that are not there yet, and tell what was found."""
    if not site.ledger.has(TRIALS):
        site.ledger.keep(TRIALS, list(_trials(settings, site)))
    sizes = structures(settings.data.size)
    training = Training(
        structure=sizes["mmoe"],
        data=settings.data,
        seeds=(),
        rates=(),
        tower=TOWER,
        steps=settings.steps,
        batch=settings.batch,
        standardise=settings.standardise,
        biases=settings.biases,
    )
    paper = [
        cell("paper", name, structure, training._replace(data=settings.data.with_(correlations=(cosine,))))
        for name, structure in sizes.items()
        for cosine in settings.cosines
    ]
    with Workers(settings.workers or (1 if site.device.type == "cuda" else usable_cores())) as workers:
        given = {one.name: DEFAULT_RATE for one in paper if one.structure == "small_bottom"}
        tuned = [one for one in paper if one.name not in given]
        rates = given | choose_rates(tuned, settings.rates, settings.pilot, site, workers)
        found = run_cells(paper, rates, settings.runs, site, workers)
        runs = {(one.structure, one.cosine): rows for one, rows in found.items()}
        chapters = tell(settings.data, site.ledger.rows(TRIALS), runs)
        if settings.choices:
            chapters += _choices({name: sizes[name] for name in MODELS}, training, settings, site, workers)
        if settings.beyond:
            chapters += _beyond(training, settings, site, workers)
    return chapters


def _choices(
    those: Mapping[str, Structure], training: Training, settings: SyntheticStudy, site: Site, workers: Workers
) -> list[Account]:
    made = choices.cells(those, training)
    seeds = range(settings.choice_runs)
    stacks = {one: with_runs(one, seeds, choices.RATES) for one in made}
    return choices.tell(train_cells("choices", stacks, site, workers))


def _beyond(training: Training, settings: SyntheticStudy, site: Site, workers: Workers) -> list[Account]:
    made = beyond.cells(MMoE(experts=EXPERTS, hidden=(UNITS,)), training)
    chosen = choose_rates(beyond.pilots(made), settings.rates, settings.pilot, site, workers)
    return beyond.tell(run_cells(made, beyond.rates_of(made, chosen), settings.beyond_runs, site, workers))


TRIALS = "figure2"


def _trials(settings: SyntheticStudy, site: Site) -> Iterator[Row]:
    """The correlation of two labels over fresh rows, for each cosine of Figure 2 and each trial."""
    cosines = figure_2().cosines
    for at, cosine in enumerate(cosines):
        data = settings.data.with_(correlations=(cosine,))
        for seed in range(settings.trials):
            y = Draws(data, [seed]).held_out(settings.points).y[0].numpy()
            yield {"cosine": cosine, "seed": seed, "label_correlation": float(np.corrcoef(y.T)[0, 1])}
            site.report("figure 2 (trials)", at * settings.trials + seed + 1, len(cosines) * settings.trials)


STUDY = Study(
    "Synthetic tasks: what relatedness does to sharing",
    SyntheticStudy,
    QUICK,
    run,
    may_change=("choices", "beyond", "workers"),
)
