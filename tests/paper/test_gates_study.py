"""The gates study: what it says of planted gates, and that it goes on where it was."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, spearmanr

from multigate.errors import DataError, RunError
from multigate.paper.gates.account import evenness, gather, rank_correlation, tell
from multigate.paper.gates.study import GatesStudy, experiment_on, run
from multigate.paper.ledger import Ledger
from multigate.paper.published import figure_6
from multigate.paper.study import Site
from multigate.report.blocks import Table
from multigate.training.progress import Reporter

E = 4


def test_evenness_and_rank_correlation_are_those_of_scipy() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(E), 50)
    np.testing.assert_allclose(evenness(weights), entropy(weights, axis=1) / np.log(E))
    assert evenness(np.eye(E)).max() == 0
    for seed in range(5):
        one, other = np.random.default_rng(seed).integers(0, 6, (2, 7)).astype(float)
        assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)


def test_the_paper_s_own_figure() -> None:
    (chapter, *_) = tell(planted_rows())
    table = next(block for block in chapter.told if isinstance(block, Table))
    printed = {line[0]: float(line[-1]) for line in table.rows}
    for task, weights in figure_6().items():
        assert printed[task] == pytest.approx(entropy(weights) / np.log(E), abs=0.005)
    apart = jensenshannon(*figure_6().values(), base=2) ** 2
    assert f"{apart:.3f} bits" in chapter.told[0].text


def planted_rows(runs: int = 6, rows: int = 200) -> list[dict[str, object]]:
    """Runs in which the rare task reads one expert and the frequent one all alike, each with numbers of its own."""
    random = np.random.default_rng(0)
    found = []
    for seed in range(runs):
        logits = np.zeros((rows, 2, E)) + 0.3 * random.normal(size=(rows, 2, E))
        logits[:, 0, 0] += 4
        gates = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        gates = gates[..., random.permutation(E)]
        found.append(
            {
                "data": "census_1",
                "seed": seed,
                "tasks": ["rare", "frequent"],
                "label_rates": [0.05, 0.4],
                "shape": list(gates.shape),
                "gates": gates.flatten().tolist(),
            }
        )
    return found


def test_planted_gates_are_told_as_they_are() -> None:
    rows = planted_rows()
    _, chapter = tell(rows)
    means, focus, found = [block for block in chapter.told if isinstance(block, Table)]
    assert [line[:2] for line in means.rows] == [("rare", "5.0 %"), ("frequent", "40 %")]
    weights = [[float(cell.split(" ±")[0]) for cell in line[2:]] for line in means.rows]
    assert weights[0][0] > 0.9, "matched, one expert is the rare task's"
    assert max(weights[1]) < 0.3
    rare = focus.rows[0]
    own, matched, unmatched = float(rare[1].split(" ±")[0]), float(rare[-2]), float(rare[-1])
    gates = np.stack([np.reshape(row["gates"], row["shape"]) for row in rows])
    each = entropy(gates.mean(1)[:, 0], axis=1) / np.log(E)
    assert own == pytest.approx(each.mean(), abs=0.01)
    assert unmatched == pytest.approx(entropy(gates.mean((0, 1))[0]) / np.log(E), abs=0.01)
    assert matched < own + 0.05 < unmatched - 0.3, "averaged without matching the gate looks even"
    assert found.rows[0][-1] == "as in the paper"
    assert found.rows[-2][-1] == "they do", "look even"
    assert found.rows[-1][0].startswith("runs share in one way")
    assert found.rows[-1][-1] == "no more than by chance", "one favourite and one even gate: any numbers will do"


def test_runs_that_share_in_one_way_are_told_from_runs_that_do_not() -> None:
    """Both tasks favour an expert: in one set of runs the same, in the other the same or not, by chance."""
    random = np.random.default_rng(1)
    verdicts = {}
    for alike in (True, False):
        rows = planted_rows(runs=8)
        for row in rows:
            logits = 0.3 * random.normal(size=row["shape"])
            logits[:, 0, 0] += 3
            logits[:, 1, 0 if alike else random.integers(E)] += 3
            gates = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            row["gates"] = gates[..., random.permutation(E)].flatten().tolist()
        (*_, found) = [block for block in tell(rows)[1].told if isinstance(block, Table)]
        verdicts[alike] = found.rows[-1][-1]
    assert verdicts == {True: "they do", False: "no more than by chance"}


def test_the_other_way_round_is_said_to_be_so() -> None:
    rows = [row | {"label_rates": [0.4, 0.05]} for row in planted_rows()]
    (*_, found) = [block for block in tell(rows)[1].told if isinstance(block, Table)]
    assert found.rows[0][-1] == "the other way"


def test_divergences_do_not_mind_the_numbers_of_experts() -> None:
    rows = planted_rows()
    gathered = gather(rows)
    for row, level in zip(rows, gathered.levels, strict=True):
        gates = np.reshape(row["gates"], row["shape"])
        by_mean = jensenshannon(*gates.mean(0), base=2) ** 2
        by_row = np.mean([jensenshannon(*one, base=2) ** 2 for one in gates])
        assert level.divergence[0][1] == pytest.approx(by_mean, abs=1e-6)
        assert level.row_divergence[0][1] == pytest.approx(by_row, abs=1e-6)


def test_the_study_looks_at_the_same_rows_each_time_and_goes_on(small_kuairand: Path, tmp_path: Path) -> None:
    settings = GatesStudy(runs=2, data=("kuairand",), experts=3, bottom=(8, 6), epochs=1, rows=150)
    site = Site(Ledger(tmp_path, "gates", settings), small_kuairand, torch.device("cpu"), Reporter(quiet=True))
    chapters = run(settings, site)
    rows = pq.read_table(site.ledger.gather()).to_pylist()
    assert [row["shape"] for row in rows] == [[rows_of(400, 150), 5, 3]] * 2
    for row in rows:
        gates = np.reshape(row["gates"], row["shape"])
        np.testing.assert_allclose(gates.sum(-1), 1, atol=1e-5)
    assert [chapter.anchor for chapter in chapters] == ["figure-6", "kuairand"]
    assert [name for chapter in chapters for name, _ in chapter.draw()] == ["figure6-paper", "gates-kuairand"]
    written = site.ledger.place("kuairand-0").stat().st_mtime_ns
    before = site.ledger.rows("kuairand-1")[0]["gates"]
    site.ledger.place("kuairand-1").unlink()
    run(settings, site)
    assert site.ledger.place("kuairand-0").stat().st_mtime_ns == written
    assert site.ledger.rows("kuairand-1")[0]["gates"] == before


def test_runs_on_other_tables_are_not_told_of_together(small_kuairand: Path, tmp_path: Path) -> None:
    settings = GatesStudy(runs=2, data=("kuairand",), experts=2, bottom=(4, 4), epochs=1, rows=64)
    ledger, cpu, quiet = Ledger(tmp_path / "out", "gates", settings), torch.device("cpu"), Reporter(quiet=True)
    run(settings, Site(ledger, small_kuairand, cpu, quiet))
    other = tmp_path / "other" / "kuairand"
    shutil.copytree(small_kuairand / "kuairand", other)
    run(settings, Site(ledger, other.parent, cpu, quiet))  # the same rows elsewhere
    train = pq.read_table(other / "train.parquet")
    pq.write_table(train.slice(1), other / "train.parquet")
    with pytest.raises(RunError, match=r"the tables changed since .*kuairand was prepared"):
        run(settings.with_(runs=3), Site(ledger, other.parent, cpu, quiet))


def rows_of(rows: int, wanted: int) -> int:
    """Every so many of the pieces of 64 rows, or a sixth of what is wanted."""
    size = min(64, wanted // 6)
    pieces = [min(size, rows - at) for at in range(0, rows, size)]
    return sum(pieces[:: -(-rows // wanted)])


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    for name, part in (("census_2", "census-income/train"), ("kuairand", "kuairand/train")):
        with pytest.raises(DataError, match=rf"{part}\.parquet; multigate fetch"):
            experiment_on(name, GatesStudy(), tmp_path)


def test_census_models_predict_the_paper_s_pairs(tmp_path: Path) -> None:
    (tmp_path / "census-income").mkdir()
    for part in ("train", "valid", "test"):
        (tmp_path / "census-income" / f"{part}.parquet").touch()
    tasks = {name: experiment_on(name, GatesStudy(), tmp_path).schema.task_names for name in ("census_1", "census_2")}
    assert tasks == {"census_1": ("income", "never_married"), "census_2": ("college", "never_married")}
