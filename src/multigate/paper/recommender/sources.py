"""The tables of the recommender studies: KuaiRand-Pure, and a simulated feed of any size."""

from pathlib import Path
from typing import NamedTuple

from multigate.data.prepared import Prepared
from multigate.datasets.feed import Feed, feed_schema, write_feed
from multigate.datasets.kuairand import PARTS, kuairand_schema
from multigate.errors import DataError
from multigate.experiment import Experiment
from multigate.paper.numbers import binned
from multigate.paper.study import Site
from multigate.schema import Schema
from multigate.training.progress import Reporter
from multigate.training.train import open_sources, prepare_sources


class Source(NamedTuple):
    """Train, valid and test tables, in this order in time, and which of their tasks are of what kind."""

    name: str
    title: str
    about: str
    schema: Schema
    tables: dict[str, str]
    engagement: tuple[str, ...]
    """The main task first."""
    satisfaction: tuple[str, ...]


def kuairand(data: Path) -> Source:
    """KuaiRand-Pure as ``fetch`` wrote it. Tasks stand side by side, as in the paper: none is given another.

    Raises ``DataError`` where its tables are not there.
    """
    folder = data / "kuairand"
    tables = {part: folder / f"{part}.parquet" for part in PARTS}
    missing = [path for path in tables.values() if not path.is_file()]
    if missing:
        raise DataError(f"there is no {missing[0]}; multigate fetch kuairand writes it to data/kuairand")
    schema = binned(kuairand_schema())
    return Source(
        "kuairand",
        "KuaiRand-Pure",
        "KuaiRand-Pure, by day: 10 days to train on, the next 2 to choose on, the last 2 to test on",
        schema.with_(tasks=tuple(task.with_(given=None) for task in schema.tasks), funnel="strict"),
        {part: str(path) for part, path in tables.items()},
        ("click", "long_view"),
        ("like", "follow", "profile_enter"),
    )


def feed(rows: int, known: float, folder: Path, report: Reporter) -> Source:
    """A simulated feed, written to ``folder`` block by block where it is not there: 80 % of its rows are to train on.

    Engagement is a click; satisfaction is a question that a share ``known`` of the rows was asked.
    """
    simulated = Feed(
        rows=rows,
        users=min(max(100, rows // 15), 1_000_000),
        items=min(max(50, rows // 30), 500_000),
        unknown=1 - known,
    )
    tables = {part: folder / f"{part}.parquet" for part in PARTS}
    if not all(path.is_file() for path in tables.values()):
        write_feed(simulated, folder, report)
    return Source(
        f"feed-{rows}",
        f"a simulated feed of {rows:,} rows",
        f"a simulated feed of {rows:,} rows in order of time, {simulated.users:,} users and {simulated.items:,} items; "
        f"satisfaction is known in {known:.0%} of the rows",
        binned(feed_schema().only(["click", "like"])),
        {part: str(path) for part, path in tables.items()},
        ("click",),
        ("like",),
    )


def prepare_once(source: str, experiment: Experiment, site: Site) -> Prepared:
    """The rows of an experiment, encoded in the study's folder; opened where they are there.

    Raises ``RunError`` where the tables are no longer those that parts named after the source were trained on.
    """
    folder = site.ledger.folder / "prepared" / source
    fresh = not site.ledger.parts(f"{source}-*")
    return prepare_sources(experiment, open_sources(experiment, {}), folder, site.report, replace=fresh)
