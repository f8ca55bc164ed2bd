"""Models of a folder that are trained later, on the rows of those that are there."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import multigate as mg
from multigate.errors import RunError
from multigate.experiment import Experiment


def _compared(experiment: Experiment, folder: Path, more: int) -> Any:
    return mg.compare(experiment, folder, structures="mmoe", seeds=1 + more, boosting=False, quiet=True)


def _related(experiment: Experiment, folder: Path, more: int) -> Any:
    return mg.relate(experiment, folder, train=False, seeds=1 + more, quiet=True)


def _tuned(experiment: Experiment, folder: Path, more: int) -> Any:
    space = {"sharing.experts": "1..8"}
    return mg.tune(experiment, space, out=folder, trials=1 + more, workers=1, quiet=True)


@pytest.mark.parametrize("verb", [_compared, _related, _tuned])
def test_results_of_two_tables_do_not_go_together_where_prepared_rows_are_gone(
    feed_experiment: Experiment, tmp_path: Path, verb: Callable[[Experiment, Path, int], Any]
) -> None:
    table, folder = tmp_path / "rows.parquet", tmp_path / "out"
    shutil.copy(feed_experiment.train, table)
    experiment = feed_experiment.with_(train=str(table), epochs=1, sharing=mg.MMoE(experts=2, hidden=(4,)))
    verb(experiment, folder, 0)
    shutil.rmtree(folder / "prepared")
    pq.write_table(pq.read_table(table).slice(1), table)
    with pytest.raises(RunError, match="tables changed"):
        verb(experiment, folder, 1)
    assert not (folder / "prepared").exists()
    shutil.copy(feed_experiment.train, table)
    verb(experiment, folder, 1)
