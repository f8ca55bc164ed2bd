"""The verdict on two tasks: share, share apart or train alone; and which tasks one model may hold."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from multigate.analysis.evidence import Case, Evidence
from multigate.analysis.intervals import paired_difference
from multigate.analysis.reason import reason
from multigate.analysis.relations import Advice, Estimate, Gain, Group, Pair, Skill


class Verdict(NamedTuple):
    """Advice; the structure to follow it with, where one was measured; and why, in words."""

    advice: Advice
    structure: str | None
    why: str


def decide(
    skills: Sequence[Skill], gains: Sequence[Gain], overlap: Estimate | None, cosine: Estimate | None
) -> Verdict:
    """What to do with two tasks, from their skills, their gains, the overlap and the cosine of their gradients.

    A task with nothing to learn is trained alone. Else gains decide, where there are any: a structure is good if one
    task clearly gains and none clearly loses, hard sharing before another unless that is clearly better. If none is
    good, tasks that all structures hurt are trained alone; of the others those that are related share, as one model
    costs less than two. Without gains the overlap decides. Clear is an interval over seeds that leaves out 0.
    """
    measured: dict[str, list[Gain]] = {}
    for one in gains:
        measured.setdefault(one.structure, []).append(one)
    known = Evidence(skills, measured, overlap, cosine)
    structure = _structure(known)
    followed = measured[structure] if structure is not None else []
    return Verdict(_advice(known, followed), structure, reason(known, followed))


def _structure(known: Evidence) -> str | None:
    """The structure to share with, where one was measured and the tasks are to share."""
    match known.case:
        case Case.GAIN:
            return _chosen(known.helpful, known)
        case Case.RELATED:
            return _chosen(known.harmless, known)
    return None


def _advice(known: Evidence, followed: Sequence[Gain]) -> Advice:
    if followed:
        return "share" if followed[0].hard else "share apart"
    if known.case is Case.UNMEASURED and known.related:
        return "share" if known.close else "share apart"
    return "train alone"


def _chosen(names: Sequence[str], known: Evidence) -> str:
    """The best of the hard structures, unless another is clearly better; then the best of those."""
    measured = known.measured
    room = {skill.task: max(abs((skill.value or 0.0) - skill.chance), 1e-9) for skill in known.skills}

    def worth(name: str) -> float:
        """Gains as shares of what the tasks know, so that metrics of two kinds add up."""
        return sum(one.gain.mean / room[one.task] for one in measured[name])

    hard = [name for name in names if measured[name][0].hard]
    apart = [name for name in names if name not in hard]
    if hard:
        best = max(hard, key=worth)
        apart = [name for name in apart if _clearly_better(measured[name], measured[best])]
        if not apart:
            return best
    return max(apart, key=worth)


def _clearly_better(one: Sequence[Gain], other: Sequence[Gain]) -> bool:
    """Whether some task gains clearly more, seed by seed, and none clearly less."""
    pairs = [(a, b) for a in one for b in other if a.task == b.task and len(a.by_seed) == len(b.by_seed)]
    differences = [paired_difference(a.by_seed, b.by_seed) for a, b in pairs]
    return any(each.low > 0 for each in differences) and not any(each.high < 0 for each in differences)


def group(tasks: Sequence[str], pairs: Sequence[Pair]) -> tuple[Group, ...]:
    """Tasks that one model may hold: from the most related pair on, groups are joined while no two tasks between them
    are to be trained alone."""
    advice: dict[frozenset[str], Advice] = {frozenset(pair.tasks): pair.advice for pair in pairs}
    found: list[tuple[str, ...]] = [(task,) for task in tasks]
    for pair in sorted(pairs, key=lambda pair: -1.0 if pair.score is None else pair.score, reverse=True):
        one, other = (next(each for each in found if task in each) for task in pair.tasks)
        if one != other and all(advice[frozenset((a, b))] != "train alone" for a in one for b in other):
            found = [each for each in found if each not in (one, other)]
            found.append(tuple(task for task in tasks if task in (*one, *other)))
    found.sort(key=lambda each: tasks.index(each[0]))
    return tuple(Group(tasks=each, advice=_of_group(each, advice)) for each in found)


def _of_group(tasks: Sequence[str], advice: Mapping[frozenset[str], Advice]) -> Advice:
    if len(tasks) == 1:
        return "train alone"
    inner = {advice[frozenset(two)] for two in combinations(tasks, 2)}
    return "share" if inner == {"share"} else "share apart"
