"""Settings of the studies: what could not end well is refused when it begins, and nothing is counted twice."""

from pathlib import Path
from typing import Any

import pytest

from multigate.errors import ExperimentError
from multigate.paper.census.study import CensusStudy
from multigate.paper.gates.study import GatesStudy
from multigate.paper.reproduce import _told, reproduce
from multigate.paper.serving.study import ServingStudy


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
    "url",
    [
        "postgresql://me:secret@host/db",
        "postgresql://me:se/secret@host/db",
        "postgresql://me:s@secret@host/db",
        "postgresql://host/db?user=me&password=secret",
    ],
)
def test_the_page_names_a_database_without_who_asks_it(url: str) -> None:
    (table,) = _told("census", CensusStudy(storage=url)).told
    (told,) = [row[1] for row in table.rows if row[0] == "storage"]
    assert "secret" not in told
    assert "me" not in told.replace("postgresql", "")
    assert "host/db" in told


def test_other_settings_are_told_as_they_are() -> None:
    (table,) = _told("serving", ServingStudy()).told
    told: dict[str, Any] = {row[0]: row[1] for row in table.rows}
    assert told["tasks"] == "1, 2, 4, 8, 16, 32"
