"""Counts are those of a Counter, however the texts come."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multigate.data import text_counts
from multigate.data.text_counts import TextCounts

BATCHES = st.lists(st.lists(st.tuples(st.sampled_from(["", "a", "b", "\u00e9", None]), st.integers(0, 3)), max_size=9))


@given(BATCHES, st.sampled_from([0, 4, 1 << 16]), st.sampled_from([0, 3, 256]))
def test_texts_are_counted_over_all_batches(batches, pending, few):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_counts, "PENDING", pending)
        patch.setattr(text_counts, "FEW", few)
        counts, wanted = TextCounts(), Counter[str]()
        for batch in batches:
            counts.add(pa.array([text for text, _ in batch], pa.string()), np.array([n for _, n in batch], dtype=int))
            wanted.update({text: 0 for text, _ in batch if text is not None})
            for text, many in batch:
                if text is not None:
                    wanted[text] += many
        for _ in range(2):
            texts, times = counts.together()
            assert dict(zip(texts.to_pylist(), times.tolist(), strict=True)) == dict(+wanted)
