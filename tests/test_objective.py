"""Losses against plain loops; what is unknown adds exactly nothing."""

import math

import pytest
import torch

from multigate.batch import TaskColumn
from multigate.objective import Objective

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


@pytest.mark.parametrize("tasks", [TASKS, TASKS[:1] + TASKS[:1]], ids=["mixed", "binary"])
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
