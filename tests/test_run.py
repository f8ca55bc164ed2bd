"""The folder of a run: whose it is, what an error leaves of it, what is read back from it."""

import errno
import json
import os
import shlex
from pathlib import Path

import pytest

from multigate.bundle import load
from multigate.cache import cache_folder
from multigate.errors import BundleError, DataError, RunError
from multigate.experiment import Experiment, read_experiment
from multigate.folders import EXPERIMENT, SUMMARY
from multigate.lock import LOCK
from multigate.run import METRICS, claimed, difference, keep_history, open_run, read_history
from multigate.score import write_predictions
from multigate.training.train import train


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("place", ["new", "new/and/newer", "empty", "with a link", "begun by a killed process"])
def test_an_error_before_anything_is_reached_leaves_nothing(
    feed_experiment: Experiment, tmp_path: Path, place: str
) -> None:
    folder = tmp_path / place
    if place == "empty":
        folder.mkdir()
    elif place == "with a link":
        (tmp_path / "elsewhere").mkdir()
        os.symlink(tmp_path / "elsewhere", folder)
    before = names(tmp_path)
    if place == "begun by a killed process":
        folder.mkdir()
        (folder / LOCK).write_text("1")
        (folder / f".{EXPERIMENT}.1-0.writing").write_text("sch")
        before = names(tmp_path)[:1]

    def work(error: Exception) -> None:
        with claimed(folder, feed_experiment, resume=False, progress="model"):
            assert sorted(path.name for path in folder.iterdir()) == [LOCK, EXPERIMENT]
            (folder / "half").mkdir()
            raise error

    for error in (RunError("no luck"), MemoryError("no luck"), RuntimeError("can't start new thread: no luck")):
        with pytest.raises(type(error), match="no luck"):
            work(error)
        assert names(tmp_path) == before


def test_what_was_reached_is_kept_and_so_is_what_an_interrupt_or_a_fault_ends(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    def work(folder: Path, error: BaseException) -> None:
        with claimed(folder, feed_experiment, resume=False, progress="model"):
            if isinstance(error, RunError):
                (folder / "model").write_text("reached")
            raise error

    for number, error in enumerate((RunError("no luck"), KeyboardInterrupt(), ZeroDivisionError())):
        folder = tmp_path / str(number)
        with pytest.raises(type(error)):
            work(folder, error)
        assert (folder / EXPERIMENT).is_file()
        assert not (folder / LOCK).exists()
        with claimed(folder, feed_experiment, resume=True, progress="model"):
            pass


def test_two_at_a_time_are_one_too_many(feed_experiment: Experiment, tmp_path: Path) -> None:
    with claimed(tmp_path, feed_experiment, resume=True, progress="model"):
        before = names(tmp_path)
        second = claimed(tmp_path, feed_experiment, resume=True, progress="model")
        with pytest.raises(RunError, match=f"worked on by process {os.getpid()}"):
            second.__enter__()
        assert names(tmp_path) == before


def test_leftovers_are_removed_only_where_a_run_is(feed_experiment: Experiment, tmp_path: Path) -> None:
    (tmp_path / "mine.writing").write_text("dear")
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(RunError, match="not empty"):
        claimed(tmp_path, feed_experiment, resume=True, progress="model").__enter__()
    assert names(tmp_path) == ["mine.writing", "thesis.tex"]
    with claimed(tmp_path / "run", feed_experiment, resume=False, progress="model"):
        (tmp_path / "run" / ".prepared.1-3.writing").mkdir()
    with claimed(tmp_path / "run", feed_experiment, resume=True, progress="model"):
        assert names(tmp_path / "run") == [LOCK, EXPERIMENT]


@pytest.mark.parametrize("name", [".notes.old", "a.writing"])
def test_a_folder_with_a_users_file_alone_is_not_empty_whatever_its_name(
    feed_experiment: Experiment, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("dear")
    for resume in (False, True):
        with pytest.raises(RunError, match="is not empty and holds no run"):
            train(feed_experiment, tmp_path, resume=resume, quiet=True)
    assert names(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "dear"


def test_a_torn_last_line_is_no_entry_and_any_other_is_told(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    entries = [{"epoch": step, "step": step, "train": {}, "valid": {}} for step in (1, 2)]
    whole = "".join(json.dumps(entry) + "\n" for entry in entries)
    for tail in ("", "{", '{"step": 3', '{"ste\xff', "[]", "null", '"'):
        path.write_text(whole + tail, encoding="latin-1")
        assert read_history(path) == entries
        path.write_text(tail + "\n" + whole, encoding="latin-1")
        with pytest.raises(RunError, match=r"line 1 is damaged; "):
            read_history(path)
    with pytest.raises(RunError, match="nothing"):
        read_history(tmp_path / "nothing")


def test_history_beyond_the_step_or_the_epoch_of_a_checkpoint_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    keep_history(path, 0, 0)
    assert not path.exists()
    entries = [{"epoch": epoch, "step": 10 * epoch, "train": {}, "valid": {}} for epoch in range(4)]
    for step, epoch, kept in ((20, 1, 2), (20, 2, 3), (25, 2, 3), (30, 2, 3), (0, 0, 1), (99, 99, 4)):
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        keep_history(path, step, epoch)
        assert read_history(path) == entries[:kept], (step, epoch)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"best": 3}', '{"best": {"a": "b"}}', "null", "[" * 100_000])
def test_a_summary_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / SUMMARY).write_text(text)
    with pytest.raises(RunError, match="damaged; "):
        open_run(tmp_path)


SUMMED = {
    "best": {"a/auc": 0.5, "a/gauc": None},
    "epochs": 1,
    "seconds": 0.1,
    "rows_per_second": 10,
    "rows": {"train": 9},
    "parameters": 3,
    "multiply_adds": 2,
    "device": "cpu",
    "versions": {},
}


@pytest.mark.parametrize("field", SUMMED)
def test_a_summary_that_lacks_what_pages_tell_is_damaged(tmp_path: Path, field: str) -> None:
    for broken in ({name: value for name, value in SUMMED.items() if name != field}, {**SUMMED, field: None}):
        (tmp_path / SUMMARY).write_text(json.dumps(broken))
        with pytest.raises(RunError, match=rf"summary.json \(without {field}\) is damaged; restore it, or delete it"):
            open_run(tmp_path)


@pytest.mark.parametrize("field", ["epoch", "step", "train", "valid"])
def test_a_line_of_metrics_that_lacks_what_pages_tell_is_damaged(tmp_path: Path, field: str) -> None:
    whole = {"epoch": 1, "step": 1, "train": {}, "valid": {}}
    for broken in ({name: value for name, value in whole.items() if name != field}, {**whole, field: None}):
        for lines, place in (([broken, whole], 1), ([whole, broken], 2)):
            (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
            with pytest.raises(
                RunError, match=rf"line {place} \(without {field}\) is damaged; restore the file or train"
            ):
                read_history(tmp_path / METRICS)


def test_a_summary_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / SUMMARY).write_text(json.dumps(SUMMED))

    def refused(*given: object, **named: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refused)
    with pytest.raises(RunError, match=r"summary\.json cannot be read \(Permission denied\); ask its owner for it"):
        open_run(tmp_path)


def test_undefined_metrics_come_back_from_a_summary(tmp_path: Path) -> None:
    (tmp_path / SUMMARY).write_text(json.dumps(SUMMED))
    best = open_run(tmp_path).best
    assert best["a/auc"] == 0.5
    assert best["a/gauc"] != best["a/gauc"]


def test_what_a_folder_holds_in_place_of_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run in"):
        open_run(tmp_path)
    (tmp_path / EXPERIMENT).write_text("")
    with pytest.raises(RunError, match="did not finish; go on with: multigate train --resume --out"):
        open_run(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(RunError, match="holds a comparison"):
        open_run(tmp_path)


def test_a_folder_that_trainings_are_in_is_no_comparison(tmp_path: Path) -> None:
    """Commands write into folders within ``runs``, of wherever they are called."""
    (tmp_path / "runs" / "train").mkdir(parents=True)
    with pytest.raises(RunError, match="there is no run in"):
        open_run(tmp_path)
    with pytest.raises(BundleError, match="is no bundle"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ("runs", "it holds a comparison, not one model; show it with: multigate report it"),
        ("trainings", "it holds related tasks, not one model; see relations.html there, by multigate relate"),
        ("", "the run in it did not finish; go on with: multigate train --resume --out it"),
    ],
)
def test_every_command_tells_the_same_of_a_folder_without_a_model(
    made: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that open a run, and those that load a bundle."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it" / made).mkdir(parents=True)
    (tmp_path / "it" / EXPERIMENT).write_text("")
    for opened in (open_run, load):
        with pytest.raises((RunError, BundleError)) as caught:
            opened("it")
        assert str(caught.value) == told


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"a": 1}, {"a": 1}, ""),
        ({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}, "b.c: 2, now 3"),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": None}]}, "a.1.b: 2, now null"),
        ({"a": [1]}, {"a": [1, 2]}, "a: [1], now [1, 2]"),
        ({"a": 1}, {"b": 2, "a": 1}, "b: null, now 2"),
        ({"a": {"b": 1}}, {"a": 1}, 'a: {"b": 1}, now 1'),
    ],
)
def test_the_first_difference_is_named(before: object, now: object, told: str) -> None:
    assert difference(before, now) == told


