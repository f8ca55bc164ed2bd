"""Which tasks belong together, where the truth is known; trainings counted, stopped and gone on with."""

import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from multigate.analysis.budget import multiply_adds
from multigate.analysis.relate import Found, _lookahead, open_relations, read_pairs, relate
from multigate.analysis.relations import Relations
from multigate.analysis.subject import find_subject
from multigate.cli import app
from multigate.data.encoder import Encoder
from multigate.datasets.synthetic import Synthetic, synthetic_schema, synthetic_table
from multigate.errors import BundleError, ExperimentError, RunError
from multigate.experiment import Experiment
from multigate.run import open_run
from multigate.sharing import AITM, HoME, MMoE, SharedBottom, SingleTask
from multigate.training.fit import Fit
from multigate.training.interrupts import Interrupted
from multigate.training.train import train

COSINES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
SYNTHETIC = Synthetic(rows=12_000, size=40, correlations=(*COSINES, -0.9), noise_tasks=1, seed=5)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Relations:
    """The synthetic tasks of known cosines, a mirrored one and one of noise, without trainings of pairs."""
    experiment = Experiment(
        schema=synthetic_schema(SYNTHETIC),
        sharing=MMoE(experts=4, hidden=(16,)),
        tower=(8,),
        embedding={"dropout": 0.0},
        optimizer={"learning_rate": 0.01},
        epochs=6,
        batch_size=128,
        precision="float32",
    )
    folder = tmp_path_factory.mktemp("known")
    tables, beside = {"train": synthetic_table(SYNTHETIC)}, SingleTask(hidden=(32, 16))
    return relate(experiment, folder, seeds=1, train=False, side_by_side=beside, tables=tables, quiet=True)


def test_scores_rank_pairs_as_the_truth_does(known: Relations) -> None:
    scores = [known.pair("y0", f"y{at}").score for at in range(1, 8)]
    assert spearmanr(scores, COSINES)[0] > 0.95
    np.testing.assert_allclose(scores, COSINES, atol=0.15)
    labels = [known.pair("y0", f"y{at}").labels for at in range(1, 8)]
    assert spearmanr(labels, COSINES)[0] > 0.8


def test_a_mirrored_task_reads_the_same_direction(known: Relations) -> None:
    """y = f(-s): labels go against each other, but a network that knows s serves both."""
    pair = known.pair("y8", "y0")
    assert pair.score == pytest.approx(0.9, abs=0.15)
    assert pair.labels < 0
    assert pair.advice == "share"


def test_noise_is_not_recommended_for_sharing(known: Relations) -> None:
    assert [skill.task for skill in known.skills if not skill.learnt] == ["noise0"]
    for name in known.tasks[:-1]:
        pair = known.pair(name, "noise0")
        assert (pair.advice, pair.score) == ("train alone", None)
        assert "noise0 (r2 " in pair.why
        assert all(abs(way.mean) < 1e-3 for way in pair.lookahead)
    assert [pair.tasks[1] for pair in known.pairs[-9:]] == ["noise0"] * 9, "ranked last"


def test_what_so_few_rows_score_that_it_has_no_error_is_nothing_learnt() -> None:
    found = Found(cast(Any, SimpleNamespace(names=("rare",), metric=lambda place: "rare/auc")))
    found.side_by_side = found.together = [{"skills": {"rare": [0.9, None]}}]
    skill = found.skill(0)
    assert (skill.value, skill.error, skill.learnt) == (0.9, None, False)


def test_of_several_models_without_an_error_the_best_is_the_skill_unless_one_has_an_error() -> None:
    def skill(*models: tuple[float | None, float | None]) -> tuple[float | None, float | None, bool]:
        found = Found(cast(Any, SimpleNamespace(names=("rare",), metric=lambda place: "rare/auc")))
        own, found.side_by_side, found.together = ([{"skills": {"rare": list(model)}}] for model in models)
        found.alone = {0: {"mmoe": own}}
        one = found.skill(0)
        return one.value, one.error, one.learnt

    assert skill((0.6, None), (0.9, None), (0.7, None)) == (0.9, None, False)
    assert skill((0.9, None), (0.6, None), (None, None)) == (0.9, None, False)
    assert skill((0.6, None), (0.7, 0.01), (0.9, None)) == (0.7, 0.01, True)


