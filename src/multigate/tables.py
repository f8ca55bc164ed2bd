"""Tables for the terminal."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from numbers import Real
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from multigate.analysis.comparison import Comparison
from multigate.analysis.gates import LevelGates, dead_sources, is_sparse, polarised_gates
from multigate.analysis.inspection import Finding, Inspection, Served
from multigate.analysis.relations import Estimate, Lookahead, Pair, Relations
from multigate.analysis.tuning import Tuning
from multigate.errors import ExperimentError
from multigate.formats import number
from multigate.run import Run

Intervals = Mapping[str, tuple[float, float]]

WIDTH = 120
"""Of what is printed elsewhere than on a terminal."""
MOST_SOURCES = 10
MOST_READERS = 10
MOST_FEATURES = 12
SIDE_BY_SIDE = 3
MOST_STRUCTURES = 4
BESIDE = 2
"""What fits into 80 columns, no number of it folded: sources of a level, readers both ways. What fits into 100:
features of a target, targets, structures, and structures beside other evidence."""
MOST_PAIRS = 50
"""Pairs of tasks that are printed: of 60 tasks there are 1,770."""
SMALLEST = 0.00005
"""What four digits after the point can tell from 0."""


def show(found: Any) -> None:
    """Print what a function returned as the command line does: a comparison, tuning, inspection, relations of tasks, a
    run (its validation metrics), or metrics, with or without their intervals.

    Raises ``ExperimentError`` for anything else.
    """
    match found:
        case Comparison() | Tuning():
            table: RenderableType = found.table()
        case Inspection():
            table = inspection_tables(found)
        case Relations():
            table = relation_tables(found)
        case Run():
            table = run_table(f"{found.folder}: validation, best weights", found)
        case (Mapping() as metrics, Mapping() as intervals) if _are_metrics(metrics):
            table = metric_table("", metrics, intervals)
        case Mapping() if _are_metrics(found):
            table = metric_table("", found)
        case _:
            raise ExperimentError(
                f"there is no table of {type(found).__name__}; show a run, a comparison, a tuning, an inspection, "
                "relations of tasks, or metrics"
            )
    console = Console()
    Console(width=None if console.is_terminal or console.is_jupyter else WIDTH).print(table)


def _are_metrics(found: Mapping[Any, Any]) -> bool:
    """Whether these are numbers by name, and not arrays, as predictions are."""
    return all(isinstance(name, str) and isinstance(value, Real) for name, value in found.items())


def run_table(title: str, run: Run) -> Table:
    """The validation metrics of a run's training; where predictions go through curves, they are from before."""
    before = ", before the curves that correct its predictions" if run.experiment.corrects else ""
    return metric_table(title + before, run.best)


