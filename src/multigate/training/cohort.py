"""A cohort: experiments that differ in seed and learning rate alone, trained together on the same prepared rows."""

import math
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multigate.balance import Balancer
from multigate.batch import Batch
from multigate.data.ahead import ahead
from multigate.data.loader import Loader
from multigate.data.prepared import Prepared
from multigate.data.rows import cut, join, pick, pick_tasks, to_device
from multigate.errors import ExperimentError, RunError, shortage
from multigate.evaluate import Scored
from multigate.experiment import Experiment
from multigate.model import Model
from multigate.objective import Objective
from multigate.precision import multiplying
from multigate.run import METRICS, completed, difference, keep_history
from multigate.training.board import Board
from multigate.training.checkpoint import load_checkpoint, save_checkpoint
from multigate.training.diverged import diverged
from multigate.training.fit import Fit
from multigate.training.history import entry_of, line_of, tell, tell_of_precision, tensorboard, warn
from multigate.training.interrupts import Interrupted, Interrupts
from multigate.training.loop import CHECK_EVERY, Fitted
from multigate.training.progress import Reporter
from multigate.training.randomness import random_state, set_random_state
from multigate.training.replicas import Replicas
from multigate.training.sleeping import asleep_beside_others
from multigate.training.stacked_batches import in_front, stack_batches
from multigate.training.subnormal import flushed
from multigate.training.undisturbed import undisturbed

SCORED_AT_ONCE = 1 << 17
"""Rows, of all runs together, that are scored in one pass: what they make of them is in memory at once."""


class Replica(nn.Module):
    """A model, its objective and its balance: everything of one run that may be stacked."""

    def __init__(self, model: Model, objective: Objective, balance: Balancer, precision: str) -> None:
        super().__init__()
        self.model, self.objective, self.balance, self.precision = model, objective, balance, precision


def replica_loss(replica: Replica, batch: Batch) -> tuple[Tensor, Tensor]:
    """The losses (T,) of a batch, and what a step goes down: as in ``Fit.step``, without Gramians."""
    with multiplying(replica.precision, batch.numbers.device):
        outputs = replica.model(batch.numbers, batch.categories, batch.bags)
    losses = replica.objective(
        outputs.logits, batch.labels, batch.known, batch.weights,
        conditionals=outputs.conditionals, imputed=outputs.imputed,
    )  # fmt: skip
    present = (batch.known & (batch.weights > 0)).any(0)
    weights = replica.balance.weights(losses.detach(), None, present)
    return losses, (weights * losses).sum() + replica.balance.penalty(present) + outputs.penalty


