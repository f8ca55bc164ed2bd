"""Findings: what in an inspection calls for an action, and which."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from multigate.analysis.gates import DEAD, IDLE, LevelGates, dead_sources, polarised_gates
from multigate.analysis.importance import Importance
from multigate.analysis.units import Units
from multigate.experiment import Experiment
from multigate.options import Options

ALIKE = 0.01
"""Gates differ by less than this many bits, row by row: one would do."""
PARTED = 0.8
"""Gates differ by more bits than this on average: hardly anything is shared."""
STILL = 0.01
"""A gate whose weights vary less than this from row to row does not look at the row."""
LOST = 0.5
"""A copy that has lost this share of its units is told."""
NOTHING = 0.0005
"""A metric that loses no more than this does not need the feature."""

ENOUGH = 20
"""Of fewer rows a gate looks still, and a unit dead, in any model."""


class Finding(Options):
    """Something to act on: what was seen, and what to do about it, a sentence each."""

    what: str
    advice: str


def find(
    experiment: Experiment, levels: Sequence[LevelGates], units: Sequence[Units], importance: Sequence[Importance]
) -> tuple[Finding, ...]:
    """What is worth acting on; advice names fields that the experiment has."""
    learned = [level for level in levels if level.learned]
    found: list[Finding] = []
    for at, level in enumerate(levels):
        if level.learned:
            place = f"level {at + 1}: " if len(learned) > 1 else ""
            found += [one.with_(what=place + one.what) for one in _of_gates(experiment, level)]
    return (*found, *_of_units(experiment, units), *_of_features(experiment, importance))


def too_few(rows: int) -> Finding:
    """What stands in place of findings where there are not ``ENOUGH`` rows."""
    return Finding(
        what=f"{rows} row{' is' if rows == 1 else 's are'} too few to tell what calls for an action",
        advice=f"name a table of at least {ENOUGH} rows with labels",
    )


def _of_gates(experiment: Experiment, level: LevelGates) -> Iterator[Finding]:
    dead, settled = dead_sources(level), polarised_gates(level)
    idle = tuple(at for at in dead_sources(level, IDLE) if at not in dead)
    for sources, state, part in ((dead, "dead", DEAD), (idle, "hardly read", IDLE)):
        if sources:
            many = max(1, len(level.sources) - len(dead_sources(level, part)))
            all_of_them = getattr(experiment.sharing, "experts", None) == len(level.sources)
            fewer = f"set sharing.experts={many}" if all_of_them else "use fewer experts"
            dropout = _more_gate_dropout(experiment)
            named = f"{_listed([level.sources[at] for at in sources])} of {len(level.sources)}"
            yield Finding(
                what=f"{named} {_are(sources)} {state}: no gate gives more than {part:.0%} of a uniform share",
                advice=f"{fewer}, which costs less" + (f", or {dropout}, so that all are used" if dropout else ""),
            )
    for reader, source in settled:
        yield Finding(
            what=f"the gate of {level.readers[reader]} has settled on {level.sources[source]}: "
            f"{level.mean[reader][source]:.0%} of its weight on average",
            advice=f"try {_more_gate_dropout(experiment) or _slower(experiment)}, "
            "and compare with shared_bottom and single_task",
        )
    if level.distribution:
        if getattr(experiment.sharing, "gating", "") != "dselect_k_static":  # the same for every row on purpose
            yield from _of_rows(level, {reader for reader, _ in settled})
        yield from _of_pairs(level, {reader for reader, _ in settled})


def _of_rows(level: LevelGates, settled: set[int]) -> Iterator[Finding]:
    spread, choices = np.array(level.sd).max(axis=1), np.array(level.mask).sum(axis=1)
    still = [at for at in range(len(level.readers)) if choices[at] > 1 and spread[at] < STILL and at not in settled]
    if still:
        yield Finding(
            what=f"{_gates([level.readers[at] for at in still])} the same for every row: "
            f"weights vary by at most {spread[still].max():.4f}",
            advice="train for more epochs or at a higher optimizer.learning_rate, or compare with shared_bottom: "
            "a mixture that never changes is a single network",
        )


def _of_pairs(level: LevelGates, settled: set[int]) -> Iterator[Finding]:
    mask, mean, row = (np.array(one) for one in (level.mask, level.divergence, level.row_divergence))
    choosing = np.flatnonzero(mask.sum(axis=1) > 1).tolist()
    pairs = [(i, j) for i, j in combinations(choosing, 2) if (mask[i] & mask[j]).any()]
    most = max((row[pair] for pair in pairs), default=1)
    if most < ALIKE and not settled:
        yield Finding(
            what=f"{_gates([level.readers[at] for at in choosing])} nearly the same: at most {most:.4f} bits apart",
            advice="compare with omoe, which has one gate for all, and with shared_bottom",
        )
    parted = [pair for pair in pairs if mean[pair] > PARTED]
    if parted:
        named = _listed([f"{level.readers[i]} and {level.readers[j]} ({mean[i, j]:.2f} bits)" for i, j in parted])
        yield Finding(
            what=f"tasks that part, their gates have next to nothing in common: {named}",
            advice="compare with single_task: these tasks may pay for sharing and gain nothing",
        )


def _of_units(experiment: Experiment, units: Sequence[Units]) -> Iterator[Finding]:
    for one in units:
        lost = [f"copy {at} ({dead} of {one.units})" for at, dead in enumerate(one.dead) if dead >= LOST * one.units]
        if lost:
            relu = getattr(experiment.sharing, "activation", "") == "relu"
            smooth = " or sharing.activation=silu" if relu else ""
            yield Finding(
                what=f"dead units in {one.module}, 0 on every row: {_listed(lost)}",
                advice=f"try {_slower(experiment)}{smooth}, or make sharing.hidden narrower",
            )


def _of_features(experiment: Experiment, importance: Sequence[Importance]) -> Iterator[Finding]:
    most: dict[str, float] = {}
    for one in importance:
        most[one.feature] = max(most.get(one.feature, 0.0), abs(one.loss))
    idle = [feature for feature, loss in most.items() if loss <= NOTHING]
    if idle:
        targets = {one.target for one in importance}
        unscored = [name for name in experiment.schema.task_names if name not in targets]
        but = f"; {_listed(unscored)}, which these rows cannot score, may need them" if unscored else ""
        yield Finding(
            what=f"{len(idle)} of {len(most)} features that were shuffled change no metric by more than "
            f"{NOTHING:g}: {_listed(idle)}",
            advice="train without them and compare; leave out a few at a time, as features that say the same hide "
            f"each other's worth{but}",
        )


def _more_gate_dropout(experiment: Experiment) -> str:
    """A setting that keeps gates from settling, where the structure has it."""
    now = getattr(experiment.sharing, "gate_dropout", None)
    return "" if now is None or now >= 0.5 else f"sharing.gate_dropout={min(max(0.1, 2 * now), 0.5):g}"


def _slower(experiment: Experiment) -> str:
    return f"optimizer.learning_rate={experiment.optimizer.rate() / 3:.1g}"


def _are(several: Sequence[object]) -> str:
    return "is" if len(several) == 1 else "are"


def _gates(readers: Sequence[str]) -> str:
    return f"the gate of {readers[0]} is" if len(readers) == 1 else f"the gates of {_listed(readers)} are"


def _listed(names: Sequence[str], most: int = 12) -> str:
    """ "a", "a and b", "a, b and 3 more"."""
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
