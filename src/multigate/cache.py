"""Where what can be made or fetched again is kept, for all runs of a user."""

import atexit
import os
import stat
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir, mkdtemp


def cache_folder() -> Path:
    """$XDG_CACHE_HOME or ~/.cache, then multigate; for who has no home a folder among temporary ones."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():  # others count for nothing, says its standard
        return Path(base) / "multigate"
    try:
        if os.environ.get("HOME") != "":  # of which Python makes /
            return Path.home() / ".cache" / "multigate"
    except RuntimeError:  # a user who has no home, as in some containers
        pass
    return _among_temporary()


def _among_temporary() -> Path:
    """The same for all processes of a user; where another user has made it, or may write to it, one of this process
    alone: what is kept there is run."""
    if not hasattr(os, "getuid"):  # where temporary folders are a user's own
        return Path(gettempdir()) / "multigate-cache"
    folder = Path(gettempdir()) / f"multigate-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return _of_this_process()
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return folder if own and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else _of_this_process()


@cache
def _of_this_process() -> Path:
    folder = mkdtemp(prefix="multigate-")
    atexit.register(rmtree, folder, ignore_errors=True)
    return Path(folder)
