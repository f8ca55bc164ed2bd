"""Vocabularies: which values are kept, in what order, and how they grow."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multigate.data import vocabulary
from multigate.data.text_counts import TextCounts
from multigate.data.vocabulary import Vocabulary


def test_a_vocabulary_grows_behind_its_own_values_and_counts_are_added() -> None:
    old, newer = Vocabulary(("b", "a"), (5, 3)), Vocabulary(("c", "a", "d"), (9, 4, 1), left_out=2)
    grown = old.grown(newer)
    assert (grown.values, grown.counts, grown.left_out) == (("b", "a", "c", "d"), (5, 7, 9, 1), 2)
    assert [grown.id(one) for one in (None, "b", "a", "c", "d", "e")] == [1, 2, 3, 4, 5, 0]


def test_a_vocabulary_that_is_full_keeps_its_own_values_and_counts_what_it_leaves_out() -> None:
    old, newer = Vocabulary(("b", "a"), (5, 3)), Vocabulary(("c", "a", "d"), (9, 4, 1), left_out=2)
    for most, values, left_out in ((3, ("b", "a", "c"), 3), (2, ("b", "a"), 4), (1, ("b", "a"), 4)):
        grown = old.grown(newer, most)
        assert (grown.values, grown.left_out) == (values, left_out)


def test_a_vocabulary_keeps_the_most_frequent_and_of_equal_ones_the_first_by_name() -> None:
    counts = {"d": 2, "a": 1, "c": 2, "b": 2, "e": 7}
    for most in range(1, 7):
        found = Vocabulary.fit(TextCounts.of(counts), 1, most)
        assert (
            list(zip(found.values, found.counts, strict=True))
            == sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
        )
        assert found.left_out == max(5 - most, 0)
    assert Vocabulary.fit(TextCounts.of(counts), 2, 5).values == ("e", "b", "c", "d")
    assert Vocabulary.fit(TextCounts.of(counts), 3, 4).values == ("e",)


def test_codes_of_one_width_are_found_without_the_zeros_they_begin_with() -> None:
    """01023, which who reads the later table as numbers has as 1023."""
    codes = Vocabulary(("01023", "20095", "00000", "none"), (4, 3, 2, 1))
    assert [codes.id(one) for one in ("01023", "1023", "20095", "0", "none", "023", "95")] == [2, 2, 3, 4, 5, 0, 0]
    grown = codes.grown(Vocabulary(("1023", "7", "any", "100000"), (6, 5, 4, 3)))
    assert grown.values == ("01023", "20095", "00000", "none", "00007", "any", "100000")
    assert grown.counts == (10, 3, 2, 1, 5, 4, 3)
    assert [grown.id(one) for one in ("1023", "01023", "7", "00007", "0", "100000")] == [2, 2, 6, 6, 4, 8]
    assert codes.grown(Vocabulary(("1023", "07"), (6, 5))).values[4:] == ("07",), "text, which is as it was written"
    for values in (("01", "1"), ("007", "07"), ("0x1", "01a")):
        plain = Vocabulary(values, (2, 1))
        assert [plain.id(one) for one in (*values, "7")] == [2, 3, 0], "of several widths, they are other values"


CODES = st.text(alphabet="017a\u0660", min_size=1, max_size=3)


@given(st.lists(CODES, unique=True, max_size=30), st.lists(CODES | st.none(), max_size=30))
def test_ids_of_many_values_are_those_of_each(values, asked):
    """By their hashes, where there are many; the doors of single values are dicts."""
    many, wanted = (Vocabulary(values, [1] * len(values)) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "SMALL", 0)
        found = many.ids(pa.array(asked, pa.large_string()))
    assert "_id" not in vars(many)
    assert found.tolist() == [wanted.id(one) for one in asked]
    assert found.tolist() == wanted.ids(pa.array(asked, pa.large_string())).tolist()


@given(st.lists(CODES, unique=True, min_size=1, max_size=30))
def test_codes_with_zeros_are_those_of_one_width(values):
    zeros = [one for one in values if one[0] == "0" and one.isdecimal()]
    widths = {len(one) for one in zeros}
    alike = len(widths) == 1 and min(len(one) for one in values if one.isdecimal()) in widths
    found = Vocabulary(values, [1] * len(values))
    for one in zeros:
        short = one.lstrip("0") or "0"
        if short not in values:
            assert found.id(short) == (found.id(one) if alike else 0)
