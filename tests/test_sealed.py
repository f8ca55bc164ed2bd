"""JSON that tells whether it is what was written."""

import json
import math

import pytest

from multigate.sealed import sealed, unsealed

VALUES = {"b": [0.1, 1e-320, -0.0, 2**70], "a": {"ü": None, "x": math.inf}, "c": True}


def test_what_was_written_is_read_whatever_the_order_and_the_blanks() -> None:
    found = json.loads(json.dumps(sealed(VALUES), indent=3, ensure_ascii=False, sort_keys=True))
    assert unsealed(found) == VALUES


@pytest.mark.parametrize("change", [{"b": [0.2, 1e-320, -0.0, 2**70]}, {"c": False}, {"d": 1}, {"checksum": "0"}])
def test_anything_else_is_not(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not what was written"):
        unsealed(sealed(VALUES) | change)


def test_what_has_no_checksum_was_written_before_there_was_one() -> None:
    assert unsealed(VALUES) == VALUES


def test_names_that_are_numbers_are_read_as_text_in_whatever_order() -> None:
    found = json.loads(json.dumps(sealed({"sizes": {10: "a", 9: "b"}})))
    assert unsealed(found) == {"sizes": {"10": "a", "9": "b"}}
