"""Where what was made or fetched once is kept."""

import os
import pwd
import tempfile
from pathlib import Path
from tempfile import gettempdir

import pytest

from multigate.cache import _of_this_process, cache_folder


def test_the_cache_is_where_the_system_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "multigate"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert cache_folder() == tmp_path / "other" / "multigate"


def test_who_has_no_home_has_a_cache_among_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user of a container who is in no list of users."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError, match="home"):
        Path.home()
    folder = cache_folder()
    assert folder.parent == Path(gettempdir())
    assert folder.name.startswith("multigate-")
    assert cache_folder() == folder, "the same the next time"


def test_what_names_no_place_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path would be another cache in every folder that one works in, of whoever has filled that folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "~/.cache")
    assert cache_folder() == tmp_path / ".cache" / "multigate"
    monkeypatch.setenv("HOME", "")
    assert cache_folder().parent == Path(gettempdir())


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder among temporary ones of who has no home, which is not there yet."""
    monkeypatch.setenv("HOME", "")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"multigate-{os.getuid()}"


def test_a_cache_among_temporary_files_is_its_users_alone(temporary: Path) -> None:
    assert cache_folder() == temporary
    assert temporary.stat().st_mode & 0o777 == 0o700
    temporary.chmod(0o755)
    assert cache_folder() == temporary, "others may read it"


@pytest.mark.parametrize("planted", ["writable", "of another", "link"])
def test_a_cache_that_others_may_have_filled_is_not_read(
    planted: str, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code is loaded from it."""
    if planted == "link":
        (tmp_path / "elsewhere").mkdir()
        temporary.symlink_to(tmp_path / "elsewhere")
    else:
        temporary.mkdir()
        temporary.chmod(0o777 if planted == "writable" else 0o755)
    if planted == "of another":
        number = os.getuid() + 1
        temporary = temporary.rename(tmp_path / f"multigate-{number}")
        monkeypatch.setattr(os, "getuid", lambda: number)
    _of_this_process.cache_clear()
    folder = cache_folder()
    assert folder != temporary
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder, "the same for the whole process"
    _of_this_process.cache_clear()
