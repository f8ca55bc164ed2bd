"""Endless data for many runs at once: every run draws rows of its own from the paper's generator, and none twice."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multigate.datasets.synthetic import Synthetic, label_moments, task_weights

TRAIN, HELD_OUT, POOL, PICKED = 2, 3, 4, 5
"""What rows are drawn for: part of their key, so that no row is in both."""


class Rows(NamedTuple):
    """Rows of R runs: ``x`` (R, ..., d) and ``y`` (R, ..., T)."""

    x: Tensor
    y: Tensor


class Draws:
    """Rows of R runs whose generators differ in their seeds alone (Ma et al. 2018, section 3.2).

    What a run draws depends on its seed, on the number of the block and on how many rows that has, and on nothing else:
    not on the other runs, nor on where the rows are used. Blocks of another size have other rows of the same law, and
    ``train_toys`` makes them smaller where it trains more runs at once. With ``standardise`` labels are brought to mean
    0 and variance 1 by their moments in closed form. With ``pool`` a run has so many rows to be trained on and no more;
    batches are drawn from them with replacement.
    """

    def __init__(
        self, options: Synthetic, seeds: Sequence[int], *, standardise: bool = True, pool: int | None = None
    ) -> None:
        if options.noise_tasks or options.known:
            raise ValueError("draws have neither noise tasks nor unknown labels")
        self.options, self.seeds = options, tuple(seeds)
        weights = [task_weights(options.with_(seed=seed)) for seed in seeds]
        self._weights = torch.from_numpy(np.stack(weights)).float().mT  # (R, d, T)
        mean, sd = label_moments(options)
        self._mean, self._sd = (mean, sd) if standardise else (0.0, 1.0)
        self._pool = None if pool is None else self._draw(POOL, 0, pool)

    def train(self, block: int, steps: int, batch: int) -> Rows:
        """One block of training batches: x (R, steps, B, d) and y (R, steps, B, T)."""
        rows = self._draw(TRAIN, block, steps * batch) if self._pool is None else self._pick(block, steps * batch)
        return Rows(*(one.view(len(self.seeds), steps, batch, -1) for one in rows))

    def held_out(self, rows: int) -> Rows:
        """Rows that no run is trained on: x (R, rows, d) and y (R, rows, T)."""
        return self._draw(HELD_OUT, 0, rows)

    def _pick(self, block: int, rows: int) -> Rows:
        assert self._pool is not None
        many = self._pool.x.shape[1]
        each = [torch.randint(many, (rows,), generator=_generator(seed, PICKED, block)) for seed in self.seeds]
        places = torch.stack(each).unsqueeze(2)
        return Rows(*(torch.take_along_dim(one, places, 1) for one in self._pool))

    def _draw(self, what: int, block: int, rows: int) -> Rows:
        x = torch.empty(len(self.seeds), rows, self.options.size)
        noise = torch.empty(len(self.seeds), rows, self._weights.shape[2])
        for at, seed in enumerate(self.seeds):
            random = _generator(seed, what, block)
            torch.randn(x.shape[1:], generator=random, out=x[at])
            torch.randn(noise.shape[1:], generator=random, out=noise[at])
        projected = torch.bmm(x, self._weights)
        labels = projected.clone()
        for alpha, beta in zip(self.options.frequencies, self.options.phases, strict=True):
            labels += torch.sin(alpha * projected + beta)
        labels += self.options.noise**0.5 * noise
        return Rows(x, (labels - self._mean) / self._sd)


def _generator(*key: int) -> torch.Generator:
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
