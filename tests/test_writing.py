"""Files appear whole or not at all, and what was there before stays until then."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from threading import Barrier

import pytest

from multigate.errors import RunError
from multigate.writing import _beside, is_leftover, remove_leftovers, write_text, writing


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_and_a_folder_take_their_place_once_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        write_text(tmp_path / "new" / "a b é.txt", content)
        with writing(tmp_path / "folder") as temporary:
            (temporary / "inner").mkdir(parents=True)
            (temporary / "inner" / content).write_text(content)
            assert (tmp_path / "folder").exists() is (content == "two")
        assert (tmp_path / "new" / "a b é.txt").read_text() == content
    assert names(tmp_path) == ["folder", "folder/inner", "folder/inner/two", "new", "new/a b é.txt"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_what_goes_wrong_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    write_text(tmp_path / "x", "before")
    with writing(tmp_path / "folder") as temporary:
        temporary.mkdir()
    before = names(tmp_path)

    def work(path: Path) -> None:
        with writing(path) as temporary:
            if path.name == "folder":
                temporary.mkdir()
            (temporary / "inner" if path.name == "folder" else temporary).write_text("half")
            raise error

    for path in ("x", "folder", "new/and/newer"):
        with pytest.raises(RunError if isinstance(error, OSError) else error):
            work(tmp_path / path)
    assert names(tmp_path) == before
    assert (tmp_path / "x").read_text() == "before"


def test_a_folder_is_never_replaced_by_a_file_nor_a_file_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis").write_text("dear")
    with pytest.raises(RunError, match=r"Is a directory.*;"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(RunError, match=r"Not a directory.*;"), writing(tmp_path / "folder/thesis") as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["folder", "folder/thesis"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere two folders cannot change places in one step")
def test_at_no_moment_is_a_folder_gone_whose_place_another_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a process killed there would take both with it, and who reads finds nothing."""
    path, rename = tmp_path / "x", Path.rename

    def watched(one: Path, other: Path) -> Path:
        moved = rename(one, other)
        assert path.is_dir()
        return moved

    monkeypatch.setattr(Path, "rename", watched)
    for content in ("one", "two"):
        with writing(path) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert names(tmp_path) == ["x", "x/two"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_threads_that_write_one_path_at_once_do_not_meet(tmp_path: Path, kind: str) -> None:
    """Each holds the path's temporary at the same time as the others; what is there at last is all of one of them."""
    begun, path = Barrier(4, timeout=10), tmp_path / "x"

    def work(number: int) -> None:
        for _ in range(5):
            with writing(path) as temporary:
                begun.wait()
                if kind == "folder":
                    temporary.mkdir()
                (temporary / "inner" if kind == "folder" else temporary).write_text(str(number) * 1000)
                begun.wait()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    content = (path / "inner" if kind == "folder" else path).read_text()
    assert content in [str(number) * 1000 for number in range(4)]
    assert names(tmp_path) == (["x", "x/inner"] if kind == "folder" else ["x"])


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for target in ("elsewhere/there", "elsewhere/new"):
        (tmp_path / "elsewhere" / "there").write_text("before")
        (tmp_path / "link").unlink(missing_ok=True)
        os.symlink(tmp_path / target, tmp_path / "link")
        write_text(tmp_path / "link", "after")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / target).read_text() == "after"


def test_others_may_read_what_is_written_as_far_as_the_umask_grants(tmp_path: Path) -> None:
    with writing(tmp_path / "x") as temporary:
        temporary.touch(mode=0o600)  # as safetensors does
    (tmp_path / "y").touch()
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode


@pytest.mark.parametrize("refused", [S_ISDIR, S_ISREG], ids=["folders", "files"])
def test_file_systems_that_cannot_flush_a_folder_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[[int], bool]
) -> None:
    """As SMB says it; that a file's content cannot be flushed is told."""
    flush = os.fsync

    def fsync(handle: int) -> None:
        if refused(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        flush(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    told = nullcontext() if refused is S_ISDIR else pytest.raises(RunError, match="Invalid argument")
    with told, writing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "inner").write_text("content")
    assert names(tmp_path) == (["folder", "folder/inner"] if refused is S_ISDIR else [])


def test_what_a_writer_that_was_killed_made_of_its_own_is_a_leftover_too(tmp_path: Path) -> None:
    """safetensors writes a file .tmpXXXXXX beside the one it is asked for, and moves it there when it is whole."""
    (tmp_path / ".tmpA1b2C3").write_text("a user's")
    code = """
import os, sys
from pathlib import Path
from multigate.writing import writing

with writing(Path(sys.argv[1]) / "weights") as temporary:
    temporary.with_name(".tmpQ1w2E3").write_text("half")
    os._exit(1)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == 1
    assert len(names(tmp_path)) > 1
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".tmpA1b2C3"]


def test_what_dead_processes_left_is_removed_but_not_what_living_ones_write(tmp_path: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / f".x.{int(dead.stdout)}.writing").write_text("half")
    (tmp_path / f".x.{int(dead.stdout)}-7.writing").write_text("half")
    living = tmp_path / f".x.{os.getppid()}-0.writing"
    living.write_text("half")
    write_text(tmp_path / "x", "whole")
    assert names(tmp_path) == [living.name, "x"]
    (tmp_path / ".prepared.7-0.writing").mkdir()
    (tmp_path / ".prepared.7-0.writing" / "shard").write_text("half")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / ".bundle.7-12.old").mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["inner", "x"]


@pytest.mark.parametrize("name", [".notes.old", "a.writing", ".a.writing", "c.7-0.old", ".d.7-0.writing~"])
def test_what_has_a_name_of_its_own_is_nobodys_leftover(tmp_path: Path, name: str) -> None:
    """But for the names that writing gives, of any file."""
    for folder in (tmp_path, tmp_path / "inner"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("dear")
        for kind in ("writing", "old"):
            made = _beside(folder / name, kind)
            assert is_leftover(made)
            made.write_text("half")
    before = names(tmp_path)
    assert not is_leftover(tmp_path / name)
    remove_leftovers(tmp_path)
    assert len(before) == 7
    assert names(tmp_path) == sorted([name, "inner", f"inner/{name}"])


@pytest.mark.parametrize("name", ["a**b", "[x]", "x?*"])
def test_names_that_patterns_are_made_of_are_names(tmp_path: Path, name: str) -> None:
    gone = subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"])
    left = tmp_path / f".{name}.{int(gone)}-0.writing"
    left.mkdir()
    write_text(tmp_path / name, "here")
    assert (tmp_path / name).read_text() == "here"
    assert not left.exists()
