"""xxh64 of UTF-8 texts (Collet 2014): of one by the library, of many by whole arrays."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import xxhash

from multigate.data.buffers import as_text, slices

LONG = 32
"""Bytes from which on xxh64 begins another way: such texts are hashed one by one."""
_P1, _P2, _P3, _P4, _P5 = map(
    np.uint64,
    (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5),
)

_LAST = 2**64 - 1


def hash_of(text: str | None) -> int:
    """xxh64 as a signed 64-bit integer, 0 where missing: how rows of one group find each other."""
    if text is None:
        return 0
    found = xxh64(text)
    return found - (1 << 64) if found >= 1 << 63 else found


def xxh64(text: str, seed: int = 0) -> int:
    """Unsigned 64-bit xxHash of the UTF-8 text."""
    return xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass"), seed)


def hashes_of(texts: pa.Array, seed: int = 0) -> np.ndarray:
    """``xxh64`` of each text, (R,) uint64, whatever stands where it is null."""
    ends, data = slices(as_text(texts))
    first, lengths = ends[:-1], np.diff(ends)
    found = np.empty(len(lengths), dtype=np.uint64)
    padded = np.concatenate([data, np.zeros(8, dtype=np.uint8)])
    order = np.argsort(lengths, kind="stable")
    starts = np.searchsorted(lengths, np.arange(LONG + 1), sorter=order).tolist()
    for length, (start, stop) in enumerate(pairwise(starts)):
        if start < stop:
            rows = order[start:stop]
            found[rows] = _of_length(length, padded, first[rows], seed)
    for row in order[starts[LONG] :].tolist():
        found[row] = xxhash.xxh64_intdigest(data[ends[row] : ends[row + 1]].tobytes(), seed)
    return found


def _of_length(length: int, data: np.ndarray, at: np.ndarray, seed: int) -> np.ndarray:
    """The hashes of texts of one length that begin ``at`` (R,) in the bytes: of words, then half of one, then bytes."""
    found = np.full(len(at), seed + int(_P5) + length & _LAST, dtype=np.uint64)
    done = 0
    for _ in range(length // 8):
        found = _turned(found ^ (_turned(_at(data, "<u8", at + done) * _P2, 31) * _P1), 27) * _P1 + _P4
        done += 8
    if length & 4:
        found = _turned(found ^ (_at(data, "<u4", at + done).astype(np.uint64) * _P1), 23) * _P2 + _P3
        done += 4
    for one in range(done, length):
        found = _turned(found ^ (data[at + one].astype(np.uint64) * _P5), 11) * _P1
    found = (found ^ (found >> np.uint64(33))) * _P2
    found = (found ^ (found >> np.uint64(29))) * _P3
    return found ^ (found >> np.uint64(32))


def _at(data: np.ndarray, kind: str, at: np.ndarray) -> np.ndarray:
    """The numbers of a kind whose bytes begin at some places; 8 bytes follow the last."""
    return np.ndarray((len(data) - 7,), dtype=kind, buffer=data, strides=(1,))[at]


def _turned(x: np.ndarray, by: int) -> np.ndarray:
    """The bits of x moved to the left, in a circle."""
    return (x << np.uint64(by)) | (x >> np.uint64(64 - by))
