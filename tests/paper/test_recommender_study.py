"""The recommender study: its protocol, its metrics against scikit-learn, and what it does when it is stopped."""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import log_loss, r2_score, roc_auc_score

from multigate.analysis.intervals import summary
from multigate.analysis.trials import opened
from multigate.analysis.workers import Workers
from multigate.assembly import build_model
from multigate.batch import Batch
from multigate.data.prepared import Prepared
from multigate.datasets.kuairand import OUTCOMES, kuairand_schema
from multigate.errors import DataError
from multigate.experiment import Experiment, read_experiment
from multigate.model import Model
from multigate.paper.ledger import Ledger
from multigate.paper.published import table_3, table_4
from multigate.paper.recommender.account import tell, verdict
from multigate.paper.recommender.bottoms import structures_on
from multigate.paper.recommender.points import Watched, rows_read, steps_of, train_to_points
from multigate.paper.recommender.sources import feed, kuairand
from multigate.paper.recommender.study import (
    RecommenderStudy,
    best_rate,
    chosen_rates,
    ground_for,
    learners_of,
    run,
)
from multigate.paper.recommender.training import scored_at
from multigate.paper.study import Site
from multigate.report.blocks import Table, Text
from multigate.training.checkpoint import load_checkpoint
from multigate.training.fit import BEST, CHECKPOINT, Fit
from multigate.training.progress import Reporter
from multigate.training.train import open_sources, prepare_sources

EXAMPLE = Path(__file__).parents[2] / "examples" / "kuairand.yaml"
PRINTED = """
shared_bottom .6879 .6888 .6900 .08812 .09159 .09287
soft .6866 .6881 .6895 .08668 .09030 .09213
cross_stitch .6880 .6885 .6899 .08949 .09112 .09332
omoe .6876 .6891 .6893 .08749 .09085 .09230
mmoe .6894 .6897 .6908 .08978 .09263 .09362
"""
CPU = torch.device("cpu")
SMALL = RecommenderStudy(runs=2, epochs=2, batch=64, bottom=(8, 6), experts=2, tower=(4,), rates=(0.01, 0.001))
NOTHING = Reporter(quiet=True)


def site(data: Path, out: Path) -> Site:
    return Site(Ledger(out, "recommender", SMALL), data, CPU, NOTHING)


def test_table_3_is_the_printed_one() -> None:
    lines = [line.split() for line in PRINTED.strip().splitlines()]
    assert table_3() == {name: {"auc": [*map(float, six[:3])], "r2": [*map(float, six[3:])]} for name, *six in lines}
    best = {metric: max(table_3(), key=lambda name: table_3()[name][metric][2]) for metric in ("auc", "r2")}
    assert best == {"auc": "mmoe", "r2": "mmoe"}


def test_table_4_is_the_printed_one() -> None:
    found = [(pair, kind, *lift) for pair, kinds in table_4().items() for kind, lift in kinds.items()]
    assert found == [
        ("shared_bottom over single_task", "engagement", -0.22, 90),
        ("shared_bottom over single_task", "satisfaction", 19.72, 95),
        ("mmoe over shared_bottom", "engagement", 0.25, 95),
        ("mmoe over shared_bottom", "satisfaction", 2.65, 95),
    ]


def test_the_schema_is_the_example_s_and_has_no_outcome_among_its_features() -> None:
    schema = kuairand_schema()
    assert schema == read_experiment(EXAMPLE).schema
    assert not {feature.source for feature in schema.features} & set(OUTCOMES)
    assert {task.source for task in schema.tasks} <= set(OUTCOMES)


def test_tables_are_in_order_of_time_and_tasks_side_by_side(small_kuairand: Path, tmp_path: Path) -> None:
    shop, streamed = kuairand(small_kuairand), feed(3_000, 0.05, tmp_path, NOTHING)
    for source in (shop, streamed):
        times = [pq.read_table(path)[source.schema.time].to_numpy() for path in source.tables.values()]
        assert list(source.tables) == ["train", "valid", "test"]
        assert times[0].max() <= times[1].min()
        assert times[1].max() <= times[2].min()
        assert not any(task.given or task.where for task in source.schema.tasks)
        assert {*source.engagement, *source.satisfaction} == set(source.schema.task_names)
    known = pq.read_table(streamed.tables["train"])["like"]
    assert 0.03 < 1 - known.null_count / len(known) < 0.07


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"kuairand/train\.parquet; multigate fetch kuairand"):
        kuairand(tmp_path)


