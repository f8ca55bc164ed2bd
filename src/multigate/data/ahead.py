"""One step ahead: what an iterator gives next is made on background threads."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(items: Iterable[Item], depth: int = 2) -> Generator[Item, None, None]:
    """The same items in order, up to ``depth`` of them made in advance on one thread.

    An exception is raised where its item would have come. The thread ends when the items do, or soon after this
    generator is closed or dropped: at most the item in the making is finished.
    """
    made: deque[tuple[Item | None, BaseException | None, bool]] = deque()
    turn = threading.Condition()
    stopped = False

    def put(entry: tuple[Item | None, BaseException | None, bool]) -> bool:
        with turn:
            while len(made) >= depth and not stopped:
                turn.wait()
            if not stopped:
                made.append(entry)
                turn.notify_all()
            return not stopped

    def work() -> None:
        try:
            for item in items:
                if not put((item, None, False)):
                    return
        except BaseException as error:
            put((None, error, True))
        else:
            put((None, None, True))

    thread = threading.Thread(target=work, name="multigate-ahead", daemon=True)
    thread.start()
    try:
        while True:
            with turn:
                while not made:
                    turn.wait()
                item, error, last = made.popleft()
                turn.notify_all()
            if error is not None:
                raise error
            if last:
                return
            yield item  # type: ignore[misc]
    finally:
        with turn:
            stopped = True
            made.clear()
            turn.notify_all()
        thread.join()


def worked(work: Callable[[Item], Made], items: Iterable[Item], threads: int = 2) -> Generator[Made, None, None]:
    """``work`` of every item in order, done on some threads; up to one item more than there are threads is under way.

    An exception, of the work or of the items, is raised where its result would have come. What is under way then, or
    when this generator is closed, is finished first.
    """
    made: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="multigate-worked") as pool:
        try:
            for future in _submitted(pool, work, items):
                made.append(future)
                if len(made) > threads:
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()
        finally:
            for future in made:
                future.cancel()


def _submitted(
    pool: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterable[Item]
) -> Generator[Future[Made], None, None]:
    try:
        for item in items:
            yield pool.submit(work, item)
    except Exception as error:
        failed: Future[Made] = Future()
        failed.set_exception(error)
        yield failed
