"""Processes that share out jobs: every job once, errors told, nobody left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest

from multigate.analysis import workers as module
from multigate.analysis.workers import Job, Workers
from multigate.errors import DataError, RunError
from multigate.training.interrupts import Interrupted, Interrupts


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def fail() -> None:
    raise DataError("no rows")


class Misfit(Exception):
    """One of somebody's own, which pickle cannot make again."""

    def __init__(self, width: int, wanted: int) -> None:
        super().__init__(f"{width} is not {wanted}")


def misfit() -> None:
    raise Misfit(3, 4)


def hold_a_lock() -> None:
    raise ValueError("held", threading.Lock())


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def threads() -> str:
    return os.environ["OMP_NUM_THREADS"]


def sleep() -> None:
    time.sleep(3_600)


def save(folder: Path) -> None:
    """Work until a signal asks to stop, then save."""
    with Interrupts() as interrupts:
        (folder / "begun").touch()
        while not interrupts.asked:
            time.sleep(0.01)
        (folder / "saved").touch()
        raise Interrupted("stopped")


def fail_once_asked(folder: Path) -> None:
    """Work until a signal asks to stop, and fail at saving."""
    with Interrupts() as interrupts:
        (folder / "begun").touch()
        while not interrupts.asked:
            time.sleep(0.01)
        raise DataError("no room")


def fail_once_begun(folder: Path) -> None:
    while not (folder / "begun").exists():
        time.sleep(0.01)
    fail()


def test_every_job_is_done_once_by_two_processes_that_are_then_gone() -> None:
    with Workers(2) as workers:
        done = list(workers.run([partial(square, number) for number in range(8)]))
        again = list(workers.run([partial(square, 3)]))
    assert sorted((place, result[0]) for place, result in done) == [(number, number**2) for number in range(8)]
    processes = {result[1] for _, result in done}
    assert len(processes) == 2
    assert again[0][1][1] in processes, "they are started once"
    for one in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(one, 0)


@pytest.mark.parametrize(("job", "told"), [(misfit, "Misfit: 3 is not 4"), (hold_a_lock, "ValueError: .'held'")])
def test_errors_that_cannot_be_sent_are_told_in_their_words(job: Callable[[], None], told: str) -> None:
    with Workers(2) as workers, pytest.raises(RuntimeError, match=told):
        list(workers.run([job, job]))


def test_one_worker_is_the_process_itself() -> None:
    with Workers(1) as workers:
        assert list(workers.run([partial(square, 2)])) == [(0, (4, os.getpid()))]


def two_jobs_of_two_workers() -> list[tuple[int, int]]:
    with Workers(2) as workers:
        return sorted(result for _, result in workers.run([partial(square, 2), partial(square, 3)]))


def test_a_process_that_may_start_none_does_all_jobs_itself() -> None:
    with get_context("spawn").Pool(1) as pool:
        (one, first), (other, second) = pool.apply(two_jobs_of_two_workers)
    assert (one, other) == (4, 9)
    assert first == second != os.getpid()


def test_what_a_job_raises_is_raised_and_the_others_are_ended() -> None:
    with pytest.raises(DataError, match="no rows"), Workers(2) as workers:
        list(workers.run([sleep, fail]))
    # a job of an hour was not waited for


def ends_beside_failure(job: Job, folder: Path) -> list[int | None]:
    """How the process of a job ends that another's failure has asked to stop."""
    with Workers(2) as workers:
        with pytest.raises(DataError, match="no rows"):
            list(workers.run([job, partial(fail_once_begun, folder)]))
        busy = [worker.process for worker, _ in workers._busy.values()]
    return [process.exitcode for process in busy]


def test_what_fails_while_it_is_asked_to_stop_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multigate.analysis.workers.PATIENCE", 20)
    assert ends_beside_failure(partial(fail_once_asked, tmp_path), tmp_path) == [0], "it did not have to be killed"


def test_what_is_being_trained_is_saved_and_its_process_ends_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("multigate.analysis.workers.PATIENCE", 20)
    assert ends_beside_failure(partial(save, tmp_path), tmp_path) == [0], "it did not have to be killed"
    assert (tmp_path / "saved").exists()


def test_a_process_that_is_killed_is_told_of() -> None:
    with pytest.raises(RunError, match="exit code -9"), Workers(2) as workers:
        list(workers.run([die, die]))


def die_unread(pipe: object) -> None:
    die()


def test_a_process_that_is_killed_before_it_reads_its_job_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_work", die_unread)
    for job in (die, partial(len, b"larger than the pipe" * 100_000)):
        with pytest.raises(RunError, match="exit code -9"), Workers(2) as workers:
            list(workers.run([job, job]))


SCRIPT = """
from functools import partial
from multigate.analysis.workers import Workers
print("begun", flush=True)
def square(number):
    return number * number
{guard}
    with Workers(2) as workers:
        print(sorted(workers.run([partial({function}, 2, *{more}), partial({function}, 3, *{more})])), flush=True)
"""


@pytest.mark.parametrize(
    ("guard", "function", "more", "begun"),
    [
        ("if True:", "pow", [2], 1),  # a script as people write it
        ('if __name__ == "__main__":', "square", [], 3),  # what it defines itself its processes have to read there
    ],
)
def test_a_script_is_run_again_only_for_what_it_defines(
    guard: str, function: str, more: list[int], begun: int, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT.format(guard=guard, function=function, more=more), encoding="utf-8")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[(0, 4), (1, 9)]\n")
    assert done.stdout.count("begun") == begun


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Workers(2) as workers:
        assert {result for _, result in workers.run([threads, threads])} == {str(max(1, (os.cpu_count() or 1) // 2))}
    assert "OMP_NUM_THREADS" not in os.environ
