"""Relations: what is known of how tasks relate, and what follows for sharing. Plain data, to JSON and back."""

import math
from collections.abc import Sequence
from typing import Literal

from multigate.analysis.intervals import summary
from multigate.errors import ExperimentError, nearest
from multigate.options import Options

Advice = Literal["share", "share apart", "train alone"]
"""One network for both; experts that each weighs by itself; a model each."""
NOISE = 2.0
"""Standard errors over looks that a lookahead has to exceed."""


class Estimate(Options):
    """A mean over seeds with its Student-t interval at 95 %; one seed has no interval."""

    mean: float
    low: float | None = None
    high: float | None = None
    seeds: int

    @property
    def side(self) -> int:
        """1 or -1 where the whole interval lies above or below 0; else 0."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


class Lookahead(Estimate):
    """The share of one task's loss that a step for another takes away."""

    error: float | None = None
    """Standard error of the mean over the looks at the trainings, where those are known."""

    @property
    def clear(self) -> bool:
        """Whether it can be told from 0: it is larger than what batches vary by."""
        return self.error is not None and abs(self.mean) > NOISE * self.error


class Skill(Options):
    """Whether a task can be predicted at all: by a model of its own, networks side by side or one model of all."""

    task: str
    metric: str
    value: float | None
    """Main metric on validation rows, mean over seeds, of whichever of them is furthest above chance."""
    chance: float
    """What the metric is where nothing is known: .5 of AUC, 0 of R²."""
    error: float | None
    """Standard error of the value over rows, by bootstrap."""
    learnt: bool
    """More than three standard errors above chance."""
    unscored: str = ""
    """Why the rows cannot tell the metric, if they cannot."""


class Gain(Options):
    """What one task gains in its main metric from being trained with another, against the best model of its own."""

    structure: str
    hard: bool
    """Whether both tasks read the same representation there."""
    task: str
    metric: str
    alone: float
    """The metric of the task's own models, mean over seeds ..."""
    alone_with: str
    """... with this structure, of those tried the one with the best mean."""
    by_seed: tuple[float, ...]
    gain: Estimate


class Pair(Options):
    """Two tasks. ``score`` ranks pairs: the overlap, undefined where one of them has nothing to learn."""

    tasks: tuple[str, str]
    score: float | None
    overlap: Estimate | None
    """Whether networks of their own read the same directions of x, 0 to 1 (``analysis/relatedness.py``)."""
    labels: float | None
    """Pearson correlation of the labels of training rows."""
    gradients: Estimate | None
    """Cosine of gradients at x, over a training of all tasks (``analysis/affinity.py``)."""
    lookahead: tuple[Lookahead | None, Lookahead | None]
    """The share of the second's loss that a step for the first takes away, and the other way round."""
    gates: Estimate | None
    """Jensen-Shannon divergence of the two gates by row in bits, where the experiment's structure has gates."""
    gains: tuple[Gain, ...]
    """Of both tasks with each structure; none where the pair was not trained."""
    advice: Advice
    structure: str | None
    """What to share with: the structure measured, if any."""
    why: str


class Group(Options):
    """Tasks that one model may hold."""

    tasks: tuple[str, ...]
    advice: Advice


class Relations(Options):
    """How T tasks relate, pair by pair, the most related first."""

    tasks: tuple[str, ...]
    seeds: int
    rows: str
    """Which rows gains and skills were measured on, for people."""
    structures: tuple[str, ...]
    """That pairs were trained with."""
    skills: tuple[Skill, ...]
    pairs: tuple[Pair, ...]
    groups: tuple[Group, ...]

    def pair(self, one: str, other: str) -> Pair:
        """The pair of two tasks, in either order."""
        for name in (one, other):
            if name not in self.tasks:
                raise ExperimentError(f"there is no task {name!r}; {nearest(name, self.tasks)}")
        for pair in self.pairs:
            if {*pair.tasks} == {one, other}:
                return pair
        raise ExperimentError(f"task {one!r} makes no pair with itself; name two")

    @property
    def measured(self) -> bool:
        """Whether any pair was trained."""
        return any(pair.gains for pair in self.pairs)


def estimate(values: Sequence[float | None]) -> Estimate | None:
    """Mean and interval of the values there are, one from each seed; None where there are none."""
    found = [value for value in values if value is not None and math.isfinite(value)]
    if not found:
        return None
    mean, _, low, high, n = summary(found)
    return Estimate(mean=mean, low=None if math.isnan(low) else low, high=None if math.isnan(high) else high, seeds=n)
