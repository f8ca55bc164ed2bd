"""The loader: prepared rows in a new order each epoch, in batches made ahead of the training."""

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain, groupby, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from multigate.batch import Batch
from multigate.data.ahead import ahead
from multigate.data.rows import cut, join, pick, pick_tasks, to_device
from multigate.data.shards import Part

CPU = torch.device("cpu")


class Loader:
    """Batches of a part's rows, every row once an epoch.

    The order depends on the seed and the epoch alone: shards are permuted, then ``window`` of them at a time are put
    together and their rows permuted. With ``world`` ranks, each batch of world * batch_size rows is dealt out in
    ``world`` equal pieces (the last may differ by a row, or be empty): ranks are disjoint, cover the part and have
    the same number of batches. ``tasks`` are the places of the tasks to keep; all if None.

    For a GPU as ``device`` the rows of a window are moved there and picked there, unless there are bags among them.
    """

    def __init__(
        self,
        part: Part,
        batch_size: int,
        *,
        seed: int = 0,
        tasks: Sequence[int] | None = None,
        shuffle: bool = True,
        rank: int = 0,
        world: int = 1,
        window: int = 4,
        prefetch: bool = True,
        device: torch.device = CPU,
    ) -> None:
        self.part, self.batch_size, self.seed, self.shuffle = part, batch_size, seed, shuffle
        self.tasks = None if tasks is None else tuple(tasks)
        self.rank, self.world, self.prefetch = rank, world, prefetch
        self.window = window if shuffle else 1
        self.device = CPU if device.type == "cpu" or part.shards[0].bags else device
        self._epoch, self._batch = 0, 0
        self._whole: Batch | None = None
        """All rows, kept where they fit in one window: nothing is copied anew each epoch."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(self.part.rows / (self.batch_size * self.world))

    def state(self) -> dict[str, int]:
        """The place reached: the epoch, and how many of its batches have been handed out."""
        return {"epoch": self._epoch, "batch": self._batch}

    def epoch(self, number: int, start: int = 0) -> Generator[Batch]:
        """The batches of one epoch from ``start`` on; those before it are neither read nor gathered."""
        self._epoch, self._batch = number, start
        return self._handed_out(number, start)

    def order(self, number: int) -> Tensor | None:
        """The places of all rows, in the order of an epoch, where they fit in one window and belong to one rank."""
        if not self.shuffle or self.world > 1 or len(self.part.sizes) > self.window:
            return None
        return torch.from_numpy(self._random(number, 1).permutation(self.part.rows))

    def _handed_out(self, number: int, start: int) -> Generator[Batch]:
        batches: Generator[Batch, None, None] = self._gathered(number, start)
        made = ahead(batches) if self.prefetch and self.device is CPU else batches  # a GPU itself is what is ahead
        try:
            for at, batch in enumerate(made, start + 1):
                self._epoch, self._batch = number, at
                yield batch
        finally:
            made.close()

    def _gathered(self, number: int, start: int) -> Generator[Batch, None, None]:
        held: _Held | None = None
        with closing(self._held(number, start)) as windows:
            for pieces in islice(self._plan(number), start, None):
                parts = []
                for window, low, high in pieces:
                    if held is None or held.window != window:
                        held = None  # its memory is free before the next is there
                        held = next(windows)
                    parts.append(held.rows(low, high))
                yield join(parts)

    def _held(self, number: int, start: int) -> Generator["_Held", None, None]:
        """The windows of an epoch from its batch ``start`` on, in order; for a GPU one is read while one is used."""
        pieces = chain.from_iterable(islice(self._plan(number), start, None))
        held = (self._hold(window, number) for window, _ in groupby(piece.window for piece in pieces))
        read_ahead = self.prefetch and self.device is not CPU and len(self.part.sizes) > self.window
        return ahead(held, depth=1) if read_ahead else held

    def _hold(self, window: "_Window", epoch: int) -> "_Held":
        if self._whole is not None:
            batch = self._whole
        else:
            batch = join([self.part.shards[at] for at in window.shards])
            batch = to_device(batch if self.tasks is None else pick_tasks(batch, self.tasks), self.device)
            if self.shuffle and len(window.shards) == len(self.part.shards):
                self._whole = batch
        if not self.shuffle:
            return _Held(window, batch, None)
        order = self._random(epoch, window.number + 1).permutation(batch.rows)
        return _Held(window, batch, torch.from_numpy(order).to(self.device))

    def _plan(self, epoch: int) -> Iterator[list["_Piece"]]:
        """For each batch the pieces of windows it is made of: this rank's share of them."""
        shards = np.arange(len(self.part.sizes))
        if self.shuffle:
            shards = self._random(epoch, 0).permutation(shards)
        whole = self.batch_size * self.world
        pieces: list[_Piece] = []
        held = 0
        for number, first in enumerate(range(0, len(shards), self.window)):
            window = _Window(number, tuple(sorted(shards[first : first + self.window].tolist())))
            rows = sum(self.part.sizes[at] for at in window.shards)
            at = 0
            while at < rows:
                many = min(whole - held, rows - at)
                pieces.append(_Piece(window, at, at + many))
                held, at = held + many, at + many
                if held == whole:
                    yield self._share(pieces, held)
                    pieces, held = [], 0
        if pieces:
            yield self._share(pieces, held)

    def _share(self, pieces: list["_Piece"], rows: int) -> list["_Piece"]:
        """This rank's rows of a batch that all ranks share; one empty piece where it has none."""
        start, stop = rows * self.rank // self.world, rows * (self.rank + 1) // self.world
        shared = []
        for window, low, high in pieces:
            mine = _Piece(window, low + min(max(start, 0), high - low), low + min(max(stop, 0), high - low))
            if mine.start < mine.stop:
                shared.append(mine)
            start, stop = start - (high - low), stop - (high - low)
        return shared or [pieces[0]._replace(stop=pieces[0].start)]

    def _random(self, epoch: int, place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, place])


class _Window(NamedTuple):
    """Shards whose rows are permuted together."""

    number: int
    shards: tuple[int, ...]


class _Piece(NamedTuple):
    """Places ``start`` to ``stop`` in the order of a window's rows."""

    window: _Window
    start: int
    stop: int


class _Held(NamedTuple):
    """A window in memory and the order of its rows (None: as they are)."""

    window: _Window
    batch: Batch
    order: Tensor | None

    def rows(self, start: int, stop: int) -> Batch:
        return cut(self.batch, start, stop) if self.order is None else pick(self.batch, self.order[start:stop])
