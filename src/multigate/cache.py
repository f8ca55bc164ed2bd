"""Where what can be made or fetched again is kept, for all runs of a user."""

import os
from pathlib import Path
from tempfile import gettempdir


def cache_folder() -> Path:
    """$XDG_CACHE_HOME or ~/.cache, then multigate; for who has no home a folder among temporary ones."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "multigate"
    try:
        return Path.home() / ".cache" / "multigate"
    except RuntimeError:  # a user who has no home, as in some containers
        return Path(gettempdir()) / f"multigate-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"
