"""A GPU: whether it computes what the processor does, and how fast, beside what it can do. One call, some minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --quick

Checks come first. In float32, without TF32, dropout or unseen ids, from the same weights on the same batches: the
losses of every structure and every balance over ten steps, of embedding tables with an optimiser of their own, of runs
stacked as one, and of a training that is put back from its checkpoint; where a structure draws random numbers on the
device, its scores; with all that draws and follows a schedule, steps that are recorded beside steps that are launched.
Then times: ceilings of matmuls and memory, the tutorial's MMoE as the tutorial has it and as it is here (batches on the
device, and from the loader), and stacks of it. ``--device cpu`` is for trying the script: it compares the processor
with itself.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import multigate as mg
from machine import describe
from multigate.balance import BALANCES
from multigate.batch import Batch
from multigate.data.prepared import Prepared
from multigate.data.rows import to_device
from multigate.evaluate import forward
from multigate.experiment import Optimizer
from multigate.nn.embed import Embedding
from multigate.sharing import STRUCTURES, VARIANTS
from multigate.training.cohort import Cohort
from multigate.training.fit import Fit
from multigate.training.recorded import OFF
from results import show, table
from roofline import step_multiply_adds
from steps import CPU, begun, prepared_rows
from tutorial import MMoE as Tutorial
from zipf import Law, draw, schema

LAW = Law(columns=32, vocabulary=3_200, numbers=8, tasks=2)
"""As wide as Census-Income: 264 inputs with embeddings of 8."""
BATCH, SIZES, STEPS = 1024, (1024, 8192, 65536), 10
CLOSE, KEPT = 1e-3, 1e-5
"""Relative difference of losses that counts as equal: after ten steps of two devices, and of one device."""
DRAWN = ("snr", "snr_aver", "mmoe_noisy_top_k")
"""Structures that draw on the device as they train."""
PRECISIONS = ("float32", "TF32", "bfloat16")
CENSUS = (7, 2, 400, 12 * 195)
"""Structures, groups, runs and steps of a run: the Census study as the paper has it, at batches of 1024."""


class Ground(NamedTuple):
    """What everything stands on: rows, a folder for what trainings keep, the device."""

    prepared: Prepared
    folder: Path
    device: torch.device

    def fit(self, one: mg.Experiment, device: torch.device | None = None) -> Fit:
        where = self.device if device is None else device
        return begun(one, self.prepared, Path(tempfile.mkdtemp(dir=self.folder)), where)


class Check(NamedTuple):
    """What was compared, the largest relative difference, and what is allowed."""

    name: str
    off: float
    most: float
    steps: str = ""

    @property
    def passed(self) -> bool:
        return self.off <= self.most  # not so where it is no number


def experiment(precision: str = "float32", batch: int = BATCH, **changes: object) -> mg.Experiment:
    """The tutorial's model and optimiser: see census.py."""
    base = mg.Experiment(
        schema=schema(LAW),
        sharing=mg.MMoE(experts=8, hidden=(128, 64)),
        tower=(32,),
        embedding=Embedding(dim=8, dropout=0.0, unseen=0.0),
        optimizer=Optimizer(name="adam", learning_rate=1e-3, weight_decay=0.0, schedule="constant"),
        epochs=1,
        batch_size=batch,
        precision=precision,
    )
    return base.with_(**changes)


# Whether it is right


def checks(ground: Ground) -> Iterator[Check]:
    """All of them, one after the other."""
    for name, sharing in {**{name: one() for name, one in STRUCTURES.items()}, **VARIANTS}.items():
        compared = scored if name in DRAWN else against_processor
        yield compared(ground, f"structure {name}", experiment(sharing=sharing))
    for name, balance in BALANCES.items():
        yield against_processor(ground, f"balance {name}", experiment(balance=balance()))
    for name in ("lazy_adam", "rowwise_adagrad"):
        optimizer = Optimizer(schedule="constant", embedding=name)
        yield against_processor(ground, f"tables by {name}", experiment(optimizer=optimizer))
    yield stacked(ground)
    yield put_back(ground)
    yield from recorded(ground)
    yield unrecorded(ground)


def against_processor(ground: Ground, name: str, one: mg.Experiment) -> Check:
    fits = ground.fit(one, CPU), ground.fit(one)
    here, there = (curve(fit, batches_of(fit, STEPS)) for fit in fits)
    return Check(name, difference(here, there), CLOSE, way(fits[1].recorded))


def scored(ground: Ground, name: str, one: mg.Experiment) -> Check:
    """Logits of the same weights on both; steps on the device alone."""
    fits = ground.fit(one, CPU), ground.fit(one)
    here, there = (torch.from_numpy(forward(fit.model, batches_of(fit, 2), fit.device).logits) for fit in fits)
    off = ((here - there).abs().max() / here.abs().max()).item()
    finite = curve(fits[1], batches_of(fits[1], STEPS)).isfinite().all()
    return Check(name, off if finite else float("nan"), CLOSE, way(fits[1].recorded))