def test_what_noise_does_to_others_cannot_be_told_from_nothing(known: Relations) -> None:
    """Of 18 ways to and from the noise one or so is clear by chance; of those between the same tasks all are."""
    noise = [way for name in known.tasks[:-1] for way in known.pair(name, "noise0").lookahead]
    assert sum(way.clear for way in noise) <= 3
    assert all(way.clear and way.mean > 0 for way in known.pair("y0", "y7").lookahead)


def test_the_error_of_a_lookahead_is_that_of_all_looks() -> None:
    def row(mean: float, error: float | None) -> dict:
        return {"lookahead": [[None, mean], [None, None]], "lookahead_error": [[None, error], [None, None]]}

    found = _lookahead([row(0.1, 0.03), row(0.2, 0.04)], 0, 1)
    assert (found.mean, found.error, found.seeds) == (pytest.approx(0.15), pytest.approx(0.025), 2)
    assert found.clear
    assert not _lookahead([row(0.04, 0.03)], 0, 1).clear
    assert not _lookahead([row(0.1, None), row(0.2, 0.04)], 0, 1).clear, "a single look has no error"
    assert not _lookahead([{"lookahead": [[0.0, 0.3]]}], 0, 1).clear, "of a training before errors were kept"
    assert _lookahead([row(0.1, 0.03)], 1, 0) is None


def test_advice_without_trainings_follows_the_truth(known: Relations) -> None:
    advice = [known.pair("y0", f"y{at}").advice for at in (1, 2, 4, 6, 7)]
    assert advice == ["train alone", "train alone", "share apart", "share", "share"]
    assert not known.measured
    group = next(one for one in known.groups if "y0" in one.tasks)
    assert {"y6", "y7"} <= {*group.tasks}
    assert {("y1",), ("y2",), ("noise0",)} <= {one.tasks for one in known.groups}


class Steps:
    """Training steps done, and a signal when there are so many."""

    def __init__(self) -> None:
        self.done, self.stop_at = 0, -1


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    counted, original = Steps(), Fit.step

    def step(self: Fit, batch: object) -> object:
        counted.done += 1
        if counted.done == counted.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch)

    monkeypatch.setattr(Fit, "step", step)
    return counted


PAIRS = [("like", "click"), ("click", "buy")]
EPOCH = 19
"""Steps of an epoch of the small feed."""


def test_what_was_trained_is_not_trained_again(feed_experiment: Experiment, tmp_path: Path, steps: Steps) -> None:
    experiment = feed_experiment.with_(epochs=1)
    first = relate(experiment, tmp_path, pairs=PAIRS, seeds=2, quiet=True)
    # together, side by side; click, buy and like alone and two pairs with two structures
    assert steps.done == 2 * EPOCH * (2 + 6 + 4)
    _gains_are_those_of_the_files(first, tmp_path)
    assert [pair.tasks for pair in first.pairs if pair.gains] == [
        pair.tasks for pair in first.pairs if {*pair.tasks} in ({"click", "like"}, {"click", "buy"})
    ]
    assert open_relations(tmp_path) == first
    steps.done = 0
    assert relate(experiment, tmp_path, pairs=PAIRS, seeds=2, quiet=True) == first
    assert steps.done == 0
    relate(experiment, tmp_path, pairs=PAIRS, structures=["mmoe"], seeds=3, quiet=True)
    assert steps.done == EPOCH * (2 + 3 + 2), "only the third seed, with one structure"
    assert relate(experiment, tmp_path, pairs=PAIRS, seeds=2, quiet=True) == first
    with pytest.raises(RunError, match="hidden"):
        relate(experiment, tmp_path, pairs=PAIRS, structures=[SharedBottom(hidden=(9,))], quiet=True)
    assert not list(tmp_path.rglob("best.safetensors")), "no weights are kept"
    file, other = (tmp_path / "trainings" / f"alone-{place}-mmoe-0" / "result.json" for place in (0, 1))
    kept = file.read_bytes()
    file.write_bytes(other.read_bytes())
    with pytest.raises(RunError, match=r"result\.json is that of another training; delete it and run multigate relate"):
        relate(experiment, tmp_path, pairs=PAIRS, seeds=2, quiet=True)
    row = json.loads(kept)
    file.write_text(json.dumps(row | {"metrics": dict.fromkeys(row["metrics"], 0.9)}))
    with pytest.raises(RunError, match=r"result\.json is damaged \(it is not what was written\); delete it and run"):
        relate(experiment, tmp_path, pairs=PAIRS, seeds=2, quiet=True)


