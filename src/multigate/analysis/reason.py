"""The reason of a verdict on two tasks, in words."""

from collections.abc import Iterator, Sequence

from multigate.analysis.evidence import CLOSE, RELATED, Case, Evidence
from multigate.analysis.relations import Gain, Skill


def reason(known: Evidence, followed: Sequence[Gain]) -> str:
    """Why: what there is to tell in this case, clause by clause. ``followed`` are the gains with the structure to
    follow, none where there is none."""
    match known.case:
        case Case.IDLE:
            return _nothing_to_learn(known.idle)
        case Case.UNMEASURED:
            clauses = ["not measured", _directions(known)]
        case Case.GAIN:
            clauses = [_listed(_changes(followed, 1)), *_but(_changes(known.of(known.harmful), -1))]
        case Case.HARM:
            clauses = [*_harm(known)]
        case Case.RELATED:
            clauses = [_no_gain(known), _directions(known), _cheaper(followed), *_harm(known)]
        case Case.UNRELATED:
            clauses = [_no_gain(known), _directions(known), *_harm(known)]
    return "; ".join(clauses)


def _nothing_to_learn(idle: Sequence[Skill]) -> str:
    blank = [f"{one.task} ({one.unscored})" for one in idle if one.unscored]
    if blank:
        unknown = f"the validation rows cannot score {_listed(blank)}, so what sharing gives is not known"
        return f"{unknown}; other validation rows come first"
    told = [f"{one.task} ({one.metric} {'undefined' if one.value is None else f'{one.value:.3f}'})" for one in idle]
    nothing = f"{_listed(told)} cannot be told from chance on the validation rows, so there is nothing to share"
    return f"{nothing}; more rows or other features come first"


def _directions(known: Evidence) -> str:
    """What the tasks read, and whether their gradients conflict."""
    overlap, cosine = known.overlap, known.cosine
    if overlap is None:
        return "their overlap is undefined"
    read = "much the same" if overlap.mean >= CLOSE else "some of the same" if overlap.mean >= RELATED else "different"
    conflict = f", and their gradients conflict (cosine {cosine.mean:+.3f})" if cosine and known.conflict else ""
    return f"they read {read} directions (overlap {overlap.mean:.2f}){conflict}"


def _no_gain(known: Evidence) -> str:
    """That no structure is one to follow for its gains."""
    if _changes(known.of(known.harmful), 1):
        nothing = "no structure helps one without hurting the other"
    else:
        nothing = "no clear gain" if known.harmful else "no clear gain or loss"
    many = max(one.gain.seeds for one in known.of(known.measured))
    return f"{nothing} over {f'{many} seeds' if many > 1 else 'one seed, which has no interval'}"


def _harm(known: Evidence) -> Iterator[str]:
    """What harmful structures do, if there are any."""
    gains = known.of(known.harmful)
    if gains:
        yield _listed(_changes(gains, -1))
        yield from _but(_changes(gains, 1))


def _cheaper(followed: Sequence[Gain]) -> str:
    """What sharing gives all the same, and the largest loss that an interval holds, as a share of what the metric is
    alone."""
    cheaper = "one model costs less than two"
    losses = [
        (one.gain.low / max(abs(one.alone), 1e-9), one)
        for one in followed
        if one.gain.low is not None and one.gain.low < 0
    ]
    if not losses:
        return cheaper
    _, worst = min(losses, key=lambda pair: pair[0])
    return f"{cheaper}, but {worst.task} may lose up to {-(worst.gain.low or 0.0):.4f} {worst.metric}"


def _but(texts: Sequence[str]) -> list[str]:
    return [f"but {_listed(texts)}"] if texts else []


def _changes(gains: Sequence[Gain], side: int) -> list[str]:
    """The tasks that clearly gain (side 1) or lose (-1)."""
    verb = "gains" if side > 0 else "loses"
    return [
        f"{one.task} {verb} {abs(one.gain.mean):.4f} {one.metric} with {one.structure} "
        f"({one.gain.low:+.4f} to {one.gain.high:+.4f})"
        for one in gains
        if one.gain.side == side
    ]


def _listed(texts: Sequence[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
