"""The page on balances knows every balance and every option, with its default."""

import re
from pathlib import Path

import pytest
import yaml

from multigate.balance import BALANCES, GramianBalance

PAGE = (Path(__file__).parents[2] / "docs" / "balance.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+)\n((?:(?!^## ).*\n)*)", PAGE, re.MULTILINE))


def rows(section: str) -> dict[str, object]:
    """Field and default of each row of a section's table."""
    return {
        name: yaml.safe_load(shown) for name, shown in re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section, re.MULTILINE)
    }


@pytest.mark.parametrize("method", BALANCES)
def test_every_option_is_told_with_its_default(method: str) -> None:
    kind = BALANCES[method]
    told = rows(SECTIONS[method])
    if issubclass(kind, GramianBalance) or method == "gradnorm":
        told |= rows(SECTIONS["Where gradients are compared"])
    if method == "gradnorm":
        assert "not for `gradnorm`" in SECTIONS["Where gradients are compared"]
        del told["smoothing"]
    fields = {name: field.default for name, field in kind.model_fields.items() if name != "method"}
    assert told == fields


def test_the_table_of_balances_is_whole() -> None:
    assert re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \|", PAGE, re.MULTILINE) == [(name, name) for name in BALANCES]