def _gains_are_those_of_the_files(relations: Relations, folder: Path) -> None:
    results = [json.loads(file.read_text()) for file in folder.glob("trainings/*/result.json")]
    budgets = [row["multiply_adds"] for row in results if len(row["tasks"]) < 4]
    assert max(budgets) < 1.05 * min(budgets), "one budget for all"
    gain = next(one for one in relations.pair("click", "like").gains if (one.structure, one.task) == ("mmoe", "like"))
    auc = {
        (len(row["tasks"]), row["structure"]["structure"], row["seed"]): row["metrics"]["like/auc"]
        for row in results
        if row["tasks"] in (["click", "like"], ["like"])
    }
    own = {name: np.mean([auc[1, name, seed] for seed in (0, 1)]) for name in ("mmoe", "shared_bottom")}
    assert gain.alone == pytest.approx(max(own.values())), "the best of the task's own models"
    assert own[gain.alone_with] == pytest.approx(gain.alone)
    by_hand = [auc[2, "mmoe", seed] - auc[1, gain.alone_with, seed] for seed in (0, 1)]
    assert gain.by_seed == pytest.approx(by_hand, abs=1e-12)
    assert gain.gain.mean == pytest.approx(np.mean(by_hand))
    assert not gain.hard
    skill = next(one for one in relations.skills if one.task == "click")
    assert skill.chance == 0.5
    assert 0.5 < skill.value < 0.8
    assert 0.005 < skill.error < 0.05, "600 rows, a seventh of them clicked"


def test_a_single_training_has_the_budget_of_the_experiment(feed_experiment: Experiment, tmp_path: Path) -> None:
    relate(feed_experiment.with_(epochs=1), tmp_path, pairs=[("click", "like")], seeds=1, quiet=True)
    encoder = Encoder.fit(feed_experiment.schema, pq.read_table(feed_experiment.train).to_batches())
    budget = multiply_adds(feed_experiment.sharing, feed_experiment, encoder)
    for file in tmp_path.glob("trainings/*/result.json"):
        assert json.loads(file.read_text())["multiply_adds"] == pytest.approx(budget, rel=0.03), file


ONE_PAIR: dict[str, Any] = {"pairs": [("click", "like")], "structures": ["shared_bottom"], "seeds": 1, "quiet": True}


