"""The folder of a reproduction: its settings, and a file of results for every part of it that is done."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from multigate.errors import RunError
from multigate.folders import EXPERIMENT
from multigate.lock import LOCK
from multigate.options import Options
from multigate.run import completed, difference
from multigate.writing import disk_errors, write_text, writing
from multigate.yaml_text import dump_yaml, read_yaml

SETTINGS, PARTS, RESULTS = "settings.yaml", "parts", "results.parquet"
Row = Mapping[str, Any]
"""One run: numbers, words, and lists of numbers."""


class Ledger:
    """What has been run so far, part by part; a part is there whole or not at all.

    Opened again it goes on, as long as its settings are the same, those apart that ``may_change``; else ``RunError``
    says what differs.
    """

    def __init__(self, folder: Path, study: str, settings: Options, may_change: Collection[str] = ()) -> None:
        self.folder = folder
        now = {"study": study} | settings.to_dict(full=True)
        kept = folder / SETTINGS
        if kept.is_file():
            before = completed(read_yaml(kept), settings)
            changed = difference(_fixed(before, may_change), _fixed(now, may_change))
            if changed and not _is_new(folder):
                raise RunError(f"{folder} holds results of other settings ({changed}); choose another --out")
            if before == now:
                return
        elif any((folder / PARTS).glob("*")):
            raise RunError(f"{folder} holds results, but no {SETTINGS} that tells what of; choose another --out")
        elif (folder / EXPERIMENT).is_file():
            raise RunError(f"{folder} holds trainings of an experiment; choose another --out")
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(kept, dump_yaml(now))

    def place(self, part: str, suffix: str = ".parquet") -> Path:
        """The file of a part, or one beside it."""
        return self.folder / PARTS / f"{part}{suffix}"

    def has(self, part: str) -> bool:
        return self.place(part).is_file()

    def keep(self, part: str, rows: Sequence[Row]) -> None:
        """Write the rows of a part that is done."""
        with writing(self.place(part)) as temporary:
            pq.write_table(pa.Table.from_pylist([{"part": part, **row} for row in rows]), temporary)

    def parts(self, pattern: str) -> list[str]:
        """Names of the parts that are there and match a pattern, such as ``run-*``."""
        return sorted(path.stem for path in (self.folder / PARTS).glob(f"{pattern}.parquet"))

    def drop(self, part: str) -> None:
        """Remove a part that is not a result any more."""
        self.place(part).unlink()

    def rows(self, part: str) -> list[dict[str, Any]]:
        """What ``keep`` was given. Raises ``RunError`` where the file is damaged."""
        return _read(self.place(part)).to_pylist()

    def gather(self) -> Path:
        """Write all parts as one table, a row for each run; columns that a part does not have are null there."""
        tables = [_read(path) for path in sorted((self.folder / PARTS).glob("*.parquet"))]
        target = self.folder / RESULTS
        with writing(target) as temporary:
            pq.write_table(pa.concat_tables(tables, promote_options="permissive"), temporary)
        return target


def _is_new(folder: Path) -> bool:
    """Whether a study wrote its settings and came no further."""
    return all(path.name in (SETTINGS, LOCK) for path in folder.iterdir())


def _fixed(settings: Any, may_change: Collection[str]) -> Any:
    if not isinstance(settings, dict):
        return settings
    return {name: value for name, value in settings.items() if name not in may_change}


def _read(path: Path) -> pa.Table:
    again = "delete it, and the same command runs it again"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise RunError(f"{path} cannot be read ({error}); {again}") from None
    if "part" not in table.column_names or set(table["part"].to_pylist()) != {path.stem}:
        raise RunError(f"{path} does not hold the part that it is named after; {again}")
    return table