def test_networks_are_equally_wide_and_the_mixture_is_the_top_layer() -> None:
    built = {name: one.build(20, ("a", "b")) for name, one in structures_on((12, 8, 5), 3).items()}
    assert {module.d_out for module in built.values()} == {5}
    network = 20 * 12 + 12 * 8 + 8 * 5
    below = 20 * 12 + 12 * 8
    assert {name: module.multiply_adds() for name, module in built.items()} == {
        "single_task": 2 * network,
        "shared_bottom": network,
        "soft": 2 * network,
        "cross_stitch": 2 * network + 4 * (12 + 8 + 5),
        "omoe": below + 3 * 8 * 5 + 3 * 8 + 3 * 5,
        "mmoe": below + 3 * 8 * 5 + 2 * 3 * 8 + 2 * 3 * 5,
    }


@pytest.mark.parametrize(("rows", "size"), [(10, 4), (12, 4), (3, 4)])
def test_rows_read_are_counted_as_batches_are_dealt(rows: int, size: int) -> None:
    sizes = [min(size, rows - at) for at in range(0, rows, size)]
    for step in range(3 * len(sizes) + 1):
        assert rows_read(step, rows, size) == sum((sizes * 3)[:step])
    assert steps_of(10, 3) == [3, 6, 10]
    assert steps_of(504, 3) == [168, 336, 504]


def test_the_scores_are_those_of_scikit_learn(small_kuairand: Path, tmp_path: Path) -> None:
    ground = ground_for(SMALL, site(small_kuairand, tmp_path), kuairand(small_kuairand), 1)
    prepared = opened(ground.prepared)
    torch.manual_seed(1)  # of so few units others have none that is alive
    model = build_model(ground.experiment, prepared.encoder)
    with torch.no_grad():
        model.heads.bias += 0.5  # off the base rate, so that no R2 is what it is by chance
    found = scored_at(ground, range(5), "test", model)
    (batch,) = prepared.test.batches(10_000)
    logits = model.eval()(batch.numbers, batch.categories, batch.bags).logits.detach().double()
    for at, task in enumerate(ground.source.schema.task_names):
        y, p = batch.labels[:, at].double().numpy(), torch.sigmoid(logits[:, at]).numpy()
        base = log_loss(y, np.full(len(y), y.mean()))
        assert found[f"{task}/auc"] == pytest.approx(roc_auc_score(y, p), abs=1e-6)
        assert found[f"{task}/r2"] == pytest.approx(r2_score(y, p), abs=1e-6)
        assert found[f"{task}/mcfadden"] == pytest.approx(1 - log_loss(y, p) / base, abs=1e-6)
        if task in ground.source.satisfaction:
            assert found[f"{task}/low"] < found[f"{task}/auc"] < found[f"{task}/high"]
        assert found[f"{task}/positives"] == y.sum()
    alone = scored_at(ground, [2], "valid", build_model(ground.experiment, prepared.encoder, [2]))
    assert set(alone) == {"like/auc", "like/r2", "like/mcfadden", "like/positives"}


def test_the_best_rate_is_that_of_the_last_point_on_validation_rows() -> None:
    def row(rate: float, *aucs: float, task: str = "") -> dict[str, object]:
        return {"learning_rate": rate, "task": task, f"valid/{task or 'click'}/auc": list(aucs)}

    assert best_rate([row(0.1, 0.9, 0.6), row(0.2, 0.5, 0.7), row(0.3, 0.5, math.nan)], "click") == 0.2
    assert best_rate([row(0.1, 0.6, task="like"), row(0.2, 0.5, task="like")], "click") == 0.1


