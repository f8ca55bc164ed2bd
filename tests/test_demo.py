"""The demo: what it prints can be pasted."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from multigate import demo as road


def test_commands_are_those_that_a_shell_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tasks hold a bar, and folders may hold blanks, brackets and quotes. The first command is run: it drafts the
    same file. Nothing needs to be trained to know how the others are written."""

    class Enough(Exception):
        pass

    def enough(*_: object) -> None:
        raise Enough

    out = tmp_path / "my [old] demo's"
    monkeypatch.setattr(road, "train", enough)
    with pytest.raises(Enough):
        road.demo(out, rows=2_000)
    told = capsys.readouterr().out
    init, train = (line.removeprefix("$ ") for line in told.splitlines() if line.startswith("$ "))
    assert shlex.split(train) == ["multigate", "train", str(out / "feed.yaml"), "--out", str(out / "mmoe")]
    before = (out / "feed.yaml").read_text(encoding="utf-8")
    (out / "feed.yaml").write_text("")
    subprocess.run(
        f'multigate() {{ {shlex.quote(sys.executable)} -m multigate "$@"; }}; {init}', shell=True, check=True
    )
    assert (out / "feed.yaml").read_text(encoding="utf-8") == before
    assert str(out / "feed" / "train.parquet") in told


def test_its_folder_may_be_in_the_home_of_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tables too: written elsewhere, no later step would find them."""

    class Enough(Exception):
        pass

    def enough(*_: object) -> None:
        raise Enough

    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(road, "train", enough)
    with pytest.raises(Enough):
        road.demo(Path("~/demo"), rows=2_000)
    assert {one.name for one in (tmp_path / "home" / "demo").iterdir()} == {"feed", "feed.yaml"}
    assert not any((tmp_path / "here").iterdir())
