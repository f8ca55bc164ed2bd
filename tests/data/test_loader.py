import threading
import time
from itertools import groupby

import numpy as np
import pyarrow as pa
import pytest
import torch

from multigate.data.ahead import ahead
from multigate.data.files import open_table
from multigate.data.loader import Loader
from multigate.data.prepared import prepare
from multigate.data.rows import cut, join, pick
from multigate.data.shards import Part
from multigate.data.split import Split
from multigate.schema import Bag, Category, Number, Schema, Task

ROWS = 1000


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """1,000 rows in shards of 64; the regression label tells which row it is, everything else follows from it."""
    place = np.arange(ROWS)
    table = pa.table({
        "x": place * 0.5, "c": place.astype(str), "b": [",".join("7" * (i % 4)) for i in place],
        "y": place % 2, "z": place.astype(float), "u": place,
    })  # fmt: skip
    schema = Schema(
        features=(Number("x", embedding="none"), Category("c"), Bag("b", buckets=9)),
        tasks=(Task("y"), Task("z", kind="regression", transform="none")),
        group="u",
    )
    opened = open_table(table)
    folder = tmp_path_factory.mktemp("prepared") / "p"
    return prepare(schema, opened, opened, None, Split(), folder, shard_rows=64).train


def places(batches):
    return [int(z) for batch in batches for z in batch.labels[:, -1]]


def equal(left, right):
    for one, other in zip(left, right, strict=True):
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other)
    for one, other in zip(left.bags, right.bags, strict=True):
        assert torch.equal(one.values, other.values)
        assert torch.equal(one.offsets, other.offsets)