@pytest.fixture(scope="module")
def whole(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Relations:
    return relate(feed_experiment.with_(epochs=1), tmp_path_factory.mktemp("whole"), **ONE_PAIR)


@pytest.mark.parametrize("stop_at", [5, EPOCH + 7, 4 * EPOCH + 3], ids=["together", "side by side", "a pair"])
def test_stopped_it_goes_on_to_the_same_end(
    feed_experiment: Experiment, whole: Relations, tmp_path: Path, steps: Steps, stop_at: int
) -> None:
    experiment = feed_experiment.with_(epochs=1)
    steps.stop_at = stop_at
    with pytest.raises(Interrupted, match="same command"):
        relate(experiment, tmp_path, **ONE_PAIR)
    assert relate(experiment, tmp_path, **ONE_PAIR) == whole


def test_test_rows_are_not_looked_at(feed_experiment: Experiment, tmp_path: Path) -> None:
    other = tmp_path / "test.parquet"
    table = pq.read_table(feed_experiment.test)
    at = table.column_names.index("click")
    pq.write_table(table.set_column(at, "click", [[1] * table.num_rows]), other)
    found = [
        relate(feed_experiment.with_(epochs=1, test=test), tmp_path / name, train=False, seeds=1, quiet=True)
        for name, test in (("own", feed_experiment.test), ("none", None), ("other", str(other)))
    ]
    assert found[0] == found[1] == found[2]
    assert found[0].rows == "600 validation rows"


def test_other_rows_want_another_folder(feed_experiment: Experiment, tmp_path: Path) -> None:
    table = tmp_path / "rows.parquet"
    shutil.copy(feed_experiment.train, table)
    experiment = feed_experiment.with_(train=str(table), epochs=1)
    relate(experiment, tmp_path / "r", train=False, seeds=1, quiet=True)
    pq.write_table(pq.read_table(table).slice(1), table)
    with pytest.raises(RunError, match="tables changed"):
        relate(experiment, tmp_path / "r", train=False, seeds=2, quiet=True)


def test_options_that_name_tasks_are_those_of_the_tasks_that_are_trained(
    feed_experiment: Experiment, tmp_path: Path
) -> None:
    names = feed_experiment.schema.task_names
    order = AITM(hidden=(8,), order=names[::-1])
    assert order.for_tasks(("click", "like")).order == tuple(name for name in names[::-1] if name in ("click", "like"))
    assert HoME(groups=(("a", "b"), ("c",))).for_tasks(("b",)).groups == (("b",),)
    assert MMoE(exclusion=0.25).for_tasks(("a",)).exclusion == 0
    assert MMoE(exclusion=0.25).for_tasks(("a", "b")).exclusion == 0.25
    experiment = feed_experiment.with_(epochs=1, sharing=order)
    found = relate(experiment, tmp_path, pairs=[("click", "like")], structures=["aitm"], seeds=1, quiet=True)
    assert len(found.pair("click", "like").gains) == 2


def test_auxiliary_tasks_count_and_tables_are_shared(feed_experiment: Experiment, tmp_path: Path) -> None:
    """A pair of auxiliary tasks is chosen on both; where tables are the tasks' own, shared ones are looked at."""
    tasks = [task.with_(auxiliary=True) for task in feed_experiment.schema.tasks]
    experiment = feed_experiment.with_(
        schema=feed_experiment.schema.with_(tasks=tasks),
        epochs=1,
        monitor="click/auc",
        sharing=SingleTask(hidden=(8,)),
        embedding=feed_experiment.embedding.with_(tables="own"),
        recalibrate="platt",
    )
    found = relate(experiment, tmp_path, pairs=[("buy", "like")], structures=["shared_bottom"], seeds=1, quiet=True)
    assert len(found.pair("buy", "like").gains) == 2
    assert found.pair("like", "watch").overlap.mean > 0
    assert found.pair("like", "watch").gates is None, "there are none"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"structures": ["mmo"]}, "mmoe"),
        ({"structures": ["mmoe", "mmoe"]}, "twice"),
        ({"side_by_side": "singel_task"}, "single_task"),
        ({"pairs": [("click", "bui")]}, "buy"),
        ({"pairs": [("click", "click")]}, "no pair with itself"),
        ({"pairs": [("click", "bui")], "train": False}, "buy"),
        ({"device": "tpu"}, "tpu"),
        ({"seeds": 0}, "seeds=0: relating wants one at least"),
        ({"seeds": True}, "seeds=True: relating wants one at least, a whole number"),
        ({"seeds": "2"}, "seeds='2': relating wants one at least, a whole number"),
        ({"pairs": "y+z"}, r"two tasks each, such as .*found 'y'"),
        ({"structures": ""}, "wants one structure at least"),
        ({"structures": []}, "wants one structure at least"),
        ({"pairs": [("click", "buy", "like")]}, "two tasks each"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    feed_experiment: Experiment, tmp_path: Path, options: dict, told: str
) -> None:
    with pytest.raises(ExperimentError, match=told):
        relate(feed_experiment, tmp_path / "r", quiet=True, **options)
    assert not (tmp_path / "r").exists()


