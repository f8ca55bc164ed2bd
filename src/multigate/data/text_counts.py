"""How often each text occurs, counted batch by batch without a Python object for each."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.data.buffers import as_arrow, as_arrow_text, as_text, known, stored

FEW = 256
"""Texts that a dict counts sooner than arrays (measured)."""
PENDING = 1 << 16
"""Texts that may wait to be added up, at least: as many as there are, where those are more."""


class TextCounts:
    """Texts and how often they were seen; nulls are left out."""

    def __init__(self) -> None:
        self._few: dict[str, int] = {}
        self._texts: list[pa.Array] = []
        self._times: list[np.ndarray] = []
        self._together = self._pending = 0

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> "TextCounts":
        made = cls()
        made.add(as_arrow_text([*counts]), np.array([*counts.values()], dtype=np.int64))
        return made

    def __len__(self) -> int:
        """Texts that are held, some of them more than once."""
        return len(self._few) + self._pending + self._together

    def add(self, texts: pa.Array, times: np.ndarray) -> None:
        """``times`` (V,) more of each of the texts (V,), which may repeat; in their place int64s."""
        if len(texts) <= FEW and not pa.types.is_integer(texts.type):
            for text, many in zip(texts.to_pylist(), times.tolist(), strict=True):
                if many and text is not None:
                    self._few[text] = self._few.get(text, 0) + many
        else:
            used = np.flatnonzero((times > 0) & known(texts))
            self._wait(texts if len(used) == len(texts) else texts.take(as_arrow(used)), times[used])
        if len(self) - self._together > max(PENDING, self._together):
            self.together()

    def _wait(self, texts: pa.Array, times: np.ndarray) -> None:
        self._texts.append(texts if pa.types.is_integer(texts.type) else as_text(texts))
        self._times.append(times.astype(np.int64))
        self._pending += len(texts)

    def together(self) -> tuple[pa.Array, np.ndarray]:
        """The distinct texts (V,), in any order, and how often each was seen, (V,) int64.

        Where whole numbers alone were added, and many at a time, those as int64s.
        """
        if self._few:
            self._wait(as_arrow_text([*self._few]), np.array([*self._few.values()]))
            self._few = {}
        if len(self._texts) != 1 or self._pending:
            whole = bool(self._texts) and all(pa.types.is_integer(one.type) for one in self._texts)
            texts, times = (_wholes_together if whole else _texts_together)(self._texts, self._times)
            self._texts, self._times, self._together, self._pending = [texts], [times], len(texts), 0
        return self._texts[0], self._times[0]


def _texts_together(texts: Sequence[pa.Array], times: Sequence[np.ndarray]) -> tuple[pa.Array, np.ndarray]:
    coded = pc.dictionary_encode(pa.concat_arrays([_NONE, *map(as_text, texts)]))
    found = np.zeros(len(coded.dictionary), dtype=np.int64)
    np.add.at(found, stored(coded.indices), np.concatenate([np.empty(0, np.int64), *times]))
    return coded.dictionary, found


def _wholes_together(values: Sequence[pa.Array], times: Sequence[np.ndarray]) -> tuple[pa.Array, np.ndarray]:
    every = np.concatenate([stored(one) for one in values])
    order = np.argsort(every)
    rising = every[order]
    firsts = np.flatnonzero(np.append(True, rising[1:] != rising[:-1]))
    return as_arrow(rising[firsts]), np.add.reduceat(np.concatenate(times)[order], firsts)


_NONE = as_arrow_text([])
