"""Losses against plain loops; what is unknown adds exactly nothing."""

import math

import pytest
import torch
from torch.nn import functional

from multigate.batch import TaskColumn
from multigate.chain import fold
from multigate.objective import Objective
from multigate.schema import Risk

TASKS = (
    TaskColumn(name="click", kind="binary", known_rate=0.5),
    TaskColumn(name="watch", kind="regression", known_rate=0.8),
    TaskColumn(name="topic", kind="multiclass", outputs=3),
)


def loop_losses(tasks, logits, labels, known, weights) -> list[float]:
    """sum over known rows of w * l, over B times the known rate."""
    totals, column = [], 0
    for t, task in enumerate(tasks):
        total = 0.0
        for b in range(len(labels)):
            if known[b][t]:
                z, y = logits[b][column : column + task.outputs], labels[b][t]
                if task.kind == "binary":
                    p = 1 / (1 + math.exp(-z[0]))
                    loss = -math.log(p) if y == 1 else -math.log(1 - p)
                elif task.kind == "regression":
                    loss = (z[0] - y) ** 2
                else:
                    loss = math.log(sum(math.exp(v) for v in z)) - z[int(y)]
                total += weights[b][t] * loss
        totals.append(total / (len(labels) * task.known_rate))
        column += task.outputs
    return totals


@pytest.mark.parametrize(
    "tasks", [TASKS, TASKS[:1] * 2, TASKS[1:2], TASKS[2:]], ids=["mixed", "binary", "regression", "multiclass"]
)
def test_losses_equal_plain_loops(tasks) -> None:
    rows, outputs = 11, sum(task.outputs for task in tasks)
    logits, weights = torch.randn(rows, outputs), torch.rand(rows, len(tasks)) * 3
    labels = torch.randint(0, 2, (rows, len(tasks))).float()
    known = torch.rand(rows, len(tasks)) < 0.6
    labels = labels * known
    losses = Objective(tasks)(logits, labels, known, weights)
    expected = loop_losses(tasks, logits.tolist(), labels.tolist(), known.tolist(), weights.tolist())
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_unknown_labels_add_exactly_zero_loss_and_gradient() -> None:
    logits = (torch.randn(8, 5) * 50).requires_grad_()
    known = torch.ones(8, 3, dtype=torch.bool)
    known[3] = False
    known[:, 1] = False
    losses = Objective(TASKS)(logits, torch.zeros(8, 3), known, torch.ones(8, 3))
    assert losses[1].item() == 0.0
    losses.sum().backward()
    assert torch.equal(logits.grad[3], torch.zeros(5))
    assert torch.equal(logits.grad[:, 1], torch.zeros(8))
    assert logits.grad.isfinite().all()


def test_an_empty_batch_has_no_loss() -> None:
    losses = Objective(TASKS)(
        torch.zeros(0, 5), torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool), torch.zeros(0, 3)
    )
    assert torch.equal(losses, torch.zeros(3))


