"""Evidence on two tasks: what is known of them, and which case that makes."""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import NamedTuple

from multigate.analysis.relations import Estimate, Gain, Skill

RELATED = 1 / 3
"""Tasks of at least this overlap are related."""
CLOSE = 2 / 3
"""Tasks of at least this overlap may share everything, as far as can be told without training them together."""
CONFLICT = 0.05
"""Gradients conflict if their cosine is clearly below 0, and at least this far."""


class Case(Enum):
    """What settles whether two tasks share."""

    IDLE = auto()
    """One has nothing to learn."""
    UNMEASURED = auto()
    """They were not trained together."""
    GAIN = auto()
    """With some structure one clearly gains and none clearly loses."""
    HARM = auto()
    """With every structure one clearly loses."""
    RELATED = auto()
    """Some structures harm none and none of these helps, but the tasks are related."""
    UNRELATED = auto()
    """The same of tasks that are not."""


class Evidence(NamedTuple):
    """The skills of two tasks, their gains by structure, the overlap and the cosine of their gradients."""

    skills: Sequence[Skill]
    measured: Mapping[str, Sequence[Gain]]
    """Gains of both tasks; empty where they were not trained together."""
    overlap: Estimate | None
    cosine: Estimate | None

    @property
    def case(self) -> Case:
        """The first that holds, in this order."""
        if self.idle:
            return Case.IDLE
        if not self.measured:
            return Case.UNMEASURED
        if self.helpful:
            return Case.GAIN
        if not self.harmless:
            return Case.HARM
        return Case.RELATED if self.related else Case.UNRELATED

    @property
    def idle(self) -> list[Skill]:
        """Of tasks with nothing to learn."""
        return [skill for skill in self.skills if not skill.learnt]

    @property
    def harmless(self) -> list[str]:
        """Structures with which no task clearly loses."""
        return [name for name, both in self.measured.items() if all(one.gain.side >= 0 for one in both)]

    @property
    def harmful(self) -> list[str]:
        """The others."""
        harmless = self.harmless
        return [name for name in self.measured if name not in harmless]

    @property
    def helpful(self) -> list[str]:
        """Harmless structures with which some task clearly gains."""
        return [name for name in self.harmless if any(one.gain.side > 0 for one in self.measured[name])]

    def of(self, structures: Iterable[str]) -> list[Gain]:
        """The gains with some structures."""
        return [one for name in structures for one in self.measured[name]]

    @property
    def conflict(self) -> bool:
        """Whether gradients conflict."""
        return self.cosine is not None and self.cosine.side < 0 and self.cosine.mean <= -CONFLICT

    @property
    def related(self) -> bool:
        """Whether they read some of the same, and nothing speaks against sharing it."""
        return self._overlap(RELATED)

    @property
    def close(self) -> bool:
        """Whether they are related enough to share everything."""
        return self._overlap(CLOSE)

    def _overlap(self, least: float) -> bool:
        return self.overlap is not None and self.overlap.mean >= least and not self.conflict
