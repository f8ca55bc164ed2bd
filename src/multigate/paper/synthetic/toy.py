"""The small models of the paper's synthetic experiments, trained many at a time."""

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multigate.batch import TaskColumn
from multigate.data.ahead import ahead
from multigate.datasets.synthetic import Synthetic
from multigate.errors import RunError
from multigate.experiment import Optimizer
from multigate.model import Heads
from multigate.nn.parallel import ParallelLinear, ParallelMLP
from multigate.paper.synthetic.draws import Draws, Rows
from multigate.sharing import Structure
from multigate.training.checkpoint import load_checkpoint, save_checkpoint
from multigate.training.interrupts import Interrupted, Interrupts
from multigate.training.replicas import Replicas
from multigate.training.sleeping import asleep_beside_others
from multigate.training.subnormal import flushed

TICK = 100
"""Steps behind each point of a curve."""
HELD_OUT = 2_048
"""Rows that each run is scored on when it is over."""
BLOCK_BYTES = 20 << 20
"""Rows are drawn in blocks of about so many bytes, for all runs together."""


class Toy(nn.Module):
    """A sharing structure, a tower and a linear output for each of T regressions: x (B, d) -> (B, T)."""

    def __init__(self, structure: Structure, size: int, tasks: int, tower: tuple[int, ...]) -> None:
        super().__init__()
        names = tuple(f"y{task}" for task in range(tasks))
        self.sharing = structure.build(size, names)
        self.towers = ParallelMLP(tasks, self.sharing.d_out, tower)
        self.heads = Heads(
            [TaskColumn(name=name, kind="regression") for name in names], [None] * tasks, self.towers.d_out
        )

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Predictions (B, T), gates and penalty."""
        shared = self.sharing(x)
        return self.heads(self.towers(shared.z)), shared.gates, shared.penalty

    def multiply_adds(self) -> int:
        """Of sharing and towers: what the paper holds equal, and the gates, which it leaves out."""
        return self.sharing.multiply_adds() + self.towers.multiply_adds()


class Training(NamedTuple):
    """Runs of one structure that differ in seed and learning rate alone."""

    structure: Structure
    data: Synthetic
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    """One for each seed, sorted: neighbours of one rate are updated together."""
    tower: tuple[int, ...]
    steps: int
    batch: int
    standardise: bool
    biases: bool = False
    """Whether experts, or what stands in their place, have any; towers do, and gates do not."""
    pool: int | None = None
    """Rows that a run has to be trained on; endless ones where None."""
    glorot: bool = False
    """Whether weights begin as Glorot and Bengio (2010) have them, with biases of 0, as in TensorFlow; or as in
    PyTorch."""

    def toy(self) -> Toy:
        """A model with first weights of its own."""
        toy = Toy(self.structure, self.data.size, len(self.data.task_names), self.tower)
        if not self.biases:
            _take_biases(toy)
        return _glorot(toy) if self.glorot else toy

    def multiply_adds(self) -> int:
        """Of one row, forwards."""
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return self.toy().multiply_adds()


class Trained(NamedTuple):
    """What R runs left. Losses are mean squared errors, of labels as the networks see them."""

    curves: Tensor
    """(R, steps / 100, T) mean training loss of every 100 steps; no row is trained on twice, so it is a fair one."""
    losses: Tensor
    """(R, T) on held-out rows, at the end."""
    gates: tuple[Tensor, ...]
    """Of each level, on the held-out rows: (R, rows, readers, sources)."""
    seconds: float


def train_toys(training: Training, checkpoint: Path, device: torch.device) -> Trained:
    """Train all runs as one stack (``Replicas``), or go on from ``checkpoint``, which is removed when it is over.

    Raises ``Interrupted`` where a signal asked to stop, after saving what was reached.
    """
    draws = Draws(training.data, training.seeds, standardise=training.standardise, pool=training.pool)
    work = _Work(training, draws, device)
    if checkpoint.is_file():
        work.restore(checkpoint)
    with Interrupts() as interrupts, asleep_beside_others(), flushed():
        batches = work.batches()
        began = time.perf_counter()
        try:
            for rows in batches:
                work.step(rows)
                if interrupts.asked:
                    work.seconds += time.perf_counter() - began
                    work.save(checkpoint)
                    raise Interrupted(f"stopped at step {work.done} of {training.steps}")
        finally:
            batches.close()
    work.seconds += time.perf_counter() - began
    trained = work.trained()
    checkpoint.unlink(missing_ok=True)
    return trained


class _Work:
    """A training in progress."""

    def __init__(self, training: Training, draws: Draws, device: torch.device) -> None:
        self.training, self.draws, self.device = training, draws, device
        tasks = len(training.data.task_names)
        with torch.random.fork_rng(devices=[]):
            modules = []
            for seed in training.seeds:
                torch.manual_seed(seed)
                modules.append(training.toy().to(device))
        options = Optimizer(name="adam", weight_decay=0.0, schedule="constant")
        self.replicas = Replicas(modules, _squares, options, rates=training.rates)
        self.curves = torch.zeros(len(modules), training.steps // TICK, tasks, device=device)
        self.done, self.seconds = 0, 0.0
        rows = BLOCK_BYTES // (4 * training.data.size * len(modules) * training.batch)
        self.block = max(1, min(rows, training.steps))

    def batches(self) -> Generator[Rows]:
        """What is left to train on, drawn on another thread: x (R, B, d) and y (R, B, T)."""
        training, first = self.training, self.done

        def blocks() -> Generator[Rows]:
            for block in range(first // self.block, -(-training.steps // self.block)):
                yield self.draws.train(block, self.block, training.batch)

        made = ahead(blocks())
        try:
            step = first // self.block * self.block
            for rows in made:
                x, y = rows.x.to(self.device), rows.y.to(self.device)
                for at in range(self.block):
                    if first <= step < training.steps:
                        yield Rows(x[:, at], y[:, at])
                    step += 1
        finally:
            made.close()

    def step(self, rows: Rows) -> None:
        losses = self.replicas.step(rows.x, rows.y)  # (R, T)
        tick = self.done // TICK
        if tick < self.curves.shape[1]:
            self.curves[:, tick] += losses / TICK
        self.done += 1

    def trained(self) -> Trained:
        held = self.draws.held_out(HELD_OUT)
        predicted, gates = self.replicas.outputs(_read, held.x.to(self.device))
        losses = (predicted - held.y.to(self.device)).square().mean(1)
        return Trained(self.curves.cpu(), losses.cpu(), tuple(gate.cpu() for gate in gates), self.seconds)

    def save(self, path: Path) -> None:
        seen = self.replicas.seen
        state = {"done": self.done, "seconds": self.seconds, "training": repr(self.training), "seen": seen}
        save_checkpoint(path, self.replicas.tensors() | {"curves": self.curves}, state)

    def restore(self, path: Path) -> None:
        tensors, state = load_checkpoint(path)
        if state.get("training") != repr(self.training):
            raise RunError(f"{path} is of another training; delete it to begin this one anew")
        self.curves = tensors.pop("curves").to(self.device)
        self.done, self.seconds = state["done"], state["seconds"]
        on_device = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self.replicas.restore(on_device, range(len(self.training.seeds)), self.done, state.get("seen"))


def _take_biases(toy: Toy) -> None:
    for name, part in toy.named_modules():
        if name.startswith("sharing.") and isinstance(part, ParallelLinear):
            part.bias = None


def _glorot(toy: Toy) -> Toy:
    """Uniform weights of variance 2 / (inputs + outputs), biases 0."""
    for name, parameter in toy.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            outputs = 1 if name == "heads.weight" else parameter.shape[-2]
            bound = (6 / (parameter.shape[-1] + outputs)) ** 0.5
            nn.init.uniform_(parameter, -bound, bound)
    return toy


def _squares(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error of each task (T,), and their sum with the structure's penalty."""
    predicted, _, penalty = model(x)
    losses = (predicted - y).square().mean(0)
    return losses, losses.sum() + penalty


def _read(model: nn.Module, x: Tensor) -> Any:
    predicted, gates, _ = model(x)
    return predicted, gates
