"""The folder of a reproduction: parts that are there whole or not at all, and only of the settings asked for."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from multigate.errors import RunError
from multigate.options import Options
from multigate.paper import reproduce as reproduction
from multigate.paper.account import Account
from multigate.paper.ledger import Ledger
from multigate.paper.study import Site, Study


class Settings(Options):
    runs: int = 3
    inner: tuple[float, ...] = (0.5, 1.0)


def test_a_part_is_read_as_it_was_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a" / "b", "toy", Settings())
    assert not ledger.has("one")
    rows = [{"seed": 0, "loss": 0.1, "curve": [1.0, 0.5]}, {"seed": 1, "loss": None, "curve": []}]
    ledger.keep("one", rows)
    again = Ledger(tmp_path / "a" / "b", "toy", Settings())
    assert again.has("one")
    assert again.rows("one") == [{"part": "one", **row} for row in rows]


def test_other_settings_or_another_study_are_refused(tmp_path: Path) -> None:
    Ledger(tmp_path, "toy", Settings(runs=2))  # which came no further
    Ledger(tmp_path, "toy", Settings()).keep("one", [{"seed": 0}])
    with pytest.raises(RunError, match=r"runs: 3, now 4.*choose another --out"):
        Ledger(tmp_path, "toy", Settings(runs=4))
    with pytest.raises(RunError, match="study"):
        Ledger(tmp_path, "other", Settings())


def test_a_folder_of_trainings_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("")
    with pytest.raises(RunError, match="holds trainings of an experiment; choose another --out"):
        Ledger(tmp_path, "synthetic", Options())
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]


def test_results_whose_settings_are_gone_are_refused(tmp_path: Path) -> None:
    Ledger(tmp_path, "toy", Settings()).keep("one", [{"seed": 0}])
    (tmp_path / "settings.yaml").unlink()
    with pytest.raises(RunError, match=r"holds results, but no settings\.yaml.*choose another --out"):
        Ledger(tmp_path, "toy", Settings(runs=4))
    assert not (tmp_path / "settings.yaml").exists()


def test_all_parts_make_one_table(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "toy", Settings())
    ledger.keep("b", [{"loss": 0.5, "gate": None}])
    ledger.keep("a", [{"loss": 1, "rate": 0.1}, {"loss": 2, "rate": 0.2}])
    table = pq.read_table(ledger.gather())
    assert table["part"].to_pylist() == ["a", "a", "b"]
    assert table["loss"].to_pylist() == [1.0, 2.0, 0.5]
    assert table["rate"].to_pylist() == [0.1, 0.2, None]


def test_a_part_that_is_dropped_is_in_no_table(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "toy", Settings())
    for part in ("run-0.1", "run-0.5", "trap-0.1"):
        ledger.keep(part, [{"loss": 1.0}])
    assert ledger.parts("run-*") == ["run-0.1", "run-0.5"]
    ledger.drop("run-0.1")
    assert pq.read_table(ledger.gather())["part"].to_pylist() == ["run-0.5", "trap-0.1"]


@pytest.mark.parametrize("kept", ["another", "no rows", "no names"])
def test_a_file_that_holds_another_part_is_no_result(tmp_path: Path, kept: str) -> None:
    """A copy would count one run twice."""
    ledger = Ledger(tmp_path, "toy", Settings())
    ledger.keep("run-0.5", [{"loss": 0.1}])
    table = pq.read_table(ledger.place("run-0.5"))
    held = {"another": table, "no rows": table.slice(0, 0), "no names": table.select(["loss"])}[kept]
    pq.write_table(held, ledger.place("run-1.5"))
    for read in (lambda: ledger.rows("run-1.5"), ledger.gather):
        with pytest.raises(RunError, match=r"run-1\.5\.parquet does not hold the part.*delete it"):
            read()


def test_a_damaged_part_is_told_of(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "toy", Settings())
    ledger.keep("one", [{"loss": 1.0}])
    path = ledger.place("one")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match=r"one\.parquet cannot be read.*delete it"):
        ledger.rows("one")
    with pytest.raises(RunError, match=r"one\.parquet cannot be read.*delete it"):
        ledger.gather()


def test_settings_of_a_reproduction_at_work_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process with other settings, before the first part is done, is kept out and changes nothing."""

    def run(settings: Settings, site: Site) -> list[Account]:
        with pytest.raises(RunError, match="being worked on"):
            reproduction.reproduce("tried", tmp_path / "out", runs=4)
        site.ledger.keep("part", [{"run": 1}])
        raise RunError("enough")

    monkeypatch.setitem(reproduction.STUDIES, "tried", Study("Tried", Settings, {}, run))
    with pytest.raises(RunError, match="enough"):
        reproduction.reproduce("tried", tmp_path / "out")
    Ledger(tmp_path / "out", "tried", Settings())


def test_folders_are_the_same_however_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And absolute, for those who work elsewhere."""
    seen = []

    def run(settings: Settings, site: Site) -> list[Account]:
        seen.append((site.data, site.ledger.folder))
        site.ledger.keep("part", [{"run": 1}])
        return []

    monkeypatch.setitem(reproduction.STUDIES, "tried", Study("Tried", Settings, {}, run))
    monkeypatch.chdir(tmp_path)
    for data, out in (("data", "out"), (tmp_path / "data", tmp_path / "out"), ("other/../data", "other/../out")):
        reproduction.reproduce("tried", Path(out), data=Path(data))
    assert seen == [(tmp_path.resolve() / "data", tmp_path.resolve() / "out")] * 3
