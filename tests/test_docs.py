"""The pages for users are true: their code runs, their tables are those of the code, their links lead somewhere."""

import re
import shlex
import traceback
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from pydantic_core import PydanticUndefined

from multigate.cli import app
from multigate.data.cells import MISSING
from multigate.data.split import Split
from multigate.experiment import Experiment, Optimizer, changed, make_experiment
from multigate.model import Tower
from multigate.nn.embed import Embedding
from multigate.options import Options
from multigate.paper.reproduce import STUDIES
from multigate.schema import Bag, Category, Hashed, Number, Output, Schema, Task, Time, Vector
from multigate.sharing import STRUCTURES, GatedStructure

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TITLE = re.compile(r"^(#{1,6}) +(.+)$", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")

FEATURES: tuple[type[Options], ...] = (Number, Category, Hashed, Bag, Time, Vector)
MODELS: tuple[type[Options], ...] = (
    Experiment, Schema, *FEATURES, Task, Output, Split, Embedding, Tower, Optimizer, *STRUCTURES.values()
)  # fmt: skip
COMMON: dict[type[Options], tuple[str, ...]] = dict.fromkeys(FEATURES, ("Features",)) | {
    one: ("Structures", "Gates") if issubclass(one, GatedStructure) else ("Structures",) for one in STRUCTURES.values()
}
"""The sections with the fields that some models have in common."""


def page_id(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Line number of the first line, and text, of each block of a language."""
    text = page.read_text(encoding="utf-8")
    return [(text[: one.start(2)].count("\n") + 1, one[2]) for one in BLOCK.finditer(text) if one[1] == language]


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=page_id(page)) for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for line, text in blocks(page, "python"):
        code = compile("\n" * (line - 1) + text, str(page), "exec", dont_inherit=True)
        try:
            exec(code, names)
        except Exception as error:
            at = next(one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == str(page))
            pytest.fail(f"{page_id(page)}, line {at}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_yaml_blocks_are_experiments(page: Path) -> None:
    """A block holds some fields of an experiment; those it lacks are put beside it."""
    for _, text in blocks(page, "yaml"):
        make_experiment({"schema": small_schema()} | yaml.safe_load(text), name=page_id(page))


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_are_commands(page: Path) -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for _, text in blocks(page, "bash"):
        for line in text.strip().splitlines():
            program, *words = shlex.split(line.partition(" > ")[0])
            if program == "multigate":
                verb, *rest = words
                context = verbs[verb].make_context(verb, rest)  # a wrong option or argument is an error
                changes = context.params.get("set_") or ()
                if verb == "reproduce":
                    STUDIES[context.params["study"]].settings.model_validate(changed({}, changes))
                else:
                    check_changes(changes)


def check_changes(changes: list[str]) -> None:
    wanted = [change for change in changes if not change.startswith("tasks=")]
    make_experiment(changed({"schema": small_schema()}, wanted))


def small_schema() -> dict[str, Any]:
    return {"features": [{"name": "price", "kind": "number"}], "tasks": [{"name": "click"}]}


def sections(page: Path) -> dict[str, str]:
    """Text below each heading, up to the next heading of any level."""
    text = page.read_text(encoding="utf-8")
    titles = [*TITLE.finditer(BLOCK.sub(lambda block: re.sub(r"[^\n]", " ", block[0]), text))]
    ends = [one.start() for one in titles[1:]] + [len(text)]
    return {one[2]: text[one.end() : end] for one, end in zip(titles, ends, strict=True)}


def rows(section: str) -> dict[str, str]:
    """Field and default of each row of a section's table."""
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \| .*\|$", section, re.MULTILINE))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_in_its_table_with_its_default(model: type[Options]) -> None:
    found = sections(DOCS / "experiment.md")
    told = {name: default for title in COMMON.get(model, ()) for name, default in rows(found[title]).items()}
    told |= rows(found[model.__name__])
    assert not (model.model_fields.keys() - told.keys()), "fields without a row"
    assert not (told.keys() - model.model_fields.keys()), "rows without a field"
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if default is PydanticUndefined:
            assert told[name] == "required", name
        elif isinstance(default, Options):
            assert told[name] == f"see [{type(default).__name__}](#{type(default).__name__.lower()})", name
        else:
            shown = re.fullmatch(r"`(.*)`", told[name])
            assert shown, f"{model.__name__}.{name}: the default {told[name]!r} is not in backticks"
            expected = list(default) if isinstance(default, tuple) else default
            read = shown[1] if isinstance(default, str) and default else yaml.safe_load(shown[1])
            assert (read, type(read)) == (expected, type(expected)), f"{model.__name__}.{name}"


def test_every_table_of_fields_belongs_to_a_model() -> None:
    known = {model.__name__ for model in MODELS} | {title for titles in COMMON.values() for title in titles}
    for title, text in sections(DOCS / "experiment.md").items():
        assert title in known or "| field |" not in text, title


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.is_file(), f"{page.name}: there is no {link}"
        if anchor:
            assert anchor in {slug(title) for title in sections(target)}, f"{page.name}: no heading for {link}"


def slug(title: str) -> str:
    """The anchor of a heading, as Python-Markdown makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower())


def test_words_for_missing_are_those_of_the_code() -> None:
    told = re.search(
        r"^Empty, (.+?) are missing in columns", (DOCS / "data.md").read_text(encoding="utf-8"), re.M | re.S
    )
    assert told is not None
    assert ["", *re.findall("`([^`]+)`", told[1])] == list(MISSING)
