"""The page about a tuning: what was best when, what each setting did, and every trial."""

from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from multigate.analysis.ranges import Choice
from multigate.analysis.space import own_value
from multigate.analysis.tuning import Tried, Tuning, shown
from multigate.folders import at_home
from multigate.formats import number
from multigate.report.blocks import Block, Chart, Figure, Table, Text
from multigate.report.labels import shortened
from multigate.report.page import Chapter, render, require_extra
from multigate.writing import write_text

UPRIGHT = 26
"""Letters beside an axis that is as high as a chart."""


def write_tuning(tuning: Tuning, out: str | Path) -> Path:
    """Write one HTML page about a tuning that opens offline, and return where it is.

    Raises ``MultigateError`` where the extra ``report`` is not installed, ``RunError`` where the disk refuses.
    """
    require_extra()
    target = at_home(out)
    chapters = [
        Chapter("best", "What was found", (("", tuple(_best(tuning))),)),
        Chapter("settings", "What each setting did", (("", tuple(_settings(tuning))),)),
        Chapter("trials", "Every trial", (("", tuple(_trials(tuning))),)),
    ]
    about = f"multigate {version('multigate')}, {datetime.now():%d %B %Y}; {len(tuning.trials)} trials."
    write_text(target, render(f"Tuning by {tuning.goal.name}", about, chapters))
    return target


def _best(tuning: Tuning) -> Iterator[Block]:
    from multigate.report.charts import line_chart

    given, best = tuning.trials[0], tuning.best
    yield Text(tuning.verdict)
    rows = [(key, *(shown(one.settings[key]) for one in (given, best))) for key in tuning.space]
    rows += [(name, *(number(one.metrics.get(name)) for one in (given, best))) for name in best.metrics]
    rows.append((tuning.goal.name, number(given.goal), number(best.goal)))
    yield Table("Settings, and what they come to on validation rows", ("", "as given", "best"), tuple(rows))
    reached: float | None = None
    path = []
    for at, one in enumerate(tuning.trials, 1):
        if one.goal is not None and not one.stopped and (reached is None or _is_better(tuning, one.goal, reached)):
            reached = one.goal
        if reached is not None:
            path.append({"epoch": at, "value": reached, "series": "best so far", "best": one is best})
    described = f"The best {tuning.goal.name} on validation rows after each trial"
    chart = line_chart("Best so far", described, path, _upright(tuning), x="trial")
    yield Figure("Trial 1 is the experiment as given; a ring marks the trial that is best of all.", (chart,), True)


def _settings(tuning: Tuning) -> Iterator[Block]:
    yield Text(
        "Each dot is a trial: its value of a setting, and what it came to. Of one that was stopped that is a guess: "
        "what it had, and what others gained from there. Trials that failed have none."
    )
    yield Figure("All other settings differ too from dot to dot.", tuple(_charts(tuning)))


def _charts(tuning: Tuning) -> Iterator[Chart]:
    from multigate.report.charts import scatter_chart

    for key, kind in tuning.space.items():
        words = isinstance(kind, Choice)
        may_be_none = isinstance(kind, Choice) and "null" in kind.values
        rows = [
            {
                "x": shown(one.settings[key]) if words else one.settings[key],
                "value": one.goal,
                "series": _series(tuning, one),
            }
            for one in tuning.trials
            if one.goal is not None and (may_be_none or one.settings[key] is not None)
        ]
        described = f"{tuning.goal.name} of each trial by its {key}"
        own = own_value(tuning.given, key)
        log = not isinstance(kind, Choice) and kind.log and (own is None or own > 0)
        yield scatter_chart(key, described, rows, key, _upright(tuning), words=words, log=log)


def _series(tuning: Tuning, one: Tried) -> str:
    if one is tuning.trials[0]:
        return "as given"
    return "stopped" if one.stopped else "best" if one is tuning.best else "others"


def _trials(tuning: Tuning) -> Iterator[Block]:
    rows = tuple(
        (
            str(at),
            *(shown(one.settings[key]) for key in tuning.space),
            number(one.goal),
            f"{one.seconds:.0f}",
            _state(one),
        )
        for at, one in enumerate(tuning.trials, 1)
    )
    yield Table("Every trial", ("trial", *tuning.space, tuning.goal.name, "seconds", ""), rows)


def _state(one: Tried) -> str:
    return f"failed: {one.failed}" if one.failed else "stopped" if one.stopped else ""


def _upright(tuning: Tuning) -> str:
    """The goal as the title of an axis, no longer than the axis is high."""
    return shortened(tuning.goal.name, UPRIGHT)


def _is_better(tuning: Tuning, one: float, other: float) -> bool:
    return one > other if tuning.goal.rises else one < other
