"""Arrow arrays and NumPy ones of the same numbers, without pandas, whose import takes longer than most tables."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def plain(array: pa.Array) -> pa.Array:
    """The array without its extension type."""
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def stored(array: pa.Array) -> np.ndarray:
    """The numbers of an array as they lie in memory, whatever stands where it is null; not copied.

    ``to_numpy`` would import pandas where it is installed, which takes longer than most tables.
    """
    dtype = np.dtype(array.type.to_pandas_dtype())
    if len(array) == 0:
        return np.empty(0, dtype=dtype)
    return np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)


def filled(array: pa.Array, value: float) -> np.ndarray:
    """``stored``, but ``value`` where it is null."""
    return np.where(known(array), stored(array), value) if array.null_count else stored(array)


def as_arrow(values: np.ndarray) -> pa.Array:
    """Numbers or truth values (R,) as an Arrow array; ``pa.array`` would import pandas, too."""
    packed = np.packbits(values, bitorder="little") if values.dtype == np.bool_ else np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(packed)])


def as_arrow_text(values: Sequence[str]) -> pa.Array:
    """Texts as an Arrow array."""
    written = [one.encode() for one in values]
    ends = pa.py_buffer(np.cumsum([0, *map(len, written)], dtype=np.int64))
    text = pa.py_buffer(b"".join(written))
    return pa.Array.from_buffers(pa.large_string(), len(values), [None, ends, text]).cast(pa.string())


def known(array: pa.Array) -> np.ndarray:
    """(R,) bool: where an array is not null."""
    if array.null_count == 0:
        return np.ones(len(array), dtype=np.bool_)
    bits = np.frombuffer(array.buffers()[0], dtype=np.uint8)
    return np.unpackbits(bits, count=array.offset + len(array), bitorder="little")[array.offset :].view(np.bool_)
