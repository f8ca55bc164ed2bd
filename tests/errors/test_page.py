"""The page of errors holds what the commands say today."""

from page import PAGE, page


def test_the_page_is_what_the_cases_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python tests/errors/page.py"
