"""Tables of the tasks' own: tasks that share nothing else then share nothing at all, from the file to the bundle."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from resumed import resumed
from safetensors.torch import load_file
from torch import Tensor

from multigate.analysis.compare import compare
from multigate.analysis.relatedness import relatedness
from multigate.analysis.subject import find_subject
from multigate.batch import BagIds, IdColumn, Layout, NumberColumn, TaskColumn
from multigate.errors import ExperimentError
from multigate.experiment import Experiment, Optimizer
from multigate.model import Model, Tower
from multigate.nn.embed import Embedding
from multigate.objective import Objective
from multigate.run import Run
from multigate.sharing import MMoE, SingleTask
from multigate.training.optimizers import build_optimizer
from multigate.training.train import train

LAYOUT = Layout(
    numbers=(NumberColumn(feature="a"), NumberColumn(feature="b", embedding="periodic")),
    categories=(IdColumn(feature="u", table="u"), IdColumn(feature="v", table="v", dim=4)),
    bags=(IdColumn(feature="t", table="u"),),
    tables={"u": 10, "v": 5},
    tasks=(TaskColumn(name="click", kind="binary", mean=0.2), TaskColumn(name="watch", kind="regression")),
)
STEPS = 8


def model_of(tasks: tuple[TaskColumn, ...]) -> Model:
    embedding = Embedding(dim=6, dropout=0, unseen=0, tables="own")
    return Model(LAYOUT.with_(tasks=tasks), SingleTask(hidden=(16, 8)), embedding=embedding, tower=Tower(hidden=(5,)))


def alone(both: Model, at: int) -> Model:
    """A model of one of the tasks, with its part of the weights."""
    one = model_of((LAYOUT.tasks[at],))
    weights = {}
    for name, value in both.state_dict().items():
        if name.startswith("embed.each."):
            if name.startswith(f"embed.each.{at}."):
                weights[name.replace(f"each.{at}", "each.0")] = value.clone()
        else:  # stacked by task
            weights[name] = value[at : at + 1].clone()
    one.load_state_dict(weights)
    return one


def batches() -> list[tuple[tuple[Tensor, Tensor, tuple[BagIds, ...]], tuple[Tensor, Tensor, Tensor]]]:
    found = []
    for _ in range(STEPS):
        offsets = torch.arange(0, 129, 2, dtype=torch.int32)
        bags = (BagIds(torch.randint(0, 10, (128,), dtype=torch.int32), offsets),)
        features = torch.randn(64, 2), torch.randint(0, 5, (64, 2), dtype=torch.int32), bags
        labels = torch.stack([torch.randint(0, 2, (64,)).float(), torch.randn(64)], dim=1)
        known = torch.rand(64, 2) < 0.7
        found.append((features, (labels * known, known, torch.ones(64, 2))))
    return found


def test_two_tasks_train_as_two_models_of_one_task_do() -> None:
    both = model_of(LAYOUT.tasks)
    started = {name: value.clone() for name, value in both.state_dict().items()}
    each = [alone(both, 0), alone(both, 1)]
    rows = batches()
    options = Optimizer(learning_rate=0.01)
    optimizer = build_optimizer(both, torch.nn.Identity(), options)
    optimizers = [build_optimizer(one, torch.nn.Identity(), options) for one in each]
    for features, labels in rows:
        optimizer.zero_grad()
        Objective(LAYOUT.tasks)(both(*features).logits, *labels).sum().backward()
        optimizer.step()
        for at, (one, own) in enumerate(zip(each, optimizers, strict=True)):
            own.zero_grad()
            loss = Objective(LAYOUT.tasks[at : at + 1])(one(*features).logits, *(x[:, at : at + 1] for x in labels))
            loss.sum().backward()
            own.step()
    assert all(not torch.equal(value, started[name]) for name, value in both.state_dict().items()), "all was trained"
    for at, one in enumerate(each):
        expected = alone(both, at).state_dict()
        for name, value in one.state_dict().items():
            torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def test_gradients_of_two_tasks_never_meet() -> None:
    both = model_of(LAYOUT.tasks)
    features, labels = batches()[0]
    losses = Objective(LAYOUT.tasks)(both(*features).logits, *labels)
    parameters = dict(both.embed.named_parameters())
    for at in (0, 1):
        gradients = torch.autograd.grad(losses[at], list(parameters.values()), retain_graph=True, allow_unused=True)
        moved = {name.split(".")[1] for name, g in zip(parameters, gradients, strict=True) if g is not None and g.any()}
        assert moved == {str(at)}


@pytest.fixture(scope="module")
def experiment(feed_experiment: Experiment) -> Experiment:
    return feed_experiment.with_(
        sharing=SingleTask(hidden=(32, 16)), tower=(32,), embedding=feed_experiment.embedding.with_(tables="own")
    )


@pytest.fixture(scope="module")
def run(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(experiment, tmp_path_factory.mktemp("own") / "run", quiet=True)


def test_a_bundle_has_a_table_for_every_task_and_predicts_alike_when_loaded(run: Run, experiment: Experiment) -> None:
    bundle = run.bundle()
    tasks, users = len(experiment.schema.tasks), bundle.encoder.layout.tables["user"]
    tables = [embed.tables["8"] for embed in bundle.model.embed.each]
    assert [table.sizes["user"] for table in tables] == [users] * tasks
    assert run.best["click/auc"] > 0.52
    table = pq.read_table(experiment.test)
    whole, rows = bundle.predict(table), [bundle.predict(row) for row in table.slice(0, 5).to_pylist()]
    for name, values in whole.items():
        np.testing.assert_allclose(values[:5], [row[name] for row in rows], rtol=1e-5, atol=1e-6)


def test_interrupted_and_resumed_it_is_bit_equal(
    run: Run, experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = resumed(experiment, tmp_path / "run", monkeypatch)
    whole, pieces = (load_file(one.folder / "bundle" / "model.safetensors") for one in (run, again))
    assert all(torch.equal(tensor, pieces[name]) for name, tensor in whole.items())


def test_it_goes_on_from_a_bundle_with_new_ids_as_unseen_ones(run: Run, experiment: Experiment, tmp_path: Path) -> None:
    later = experiment.with_(train=experiment.test, warm_start=str(run.folder), epochs=1)
    grown = train(later, tmp_path / "later", quiet=True)
    assert grown.history[0]["epoch"] == 0
    for name, value in grown.history[0]["valid"].items():
        assert run.best[name.removeprefix("valid/")] == pytest.approx(value, nan_ok=True)
    before, after = (one.bundle().model.embed.each[2].tables["8"] for one in (run, grown))
    assert after.sizes["user"] > before.sizes["user"]
    shared = later.with_(embedding=experiment.embedding.with_(tables="shared"))
    with pytest.raises(ExperimentError, match="widths are not those of the bundle"):
        train(shared, tmp_path / "shared", quiet=True)


def test_gradients_at_x_of_tasks_that_share_nothing_are_orthogonal(run: Run) -> None:
    """But for a child, whose loss moves what its parent reads too."""
    found = relatedness(find_subject(run.folder))
    tasks = found.tasks
    for i, one in enumerate(tasks):
        for j, other in enumerate(tasks):
            if i < j and {one, other} != {"click", "buy"}:
                assert found.gradients[i][j] == pytest.approx(0, abs=1e-7)
    assert abs(found.gradients[tasks.index("click")][tasks.index("buy")]) > 1e-3


def test_structures_that_can_are_compared_and_others_refused_at_once(experiment: Experiment, tmp_path: Path) -> None:
    short = experiment.with_(epochs=1, valid_rows=200)
    comparison = compare(short, tmp_path / "compare", structures=("single_task",), seeds=1, boosting=False, quiet=True)
    assert comparison.values("single_task", "click/auc")
    with pytest.raises(ExperimentError, match="'mmoe' has one input for all tasks"):
        compare(short, tmp_path / "other", structures=("single_task", "mmoe"), seeds=1, quiet=True)
    assert not (tmp_path / "other").exists()


def test_an_experiment_says_so_before_anything_is_read(experiment: Experiment) -> None:
    with pytest.raises(ExperimentError, match=r"take one of single_task, .*or leave 'tables' out"):
        experiment.with_(sharing=MMoE())