def test_losses_are_float32_under_autocast() -> None:
    logits = torch.randn(4, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = Objective(TASKS)(logits, torch.zeros(4, 3), torch.ones(4, 3, dtype=torch.bool), torch.ones(4, 3))
    assert losses.dtype == torch.float32


CHAIN = (
    TaskColumn(name="pay", kind="binary", known_rate=0.7, mean=0.05),
    TaskColumn(name="watch", kind="regression"),
    TaskColumn(name="click", kind="binary", mean=0.4),
    TaskColumn(name="buy", kind="binary", known_rate=0.9, mean=0.1),
)
RISKS = (
    Risk(task=0, parent=3, kind="dr", weight=0.5, clip=0.2),
    Risk(task=3, parent=2, kind="ips", weight=2, clip=0.9),
)
"""pay, given buy, given click."""


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def loop_risks(risks, logits, labels, known, weights, conditionals, imputed) -> list[float]:
    """Wang et al. 2022, IPS and DR, row by row; what is not known of either label counts for nothing."""
    totals = [0.0] * len(CHAIN)
    robust = [risk.task for risk in risks if risk.kind == "dr"]
    for risk in risks:
        for b in range(len(labels)):
            if not (known[b][risk.task] and known[b][risk.parent]):
                continue
            o, r = labels[b][risk.parent], labels[b][risk.task]
            propensity = max(sigmoid(logits[b][risk.parent]), risk.clip * CHAIN[risk.parent].mean)
            p = sigmoid(conditionals[b][risk.task])
            error = -math.log(p if r == 1 else 1 - p)
            if risk.kind == "ips":
                found = o * error / propensity
            else:
                guess = imputed[b][robust.index(risk.task)]
                found = guess + o * (error - guess) / propensity + o * (error - guess) ** 2 / propensity
            totals[risk.task] += risk.weight * weights[b][risk.task] * found
    return [total / (len(labels) * task.known_rate) for total, task in zip(totals, CHAIN, strict=True)]


def chain_rows(rows: int) -> tuple[torch.Tensor, ...]:
    logits, conditionals = torch.randn(rows, 4), torch.randn(rows, 4)
    known = torch.rand(rows, 4) < 0.8
    labels = torch.randint(0, 2, (rows, 4)).float() * known
    return logits, labels, known, torch.rand(rows, 4) * 3, conditionals, torch.rand(rows, 2)


@pytest.mark.parametrize("kinds", [("dr", "ips"), ("ips", "dr"), ("dr", "dr")])
@pytest.mark.parametrize("autocast", [False, True])
def test_counterfactual_risks_equal_plain_loops(kinds: tuple[str, str], autocast: bool) -> None:
    risks = [risk._replace(kind=kind) for risk, kind in zip(RISKS, kinds, strict=True)]
    logits, labels, known, weights, conditionals, imputed = rows = chain_rows(40)
    logits[:5] -= 4  # below the clip
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        joint = Objective(CHAIN)(logits, labels, known, weights)
        losses = Objective(CHAIN, risks)(logits, labels, known, weights, conditionals=conditionals, imputed=imputed)
    torch.testing.assert_close(losses - joint, torch.tensor(loop_risks(risks, *(one.tolist() for one in rows))))
    assert torch.equal(Objective(CHAIN, risks)(logits, labels, known, weights), joint), "without conditionals: as ever"


def test_tasks_that_are_all_binary_keep_their_own_losses_beside_a_risk() -> None:
    """They are then not summed by ``CrossEntropy``, but by a branch that nothing else takes."""
    tasks, risk = (TASKS[0], TASKS[0]), Risk(task=1, parent=0, kind="ips", weight=1, clip=0.1)
    logits, weights = torch.randn(9, 2), torch.rand(9, 2)
    known = torch.rand(9, 2) < 0.7
    labels = torch.randint(0, 2, (9, 2)).float() * known
    losses = Objective(tasks, [risk])(logits, labels, known, weights)
    expected = loop_losses(tasks, logits.tolist(), labels.tolist(), known.tolist(), weights.tolist())
    torch.testing.assert_close(losses, torch.tensor(expected))


def test_a_parent_that_never_was_1_leaves_a_finite_risk() -> None:
    """Its mean is 0, and so would be the least propensity; a click may come after all."""
    tasks = (TASKS[0], TaskColumn(name="buy", kind="binary"))
    objective = Objective(tasks, [Risk(task=1, parent=0, kind="ips", weight=1, clip=0.1)])
    logits, ones = torch.tensor([[-200.0, 0.0]]), torch.ones(1, 2)
    conditionals = torch.zeros(1, 2, requires_grad=True)
    losses = objective(logits, ones, ones.bool(), ones, conditionals=conditionals)
    losses[1].backward()
    assert losses.isfinite().all()
    assert conditionals.grad.isfinite().all()


def test_risks_are_float32_though_towers_are_not() -> None:
    logits, labels, known, weights, conditionals, imputed = chain_rows(40)
    conditionals, imputed = conditionals.bfloat16(), imputed.bfloat16()
    objective = Objective(CHAIN, RISKS)
    losses = objective(logits, labels, known, weights, conditionals=conditionals, imputed=imputed)
    exact = objective(logits, labels, known, weights, conditionals=conditionals.float(), imputed=imputed.float())
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, exact)


def test_risks_move_the_conditional_and_what_is_imputed_but_not_the_propensity() -> None:
    logits, labels, known, weights, conditionals, imputed = chain_rows(40)
    for one in (logits, conditionals, imputed):
        one.requires_grad_()
    objective = Objective(CHAIN, RISKS)
    joint = objective(logits, labels, known, weights)
    both = objective(logits, labels, known, weights, conditionals=conditionals, imputed=imputed)
    (both - joint).sum().backward()
    assert not logits.grad.any()
    told = known[:, [0, 3]] & known[:, [3, 2]]  # pay with buy, buy with click
    counted = told & (labels[:, [3, 2]] == 1)
    assert torch.equal(conditionals.grad[:, [0, 3]] != 0, counted)
    assert not conditionals.grad[:, [1, 2]].any()
    assert torch.equal(imputed.grad[:, 0] != 0, told[:, 0])


def test_predictions_learn_nothing_from_the_loss_of_the_imputation() -> None:
    """Else they would move to where their own loss is easy to tell: p(buy | click) came out a quarter too large."""
    logits, labels, known, weights, conditionals, imputed = chain_rows(40)
    gradients = []
    for kind in ("ips", "dr"):
        own = conditionals.clone().requires_grad_()
        risk = Risk(task=3, parent=2, kind=kind, weight=1, clip=0.1)
        Objective(CHAIN, [risk])(logits, labels, known, weights, conditionals=own, imputed=imputed).sum().backward()
        gradients.append(own.grad)
    torch.testing.assert_close(*gradients)


SELECTED = (TaskColumn(name="click", kind="binary", mean=0.3), TaskColumn(name="buy", kind="binary"))
CELLS = 12
DRAWS = 400_000


