"""Searches find what is known to be best, learn from trials that were stopped, and survive being killed."""

import math
import os
import re
import signal
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import event

from multigate.analysis.database import in_file
from multigate.analysis.ranges import Choice, Point, Range
from multigate.analysis.retries import KILLS, RETRIES, Hopeless, lose
from multigate.analysis.sampling import STARTUP
from multigate.analysis.search import Search, Valued, _study, begin, best, finished, try_one
from multigate.analysis.stopping import Tell
from multigate.errors import DiskError, MultigateError, RunError
from multigate.training.interrupts import Interrupted
from processes import fast

SPACE = {
    "rate": Range(low=1e-5, high=1e-1, log=True),
    "units": Range(low=4, high=256, log=True, whole=True),
    "kind": Choice(values=("a", "b")),
}


def hill(point: Point, tell: Tell) -> float:
    """Largest, 1, at rate 1e-3, 32 units and kind b; each of four steps brings .1."""
    value = -((math.log10(float(point["rate"])) + 3) ** 2) - (math.log2(int(point["units"])) - 5) ** 2
    value += point["kind"] == "b"
    for step in range(1, 4):
        tell(step, value - 0.1 * (4 - step))
    return value


def search(folder: Path, name: str = "hill") -> Search:
    return Search(name, f"sqlite:///{folder / 'trials.db'}", SPACE)


def slope(point: Point, tell: Tell) -> float:
    """Largest at rate 1e-3."""
    return -abs(math.log10(float(point["rate"])) + 3)


