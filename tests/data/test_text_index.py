"""Texts are found where a dict finds them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multigate.data import text_index
from multigate.data.text_index import TextIndex

SHORT = st.text(alphabet="ab\u00e9\0", max_size=4)


def alike(texts: pa.Array) -> np.ndarray:
    """Hashes of which there are but three, and the greatest that there is among them."""
    lengths = np.array([len(one or "") for one in texts.to_pylist()], dtype=np.uint64)
    return np.array([0, 1 << 63, 2**64 - 1], dtype=np.uint64)[lengths % np.uint64(3)]


@pytest.mark.parametrize("collide", [False, True])
@given(known=st.lists(SHORT, unique=True, max_size=60), asked=st.lists(SHORT | st.none(), max_size=60))
def test_places_are_those_of_a_dict(collide, known, asked):
    with pytest.MonkeyPatch.context() as patch:
        if collide:
            patch.setattr(text_index, "hashes_of", alike)
        index = TextIndex(pa.array(known, pa.string()))
        places = {one: at for at, one in enumerate(known)}
        assert index.places(pa.array(asked, pa.large_string())).tolist() == [places.get(one, -1) for one in asked]
        assert index.places(pa.array(known, pa.string())).tolist() == [*range(len(known))]


def test_of_many_texts_each_is_found():
    texts = [f"user{one * 7919:x}" for one in range(50_000)]
    index = TextIndex(pa.array(texts[:40_000]))
    assert index.places(pa.array(texts).slice(5)).tolist() == [*range(5, 40_000), *[-1] * 10_000]
