"""The command line from end to end, in processes of its own, as a person types it."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

import processes
from multigate import cli
from multigate.assembly import build_model
from multigate.bundle import Bundle
from multigate.data.encoder import Encoder
from multigate.data.files import open_table
from multigate.errors import DataError
from multigate.experiment import Experiment, read_experiment
from multigate.training.interrupts import Interrupted
from multigate.training.progress import Reporter
from processes import begin, run


def multigate(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "multigate", *(str(word) for word in words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_the_road_from_table_to_predictions(feed_folder: Path, tmp_path: Path) -> None:
    """init, train, score, predict and compare on a table nobody described, every step typed."""

    def typed(*words: object) -> str:
        ended = run(words, tmp_path)
        assert ended.code == 0, ended.told
        return ended.said

    tasks = "tasks=click,buy|click,like,watch_seconds"
    drafted = typed("init", feed_folder / "train.parquet", "--set", tasks, "--set", "epochs=1")
    (tmp_path / "x.yaml").write_text(drafted)
    experiment = read_experiment(tmp_path / "x.yaml")
    assert experiment.schema.task_names == ("click", "buy", "like", "watch_seconds")
    assert experiment.schema.tasks[1].given == "click"
    assert experiment.schema.keys == ("row_id",)
    assert experiment.schema.time == "time"

    assert "click" in typed("train", "x.yaml", "--out", "run", "--set", "sharing.experts=2")
    scored = typed("score", "run", feed_folder / "test.parquet", "--replicates", 20)
    assert "buy|click" in scored
    assert "95 % interval" in scored
    typed("score", "run", feed_folder / "test.parquet", "--out", "p.parquet")
    assert pq.read_metadata(tmp_path / "p.parquet").num_rows == 600
    typed("export", "run", "--out", "served")
    typed("score", "served", feed_folder / "test.parquet", "--out", "q.parquet")
    plain, served = (pq.read_table(tmp_path / name)["buy|click"].to_numpy() for name in ("p.parquet", "q.parquet"))
    assert np.abs(plain - served).max() < 1e-5

    words = ("compare", "x.yaml", "--structures", "shared_bottom,mmoe", "--seeds", 1, "--out", "cmp")
    compared = typed(*words)
    assert "mmoe" in compared
    assert typed(*words) == compared, "a finished comparison is read back, not trained again"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("train", "nothing.yaml"), "nothing.yaml"),
        (("train",), "experiment file"),
        (("init", "nothing.parquet", "--set", "tasks=a"), "nothing.parquet"),
        (("init", "rows.parquet"), "tasks="),
        (("init", "rows.parquet", "--set", "tasks=clik"), "click"),
        (("init", "rows.parquet", "--set", "tasks=constant"), "constant"),
        (("init", "torn.parquet", "--set", "tasks=click"), "torn.parquet"),
        (("init", "empty.csv", "--set", "tasks=click"), "empty.csv"),
        (("init", "ragged.csv", "--set", "tasks=click"), "ragged.csv"),
        (("score", "nowhere", "rows.parquet"), "nowhere"),
        (("compare", "x.yaml", "--structures", "mmoe,pel"), "pel"),
        (("train", "x.yaml", "--device", "tpu"), "tpu"),
        (("train", "x.yaml", "--out", "rows.parquet"), "rows.parquet"),
        (("train", "x.yaml", "--set", "epoch=2"), "epochs"),
        (("train", "constant.yaml"), "constant"),
        (("compare", "constant.yaml"), "constant"),
        (("train", "x.yaml", "--set", "monitor=clik/auc"), "click"),
        (("train", "x.yaml", "--set", "split.valid=0"), "valid"),
        (("train", "missing.yaml"), "colour"),
        (("fetch", "censsus"), "census-income"),
        (("demo", "--out", "."), "delete it"),
    ],
)
def test_mistakes_get_one_sentence_and_exit_2(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    rows = pa.table({"x": [1.0, 2.0, 3.0, 4.0], "click": [0, 1, 0, 1], "constant": [1, 1, 1, 1]})
    pq.write_table(rows, tmp_path / "rows.parquet")
    (tmp_path / "torn.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-20])
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "ragged.csv").write_text("x,click\n1,0\n2,1,9\n")
    (tmp_path / "x.yaml").write_text(
        "schema: {features: [{name: x, kind: number}], tasks: [{name: click}]}\ntrain: rows.parquet\n"
    )
    (tmp_path / "constant.yaml").write_text((tmp_path / "x.yaml").read_text().replace("name: click", "name: constant"))
    (tmp_path / "missing.yaml").write_text((tmp_path / "x.yaml").read_text().replace("name: x", "name: colour"))
    before = sorted(tmp_path.rglob("*"))
    ended = run(words, tmp_path)
    assert ended.code == 2, ended.said + ended.told
    assert "Traceback" not in ended.told
    assert told in ended.told
    assert len(ended.told.strip().splitlines()) == 1, ended.told
    assert sorted(tmp_path.rglob("*")) == before, "something half-written was left"


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command line whose verb is a function given: its exit code and standard error."""

    def run(verb: Callable[[], object], *words: str) -> tuple[int, str]:
        monkeypatch.setattr(cli, "app", verb)
        monkeypatch.setattr(sys, "argv", ["multigate", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().err

    return run


def raising(error: BaseException) -> Callable[[], object]:
    def verb() -> None:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (DataError("no column 'x';\n did you mean 'y'?"), 2, "error: no column 'x'; did you mean 'y'?\n"),
        (
            OSError(28, "No space left on device", "p.parquet"),
            2,
            "error: p.parquet: No space left on device; make room",
        ),
        (PermissionError(13, "Permission denied", "x"), 2, "error: x: Permission denied; mend that or choose another"),
        (OSError("connection lost"), 2, "error: connection lost; mend that"),
        (MemoryError(), 2, "error: there is not enough memory; lower batch_size"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            2,
            "error: there is not",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), 2, "error: there is not enough memory; "),
        (RuntimeError("std::bad_alloc"), 2, "error: there is not enough memory; "),
        (OSError(24, "Too many open files", "x"), 2, "error: too many files are open; raise the limit"),
        (RuntimeError("can't start new thread"), 2, "error: no more threads can be started; raise the limit of"),
        (pa.ArrowNotImplementedError("no such cast"), 2, "error: a table cannot be handled: no such cast; write it"),
        (
            ModuleNotFoundError("No module named 'scipy.stats'", name="scipy.stats"),
            2,
            "error: the package scipy is broken or incomplete (No module named 'scipy.stats'); install it again",
        ),
        (BrokenPipeError(), 1, ""),
        (KeyboardInterrupt(), 130, "stopped; run the same command again\n"),
        (Interrupted("stopped; go on so"), 130, "stopped; go on so\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_people_can_mend_is_one_sentence(
    ended: Callable[..., tuple[int, str]], error: BaseException, code: int, told: str
) -> None:
    assert ended(raising(error))[0] == code
    found = ended(raising(error))[1]
    assert found.startswith(told)
    assert len(found.splitlines()) == bool(told)
    if code == 2:
        debugged = ended(raising(error), "--debug")
        assert debugged[0] == code
        assert "Traceback" in debugged[1]
        assert debugged[1].endswith(found)


def test_a_fault_of_the_program_shows_its_traceback_and_asks_for_a_report(
    ended: Callable[..., tuple[int, str]],
) -> None:
    for error in (ZeroDivisionError("by zero"), RuntimeError("mat1 and mat2"), KeyError("x"), RecursionError()):
        code, told = ended(raising(error))
        assert code == 1
        assert "Traceback" in told
        assert "please report it" in told.splitlines()[-1]


def test_a_terminal_that_cannot_show_a_letter_gets_its_code_and_a_file_gets_utf_8(
    ended: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for terminal, wanted in ((True, b"gr\\xf6\\xdfe"), (False, "größe".encode())):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="ascii")
        monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stdout", stream)
        assert ended(lambda: [print("größe"), sys.exit(0)])[0] == 0
        assert raw.getvalue().strip() == wanted


def test_handlers_of_signals_are_put_back(ended: Callable[..., tuple[int, str]]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    ended(raising(KeyboardInterrupt()))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    code, told = ended(lambda: os.kill(os.getpid(), signal.SIGTERM) or sys.exit(0))
    assert (code, told) == (130, "stopped; run the same command again\n")


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_nobody_reading_is_quiet_and_a_full_disk_is_told() -> None:
    command = [sys.executable, "-m", "multigate", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: No space left on device; make room there or choose another place\n"


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", ">&- 2>&-"])
def test_closed_streams_are_as_if_nobody_looked(closed: str) -> None:
    for words, code in ((["--help"], 0), (["trian"], 2)):
        command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "multigate", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert bool(done.stderr) is (code == 2 and "2>" not in closed)


def test_a_working_folder_that_was_removed_is_told(tmp_path: Path) -> None:
    """There a library of torch's ends the process, with a word about a file that is where it always was."""
    gone = tmp_path / "gone"
    gone.mkdir()
    command = ["sh", "-c", 'rmdir ../gone && exec "$@"', "sh", sys.executable, "-m", "multigate", "doctor"]
    done = subprocess.run(command, cwd=gone, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: the folder that this command was started in was removed; cd to one that is there\n"


@pytest.mark.skipif(sys.platform != "linux", reason="names are text there")
def test_a_working_folder_whose_name_is_no_text_is_told(tmp_path: Path) -> None:
    """There a training ended in a traceback when it wrote its bundle."""
    folder = tmp_path / "caf\udce9"
    folder.mkdir()
    command = [sys.executable, "-m", "multigate", "train", "x.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == f"error: {str(folder)!a} holds bytes that are not UTF-8; rename it, or choose another name\n"


def test_progress_without_standard_error_is_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Reporter() as report:
        report("reading", 1, 2)
        report.line("done")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--epochs", 3), "write --set epochs=3"),
        (("--batch-size=64",), "write --set batch_size=64"),
        (("--learning-rate", 0.1), "it stands deeper: optimizer.learning_rate"),
        (("--lr", 0.1), "write optimizer.learning_rate"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "compare", "tune"])
def test_a_field_given_as_an_option_is_told_where_it_is_set(verb: str, words: tuple[object, ...], told: str) -> None:
    ended = multigate(verb, "x.yaml", *words)
    assert ended.returncode == 2
    *_, error, hint = ended.stderr.splitlines()
    assert error.startswith(f"Error: No such option: {str(words[0]).partition('=')[0]}")
    assert hint == f"fields of the experiment are set with --set; {told}"


@pytest.mark.parametrize(
    ("word", "verb"),
    [("predict", "score"), ("evaluate", "score"), ("explain", "inspect"), ("calibrate", "train"), ("card", "report")],
)
def test_a_command_by_another_name_is_told_which_it_is(word: str, verb: str) -> None:
    ended = multigate("--debug", word, "run")
    assert ended.returncode == 2
    *_, error, hint = ended.stderr.splitlines()
    assert error.startswith(f"Error: No such command '{word}'.")
    assert hint.startswith(f"multigate {verb} ")


def test_other_names_are_of_no_command_and_tell_options_that_there_are() -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert not cli.OTHERS.keys() & commands.keys()
    for told in cli.OTHERS.values():
        options = {name for one in commands[told.split()[0]].params for name in one.opts}
        assert set(re.findall(r"--[a-z]+", told)) <= options


def test_init_tells_where_it_writes() -> None:
    for words in (("--out", "x.yaml"), ("--out=x.yaml",)):
        ended = multigate("init", "table.csv", *words)
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[-1] == "init writes to standard output; add > x.yaml"


def test_wrong_words_keep_the_message_that_shows_the_right_ones() -> None:
    for words in (("trian",), ("train", "--epochs", "3")):
        done = multigate(*words)
        assert done.returncode == 2
        assert "Usage: " in done.stderr


def test_debug_shows_the_traceback_and_the_sentence(tmp_path: Path) -> None:
    done = multigate("--debug", "train", tmp_path / "nothing.yaml")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: cannot read")


@pytest.mark.parametrize("place", ["exp #2", "null", "2024", "[a]", "a: b"])
@pytest.mark.parametrize("own", [True, False], ids=["an experiment's", "the bundle's"])
def test_a_path_to_go_on_from_is_taken_as_it_is(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, own: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(feed_experiment.with_(epochs=7).to_yaml())
    encoder = Encoder.fit(feed_experiment.schema, open_table(feed_experiment.train).batches())
    Bundle(feed_experiment, encoder, build_model(feed_experiment, encoder)).save(place)
    asked: list[Experiment] = []

    def remember(experiment: Experiment, *_: object, **__: object) -> None:
        asked.append(experiment)
        raise DataError("no rows")

    monkeypatch.setattr("multigate.training.train.train", remember)
    with pytest.raises(DataError, match="no rows"):
        cli.train(Path("x.yaml") if own else None, Path("out"), ["seed=3"], Path(place))
    expected = feed_experiment.with_(warm_start=place, seed=3, epochs=7 if own else feed_experiment.epochs)
    assert asked == [expected]


def test_an_interrupted_training_says_how_to_go_on(feed_experiment: Experiment, tmp_path: Path) -> None:
    file, folder = tmp_path / "x.yaml", tmp_path / "run"
    file.write_text(feed_experiment.with_(epochs=500, patience=None, batch_size=32).to_yaml())
    process = begin(["train", file, "--out", folder], tmp_path)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").is_file() and time.monotonic() < deadline and process.is_alive():
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGINT)  # Ctrl-C
    process.join(60)
    end = processes.ended(process, tmp_path)
    assert end.code == 130
    assert "--resume" in end.told
    assert "Traceback" not in end.told


def test_help_and_import_do_not_import_torch() -> None:
    """Both stay quick because torch comes only with the verb that needs it."""
    for code in ("import multigate", "import multigate.cli"):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {code}; print('torch' in sys.modules, 'pyarrow' in sys.modules)"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "False False"
    done = multigate("--help")
    assert done.returncode == 0
    for verb in ("init", "train", "compare", "score", "fetch", "demo"):
        assert verb in done.stdout


def test_init_takes_labels_that_a_name_alone_cannot_say(tmp_path: Path) -> None:
    """Columns with a slash or a comma in their names: what the error advises, and what the page shows."""
    rows = [f"{i % 7},{i * 0.37:.2f},{i % 2},{i % 3 % 2}" for i in range(300)]
    (tmp_path / "rows.csv").write_text("\n".join(['x,HbA1c mmol/mol,"LOS, days",click', *rows]))
    advised = run(("init", "rows.csv", "--set", "tasks=click, HbA1c mmol/mol"), tmp_path)
    assert advised.code == 2
    block = advised.told.partition("as in ")[2].strip()
    assert block == "[{name: label, column: 'HbA1c mmol/mol'}]"
    blocks = block.removesuffix("]") + ", click, {column: 'LOS, days', name: los, kind: binary}]"
    drafted = run(("init", "rows.csv", "--set", f"tasks={blocks}"), tmp_path)
    (tmp_path / "x.yaml").write_text(drafted.said)
    found = read_experiment(tmp_path / "x.yaml").schema
    assert [(task.name, task.source, task.kind) for task in found.tasks] == [
        ("label", "HbA1c mmol/mol", "regression"),
        ("click", "click", "binary"),
        ("los", "LOS, days", "binary"),
    ]
    assert "did you mean 'column'?" in run(("init", "rows.csv", "--set", "tasks={name: a, colunm: x}"), tmp_path).told