def test_one_task_has_no_pair(feed_experiment: Experiment, tmp_path: Path) -> None:
    one = feed_experiment.with_(schema=feed_experiment.schema.only(["click"]))
    with pytest.raises(ExperimentError, match="one task only, 'click'"):
        relate(one, tmp_path / "r", quiet=True)


@pytest.mark.parametrize("options", [{}, {"structures": "mmoe"}, {"train": False}])
def test_features_for_gates_are_refused_without_naming_structures_that_would_not_help(
    feed_experiment: Experiment, tmp_path: Path, options: dict
) -> None:
    first, *others = feed_experiment.schema.features
    gated = feed_experiment.with_(
        schema=feed_experiment.schema.with_(features=(first.with_(use="gate"), *others)), sharing=MMoE(experts=2)
    )
    with pytest.raises(ExperimentError, match=f"no gates to read feature {first.name!r}.*; leave 'use' out$"):
        relate(gated, tmp_path / "r", quiet=True, **options)
    assert not (tmp_path / "r").exists()


def test_pairs_are_read_from_words() -> None:
    assert read_pairs("a+b, c + d") == [("a", "b"), ("c", "d")]
    for wrong in ("a", "a+", "a+b,,c+d", "+b", ""):
        with pytest.raises(ExperimentError, match="plus sign"):
            read_pairs(wrong)


def test_folders_are_not_mixed_up(feed_experiment: Experiment, tmp_path: Path) -> None:
    experiment = feed_experiment.with_(epochs=1)
    relate(experiment, tmp_path / "related", train=False, seeds=1, quiet=True)
    with pytest.raises(RunError, match="related tasks"):
        train(experiment, tmp_path / "related", resume=True, quiet=True)
    with pytest.raises(RunError, match=r"relations\.html"):
        open_run(tmp_path / "related")
    with pytest.raises(BundleError, match=r"holds related tasks.*relations\.html"):  # which has prepared rows, too
        find_subject(tmp_path / "related")
    train(experiment, tmp_path / "run", quiet=True)
    with pytest.raises(RunError, match="one run"):
        relate(experiment, tmp_path / "run", quiet=True)
    with pytest.raises(RunError, match=r"no relations\.json"):
        open_relations(tmp_path / "run")
    shutil.copytree(tmp_path / "related", tmp_path / "torn")
    (tmp_path / "torn" / "relations.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        open_relations(tmp_path / "torn")
    result = next((tmp_path / "torn").glob("trainings/*/result.json"))
    structure = json.loads(result.read_text())["structure"]
    for text in ("{", json.dumps({"structure": structure})):
        result.write_text(text)
        with pytest.raises(RunError, match="delete it"):
            relate(experiment, tmp_path / "torn", train=False, seeds=1, quiet=True)


def test_as_a_person_types_it(feed_experiment: Experiment, tmp_path: Path) -> None:
    file, out = tmp_path / "x.yaml", tmp_path / "r"
    file.write_text(feed_experiment.with_(epochs=1).to_yaml())
    words = ["relate", str(file), "--out", str(out), "--seeds", "1"]
    words += ["--pairs", "click+like", "--structures", "shared_bottom"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Which tasks belong together: 4 tasks, 600 validation rows, 1 seed\n")
    assert "click + like: " in done.stdout
    assert "Models to train" in done.stdout
    assert f"page: {out / 'relations.html'}" in done.stdout.replace("\n", "")
    assert (out / "relations.html").stat().st_size > 1000
    assert done.stderr.count("seed 0") == 5, "a line for each training"
    again = CliRunner().invoke(app, [*words, "--json"])
    assert Relations.model_validate(json.loads(again.stdout)) == open_relations(out)
    assert "seed 0" not in again.stderr
    wrong = CliRunner().invoke(app, [*words, "--pairs", "click"])
    assert "plus sign" in str(wrong.exception)
