"""The models that are served, by name: each a run or a bundle."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from multigate.bundle import Bundle, EngineName, load
from multigate.engine import Engines
from multigate.errors import RunError

NAMED = re.compile(r"([^/\\=]+)=(.+)", re.DOTALL)


def name_models(named: Sequence[str | Path]) -> dict[str, Path]:
    """Folders by the names of their models: ``NAME=PATH``, or a path whose last folder gives the name.

    Raises ``RunError`` where there is none, a path names nothing, a name has no address, or two models have one.
    """
    if not named:
        raise RunError("there is nothing to serve; name a run or a bundle")
    paths: dict[str, Path] = {}
    for one in map(str, named):
        given = None if Path(one).exists() else NAMED.fullmatch(one)
        name, path = (given[1], Path(given[2])) if given else (Path(one).resolve().name, Path(one))
        if not name:
            raise RunError(f"{one} has no name of its own; give it one: NAME={one}")
        if name in (".", ".."):
            raise RunError(f"a model named {name!r} has no address, for it means a folder there; choose another name")
        if name in paths:
            raise RunError(f"two models would be named {name!r}; give one of them another: NAME={path}")
        paths[name] = path
    return paths


def load_models(paths: Mapping[str, Path], engine: str) -> dict[str, Bundle]:
    """The bundles; with engine ``auto`` each computes all with what is faster on one row. Raises as ``load`` does."""
    known = cast(EngineName, engine)  # load checks it
    models = {name: load(path, engine=known) for name, path in paths.items()}
    for bundle in models.values():
        bundle.encoder.make_ready()  # of a million values it takes a second, for which no request should wait
        bundle.engines = Engines(bundle.engines.row, bundle.engines.row)
    return models
