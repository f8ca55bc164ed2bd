"""Where texts stand among many others: a table of their hashes, made and asked by whole arrays.

A dict of a million texts takes 150 MB, and most of a look-up in it is waiting for memory, one after the other.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.data.buffers import as_arrow, as_text, known, truths
from multigate.data.hashes import hashes_of


class TextIndex:
    """Places of the ``texts`` (V,) it is made of, all different."""

    def __init__(self, texts: pa.Array) -> None:
        self._texts = as_text(texts)
        hashes = hashes_of(self._texts)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], order.astype(np.int32)
        bits = max(len(order) - 1, 1).bit_length()
        self._shift = np.uint64(64 - bits)
        # where those begin whose first bits are 0, 1, 2, ...: about one of each
        firsts = np.arange(1 << bits, dtype=np.uint64) << self._shift
        self._first = np.searchsorted(self._hashes, firsts).astype(np.int32)

    def places(self, texts: pa.Array) -> np.ndarray:
        """(R,) int64: where each text stands, -1 where it does not, or is null."""
        texts = as_text(texts)
        found = np.full(len(texts), -1, dtype=np.int64)
        hashes = hashes_of(texts)
        at = self._first[hashes >> self._shift].astype(np.int64)
        asked = np.flatnonzero(known(texts))
        while len(asked := asked[at[asked] < len(self._hashes)]):
            there = self._hashes[at[asked]]
            alike = asked[there == hashes[asked]]
            if len(alike):
                places = self._places[at[alike]]
                same = truths(pc.equal(self._texts.take(as_arrow(places)), texts.take(as_arrow(alike))))
                found[alike[same]] = places[same]
            asked = asked[(there <= hashes[asked]) & (found[asked] < 0)]  # hashes rise: beyond a greater one is none
            at[asked] += 1
        return found
