"""Scores of rows a run set aside; full or closed disks: one sentence, nothing half-written, the old files kept."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from multigate import precision
from multigate.assembly import build_model
from multigate.bundle import Bundle, load
from multigate.cli import app
from multigate.data.encoder import Encoder
from multigate.datasets.feed import Feed, feed_schema, write_feed
from multigate.errors import DataError, MultigateError, SettingError
from multigate.experiment import Experiment, read_experiment
from multigate.run import open_run
from multigate.schema import Number, Schema, Task
from multigate.score import score_part, score_table, write_predictions
from multigate.training.train import train
from processes import run

TRAIN = ["train", "x.yaml", "--device", "cpu", "--out"]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A small feed, an experiment and its run, where other users may read them."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    write_feed(Feed(rows=800, users=80, items=40), folder)
    experiment = Experiment.model_validate(
        {
            "schema": feed_schema(),
            "train": "train.parquet",
            "valid": "valid.parquet",
            "sharing": {"structure": "mmoe", "experts": 2, "hidden": [4]},
            "tower": [4],
            "epochs": 1,
            "batch_size": 64,
            "precision": "float32",
        }
    )
    (folder / "x.yaml").write_text(experiment.to_yaml())
    assert run([*TRAIN, "run"], folder).code == 0
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def split(folder: Path) -> tuple[Path, dict[str, pa.Table]]:
    """A run that split its rows by time, and the rows of its parts cut off the table by hand."""
    rows = pq.read_table(folder / "train.parquet")
    late, last = (np.sort(rows["time"].to_numpy())[at] for at in (-250, -150))
    before, after = pc.less(rows["time"], pa.scalar(late)), pc.greater_equal(rows["time"], pa.scalar(last))
    parts = {
        "train": rows.filter(before),
        "valid": rows.filter(pc.invert(pc.or_(before, after))),
        "test": rows.filter(after),
    }
    assert min(part.num_rows for part in parts.values()) > 50
    experiment = read_experiment(folder / "x.yaml").with_(
        train=str(folder / "train.parquet"), valid=None, split={"valid_from": str(late), "test_from": str(last)}
    )
    train(experiment, folder / "split", quiet=True, device="cpu")
    return folder / "split", parts


@pytest.mark.parametrize("part", ["test", "valid"])
def test_rows_that_a_run_set_aside_are_scored_like_a_table_of_them(split: tuple, part: str) -> None:
    run, parts = split
    metrics, intervals = score_part(open_run(run), part, replicates=20)  # which stands for its folder
    wanted, wanted_intervals = score_table(load(run), parts[part], replicates=20)
    assert metrics == pytest.approx(wanted, abs=1e-6, nan_ok=True)
    assert {name: pytest.approx(one, abs=1e-6, nan_ok=True) for name, one in intervals.items()} == wanted_intervals
    other, _ = score_table(load(run), parts["train"], replicates=0)
    assert other["click/log_loss"] != pytest.approx(metrics["click/log_loss"], abs=1e-6)


def test_scores_of_a_part_are_printed_as_those_of_a_table(
    split: tuple, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, parts = split
    pq.write_table(parts["test"], folder / "test.parquet")
    monkeypatch.chdir(folder.parent)
    printed = []
    for words in (["--part", "test"], ["split/test.parquet"]):
        app(["score", "split", *words, "--replicates", "20"], standalone_mode=False)
        printed.append(capsys.readouterr().out.splitlines())
    assert printed[0][0].strip() == "split, test rows"
    assert "click" in "".join(printed[0])
    assert printed[0][1:] == printed[1][1:]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["split"], "score wants rows; name a table, or add --part test"),
        (
            ["split", "test.parquet", "--part", "test"],
            "leave out the table, --out and --precision, or leave out --part",
        ),
        (
            ["split", "--part", "test", "--out", "p.parquet"],
            "leave out the table, --out and --precision, or leave out --part",
        ),
        (
            ["split", "--part", "test", "--precision", "auto"],
            "leave out the table, --out and --precision, or leave out --part",
        ),
        (["run", "test.parquet", "--precision", "bfloat"], "no precision 'bfloat'; did you mean 'bfloat16'?"),
        (["split", "--part", "tset"], "split has no tset rows; it has train, valid, test; or name a table"),
        (["run", "--part", "test"], "run has no test rows; it has train, valid; or name a table"),
        (["run/bundle", "--part", "test"], "there is no run in run/bundle"),
    ],
)
def test_rows_that_there_are_not_are_told(
    split: tuple, words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(split[0].parent)
    with pytest.raises(MultigateError, match=told.replace(".", r"\.")):
        app(["score", *words], standalone_mode=False)


@pytest.mark.parametrize("more", [[], ["--out", "told.parquet"]], ids=["scored", "predicted"])
def test_a_processor_that_multiplies_bfloat16_slowly_is_told_of(
    folder: Path, more: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    told = "31 times as long to multiply in bfloat16"
    monkeypatch.setattr(precision, "times_float32", lambda: 31.0)
    for native, name, said in (
        (False, "bfloat16", 1),
        (True, "bfloat16", 0),
        (False, "float32", 0),
        (False, "auto", 0),
    ):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.chdir(tmp_path)
        words = [str(folder / "run"), str(folder / "test.parquet"), "--precision", name]
        app(["score", *words, *more], standalone_mode=False)
        assert capsys.readouterr().err.count(told) == said, (native, name)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def sentence(told: str) -> str:
    lines = told.splitlines()
    assert "Traceback" not in told
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], told
    assert "; " in lines[-1]
    return lines[-1]


def test_a_full_disk_keeps_the_predictions_that_were_there(folder: Path) -> None:
    out = folder / "out" / "p.parquet"
    words = ["score", "run", "test.parquet", "--out", "out/p.parquet"]
    for largest in (1_000, 3_000):
        before = names(folder)
        ended = run(words, folder, largest=largest)
        assert ended.code == 2
        assert "cannot write out/p.parquet" in sentence(ended.told)
        assert "File too large; make room there" in ended.told
        assert names(folder) == before, "not even the folder"
    out.parent.mkdir()
    out.write_text("from before")
    assert run(words, folder, largest=3_000).code == 2
    assert names(out.parent) == ["p.parquet"]
    assert out.read_text() == "from before"


def test_a_disk_that_is_full_at_any_time_stops_a_training_that_goes_on_once_there_is_room(folder: Path) -> None:
    """The disk is full ever later, from the rows over the weights to the bundle."""
    seen = set()
    for largest in (2_000, 20_000, 35_000, 60_000, 100_000, 140_000, 200_000):
        out = f"full-{largest}"
        before = names(folder)
        ended = run([*TRAIN, out], folder, largest=largest)
        if ended.code == 0:
            break
        assert ended.code == 2, ended.told
        place = sentence(ended.told).split("cannot write ")[1].split(":")[0]
        seen.add(place.removeprefix(f"{out}/"))
        left = folder / out
        if not left.exists():
            assert names(folder) == before
            continue
        assert not [name for name in names(left) if "writing" in name]
        assert run(["train", "--resume", "--out", out, "--device", "cpu"], folder).code == 0
        assert (left / "bundle/bundle.json").read_text() == (folder / "run/bundle/bundle.json").read_text()
    assert ended.code == 0
    assert len(seen) >= 2, seen


def test_folders_that_may_not_be_written_to_are_told(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o755)
    if os.getuid() != 0:
        closed.chmod(0o555)
    before = names(folder)
    for words, place in (
        (["score", "run", "test.parquet", "--out", "closed/p.parquet"], "closed/p.parquet"),
        (["score", "run", "test.parquet", "--out", "closed/new/p.parquet"], "closed/new/p.parquet"),
        ([*TRAIN, "closed/run"], "closed/run"),
        ([*TRAIN, "closed"], "closed"),
    ):
        ended = run(words, folder, rights=False)
        assert ended.code == 2
        assert place in sentence(ended.told)
        assert "Permission denied" in ended.told
        assert names(folder) == before


def test_places_with_blanks_and_links_are_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    bundle = load("run")
    os.symlink(folder / "a place", folder / "link")
    (folder / "a place").mkdir()
    for out in ("a place/größe 😀.parquet", "link/p.parquet"):
        assert write_predictions(bundle, "test.parquet", Path(out)) == 80
    assert names(folder / "a place") == ["größe 😀.parquet", "p.parquet"]
    experiment = bundle.experiment
    os.symlink(folder / "a place" / "run", folder / "to a run")
    (folder / "a place" / "run").mkdir()
    assert train(experiment, "to a run", quiet=True, device="cpu").bundle().predict("test.parquet").keys()
    bundle.save(Path("to a run/bundle"))
    assert (folder / "to a run").is_symlink()


@pytest.mark.parametrize("table", ["test.parquet", "*.parquet", ".", ["train.parquet", "test.parquet"]])
def test_the_table_is_never_overwritten(folder: Path, monkeypatch: pytest.MonkeyPatch, table: str | list[str]) -> None:
    monkeypatch.chdir(folder)
    before = Path("test.parquet").read_bytes()
    with pytest.raises(DataError, match=r"among the rows to predict; "):
        write_predictions(load("run"), table, Path("../", folder.name, "test.parquet"))
    assert Path("test.parquet").read_bytes() == before


def test_rows_that_fail_late_leave_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    bundle = load("run")
    columns, calls = Encoder.columns, []

    def failing(*given: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise DataError("row 9,000 holds nothing")
        return columns(*given, **named)  # type: ignore[arg-type]

    table = pq.read_table("test.parquet")
    long = table.take([at % 80 for at in range(9_000)])
    monkeypatch.setattr(Encoder, "columns", failing)
    before = names(folder)
    with pytest.raises(DataError, match="9,000"):
        write_predictions(bundle, long, Path("new/p.parquet"))
    assert names(folder) == before


def test_a_bundle_takes_no_folder_of_something_else(folder: Path, tmp_path: Path) -> None:
    bundle: Bundle = load(folder / "run")
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(Exception, match="not empty and holds no bundle; "):
        bundle.save(tmp_path)
    assert names(tmp_path) == ["thesis.tex"]
    for place in ("new/bundle", "new/bundle"):
        bundle.save(tmp_path / place)
        assert load(tmp_path / place).predict(folder / "test.parquet").keys()
    assert names(tmp_path / "new") == ["bundle", *(f"bundle/{name}" for name in names(tmp_path / "new/bundle"))]


@pytest.mark.parametrize("out", [".", "..", "/", ""])
def test_a_folder_is_no_place_for_predictions(folder: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(
        DataError, match=r"is a folder; name a file for the predictions, such as .*predictions\.parquet"
    ):
        write_predictions("run", "t.parquet", out)


def test_keys_that_parquet_has_no_place_for_are_named(tmp_path: Path) -> None:
    schema = Schema(features=(Number("a"),), tasks=(Task("click"),), keys=("id",))
    table = pa.table({"a": [1.0, 2.0, 3.0, 4.0], "click": [0, 1, 0, 1]})
    table = table.append_column("id", pa.array([{}] * 4, pa.struct([])))
    experiment = Experiment(schema=schema)
    encoder = Encoder.fit(schema, table.to_batches())
    bundle = Bundle(experiment, encoder, build_model(experiment, encoder))
    with pytest.raises(DataError, match=r"keys cannot be written as Parquet .*'id' of type struct.*make them text"):
        write_predictions(bundle, table, tmp_path / "p.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("replicates", [-1, 2.5])
def test_draws_are_counted_from_0_on(folder: Path, replicates: Any) -> None:
    with pytest.raises(SettingError, match="a whole number of draws is wanted; 0 leaves intervals out"):
        score_table(folder / "run", folder / "t.parquet", replicates=replicates)
