"""The verdict on two tasks: share, share apart or train alone; and which tasks one model may hold."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from multigate.analysis.intervals import paired_difference
from multigate.analysis.relations import Advice, Estimate, Gain, Group, Pair, Skill

RELATED = 1 / 3
"""Tasks of at least this overlap are related."""
CLOSE = 2 / 3
"""Tasks of at least this overlap may share everything, as far as can be told without training them together."""
CONFLICT = 0.05
"""Gradients conflict if their cosine is clearly below 0, and at least this far."""

Measured = Mapping[str, Sequence[Gain]]
"""Gains of both tasks by structure."""


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
    idle = [skill for skill in skills if not skill.learnt]
    if idle:
        return Verdict("train alone", None, _nothing_to_learn(idle))
    related = overlap is not None and overlap.mean >= RELATED and not _conflict(cosine)
    if not gains:
        close = related and overlap is not None and overlap.mean >= CLOSE
        advice: Advice = "share" if close else "share apart" if related else "train alone"
        return Verdict(advice, None, f"not measured; {_evidence(overlap, cosine)}")
    measured: dict[str, list[Gain]] = {}
    for one in gains:
        measured.setdefault(one.structure, []).append(one)
    harmless = [name for name, both in measured.items() if all(one.gain.side >= 0 for one in both)]
    good = [name for name in harmless if any(one.gain.side > 0 for one in measured[name])]
    harm = _listed([text for name in measured if name not in harmless for text in _clear(measured[name], -1)])
    if good:
        name = _chosen(good, measured, skills)
        why = _listed(_clear(measured[name], 1)) + (f"; but {harm}" if harm else "")
        return Verdict(_advice(measured[name]), name, why)
    if not harmless:
        gained = _listed([text for both in measured.values() for text in _clear(both, 1)])
        return Verdict("train alone", None, f"{harm}; but {gained}" if gained else harm)
    mixed = _listed([text for name in measured if name not in harmless for text in _clear(measured[name], 1)])
    if mixed:
        nothing = f"no structure helps one without hurting the other over {_seeds(gains)}; {_evidence(overlap, cosine)}"
        harm = f"{harm}; but {mixed}"
    else:
        nothing = f"no clear gain{'' if harm else ' or loss'} over {_seeds(gains)}; {_evidence(overlap, cosine)}"
    if related:
        name = _chosen(harmless, measured, skills)
        costs = f"one model costs less than two{_not_ruled_out(measured[name])}"
        why = "; ".join(text for text in (nothing, costs, harm) if text)
        return Verdict(_advice(measured[name]), name, why)
    return Verdict("train alone", None, f"{nothing}; {harm}" if harm else nothing)


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


def _chosen(names: Sequence[str], measured: Measured, skills: Sequence[Skill]) -> str:
    """The best of the hard structures, unless another is clearly better; then the best of those."""
    room = {skill.task: max(abs((skill.value or 0.0) - skill.chance), 1e-9) for skill in skills}

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


def _advice(both: Sequence[Gain]) -> Advice:
    return "share" if both[0].hard else "share apart"


def _nothing_to_learn(idle: Sequence[Skill]) -> str:
    blank = [f"{one.task} ({one.unscored})" for one in idle if one.unscored]
    if blank:
        unknown = f"the validation rows cannot score {_listed(blank)}, so what sharing gives is not known"
        return f"{unknown}; other validation rows come first"
    told = [f"{one.task} ({one.metric} {'undefined' if one.value is None else f'{one.value:.3f}'})" for one in idle]
    nothing = f"{_listed(told)} cannot be told from chance on the validation rows, so there is nothing to share"
    return f"{nothing}; more rows or other features come first"


def _conflict(cosine: Estimate | None) -> bool:
    return cosine is not None and cosine.side < 0 and cosine.mean <= -CONFLICT


def _evidence(overlap: Estimate | None, cosine: Estimate | None) -> str:
    if overlap is None:
        return "their overlap is undefined"
    read = "much the same" if overlap.mean >= CLOSE else "some of the same" if overlap.mean >= RELATED else "different"
    conflict = f", and their gradients conflict (cosine {cosine.mean:+.3f})" if cosine and _conflict(cosine) else ""
    return f"they read {read} directions (overlap {overlap.mean:.2f}){conflict}"


def _clear(both: Sequence[Gain], side: int) -> list[str]:
    """The tasks that clearly gain (side 1) or lose (-1)."""
    verb = "gains" if side > 0 else "loses"
    return [
        f"{one.task} {verb} {abs(one.gain.mean):.4f} {one.metric} with {one.structure} "
        f"({one.gain.low:+.4f} to {one.gain.high:+.4f})"
        for one in both
        if one.gain.side == side
    ]


def _not_ruled_out(both: Sequence[Gain]) -> str:
    """The largest loss that an interval holds, as a share of what the metric is alone."""
    losses = [
        (one.gain.low / max(abs(one.alone), 1e-9), one) for one in both if one.gain.low is not None and one.gain.low < 0
    ]
    if not losses:
        return ""
    _, worst = min(losses, key=lambda pair: pair[0])
    return f", but {worst.task} may lose up to {-(worst.gain.low or 0.0):.4f} {worst.metric}"


def _seeds(gains: Sequence[Gain]) -> str:
    many = max(one.gain.seeds for one in gains)
    return f"{many} seeds" if many > 1 else "one seed, which has no interval"


def _listed(texts: Sequence[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
