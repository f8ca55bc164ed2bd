"""Expressions: what Python would compute of the same text, and nothing that is not arithmetic."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from multigate.expression import FUNCTIONS, OF_SEVERAL, Expression

PYTHON = {"abs": math.fabs, "exp": math.exp, "log": math.log, "max": max, "min": min, "sqrt": math.sqrt}
NAMES = ("click", "buy", "watch_2")


def texts() -> st.SearchStrategy[str]:
    leaves = st.sampled_from(NAMES) | st.floats(0.01, 9, allow_nan=False).map(lambda one: f"{one:.3g}")
    inner = st.deferred(lambda: leaves | compound)
    signs = st.sampled_from(["+", "-", "*", "/", "**"])
    compound = (
        st.tuples(inner, signs, inner).map(lambda it: f"({it[0]} {it[1]} {it[2]})")
        | inner.map(lambda one: f"-{one}")
        | st.tuples(st.sampled_from([*FUNCTIONS]), inner).map(lambda it: f"{it[0]}({it[1]})")
        | st.tuples(st.sampled_from([*OF_SEVERAL]), st.lists(inner, min_size=2, max_size=4)).map(
            lambda it: f"{it[0]}({', '.join(it[1])})"
        )
    )
    return st.tuples(inner, st.sampled_from(NAMES)).map(lambda it: f"{it[0]} * {it[1]}")


@given(texts(), st.lists(st.tuples(*[st.floats(0.01, 5)] * 3), min_size=1, max_size=4))
def test_it_is_what_python_computes(text: str, rows: list[tuple[float, ...]]) -> None:
    columns = {name: np.array(column) for name, column in zip(NAMES, zip(*rows, strict=True), strict=True)}
    found = Expression(text)(columns)
    assert found.shape == (len(rows),)
    assert found.dtype == np.float64
    for row, value in zip(rows, found, strict=True):
        try:
            expected = eval(text, {"__builtins__": {}}, PYTHON | dict(zip(NAMES, row, strict=True)))
        except (ArithmeticError, ValueError, TypeError):
            continue  # Python has no number, or a complex one, where numpy has NaN or infinity
        if not isinstance(expected, complex) and abs(expected) < 1e300:
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_names_that_are_no_words_stand_in_quotes() -> None:
    read = Expression("""'buy|click' ** .5 * "size=small" + click\n - click""")
    assert read.names == ("buy|click", "size=small", "click")
    rows = {"buy|click": np.array([0.25, 1]), "size=small": np.array([2.0, 3]), "click": np.array([0.1, 0.7])}
    assert read(rows).tolist() == pytest.approx([1, 3])


def test_names_are_read_as_they_are_written() -> None:
    """Python's parser takes a ligature for its letters, and the micro sign for the Greek letter."""
    rows = {"ﬁ": np.array([1.0]), "fi": np.array([2.0]), "µ": np.array([3.0]), "μ": np.array([4.0])}
    assert Expression("ﬁ + 'fi' * 10 + µ * 100 + μ * 1000").names == ("ﬁ", "fi", "µ", "μ")
    assert Expression("ﬁ + fi * 10 +\n\tµ * 100 + μ * 1000")(rows).tolist() == [4321]


@pytest.mark.parametrize("text", ["buy#2 * click", "(click * buy) # both\n+ 1", "click #"])
def test_nothing_behind_a_sign_of_comments_is_lost(text: str) -> None:
    with pytest.raises(ValueError, match="has a '#', behind which nothing is read; leave it out, or put the name in"):
        Expression(text)
    assert Expression("'buy#2' * click").names == ("buy#2", "click")


@pytest.mark.parametrize("text", ["'a' 'b'", "'size=it''s'", r"'a\x62'", "r'ab'", "'''ab'''"])
def test_a_name_in_quotes_is_what_stands_between_them(text: str) -> None:
    """Python joins, unpacks or strips them; a name may not be read as another."""
    with pytest.raises(ValueError, match="is no name in quotes"):
        Expression(f"2 * {text}")


def test_what_mathematics_does_not_have_is_no_number_and_no_warning() -> None:
    rows = {"p": np.array([0.0, 1.0], np.float32)}
    assert Expression("log(p)")(rows).tolist() == [-math.inf, 0]
    assert np.isnan(Expression("(p - 1) ** .5 - (p - 1) ** .5")(rows)[0])
    assert Expression("p + 1 / 0")(rows).tolist() == [math.inf, math.inf]
    assert Expression("p + 9 ** 9 ** 9")(rows).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize(
    "text",
    [
        *("__import__('os').getcwd()", "p.real", "p[0]", "[p]", "p if p else 1", "p and 1", "p == 1", "not p", "~p"),
        *("lambda: p", "(q := p)", "f'{p}'", "b'p' * p", "p * 1j", "p * True", "p * None", "p // 2", "p % 2", "p @ p"),
        *("+p", "sin(p)", "log(p, 2)", "max(p)", "log()", "log(x=p)", "max(*p, p)", "p; p", "p = 1", "import os"),
        *("", "p *", "p * (1", "p)(", "p p", "'p", "\0", "(" * 500 + "p" + ")" * 500, "-" * 999 + "p"),
        *("9" * 5_000 + " * p", "p" + " + p" * 999, "1 + 2", "1e999 * p"),
        *("9" * 400 + " * p", "0x" + "f" * 400 + " * p", "0x" + "f" * 9_000 + " * p"),
    ],
)
def test_all_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is none of|cannot be read|has more than 500 parts|names no prediction"):
        Expression(text)


def test_an_unquoted_name_is_told_to_want_quotes() -> None:
    with pytest.raises(ValueError, match=r"'buy\|click \* 2' is none of names.*names such as 'buy\|click' want quotes"):
        Expression("buy|click * 2")


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\n\n\r"])
def test_lines_end_as_anywhere(end: str) -> None:
    found = Expression(f"(click *{end} watch{end})")
    assert found.names == ("click", "watch")
    assert found({"click": np.array([2.0, 3.0]), "watch": np.array([5.0, 7.0])}).tolist() == [10.0, 21.0]
