"""Stopped anywhere, by any signal, and gone on with: the same result, nothing half-written, one sentence."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from multigate.datasets.feed import Feed, feed_schema, write_feed
from multigate.experiment import Experiment
from multigate.training.diverged import Diverged
from multigate.training.fit import Fit
from multigate.training.interrupts import Interrupted, handled, interruptible
from multigate.training.loop import fit
from multigate.training.progress import Reporter
from multigate.training.same_rows import prepare_same
from multigate.training.train import open_sources
from processes import Stop, run

PLACES = {
    "reading": Stop("training.train:open_table"),
    "fitting the encoder": Stop("training.progress:Reporter.__call__", stage="fit encoder"),
    "encoding": Stop("training.progress:Reporter.__call__", stage="encode valid"),
    "putting rows in place": Stop("data.prepared:_put_in_place"),
    "building the model": Stop("training.fit:build_model"),
    "a step": Stop("training.fit:Fit.step", 9),
    "the first evaluation": Stop("training.fit:Fit.evaluate"),
    "the last evaluation": Stop("training.fit:Fit.evaluate", 2),
    "saving the best": Stop("training.checkpoint:save_file", 3),
    "saving a checkpoint": Stop("training.fit:save_checkpoint"),
    "the best weights read back": Stop("training.fit:load_weights"),
    "the totals": Stop("training.fit:match_totals"),
    "saving the bundle": Stop("bundle:save_file"),
    "the summary": Stop("training.train:write_text"),
}
AT_ONCE = ("a step", "the last evaluation", "saving a checkpoint")
KILLS = {
    "before its experiment is whole": Stop("writing:_put_in_place", 1),
    "before the best weights are whole": Stop("writing:_put_in_place", 2),
    "before the first checkpoint is whole": Stop("writing:_put_in_place", 3),
    "before the rows are in place": Stop("data.prepared:_put_in_place"),
    "in the middle of a later epoch": Stop("training.fit:Fit.step", 15),
    "before the bundle is whole": Stop("bundle:checksum", 2),
    "before the summary is whole": Stop("training.train:write_text"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small feed, an experiment on it of two epochs with all that has state, and its run when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("stops")
    write_feed(Feed(rows=800, users=80, items=40), folder)
    experiment = Experiment.model_validate(
        {
            "schema": feed_schema(),
            "train": "train.parquet",
            "valid": "valid.parquet",
            "sharing": {"structure": "mmoe", "experts": 2, "hidden": [4]},
            "tower": [4],
            "optimizer": {"average": 0.9},
            "balance": "uncertainty",
            "epochs": 2,
            "batch_size": 64,
            "precision": "float32",
        }
    )
    (folder / "x.yaml").write_text(experiment.to_yaml())
    assert run(["train", "x.yaml", "--out", "whole", "--device", "cpu"], folder).code == 0
    return folder


def kept(run_folder: Path) -> dict[str, Any]:
    """All that has to be the same: checksums of the bundle, best metrics, the metrics of each epoch."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "files": json.loads((run_folder / "bundle" / "bundle.json").read_text())["files"],
        "best": json.loads((run_folder / "summary.json").read_text())["best"],
        "history": [(line["step"], line["valid"]) for line in lines],
        "names": sorted(path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*")
                        if "tensorboard" not in path.parts),
    }  # fmt: skip


def goes_on(folder: Path, out: str) -> None:
    begun = (folder / out / "experiment.yaml").exists()
    words = ["train", "--resume", "--out", out] if begun else ["train", "x.yaml", "--out", out]
    ended = run([*words, "--device", "cpu"], folder)
    assert ended.code == 0, ended.told
    assert kept(folder / out) == kept(folder / "whole")


def half_written(folder: Path) -> list[Path]:
    return [*folder.rglob("*.writing"), *folder.rglob(".*.old"), *folder.rglob(".lock")]


