"""Work on other threads comes back in order, errors in their place, and never runs far ahead."""

import threading
import time

import pytest

from multigate.data.ahead import worked


def threads():
    return [one for one in threading.enumerate() if one.name.startswith("multigate-worked")]


def test_results_come_in_the_order_of_the_items_though_some_take_longer():
    seen = set()

    def square(x):
        seen.add(threading.get_ident())
        time.sleep(0.01 if x % 3 == 0 else 0)
        return x * x

    assert list(worked(square, iter(range(30)), threads=3)) == [x * x for x in range(30)]
    assert len(seen) > 1
    assert threading.get_ident() not in seen
    assert list(worked(square, [])) == []
    assert threads() == []


@pytest.mark.parametrize(
    ("bad_work", "bad_item", "wanted"), [(4, None, 4), (None, 6, 6), (4, 5, 4), (0, 1, 0), (None, 0, 0)]
)
def test_an_error_is_raised_where_its_result_would_have_come(bad_work, bad_item, wanted):
    """The first of two by the order of the items, whichever came to light first."""

    def items():
        for x in range(10):
            if x == bad_item:
                raise ZeroDivisionError(x)
            yield x

    def work(x):
        if x == bad_work:
            time.sleep(0.05)
            raise ZeroDivisionError(x)
        return x

    running, found = worked(work, items()), []
    with pytest.raises(ZeroDivisionError, match=str(wanted)):
        found.extend(running)
    assert found == list(range(wanted))
    assert threads() == []


def test_no_more_than_one_item_a_thread_and_one_are_under_way():
    taken = []

    def items():
        for x in range(100):
            taken.append(x)
            yield x

    running = worked(lambda x: x, items(), threads=2)
    assert next(running) == 0
    time.sleep(0.05)
    assert len(taken) == 3
    running.close()
    assert len(taken) == 3
    assert threads() == []
