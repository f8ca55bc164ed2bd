"""What an analysis looks at: rows of a long table are thinned evenly, and few are held."""

from itertools import pairwise

import torch

from multigate.analysis.subject import _thinned
from multigate.batch import Batch


def numbered(at: int, rows: int = 100) -> Batch:
    nothing = torch.empty(rows, 0)
    return Batch(torch.full((rows, 1), float(at)), nothing, (), nothing, nothing, nothing, torch.zeros(rows))


def test_a_long_table_is_thinned_evenly() -> None:
    kept, count = _thinned((numbered(at) for at in range(1_000)), most=2_000)
    places = [int(batch.numbers[0, 0]) for batch in kept]
    assert count == 100_000
    assert 1_000 <= 100 * len(places) <= 2_000
    assert len({b - a for a, b in pairwise(places)}) == 1, "evenly spread"
    assert places[0] == 0
    assert places[-1] >= 900


def test_a_short_one_is_taken_whole() -> None:
    kept, count = _thinned((numbered(at) for at in range(7)), most=700)
    assert (len(kept), count) == (7, 700)