@pytest.mark.parametrize(("rates", "chosen"), [((0.01, 0.001), True), ((0.01,), False)])
def test_rates_are_said_to_be_chosen_only_where_there_was_a_choice(
    small_kuairand: Path, rates: tuple[float, ...], chosen: bool
) -> None:
    source = kuairand(small_kuairand)
    points = {
        f"test/{task}/{metric}": [0.5] * 3
        for task in source.schema.task_names
        for metric in ("auc", "r2", "mcfadden", "low", "high", "positives")
    }
    cost = {"rows": [1, 2, 3], "parameters": 1, "multiply_adds": 1, "seconds": 1.0}
    rows = [
        points | cost | {"structure": name, "task": "", "seed": seed, "learning_rate": 0.01}
        for name in ("shared_bottom", "mmoe", "single_task")
        for seed in (0, 1)
    ]
    text = next(block.text for block in tell(source, rows, rates)[0].told if isinstance(block, Text))
    assert ("were chosen on validation rows" in text) == chosen
    assert ("was not tuned" in text) == (not chosen)


def test_a_difference_holds_only_where_its_interval_leaves_out_zero() -> None:
    assert verdict(0.001, summary([0.01, 0.011, 0.012])) == "the same sign"
    assert verdict(-0.001, summary([0.01, 0.011, 0.012])) == "the other sign"
    assert verdict(0.001, summary([0.01, -0.011, 0.012])) == "not clear"


class Stop(Exception):
    pass


Look = Callable[[Model], dict[str, float]]


def small_training(feed_experiment: Experiment, folder: Path) -> tuple[Experiment, Prepared]:
    optimizer = {"learning_rate": 0.3, "schedule": "constant"}
    experiment = feed_experiment.with_(optimizer=optimizer, epochs=3, monitor="click/log_loss")
    return experiment, prepare_sources(experiment, open_sources(experiment, {}), folder, NOTHING)


def weight_sum(model: Model) -> dict[str, float]:
    return {"sum": sum(p.detach().double().abs().sum().item() for p in model.parameters())}


