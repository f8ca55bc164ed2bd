"""One process at a time: kept out while another is there, let in however that one ended."""

import subprocess
import sys
from pathlib import Path

import pytest

from multigate.errors import RunError
from multigate.lock import LOCK, locked

HOLD = """
import sys
from pathlib import Path
from multigate.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_kept_out_and_told_who_is_there(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        for _ in range(2):  # being refused takes nothing from the holder
            with pytest.raises(RunError, match=f"{tmp_path} is being worked on by process {process.pid};"):
                locked(tmp_path).__enter__()
        process.communicate("")
    with locked(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())


def test_a_killed_process_keeps_nobody_out(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_it_is_let_go_of_by_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), locked(tmp_path):
            _ = 1 / 0


def test_two_threads_of_one_process_are_two(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(RunError, match="worked on"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_file_removed_by_its_last_holder_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder lets go between the opening of the file and the locking of it: the locked file has no name then."""
    import multigate.lock as module

    lock = module._lock
    monkeypatch.setattr(
        module, "_lock", lambda handle: [(tmp_path / LOCK).unlink(), monkeypatch.undo()] and lock(handle)
    )
    with locked(tmp_path), pytest.raises(RunError, match="worked on"), locked(tmp_path):
        pass


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write to .*nowhere: No such file"), locked(tmp_path / "nowhere"):
        pass