@pytest.mark.parametrize("made", ["experiment.yaml", "summary.json", "runs"])
def test_a_command_that_is_advised_can_be_pasted_whatever_the_name_of_the_folder(tmp_path: Path, made: str) -> None:
    folder = tmp_path / "my runs; 100% (new)"
    (folder / made).mkdir(parents=True) if made == "runs" else folder.mkdir()
    (folder / (EXPERIMENT if made == "runs" else made)).write_text("{")
    with pytest.raises(RunError) as told:
        open_run(folder)
    assert shlex.split(str(told.value).rpartition("multigate ")[2])[-1] == str(folder)


def test_a_home_folder_is_meant_by_its_sign(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no shell has read it: as for tables, and not a folder of that name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_folder().parent))  # compiled code is not of the home that is tested
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    table = str(feed_experiment.valid)
    run = train(feed_experiment.with_(epochs=1), "~/run", quiet=True)
    assert run.folder == tmp_path / "home" / "run"
    assert open_run("~/run").best == run.best
    assert write_predictions("~/run", table, "~/predictions.parquet") > 0
    load("~/run").save("~/bundle")
    table = tmp_path / "home" / "rows.parquet"
    table.write_bytes(Path(str(feed_experiment.valid)).read_bytes())
    for name in ("~/rows.parquet", ["~/rows.parquet"], "~/r*s.parquet", "~"):
        with pytest.raises(DataError, match="among the rows to predict"):
            write_predictions("~/run", name, "~/rows.parquet")
    table.unlink()
    assert read_experiment("~/run/experiment.yaml") == read_experiment(run.folder / EXPERIMENT)
    assert {one.name for one in (tmp_path / "home").iterdir()} == {"run", "predictions.parquet", "bundle"}
    assert not any((tmp_path / "here").iterdir())
    Path("~no such user").mkdir()
    load("~/run").save("~no such user/bundle")
    assert (tmp_path / "here" / "~no such user" / "bundle").is_dir()