def stacked(ground: Ground) -> Check:
    """Three seeds as one stack, and each alone, on the device."""
    seeds = [experiment(seed=seed) for seed in range(3)]
    together = cohort(ground, seeds)
    losses = [together.step(batch) for batch in islice(together.batches(0), STEPS)]
    alone = []
    for one in seeds:
        fit = ground.fit(one)
        alone.append(curve(fit, batches_of(fit, STEPS)))
    return Check(
        "stack of 3 seeds",
        difference(torch.stack(alone, 1), torch.stack(losses).sum(2).cpu()),
        CLOSE,
        way(together.replicas.recorded),
    )


def put_back(ground: Ground) -> Check:
    """Steps after a checkpoint, in the training that wrote it and in one that reads it."""
    first, one = ground.fit(experiment()), experiment()
    batches = batches_of(first, 2 * STEPS)
    curve(first, batches[:STEPS])
    first.save()
    second = begun(one, ground.prepared, first.folder, ground.device)
    second.restore()
    return Check("checkpoint", difference(curve(first, batches[STEPS:]), curve(second, batches[STEPS:])), KEPT)


def recorded(ground: Ground) -> Iterator[Check]:
    """Steps with random draws, a schedule, clipping, an average and learnt weights: recorded, and each launched."""
    one = experiment(
        embedding=Embedding(dim=8), balance="uncertainty", optimizer=Optimizer(clip=1.0, average=0.9), precision="auto"
    )
    found, ways = [], []
    for name in ("on", "off"):
        with graphs(name):
            fit = ground.fit(one)
            alone = curve(fit, batches_of(fit, 2 * STEPS))
            together = cohort(ground, [one.with_(seed=seed) for seed in range(3)])
            torch.manual_seed(0)
            losses = [together.step(batch).cpu() for batch in islice(together.batches(0), 2 * STEPS)]
        found.append((alone, fit.average.values[1].cpu(), torch.stack(losses)))
        ways += [way(fit.recorded), way(fit.recorded), way(together.replicas.recorded)]
    for name, a, b, steps in zip(("losses", "average", "stack's losses"), *found, ways[:3], strict=True):
        yield Check(f"recorded {name}", difference(a, b), KEPT, steps)


def way(recorded: bool) -> str:
    return "recorded" if recorded else "launched"


def unrecorded(ground: Ground) -> Check:
    """A model that cannot be recorded, for it looks at a value: it is told by its failing, and goes on by launches."""
    one = experiment(embedding=Embedding(dim=8))
    fits = ground.fit(one), ground.fit(one)
    forward_of = fits[0].model.sharing.forward
    fits[0].model.sharing.forward = lambda x: forward_of(x * x[0, 0].item() ** 0)
    looking, plain = (curve(fit, batches_of(fit, STEPS)) for fit in fits)
    return Check("a look at a value", difference(plain, looking), KEPT, way(fits[0].recorded))


@contextmanager
def graphs(name: str) -> Iterator[None]:
    """Whether steps are recorded, on or off, of trainings that begin inside."""
    os.environ[OFF] = name
    yield
    del os.environ[OFF]


def batches_of(fit: Fit, many: int) -> list[Batch]:
    batches = fit.loader.epoch(0)
    found = list(islice(batches, many))
    batches.close()
    return found


def curve(fit: Fit, batches: Sequence[Batch]) -> Tensor:
    """The loss of each step; what is drawn on the processor is drawn anew."""
    torch.manual_seed(0)
    return torch.stack([fit.step(batch).detach() for batch in batches]).cpu()


def cohort(ground: Ground, seeds: Sequence[mg.Experiment]) -> Cohort:
    folders = [Path(tempfile.mkdtemp(dir=ground.folder)) for _ in seeds]
    return Cohort(seeds, ground.prepared, folders, ground.folder / "cohort", ground.device, None)


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs() / a.abs()).max().item()


# How fast it is


@contextmanager
def precision_set(name: str) -> Iterator[str]:
    """TF32 allowed for matmuls where that is the name; yields what the experiment is told."""
    torch.set_float32_matmul_precision("high" if name == "TF32" else "highest")
    yield "float32" if name == "TF32" else name
    torch.set_float32_matmul_precision("highest")


def seconds(work: Callable[[], object], times: int, device: torch.device) -> float:
    """Of one call: the mean of ``times``, after as many that are not timed."""
    for _ in range(times):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait(device)
    return (time.perf_counter() - began) / times


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device, size: int, times: int) -> dict[str, float]:
    """Multiply-adds a second of a square matmul, by precision."""
    found = {}
    for name in PRECISIONS:
        with precision_set(name) as told:
            a, b = (torch.randn(size, size, device=device, dtype=getattr(torch, told)) for _ in range(2))
            found[name] = size**3 / seconds(lambda a=a, b=b: a @ b, times, device)
    return found