@contextmanager
def opened(one: Search) -> Iterator[optuna.Study]:
    """The search as optuna alone sees it; its database is closed behind it."""
    storage = optuna.storages.RDBStorage(one.storage)
    try:
        yield optuna.load_study(study_name=one.name, storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def points(one: Search) -> list[Point]:
    return [trial.point for trial in finished(one)]


def test_the_best_of_a_known_function_is_found(tmp_path: Path) -> None:
    one = search(tmp_path)
    begin(one)
    trials = [try_one(one, hill) for _ in range(STARTUP + 9)]
    found = best(trials)
    assert found.value > 0.9, "the best of as many random points is below .5 in nine of ten draws"
    assert found.point["kind"] == "b"
    assert found.value == hill(found.point, lambda step, value: None)
    assert [trial.point for trial in trials] == points(one)


def test_a_trial_that_is_behind_is_stopped_and_counts_for_what_it_would_have_come_to(tmp_path: Path) -> None:
    one = search(tmp_path)
    begin(one)
    for _ in range(STARTUP):
        try_one(one, hill)
    before = finished(one)

    def bad(point: Point, tell: Tell) -> float:
        tell(1, -50.0)
        raise AssertionError("it should have been stopped")

    trial = try_one(one, bad)
    assert trial.stopped
    gains = [other.value - other.steps[1] for other in before if not other.stopped]
    assert trial.value == pytest.approx(-50.0 + statistics.median(gains))
    assert len(finished(one)) == len(before) + 1, "a stopped trial is one of those that every method has alike"
    assert best([trial._replace(value=99.0), *before]) == best(before), "its value is a guess"


def _killed(one: Search, trials: int) -> None:
    """Some trials, and a process that is killed in the middle of the next one."""
    begin(one)
    for _ in range(trials):
        try_one(one, slope)

    def killed(point: Point, tell: Tell) -> float:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    try_one(one, killed)


def test_a_search_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    whole, broken = (search(tmp_path, name)._replace(space={"rate": SPACE["rate"]}) for name in ("whole", "broken"))
    trials = STARTUP + 1
    begin(whole)
    for _ in range(trials + 2):
        try_one(whole, slope)
    process = fast.Process(target=_killed, args=(broken, trials))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert points(broken) == points(whole)[:trials], "a trial that was killed does not count"
    begin(broken)
    for _ in range(2):
        try_one(broken, slope)
    assert points(broken) == points(whole), "its point comes next, and then what would have come"


def test_what_a_process_that_is_gone_was_at_comes_next(tmp_path: Path) -> None:
    """Also where others went on meanwhile, so that it is not its turn."""
    one = search(tmp_path)
    begin(one)
    lost = {"rate": 0.0125, "units": 8, "kind": "b"}
    with opened(one) as study:
        study.enqueue_trial(lost)
        trial = study.ask()  # and never told
        trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        trial.suggest_int("units", 4, 256, log=True)
        trial.suggest_categorical("kind", ("a", "b"))
    assert try_one(one, hill).point != lost
    begin(one)
    assert try_one(one, hill).point == lost


def test_a_trial_that_fails_does_not_count_and_its_point_is_tried_again(tmp_path: Path) -> None:
    one = search(tmp_path)
    begin(one)
    seen = []

    def fails(point: Point, tell: Tell) -> float:
        seen.append(point)
        raise RunError("the disk is full")

    with pytest.raises(RunError, match="the disk is full"):
        try_one(one, fails)
    with pytest.raises(RunError, match="a trial came to nan"):
        try_one(one, lambda point, tell: math.nan)
    assert finished(one) == []
    assert try_one(one, hill).point == seen[0]


def test_a_point_that_fails_again_and_again_counts_as_hopeless_and_the_search_goes_on(tmp_path: Path) -> None:
    one = search(tmp_path)._replace(hopeless=-100.0)
    seen: list[Point] = []

    def raises(error: type[BaseException], point: Point, tell: Tell) -> float:
        seen.append(point)
        raise error("no memory")

    for error in (RunError, KeyboardInterrupt, Interrupted, DiskError, OSError, MemoryError):
        begin(one)
        with pytest.raises(error, match="no memory"):
            try_one(one, partial(raises, error))
    begin(one)
    trial = try_one(one, partial(raises, MemoryError))
    assert trial is not None
    assert (trial.value, trial.stopped) == (-100.0, False)
    assert trial.point == seen[0]
    assert seen == [trial.point] * 7, "what was asked to stop, or met a full disk, has not failed"
    assert finished(one) == [trial]
    after = try_one(one, hill)
    assert after is not None
    assert after.point != trial.point
    with pytest.raises(MemoryError):
        try_one(one, partial(raises, MemoryError))
    assert best(finished(one)) == after, "failures are counted for each point"


def test_a_point_whose_process_is_gone_has_failed_as_often_as_before(tmp_path: Path) -> None:
    one = search(tmp_path)._replace(hopeless=-100.0)

    def fails(point: Point, tell: Tell) -> float:
        raise RunError("no memory")

    begin(one)
    for _ in range(RETRIES):
        with pytest.raises(RunError):
            try_one(one, fails)
    with opened(one) as study:
        trial = study.ask()  # and never told
        trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        trial.suggest_int("units", 4, 256, log=True)
        trial.suggest_categorical("kind", ("a", "b"))
    begin(one)
    lost = try_one(one, fails)
    assert lost is not None
    assert lost.point == trial.params
    assert lost.value == -100.0


@pytest.mark.parametrize("shared", [False, True])
def test_a_point_whose_process_is_killed_again_and_again_counts_as_hopeless(tmp_path: Path, shared: bool) -> None:
    one = search(tmp_path)._replace(hopeless=-100.0, shared=shared)
    begin(one)
    lost = {"rate": 0.0125, "units": 8, "kind": "b"}
    with opened(one) as study:
        study.enqueue_trial(lost)
        for killed in range(KILLS + 1):
            assert finished(one) == [], killed
            trial = study.ask()  # and never told
            trial.suggest_float("rate", 1e-5, 1e-1, log=True)
            trial.suggest_int("units", 4, 256, log=True)
            trial.suggest_categorical("kind", ("a", "b"))
            assert trial.params == lost
            if shared:  # as another machine does, which has waited for a sign of life
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
                lose(one.hopeless, study, study.trials[trial.number])
            else:
                assert begin(one) == ([lost] if killed == KILLS else [])
    (told,) = finished(one)
    assert (told.point, told.value, told.stopped) == (lost, -100.0, False)
    after = try_one(one, hill)
    assert after is not None
    assert after.point != lost


@pytest.mark.parametrize("hopeless", [False, True])
@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("change", ["add_trial", "tell"])
def test_a_begin_that_is_killed_itself_leaves_each_point_to_come_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, done: bool, hopeless: bool
) -> None:
    one = search(tmp_path)._replace(hopeless=-100.0)
    wanted: Point = {"rate": 1e-3, "units": 32, "kind": "b"}
    begin(one, [wanted])
    for _ in range(KILLS if hopeless else 0):
        with opened(one) as study:
            study.ask()  # and never told
        begin(one, [wanted])
    with opened(one) as study:
        trial = study.ask()
        trial.suggest_float("rate", 1e-5, 1e-1, log=True)
        trial.suggest_int("units", 4, 256, log=True)
        trial.suggest_categorical("kind", ("a", "b"))
    whole = getattr(optuna.Study, change)

    def killed(*given: Any, **named: Any) -> None:
        if done:
            whole(*given, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(optuna.Study, change, killed)
        with pytest.raises(KeyboardInterrupt):
            begin(one, [wanted])
    begin(one, [wanted])
    for _ in range(2):
        try_one(one, hill)
    first, *others = finished(one)
    assert first.point == wanted
    assert bool(first.hopeless) == hopeless
    assert wanted not in [other.point for other in others]


def test_points_that_are_wanted_first_are_tried_first_and_once(tmp_path: Path) -> None:
    one = search(tmp_path)
    wanted: list[Point] = [{"rate": 1e-3, "units": 32, "kind": "b"}, {"rate": 1e-2, "units": 4, "kind": "a"}]
    begin(one, wanted[:1])
    begin(one, wanted)
    for _ in range(3):
        try_one(one, hill)
    begin(one, wanted)
    try_one(one, hill)
    found = points(one)
    assert found[:2] == wanted
    assert found.count(wanted[0]) == found.count(wanted[1]) == 1


def test_a_point_whose_process_was_killed_before_it_was_at_it_still_comes(tmp_path: Path) -> None:
    one = search(tmp_path)
    wanted: Point = {"rate": 1e-3, "units": 32, "kind": "b"}
    begin(one, [wanted])
    with opened(one) as study:
        study.ask()  # the next of the queue, and nothing more
    begin(one, [wanted])
    assert try_one(one, hill).point == wanted


def test_a_trial_that_cannot_be_is_hopeless_at_once_and_says_why(tmp_path: Path) -> None:
    one = search(tmp_path)._replace(hopeless=-100.0)
    begin(one)

    def cannot(point: Point, tell: Tell) -> float:
        raise Hopeless("a and b do not go together")

    trial = try_one(one, cannot)
    assert (trial.value, trial.hopeless) == (-100.0, "a and b do not go together")
    assert try_one(one, hill).point != trial.point


def test_points_that_come_to_the_same_are_tried_once(tmp_path: Path) -> None:
    tried: list[str] = []

    def known_by(point: Point) -> str:
        return "a" if point["kind"] == "a" else repr(sorted(point.items()))

    def counted(point: Point, tell: Tell) -> Valued:
        tried.append(known_by(point))
        if point["kind"] == "a":
            raise Hopeless("a does not go with anything")
        return Valued(hill(point, lambda step, value: None), {"auc": 0.5})

    one = search(tmp_path)._replace(hopeless=-100.0, known_by=known_by)
    again: Point = {"rate": 1e-3, "units": 32, "kind": "b"}
    begin(one, [again])
    trials = [try_one(one, counted) for _ in range(STARTUP)]
    begin(one)
    with opened(one) as study:
        study.enqueue_trial(again)
    trials.append(try_one(one, counted))
    alike = [trial for trial in trials if trial.point["kind"] == "a"]
    assert len(alike) > 1
    assert tried.count("a") == 1
    assert {(trial.value, trial.hopeless) for trial in alike} == {(-100.0, "a does not go with anything")}
    assert (trials[-1].value, trials[-1].metrics) == (trials[0].value, trials[0].metrics) == (1.0, {"auc": 0.5})
    assert len(tried) == len(set(tried)) == len(trials) - len(alike)


def test_what_else_a_trial_came_to_is_kept_beside_its_value(tmp_path: Path) -> None:
    one = search(tmp_path)
    begin(one)
    try_one(one, lambda point, tell: Valued(0.5, {"a/auc": 0.6, "b/auc": math.nan}))
    assert [(trial.value, trial.metrics) for trial in finished(one)] == [(0.5, {"a/auc": 0.6})]


def test_machines_that_share_a_search_leave_the_trials_of_others_alone(tmp_path: Path) -> None:
    one = search(tmp_path)._replace(shared=True)
    begin(one)
    seen = []

    def crowded(point: Point, tell: Tell) -> float:
        begin(one)  # another machine begins, and has a trial of its own
        seen.append(try_one(one, hill, 2))
        seen.append(try_one(one, hill, 2))
        return 1.0

    trial = try_one(one, crowded, 2)
    assert trial is not None
    assert seen[0].point != trial.point
    assert seen[1] is None, "two trials were asked for: one is over, one under way"
    assert len(finished(one)) == 2


def test_a_search_about_something_else_is_refused(tmp_path: Path) -> None:
    one = search(tmp_path)
    begin(one)
    with pytest.raises(RunError, match=r"'hill' about something else \(about: .*1000 rows"):
        begin(one._replace(about="1000 rows"))
    with pytest.raises(RunError, match=r"space\.units\.high: 256.*512"):
        begin(one._replace(space=SPACE | {"units": Range(low=4, high=512, log=True, whole=True)}))


def test_a_database_may_be_begun_by_two_at_the_same_moment(tmp_path: Path) -> None:
    """The other makes its tables just after this one saw that there are none."""
    one, made = search(tmp_path)._replace(shared=True), []

    @event.listens_for(BaseModel.metadata, "before_create", once=True)
    def _another(*_: object, **__: object) -> None:
        made.append(begin(one._replace(name="another")))

    begin(one)
    assert made == [[]], "the tables were there by then"
    assert try_one(one, hill) is not None


def _take_waiting(one: Search, together: Any, taken: Any) -> None:
    with _study(one) as study:
        together.wait()
        taken.put([study.ask().number for _ in range(20)])


def test_no_two_processes_take_the_same_waiting_trial(tmp_path: Path) -> None:
    """Those that ask at the same moment, too: of SQLite by itself 9 of 60 were taken twice."""
    begin(search(tmp_path), [{"rate": 1e-3, "units": units, "kind": "a"} for units in range(10, 70)])
    together, taken = fast.Barrier(3), fast.Queue()
    processes = [fast.Process(target=_take_waiting, args=(search(tmp_path), together, taken)) for _ in range(3)]
    for process in processes:
        process.start()
    numbers = [number for _ in processes for number in taken.get(timeout=120)]
    for process in processes:
        process.join()
    assert sorted(numbers) == list(range(60))


@pytest.mark.parametrize("storage", ["trials.db", "sqlite:////nowhere/at/all.db", "nodriver://me:secret@host/trials"])
def test_a_database_that_is_none_is_told_without_its_password(storage: str) -> None:
    with pytest.raises(RunError, match="no trials can be kept in") as told:
        begin(Search("x", storage, {"x": Range(low=0, high=1)}))
    assert "secret" not in str(told.value)


@pytest.mark.parametrize("name", ["a?b", "10%20b", "{y}", "a#b", "blank ü"])
def test_the_database_of_a_folder_is_in_it_whatever_its_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    one = Search("hill", in_file(folder / "trials.db"), SPACE)
    begin(one)
    assert try_one(one, hill) == finished(one)[0]
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "trials.db").is_file()
    with pytest.raises(RunError, match=re.escape(f"{folder}/trials.db holds a search 'hill' about something else")):
        begin(one._replace(seed=1))


