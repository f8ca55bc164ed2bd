"""Balances in the real loop: what they are shown is what the model's gradients and losses are."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from multigate.analysis.compare import compare
from multigate.balance import BALANCES, Balance, Balancer
from multigate.batch import Batch
from multigate.bundle import load
from multigate.data.prepared import Prepared
from multigate.errors import ExperimentError
from multigate.experiment import Experiment
from multigate.report.write import write_report
from multigate.run import open_run
from multigate.schema import Number, Schema, Task
from multigate.training.fit import Fit
from multigate.training.progress import Reporter
from multigate.training.train import open_sources, prepare_sources, train

CPU = torch.device("cpu")


class Watching(Balance):
    """Plain sums, by a balance of one's own that keeps what it is shown."""

    method: Literal["watching"] = "watching"

    def build(self, tasks: Sequence[Task]) -> "Watcher":
        return Watcher(tasks)


class Watcher(Balancer):
    """Asks for all there is."""

    needs_gramian = True
    looks_back = True

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.gramians: list[Tensor] = []
        self.steps: list[tuple[Tensor, Tensor]] = []
        self.epochs: list[Tensor] = []

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        self.gramians.append(gramian)
        return torch.ones_like(losses)

    def after_step(self, before: Tensor, after: Tensor, present: Tensor) -> None:
        self.steps.append((before, after))

    def after_epoch(self, losses: Tensor) -> None:
        super().after_epoch(losses)
        self.epochs.append(losses.clone())


