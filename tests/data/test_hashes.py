"""Hashes of many texts are those that the library makes of each."""

import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from multigate.data.hashes import LONG, hash_of, hashes_of, xxh64

TEXTS = st.lists(st.text(max_size=3 * LONG) | st.none(), max_size=40)


@given(TEXTS, st.integers(0, 2**64 - 1), st.integers(0, 3), st.sampled_from([pa.string(), pa.large_string()]))
def test_hashes_of_many_texts_are_those_of_each(texts, seed, skipped, kind):
    array = pa.array(texts, kind).slice(skipped)
    wanted = [None if one is None else xxhash.xxh64_intdigest(one.encode(), seed) for one in texts[skipped:]]
    found = hashes_of(array, seed).tolist()
    assert [None if text is None else one for text, one in zip(texts[skipped:], found, strict=True)] == wanted
    assert [None if text is None else xxh64(text, seed) for text in texts[skipped:]] == wanted


@pytest.mark.parametrize("length", range(LONG + 2))
def test_texts_of_every_length_are_hashed(length):
    texts = ["x" * length, "\xff" * (length // 2) + "y" * (length % 2), "0123456789" * 4]
    assert hashes_of(pa.array(texts)).tolist() == [xxhash.xxh64_intdigest(one.encode()) for one in texts]


def test_the_hash_of_a_group_is_signed_and_0_where_missing():
    assert hash_of(None) == 0
    assert hash_of("abc") % 2**64 == xxhash.xxh64_intdigest(b"abc")
    assert all(-(2**63) <= hash_of(str(one)) < 2**63 for one in range(99))
