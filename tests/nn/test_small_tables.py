"""Small tables apart from large ones, against reading all of the weight with torch's embedding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from multigate.nn import table_rows
from multigate.nn.small_tables import Column, Division
from multigate.nn.table_rows import Pull

DIM, BATCH = 8, 40


@st.composite
def readers(draw: st.DrawFn) -> tuple[list[Column], list[int], int]:
    """Columns of tables in one weight, some of them of one table, which are small, and the weight's rows."""
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    tables = draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=8))
    places = draw(st.permutations(range(len(tables))))
    columns = [Column(place, starts[table], sizes[table]) for place, table in zip(places, tables, strict=True)]
    small = draw(st.sets(st.sampled_from(range(len(columns))), min_size=1))
    return columns, sorted(small), sum(sizes) + draw(st.integers(0, 3))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
@settings(deadline=None)  # the first loads what is compiled
@given(reads=readers(), seed=st.integers(0, 9))
def test_both_sides_are_what_the_weight_holds_and_learn_as_one(
    compiled: bool, sparse: bool, reads: tuple[list[Column], list[int], int], seed: int
) -> None:
    (columns, small, rows), draws = reads, torch.Generator().manual_seed(seed)
    ids = torch.empty(BATCH, len(columns), dtype=torch.int32)
    for column in columns:
        ids[:, column.read] = torch.randint(0, column.size, (BATCH,), generator=draws, dtype=torch.int32)
    weight = torch.randn(rows, DIM, generator=draws, requires_grad=True)
    exact = weight.detach().clone().requires_grad_()
    each = [functional.embedding(ids[:, column.read] + column.start, exact) for column in columns]
    division = Division.of(columns, small, weight, 3)
    pulls: list[Pull] | None = [] if sparse else None
    with pytest.MonkeyPatch.context() as patched:
        if not compiled:
            patched.setattr(table_rows, "kernels", lambda: None)
        others, of_small = division.read(weight, ids, 0.0, pulls)
        wanted = [[each[at] for at in range(len(columns)) if (at in small) == side] for side in (False, True)]
        assert torch.equal(of_small.embedded(), torch.stack(wanted[1], 1))
        assert others.shape == (BATCH, len(wanted[0]), DIM)
        if wanted[0]:
            assert torch.equal(others, torch.stack(wanted[0], 1))
        pull = torch.randn(BATCH, len(columns), DIM, generator=draws)
        loss = (others * pull[:, : others.shape[1]]).sum() + (of_small.embedded() * pull[:, others.shape[1] :]).sum()
        loss.backward()
    (torch.stack([*wanted[0], *wanted[1]], 1) * pull).sum().backward()
    assert exact.grad is not None
    if pulls is None:
        found = weight.grad
    else:
        assert weight.grad is None
        found = torch.zeros(rows, DIM)
        for one in pulls:
            found.index_add_(0, one.rows, one.gradient)
        read = {column.start + one for column in columns for one in ids[:, column.read].tolist()}
        assert {row for one in pulls for row in one.rows.tolist()} == read
    torch.testing.assert_close(found, exact.grad, atol=1e-4, rtol=1e-4)  # sums of up to 320 numbers


def test_where_in_x_both_sides_lie() -> None:
    columns = [Column(at, 10 * at, 10) for at in range(6)]
    division = Division.of(columns, [1, 2, 5], torch.zeros(60, DIM), 3)
    assert division.small.runs == ((3 + DIM, 3 + 3 * DIM), (3 + 5 * DIM, 3 + 6 * DIM))
    assert division.others.runs == ((3, 3 + DIM), (3 + 3 * DIM, 3 + 5 * DIM))
    assert division.small.places.tolist() == [3 + DIM, 3 + 2 * DIM, 3 + 5 * DIM]
    assert division.rows.tolist() == [*range(10, 30), *range(50, 60)]
    assert division.small.starts.tolist() == [0, 10, 20]
    assert not division.whole
    assert Division.of(columns, range(6), torch.zeros(60, DIM), 3).whole
