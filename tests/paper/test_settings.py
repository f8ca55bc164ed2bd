"""Settings of the studies: what could not end well is refused when it begins, and nothing is counted twice."""

import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from multigate.errors import ExperimentError, SettingError
from multigate.paper.census.study import CensusStudy
from multigate.paper.gates.study import GatesStudy
from multigate.paper.recommender.points import steps_of
from multigate.paper.recommender.sources import feed
from multigate.paper.recommender.study import RecommenderStudy
from multigate.paper.recommender.training import POINTS
from multigate.paper.reproduce import _told, reproduce
from multigate.paper.serving.study import ServingStudy
from multigate.training.progress import Reporter


@pytest.mark.parametrize(
    ("study", "changes", "match"),
    [
        ("recommender", ["kuairand=false"], r"without KuaiRand there are the rows of the feed alone; set feed_rows"),
        (
            "recommender",
            ["kuairand=false", "feed_rows=1000"],
            r"feed_rows=1000 are fewer than 3 steps of batch=1024",
        ),
        ("recommender", ["feed_rows=5"], r"feed_rows=5 are fewer than 3 steps"),
        ("serving", ["tasks=[2,2]"], r"two numbers of tasks are wanted, found 2 alone"),
        ("synthetic", ["beyond=true", "data.size=10"], r"runs of 16 tasks.*set data\.size to that or more, found 10"),
    ],
)
def test_what_could_not_end_is_refused_before_it_begins(
    tmp_path: Path, study: str, changes: list[str], match: str
) -> None:
    with pytest.raises(ExperimentError, match=match):
        reproduce(study, tmp_path / "out", changes=changes)
    assert not (tmp_path / "out").exists()


def test_what_is_named_twice_is_there_once() -> None:
    assert GatesStudy(data=("census_1", "census_1", "kuairand")).data == ("census_1", "kuairand")
    census = CensusStudy(groups=(1, 1), methods=("shared_bottom", "mmoe", "mmoe"))
    assert (census.groups, census.methods) == ((1,), ("shared_bottom", "mmoe"))
    assert ServingStudy(tasks=(1, 2, 2, 4)).tasks == (1, 2, 4)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://...@host/db"),
        ("postgresql://me:se/secret@host/db", "postgresql://...@host/db"),
        ("postgresql://me:s@secret@host/db", "postgresql://...@host/db"),
        ("postgresql://me:s#secret@host/db", "postgresql://...@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?..."),
        ("postgresql://me@host/db?password=secret", "postgresql://...@host/db?..."),
        ("postgresql://me:s?secret@host/db", "postgresql://..."),
        ("postgresql://host/db?password=s@secret", "postgresql://..."),
        ("sqlite:///trials.db", "sqlite:///trials.db"),
    ],
)
def test_the_page_names_a_database_without_who_asks_it(url: str, shown: str) -> None:
    """Nothing but its kind where an @ after a ? may belong to a password before or behind it."""
    (table,) = _told("census", CensusStudy(storage=url)).told
    (told,) = [row[1] for row in table.rows if row[0] == "storage"]
    assert told == shown


@pytest.mark.parametrize("batch", [4, 64])
def test_the_fewest_rows_of_a_feed_that_are_taken_are_steps_enough(batch: int, tmp_path: Path) -> None:
    with pytest.raises(SettingError) as told:
        RecommenderStudy(feed_rows=1, batch=batch)
    fewest = int(str(told.value).partition("set ")[2].split()[0])
    settings = RecommenderStudy(kuairand=False, feed_rows=fewest, batch=batch)
    streamed = feed(settings.feed_rows, settings.feed_known, tmp_path, Reporter(quiet=True))
    steps = math.ceil(pq.read_metadata(streamed.tables["train"]).num_rows / batch)
    assert len({0, *steps_of(steps, POINTS)}) == 1 + POINTS


def test_other_settings_are_told_as_they_are() -> None:
    (table,) = _told("serving", ServingStudy()).told
    told: dict[str, Any] = {row[0]: row[1] for row in table.rows}
    assert told["tasks"] == "1, 2, 4, 8, 16, 32"