def metric_table(title: str, metrics: Mapping[str, float], intervals: Intervals | None = None) -> Table:
    """One row per metric of every task (or conditional), with its interval where there are any."""
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    table.add_column("task", overflow="fold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    if intervals:
        table.add_column("95 % interval", justify="right")
    for task, names in groupby(metrics, key=lambda name: name.rpartition("/")[0]):
        for place, name in enumerate(names):
            cells = ["" if place else task, name.rpartition("/")[2], number(metrics[name])]
            if intervals:
                low, high = intervals.get(name, (float("nan"), float("nan")))
                cells.append(f"{number(low)} to {number(high)}" if math.isfinite(low) and math.isfinite(high) else "")
            _add(table, cells)
        table.add_section()
    return table


def inspection_tables(inspection: Inspection) -> Group:
    """Gates of every level, what sources serve, what features are worth, and last what to act on."""
    several = len(inspection.levels) > 1
    parts: list[RenderableType] = [
        Text(f"{inspection.model}: {inspection.structure}, on {inspection.rows}", style="bold")
    ]
    for at, level in enumerate(inspection.levels):
        alone = "Gates" if level.learned else "Wiring"
        parts.append(_gate_table(f"Level {at + 1}" if several else alone, level))
        if is_sparse(level):
            parts.append(_choice_table(level))
        if level.learned and level.distribution and len(level.readers) > 1:
            parts.append(_divergence_table(level))
    if inspection.served:
        parts.append(_served_table(inspection.served, several))
    parts += _importance_tables(inspection)
    return Group(*parts, _finding_list(inspection.findings))


def _gate_table(name: str, level: LevelGates) -> Group:
    """Whichever there are fewer of, readers or sources, side by side."""
    dead, settled = dead_sources(level), dict(polarised_gates(level))
    shown = _largest_sources(level)
    cells = [["", *(level.sources[at] + (" dead" if at in dead else "") for at in shown)]]
    for i, reader in enumerate(level.readers):
        spread = [f" ±{100 * sd:.0f}" if level.learned else "" for sd in level.sd[i]]
        weights = [f"{100 * level.mean[i][at]:.0f}{spread[at]}" if level.mask[i][at] else "-" for at in shown]
        cells.append([f"{reader} (settled)" if i in settled else reader, *weights])
    legend = ""
    if level.learned and level.distribution:
        cells[0] += ["spread", "by row"]
        for row, mean, by_row in zip(cells[1:], level.entropy, level.row_entropy, strict=True):
            row += [f"{mean:.2f}", f"{by_row:.2f}"]
        legend = "spread: entropy of the mean weights, and of those by row; 0 one source, 1 all alike"
    what = "mean weight ± sd over rows, in %" if level.learned else "who reads what, in %; nothing varies"
    left = f"; the {len(shown)} largest of {len(level.sources)} sources" if len(shown) < len(level.sources) else ""
    if len(cells[0]) > len(cells):
        cells = [list(column) for column in zip(*cells, strict=True)]
    return _section(f"{name}: {what}{left}", _matrix(cells), legend)


def _largest_sources(level: LevelGates) -> list[int]:
    """Those that some reader weighs most, in their order."""
    most = [max(abs(row[at]) for row in level.mean) for at in range(len(level.sources))]
    return sorted(sorted(range(len(most)), key=lambda at: -most[at])[:MOST_SOURCES])


def _choice_table(level: LevelGates) -> Group:
    """How often a sparse gate chooses each source."""
    shown = _largest_sources(level)
    cells = [["", *(level.sources[at] for at in shown)]]
    for i, reader in enumerate(level.readers):
        shares = [f"{100 * level.selected[i][at]:.0f}" if level.mask[i][at] else "-" for at in shown]
        cells.append([reader, *shares])
    if len(cells[0]) > len(cells):
        cells = [list(column) for column in zip(*cells, strict=True)]
    legend = f"a row needs {level.needed:.1f} of {len(level.sources)} sources on average, for all readers together"
    return _section("Share of rows that read a source, in %", _matrix(cells), legend)


def _divergence_table(level: LevelGates) -> Group:
    """Of many readers those that are furthest from another."""
    shown = _furthest_readers(level)
    cells = [["", *(level.readers[at] for at in shown)]]
    for i in shown:
        apart = level.row_divergence[i]
        cells.append([level.readers[i], *("-" if i == j else f"{apart[j]:.3f}" for j in shown)])
    left = f"; the {len(shown)} furthest of {len(level.readers)} readers" if len(shown) < len(level.readers) else ""
    legend = "Jensen-Shannon divergence in bits, by row; 0 alike, 1 nothing in common"
    return _section(f"How far the gates are apart{left}", _matrix(cells), legend)


def _furthest_readers(level: LevelGates) -> list[int]:
    """Those that some other reader is furthest from, in their order."""
    most = [max(row) for row in level.row_divergence]
    return sorted(sorted(range(len(most)), key=lambda at: -most[at])[:MOST_READERS])


def _matrix(cells: Sequence[Sequence[str]]) -> Table:
    """The first row and the first column are names."""
    table = _table()
    for at, name in enumerate(cells[0]):
        table.add_column(Text(name), justify="right" if at else "left", overflow="fold")
    for row in cells[1:]:
        _add(table, row)
    return table


def _served_table(served: Sequence[Served], several: bool) -> Group:
    table = _table()
    for column in ("source", "feature", "value"):
        table.add_column(column, overflow="fold")
    for column in ("share", "of all rows", "lift"):
        table.add_column(column, justify="right")
    for (level, source), group in groupby(served, key=lambda one: (one.level, one.source)):
        name = f"level {level + 1}: {source}" if several else source
        for place, one in enumerate(group):
            numbers = [f"{one.share:.1%}", f"{one.overall:.1%}", f"{one.lift:.2f}"]
            _add(table, ["" if place else name, one.feature, _short(one.value), *numbers])
        table.add_section()
    legend = "share: of the rows, weighted by how much of the source is read; only what is clearly no chance"
    return _section("What sources serve: values their rows have more often", table, legend)


def _importance_tables(inspection: Inspection) -> Iterator[Group]:
    """A few targets side by side, the features of each by falling loss."""
    targets = [list(group) for _, group in groupby(inspection.importance, key=lambda one: one.target)]
    for start in range(0, len(targets), SIDE_BY_SIDE):
        table, columns = _table(), []
        for target in targets[start : start + SIDE_BY_SIDE]:
            table.add_column(Text(target[0].target), overflow="fold")
            table.add_column(Text(target[0].metric), justify="right")
            clear = [one for one in target if one.loss > max(one.sd, SMALLEST)][:MOST_FEATURES]
            cells = [(one.feature, f"{one.loss:.4f} ±{one.sd:.4f}") for one in clear]
            columns.append(cells or [("nothing clear", "")])
        for row in zip_longest(*columns, fillvalue=("", "")):
            _add(table, [cell for pair in row for cell in pair])
        what = "continued" if start else "what the metric loses when one is shuffled"
        legend = f"± sd of one shuffle; the {MOST_FEATURES} largest losses that exceed it"
        yield _section(f"What features are worth: {what}", table, legend)
    for note in filter(None, (inspection.unknown, inspection.untried)):
        yield Group(Text(note, style="dim"))


def _finding_list(findings: Sequence[Finding]) -> Group:
    grid = Table.grid(padding=(0, 1))
    for finding in findings:
        grid.add_row("•", Text.assemble(finding.what, "\n", (finding.advice, "dim")))
    if not findings:
        grid.add_row("•", "nothing that calls for action")
    return Group(Text(), Text("Findings", style="bold"), grid)


def relation_tables(relations: Relations) -> Group:
    """A row for every pair, of many for some, with evidence, gains and advice; then why, and which tasks one model may
    hold."""
    seeds = f"{relations.seeds} seed{'s' if relations.seeds > 1 else ''}"
    title = Text(f"Which tasks belong together: {len(relations.tasks)} tasks, {relations.rows}, {seeds}", style="bold")
    table = _table()
    beside = relations.structures if len(relations.structures) <= BESIDE else ()
    for name in ("pair", "overlap", "labels", "gradients", "lookahead", "gates", *beside, "advice"):
        table.add_column(Text(name), justify="left" if name in ("pair", "advice") else "right", overflow="fold")
    pairs = _foremost(relations.pairs)
    for pair in pairs:
        _add_lines(table, _pair_cells(pair, beside))
    legend = (
        "overlap ranks pairs: 1 the same directions of x, 0 none in common; labels: their correlation;\n"
        "gradients: their cosine at x; lookahead: the share of the other's loss that a step for one takes away,\n"
        "in brackets where it is less than two standard errors over the looks at the training;\n"
        "gates: divergence in bits; "
        + ("± half an interval at 95 % over seeds" if relations.seeds > 1 else "one seed has no intervals")
    )
    if relations.measured and relations.seeds > 1:
        many = sum(len(pair.gains) for pair in relations.pairs)
        legend += f"; * the gain's interval leaves out 0 (by chance alone about {0.05 * many:.0f} of {many} do)"
    if len(pairs) < len(relations.pairs):
        legend += (
            f"\n{len(pairs)} of {len(relations.pairs):,} pairs: those to share, those trained, then those that overlap "
            "most; relations.json has all"
        )
    grid = Table.grid(padding=(0, 1))
    for pair in pairs:
        how = f"{pair.advice} with {pair.structure}" if pair.structure else pair.advice
        grid.add_row("•", Text.assemble(f"{' + '.join(pair.tasks)}: {how}", "\n", (pair.why, "dim")))
    groups = Table.grid(padding=(0, 1))
    for one in relations.groups:
        groups.add_row("•", Text(f"{', '.join(one.tasks)}: {one.advice}"))
    heads = [Text(head, style="bold") for head in ("Why", "Models to train")]
    below = () if beside else _gain_tables(pairs, relations.structures)
    evidence = (title, Text(), table, *below, Text(legend, style="dim"))
    return Group(*evidence, Text(), heads[0], grid, Text(), heads[1], groups)


def _gain_tables(pairs: Sequence[Pair], structures: Sequence[str]) -> Iterator[Group]:
    """The gains of pairs that were trained with more structures than fit beside the evidence, a few side by side."""
    trained = [pair for pair in pairs if pair.gains]
    for start in range(0, len(structures), MOST_STRUCTURES):
        shown = structures[start : start + MOST_STRUCTURES]
        table = _table()
        for name in ("pair", *shown):
            table.add_column(Text(name), justify="right" if name in shown else "left", overflow="fold")
        for pair in trained:
            _add_lines(table, ["\n".join(pair.tasks), *_gain_cells(pair, shown)])
        title = "MTL gain over single task" + (", continued" if start else "")
        yield _section(title, table, "")


def _foremost(pairs: Sequence[Pair]) -> list[Pair]:
    """``MOST_PAIRS`` of them at most, in their order: those to share, those trained, then those that overlap most."""

    def rank(at: int) -> tuple[bool, bool, float]:
        return pairs[at].advice == "train alone", not pairs[at].gains, -(pairs[at].score or 0.0)

    return [pairs[at] for at in sorted(sorted(range(len(pairs)), key=rank)[:MOST_PAIRS])]


def _pair_cells(pair: Pair, structures: Sequence[str]) -> list[str]:
    """Two lines each: of the first task and of the second, or a mean and its uncertainty."""
    cells = ["\n".join(pair.tasks), _estimate_cell(pair.overlap, 2)]
    cells += ["n/a" if pair.labels is None else f"{pair.labels:+.3f}", _estimate_cell(pair.gradients, 3, "+")]
    cells += ["\n".join(map(_lookahead_cell, pair.lookahead))]
    cells += ["" if pair.gates is None else _estimate_cell(pair.gates, 3)]
    return [*cells, *_gain_cells(pair, structures), f"{pair.advice}\n{pair.structure or ''}".rstrip()]


def _gain_cells(pair: Pair, structures: Sequence[str]) -> Iterator[str]:
    """A cell for each structure, a line for each task."""
    gains = {(one.structure, one.task): one.gain for one in pair.gains}
    for structure in structures:
        of_both = [gains.get((structure, task)) for task in pair.tasks]
        yield "\n".join("" if one is None else _gain_cell(one) for one in of_both)


def _estimate_cell(one: Estimate | None, digits: int, sign: str = "") -> str:
    if one is None:
        return "n/a"
    spread = "" if one.low is None or one.high is None else f"\n±{(one.high - one.low) / 2:.{digits}f}"
    return f"{one.mean:{sign}.{digits}f}{spread}"


def _lookahead_cell(one: Lookahead | None) -> str:
    """In brackets where it cannot be told from 0."""
    if one is None:
        return "n/a"
    return f"{one.mean:+.1e} " if one.clear else f"({one.mean:+.1e})"


def _gain_cell(one: Estimate) -> str:
    spread = "" if one.low is None or one.high is None else f" ±{(one.high - one.low) / 2:.4f}"
    return f"{one.mean:+.4f}{spread}{' *' if one.side else '  '}"


def _section(title: str, table: Table, legend: str) -> Group:
    return Group(Text(), Text(title, style="bold"), table, *([Text(legend, style="dim")] if legend else []))


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)


def _add(table: Table, cells: Sequence[str]) -> None:
    """As plain text: names may hold what would be taken for markup."""
    table.add_row(*map(Text, cells))


def _add_lines(table: Table, cells: Sequence[str]) -> None:
    """A row for each line of the cells: where one is folded, the others stay in line with it."""
    for line in zip_longest(*(cell.split("\n") for cell in cells), fillvalue=""):
        _add(table, line)
    table.add_section()


def _short(value: str, most: int = 40) -> str:
    return value if len(value) <= most else value[: most - 1] + "…"