EMBEDDED = """
import ctypes, sys

libc = ctypes.CDLL(None)
libc.signal(15, ctypes.cast(libc.abort, ctypes.c_void_p))
del sys.modules["_signal"]
sys.modules.pop("signal", None)
import signal  # begins anew, and finds handlers that it did not put there

from multigate.training.interrupts import Interrupted, handled, interruptible

assert signal.getsignal(signal.SIGTERM) is None
with handled(signal.default_int_handler):
    print("the work is done")
signal.raise_signal(signal.SIGTERM)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="C handlers")
def test_signals_that_another_program_takes_are_left_to_it() -> None:
    done = subprocess.run([sys.executable, "-c", EMBEDDED], capture_output=True, text=True, check=False)
    assert done.stdout == "the work is done\n", done.stderr
    assert done.returncode == -signal.SIGABRT


@pytest.mark.parametrize("what", PLACES)
def test_stopped_anywhere_it_says_how_to_go_on_and_ends_the_same(folder: Path, what: str) -> None:
    """Ctrl-C and SIGTERM in turn."""
    number = signal.SIGTERM if list(PLACES).index(what) % 2 else signal.SIGINT
    out = what.replace(" ", "-")
    ended = run(["train", "x.yaml", "--out", out, "--device", "cpu"], folder, PLACES[what]._replace(signals=(number,)))
    assert ended.code == 130, ended.told
    advice = "same command again" if what == "reading" else f"multigate train --resume --out {out}"
    assert advice in ended.told.splitlines()[-1]
    assert "Traceback" not in ended.told
    assert not half_written(folder)
    goes_on(folder, out)


@pytest.mark.parametrize("what", AT_ONCE)
def test_a_second_signal_stops_at_once(folder: Path, what: str) -> None:
    out = f"twice-{what.replace(' ', '-')}"
    stop = PLACES[what]._replace(signals=(signal.SIGINT, signal.SIGINT))
    ended = run(["train", "x.yaml", "--out", out, "--device", "cpu"], folder, stop)
    assert ended.code == 130, ended.told
    assert len(ended.told.splitlines()) <= 2, ended.told
    assert "stopped; go on with" in ended.told
    assert not half_written(folder)
    goes_on(folder, out)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal")
def test_a_terminal_that_hangs_up_twice_lets_a_training_save(folder: Path) -> None:
    """The system and the shell each send the signal."""
    stop = PLACES["a step"]._replace(signals=(signal.SIGHUP, signal.SIGHUP))
    ended = run(["train", "x.yaml", "--out", "hung-up", "--device", "cpu"], folder, stop)
    assert ended.code == 130, ended.told
    assert ended.told.splitlines()[-1] == (
        "stopped at step 9 of 20; go on with: multigate train --resume --out hung-up"
    )
    goes_on(folder, "hung-up")


CLOSED = """
import os, pty, sys

process, terminal = pty.fork()
if process == 0:
    os.execv(sys.executable, [sys.executable, "-m", "multigate", *sys.argv[1:]])
shown = b""
while b"epoch" not in shown:
    shown += os.read(terminal, 4096)
