"""Rows that all models of a folder are trained on, though some of them are trained later."""

from collections.abc import Mapping
from pathlib import Path

from multigate.data.files import Source
from multigate.data.prepared import Prepared
from multigate.experiment import Experiment
from multigate.training.progress import Reporter
from multigate.training.train import PREPARED, prepare_sources
from multigate.writing import write_text

ROWS = "rows.txt"
"""What says which rows these are. Prepared rows may be deleted, results of models trained on them stay."""


def prepare_same(
    experiment: Experiment, sources: Mapping[str, Source], folder: Path, report: Reporter, *, fresh: bool
) -> Prepared:
    """The rows of an experiment whose models are kept in a folder: where it is not ``fresh``, those of the models that
    are there. Raises ``RunError`` where the tables hold others."""
    told = folder / ROWS
    known = None
    if not fresh and told.is_file():  # older folders have none
        known = told.read_text(encoding="utf-8").strip() or None
    prepared = prepare_sources(experiment, sources, folder / PREPARED, report, replace=fresh, known=known)
    if known is None:
        write_text(told, prepared.content + "\n")
    return prepared
