"""What an analysis looks at: a trained model and rows with labels, found from a folder."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from os import PathLike
from pathlib import Path
from typing import Any

from multigate.analysis.comparison import is_comparison, open_comparison
from multigate.batch import Batch
from multigate.bundle import ROWS, Bundle, load
from multigate.bundle_files import ABOUT
from multigate.data.prepared import Prepared
from multigate.data.rows import cuts
from multigate.data.shards import PIECES
from multigate.errors import DataError, RunError
from multigate.evaluate import Scored, forward
from multigate.folders import at_home
from multigate.run import Run, open_run
from multigate.sharing import Structures
from multigate.training.train import PREPARED


@dataclass(frozen=True)
class Subject:
    """A model and encoded rows, with labels, to look at it with."""

    name: str
    """For people: the folder, and which of its models."""
    bundle: Bundle
    batches: tuple[Batch, ...]
    rows: str
    """Which rows they are, for people: "20,000 of 60,000 validation rows"."""

    def scored(self) -> Scored:
        """Outputs and labels of all rows."""
        return forward(self.bundle.model, self.batches, next(self.bundle.model.parameters()).device)

    @property
    def count(self) -> int:
        """Rows there are."""
        return sum(batch.rows for batch in self.batches)


def find_subject(
    path: Bundle | str | PathLike[str],
    table: Any = None,
    *,
    part: str = "valid",
    most: int = 50_000,
    structure: str | None = None,
    seed: int = 0,
    structures: Structures = (),
) -> Subject:
    """The model in a run, bundle or comparison folder, and at most about ``most`` rows, evenly spread.

    Rows come from ``table`` if given, else from the ``part`` prepared beside the model: validation rows unless asked
    otherwise, so that looking at a model does not use up the test rows. Of a comparison it is ``structure`` (MMoE, or
    else the last joint structure there is) with ``seed``. A ``Bundle`` wants a table. ``structures`` names structures
    of your own that it may use, those of a ``Run`` unless said. Raises ``RunError`` or ``BundleError`` where there is
    no model, ``DataError`` where there are no such rows.
    """
    if isinstance(path, Run):
        structures = structures or path.structures
    if isinstance(path, Bundle):
        if table is None:
            raise DataError("a bundle in memory has no rows beside it; give a table with labels")
        return _on_table("a bundle in memory", path, table, most)
    folder = at_home(path)
    name = str(folder)
    if is_comparison(folder):
        comparison = open_comparison(folder)
        there = {row["structure"] for row in comparison.rows if row.get("sharing") and row["seed"] == seed}
        joint = [one for one in comparison.structures if one in there]
        if not joint:
            raise RunError(f"{folder} holds no joint model of seed {seed}; inspect one of its runs, or train one")
        chosen = structure or ("mmoe" if "mmoe" in joint else joint[-1])
        bundle = comparison.bundle(chosen, seed, structures=structures)
        name = f"{folder} ({chosen}, seed {seed})"
    else:
        if table is None and not (folder / PREPARED / "manifest.json").is_file():
            if not (folder / ABOUT).is_file():
                open_run(folder)  # says what is missing where this is no run
            raise RunError(f"{folder} has no prepared rows; name a table with labels")
        bundle = load(folder, structures=structures)
    if table is not None:
        return _on_table(name, bundle, table, most)
    prepared = Prepared(folder / PREPARED)
    if part not in prepared.parts:
        raise DataError(f"{folder} has no {part} rows; it has {', '.join(prepared.parts)}; or name a table")
    chosen_part = prepared.parts[part]
    batches = tuple(chosen_part.sample(ROWS, most))
    found = sum(batch.rows for batch in batches)
    what = "validation" if part == "valid" else part
    return Subject(name, bundle, batches, f"{_of(found, chosen_part.rows)} {what} rows")


def _on_table(name: str, bundle: Bundle, table: Any, most: int) -> Subject:
    chosen, count = _thinned((batch for batch, _ in bundle.batches(table, labels=True)), most)
    found = sum(batch.rows for batch in chosen)
    shown = str(table) if isinstance(table, str | Path) else "a table in memory"
    return Subject(name, bundle, chosen, f"{_of(found, count)} rows of {shown}")


def _of(found: int, rows: int) -> str:
    return f"{found:,}" if found == rows else f"{found:,} of {rows:,}"


def _thinned(batches: Iterable[Batch], most: int) -> tuple[tuple[Batch, ...], int]:
    """At most about ``most`` rows, evenly spread, of so many in all; never many more are held at once.

    Of few rows the batches are parts of those there are, for a single one would be the first rows alone.
    """
    kept: list[Batch] = []
    stride, count = 1, 0
    pieces = (piece for batch in batches for piece in cuts(batch, max(1, most // PIECES)))
    for at, batch in enumerate(pieces):
        count += batch.rows
        if at % stride == 0:
            kept.append(batch)
        if len(kept) > 1 and sum(one.rows for one in kept) > 2 * most:
            kept, stride = kept[::2], 2 * stride
    rows = sum(batch.rows for batch in kept)
    return tuple(kept[:: max(1, ceil(rows / most))]), count
