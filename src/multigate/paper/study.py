"""What every study of the paper is: settings, and a function that runs what is not yet run and tells what was found."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field

from multigate.options import Options
from multigate.paper.account import Account
from multigate.paper.ledger import Ledger
from multigate.training.progress import Reporter

Rate = Annotated[float, Field(gt=0, le=1)]
"""A learning rate."""
Count = Annotated[int, Field(ge=1)]
"""Of things of which there is one at least: units of a layer, tasks."""


class Site(NamedTuple):
    """Where a study is run: the folder that keeps its results, that of the data sets, and who is told how far it is."""

    ledger: Ledger
    data: Path
    device: torch.device
    report: Reporter


class Study(NamedTuple):
    """A study of the paper. ``quick`` are the settings, by name, in which a run of minutes differs from the default."""

    title: str
    settings: type[Options]
    quick: Mapping[str, Any]
    run: Callable[[Any, Site], list[Account]]
    """(settings, site) -> what was found. Parts that the ledger has are not run again."""
    may_change: tuple[str, ...] = ()
    """Settings that may be others when it is gone on with: how much is run, and by how many processes."""
