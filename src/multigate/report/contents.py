"""What chapters a page has, and in which order."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from multigate.report import (
    calibration,
    compared,
    curves,
    differences,
    gates,
    importance,
    origin,
    quality,
    relations,
    wiring,
)
from multigate.report.blocks import Block, Part, Section
from multigate.report.trained import Trained

Maker = Callable[[Trained], Iterable[Block]]


def sections(trained: Sequence[Trained]) -> Iterator[Section]:
    """Chapters about runs and comparisons; nothing is looked at before a part of one is made."""
    runs = [one for one in trained if one.run]
    comparisons = [one for one in trained if one.comparison]
    models = [one for one in trained if one.run or one.joint]
    several = len(trained) > 1

    def each(chosen: Sequence[Trained], *makers: Maker, model: bool = True) -> tuple[Part, ...]:
        """Parts of every run or comparison, under its name where the page is about several."""
        return tuple(Part(_heading(one, several, model), partial(maker, one)) for one in chosen for maker in makers)

    yield Section(
        "origin",
        "What was trained, and on what",
        (Part("", partial(origin.models, trained)), *each(trained, origin.data, model=False)),
    )
    both = [Part("", partial(compared.runs, runs))] if len(runs) > 1 else []
    yield Section("compared", "Compared", (*both, *each(comparisons, compared.structures, model=False)))
    curve = [Part("", partial(curves.of_runs, runs))] if runs else []
    yield Section("curves", "Curves of training", (*curve, *each(comparisons, curves.of_comparison, model=False)))
    yield Section("metrics", "Metrics with intervals", each(runs, quality.metrics))
    yield Section("calibration", "Calibration", each(models, calibration.curves))
    yield Section("findings", "Findings", each(models, gates.findings))
    yield Section("gates", "Gates and experts", each(models, gates.weights, gates.served))
    yield Section("importance", "What features are worth", each(models, importance.worth))
    yield Section("wiring", "Who reads whom", each(models, wiring.picture))
    yield Section("relatedness", "How tasks relate", each(models, relations.matrices))
    yield Section("differences", "Differences on the same rows", tuple(_pairs(runs, comparisons, several)))


def _heading(one: Trained, several: bool, model: bool) -> str:
    names = [one.name] if several else []
    return ": ".join([*names, f"{one.chosen}, seed 0"] if model and one.comparison else names)


def _pairs(runs: Sequence[Trained], comparisons: Sequence[Trained], several: bool) -> Iterator[Part]:
    """The first run against every other, and within a comparison the first joint structure against every other."""
    for other in runs[1:]:
        yield _pair(runs[0], other, (runs[0].name, other.name), (None, None))
    for one in comparisons:
        within = f"{one.name}: " if several else ""
        for structure in one.joint[1:]:
            yield _pair(one, one, (one.joint[0], structure), (one.joint[0], structure), within)


def _pair(
    a: Trained, b: Trained, names: tuple[str, str], structures: tuple[str | None, str | None], within: str = ""
) -> Part:
    def make() -> Iterable[Block]:
        part = a.parts[-1] if a.parts == b.parts else "valid"
        subjects = a.subject(part, structures[0]), b.subject(part, structures[1])
        return differences.between(*subjects, names, a.main_metrics)

    return Part(f"{within}{names[1]} against {names[0]}", make)