def selected_rows(wrong: bool = False) -> tuple[torch.Tensor, ...]:
    """Rows of a few cells with known p(click) and p(buy | click), of which one and the same is predicted."""
    click, buy = torch.linspace(0.05, 0.8, CELLS), torch.linspace(0.7, 0.1, CELLS)
    predicted = torch.logit(torch.full((CELLS,), 0.25))
    error = functional.binary_cross_entropy_with_logits(predicted, buy, reduction="none")  # mean over labels of a cell
    cell = torch.arange(DRAWS) % CELLS
    o = (torch.rand(DRAWS) < click[cell]).float()
    r = (torch.rand(DRAWS) < buy[cell]).float() * o
    propensity = torch.full((CELLS,), 0.3) if wrong else click
    logits = torch.stack([torch.logit(propensity), torch.zeros(CELLS)], dim=1)[cell]
    conditionals = torch.stack([torch.zeros(CELLS), predicted], dim=1)[cell]
    return logits, torch.stack([o, r], dim=1), conditionals, error[cell].unsqueeze(1), error.mean()


def estimated_risk(kind: str, logits, labels, conditionals, imputed) -> float:
    """The counterfactual risk alone: without the joint loss, and without that of the imputation."""
    everything = torch.ones(DRAWS, 2, dtype=torch.bool), torch.ones(DRAWS, 2)
    objective = Objective(SELECTED, [Risk(task=1, parent=0, kind=kind, weight=1, clip=1e-3)])
    joint = objective(logits, labels, *everything)[1]
    both = objective(logits, labels, *everything, conditionals=conditionals, imputed=imputed)[1]
    error = functional.binary_cross_entropy_with_logits(conditionals[:, 1], labels[:, 1], reduction="none")
    taught = (labels[:, 0] / torch.sigmoid(logits[:, 0]) * (error - imputed[:, 0]).square()).mean()
    return (both - joint - (taught if kind == "dr" else 0)).item()


def test_with_the_true_propensity_risks_average_to_the_true_one_and_that_of_clicked_rows_does_not() -> None:
    """Six standard errors of the mean over the rows are about .02."""
    logits, labels, conditionals, error, truth = selected_rows()
    clicked = labels[:, 0] == 1
    errors = functional.binary_cross_entropy_with_logits(conditionals[:, 1], labels[:, 1], reduction="none")
    assert abs(errors[clicked].mean() - truth) > 0.05
    assert estimated_risk("ips", logits, labels, conditionals, error) == pytest.approx(truth.item(), abs=0.02)
    for imputed in (error, torch.rand_like(error), torch.zeros_like(error)):
        assert estimated_risk("dr", logits, labels, conditionals, imputed) == pytest.approx(truth.item(), abs=0.02)


def test_doubly_robust_forgives_a_wrong_propensity_where_errors_are_imputed_right() -> None:
    logits, labels, conditionals, error, truth = selected_rows(wrong=True)
    assert abs(estimated_risk("ips", logits, labels, conditionals, error) - truth) > 0.05
    assert estimated_risk("dr", logits, labels, conditionals, error) == pytest.approx(truth.item(), abs=0.02)


def test_the_gradient_of_binary_tasks_alone_is_that_of_autograd() -> None:
    tasks = [TaskColumn(name=name, kind="binary", known_rate=rate) for name, rate in (("a", 0.5), ("b", 1.0))]
    logits = (4 * torch.randn(30, 2)).requires_grad_()
    labels, known, weights, pull = torch.rand(30, 2), torch.rand(30, 2) < 0.7, torch.rand(30, 2), torch.tensor([0.3, 2])
    plain = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weights * known
    wanted = plain.sum(0) / (30 * torch.tensor([0.5, 1.0]))
    losses = Objective(tasks)(logits, labels, known, weights)
    torch.testing.assert_close(losses, wanted)
    found = torch.autograd.grad(losses, logits, pull)[0]
    torch.testing.assert_close(found, torch.autograd.grad(wanted, logits, pull)[0])
    assert (found[~known] == 0).all()


@pytest.mark.parametrize(("weight", "share"), [(3.0, 0.3), (1.0, 1 / 6)])
def test_of_a_child_that_is_seldom_known_a_weight_gives_the_truth_back(weight: float, share: float) -> None:
    """54 of 180 clicks among 300 rows were bought, and a third of either is known: where the loss has its minimum."""
    label = [1.0] * 18 + [0.0] * 42 + [0.0] * 120 + [0.0] * 120
    labels = torch.tensor([[1.0] * 180 + [0.0] * 120, label]).t()
    known = torch.ones(300, 2, dtype=torch.bool)
    known[60:180, 1] = False
    weights = torch.ones(300, 2)
    weights[:180, 1] = weight
    objective = Objective([TaskColumn(name="click", kind="binary"), TaskColumn(name="buy", kind="binary")])
    conditionals = torch.logit(torch.tensor([[0.6, share]])).requires_grad_()
    logits = fold(conditionals, (None, 0), (0, 1)).expand(300, -1)
    (slope,) = torch.autograd.grad(objective(logits, labels, known, weights)[1], conditionals)
    assert slope[0, 1].abs() < 1e-6
