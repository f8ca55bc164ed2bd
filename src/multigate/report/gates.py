"""What gates do: how much each reader reads of each expert, what experts serve, and what calls for an action."""

from collections.abc import Iterator, Sequence

from multigate.analysis.inspection import LevelGates, Served
from multigate.formats import listed, share
from multigate.report.blocks import Block, Chart, Figure, Listing, Table, Text
from multigate.report.charts import gate_chart, heat_chart
from multigate.report.trained import Trained

MOST_SERVED = 3
MANY_SOURCES = 24
"""More bars than that get the width of the page."""


def findings(one: Trained) -> Iterator[Block]:
    """What calls for an action."""
    found = one.inspection.findings
    if found:
        yield Listing(tuple((f"{finding.what}:", finding.advice) for finding in found))
    else:
        yield Text(f"The inspection of {one.inspection.rows} found nothing that calls for an action.")


def weights(one: Trained) -> Iterator[Block]:
    """Gate weights by reader and source; their evenness; how far apart readers are."""
    inspection = one.inspection
    learned = [(number, level) for number, level in enumerate(inspection.levels, 1) if level.learned]
    if not learned:
        yield Text(f"{inspection.structure} has no gates: every reading weighs 1.")
    for number, level in learned:
        where = f" of level {number}" if len(inspection.levels) > 1 else ""
        yield from _level(level, where, inspection.rows)


def served(one: Trained) -> Iterator[Block]:
    """Values over-represented among the rows each expert serves."""
    inspection = one.inspection
    by_source: dict[tuple[int, int], list[Served]] = {}
    for it in inspection.served:
        place = it.level, inspection.levels[it.level].sources.index(it.source)
        by_source.setdefault(place, []).append(it)
    chosen = [
        it for place in sorted(by_source) for it in sorted(by_source[place], key=lambda it: -it.lift)[:MOST_SERVED]
    ]
    if not chosen:
        return
    yield Text(
        f"The {MOST_SERVED} values that stand out most among the rows an expert serves, compared with all rows. What "
        "goes together is not a cause."
    )
    several = len(inspection.levels) > 1
    rows = tuple(
        (
            f"level {it.level + 1}: {it.source}" if several else it.source,
            it.feature,
            it.value,
            share(it.share),
            share(it.overall),
            f"{it.lift:.1f}",
            f"{it.rows:,}",
        )
        for it in chosen
    )
    head = ("expert", "feature", "value", "share there", "share overall", "times", "rows")
    yield Table("What experts serve", head, rows, words=3)


def _level(level: LevelGates, where: str, rows: str) -> Iterator[Block]:
    # a source that few rows read may have a mean above all its quantiles
    weights = [weight for reader in level.quantiles for quantiles in reader for weight in quantiles]
    weights += [weight for reader in level.mean for weight in reader]
    ends = min(0.0, *weights), max(weights)
    charts = tuple(_bars(level, reader, ends) for reader in range(len(level.readers)))
    yield Figure(
        f"Gates{where} on {rows}: the mean weight of each source (bar), the middle half of the rows (thick line) and "
        f"5 to 95 % of them (thin line). Bars of one height mean that a reader uses all alike; long lines, that it "
        f"chooses by row. {_told(level)}",
        charts,
        wide=len(level.sources) > MANY_SOURCES,
    )
    if len(level.readers) > 1 or len(level.sources) > 1:
        yield Figure(
            f"The same mean weights{where} as numbers: columns are readers. Columns alike share; columns that differ "
            "have found experts of their own.",
            (_means(level),),
            wide=True,
        )
    if level.entropy:
        lines = zip(level.readers, level.entropy, level.row_entropy, strict=True)
        yield Text(
            f"Utilisation{where} is the entropy of the weights over that of uniform ones: 0 is one source only, 1 is "
            "all alike. Mean weights can be even while every row has a favourite."
        )
        yield Table(
            f"Utilisation{where}",
            ("reader", "of its mean weights", "of single rows, averaged"),
            tuple((reader, f"{mean:.2f}", f"{row:.2f}") for reader, mean, row in lines),
        )
    if len(level.readers) > 1 and level.divergence:
        yield Figure(
            f"How far apart two readers' gates{where} are: Jensen-Shannon divergence in bits; 0 is the same, 1 nothing "
            "in common. By row: of the weights in single rows, averaged, as multigate inspect prints it. Readers that "
            "differ row by row may have the same mean weights.",
            (
                _apart("by row", where, level.readers, level.row_divergence),
                _apart("of the mean weights", where, level.readers, level.divergence),
            ),
            wide=True,
        )


def _apart(title: str, where: str, readers: Sequence[str], divergence: Sequence[Sequence[float]]) -> Chart:
    description = f"Divergence {title} between the gates{where} of each pair of readers"
    return heat_chart(title, description, readers, readers, divergence, digits=3)


def _bars(level: LevelGates, reader: int, ends: tuple[float, float]) -> Chart:
    name = level.readers[reader]
    allowed = [s for s, allowed in enumerate(level.mask[reader]) if allowed]
    told = ", ".join(f"{level.sources[s]} {level.mean[reader][s]:.2f}" for s in allowed)
    return gate_chart(
        name,
        f"Mean gate weights of {name}: {told}",
        [level.sources[s] for s in allowed],
        [level.mean[reader][s] for s in allowed],
        [level.quantiles[reader][s] for s in allowed],
        ends,
        reader,
    )


def _means(level: LevelGates) -> Chart:
    values = [
        [level.mean[r][s] if level.mask[r][s] else None for r in range(len(level.readers))]
        for s in range(len(level.sources))
    ]
    top = max(abs(value) for line in values for value in line if value is not None)
    description = "Mean gate weight of each source for each reader"
    signed = not level.distribution
    return heat_chart("", description, level.sources, level.readers, values, top=top, signed=signed)


def _told(level: LevelGates) -> str:
    """Each reader's favourite."""
    favourites = []
    for reader, means in zip(level.readers, level.mean, strict=True):
        source, mean = max(zip(level.sources, means, strict=True), key=lambda pair: abs(pair[1]))
        favourites.append(f"{reader} reads {source} most ({mean:.2f})")
    return f"Here {listed(favourites)}."