@pytest.fixture(scope="module")
def prepared(feed_experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    with Reporter(quiet=True) as report:
        return prepare_sources(
            feed_experiment, open_sources(feed_experiment, {}), tmp_path_factory.mktemp("prepared"), report
        )


def fitting(experiment: Experiment, prepared: Prepared, folder: Path) -> Fit:
    torch.manual_seed(0)
    fit = Fit(experiment, prepared, folder, CPU, None)
    fit.model.train()
    return fit


def batches(fit: Fit, count: int) -> list[Batch]:
    found = fit.loader.epoch(0)
    some = [next(found) for _ in range(count)]
    found.close()
    return some


def plain_losses(fit: Fit, batch: Batch, x: Tensor) -> list[Tensor]:
    """The feed's four losses as sums of probabilities' logarithms and squares, p(buy) = p(click) p(buy | click)."""
    shared = fit.model.sharing(x)
    click, buy, like, watch = fit.model.heads(fit.model.towers(shared.z)).double().unbind(1)
    p = [torch.sigmoid(click), torch.sigmoid(click) * torch.sigmoid(buy), torch.sigmoid(like)]
    losses = []
    for t in range(4):
        y, rows = batch.labels[:, t].double(), len(batch.labels)
        each = (watch - y) ** 2 if t == 3 else -(y * p[t].log() + (1 - y) * (1 - p[t]).log())
        rate = fit.prepared.layout.tasks[t].known_rate
        losses.append(each[batch.known[:, t]].sum() / (rows * rate))
    return losses


def test_the_gramian_is_of_the_gradients_of_each_task_at_x(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    """With a `given` chain, tasks known in some rows, and one not known in a batch at all."""
    assert [task.given for task in feed_experiment.schema.tasks] == [None, "click", None, None]
    quiet = {"dim": 8, "dropout": 0.0, "unseen": 0.0}
    fit = fitting(feed_experiment.with_(balance=Watching(), embedding=quiet), prepared, tmp_path)
    first, second = batches(fit, 2)
    assert not first.known.all()
    second = second._replace(known=second.known & torch.tensor([True, True, False, True]))
    for batch in (first, second):
        x = fit.model.embed(batch.numbers, batch.categories, batch.bags).detach().requires_grad_()
        losses = plain_losses(fit, batch, x)
        explicit = torch.stack([torch.autograd.grad(loss, x, retain_graph=True)[0].flatten() for loss in losses])
        expected = torch.tensor([[float(a.double() @ b.double()) for b in explicit] for a in explicit])
        fit.step(batch)
        gramian = fit.balance.gramians[-1]
        assert gramian.dtype == torch.float32
        torch.testing.assert_close(gramian, expected, rtol=1e-4, atol=1e-9)
        assert expected[0, 1] != 0
        assert (expected[2] != 0).any() == (batch is first)


def test_the_step_is_down_the_weighted_losses_in_all_parameters(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    """Towers, too, get their task's weight; gradients for the Gramian leave nothing behind."""
    quiet = {"dim": 8, "dropout": 0.0, "unseen": 0.0}
    experiment = feed_experiment.with_(balance="mgda", embedding=quiet)
    fit = fitting(experiment, prepared, tmp_path)
    (batch,) = batches(fit, 1)
    x = fit.model.embed(batch.numbers, batch.categories, batch.bags)
    losses = plain_losses(fit, batch, x)
    parameters = dict(fit.model.named_parameters())
    wanted = [torch.autograd.grad(loss, parameters.values(), retain_graph=True) for loss in losses]
    fit.step(batch)
    weights = fit.balance.found
    assert weights.std() > 0.1
    for i, (name, parameter) in enumerate(parameters.items()):
        expected = sum(float(weight) * each[i] for weight, each in zip(weights, wanted, strict=True))
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-6, msg=name)


def test_in_bfloat16_the_gramian_is_a_float32_one_nearby(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    """For every task in each of five batches. Where values of numbers are not dropped, one unit that rounding turned
    on held a third of what the rarest task had in a batch."""
    experiment = feed_experiment.with_(balance=Watching(), embedding={"dim": 8, "dropout": 0.2, "drop_numbers": True})
    gramians = {}
    for precision in ("float32", "bfloat16"):
        fit = fitting(experiment.with_(precision=precision), prepared, tmp_path)
        for batch in batches(fit, 5):
            fit.step(batch)
        gramians[precision] = torch.stack(fit.balance.gramians)
        assert gramians[precision].dtype == torch.float32
    one, other = gramians.values()
    assert not torch.equal(one, other)
    one, other = (found.diagonal(dim1=1, dim2=2) for found in (one, other))
    torch.testing.assert_close(other, one, rtol=0.1, atol=0)
    ratios = (other / one).median(dim=0).values
    torch.testing.assert_close(ratios, torch.ones_like(ratios), rtol=0.05, atol=0)


def test_a_model_that_embeds_nothing_is_balanced_too(tmp_path: Path) -> None:
    """x has no parameter above it then."""
    numbers = torch.randn(400, 2)
    table = {"a": numbers[:, 0].tolist(), "b": numbers[:, 1].tolist()}
    table |= {"up": (numbers[:, 0] > 0).int().tolist(), "down": (numbers[:, 0] < 0.3).int().tolist()}
    features = [Number(name, embedding="none") for name in "ab"]
    experiment = Experiment(schema=Schema(features=features, tasks=[Task("up"), Task("down")]), epochs=2)
    for balance in ("upgrad", "gradnorm"):
        run = train(experiment.with_(balance=balance), tmp_path / balance, tables={"train": table}, quiet=True)
        assert run.best["up/auc"] > 0.9


@pytest.mark.parametrize("method", BALANCES)
def test_every_balance_takes_steps_with_some_tasks_missing(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path, method: str
) -> None:
    """With auxiliary and weighted tasks, and batches that lack one task, another, all but one, and all."""
    auxiliary = [task.with_(auxiliary=task.name == "like", weight=1.5) for task in feed_experiment.schema.tasks]
    schema = feed_experiment.schema.with_(tasks=auxiliary)
    fit = fitting(feed_experiment.with_(balance=method, schema=schema), prepared, tmp_path)
    head = fit.model.heads.weight
    lacking = [[1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    for mask, batch in zip(lacking, batches(fit, len(lacking)), strict=True):
        known = batch.known & torch.tensor(mask, dtype=torch.bool)
        loss = fit.step(batch._replace(known=known))
        assert math.isfinite(loss.item())
        moved = head.grad.abs().sum(1) > 0
        reached = known.any(0).tolist()
        reached[0] = reached[0] or reached[1]  # buy's loss is of p(buy) = p(click) p(buy | click)
        assert not any(move and not reach for move, reach in zip(moved.tolist(), reached, strict=True)), "absent ones"
        if method != "mgda":  # its weights may lie on the edge of the simplex, where a task has none
            assert moved.tolist() == reached, "auxiliary tasks are trained"
        fit.balance.after_epoch(torch.ones(4))
    for parameter in (*fit.model.parameters(), *fit.balance.state_dict().values()):
        assert parameter.isfinite().all()


@pytest.mark.parametrize("method", BALANCES)
def test_labels_of_weight_0_are_labels_that_are_not_known(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path, method: str
) -> None:
    """A task that has only such labels in a batch does not keep others from learning."""
    for task in (2, 3):
        ends = []
        for name in ("weightless", "unknown"):
            fit = fitting(feed_experiment.with_(balance=method), prepared, tmp_path / f"{name}-{task}")
            for batch in batches(fit, 3):
                mask = torch.arange(4) != task
                weights, known = batch.weights * mask, batch.known & mask
                fit.step(batch._replace(weights=weights) if name == "weightless" else batch._replace(known=known))
            ends.append({**fit.model.state_dict(), **fit.balance.state_dict()})
        torch.testing.assert_close(*ends)


def test_the_losses_after_a_step_are_of_the_same_rows_with_the_same_dropout(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    experiment = feed_experiment.with_(embedding={"dim": 8, "dropout": 0.5})
    still = experiment.with_(balance=Watching(), optimizer={"learning_rate": 1e-30, "schedule": "constant"})
    fit = fitting(still, prepared, tmp_path)
    moving = fitting(experiment.with_(balance=Watching()), prepared, tmp_path)
    for batch in batches(fit, 4):
        fit.step(batch)
        moving.step(batch)
    for before, after in fit.balance.steps:
        assert torch.equal(before, after)
    assert all((after.sum() < before.sum()).item() for before, after in moving.balance.steps)


def test_looking_back_and_at_gradients_changes_nothing_by_itself(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    """Neither the random numbers that follow nor the gradients: the same weights bit by bit as with fixed ones."""
    fits = [fitting(feed_experiment.with_(balance=one), prepared, tmp_path) for one in ("fixed", Watching())]
    for fit in fits:
        torch.manual_seed(1)
        for batch in batches(fit, 3):
            fit.step(batch)
    for one, other in zip(fits[0].model.parameters(), fits[1].model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_gramians_are_taken_every_so_many_steps(
    feed_experiment: Experiment, prepared: Prepared, tmp_path: Path
) -> None:
    fit = fitting(feed_experiment.with_(balance=Watching()), prepared, tmp_path)
    fit.balance.every = 3
    for batch in batches(fit, 5):
        fit.step(batch)
    assert [gramian is not None for gramian in fit.balance.gramians] == [True, False, False, True, False]


def test_weights_change_after_each_epoch_and_balances_hear_its_losses(
    feed_experiment: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Watcher] = []
    original = Watching.build
    monkeypatch.setattr(Watching, "build", lambda self, tasks: built.append(original(self, tasks)) or built[-1])
    some = [task.with_(weight_factor=0.5 if task.name == "like" else 1.0) for task in feed_experiment.schema.tasks]
    schema = feed_experiment.schema.with_(tasks=some)
    train(feed_experiment.with_(balance=Watching(), schema=schema, epochs=3), tmp_path / "run", quiet=True)
    (watcher,) = built
    assert watcher.declared.tolist() == [1, 1, 0.125, 1]
    run = open_run(tmp_path / "run")
    lines = [list(entry["train"].values()) for entry in run.history]
    torch.testing.assert_close(torch.stack(watcher.epochs), torch.tensor(lines))
    assert len(run.bundle().predict(feed_experiment.valid)["like"]) == 600, "to predict, nobody asks for the balance"


class Mine(Balance):
    """A balance of one's own with a setting."""

    method: Literal["mine"] = "mine"
    more: float = 1.0

    def build(self, tasks: Sequence[Task]) -> "Balancer":
        return Weighing(self.more, tasks)


class Weighing(Balancer):
    def __init__(self, more: float, tasks: Sequence[Task]) -> None:
        super().__init__(tasks)
        self.more = more

    def balanced(self, losses: Tensor, gramian: Tensor | None, active: Tensor) -> Tensor:
        return self.more * torch.ones_like(losses)


def test_what_a_balance_of_ones_own_has_trained_tells_of_it(feed_experiment: Experiment, tmp_path: Path) -> None:
    experiment = feed_experiment.with_(balance=Mine(more=2), epochs=1)
    run = train(experiment, tmp_path / "run", quiet=True)
    comparison = compare(experiment, tmp_path / "compare", structures="omoe", seeds=1, boosting=False, quiet=True)
    run.bundle().save(tmp_path / "copy")
    for told in (run.experiment, load(tmp_path / "copy").experiment, comparison.bundle("omoe").experiment):
        assert told.balance.to_dict() == {"method": "mine", "more": 2.0}
    write_report([run, comparison], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "mine" in page
    assert "This part is missing" not in page
    with pytest.raises(ExperimentError, match=r"balance 'mine' is not built in; give its options: .*with_"):
        train(run.experiment, tmp_path / "again", quiet=True)
    assert train(experiment, tmp_path / "run", resume=True, quiet=True).best == run.best
