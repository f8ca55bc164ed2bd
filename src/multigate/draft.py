"""A first experiment for a table nobody has described yet, as YAML a person can read and edit."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from multigate.data.files import open_table
from multigate.data.infer import Findings, Note, inspect_table
from multigate.errors import ExperimentError
from multigate.experiment import TYPES, changed, make_experiment
from multigate.progress import Progress
from multigate.schema import Task
from multigate.yaml_text import dump_yaml

BY_GROUP = "  # each is in one part of the split alone; to predict for known ones, set split: {by: fraction}"


def draft(
    table: str | Path, tasks: Sequence[str | Task], changes: Sequence[str] = (), *, progress: Progress | None = None
) -> str:
    """The text of an experiment file for a table: its features, the tasks named, and what was left out and why.

    A task ``buy|click`` is ``buy`` given ``click``. ``changes`` are ``key.inner=value`` settings of the experiment.

    Raises ``ExperimentError`` without tasks and for tasks or changes that cannot be, ``DataError`` for a table that
    cannot be read.
    """
    if not tasks:
        raise ExperimentError("init wants the label columns: --set tasks=click,buy")
    chosen = _types(changes)
    source = open_table(table, chosen)
    findings = inspect_table(source, tasks, progress=progress)
    data = changed({"schema": findings.schema.to_dict(), "train": str(table)}, changes)
    experiment = make_experiment(data)  # a change that does not fit is told now, not when training starts
    types = dict(findings.schema.types) | chosen  # those that were not chosen stay frozen
    data["schema"] = data["schema"] | {
        "features": [one.to_dict() for one in experiment.schema.features],
        "tasks": [one.to_dict() for one in experiment.schema.tasks],
        **({"types": types} if types else {}),
    }
    return _render(source.name, data, findings)


def _types(changes: Sequence[str]) -> dict[str, str]:
    """Types of columns that changes set, one by one or all at once."""
    wanted = [change for change in changes if change.startswith((TYPES, TYPES.rstrip(".") + "="))]
    found = changed({}, wanted).get("schema", {}).get("types", {})
    if not isinstance(found, dict):
        raise ExperimentError(
            f"schema.types: wanted types by the names of columns, found {found!r}; write {{c: string}}"
        )
    for name, kind in found.items():
        if not isinstance(kind, str):
            raise ExperimentError(f"schema.types.{name}: wanted the name of a type, such as string; found {kind!r}")
    return found


def _render(name: str, data: dict[str, Any], findings: Findings) -> str:
    told = f"{_printable(name)} ({findings.rows:,} rows)"
    lines = [f"# Drafted from {told}. Edit freely; what is not written here has a default."]
    for title, notes in (
        ("Look at these first: they tell a label suspiciously well.", findings.leaks),
        ("Numbers, days and lists to people, text here:", findings.written),
        ("Labels fitted through log1p, whose predictions are too low in total:", findings.too_low),
        ("Labels whose classes may be fewer, or none:", findings.doubtful),
        ("Left out of the features:", findings.left_out),
    ):
        if notes:
            lines += ["#", f"# {title}", *map(_comment, notes)]
    schema = dict(data["schema"])
    lines += ["", "schema:"]
    for part in ("features", "tasks"):
        lines.append(f"  {part}:")
        lines += [f"    - {_flow(item)}" for item in schema.pop(part)]
    types = schema.pop("types", {})
    by_group = "time" not in schema and "split" not in data
    lines += [
        f"  {key}: {_flow(value)}{BY_GROUP if key == 'group' and by_group else ''}" for key, value in schema.items()
    ]
    if types:
        lines.append("  types:  # of the columns, so that a later file cannot be read otherwise")
        lines += [indent(dump_yaml(types).rstrip("\n"), "    ")]
    rest = {key: value for key, value in data.items() if key != "schema"}
    return "\n".join([*lines, "", dump_yaml(rest)])


def _comment(note: Note) -> str:
    return f"#   {_printable(note.column)}: {note.reason}"


def _printable(text: str) -> str:
    """A comment ends with its line."""
    return text if text.isprintable() else repr(text)


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    return dump_yaml(value, one_line=True).rstrip("\n")