@pytest.mark.parametrize("name", ["a?b", "{y}"])
def test_a_name_that_cannot_be_told_to_the_database_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As with SQLAlchemy before 2.1, which quotes nothing."""
    monkeypatch.setattr("sqlalchemy.engine.URL.render_as_string", lambda url: f"sqlite:///{url.database}")
    with pytest.raises(RunError, match=r"no trials can be kept in .*; choose another folder"):
        in_file(Path("/runs", name, "trials.db"))


def test_a_database_that_was_damaged_meanwhile_is_told(tmp_path: Path) -> None:
    one = search(tmp_path)
    begin(one)
    try_one(one, hill)
    content = bytearray((tmp_path / "trials.db").read_bytes())
    content[8192:40_000] = bytes(40_000 - 8192)
    (tmp_path / "trials.db").write_bytes(content)
    with pytest.raises(
        RunError, match=r"no trials can be kept in .*trials\.db': .*; mend that or choose another place$"
    ):
        begin(one)


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MultigateError, match=r"pip install 'multigate\[tune\]'"):
        begin(search(tmp_path))


@given(low=st.integers(1, 40), more=st.integers(0, 400), log=st.booleans(), part=st.floats(0, 1, exclude_max=True))
def test_a_range_stays_within_its_ends(low: int, more: int, log: bool, part: float) -> None:
    one = Range(low=low, high=low + more, log=log, whole=True)
    assert low <= one.at(part) <= low + more
    assert one.at(0.0) == low
    assert one.at(1 - 1e-12) == low + more


def test_the_first_points_fill_the_space_and_are_never_stopped(tmp_path: Path) -> None:
    one = search(tmp_path)
    begin(one)

    def worse(value: float, point: Point, tell: Tell) -> float:
        tell(1, value)
        return value

    found = [try_one(one, partial(worse, -float(at))) for at in range(STARTUP)]
    assert not any(trial.stopped for trial in found)
    exponents = sorted(math.log10(float(trial.point["rate"])) for trial in found)
    assert exponents[0] < -4
    assert exponents[-1] > -2
    assert max(after - before for before, after in pairwise(exponents)) < 1.5
    assert {trial.point["kind"] for trial in found} == {"a", "b"}


@pytest.mark.parametrize("dimensions", [2, 6])
def test_no_two_settings_move_together_in_the_first_points(tmp_path: Path, dimensions: int) -> None:
    """Or the search would not know which of them did it. The worst of points drawn at random come to .9."""
    space = {str(at): Range(low=0, high=1) for at in range(dimensions)}
    alike = []
    for seed in range(2):
        one = search(tmp_path)._replace(name=f"{seed}", seed=seed, space=space)
        begin(one)
        found = [try_one(one, lambda point, tell: 0.0) for _ in range(STARTUP)]
        points = np.array([[trial.point[str(at)] for at in range(dimensions)] for trial in found])
        assert (np.sort((points * STARTUP).astype(int), 0) == np.arange(STARTUP)[:, None]).all(), "one in each eighth"
        alike.append(np.abs(np.corrcoef(points.T) - np.eye(dimensions)).max())
    assert max(alike) < 0.6


def test_a_range_that_goes_down_is_refused() -> None:
    with pytest.raises(ValueError, match="a range goes up"):
        Range(low=2, high=1)
    with pytest.raises(ValueError, match="whole numbers has whole ends"):
        Range(low=0.4, high=5, log=True, whole=True)
    with pytest.raises(ValueError, match="from above 0"):
        Range(low=0, high=1, log=True)
