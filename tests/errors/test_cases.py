"""Every broken thing ends in one kind sentence, exit code 2 and an untouched folder."""

from pathlib import Path

import pytest
from case import ADVICE, MOST, Case, ran
from page import CASES

from multigate.errors import DataError


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.group}: {case.what}")
def test_one_sentence(case: Case) -> None:
    found = ran(case)
    assert found.code == case.code, found.told + found.out
    assert "Traceback" not in found.told
    if case.code == 0:
        for piece in case.says:
            assert piece in found.out + found.told
        assert case.reads
        return
    lines = found.told.splitlines()
    assert len(lines) == 1, found.told
    assert lines[0].startswith("error: ")
    assert len(lines[0]) <= MOST, lines[0]
    assert ADVICE.search(lines[0]), f"no advice: {lines[0]}"
    for piece in case.says:
        assert piece in lines[0]
    assert not found.changed, "something half-written was left"


def test_a_file_left_behind_is_seen() -> None:
    def leaves(folder: Path) -> object:
        (folder / "half.parquet").touch()
        raise DataError("the rest is missing; write it")

    found = ran(Case("", "", lambda folder: lambda: leaves(folder), ()))
    assert found == (2, "", "error: the rest is missing; write it\n", {"half.parquet"})


def test_no_case_is_told_twice() -> None:
    names = [(case.group, case.what) for case in CASES]
    assert len(set(names)) == len(names)
