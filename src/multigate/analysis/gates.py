"""What gates say: how much every reader reads of every source, and how that differs between rows and readers."""

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from multigate.options import Options
from multigate.sharing import Level

DEAD = 0.01
"""A source is dead when no reader gives it more than this part of a uniform share on average ..."""
IDLE = 0.1
"""... and hardly read when none gives it more than this."""
POLARISED = 0.95
"""A gate is polarised when one source has more than this on average."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Floats = NDArray[np.float64]


class LevelGates(Options):
    """The gates of one level of the wiring, over many rows; a source a reader may not read weighs 0.

    Where every reading weighs 1 there is no gate: the means are the mask and nothing varies (``learned`` is false).
    ``entropy``, ``row_entropy`` and the divergences are of distributions, and empty where gates are none.
    """

    readers: tuple[str, ...]
    sources: tuple[str, ...]
    mask: tuple[tuple[bool, ...], ...]
    distribution: bool
    learned: bool = True
    mean: tuple[tuple[float, ...], ...]
    """(readers, sources) mean gate weight ..."""
    sd: tuple[tuple[float, ...], ...]
    """... and its spread over rows."""
    quantiles: tuple[tuple[tuple[float, ...], ...], ...]
    """(readers, sources, 5): the weights not exceeded by 5, 25, 50, 75 and 95 % of the rows."""
    entropy: tuple[float, ...]
    """Per reader: entropy of the mean weights over the log of the sources it may read; 0 one source, 1 all alike."""
    row_entropy: tuple[float, ...]
    """The same of the weights of single rows, averaged."""
    divergence: tuple[tuple[float, ...], ...]
    """(readers, readers) Jensen-Shannon divergence of the mean weights, in bits: 0 alike, 1 nothing in common."""
    row_divergence: tuple[tuple[float, ...], ...] = ()
    """The same of the weights of single rows, averaged: readers may differ by row and agree on average."""
    selected: tuple[tuple[float, ...], ...] = ()
    """(readers, sources): share of the rows in which the reader gives the source any weight at all ..."""
    needed: float = 0.0
    """... and how many sources a row needs for all its readers together, on average."""


def level_gates(level: Level, gate: NDArray[np.float32] | None) -> LevelGates:
    """Statistics of one level's gate (R, readers, sources) over R rows; of the mask where there is no gate."""
    mask = np.array(level.mask)
    weights = mask[None].astype(np.float32) if gate is None else gate
    readers = range(len(level.readers))
    mean = weights.mean(axis=0, dtype=np.float64)
    quantiles = np.stack([np.quantile(weights[:, reader], QUANTILES, axis=0).T for reader in readers])
    nothing = np.zeros(0)
    return LevelGates(
        readers=level.readers,
        sources=level.sources,
        mask=level.mask,
        distribution=level.distribution,
        learned=gate is not None,
        mean=_tuples(mean),
        sd=_tuples(weights.std(axis=0, dtype=np.float64)),
        quantiles=_tuples(quantiles),
        entropy=_tuples(_evenness(mean[None], mask) if level.distribution else nothing),
        row_entropy=_tuples(_evenness(weights, mask) if level.distribution else nothing),
        divergence=_tuples(divergences(mean[None]) if level.distribution else nothing),
        row_divergence=_tuples(divergences(weights) if level.distribution else nothing),
        selected=_tuples((weights != 0).mean(axis=0)),
        needed=float((weights != 0).any(axis=1).sum(axis=-1).mean()),
    )


def divergences(weights: NDArray[np.floating]) -> Floats:
    """Jensen-Shannon divergence in bits of each pair of readers, (R, readers, sources) -> (readers, readers).

    H((p + q) / 2) - (H(p) + H(q)) / 2 (Lin 1991, Eq. 4.1), averaged over the R rows.
    """
    readers = weights.shape[1]
    own = [entropy(weights[:, reader]) for reader in range(readers)]
    found = np.zeros((readers, readers))
    for i, j in combinations(range(readers), 2):
        middle = entropy((weights[:, i] + weights[:, j]) / 2)
        found[i, j] = found[j, i] = np.mean(middle - (own[i] + own[j]) / 2)
    return np.clip(found / np.log(2), 0, 1)


def entropy(weights: NDArray[np.floating]) -> Floats:
    """Entropy in nats of distributions (R, sources) -> (R,)."""
    p = weights.astype(np.float64)
    found: Floats = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    return found


def dead_sources(level: LevelGates, part: float = DEAD) -> tuple[int, ...]:
    """Sources that readers may read and none does: at most ``part`` of a uniform share from each, on average."""
    if not level.learned:
        return ()
    mask, mean = np.array(level.mask), np.abs(np.array(level.mean))
    choices, total = mask.sum(axis=1, keepdims=True), mean.sum(axis=1, keepdims=True)
    dead = (mean * choices <= part * total).all(axis=0) & mask.any(axis=0)
    return tuple(np.flatnonzero(dead).tolist())


def is_sparse(level: LevelGates) -> bool:
    """Whether readers left out sources that they may read, in some rows."""
    return level.learned and bool((np.array(level.selected)[np.array(level.mask)] < 1).any())


def polarised_gates(level: LevelGates) -> tuple[tuple[int, int], ...]:
    """(reader, source) of each reader with a choice that settled on one source."""
    if not (level.learned and level.distribution):
        return ()
    choice = np.array(level.mask).sum(axis=1, keepdims=True) > 1
    found = np.argwhere((np.array(level.mean) > POLARISED) & choice)
    return tuple((reader, source) for reader, source in found.tolist())


def _evenness(weights: NDArray[np.floating], mask: NDArray[np.bool_]) -> Floats:
    """Entropy over the largest there can be, averaged over rows, (readers,); 0 where there is no choice."""
    found = np.array([entropy(weights[:, reader]).mean() for reader in range(len(mask))])
    most = np.log(np.maximum(mask.sum(axis=1), 1))
    return np.divide(found, most, out=np.zeros_like(found), where=most > 0)


def _tuples(values: NDArray[np.floating]) -> Any:
    """Nested tuples of floats."""
    return tuple(values.tolist())
