"""Affinity against plain steps on a copy of the model; watching a training changes nothing in it."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from multigate.analysis.affinity import Watch, look
from multigate.assembly import build_model
from multigate.batch import Batch
from multigate.data.encoder import Encoder
from multigate.data.files import open_table
from multigate.data.prepared import Prepared, prepare
from multigate.datasets.synthetic import Synthetic, synthetic_schema, synthetic_table
from multigate.experiment import Experiment
from multigate.model import Model
from multigate.objective import Objective
from multigate.sharing import MMoE, SingleTask, Structure
from multigate.training.fit import BEST, Fit
from multigate.training.loop import Fitted, fit
from multigate.training.progress import Reporter

CPU = torch.device("cpu")


def small(structure: Structure, correlations: tuple[float, ...] = (0.8, 0.0)) -> tuple[Model, Objective, Batch]:
    """An untrained model of three synthetic tasks, and 200 rows for it."""
    options = Synthetic(rows=200, size=6, correlations=correlations)
    table = synthetic_table(options)
    encoder = Encoder.fit(synthetic_schema(options), table.to_batches())
    experiment = Experiment(schema=synthetic_schema(options), train="x", sharing=structure, tower=(5,))
    model = build_model(experiment, encoder)
    return model.eval(), Objective(encoder.layout.tasks), encoder.columns(table.to_batches()[0])


def losses(model: Model, objective: Objective, batch: Batch) -> torch.Tensor:
    return objective(model(batch.numbers, batch.categories).logits, batch.labels, batch.known, batch.weights)


def stepped(model: Model, objective: Objective, batch: Batch, task: int, rate: float) -> torch.Tensor:
    """Losses after a plain gradient step for one task on everything but towers and heads."""
    moved = copy.deepcopy(model)
    losses(moved, objective, batch)[task].backward()
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            if name.partition(".")[0] in ("embed", "sharing") and parameter.grad is not None:
                parameter.sub_(rate * parameter.grad)
        return losses(moved, objective, batch)


@pytest.mark.parametrize("rate", [5.0, 30.0])
def test_lookahead_equals_steps_on_a_copy(rate: float) -> None:
    model, objective, batch = small(MMoE(experts=3, hidden=(8,)))
    before = losses(model, objective, batch).detach()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, found = look(model, objective, batch, rate)
    for i in range(3):
        after = stepped(model, objective, batch, i, rate)
        for j in range(3):
            assert found[i, j] == pytest.approx(float(1 - after[j] / before[j]), abs=2e-6)
    assert abs(found).min() > 2e-5, "more than rounding"
    assert abs(found - found.T).max() > 1e-5, "it is no symmetric measure"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("rate", [1e-4, 1e-6])
def test_small_steps_are_told_to_many_digits(rate: float) -> None:
    """Against the squared errors of a copy in float64 that steps by hand; in float32 the smallest are rounding."""
    model, objective, batch = small(MMoE(experts=3, hidden=(8,)))
    _, found = look(model, objective, batch, rate)
    numbers, labels = batch.numbers.double(), batch.labels.double()
    for i in range(3):
        exact = copy.deepcopy(model).double()
        before = (exact(numbers, batch.categories).logits - labels).square().mean(0)
        before[i].backward()
        with torch.no_grad():
            for name, parameter in exact.named_parameters():
                if name.partition(".")[0] in ("embed", "sharing") and parameter.grad is not None:
                    parameter.sub_(rate * parameter.grad)
            after = (exact(numbers, batch.categories).logits - labels).square().mean(0)
        expected = (1 - after / before.detach()).numpy()
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-14)
    assert abs(found).min() < 1e-7, "less than float32 can tell of a loss"
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_shares_are_in_proportion_to_small_steps(feed_experiment: Experiment, prepared: Prepared) -> None:
    """Also of tasks in a chain and of other losses: the first-order term is all that is left."""
    model = build_model(feed_experiment, prepared.encoder).eval()
    batch = next(iter(prepared.train.batches(256)))
    objective = Objective(prepared.layout.tasks)
    one, other = (look(model, objective, batch, rate)[1] / rate for rate in (1e-4, 1e-5))
    np.testing.assert_allclose(one, other, rtol=2e-2, atol=1e-6)
    assert abs(one).max() > 1e-4, "not all 0"


def test_cosines_are_those_of_gradients_at_x() -> None:
    model, objective, batch = small(MMoE(experts=3, hidden=(8,)))
    found, _ = look(model, objective, batch, 0.01)
    x = model.represent(batch.numbers, batch.categories).x.detach()
    gradients = []
    for task in range(3):
        leaf = x.clone().requires_grad_()
        logits = model.decide(model.represent(batch.numbers, batch.categories)._replace(x=leaf)).logits
        objective(logits, batch.labels, batch.known, batch.weights)[task].backward()
        gradients.append(leaf.grad.double().flatten())
    for i in range(3):
        for j in range(3):
            expected = gradients[i] @ gradients[j] / (gradients[i].norm() * gradients[j].norm())
            assert found[i, j] == pytest.approx(float(expected), abs=1e-6)


def test_tasks_that_share_no_weight_do_not_move_each_other() -> None:
    model, objective, batch = small(SingleTask(hidden=(8,)))
    _, found = look(model, objective, batch, 0.1)
    assert (np.diag(found) > 1e-4).all()
    assert abs(found[~np.eye(3, dtype=bool)]).max() < 1e-6


@pytest.mark.parametrize("none", ["known", "weights"])
def test_a_task_of_which_no_label_counts_is_undefined(none: str) -> None:
    model, objective, batch = small(MMoE(experts=3, hidden=(8,)))
    left = getattr(batch, none).clone()
    left[:, 1] = 0
    labels = batch.labels * (left > 0)
    cosines, lookahead = look(model, objective, batch._replace(labels=labels, **{none: left}), 0.01)
    for found in (cosines, lookahead):
        assert np.isnan(found[1]).all()
        assert np.isnan(found[:, 1]).all()
        assert np.isfinite(found[np.ix_([0, 2], [0, 2])]).all()


@pytest.fixture(scope="module")
def prepared(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    tables = [open_table(path) for path in (feed_experiment.train, feed_experiment.valid, feed_experiment.test)]
    return prepare(feed_experiment.schema, *tables, feed_experiment.split, tmp_path_factory.mktemp("affinity"))


def trained(experiment: Experiment, prepared: Prepared, folder: Path, **options: object) -> Fitted:
    folder.mkdir()
    with Reporter(quiet=True) as report:
        return fit(experiment, prepared, folder, device=CPU, report=report, **options)


def test_a_watched_training_ends_with_the_same_weights(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    assert feed_experiment.embedding.dropout > 0, "a training that draws random numbers"
    plain = trained(feed_experiment, prepared, tmp_path / "plain")
    watch = Watch(observations=10)
    watched = trained(feed_experiment, prepared, tmp_path / "watched", observe=watch)
    assert plain.best == watched.best
    one, other = (load_file(tmp_path / name / BEST) for name in ("plain", "watched"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    affinity = watch.affinity()
    assert affinity.observations == 13, "every third of 38 steps"
    assert affinity.tasks == ("click", "buy", "like", "watch")
    assert affinity.gradients[0][1] > 0.05, "the chain ties buy to click"
    assert all(affinity.lookahead[i][i] > 0 for i in range(4))


def test_what_an_observer_draws_does_not_count(feed_experiment: Experiment, prepared: Prepared, tmp_path: Path) -> None:
    """It is called before each step with the batch of that step, the training standing as many steps on."""
    seen: list[tuple[int, int]] = []

    def observe(fitting: Fit, batch: Batch) -> None:
        torch.rand(3)
        seen.append((fitting.step_done, batch.rows))

    experiment = feed_experiment.with_(epochs=1)
    plain = trained(experiment, prepared, tmp_path / "plain")
    assert trained(experiment, prepared, tmp_path / "seen", observe=observe).best == plain.best
    assert seen == [(step, 256 if step < 18 else 4800 - 18 * 256) for step in range(19)]


def test_means_are_over_the_looks_that_define_them() -> None:
    watch = Watch()
    watch.tasks = ("a", "b")
    watch._seen = [
        (np.array([[1.0, 0.5], [0.5, 1.0]]), np.array([[0.1, 0.2], [0.3, 0.4]])),
        (np.array([[1.0, np.nan], [np.nan, np.nan]]), np.array([[0.3, np.nan], [np.nan, np.nan]])),
    ]
    affinity = watch.affinity()
    assert affinity.gradients == ((1.0, 0.5), (0.5, 1.0))
    assert affinity.lookahead[0] == (pytest.approx(0.2), 0.2)
    assert affinity.lookahead_error == ((pytest.approx(0.1), None), (None, None)), "half of .3 - .1 over two looks"
    assert affinity.observations == 2