def test_points_are_equal_parts_with_the_weights_of_that_moment(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a plain loop has them; and stopped at any point and gone on with, a training comes to the same.

    By a clock on which a step takes a second and a look a hundred.
    """
    experiment, prepared = small_training(feed_experiment, tmp_path / "prepared")
    clock, plain_step = [0.0], Fit.step

    def step(fitting: Fit, batch: Batch) -> torch.Tensor:
        clock[0] += 1
        return plain_step(fitting, batch)

    monkeypatch.setattr(Fit, "step", step)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def train(folder: str, look: Look = weight_sum) -> Watched:
        def timed(model: Model) -> dict[str, float]:
            clock[0] += 100
            return look(model)

        return train_to_points(experiment, prepared, tmp_path / folder, timed, points=4, device=CPU, report=NOTHING)

    torch.manual_seed(experiment.seed)
    (tmp_path / "loop").mkdir()
    fitting = Fit(experiment, prepared, tmp_path / "loop", CPU, None)
    steps, sums = 3 * len(fitting.loader), {}
    batches = [batch for epoch in range(3) for batch in fitting.loader.epoch(epoch)]
    fitting.model.train()
    for done, batch in enumerate(batches, 1):
        fitting.step(batch)
        if done in (steps // 4, steps // 2, 3 * steps // 4, steps):
            sums[sum(one.rows for one in batches[:done])] = weight_sum(fitting.model)
        if done % (steps // 3) == 0:
            fitting.evaluate()
    best = load_file(tmp_path / "loop" / BEST)
    assert any(not torch.equal(best[name], one) for name, one in fitting.model.state_dict().items()), (
        "the last weights are not the best, or this test could not tell which are looked at"
    )
    whole = train("whole")
    assert {point.rows: point.seen for point in whole.points} == sums
    assert whole.multiply_adds == fitting.model.multiply_adds()
    assert whole.seconds == steps

    looked = []

    def stops(model: Model) -> dict[str, float]:
        looked.append(weight_sum(model)["sum"])
        if len(looked) % 2 == 0:
            raise Stop
        return weight_sum(model)

    stopped, reached = None, []
    while stopped is None:
        with suppress(Stop):
            stopped = train("stopped", stops)
        reached.append(load_checkpoint(tmp_path / "stopped" / CHECKPOINT)[1]["step"])
    assert stopped.points == whole.points
    assert stopped.seconds == steps, "what was trained before it was stopped counts, and looks do not"
    assert reached == [steps // 2, 3 * steps // 4, steps, steps], "nothing before a point was trained again"
    one, two, three, four = (point.seen["sum"] for point in whole.points)
    assert looked == [one, two, two, three, three, four, four], "each point was reached again as it was"
    assert train("stopped", stops) == stopped, "what is whole is not trained again"


def test_learning_rates_are_chosen_without_a_look_at_test_rows(small_kuairand: Path, tmp_path: Path) -> None:
    here = site(small_kuairand, tmp_path)
    ground = ground_for(SMALL, here, kuairand(small_kuairand), 1)
    mmoe = [learner for learner in learners_of(SMALL, ground) if learner.name == "mmoe"]
    with Workers(1) as workers:
        chosen = chosen_rates(ground, mmoe, SMALL.rates, here, workers)["mmoe"]
        tuned = {rate: here.ledger.rows(f"kuairand-mmoe-rate-{rate:g}")[0] for rate in SMALL.rates}
        assert chosen == max(tuned, key=lambda rate: tuned[rate]["valid/click/auc"][-1])
        for row in tuned.values():
            assert row["seed"] >= 1_000
            assert not any(name.startswith("test/") for name in row)
        only = chosen_rates(ground, mmoe, (0.3,), here, workers)
    assert only == {"mmoe": 0.3}, "where there is no choice nothing is trained"
    assert not here.ledger.has("kuairand-mmoe-rate-0.3")


def test_the_whole_study_goes_on_and_tells_every_structure(small_kuairand: Path, tmp_path: Path) -> None:
    settings = SMALL.with_(epochs=1, rates=(0.01,), feed_rows=1_000, feed_runs=2, feed_known=0.5)
    here = site(small_kuairand, tmp_path)
    chapters = run(settings, here)
    rows = pq.read_table(here.ledger.gather()).to_pylist()
    by_data = {data: [row for row in rows if row["data"] == data] for data in ("kuairand", "feed-1000")}
    assert {data: len(those) for data, those in by_data.items()} == {"kuairand": 2 * 11, "feed-1000": 2 * 8}
    for those in by_data.values():
        cost = {row["structure"]: row["multiply_adds"] for row in those if not row["task"]}
        assert cost["large_bottom"] == pytest.approx(cost["cross_stitch"], rel=0.05)
    for those in by_data.values():
        assert len({tuple(row["rows"]) for row in those}) == 1, "points are at the same rows for all"
    assert not any((tmp_path / "work").iterdir()), "what a training leaves is removed"
    anchors = ["kuairand-engagement", "kuairand-satisfaction", "feed-1000-engagement", "feed-1000-satisfaction"]
    assert [one.anchor for one in chapters] == anchors
    words = [next(block.text for block in one.told if isinstance(block, Text)) for one in chapters[::2]]
    assert all("one learning rate, " in text and "not tuned" in text for text in words)
    assert ["0.01," in text for text in words] == [True, False], "the feed has a rate of its own"
    assert "0.001," in words[1]
    tables = [block for chapter in chapters for block in chapter.told if isinstance(block, Table)]
    assert sum(line[0] == "L2-Constrained" for table in tables for line in table.rows) >= 6
    mmoe = [row["test/click/auc"][2] for row in rows if row["data"] == "kuairand" and row["structure"] == "mmoe"]
    here_click = next(table for table in tables if table.caption == "AUC of click")
    assert next(line for line in here_click.rows if line[0] == "MMoE")[3].startswith(f"{sum(mmoe) / 2:.4f} ±")
    figures = [figure for chapter in chapters for figure in chapter.draw()]
    assert [name for name, _ in figures] == [
        "kuairand-engagement", "kuairand-differences", "feed-1000-engagement", "feed-1000-differences"
    ]  # fmt: skip

    part = here.ledger.place("kuairand-mmoe-1")
    written = {path: path.stat().st_mtime_ns for path in part.parent.iterdir() if path != part}
    before = here.ledger.rows("kuairand-mmoe-1")[0]
    part.unlink()
    run(settings.with_(workers=1), here)  # in this process, where those before were in two
    assert here.ledger.rows("kuairand-mmoe-1")[0]["test/click/auc"] == before["test/click/auc"]
    assert written == {path: path.stat().st_mtime_ns for path in written}, "only what was missing is run"
