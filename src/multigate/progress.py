"""Progress: how work that takes long says how far it is. ``training/progress.py`` shows it to people."""

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Told the stage, how much of it is done and, where known, how much there is in all."""


def silent(stage: str, done: int, total: int | None) -> None:
    """A ``Progress`` that tells nobody."""
