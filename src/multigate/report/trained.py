"""What a report is about: a run, or a comparison and its joint model, with what analyses find, each looked at once."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from multigate.analysis.comparison import Comparison, is_comparison, open_comparison
from multigate.analysis.inspection import Inspection, inspect_model
from multigate.analysis.subject import Subject, find_subject
from multigate.data.encoder import Encoder
from multigate.data.prepared import Prepared
from multigate.experiment import Experiment, make_experiment, with_balance
from multigate.folders import at_home
from multigate.progress import Progress
from multigate.run import Run, open_run, stored_values
from multigate.training.train import PREPARED

Source = str | Path | Run | Comparison
"""A run or a comparison, or its folder."""


class Trained:
    """A run or a comparison under the name the page calls it by; ``table`` stands in for its prepared rows."""

    def __init__(
        self, source: Run | Comparison, name: str, table: Any = None, progress: Progress | None = None
    ) -> None:
        self.source, self.name, self._table, self._progress = source, name, table, progress
        self.folder = source.folder

    @property
    def from_table(self) -> bool:
        """Whether a table stands in for the rows it was trained with."""
        return self._table is not None

    @property
    def comparison(self) -> Comparison | None:
        return self.source if isinstance(self.source, Comparison) else None

    @property
    def run(self) -> Run | None:
        return self.source if isinstance(self.source, Run) else None

    @cached_property
    def experiment(self) -> Experiment:
        if self.run:
            return self.run.experiment
        return make_experiment(with_balance(stored_values(self.folder)), name=str(self.folder))

    @cached_property
    def encoder(self) -> Encoder:
        return self.run.bundle().encoder if self.run else Encoder.load(self.folder / PREPARED / "encoder")

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each part."""
        if self.run:
            return dict(self.run.summary["rows"])
        return {name: part.rows for name, part in Prepared(self.folder / PREPARED).parts.items()}

    @property
    def main_metrics(self) -> list[str]:
        """The main metric of every task, and of every conditional after its task."""
        return (self.comparison or Comparison(self.folder, self.experiment.schema, ())).metrics()

    @property
    def joint(self) -> list[str]:
        """Structures of a comparison that trained one model for all tasks with seed 0."""
        if self.comparison is None:
            return []
        found = {row["structure"] for row in self.comparison.rows if row.get("sharing") and row["seed"] == 0}
        return [name for name in self.comparison.structures if name in found]

    @property
    def chosen(self) -> str:
        """The joint structure of a comparison that is looked at."""
        return "mmoe" if "mmoe" in self.joint else self.joint[-1]

    def subject(self, part: str = "valid", structure: str | None = None) -> Subject:
        """The model with the table's rows, or those of a part."""
        own = self.run.structures if self.run else ()
        return find_subject(self.folder, self._table, part=part, structure=structure, structures=own)

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts there are to score, validation rows first; those of a table are all one."""
        return ("valid",) if self.from_table or "test" not in self.rows else ("valid", "test")

    @cached_property
    def looked_at(self) -> Subject:
        """The model with the table's or validation rows, for all that explains it."""
        return self.subject(structure=self.chosen if self.comparison else None)

    @cached_property
    def checked(self) -> Subject:
        """The model with rows that its probabilities can be held against: curves are fitted to validation rows."""
        if not self.looked_at.bundle.curves or self.parts == ("valid",):
            return self.looked_at
        return self.subject("test")

    @cached_property
    def inspection(self) -> Inspection:
        return inspect_model(self.looked_at, progress=self._progress)


def open_trained(paths: Source | Sequence[Source], table: Any, progress: Progress | None) -> list[Trained]:
    """Runs and comparisons, each once, under the shortest end of its path that no other has; or one alone."""
    each = [paths] if isinstance(paths, str | Path | Run | Comparison) else paths
    sources = {source.folder.resolve(): source for source in map(_open, each)}
    ways = [folder.parts for folder in sources]
    names = ["/".join(way[-_parts_to_tell(way, ways) :]) for way in ways]
    return [Trained(source, name, table, progress) for source, name in zip(sources.values(), names, strict=True)]


def _open(path: Source) -> Run | Comparison:
    if isinstance(path, Run | Comparison):
        return path
    return open_comparison(path) if is_comparison(at_home(path)) else open_run(path)


def _parts_to_tell(way: tuple[str, ...], ways: Sequence[tuple[str, ...]]) -> int:
    """How many parts of a path, from its end, no other path shares."""
    return next((n for n in range(1, len(way)) if sum(way[-n:] == other[-n:] for other in ways) == 1), len(way))
