"""Arrow arrays and NumPy ones of the same numbers, without pandas, whose import takes longer than most tables."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_DIGITS = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_UUID = len("00000000-0000-0000-0000-000000000000")
_PLACES = [at for at in range(_UUID) if at not in (8, 13, 18, 23)]
"""Of the digits of a UUID in its text."""


def is_uuid(kind: pa.DataType) -> bool:
    """Whether it is Arrow's type of UUIDs."""
    return getattr(kind, "extension_name", "") == "arrow.uuid"


def plain(array: pa.Array) -> pa.Array:
    """The array without its extension type; of UUIDs their text."""
    if is_uuid(array.type):
        return _uuid_texts(array.storage)
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _uuid_texts(array: pa.Array) -> pa.Array:
    """16 bytes each as Python writes the UUID that they are."""
    rows = len(array)
    held = np.frombuffer(array.buffers()[1] or b"", np.uint8, 16 * rows, 16 * array.offset)
    text = np.full((rows, _UUID), ord("-"), dtype=np.uint8)
    text[:, _PLACES] = _DIGITS[np.stack([held >> 4, held & 15], axis=1)].reshape(rows, 32)
    ends = pa.py_buffer(np.arange(rows + 1, dtype=np.int64) * _UUID)
    valid = as_arrow(known(array)).buffers()[1]
    return pa.Array.from_buffers(pa.large_string(), rows, [valid, ends, pa.py_buffer(text)])


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


def as_arrow_text(values: Sequence[str | None]) -> pa.Array:
    """Texts, and nulls, as an Arrow array of large strings."""
    written = [b"" if one is None else one.encode() for one in values]
    ends = pa.py_buffer(np.cumsum([0, *map(len, written)], dtype=np.int64))
    text = pa.py_buffer(b"".join(written))
    valid = as_arrow(np.array([one is not None for one in values])).buffers()[1] if None in values else None
    return pa.Array.from_buffers(pa.large_string(), len(values), [valid, ends, text])


def as_text(array: pa.Array) -> pa.Array:
    """The same as large strings, in which more than 2 GB of text may stand."""
    return array if pa.types.is_large_string(array.type) else array.cast(pa.large_string())


def slices(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Where the bytes of each text end, after a 0 (R + 1,), and the bytes of all large strings."""
    if len(texts) == 0:
        return np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.uint8)
    _, ends, data = texts.buffers()
    ends = np.frombuffer(ends, np.int64, len(texts) + 1, texts.offset * 8)
    held = np.frombuffer(data, np.uint8) if ends[-1] else np.empty(0, dtype=np.uint8)
    return ends - ends[0], held[ends[0] : ends[-1]]


def joined(texts: pa.Array) -> pa.Buffer:
    """The bytes of large strings one after the other, a zero between every two."""
    lists = pa.ListArray.from_arrays(as_arrow(np.array([0, len(texts)], dtype=np.int32)), texts)
    return pc.binary_join(lists, as_arrow_text(["\0"]))[0].as_buffer()


def known(array: pa.Array) -> np.ndarray:
    """(R,) bool: where an array is not null."""
    if array.null_count == 0:
        return np.ones(len(array), dtype=np.bool_)
    return _bits(array, 0)


def truths(array: pa.Array) -> np.ndarray:
    """(R,) bool: truth values, none of which is null."""
    return _bits(array, 1) if len(array) else np.empty(0, dtype=np.bool_)


def _bits(array: pa.Array, buffer: int) -> np.ndarray:
    bits = np.frombuffer(array.buffers()[buffer], dtype=np.uint8)
    return np.unpackbits(bits, count=array.offset + len(array), bitorder="little")[array.offset :].view(np.bool_)
