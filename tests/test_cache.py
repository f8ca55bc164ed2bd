"""Where what was made or fetched once is kept."""

import pwd
from pathlib import Path
from tempfile import gettempdir

import pytest

from multigate.cache import cache_folder


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
