"""YAML of people: what they wrote is what is read, and what cannot be is told with its line, at once."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from multigate.errors import ExperimentError
from multigate.yaml_text import LIMIT, dump_yaml, parse_yaml, read_yaml

NASTY = [
    "on", "off", "yes", "no", "y", "n", "Y", "null", "~", "", "true", "007", "1_000", "0x1F", "0b1", "1:30",
    "12", "1.5", "1e5", "1e-2", "-.5", ".5", "5.", "1.e+3", ".nan", ".inf", "-.inf", "nan", "inf",
    "2022-05-05", "2022-05-05 10:00:00", "<<", "=", "-", "- a", "a: b", "a #b", "#a", "*a", "&a", "!a",
    "!!str", "%a", "@a", "`a", "'", "\"", "{", "}", "[", "]", ",", "|", ">", "?", ": ", " a", "a ", "a\nb",
    "a\tb", "\t", "é", "😀", "\x07", "\x85", "\u2028", "\ufeff", "---", "...",
]  # fmt: skip
TEXT = st.sampled_from(NASTY) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
TREES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


@given(TREES, st.booleans())
def test_what_is_dumped_is_read_back(tree: object, one_line: bool) -> None:
    text = dump_yaml(tree, one_line=one_line)
    assert parse_yaml(text, "tree") == tree
    if one_line:
        assert text.count("\n") <= 1


@given(st.text(max_size=40) | st.text("[]{}:,-&*!#|>'\"\n\t ab<1?", max_size=40))
@example("[\n")
def test_any_text_is_read_or_told_in_one_line(text: str) -> None:
    told = "some.yaml"
    try:
        parse_yaml(text, "some.yaml")
    except ExperimentError as error:
        told = str(error)
    assert told.startswith("some.yaml")
    assert "\n" not in told


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "no", "y", "N", "007", "1_000", "0o17", "1:30", "2022-05-05", "1e-2"]
)
def test_words_and_codes_stay_what_was_written(text: str) -> None:
    assert parse_yaml(f"name: {text}\n{text}: [{text}]", "x") == {"name": text, text: [text]}


def test_numbers_words_and_keys() -> None:
    read = parse_yaml("{a: 12, b: -3.5, c: true, d: null, e: ~, f: , 7: x, null: y, g: 1.0e-05, h: !!str 12}", "x")
    keys = {"7": "x", "null": "y", "g": 1e-5, "h": "12"}
    assert read == {"a": 12, "b": -3.5, "c": True, "d": None, "e": None, "f": None} | keys
    assert parse_yaml("9" * 5000, "x") == "9" * 5000


def test_anchors_and_merges_are_those_of_yaml() -> None:
    """Of several maps that are merged an earlier one goes before a later one (yaml.org/type/merge)."""
    text = """
    base: &base {kind: category, dim: 8}
    small: &small {dim: 2, other: 1}
    rows:
      - {<<: *base, name: a}
      - {name: b, <<: *base, dim: 4}
      - {<<: [*base, *small], name: c}
      - *base
    """
    base = {"kind": "category", "dim": 8}
    assert parse_yaml(text, "x") == {
        "base": base,
        "small": {"dim": 2, "other": 1},
        "rows": [base | {"name": "a"}, base | {"name": "b", "dim": 4}, base | {"other": 1, "name": "c"}, base],
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' stands here a second time"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag '!!python/object/apply:os.system'"),
        ("a: 1\nb: !mine 3", "line 2: the tag '!mine'"),
        ("a: !!timestamp 2022-05-05", "tag '!!timestamp'"),
        ("a: 1\n---\nb: 2", "line 2: a second document"),
        ("a:\n\t- b", "line 2 is not valid YAML: a tab"),
        ("a: [1\nb: 2", "line 2 is not valid YAML"),
        ("a: 1\n? [b]\n: 2", "line 2: a key is a list"),
        ("a: 1\nb: *c", "line 2: *c names nothing"),
        ("a: &a [*a]", "names nothing that ends before it"),
        ("a: {<<: 3}", "'<<' wants keys"),
        ("a: " + "[" * 70 + "]" * 70, "nested more than 64 deep"),
        ("[" * 100_000, "nested more than 64 deep"),
        ("a: b\x00", "not valid YAML"),
        ("a: '\ud800'", "not valid YAML"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_with_its_line(text: str, told: str) -> None:
    with pytest.raises(ExperimentError) as raised:
        parse_yaml(text, "x.yaml")
    assert told in str(raised.value)
    assert str(raised.value).startswith("x.yaml")
    assert len(str(raised.value)) < 300


def test_aliases_that_multiply_are_refused() -> None:
    lists = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    lists += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    keys = "a0: &a0 {x: x}\n" + "".join(
        f"a{i}: &a{i} {{{', '.join(f'{j}: *a{i - 1}' for j in range(10))}}}\n" for i in range(1, 10)
    )
    text = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 1000)}]"
    for bomb in (lists, keys, text):
        with pytest.raises(ExperimentError, match="multiply"):
            parse_yaml(bomb, "x")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x89PNG\x00\x01", "binary file"),
        ("a: é".encode("utf-16"), "UTF-16"),
        ("a: 1\nb: é".encode("latin-1"), "line 2 is not UTF-8"),
    ],
)
def test_files_that_are_no_text_are_told(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(ExperimentError, match=told):
        read_yaml(tmp_path / "x.yaml")


def test_a_byte_order_mark_and_an_empty_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": 1, "b": 2}
    for empty in ("", "# only a comment\n", "\n\n"):
        (tmp_path / "x.yaml").write_text(empty)
        assert read_yaml(tmp_path / "x.yaml") is None


def test_huge_and_endless_files_are_refused_without_reading_them(tmp_path: Path) -> None:
    with (tmp_path / "huge.yaml").open("wb") as file:
        os.truncate(file.fileno(), 100 * LIMIT)  # a hole: takes no room
    for path in (tmp_path / "huge.yaml", *([Path("/dev/zero")] if sys.platform == "linux" else [])):
        with pytest.raises(ExperimentError, match="larger than 16 MB"):
            read_yaml(path)
    with pytest.raises(ExperimentError, match=r"Is a directory|Permission"):
        read_yaml(tmp_path)