def memory(device: torch.device, size: int, times: int) -> dict[str, float]:
    """Bytes a second: written by filling, copied from the processor's memory, as it is and pinned."""
    here, there = torch.zeros(size // 4), torch.zeros(size // 4, device=device)
    pinned = here.pin_memory() if device.type == "cuda" else here
    ways = {
        "filled": there.zero_,
        "copied": lambda: there.copy_(here),
        "copied, pinned": lambda: there.copy_(pinned, non_blocking=True),
    }
    return {name: size / seconds(work, times, device) for name, work in ways.items()}


def tutorial_seconds(ground: Ground, size: int, precision: str, times: int) -> float:
    """Of a step of the tutorial's model and optimiser, its rows on the device."""
    device, columns = ground.device, LAW.columns
    torch.manual_seed(0)
    model = Tutorial([LAW.vocabulary // columns] * columns, LAW.numbers, LAW.tasks).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    sparse = torch.randint(LAW.vocabulary // columns, (size, columns), device=device)
    dense, labels = torch.randn(size, LAW.numbers, device=device), torch.rand(size, LAW.tasks, device=device).round()
    loss_function = torch.nn.BCEWithLogitsLoss()

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            outputs = model(sparse, dense)
            loss = sum(loss_function(output, labels[:, k]) for k, output in enumerate(outputs))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return seconds(step, times, device)


def training_rows(ground: Ground, rates: dict[str, float], sizes: Sequence[int], times: int) -> list[list[str]]:
    lines = []
    for name in PRECISIONS:
        with precision_set(name) as told:
            for size in sizes:
                yardstick = tutorial_seconds(ground, size, told, times)
                with graphs("off"):
                    fit = ground.fit(experiment(told, size))
                batches = [to_device(batch, ground.device) for batch in batches_of(fit, times)]
                launched = seconds(partial(curve, fit, batches), 1, ground.device) / len(batches)
                fit = ground.fit(experiment(told, size))
                inside = seconds(partial(curve, fit, batches), 1, ground.device) / len(batches)
                streamed = seconds(lambda fit=fit: curve(fit, fit.loader.epoch(0)), 1, ground.device) / len(fit.loader)
                least = step_multiply_adds(fit.model.multiply_adds(), batches[0].rows) / rates[name]
                rows = ground.prepared.train.rows / len(fit.loader)
                cells = [f"{1e3 * one:.2f}" for one in (yardstick, launched, inside, streamed)]
                ratios = [f"{rows / streamed:,.0f}", f"{yardstick / streamed:.1f}", f"{least / inside:.1%}"]
                lines.append([name, f"{size:,}", *cells, *ratios])
    return lines


def stack_rows(ground: Ground, stacks: Sequence[int], times: int) -> list[list[str]]:
    structures, groups, runs, steps = CENSUS
    lines = []
    for many in stacks:
        together = cohort(ground, [experiment("bfloat16", seed=seed) for seed in range(many)])
        batch = to_device(next(together.batches(0)), ground.device)
        took = seconds(lambda together=together, batch=batch: together.step(batch), times, ground.device)
        whole = structures * groups * runs * steps * took / many / 60
        lines.append([f"{many}", f"{1e3 * took:.2f}", f"{1e3 * took / many:.3f}", f"{whole:,.0f}"])
    return lines


def main() -> None:
    arguments = read_arguments()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device is available here; --device cpu --quick tries the script")
    torch.set_num_threads(arguments.threads)
    device, quick = torch.device(arguments.device), arguments.quick
    sizes, times = ((256, 1024), 2) if quick else (SIZES, 20)
    print(describe(), torch.cuda.get_device_name() if device.type == "cuda" else "the processor alone", sep="; ")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        rows = draw(LAW, (2 * STEPS) * BATCH if quick else 4 * sizes[-1], every_id=True)
        tables = {"train": rows, "valid": rows.slice(0, 1_000)}
        ground = Ground(prepared_rows(experiment(), folder / "prepared", tables), folder, device)
        found = list(checks(ground))
        lines = [[one.name, f"{one.off:.0e}", f"{one.most:.0e}", one.steps] for one in found]
        worst = table(["check", "off", "allowed", "steps on the device"], lines)
        show("gpu-checks", worst)
        failed = [one.name for one in found if not one.passed]
        if failed:
            sys.exit("not equal: " + ", ".join(failed))
        rates = ceilings(device, 512 if quick else 8192, times)
        moved = memory(device, 1 << 20 if quick else 1 << 30, times)
        head = ["precision", "batch", "ms a step: tutorial", "launched", "recorded", "of an epoch"]
        head += ["rows/s of an epoch", "x tutorial", "of the ceiling"]
        told = [f"{name} {2e-12 * rate:,.1f} TFLOP/s" for name, rate in rates.items()]
        told += [f"{name} {rate / 1e9:,.1f} GB/s" for name, rate in moved.items()]
        show("gpu-train", table(head, training_rows(ground, rates, sizes, times)), f"Measured: {', '.join(told)}.")
        head = ["runs in the stack", "ms a step of all", "ms a run", "minutes for 400 runs x 7 structures x 2 groups"]
        show("gpu-stacks", table(head, stack_rows(ground, (1, 2) if quick else (1, 10, 50, 200), times)))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
