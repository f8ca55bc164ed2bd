"""Whole numbers in the place of their texts: in the order that those have, and where they stand among others."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.data.buffers import stored, truths

CLOSE = 8
"""Numbers between the least and the greatest for each that there is, at most, where those are close together."""
_TENS = np.array([10**digits for digits in range(20)], dtype=np.uint64)


def text_order(values: pa.Array) -> np.ndarray:
    """The places (V,) of texts, or of whole numbers as int64s, by the order of the texts."""
    if not pa.types.is_integer(values.type):
        return stored(pc.array_sort_indices(values)).astype(np.int64)
    whole = stored(values)
    size = np.where(whole < 0, -whole.view(np.uint64), whole.view(np.uint64))
    digits = np.maximum(np.searchsorted(_TENS, size, side="right"), 1)
    # a minus comes before all digits; 1, 10 and 100 begin alike, and the shorter one comes first
    return np.lexsort([digits, size * _TENS[19 - digits], whole >= 0])


class WholeIndex:
    """Places of whole numbers among ``values`` (V,) int64, all different and at least one.

    Those that are close together, as ids are that were counted up, are read from a table of all between them.
    """

    def __init__(self, values: np.ndarray) -> None:
        self._order = np.argsort(values)
        self._rising = values[self._order]
        between = int(self._rising[-1]) - int(self._rising[0]) + 1
        self._table = np.full(between + 1, -1, dtype=np.int32) if between <= CLOSE * len(values) else None
        if self._table is not None:
            self._table[values - self._rising[0]] = np.arange(len(values), dtype=np.int32)

    @classmethod
    def of(cls, texts: pa.Array) -> "WholeIndex | None":
        """Of texts (V,) that all are those of whole numbers, None of others."""
        try:
            values = texts.cast(pa.int64())
        except pa.ArrowInvalid:
            return None
        written = truths(pc.equal(values.cast(texts.type), texts))  # which 007 is not
        return cls(stored(values)) if len(written) and written.all() else None

    def places(self, values: np.ndarray) -> np.ndarray:
        """(R,) int64: where each value stands, -1 where it does not."""
        if self._table is not None:
            after = values.view(np.uint64) - self._rising[:1].view(np.uint64)  # of smaller ones beyond the end as well
            return self._table[np.minimum(after, np.uint64(len(self._table) - 1))]
        at = np.minimum(np.searchsorted(self._rising, values), len(self._rising) - 1)
        return np.where(self._rising[at] == values, self._order[at], -1)
