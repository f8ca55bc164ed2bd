"""The training loop: fit a model to prepared rows, keep the best weights, and go on exactly where it stopped."""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from multigate.balance import task_gramian
from multigate.batch import Batch
from multigate.bundle import ROWS, Bundle, build_model
from multigate.data.loader import Loader
from multigate.data.prepared import Prepared
from multigate.data.rows import pick_tasks
from multigate.errors import ExperimentError, RunError
from multigate.evaluate import Monitor, forward, scores, spaces, to_device
from multigate.experiment import Experiment
from multigate.model import Model
from multigate.objective import Objective
from multigate.run import METRICS, difference, read_history, strict
from multigate.training.allocator import keep_freed_memory
from multigate.training.checkpoint import (
    load_checkpoint,
    load_weights,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from multigate.training.interrupts import Interrupted, Interrupts
from multigate.training.optimizers import Average, build_optimizer, clip, rate_at
from multigate.training.progress import Reporter
from multigate.training.tables import TableOptimizer, large_tables
from multigate.training.warm_start import start_from
from multigate.writing import told, write_text, writing

CHECKPOINT, BEST = "checkpoint.safetensors", "best.safetensors"
STEPS = 150
"""Steps an epoch that a small table's batches are made small enough for."""
CHECK_EVERY = 64
"""Steps between looks at whether the loss is still a number (a look waits for the device)."""


class Fitted(NamedTuple):
    """What a training leaves: the model with its best weights, their validation metrics, and the way there."""

    model: Model
    best: dict[str, float]
    epochs: int
    rows_per_second: float
    seconds: float


def choose_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises ``ExperimentError`` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ExperimentError("device 'cuda': no CUDA device is available here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise ExperimentError(f"device {name!r}: choose cpu, cuda or auto")
    return torch.device(name)


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
        self.experiment, self.prepared, self.folder, self.device = experiment, prepared, folder, device
        schema = experiment.schema
        self.tasks = list(tasks if tasks is not None else range(len(schema.tasks)))
        self.schema = schema if tasks is None else schema.only([schema.tasks[i].name for i in tasks])
        self.monitor = Monitor(experiment.monitor, self.schema)
        self.model = build_model(experiment, prepared.encoder, tasks).to(device)
        self.objective = Objective([prepared.layout.tasks[i] for i in self.tasks], self.schema.risks()).to(device)
        self.balance = experiment.balance.build(self.schema.tasks).to(device)
        self.tables = TableOptimizer(large_tables(self.model, experiment.optimizer), experiment.optimizer)
        self.optimizer = build_optimizer(self.model, self.balance, experiment.optimizer, but=self.tables.weights)
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        decay, own = experiment.optimizer.average, {id(weight) for weight in self.tables.weights}
        averaged = (p for p in self.model.parameters() if id(p) not in own)
        self.average = Average(averaged, decay) if decay else None
        size = _batch_size(experiment.batch_size, prepared.train.rows)
        self.loader = Loader(prepared.train, size, seed=experiment.seed, tasks=tasks)
        self.steps = experiment.epochs * len(self.loader)
        self.precision = _precision(experiment.precision, device)
        self.step_done = 0
        self.epoch = 0
        self.best_value = -math.inf
        self.best: dict[str, float] = {}
        self.stale = 0
        self.seconds = 0.0
        self.losses = torch.zeros(len(self.tasks), device=device)
        """Sum of the task losses over the epoch so far."""

    def step(self, batch: Batch) -> Tensor:
        """One step down the weighted losses; returns the loss, still on the device."""
        batch = to_device(batch, self.device)
        draws = _random_state(self.device) if self.balance.looks_back else {}
        losses, penalty, x = self._losses(batch)
        present = batch.known.any(0)
        due = self.balance.needs_gramian and self.step_done % self.balance.every == 0
        gramian = task_gramian(losses, x) if due else None
        weights = self.balance.weights(losses.detach(), gramian, present)
        loss: Tensor = (weights * losses).sum() + self.balance.penalty(present) + penalty
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        touched = self.tables.touched()
        options = self.experiment.optimizer
        if options.clip is not None:
            dense = [p.grad for p in self.trained if p.grad is not None]
            clip([*dense, *(one.gradient for one in touched if one is not None)], options.clip)
        rate = rate_at(options, self.step_done, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.tables.step(touched, rate)
        if self.average is not None:
            self.average.update()
        if self.balance.looks_back:
            _set_random_state(draws, self.device)  # the same dropout masks: only the step makes a difference
            with torch.no_grad():
                after, _, _ = self._losses(batch)
            self.balance.after_step(losses.detach(), after, present)
        self.losses += losses.detach()
        self.step_done += 1
        return loss

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (T,) of a batch, the structure's penalty, and the x they come from."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"):
            seen = self.model.represent(batch.numbers, batch.categories, batch.bags)
            if self.balance.needs_gramian and not seen.x.requires_grad:  # nothing is embedded
                seen.x.requires_grad_()
            outputs = self.model.decide(seen)
        losses = self.objective(
            outputs.logits, batch.labels, batch.known, batch.weights,
            conditionals=outputs.conditionals, imputed=outputs.imputed,
        )  # fmt: skip
        return losses, outputs.penalty, seen.x

    def evaluate(self) -> dict[str, float]:
        """Validation metrics of the weights as they would be kept."""
        if self.average is not None:
            self.average.swap()
        looked_at = self.prepared.valid.sample(ROWS, self.experiment.valid_rows)
        scored = forward(self.model, (pick_tasks(batch, self.tasks) for batch in looked_at), self.device)
        metrics = scores(spaces(self.schema, self.prepared.encoder, scored, self.tasks))
        value = self.monitor.value(metrics)
        if math.isnan(value):
            raise RunError(
                f"monitor {self.monitor.name!r} cannot be computed on the validation rows: their labels are all alike, "
                "unknown, of weight 0 or too few; choose other validation rows or another monitor"
            )
        if not self.best or value > self.best_value:
            self.best_value, self.best, self.stale = value, metrics, 0
            with writing(self.folder / BEST) as temporary:
                save_file(_weights(self.model), temporary)
        else:
            self.stale += 1
        if self.average is not None:
            self.average.swap()
        return metrics

    def save(self) -> None:
        tensors = {f"model/{name}": tensor for name, tensor in _weights(self.model).items()}
        tensors |= {f"balance/{name}": tensor for name, tensor in self.balance.state_dict().items()}
        tensors |= optimizer_tensors(self.optimizer)
        tensors |= {f"tables/{name}": tensor for name, tensor in self.tables.tensors().items()}
        tensors |= _random_state(self.device) | {"losses": self.losses}
        if self.average is not None:
            tensors |= {f"average/{i}": tensor for i, tensor in enumerate(self.average.values)}
        state = {
            "step": self.step_done,
            "epoch": self.epoch,
            "best_value": self.best_value,
            "best": self.best,
            "stale": self.stale,
            "seconds": self.seconds,
            "prepared": self.prepared.manifest["key"],
            "experiment": self.experiment.to_dict(full=True),
            "average_steps": self.average.steps if self.average is not None else 0,
        }
        save_checkpoint(self.folder / CHECKPOINT, tensors, state)

    def stopped(self) -> Interrupted:
        """What is said once the state is saved because a signal asked for it."""
        return Interrupted(f"stopped at step {self.step_done} of {self.steps}")

    def restore(self) -> None:
        """Put everything back as it was when the checkpoint was saved; ``RunError`` where it does not belong here."""
        tensors, state = load_checkpoint(self.folder / CHECKPOINT)
        changed = difference(state.get("experiment"), self.experiment.to_dict(full=True))
        if changed:
            raise RunError(
                f"the experiment changed since the run in {self.folder} began ({changed}); "
                "change it back, or train in another folder"
            )
        if state.get("prepared") != self.prepared.manifest["key"]:
            raise RunError(f"the tables changed since the run in {self.folder} began; train them in another folder")
        try:
            self._put_back(tensors, state)
            if self.best:
                load_weights(self.folder / BEST, self.device)  # told now, not when training is over
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise RunError(
                f"checkpoint {self.folder / CHECKPOINT} does not fit its run ({reason}); start again in another folder"
            ) from error

    def _put_back(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        named = {name: t.to(self.device) for name, t in tensors.items() if not name.startswith("random")}
        self.model.load_state_dict({k.removeprefix("model/"): v for k, v in named.items() if k.startswith("model/")})
        self.balance.load_state_dict(
            {k.removeprefix("balance/"): v for k, v in named.items() if k.startswith("balance/")}
        )
        restore_optimizer(self.optimizer, named)
        self.tables.restore({k.removeprefix("tables/"): v for k, v in named.items() if k.startswith("tables/")})
        if self.average is not None:
            self.average.values = [named[f"average/{i}"] for i in range(len(self.average.values))]
            self.average.steps = state["average_steps"]
        self.losses = named["losses"]
        self.step_done, self.epoch = state["step"], state["epoch"]
        self.best_value, self.best, self.stale = state["best_value"], state["best"], state["stale"]
        self.seconds = state["seconds"]
        _set_random_state(tensors, self.device)
        _keep_lines(self.folder / METRICS, self.step_done)


Observe = Callable[[Fit, Batch], None]
"""Looks at a training before a step, with the batch of that step on its device."""


def fit(
    experiment: Experiment,
    prepared: Prepared,
    folder: Path,
    *,
    device: torch.device,
    report: Reporter,
    tasks: Sequence[int] | None = None,
    start: Bundle | None = None,
    resume: bool = False,
    observe: Observe | None = None,
) -> Fitted:
    """Train, keeping checkpoint, metrics and best weights in ``folder``; the caller's random state is left alone.

    The weights of ``start``, if given, are where training begins, and the first that may be kept. ``observe`` is called
    before each step with the training and the batch; what it draws does not count, and it changes nothing.

    Raises ``Interrupted`` after saving where a signal asked to stop, ``RunError`` where the loss stops being a number.
    """
    with torch.random.fork_rng(devices=_cuda(device)), Interrupts() as interrupts:
        torch.manual_seed(experiment.seed)
        keep_freed_memory()
        fitting = Fit(experiment, prepared, folder, device, tasks)
        if resume and (folder / CHECKPOINT).is_file():
            fitting.restore()
        else:
            (folder / METRICS).unlink(missing_ok=True)
            if start is not None:
                start_from(fitting.model, start)
                metrics = _named(fitting.evaluate())
                _tell(fitting, {"epoch": 0, "step": 0, "seconds": 0.0, "train": {}, "valid": metrics})
        board = None
        fitting.model.train()
        while fitting.epoch < experiment.epochs and not _finished(fitting):
            _run_epoch(fitting, report, interrupts, observe)
            scored = fitting.evaluate()
            entry = _entry(fitting, scored)
            _tell(fitting, entry)
            fitting.balance.after_epoch(fitting.losses / len(fitting.loader))
            board = board or _tensorboard(folder)
            for name, value in {**entry["train"], **entry["valid"]}.items() if board is not None else ():
                if value is not None:
                    board.add_scalar(name, value, fitting.step_done)
            fitting.epoch += 1
            fitting.losses.zero_()
            fitting.save()
            report.detail(_line(fitting, scored))
            if interrupts.asked:
                raise fitting.stopped()
        if board is not None:
            board.close()
        fitting.model.load_state_dict(load_weights(folder / BEST, device))
        rows = prepared.train.rows * fitting.step_done / len(fitting.loader)
        rows_per_second = rows / max(fitting.seconds, 1e-9)
        return Fitted(fitting.model, fitting.best, fitting.epoch, rows_per_second, fitting.seconds)


def _run_epoch(fitting: Fit, report: Reporter, interrupts: Interrupts, observe: Observe | None) -> None:
    """The rest of the current epoch, from the step the run has reached."""
    experiment, rows = fitting.experiment, fitting.prepared.train.rows
    per_epoch = len(fitting.loader)
    start = fitting.step_done - fitting.epoch * per_epoch
    stage = f"epoch {fitting.epoch + 1}/{experiment.epochs}"
    began = time.perf_counter()
    batches = fitting.loader.epoch(fitting.epoch, start=start)
    try:
        for number, batch in enumerate(batches, start + 1):
            if observe is not None:
                with torch.random.fork_rng(devices=_cuda(fitting.device)):
                    observe(fitting, to_device(batch, fitting.device))
            loss = fitting.step(batch)
            if number % CHECK_EVERY == 0 or number == per_epoch:
                if not math.isfinite(loss.item()):
                    raise RunError(
                        f"the loss is no longer a number at step {fitting.step_done}; lower optimizer.learning_rate "
                        f"(now {experiment.optimizer.learning_rate:g}), or set optimizer.clip=1 or precision=float32"
                    )
                report(stage, min(number * fitting.loader.batch_size, rows), rows)
            if interrupts.asked:
                break
    finally:
        batches.close()
    fitting.seconds += time.perf_counter() - began
    if interrupts.asked:
        fitting.save()
        raise fitting.stopped()


def _cuda(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators that a step on this device draws from."""
    state = {"random": torch.get_rng_state()}
    if device.type == "cuda":
        state["random/cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["random"])
    if "random/cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["random/cuda"], device)


def _finished(fitting: Fit) -> bool:
    patience = fitting.experiment.patience
    return patience is not None and fitting.stale >= patience


def _entry(fitting: Fit, metrics: dict[str, float]) -> dict[str, Any]:
    """What an epoch leaves in metrics.jsonl."""
    losses = (fitting.losses / len(fitting.loader)).tolist()
    return {
        "epoch": fitting.epoch + 1,
        "step": fitting.step_done,
        "seconds": round(fitting.seconds, 3),
        "train": {f"train/{task.name}/loss": loss for task, loss in zip(fitting.schema.tasks, losses, strict=True)},
        "valid": _named(metrics),
    }


def _named(metrics: dict[str, float]) -> dict[str, float | None]:
    return {f"valid/{name}": value for name, value in strict(metrics).items()}


def _tell(fitting: Fit, entry: dict[str, Any]) -> None:
    path = fitting.folder / METRICS
    with told(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _line(fitting: Fit, metrics: dict[str, float]) -> str:
    """What an epoch says on the terminal."""
    shown = "  ".join(f"{name} {metrics[name]:.4f}" for name in fitting.monitor.main)
    mark = "  best" if fitting.stale == 0 else ""
    speed = fitting.prepared.train.rows * fitting.epoch / max(fitting.seconds, 1e-9)
    return f"epoch {fitting.epoch:>2}/{fitting.experiment.epochs}  {shown}  {speed:,.0f} rows/s{mark}"


def _batch_size(asked: int | None, rows: int) -> int:
    """What null means for so many training rows: enough steps an epoch to learn from a small table."""
    return asked or min(max(2 ** int(math.log2(max(rows // STEPS, 1))), 64), 1024)


def _precision(name: str, device: torch.device) -> str:
    """What ``auto`` means on this device."""
    if name != "auto":
        return name
    native = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"


def _weights(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _keep_lines(path: Path, step: int) -> None:
    """Drop metrics written after the checkpoint that is gone back to."""
    if path.is_file():
        kept = [entry for entry in read_history(path) if entry["step"] <= step]
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))


def _tensorboard(folder: Path) -> Any:
    """A TensorBoard writer where its extra is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
