"""What is shown of an account, in the terminal and on its page."""

from pathlib import Path

from rich.console import Console

from multigate.paper.account import Account, Claim, claims, printed, write_page


def test_a_table_that_has_nothing_to_tell_is_not_shown(tmp_path: Path) -> None:
    held = claims("What holds", [Claim("MMoE is ahead", "+.006", "+.005", "holds")])
    chapters = [Account("table-1", "Table 1", (held, claims("What nobody ran", [])))]
    console = Console(record=True, width=100)
    console.print(printed(chapters))
    page = write_page(tmp_path, "title", "about", chapters).read_text(encoding="utf-8")
    for shown in (console.export_text(), page):
        assert "What holds" in shown
        assert "What nobody ran" not in shown
