"""Batches come back as they went in; what does not fit is left, and that is told."""

import resource

import numpy as np
import pyarrow as pa

from multigate.data.kept import Kept

ROWS = 1_000
WORDS = pa.array(["a", "b", None, ""] * (ROWS // 4))


def batch(seed, **columns):
    draw = np.random.default_rng(seed)
    return pa.RecordBatch.from_pydict({
        "n": draw.normal(size=ROWS), "w": WORDS.dictionary_encode(),
        "v": pa.array(draw.choice(["x", "y", "z"][seed % 3 :], ROWS)).dictionary_encode(), **columns,
    })  # fmt: skip


def test_batches_come_back_in_order_as_often_as_asked(tmp_path):
    """Dictionaries and types may change from batch to batch; batches may be slices, or hold no rows."""
    given = [batch(at) for at in range(3)]
    given += [given[0].slice(10, 20), given[1].slice(0, 0), batch(3, v=WORDS), batch(4, l=[[1], []] * (ROWS // 2))]
    given += [given[2]]
    with Kept(tmp_path, 1 << 30) as kept:
        assert list(kept) == []
        for one in given:
            kept.add(one)
        assert kept.whole
        assert list(tmp_path.iterdir()) == []
        for _ in range(2):
            found = list(kept)
            assert [one.schema for one in found] == [one.schema for one in given]
            assert all(one.equals(other) for one, other in zip(found, given, strict=True))
    assert found[0].equals(given[0]), "what was read outlives the file"


def test_batches_that_are_too_large_are_not_kept(tmp_path):
    with Kept(tmp_path, 100_000) as kept:
        for at in range(9):
            kept.add(batch(at))
            assert kept.whole or at > 4  # 16 KB each, and what says so
        assert not kept.whole


def test_a_full_disk_is_no_error(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with Kept(tmp_path, 1 << 30) as kept:
            for at in range(20):
                kept.add(batch(at))
            assert not kept.whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
