"""The small models: a stack of them trains as plain loops do, and goes on where it was stopped."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from multigate.datasets.synthetic import Synthetic
from multigate.errors import RunError
from multigate.paper.synthetic.draws import Draws
from multigate.paper.synthetic.toy import HELD_OUT, Toy, Trained, Training, train_toys
from multigate.sharing import MMoE, OMoE, SharedBottom
from multigate.training.interrupts import Interrupted
from multigate.training.replicas import Replicas

CPU = torch.device("cpu")
SEEDS, RATES = (3, 4, 3), (0.001, 0.001, 0.01)
TRAINING = Training(
    MMoE(experts=3, hidden=(4,)), Synthetic(size=6, correlations=(0.5,)), SEEDS, RATES, (3,), 200, 8, True
)


def trained(folder: Path, training: Training = TRAINING) -> Trained:
    return train_toys(training, folder / "x.checkpoint", CPU)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process get a signal in the middle of a step."""
    whole = Replicas.step

    def disturbed(replicas: Replicas, *batch: torch.Tensor) -> torch.Tensor:
        if replicas.step_done == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return whole(replicas, *batch)

    monkeypatch.setattr(Replicas, "step", disturbed)


def by_loops(seed: int, rate: float, biases: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """One MMoE at a time with torch's Adam: the mean loss of every 100 steps (2, T), and that of held-out rows (T,).

    Without ``biases`` those of experts are 0 and stay so.
    """
    torch.manual_seed(seed)
    own = Toy(TRAINING.structure, 6, 2, (3,))
    weights = {name: value.detach().clone().requires_grad_() for name, value in own.named_parameters()}
    if not biases:
        weights["sharing.experts.layers.0.bias"] = torch.zeros(3, 4)
    optimizer = torch.optim.Adam([value for value in weights.values() if value.requires_grad], lr=rate)

    def predicted(x: torch.Tensor) -> torch.Tensor:
        w = weights
        outputs = []
        for task in range(2):
            gate = torch.softmax(x @ w["sharing.gate.linear.weight"][task].T, dim=1)
            mixed = torch.zeros(len(x), 4)
            for expert in range(3):
                layer = w["sharing.experts.layers.0.weight"][expert], w["sharing.experts.layers.0.bias"][expert]
                mixed = mixed + gate[:, expert : expert + 1] * functional.relu(functional.linear(x, *layer))
            tower = w["towers.layers.0.weight"][task], w["towers.layers.0.bias"][task]
            hidden = functional.relu(functional.linear(mixed, *tower))
            outputs.append(hidden @ w["heads.weight"][task] + w["heads.bias"][task])
        return torch.stack(outputs, 1)

    draws = Draws(TRAINING.data, [seed])
    x, y = draws.train(0, 200, 8)
    losses = []
    for step in range(200):
        loss = (predicted(x[0, step]) - y[0, step]).square().mean(0)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        losses.append(loss.detach())
    held = draws.held_out(HELD_OUT)
    final = (predicted(held.x[0]) - held.y[0]).square().mean(0).detach()
    return torch.stack(losses).view(2, 100, 2).mean(1), final


@pytest.mark.parametrize("biases", [False, True])
def test_a_stack_trains_as_plain_loops_do(biases: bool, tmp_path: Path) -> None:
    found = trained(tmp_path, TRAINING._replace(biases=biases))
    assert found.curves.shape == (3, 2, 2)
    assert found.gates[0].shape == (3, HELD_OUT, 2, 3)
    for run, (seed, rate) in enumerate(zip(SEEDS, RATES, strict=True)):
        curve, final = by_loops(seed, rate, biases)
        torch.testing.assert_close(found.curves[run], curve, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.losses[run], final, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    "structure", [MMoE(experts=3, hidden=(4,)), OMoE(experts=2, hidden=(4,)), SharedBottom(hidden=(5,))]
)
def test_stopped_and_gone_on_with_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, structure: MMoE | OMoE | SharedBottom
) -> None:
    training = TRAINING._replace(structure=structure)
    whole = trained(tmp_path, training)
    with monkeypatch.context() as patched:
        stop_at(150, patched)
        with pytest.raises(Interrupted, match="step 150 of 200"):
            trained(tmp_path, training)
    assert (tmp_path / "x.checkpoint").is_file()
    on = trained(tmp_path, training)
    assert not (tmp_path / "x.checkpoint").exists()
    for name in ("curves", "losses", "gates"):
        torch.testing.assert_close(getattr(on, name), getattr(whole, name), rtol=0, atol=0)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(3, monkeypatch)
    with pytest.raises(Interrupted):
        trained(tmp_path)
    with pytest.raises(RunError, match="of another training"):
        trained(tmp_path, TRAINING._replace(batch=9))