@pytest.mark.parametrize("window", [1, 4, 100])
@pytest.mark.parametrize("batch_size", [1, 50, 64, 333, 4000])
def test_every_row_once_an_epoch_in_batches_of_the_size_asked(part, window, batch_size):
    loader = Loader(part, batch_size, window=window)
    batches = list(loader.epoch(0))
    assert len(batches) == len(loader)
    assert [batch.rows for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert sorted(places(batches)) == list(range(ROWS))


def test_rows_stay_whole(part):
    whole = join(list(part.shards))
    for batch in Loader(part, 77, window=3).epoch(2):
        equal(batch, pick(whole, torch.tensor(places([batch]))))


def test_the_order_is_that_of_seed_and_epoch(part):
    def order(epoch, **settings):
        return places(Loader(part, 50, **settings).epoch(epoch))

    first = order(0)
    assert order(0) == first
    assert order(0, prefetch=False) == first
    assert order(0, seed=1) != first
    assert order(1) != first
    assert order(1, window=100) != order(0, window=100)
    # far from the order of the file, and across the shards of a window
    assert np.abs(np.diff(first[:200])).mean() > 30
    assert len({row // 64 for row in first[:50]}) == 4
    assert abs(np.corrcoef(first, np.arange(ROWS))[0, 1]) < 0.5


def test_shards_come_in_another_order_each_epoch_and_each_is_permuted_in_a_way_of_its_own(part):
    loader = Loader(part, 50, window=1)
    orders = []
    for epoch in range(3):
        shards = {shard: list(rows) for shard, rows in groupby(places(loader.epoch(epoch)), lambda row: row // 64)}
        orders.append(tuple(shards))
        within = [tuple(row % 64 for row in rows) for rows in shards.values()]
        assert len(set(within)) == len(within) == 16
    assert len(set(orders)) == 3


@pytest.mark.parametrize("window", [16, 100])
def test_the_order_that_is_told_is_the_one_in_which_rows_come(part, window):
    loader = Loader(part, 50, window=window, seed=2)
    assert [loader.order(epoch).tolist() for epoch in (0, 3)] == [places(loader.epoch(epoch)) for epoch in (0, 3)]


@pytest.mark.parametrize("settings", [{"window": 15}, {"shuffle": False, "window": 16}, {"world": 2, "window": 16}])
def test_no_order_is_told_of_rows_in_several_windows_of_several_ranks_or_as_they_are(part, settings):
    assert len(part.sizes) == 16
    assert Loader(part, 50, **settings).order(0) is None


def test_the_order_of_rows_does_not_depend_on_the_batch_size(part):
    assert places(Loader(part, 7).epoch(3)) == places(Loader(part, 640).epoch(3))


def test_unshuffled_is_the_order_of_the_file(part):
    assert places(Loader(part, 50, shuffle=False).epoch(5)) == list(range(ROWS))


@pytest.mark.parametrize("window", [2, 100])
@pytest.mark.parametrize("shuffle", [True, False])
def test_starting_later_gives_the_same_batches(part, window, shuffle):
    loader = Loader(part, 50, window=window, shuffle=shuffle)
    whole = list(loader.epoch(4))
    for start in (0, 1, 7, 19, 20, 30):
        rest = list(Loader(part, 50, window=window, shuffle=shuffle).epoch(4, start=start))
        assert len(rest) == max(20 - start, 0)
        for one, other in zip(rest, whole[start:], strict=True):
            equal(one, other)


def test_starting_later_reads_only_what_is_left(part):
    fresh = Part(part.name, part.shards._paths, part.sizes)
    assert len(list(Loader(fresh, 64, window=2).epoch(0, start=12))) == 4
    assert len(fresh.shards._open) == 4


def test_the_state_is_what_was_handed_out(part):
    loader = Loader(part, 100)
    assert loader.state() == {"epoch": 0, "batch": 0}
    batches = loader.epoch(3, start=2)
    assert loader.state() == {"epoch": 3, "batch": 2}
    seen = [next(batches), next(batches), next(batches)]
    time.sleep(0.05)  # time for the thread to run ahead
    assert loader.state() == {"epoch": 3, "batch": 5}
    state = loader.state()
    rest = list(Loader(part, 100).epoch(state["epoch"], start=state["batch"]))
    assert places(seen + rest) == places(Loader(part, 100).epoch(3))[200:]


@pytest.mark.parametrize(("world", "batch_size"), [(2, 50), (3, 64), (4, 333), (7, 200)])
def test_ranks_are_disjoint_cover_the_rows_and_agree_on_the_number_of_batches(part, world, batch_size):
    loaders = [Loader(part, batch_size, rank=rank, world=world, window=3) for rank in range(world)]
    found = [list(loader.epoch(1)) for loader in loaders]
    assert {len(batches) for batches in found} == {len(loaders[0])}
    assert sorted(row for batches in found for row in places(batches)) == list(range(ROWS))
    for batches in found:
        assert all(batch.rows == batch_size for batch in batches[:-1])
    # together the ranks see the batches of one process with a batch size of all of them
    single = list(Loader(part, batch_size * world, window=3).epoch(1))
    for at, batch in enumerate(single):
        equal(join([batches[at] for batches in found]), batch)


def test_more_ranks_than_rows_in_the_last_batch(part):
    found = [list(Loader(part, 1, rank=rank, world=999).epoch(0)) for rank in range(999)]
    assert {len(batches) for batches in found} == {2}
    assert sorted(row for batches in found for row in places(batches)) == list(range(ROWS))
    empty = min((batches[1] for batches in found), key=lambda batch: batch.rows)
    assert empty.numbers.shape == (0, 1)
    assert empty.bags[0].offsets.tolist() == [0]


def test_one_task_shares_the_shards(part):
    whole = list(Loader(part, 100).epoch(0))
    for tasks in ([1], [0], [1, 0]):
        for one, other in zip(Loader(part, 100, tasks=tasks).epoch(0), whole, strict=True):
            for name in ("labels", "known", "weights"):
                assert torch.equal(getattr(one, name), getattr(other, name)[:, tasks])
            assert torch.equal(one.categories, other.categories)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "multigate-ahead"]


def test_closing_an_epoch_ends_its_thread(part):
    batches = Loader(part, 10).epoch(0)
    next(batches)
    assert len(threads()) == 1
    batches.close()
    assert threads() == []
    for _ in Loader(part, 10).epoch(0):
        break
    assert threads() == []


def test_an_error_ahead_is_raised_where_its_item_would_come():
    def items():
        yield 1
        yield 2
        raise ZeroDivisionError("three")

    running = ahead(items())
    assert [next(running), next(running)] == [1, 2]
    with pytest.raises(ZeroDivisionError, match="three"):
        next(running)
    assert threads() == []


def test_no_more_than_depth_items_are_made_ahead():
    made = []

    def items():
        for at in range(100):
            made.append(at)
            yield at

    running = ahead(items(), depth=3)
    assert next(running) == 0
    time.sleep(0.1)
    assert len(made) <= 5
    running.close()
    assert len(made) <= 5


def test_items_made_ahead_are_closed_with_it():
    closed = threading.Event()

    def items():
        try:
            yield from range(10**9)
        finally:
            closed.set()

    running = ahead(items())
    next(running)
    running.close()
    assert closed.is_set()


def test_gathering_is_off_the_training_thread(part):
    names = []

    def items():
        for _ in range(3):
            names.append(threading.current_thread().name)
            yield 0

    list(ahead(items()))
    assert set(names) == {"multigate-ahead"}


def test_cutting_joining_and_picking_undo_each_other(part):
    whole = join(list(part.shards))
    equal(join([cut(whole, 0, 3), cut(whole, 3, 3), cut(whole, 3, 100)]), cut(whole, 0, 100))
    order = torch.randperm(ROWS)
    equal(pick(pick(whole, order), order.argsort()), whole)


@pytest.mark.parametrize("window", [1, 4, 100])
def test_rows_that_are_picked_where_a_gpu_has_them_are_the_same(part, window):
    """The way of a GPU, windows read ahead and rows picked by who asks, with the processor as GPU."""
    for tasks, start in ((None, 0), ([1], 0), (None, 7)):
        plain = Loader(part, 50, window=window, seed=3, tasks=tasks)
        other = Loader(part, 50, window=window, seed=3, tasks=tasks)
        other.device = torch.device("cpu", 0)  # not the same object: no processor to this loader
        for epoch in (0, 1):
            pairs = zip(other.epoch(epoch, start), plain.epoch(epoch, start), strict=True)
            for left, right in pairs:
                equal(left, right)
    stopped = other.epoch(0)
    next(stopped)
    stopped.close()
    assert not [one for one in threading.enumerate() if one.name == "multigate-ahead"]


def test_tensors_elsewhere_are_picked_and_joined_there(part):
    """As on a GPU; meta tensors stand for those, of which shapes alone are known."""
    rows = torch.tensor([3, 1, 4])
    whole = part.shards[0]._replace(bags=())
    there = type(whole)(*(one.to("meta") if isinstance(one, torch.Tensor) else one for one in whole))
    picked = pick(there, rows.to("meta"))
    assert [one.shape for one in join([picked, picked])[3:]] == [one.shape for one in join([pick(whole, rows)] * 2)[3:]]
    assert picked.numbers.device.type == "meta"
