"""What a folder holds in place of one model, told by the names that stand in it."""

from os import PathLike
from pathlib import Path
from shlex import quote

from multigate.errors import RunError

EXPERIMENT = "experiment.yaml"
"""The file that every folder of trainings has, from their beginning on."""
SUMMARY = "summary.json"
"""The file that a finished run has."""
MEMBERS = "runs"
"""The folder that only a comparison has: one folder in it for each of its runs."""
TRAININGS = "trainings"
"""The folder that only relations of tasks have: one folder in it for each training behind them."""

TRIALS, BEST = "trials.db", "best.yaml"
"""The database that only a tuning has, of its trials, and the experiment of the best of them."""


def folder_named(out: str | PathLike[str]) -> Path:
    """The folder that ``out`` names. Raises ``RunError`` where something else stands in its place, such as a table."""
    if isinstance(out, str | PathLike):
        return at_home(out)
    raise RunError(
        f"the path of a folder is wanted, found {type(out).__name__}; a table goes into tables, as {{'train': table}}"
    )


def at_home(path: str | PathLike[str]) -> Path:
    """A path with its ~ as a shell reads it, as those of tables are read; as it is where nobody's home is meant."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def made_anew(folder: Path) -> str:
    """How the bundle of a finished run is made again."""
    return f"make it anew with: multigate train --resume --out {quote(str(folder))}"


def holds_members(folder: Path) -> bool:
    """Whether the runs of a comparison are there: trainings of their own stand in a folder of that name too."""
    return (folder / MEMBERS).is_dir() and (folder / EXPERIMENT).is_file()


def other_than_a_model(folder: Path) -> str | None:
    """What a folder without a whole run is, and which command suits, in one sentence; None where it is unknown."""
    quoted = quote(str(folder))  # as a shell reads it
    if holds_members(folder):
        return f"{folder} holds a comparison, not one model; show it with: multigate report {quoted}"
    if (folder / TRAININGS).is_dir():
        return f"{folder} holds related tasks, not one model; see relations.html there, by multigate relate"
    if (folder / TRIALS).is_file():
        best = quote(str(folder / BEST))
        return f"{folder} holds trials, not one model; train the best of them with: multigate train {best}"
    if (folder / SUMMARY).is_file():
        return f"the bundle of the run in {folder} is gone; {made_anew(folder)}"
    if (folder / EXPERIMENT).is_file():
        return f"the run in {folder} did not finish; go on with: multigate train --resume --out {quoted}"
    return None
