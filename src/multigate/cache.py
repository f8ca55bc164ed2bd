"""Where what can be made or fetched again is kept, for all runs of a user."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME or ~/.cache, then multigate."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "multigate"
