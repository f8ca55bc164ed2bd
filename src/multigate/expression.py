"""Expressions: a number made of predictions, such as the expected watch time ``click * watch``."""

import ast
import operator
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from multigate.errors import one_line

Values = Mapping[str, Any]
"""Predictions (R,) by name."""
Compute = Callable[[Values], Any]

OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS = ("abs", "exp", "log", "sqrt")
OF_SEVERAL = {"max": "maximum", "min": "minimum"}
"""Functions of two or more, and what they are called in numpy."""
HIGHEST = sys.float_info.max
LARGEST = 500
"""Names, numbers and signs that one may have."""
FORM = "names of predictions, numbers, + - * / **, brackets and " + ", ".join(sorted((*FUNCTIONS, *OF_SEVERAL)))


class Expression:
    """Computes a number from named ones; read, never run as code.

    A name that is not a word of letters, digits and ``_`` stands in quotes: ``'buy|click' * watch``. Names are read as
    they are written. Raises ``ValueError`` for all that ``FORM`` does not say.
    """

    def __init__(self, text: str) -> None:
        self._text = re.sub(r"[\r\n]", " ", text).strip()
        tree = _parsed(self._text)
        self._names: list[str] = []
        self._compute = self._compiled(tree.body)
        if not self._names:
            raise ValueError(f"{_short(text)} names no prediction; wanted one, such as 'click * watch'")

    @property
    def names(self) -> tuple[str, ...]:
        """What it is computed from, each once."""
        return tuple(dict.fromkeys(self._names))

    def __call__(self, values: Values) -> Any:
        """The numbers (R,), float64; NaN or infinite where mathematics has none, as for the logarithm of 0."""
        import numpy as np

        with np.errstate(all="ignore"):
            return self._compute(values)

    def _compiled(self, node: ast.expr) -> Compute:
        import numpy as np

        match node:
            case ast.Name() | ast.Constant(value=str()):
                name = self._name(node)
                self._names.append(name)
                return lambda values: np.asarray(values[name], np.float64)
            case ast.Constant(value=int(number) | float(number)) if not isinstance(number, bool) and number <= HIGHEST:
                constant = np.float64(number)
                return lambda _: constant
            case ast.UnaryOp(op=ast.USub(), operand=one):
                positive = self._compiled(one)
                return lambda values: -positive(values)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in OPERATORS:
                apply, first, second = OPERATORS[type(sign)], self._compiled(left), self._compiled(right)
                return lambda values: apply(first(values), second(values))
            case ast.Call(func=ast.Name(id=name), args=[one], keywords=[]) if name in FUNCTIONS:
                function, inner = getattr(np, name), self._compiled(one)
                return lambda values: function(inner(values))
            case ast.Call(func=ast.Name(id=name), args=[_, _, *_] as several, keywords=[]) if name in OF_SEVERAL:
                function, parts = getattr(np, OF_SEVERAL[name]), [self._compiled(one) for one in several]
                return lambda values: reduce(function, (part(values) for part in parts))
        raise ValueError(f"{_short(self._written(node))} is none of {FORM}; names such as 'buy|click' want quotes")

    def _name(self, node: ast.Name | ast.Constant) -> str:
        written = self._written(node)
        if isinstance(node, ast.Name):
            return written
        if written[1:-1] != node.value:  # Python joins neighbours, and has letters of its own behind backslashes
            raise ValueError(f"{_short(written)} is no name in quotes; write it as it is between two quotes")
        return written[1:-1]

    def _written(self, node: ast.expr) -> str:
        """The text of a part; of a name Python itself keeps the compatible form of Unicode, which may be another's."""
        return self._text.encode()[node.col_offset : node.end_col_offset].decode()


def _parsed(text: str) -> ast.Expression:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in quotes
            tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        told = error.msg if isinstance(error, SyntaxError) else one_line(error)
        raise ValueError(
            f"{_short(text)} cannot be read ({told}); wanted {FORM}; names such as 'buy|click' want quotes"
        ) from None
    if b"#" in text.encode()[tree.body.end_col_offset :]:
        raise ValueError(
            f"{_short(text)} has a '#', behind which nothing is read; leave it out, or put the name in quotes"
        )
    if sum(1 for _ in ast.walk(tree)) > LARGEST:
        raise ValueError(f"{_short(text)} has more than {LARGEST} parts; make several outputs of it")
    return tree


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