os.close(terminal)
print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal")
def test_a_training_whose_terminal_is_closed_saves(folder: Path) -> None:
    """What it would print cannot be printed any more."""
    words = ["train", "x.yaml", "--set", "epochs=2000", "--set", "patience=null", "--out", "closed", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", CLOSED, *words], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "130\n", done.stderr
    assert (folder / "closed" / "checkpoint.safetensors").is_file()
    assert not half_written(folder / "closed")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal")
def test_hanging_up_stays_ignored_where_it_was() -> None:
    """As ``nohup`` starts a command."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(signal.default_int_handler):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with handled(signal.default_int_handler), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("when", KILLS)
def test_killed_at_any_time_it_goes_on_from_what_is_whole(folder: Path, when: str) -> None:
    out = when.replace(" ", "-")
    ended = run(
        ["train", "x.yaml", "--out", out, "--device", "cpu"], folder, KILLS[when]._replace(signals=(signal.SIGKILL,))
    )
    assert ended.code == -signal.SIGKILL
    left = folder / out
    assert half_written(left), "the test wants something to be cleaned up"
    if (left / "metrics.jsonl").is_file():  # a kill may come in the middle of a line
        with (left / "metrics.jsonl").open("a") as file:
            file.write('{"epoch": 2, "st')
    goes_on(folder, out)
    assert not half_written(left)


def test_a_comparison_stopped_again_and_again_ends_the_same(folder: Path) -> None:
    words = ["compare", "x.yaml", "--structures", "shared_bottom,mmoe", "--seeds", "1", "--device", "cpu", "--out"]
    assert run([*words, "undisturbed"], folder).code == 0
    stops = [
        Stop("training.progress:Reporter.__call__", stage="fit encoder", signals=(signal.SIGTERM,)),
        Stop("training.fit:Fit.step", 4),
        Stop("training.fit:Fit.evaluate", 2, (signal.SIGTERM,)),  # the last of a run, then no step follows
        Stop("analysis.compare:forward"),
        Stop("analysis.compare:write_text", signals=(signal.SIGKILL,)),
        Stop("analysis.compare:_write_rows", signals=(signal.SIGKILL,)),
        Stop("training.fit:save_checkpoint", signals=(signal.SIGINT, signal.SIGINT)),
        Stop("analysis.compare:_boost"),
        Stop("analysis.compare:_write_rows", 1, (signal.SIGKILL,)),
    ]
    for stop in stops:
        ended = run([*words, "disturbed"], folder, stop)
        if signal.SIGKILL in stop.signals:
            assert ended.code == -signal.SIGKILL, stop
        else:
            assert ended.code == 130, (stop, ended.told)
            assert ended.told.splitlines()[-1].endswith("; the same command goes on from here")
    assert run([*words, "disturbed"], folder).code == 0
    assert not half_written(folder / "disturbed")
    time = {"seconds", "rows_per_second"}
    whole, pieces = (pq.read_table(folder / name / "runs.parquet") for name in ("undisturbed", "disturbed"))
    columns = [name for name in whole.column_names if name not in time]
    assert pieces.select(columns).to_pylist() == whole.select(columns).to_pylist()


def test_stopped_while_predicting_the_file_that_was_there_stays(folder: Path) -> None:
    out = folder / "predictions.parquet"
    out.write_text("from before")
    words = ["score", "whole", "test.parquet", "--out", out.name]
    ended = run(words, folder, Stop("bundle:name_outputs", signals=(signal.SIGTERM,)))
    assert ended.code == 130
    assert ended.told == "stopped; nothing half-written is left, so run the same command again\n"
    assert out.read_text() == "from before"
    assert run(words, folder, Stop("writing:_put_in_place", signals=(signal.SIGKILL,))).code == -signal.SIGKILL
    assert out.read_text() == "from before"
    assert half_written(folder)
    assert run(words, folder).code == 0
    assert pq.read_metadata(out).num_rows == 80
    assert not half_written(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_where_nothing_can_be_raised_is_not_lost(number: signal.Signals) -> None:
    class Freed:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def wait(held: list[Freed]) -> None:
        held.clear()
        sleep(10)

    hook = sys.unraisablehook
    with pytest.raises(Interrupted, match="stopped; go on"), interruptible(lambda: "go on"):
        wait([Freed()])
    assert sys.unraisablehook is hook


@pytest.mark.parametrize("ends", ["by who watches it", "by its loss", "by its predictions"])
def test_a_signal_is_heard_where_the_training_then_ends_by_itself(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """A search would take such an end for the trial's, and go on with the next one."""
    prepared = prepare_same(
        feed_experiment, open_sources(feed_experiment, None), tmp_path, Reporter(quiet=True), fresh=True
    )

    class Ended(Exception):
        pass

    def watch(epoch: int, metrics: dict[str, float]) -> None:
        if ends == "by who watches it":
            signal.raise_signal(signal.SIGINT)
            raise Ended

    if ends != "by who watches it":
        name = "step" if ends == "by its loss" else "evaluate"
        undisturbed = getattr(Fit, name)

        def disturbed(fitting: Fit, *given: Any) -> Any:
            done = undisturbed(fitting, *given)
            if fitting.step_done == len(fitting.loader):
                signal.raise_signal(signal.SIGINT)
                if name == "step":
                    return done * float("nan")
                raise Diverged("predictions are no longer numbers")
            return done

        monkeypatch.setattr(Fit, name, disturbed)
    (tmp_path / "run").mkdir()
    with pytest.raises(Interrupted, match="stopped at step"):
        fit(
            feed_experiment,
            prepared,
            tmp_path / "run",
            device=torch.device("cpu"),
            report=Reporter(quiet=True),
            watch=watch,
        )


def test_what_else_cannot_be_raised_is_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    class Freed:
        def __del__(self) -> None:
            raise ValueError("from __del__")

    told: list[BaseException | None] = []

    def tell(args: Any) -> None:
        told.append(args.exc_value)

    monkeypatch.setattr(sys, "unraisablehook", tell)
    with interruptible(lambda: "go on"):
        Freed()
    assert [str(one) for one in told] == ["from __del__"]
