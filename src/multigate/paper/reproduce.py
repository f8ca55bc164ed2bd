"""Running a study of the paper: from its name to a folder of results, pictures and a page."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multigate.errors import ExperimentError, MultigateError, nearest
from multigate.experiment import changed
from multigate.folders import at_home
from multigate.lock import locked
from multigate.options import Options, refusal
from multigate.paper.account import Account, write_page
from multigate.paper.census.study import STUDY as CENSUS
from multigate.paper.gates.study import STUDY as GATES
from multigate.paper.ledger import Ledger
from multigate.paper.recommender.study import STUDY as RECOMMENDER
from multigate.paper.serving.study import STUDY as SERVING
from multigate.paper.study import Site, Study
from multigate.paper.synthetic.study import STUDY as SYNTHETIC
from multigate.report.blocks import Table
from multigate.training.interrupts import interruptible
from multigate.training.loop import choose_device
from multigate.training.progress import Reporter
from multigate.writing import disk_errors

ADDRESS = re.compile(r"://(?P<all>\S*\?\S*@\S*)|://(?P<user>[^\s?]*)@|\?\S*")
"""User and password within the URL of a database, and what is asked of it, which may be a password too: all of it where
an @ after a ? leaves open which of the two it belongs to."""
STUDIES: dict[str, Study] = {
    "synthetic": SYNTHETIC,
    "census": CENSUS,
    "recommender": RECOMMENDER,
    "gates": GATES,
    "serving": SERVING,
}


def reproduce(
    name: str,
    out: Path,
    *,
    quick: bool = False,
    runs: int | None = None,
    changes: Sequence[str] = (),
    data: Path = Path("data"),
    device: str = "auto",
    report: Reporter | None = None,
) -> list[Account]:
    """Run a study, or what is left of it, and write ``results.parquet``, ``figures`` and ``page.html`` to ``out``.

    ``quick`` takes settings for minutes, ``runs`` the number of runs, and ``changes`` are ``key=value`` settings on top
    of both. ``data`` is where ``fetch`` wrote the data sets.

    Raises ``ExperimentError`` for settings that cannot be, ``RunError`` where ``out`` holds results of other settings,
    ``Interrupted`` where a signal asked to stop: what is done is kept.
    """
    if name not in STUDIES:
        raise ExperimentError(f"there is no study {name!r}; {nearest(name, STUDIES)}")
    study = STUDIES[name]
    settings = _settings(study, quick, runs, changes)
    report = report or Reporter(quiet=True)
    out, data = at_home(out), at_home(data)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    # locked before the settings are looked at: results of one process must not go under those of another
    with locked(out), interruptible(lambda: f"the same command goes on from what {out} holds"), report:
        ledger = Ledger(out.resolve(), name, settings, study.may_change)
        chapters = study.run(settings, Site(ledger, data.resolve(), choose_device(device), report))
        report.line(f"results: {ledger.gather()}")
        try:
            whole = [*chapters, _told(name, settings)]
            report.line(f"page: {write_page(out, study.title, f'Results in {out}.', whole)}")
        except MultigateError as error:
            report.line(f"no page: {error}")
    return chapters


def _told(name: str, settings: Options) -> Account:
    """The settings as a chapter; user and password of a database are left out."""
    now, usual = (dict(_flat(one.to_dict(full=True))) for one in (settings, type(settings)()))
    rows = tuple(
        (key, _shown(value), "" if value == usual.get(key) else f"default {_shown(usual.get(key))}")
        for key, value in now.items()
    )
    caption = f"Every setting of reproduce {name}; --set name=value changes one"
    return Account("settings", "Settings", (Table(caption, ("setting", "value", ""), rows, words=3),))


def _flat(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by the names that ``--set`` has for them: those within others behind a dot."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{key}.")
        else:
            yield within + key, value


def _shown(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return ADDRESS.sub(_hidden, text) if "://" in text else text


def _hidden(found: re.Match[str]) -> str:
    return {"all": "://...", "user": "://...@"}.get(found.lastgroup or "", "?...")


def _settings(study: Study, quick: bool, runs: int | None, changes: Sequence[str]) -> Options:
    values = dict(study.quick) if quick else {}
    if runs is not None:
        values["runs"] = runs
    try:
        return study.settings.model_validate(changed(values, changes))
    except ValidationError as error:
        raise ExperimentError(refusal("settings", error)) from None
