"""One training in progress: everything that moves, a step of it, and how to save it and go on."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multigate.assembly import build_model
from multigate.balance import task_gramian
from multigate.batch import Batch
from multigate.bundle import ROWS
from multigate.data.loader import Loader
from multigate.data.prepared import Prepared
from multigate.data.rows import pick_tasks, to_device
from multigate.errors import RunError, shortage
from multigate.evaluate import Monitor, Scored, forward, scores, spaces
from multigate.experiment import Experiment
from multigate.objective import Objective
from multigate.precision import choose_precision, multiplying
from multigate.run import METRICS, completed, difference, keep_history
from multigate.training.checkpoint import (
    load_checkpoint,
    load_weights,
    origin_of_weights,
    save_checkpoint,
    save_weights,
)
from multigate.training.diverged import diverged
from multigate.training.intercepts import match_totals
from multigate.training.interrupts import Interrupted
from multigate.training.optimizers import Average, Rate, build_optimizer, clip, rate_at
from multigate.training.randomness import random_state, set_random_state
from multigate.training.rebuilt import check_rebuilt
from multigate.training.recorded import Recordings, may_be_recorded
from multigate.training.tables import TableOptimizer, large_tables
from multigate.unscored import NO_NUMBERS, listed_reasons, unscored

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
FAINT, VAST = 1e-4, 1e15
"""Mean weights that count as they are lie between these: of far smaller ones gradients are lost in Adam's epsilon, of
far larger ones their squares are beyond float32."""


class Fit:
    """One training in progress: everything that moves, and how to save and restore it.

    ``tasks`` are the places of the tasks to train among those prepared; all of them if None.
    """

    def __init__(
        self,
        experiment: Experiment,
        prepared: Prepared,
        folder: Path,
        device: torch.device,
        tasks: Sequence[int] | None,
    ) -> None:
        self.experiment = experiment = experiment.settled(prepared.train.rows)
        self.prepared, self.folder, self.device = prepared, folder, device
        schema = experiment.schema
        self.tasks = list(tasks if tasks is not None else range(len(schema.tasks)))
        self.schema = schema if tasks is None else schema.only([schema.tasks[i].name for i in tasks])
        self.monitor = Monitor(experiment.monitor, self.schema)
        self.model = build_model(experiment, prepared.encoder, tasks)
        check_rebuilt(self.model, experiment.sharing.for_tasks(self.schema.task_names), device)
        self.model.to(device)
        columns = [prepared.layout.tasks[i] for i in self.tasks]
        self.objective = Objective(columns, self.schema.risks(), self._unit()).to(device)
        self.balance = experiment.balance.build(self.schema.tasks).to(device)
        self.tables = TableOptimizer(large_tables(self.model, experiment.optimizer), experiment.optimizer)
        self.optimizer = build_optimizer(self.model, self.balance, experiment.optimizer, but=self.tables.weights)
        self.trained = self.optimizer.parameters
        decay, own = experiment.optimizer.average, {id(weight) for weight in self.tables.weights}
        averaged = (p for p in self.model.parameters() if id(p) not in own)
        self.average = Average(averaged, decay) if decay else None
        size = experiment.batch(prepared.train.rows)
        self.loader = Loader(prepared.train, size, seed=experiment.seed, tasks=tasks, device=device)
        self.steps = experiment.epochs * len(self.loader)
        self.precision = choose_precision(experiment.precision, device)
        self.rate = Rate(self.optimizer, device)
        self.recordings = Recordings() if self._may_be_recorded() else None
        self.step_done = 0
        self.epoch = 0
        self.best_value = -math.inf
        self.best: dict[str, float] = {}
        self.start_value = -math.inf
        """What the monitor says of the weights a warm start began with."""
        self.stale = 0
        self.seconds = 0.0
        self.losses = torch.zeros(len(self.tasks), device=device)
        """Sum of the task losses over the epoch so far, in whole batches: a last one of few rows is a part of one."""
        self.unscored: dict[str, str] = {}
        """Tasks and conditionals that the validation rows cannot score, and why; filled once they are looked at."""

    def _unit(self) -> float:
        """The weight of a label that counts as 1: the mean of the heaviest task, where that, times the task's own
        weight, is tiny or huge."""
        train, tasks = self.prepared.train, zip(self.tasks, self.schema.tasks, strict=True)
        counted = [(at, task) for at, task in tasks if task.weight > 0]
        means = [train.mean_weight(at) if task.sample_weight is not None else 1.0 for at, task in counted]
        weighed = [(mean * task.weight, mean) for mean, (_, task) in zip(means, counted, strict=True)]
        heaviest, mean = max(weighed, default=(1.0, 1.0))
        return 1.0 if heaviest == 0 or FAINT <= heaviest <= VAST else mean

    def step(self, batch: Batch) -> Tensor:
        """One step down the weighted losses; returns the loss, detached and still on the device."""
        batch = to_device(batch, self.device)
        draws = random_state(self.device) if self.balance.looks_back else {}
        self.rate.set(rate_at(self.experiment.optimizer, self.step_done, self.steps))
        held = self.recordings
        loss, losses = self._down(batch) if held is None else held.call(self._down, batch)
        if self.average is not None:
            self.average.update()
        if self.balance.looks_back:
            set_random_state(draws, self.device)  # the same dropout masks: only the step makes a difference
            with torch.no_grad():
                after, _, _ = self._losses(batch)
            self.balance.after_step(losses, after, _present(batch))
        self.losses.add_(losses, alpha=batch.labels.shape[0] / self.loader.batch_size)
        self.step_done += 1
        return loss

    def _down(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Move all weights; returns the loss, and the losses of the tasks (T,)."""
        losses, penalty, x = self._losses(batch)
        present = _present(batch)
        due = self.balance.needs_gramian and self.step_done % self.balance.every == 0
        gramian = task_gramian(losses, x) if due else None
        weights = self.balance.weights(losses.detach(), gramian, present)
        loss: Tensor = (weights * losses).sum() + self.balance.penalty(present) + penalty
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        touched = self.tables.touched()
        options = self.experiment.optimizer
        if options.clip is not None:
            dense = [p.grad for p in self.trained if p.grad is not None]
            clip([*dense, *(one.gradient for one in touched if one is not None)], options.clip)
        self.optimizer.step()
        self.tables.step(touched, self.rate.value)
        return loss.detach(), losses.detach()

    def _may_be_recorded(self) -> bool:
        """Whether a step is the same launches on a GPU each time."""
        alike = not (self.balance.needs_gramian or self.balance.looks_back or self.tables.weights)
        alike = alike and not self.prepared.layout.bags  # as many ids as there happen to be
        return self.device.type == "cuda" and alike and may_be_recorded(self.model, self.objective, self.balance)

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (T,) of a batch, the structure's penalty, and the x they come from."""
        with multiplying(self.precision, self.device):
            apart = not self.balance.needs_gramian
            seen = self.model.represent(batch.numbers, batch.categories, batch.bags, apart=apart)
            if self.balance.needs_gramian and not seen.x.requires_grad:  # nothing is embedded
                seen.x.requires_grad_()
            outputs = self.model.decide(seen)
        losses = self.objective(
            outputs.logits, batch.labels, batch.known, batch.weights,
            conditionals=outputs.conditionals, imputed=outputs.imputed,
        )  # fmt: skip
        return losses, outputs.penalty, seen.x

    def validation(self) -> Iterator[Batch]:
        """The validation rows that are looked at after an epoch."""
        looked_at = self.prepared.looked_at(ROWS, self.experiment.valid_rows)
        return (pick_tasks(batch, self.tasks) for batch in looked_at)

    def evaluate(self, scored: Scored | None = None) -> dict[str, float]:
        """Validation metrics of the weights as they would be kept; ``scored``: what they make of the rows, if known."""
        if self.average is not None:
            self.average.swap()
        if scored is None:
            scored = forward(self.model, self.validation(), self.device)
        found = spaces(self.schema, self.prepared.encoder, scored, self.tasks)
        metrics = scores(found)
        self.unscored = unscored(found, metrics)
        value = self.monitor.choice(metrics)
        if math.isnan(value):
            raise self._no_choice()
        if not self.best or value > self.best_value:
            self.best_value, self.best, self.stale = value, metrics, 0
            save_weights(self.folder / BEST, self.model.state_dict(), self.step_done)
        else:
            self.stale += 1
        if self.average is not None:
            self.average.swap()
        return metrics

    def finish(self) -> None:
        """Put the best weights into the model, their intercepts matched, and score those."""
        self.model.load_state_dict(load_weights(self.folder / BEST, self.device))
        begun_with = self.experiment.warm_start is not None and self.stale == self.epoch
        if self.experiment.optimizer.intercepts == "trained" or begun_with:
            return
        step, matched = origin_of_weights(self.folder / BEST)
        if not matched:  # they are where a process ended after this and before the bundle was there
            self._match()
            save_weights(self.folder / BEST, self.model.state_dict(), step, matched=True)
        self.best = self._scores()

    def _match(self) -> None:
        """Match the intercepts, unless a warm start would end up worse than it began: where its training rows are at
        another level than the validation rows."""
        bias = self.model.heads.bias.data
        trained, columns = bias.clone(), [self.prepared.layout.tasks[i] for i in self.tasks]
        match_totals(self.model, self.schema, columns, self.prepared.train, self.tasks, self.device)
        if self.start_value > -math.inf and self.monitor.choice(self._scores()) < self.start_value:
            bias.copy_(trained)

    def _scores(self) -> dict[str, float]:
        """Metrics of the weights on the validation rows."""
        seen = forward(self.model, self.validation(), self.device)
        return scores(spaces(self.schema, self.prepared.encoder, seen, self.tasks))

    def _no_choice(self) -> RunError:
        """What is said where nothing tells which weights are best."""
        name = self.monitor.name
        if name == "mean":
            among, advice = {one.rpartition("/")[0] for one in self.monitor.main}, "choose other validation rows"
        else:
            among, advice = {name.partition("/")[0]}, "choose other validation rows or another monitor"
        reasons = {task: why for task, why in self.unscored.items() if task in among}
        if NO_NUMBERS in reasons.values():
            found = f"predictions of the validation rows are no longer numbers after step {self.step_done}"
            return diverged(found, self.experiment)
        because = listed_reasons(reasons) or "no group of theirs has labels of both classes"  # of gauc alone
        return RunError(f"monitor {name!r} cannot be computed on the validation rows: {because}; {advice}")

    def save(self) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"balance/{name}": tensor for name, tensor in self.balance.state_dict().items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.tensors().items()}
        tensors |= {f"tables/{name}": tensor for name, tensor in self.tables.tensors().items()}
        tensors |= random_state(self.device) | {"losses": self.losses}
        if self.average is not None:
            tensors |= {f"average/{i}": tensor for i, tensor in enumerate(self.average.values)}
        state = {
            "step": self.step_done,
            "epoch": self.epoch,
            "best_value": self.best_value,
            "best": self.best,
            "start_value": self.start_value,
            "stale": self.stale,
            "seconds": self.seconds,
            "prepared": self.prepared.content,
            "experiment": self.experiment.to_dict(full=True),
            "average_steps": self.average.steps if self.average is not None else 0,
        }
        save_checkpoint(self.folder / CHECKPOINT, tensors, state)

    @property
    def mean_losses(self) -> Tensor:
        """Task losses (T,) of an epoch that is done, the mean over its rows."""
        return self.losses / (self.prepared.train.rows / self.loader.batch_size)

    @property
    def recorded(self) -> bool:
        """Whether steps were recorded, as they are on a GPU."""
        return self.recordings is not None and self.recordings.done

    @property
    def finished(self) -> bool:
        """Whether it is at its end, or was without a better epoch for too long."""
        patience = self.experiment.patience
        return self.epoch >= self.experiment.epochs or (patience is not None and self.stale >= patience)

    def stopped(self) -> Interrupted:
        """What is said once the state is saved because a signal asked for it."""
        return Interrupted(f"stopped at step {self.step_done} of {self.steps}")

    def restore(self) -> None:
        """Put everything back as it was when the checkpoint was saved; ``RunError`` where it does not belong here."""
        tensors, state = load_checkpoint(self.folder / CHECKPOINT)
        before = completed(state.get("experiment"), self.experiment)
        changed = difference(before, self.experiment.to_dict(full=True))
        if changed:
            raise RunError(
                f"the experiment changed since the run in {self.folder} began ({changed}); "
                "change it back, or train in another folder"
            )
        if not self.prepared.is_known_as(state.get("prepared")):
            raise RunError(f"the tables changed since the run in {self.folder} began; train them in another folder")
        try:
            self._put_back(tensors, state)
            self.check_best()
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            if shortage(error) is not None:
                raise
            reason = " ".join(str(error).split())[:120]
            raise RunError(
                f"checkpoint {self.folder / CHECKPOINT} does not fit its run ({reason}); start again in another folder"
            ) from error

    def check_best(self) -> None:
        """Hold the best weights against the state that was gone back to. Raises ``RunError`` where they are damaged:
        now, not when training is over.

        Those of a later epoch were saved just before their state would have been, over those that the state tells of.
        What comes next is better then, as it was: on a GPU, or with other threads, its numbers may not be the same.
        """
        if self.best:
            load_weights(self.folder / BEST, self.device)
            if origin_of_weights(self.folder / BEST)[0] > self.step_done:
                self.best_value, self.best = -math.inf, {}

    def _put_back(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        named = {name: t.to(self.device) for name, t in tensors.items() if not name.startswith("random")}
        self.model.load_state_dict({k.removeprefix("model/"): v for k, v in named.items() if k.startswith("model/")})
        self.balance.load_state_dict(
            {k.removeprefix("balance/"): v for k, v in named.items() if k.startswith("balance/")}
        )
        for part, optimizer in (("optimizer/", self.optimizer), ("tables/", self.tables)):
            optimizer.restore({k.removeprefix(part): v for k, v in named.items() if k.startswith(part)})
        if self.average is not None:
            self.average.values = [named[f"average/{i}"] for i in range(len(self.average.values))]
            self.average.steps = state["average_steps"]
        self.losses = named["losses"]
        self.step_done, self.epoch = state["step"], state["epoch"]
        self.best_value, self.best, self.stale = state["best_value"], state["best"], state["stale"]
        self.start_value = state.get("start_value", -math.inf)  # older ones do not tell
        self.seconds = state["seconds"]
        set_random_state(tensors, self.device)
        keep_history(self.folder / METRICS, self.step_done, self.epoch)


def _present(batch: Batch) -> Tensor:
    """Tasks with a label in the batch (T,)."""
    return (batch.known & (batch.weights > 0)).any(0)