def replica_outputs(replica: Replica, numbers: Tensor, categories: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and conditionals (B, O) in float32."""
    outputs = replica.model(numbers, categories)
    return outputs.logits.float(), outputs.conditionals.float()


class Cohort:
    """Several trainings in progress as one: what ``Fit`` is of one. Those that have stopped early are out of the stack.

    The one checkpoint is that of all; metrics and best weights are each run's own.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        prepared: Prepared,
        folders: Sequence[Path],
        checkpoint: Path,
        device: torch.device,
        tasks: Sequence[int] | None,
    ) -> None:
        self.experiments, self.prepared, self.checkpoint, self.device = experiments, prepared, checkpoint, device
        for one in experiments[1:]:
            changed = difference(_shared(experiments[0]), _shared(one))
            if changed:
                raise ExperimentError(
                    f"a cohort's experiments differ in seed and optimizer.learning_rate alone; found {changed}"
                )
        self.runs: list[Fit] = []
        for experiment, folder in zip(experiments, folders, strict=True):
            torch.manual_seed(experiment.seed)  # weights begin as those of a run alone
            self.runs.append(Fit(experiment, prepared, folder, device, tasks))
        first = self.runs[0]
        if first.experiment.warm_start is not None:
            raise ExperimentError("a cohort trains every model from the start; leave warm_start out")
        if first.tables.weights:
            raise ExperimentError("a cohort cannot train tables with an optimiser of their own; set embedding to dense")
        self.replicas = Replicas(
            [_replica(run) for run in self.runs],
            replica_loss,
            first.experiment.optimizer,
            rates=[run.experiment.optimizer.rate() for run in self.runs],
            steps=first.steps,
        )
        for run in self.runs:
            run.loader.prefetch = False  # one thread makes the batches of all
        self._tasks = tasks
        self._whole: Batch | None = None
        self.per_epoch = len(first.loader)
        self.epoch = 0
        self.losses = self._no_losses()
        """Sums of the task losses over the epoch so far, of the runs in the stack, (runs, T)."""
        self.boards: dict[int, Board | None] = {}
        self.left_open = ExitStack()
        """What is to be closed once training has ended, however it does."""

    @property
    def active(self) -> list[int]:
        """The runs in the stack."""
        return self.replicas.active

    def step(self, batch: Batch) -> Tensor:
        """One step of all; returns their losses (runs, T), still on the device."""
        losses = self.replicas.step(to_device(batch, self.device))
        self.losses.add_(losses, alpha=batch.labels.shape[1] / self.runs[0].loader.batch_size)
        for run in self.active:
            self.runs[run].step_done += 1
        return losses

    def batches(self, start: int) -> Generator[Batch]:
        """Stacked batches (runs, B, ...) of the epoch from step ``start`` on, each run's rows in its own order."""
        loaders = [self.runs[run].loader for run in self.active]
        orders = [loader.order(self.epoch) for loader in loaders]
        places = [order for order in orders if order is not None]
        made = self._from_one(places, start) if len(places) == len(loaders) else self._from_each(loaders, start)
        return made if loaders[0].device.type != "cpu" else ahead(made)

    def _from_one(self, orders: Sequence[Tensor], start: int) -> Generator[Batch]:
        """Where all rows are in memory: those of every run are taken at once."""
        if self._whole is None:
            whole = join(list(self.prepared.train.shards))
            whole = whole if self._tasks is None else pick_tasks(whole, self._tasks)
            self._whole = to_device(whole, self.runs[0].loader.device)
        places, size = torch.stack(list(orders)).to(self._whole.numbers.device), self.runs[0].loader.batch_size
        for first in range(start * size, places.shape[1], size):
            rows = places[:, first : first + size].flatten()
            yield in_front(pick(self._whole, rows), len(orders))

    def _from_each(self, loaders: Sequence[Loader], start: int) -> Generator[Batch]:
        each = [loader.epoch(self.epoch, start=start) for loader in loaders]
        for batches in zip(*each, strict=True):
            yield stack_batches(batches)

    def end_epoch(self, report: Reporter) -> None:
        """Score every run, keep its best weights, and take out of the stack those that are finished."""
        known = self.scored() if self.device.type == "cuda" and self._may_be_scored() else [None] * len(self.active)
        for at, number in enumerate(list(self.active)):
            run = self.runs[number]
            self._bring_back(number)
            run.losses = self.losses[at]
            scored = run.evaluate(known[at])
            if self.epoch == 0 and at == 0:  # the rows are those of all
                warn(run, report)
            entry = entry_of(run, scored)
            tell(run, entry)
            run.balance.after_epoch(run.mean_losses)
            self.replicas.put(number, {f"balance.{name}": t for name, t in run.balance.state_dict().items()})
            self._draw(number, entry)
            run.epoch += 1
            report.detail(f"seed {run.experiment.seed}  {line_of(run, scored)}")
        self.epoch += 1
        self.replicas.stop([number for number in self.active if self.runs[number].finished])
        self.losses = self._no_losses()
        self.save()

    def _may_be_scored(self) -> bool:
        """Whether the stack holds the weights that are kept, and reads what all of its runs may read at once."""
        return self.replicas.average is None and not self.prepared.layout.bags

    def scored(self) -> list[Scored]:
        """What the runs in the stack make of the validation rows; each alone would wait for the GPU at every batch."""
        runs, size = len(self.active), max(1, SCORED_AT_ONCE // len(self.active))
        batches = list(self.runs[0].validation())
        made: list[tuple[Tensor, Tensor]] = []
        for batch in batches:
            for start in range(0, batch.rows, size):
                piece = to_device(cut(batch, start, min(start + size, batch.rows)), self.device)
                read = (piece.numbers.expand(runs, -1, -1), piece.categories.expand(runs, -1, -1))
                made.append(self.replicas.outputs(replica_outputs, *read))
        logits, conditionals = (torch.cat(parts, 1).cpu().numpy() for parts in zip(*made, strict=True))
        rows = join(batches)
        shared = (rows.labels, rows.known, rows.weights, rows.groups)
        return [Scored(logits[at], conditionals[at], *(one.numpy() for one in shared)) for at in range(runs)]

    def _bring_back(self, number: int) -> None:
        """The weights of one run, and their average, from the stack into its own model."""
        run, state = self.runs[number], self.replicas.state(number)
        _replica(run).load_state_dict(state)
        if run.average is not None:
            averages = self.replicas.averages(number)
            run.average.values = [averages[f"model.{name}"].clone() for name, _ in run.model.named_parameters()]

    def _draw(self, number: int, entry: dict[str, Any]) -> None:
        if number not in self.boards:
            self.boards[number] = self.left_open.enter_context(tensorboard(self.runs[number].folder))
        board = self.boards[number]
        if board is not None:
            board.draw({**entry["train"], **entry["valid"]}, entry["step"])

    def _no_losses(self) -> Tensor:
        return torch.zeros(len(self.active), len(self.runs[0].tasks), device=self.device)

    def save(self) -> None:
        tensors = (
            {f"replicas/{name}": tensor for name, tensor in self.replicas.tensors().items()} if self.active else {}
        )
        tensors |= random_state(self.device) | {"losses": self.losses}
        moving = ("step_done", "epoch", "best_value", "best", "stale", "seconds")
        state = {
            "active": self.active,
            "step": self.replicas.step_done,
            "seen": self.replicas.seen,
            "epoch": self.epoch,
            "runs": [{name: getattr(run, name) for name in moving} for run in self.runs],
            "prepared": self.prepared.content,
            "experiments": [one.to_dict(full=True) for one in self.experiments],
        }
        save_checkpoint(self.checkpoint, tensors, state)

    def stopped(self) -> Interrupted:
        """What is said once the state is saved because a signal asked for it."""
        return Interrupted(f"stopped at step {self.replicas.step_done} of {self.runs[0].steps}")

    def restore(self) -> None:
        """Put everything back as it was when the checkpoint was saved; ``RunError`` where it does not belong here."""
        tensors, state = load_checkpoint(self.checkpoint)
        # of another number of experiments the lists differ, which is told
        before = [completed(*both) for both in zip(state.get("experiments", ()), self.experiments, strict=False)]
        changed = difference(before, [one.to_dict(full=True) for one in self.experiments])
        if changed:
            raise RunError(f"{self.checkpoint} is of other experiments ({changed}); delete it to train these anew")
        if not self.prepared.is_known_as(state.get("prepared")):
            raise RunError(f"the tables changed since {self.checkpoint} was saved; train them in another folder")
        try:
            named = {
                name.removeprefix("replicas/"): tensor.to(self.device)
                for name, tensor in tensors.items()
                if name.startswith("replicas/")
            }
            self.replicas.restore(named, state["active"], state["step"], state.get("seen"))
            self.epoch, self.losses = state["epoch"], tensors["losses"].to(self.device)
            for run, moved in zip(self.runs, state["runs"], strict=True):
                for name, value in moved.items():
                    setattr(run, name, value)
                keep_history(run.folder / METRICS, run.step_done, self.epoch)
                run.check_best()
            set_random_state(tensors, self.device)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            if shortage(error) is not None:
                raise
            if isinstance(error, RunError):
                raise
            reason = " ".join(str(error).split())[:120]
            raise RunError(f"checkpoint {self.checkpoint} does not fit its runs ({reason}); delete it") from error

    def finished(self) -> list[Fitted]:
        """Every run with its best weights."""
        found = []
        for run in self.runs:
            run.finish()
            rows = self.prepared.train.rows * run.step_done / self.per_epoch
            found.append(Fitted(run.model, run.best, run.epoch, rows / max(run.seconds, 1e-9), run.seconds))
        return found


def fit_cohort(
    experiments: Sequence[Experiment],
    prepared: Prepared,
    folders: Sequence[Path],
    checkpoint: Path,
    *,
    device: torch.device,
    report: Reporter,
    tasks: Sequence[int] | None = None,
) -> list[Fitted]:
    """Train experiments together, each keeping metrics and best weights in a folder of its own, as ``fit`` does.

    They may differ in ``seed`` and ``optimizer.learning_rate``. Each begins with the weights and reads the rows in the
    order it would alone, and stops by its own patience; dropout's draws are others. Where the file ``checkpoint`` is
    there they go on from it. The seconds of a run are its share of those of all. The caller's random state is left
    alone. Where another thread is training, it waits until that is done.

    Raises ``Interrupted`` after saving where a signal asked to stop, ``Diverged`` where a loss stops being a number.
    """
    with undisturbed(device), asleep_beside_others(), Interrupts() as interrupts:
        cohort = Cohort(experiments, prepared, folders, checkpoint, device, tasks)
        tell_of_precision(cohort.runs[0], report)
        torch.manual_seed(experiments[0].seed)
        with cohort.left_open:
            if checkpoint.is_file():
                cohort.restore()
            else:
                for folder in folders:
                    (folder / METRICS).unlink(missing_ok=True)
            while cohort.epoch < experiments[0].epochs and cohort.active:
                _run_epoch(cohort, report, interrupts)
                cohort.end_epoch(report)
                if interrupts.asked:
                    raise cohort.stopped()
            return cohort.finished()


@flushed()
def _run_epoch(cohort: Cohort, report: Reporter, interrupts: Interrupts) -> None:
    """The rest of the current epoch, from the step the cohort has reached."""
    rows, size = cohort.prepared.train.rows, cohort.runs[0].loader.batch_size
    start = cohort.replicas.step_done - cohort.epoch * cohort.per_epoch
    stage = f"{len(cohort.active)} runs, epoch {cohort.epoch + 1}/{cohort.experiments[0].epochs}"
    began = time.perf_counter()
    batches = cohort.batches(start)
    try:
        for number, batch in enumerate(batches, start + 1):
            losses = cohort.step(batch)
            if number % CHECK_EVERY == 0 or number == cohort.per_epoch:
                _check_finite(cohort, losses)
                report(stage, min(number * size, rows), rows)
            if interrupts.asked:
                break
    finally:
        batches.close()
    seconds = time.perf_counter() - began
    for run in cohort.active:
        cohort.runs[run].seconds += seconds / len(cohort.active)
    if interrupts.asked:
        cohort.save()
        raise cohort.stopped()


def _check_finite(cohort: Cohort, losses: Tensor) -> None:
    for run, total in zip(cohort.active, losses.sum(1).tolist(), strict=True):
        if not math.isfinite(total):
            experiment, step = cohort.experiments[run], cohort.replicas.step_done
            raise diverged(f"the loss of seed {experiment.seed} is no longer a number at step {step}", experiment)


def _replica(run: Fit) -> Replica:
    return Replica(run.model, run.objective, run.balance, run.precision)


def _shared(experiment: Experiment) -> dict[str, Any]:
    """What the experiments of a cohort have in common."""
    values = experiment.to_dict(full=True)
    return values | {"seed": None, "optimizer": values["optimizer"] | {"learning_rate": None}}
