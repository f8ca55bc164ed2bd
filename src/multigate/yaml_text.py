"""YAML that people write: plain values of a bounded size, and the line of whatever is wrong with it."""

import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from multigate.errors import ExperimentError

LIMIT = 16 << 20
"""Bytes of a file, and characters of what it comes to once its aliases are written out."""
DEPTH = 64
"""Levels that lists and keys may be nested."""
TOO_DEEP = f"lists and keys are nested more than {DEPTH} deep; write it flatter"

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_REAL = re.compile(r"([-+]?[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?")
_NAMED: dict[str, bool | None] = (
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
)
_TEXT_TAGS = ("!", "tag:yaml.org,2002:str")
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: str | Path) -> Any:
    """The plain values in a YAML file; raises ``ExperimentError`` naming the file and, where it can, the line."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise ExperimentError(f"cannot read {path}: {error.strerror or error}; name a YAML file") from None
    if len(data) > LIMIT:
        raise ExperimentError(f"{path} is larger than {LIMIT >> 20} MB; an experiment file names tables, it holds none")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ExperimentError(f"{path} is UTF-16 text; save it as UTF-8")
    if b"\0" in data:
        raise ExperimentError(f"{path} is a binary file; name a YAML file, such as 'multigate init' writes for a table")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ExperimentError(f"{path}, line {line} is not UTF-8 text; save the file as UTF-8") from None
    if Path(path).suffix.lower() in (".csv", ".tsv"):
        raise ExperimentError(
            f"{path} is a table, no experiment; draft one for it with: multigate init {quote(str(path))} --set "
            "tasks=LABELS > x.yaml"
        )
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    """The plain values of YAML text, called ``name`` in errors; None where there are none.

    Keys are always text. Only ``true`` and ``false`` are booleans and only plain decimals are numbers: ``on``, ``no``,
    ``007``, ``1_000`` and dates stay what was written. Raises ``ExperimentError`` for what is not YAML, tags, keys
    given twice, several documents, and what is nested or multiplied (by aliases) without measure.
    """
    try:
        return _Document(text, name).read()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        lines = text.splitlines() or [""]
        written = lines[min(line, len(lines) - 1)]  # the mark may stand behind the last line
        if "nesting depth" in (error.problem or ""):  # libyaml's own limit, met while it looks ahead for a key
            raise ExperimentError(f"{name}, line {line + 1}: {TOO_DEEP}") from None
        problem = "a tab where only blanks may stand" if "\t" in written else error.problem or error.context
        raise ExperimentError(f"{name}, line {line + 1} is not valid YAML: {problem}; mend or quote it") from None
    except (yaml.YAMLError, UnicodeError) as error:
        reason = " ".join(str(error).split())
        raise ExperimentError(
            f"{name} is not valid YAML: {reason}; write such characters in quotes, as \\x07"
        ) from None


def dump_yaml(value: Any, *, one_line: bool = False) -> str:
    """Plain values as YAML that ``parse_yaml`` reads back, keys in the order they come in."""
    width = 10**9 if one_line else 120
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=one_line, sort_keys=False, allow_unicode=True, width=width
    )
    return text.removesuffix("...\n")


class _Dumper(yaml.SafeDumper):
    """Text with line breaks and the like is written on one line, with escapes."""


def _as_written(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _as_written)


class _Document:
    """One document, built from the events of the parser: nothing is made that was not looked at."""

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self._events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, tuple[Any, int]] = {}

    def read(self) -> Any:
        next(self._events)  # the stream's start
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value, _ = self._node(next(self._events), 0)
        next(self._events)  # the document's end
        after = next(self._events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._error(after, "a second document begins; remove the line of '---' and what does not belong")
        return value

    def _node(self, event: Any, depth: int) -> tuple[Any, int]:
        """A value, and how many characters it comes to with its aliases written out."""
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise self._error(
                    event, f"*{event.anchor} names nothing that ends before it; quote a text that has a '*'"
                )
            return self._anchors[event.anchor]
        if depth > DEPTH:
            raise self._error(event, TOO_DEEP)
        if event.tag is not None and event.tag not in _TEXT_TAGS:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            raise self._error(event, f"the tag {tag!r} is not read; write plain text, numbers, lists and keys")
        match event:
            case yaml.ScalarEvent():
                plain = event.tag is None and event.implicit[0]
                found: tuple[Any, int] = (_plain(event.value) if plain else event.value, 1 + len(event.value))
            case yaml.SequenceStartEvent():
                found = self._list(depth)
            case _:
                found = self._mapping(depth)
        if found[1] > LIMIT:
            raise self._error(event, "its aliases multiply to more than a machine should read; write fewer of them")
        if event.anchor is not None:
            self._anchors[event.anchor] = found
        return found

    def _list(self, depth: int) -> tuple[list[Any], int]:
        values, size = [], 1
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            value, more = self._node(event, depth + 1)
            values.append(value)
            size += more
        return values, size

    def _mapping(self, depth: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        size = 1
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._error(event, "a key is a list, an alias or has keys of its own; keys are text")
            value, more = self._node(next(self._events), depth + 1)
            size += more + len(event.value)
            if event.value == "<<" and event.implicit[0]:
                for one in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(one, dict):
                        raise self._error(event, "'<<' wants keys to take over; quote it if it is a name")
                    merged |= one
            elif event.value in values:
                raise self._error(event, f"the key {event.value!r} stands here a second time; remove one")
            else:
                values[event.value] = value
        return merged | values, size

    def _error(self, event: Any, problem: str) -> ExperimentError:
        return ExperimentError(f"{self._name}, line {event.start_mark.line + 1}: {problem}")


def _plain(text: str) -> Any:
    """What a value without quotes means; everything that ``yaml.safe_dump`` leaves unquoted as text stays text."""
    if text in _NAMED:
        return _NAMED[text]
    if _INTEGER.fullmatch(text) and len(text) < 100:
        return int(text)
    return float(text) if _REAL.fullmatch(text) else text
