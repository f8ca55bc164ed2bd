"""Where a search looks next: at points spread over the space, then where a Gaussian process promises most."""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multigate.analysis.ranges import Point, Space

STARTUP = 8
"""Trials at points spread over the space, before the process has something to go by; none of them is stopped."""


def spread(space: Space, seed: int, place: int) -> Point:
    """One of the ``STARTUP`` points that are tried first."""
    parts = _filling(len(space), seed)[place] if space else ()
    return {name: one.at(float(part)) for (name, one), part in zip(space.items(), parts, strict=True)}


@cache
def _filling(dimensions: int, seed: int) -> NDArray[np.float64]:
    """Points (``STARTUP``, dimensions) in [0, 1): one in each eighth of every dimension, and no two dimensions alike.

    A Latin hypercube of low centred discrepancy. Sequences that go on for ever lie near a diagonal where they begin.
    """
    from scipy.stats import qmc

    points: NDArray[np.float64] = qmc.LatinHypercube(dimensions, rng=seed, optimization="random-cd").random(STARTUP)
    return points


def sampler(seed: int, place: int) -> Any:
    """A Gaussian process that has no memory but the database: a search that goes on draws what it would have drawn."""
    import optuna

    own = int(np.random.SeedSequence([seed, place]).generate_state(1)[0])
    return optuna.samplers.GPSampler(seed=own, n_startup_trials=2, warn_independent_sampling=False)
