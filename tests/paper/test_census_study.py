"""The census study as a whole, small: killed and gone on with, grown, and told rightly."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from multigate.analysis.search import Trial
from multigate.datasets.census_income import write_census
from multigate.errors import ExperimentError, RunError
from multigate.options import Options
from multigate.paper.account import Account
from multigate.paper.census.account import TABLES, Found, tell
from multigate.paper.census.methods import trainings
from multigate.paper.census.study import CensusStudy
from multigate.paper.ledger import Ledger
from multigate.paper.published import table_1, table_2
from multigate.paper.reproduce import _told, reproduce
from multigate.report.blocks import Table
from processes import Stop, run

SMALL = (
    *("rows=1500", "share=0.5", "units=16", "epochs=1", "workers=1", "traps=1", "runs=2", "trials=2", "groups=[1]"),
    *("methods=[single_task, mmoe]", "choices.valid_rows=4000", "choices.embedding.dim=2"),
)
MEMBERS = ("income-single_task", "income-mmoe", "never_married-single_task")


def test_it_is_killed_and_goes_on_and_grows(shared_data: Path, tmp_path: Path) -> None:
    write_census(shared_data / "census-income", tmp_path / "data" / "census-income")
    sets = [word for one in SMALL for word in ("--set", one)]
    words = ["reproduce", "census", "--out", "out", *sets]
    out = tmp_path / "out"
    kill = Stop("paper.ledger:Ledger.keep", 5, signals=(signal.SIGKILL,))  # labels, trials, two runs; the third is over
    assert run(words, tmp_path, kill, timeout=600).code == -signal.SIGKILL
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "parts").glob("run-*.parquet")}
    assert len(kept) == 2

    ended = run(words, tmp_path, timeout=600)
    assert ended.code == 0, ended.told
    assert {name: (out / "parts" / name).stat().st_mtime_ns for name in kept} == kept, "what was done is not done again"
    first = rows(out)
    assert [row["name"] for row in first["trials"]] == [name for name in MEMBERS for _ in range(2)]
    assert sorted(first["runs"]) == sorted(f"run-{name}-{seed:03d}" for name in MEMBERS for seed in (0, 1))
    assert sorted(first["traps"]) == [f"trap-{name}-000" for name in ("education", "one_hot", "raw_weight", "weight")]
    chosen = {
        row["name"]: max(trial["value"] for trial in first["trials"] if trial["name"] == row["name"])
        for row in first["trials"]
    }
    for trial in first["trials"]:
        if trial["value"] == chosen[trial["name"]]:
            assert first["runs"][f"run-{trial['name']}-000"]["point"] == trial["point"]
    page = (out / "page.html").read_text()
    assert "Table 1: income and never_married" in page
    assert (out / "figures" / "income-methods.png").stat().st_size > 5_000
    assert (out / "figures" / "income-tuning.svg").is_file()

    plant(out, "run-income-mmoe-007", "run-income-mmoe-001", point="of before")
    plant(out, "run-income-single_task-007", "run-income-single_task-001", method="a method of before")
    plant(out, "trap-weight-007", "trap-weight-000", point="of before")
    more = [*sets, "--set", "trials=3", "--set", "runs=3"]
    assert run(["reproduce", "census", "--out", "out", *more], tmp_path, timeout=600).code == 0
    grown = rows(out)
    for name in MEMBERS:
        trials = [trial for trial in grown["trials"] if trial["name"] == name]
        assert trials[:2] == [trial for trial in first["trials"] if trial["name"] == name]
        assert len(trials) == 3
        best = max(trials, key=lambda trial: trial["value"])
        for seed in range(3):
            assert grown["runs"][f"run-{name}-{seed:03d}"]["point"] == best["point"], (
                "all runs are of the values chosen"
            )
    sevens = [part for kind in ("runs", "traps") for part in grown[kind] if part.endswith("-007")]
    assert sevens == ["run-income-single_task-007"], "no results of values that are no longer chosen"
    other = run(["reproduce", "census", "--out", "out", *more, "--set", "units=32"], tmp_path, timeout=600)
    assert other.code == 2
    assert "units: 16, now 32" in other.told


def plant(out: Path, part: str, like: str, **changes: str) -> None:
    """Keep a run as if it were of another seed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (row,) = pq.read_table(out / "parts" / f"{like}.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([row | changes | {"part": part}]), out / "parts" / f"{part}.parquet")


def rows(out: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    found = pq.read_table(out / "results.parquet").to_pylist()
    trials = [row | {"name": f"{row['main']}-{row['method']}"} for row in found if row["part"] == "trials"]
    return {
        "trials": [{name: row[name] for name in ("name", "number", "value", "point", "steps")} for row in trials],
        "runs": {row["part"]: row for row in found if row["part"].startswith("run-")},
        "traps": {row["part"]: row for row in found if row["part"].startswith("trap-")},
    }


class Settings(Options):
    runs: int = 3
    units: int = 8


def test_some_settings_may_change(tmp_path: Path) -> None:
    Ledger(tmp_path, "toy", Settings(), ("runs",)).keep("one", [{"seed": 0}])
    Ledger(tmp_path, "toy", Settings(runs=5), ("runs",))
    assert "runs: 5" in (tmp_path / "settings.yaml").read_text()
    with pytest.raises(RunError, match="units: 8, now 9"):
        Ledger(tmp_path, "toy", Settings(units=9), ("runs",))


def test_a_method_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="did you mean 'mmoe'"):
        reproduce("census", tmp_path, changes=["methods=[mmo]"])


VALUES = {
    "income-single_task": ([0.951, 0.953, 0.952], [0.95, 0.94, 0.96]),
    "income-mmoe": ([0.954, 0.955, 0.9545], [0.95, 0.96, 0.94]),
    "income-shared_bottom": ([0.952, 0.9555, 0.953], [0.96, 0.95, 0.94]),
    "never_married-single_task": ([0.991, 0.994, 0.992], [0.9, 0.8, 0.7]),
}
JOINT = {"income-mmoe": [0.995, 0.996, 0.997], "income-shared_bottom": [0.993, 0.9935, 0.994]}
"""AUC of never married of the methods that have both tasks."""


@pytest.fixture
def found() -> Found:
    """Three runs of each: AUC on the test rows, and on the validation rows (which say another run is the best)."""
    runs = {}
    for name, (tested, valid) in VALUES.items():
        main = name.partition("-")[0]
        joint = JOINT.get(name, [None] * 3)
        runs[name] = [
            {f"{main}/auc": auc, "never_married/auc": auc if main == "never_married" else other, "valid": value}
            for auc, value, other in zip(tested, valid, joint, strict=True)
        ]
    wanted = trainings(("income",), "never_married", ("single_task", "shared_bottom", "mmoe"))
    trials = {
        one.name: [Trial(0, {"units": 64}, 0.95, {1: 0.9}, False, 1.0), Trial(1, {"units": 9}, 0.99, {}, True, 1.0)]
        for one in wanted
    }
    traps = {
        name: [{"income/auc": 0.96, "shifted income/auc": 0.9}]
        for name in ("education", "weight", "raw_weight", "one_hot")
    }
    return Found({"income": -0.1783}, wanted, trials, runs, traps)


CLAIMS = "What the paper's table says"


def table(chapters: list[Account], anchor: str, caption: str) -> dict[str, tuple[str, ...]]:
    chapter = next(one for one in chapters if one.anchor == anchor)
    block = next(one for one in chapter.told if isinstance(one, Table) and one.caption == caption)
    return {row[0]: row[1:] for row in block.rows}


def test_a_cell_is_of_the_run_that_validation_chose(found: Found) -> None:
    cells = table(tell(found), "table-1", "AUC of income")
    assert cells["MMoE"][:3] == ("0.9410", "0.9550", "0.9359"), "0.9545 would be the last run's, 0.9550 the second's"
    assert cells["Shared-Bottom"][1] == "0.9520", "the best on the test rows has .9555"
    assert cells["Single-Task"][1] == "0.9520"


def test_the_auxiliary_column_of_single_task_is_of_models_of_their_own(found: Found) -> None:
    cells = table(tell(found), "table-1", "AUC of never_married")
    assert cells["Single-Task"][:3] == ("0.9933", "0.9910", "0.9922")
    assert cells["Shared-Bottom"][1] == "0.9930", "of the run with the best income on validation rows"


def test_differences_are_paired_by_seed(found: Found) -> None:
    told = table(tell(found), "table-1", "AUC of income")["Shared-Bottom"][-1]
    mmoe, bottom = VALUES["income-mmoe"][0], VALUES["income-shared_bottom"][0]
    exact = stats.ttest_rel(mmoe, bottom)
    low, high = exact.confidence_interval(0.95)
    mean = sum(a - b for a, b in zip(mmoe, bottom, strict=True)) / 3
    assert told == f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def test_verdicts(found: Found) -> None:
    claims = table(tell(found), "table-1", CLAIMS)
    assert claims["income: mean of MMoE less Shared-Bottom"] == (
        "+0.0064",
        claims["income: mean of MMoE less Shared-Bottom"][1],
        "open",
    )
    apart = found._replace(runs=found.runs | {"income-shared_bottom": worse(found.runs["income-shared_bottom"], 0.01)})
    assert table(tell(apart), "table-1", CLAIMS)["income: mean of MMoE less Shared-Bottom"][-1] == "same sign"
    apart = found._replace(runs=found.runs | {"income-shared_bottom": worse(found.runs["income-shared_bottom"], -0.01)})
    assert table(tell(apart), "table-1", CLAIMS)["income: mean of MMoE less Shared-Bottom"][-1] == "no"


@pytest.mark.parametrize(
    ("paper", "by", "verdict"),
    [(0.0, 0.01, "the paper has a tie"), (0.0, -0.01, "the paper has a tie"), (0.0, 0.0, "the paper has a tie"),
     (1e-4, 0.01, "same sign"), (1e-4, -0.01, "no"), (-1e-4, -0.01, "same sign"), (-1e-4, 0.0, "open")],
)  # fmt: skip
def test_neither_sign_is_the_papers_where_it_has_a_tie(
    found: Found, monkeypatch: pytest.MonkeyPatch, paper: float, by: float, verdict: str
) -> None:
    cells = table_1()
    printed = cells["mmoe"]["income"]
    cells["shared_bottom"]["income"] = printed._replace(
        mean=printed.mean + 0.3 - 0.3 - paper
    )  # as sums of decimals are
    monkeypatch.setitem(TABLES, "income", (1, lambda: cells))
    runs = found.runs | {"income-shared_bottom": worse(found.runs["income-mmoe"], by)}
    if not by:
        runs |= {"income-shared_bottom": found.runs["income-mmoe"][::-1]}
    claims = table(tell(found._replace(runs=runs)), "table-1", CLAIMS)
    assert claims["income: mean of MMoE less Shared-Bottom"][-1] == verdict


@pytest.mark.parametrize(("by", "verdict"), [(0.2, "yes"), (0.05, "no"), (0.1, "open")])
def test_whether_tensor_factorisation_fails(found: Found, by: float, verdict: str) -> None:
    runs = found.runs | {"income-tensor_factor": worse(found.runs["income-shared_bottom"], by)}
    wanted = trainings(("income",), "never_married", ("single_task", "tensor_factor", "mmoe"))
    trials = dict.fromkeys((one.name for one in wanted), found.trials["income-mmoe"])
    claims = table(tell(found._replace(runs=runs, trainings=wanted, trials=trials)), "table-1", CLAIMS)
    assert claims["income: Tensor-Factorization fails, by 0.1 and more"][-1] == verdict


def worse(runs: Any, by: float) -> list[dict[str, Any]]:
    """Runs that are worse by so much in the mean, but not each by the same: such differences have no interval."""
    return [row | {"income/auc": row["income/auc"] - by + 1e-5 * (at - 1)} for at, row in enumerate(runs)]


def test_mistakes_are_held_against_runs_without_them(found: Found) -> None:
    cells = table(tell(found), "traps", "Income AUC")
    assert cells["education kept as a feature"] == ("0.9540", "0.9600", "+0.0060")
    assert cells["one-hot columns shifted by one when scored"] == ("0.9600", "0.9000", "-0.0600")


def test_chosen_values_are_of_a_trial_that_was_not_stopped(found: Found) -> None:
    chapter = next(one for one in tell(found) if one.anchor == "tuning")
    block = next(one for one in chapter.told if isinstance(one, Table))
    assert {row[2:] for row in block.rows} == {("units 64", "2", "1", "0.9500")}


def test_the_tables_of_the_paper_agree_with_what_it_prints_in_bold() -> None:
    for one, main in ((table_1(), "income"), (table_2(), "college")):
        assert len(one) == 7
        assert max(one, key=lambda method: one[method][main].best) == "mmoe"
        assert max(one, key=lambda method: one[method]["never_married"].best) == "single_task"
        assert max(one, key=lambda method: one[method]["never_married"].mean) == "mmoe"
    assert max(table_1(), key=lambda method: table_1()[method]["income"].mean) == "cross_stitch"
    assert max(table_2(), key=lambda method: table_2()[method]["college"].mean) == "mmoe"
    assert table_1()["single_task"]["never_married"] == table_2()["single_task"]["never_married"], (
        "one and the same model"
    )
    assert table_2()["tensor_factor"]["college"] == (0.7367, 0.7256)


def test_defaults_are_the_papers_methods_and_cap() -> None:
    settings = CensusStudy()
    assert set(table_1()) < set(settings.methods)
    assert settings.units == 2048
    assert json.loads(json.dumps(settings.to_dict(full=True)))["groups"] == [1, 2]


def test_the_page_does_not_tell_the_password_of_a_database() -> None:
    chapter = _told("census", CensusStudy(storage="postgresql://somebody:secret@host/trials"))
    cells = [cell for table in chapter.told for row in table.rows for cell in row]
    assert "postgresql://...@host/trials" in cells
    assert not any("secret" in cell or "somebody" in cell for cell in cells)
