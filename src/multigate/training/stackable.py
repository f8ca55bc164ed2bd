"""Whether experiments can be trained as one, and whether that pays."""

import warnings
from collections.abc import Sequence

import torch

from multigate.assembly import build_model, outline
from multigate.data.loader import Loader
from multigate.data.prepared import Prepared
from multigate.data.rows import cut, pick_tasks
from multigate.errors import ExperimentError
from multigate.experiment import Experiment
from multigate.objective import Objective
from multigate.training.cohort import Replica, replica_loss
from multigate.training.recorded import keeps_more_than_tensors
from multigate.training.replicas import Replicas
from multigate.training.stacked_batches import stack_batches
from multigate.training.tables import large_tables
from multigate.training.undisturbed import undisturbed

FEWEST = 3
"""Runs from which on training them together is faster than one after the other (measured; two lose)."""
MOST_WORK = 8_000_000
"""Multiply-adds of one run's step, forward, above which its matmuls fill a processor, and stacking loses (measured)."""
MOST_BYTES = 2 * 2**30
"""Memory that stacked weights, gradients, moments and rows may take."""


def why_apart(
    experiments: Sequence[Experiment], prepared: Prepared, device: torch.device, tasks: Sequence[int] | None = None
) -> str:
    """Why these experiments are better trained one after the other; empty where they may be a cohort.

    A GPU is never filled by one small run, so that only memory bounds what is stacked there.
    """
    first, runs = experiments[0], len(experiments)
    encoder = prepared.encoder
    model, balance = outline(first, encoder, tasks), first.balance.build(first.schema.tasks)
    if balance.needs_gramian or balance.looks_back:
        return f"balance {first.balance.method!r} looks at the gradients or steps of one run at a time"
    if large_tables(model, first.optimizer):
        return "its embedding tables have an optimiser of their own"
    if keeps_more_than_tensors(model):
        return f"structure {first.sharing.name!r} keeps state outside its tensors"
    size = first.batch(prepared.train.rows)
    work = model.multiply_adds() * size
    if work > MOST_WORK and device.type == "cpu":
        return f"a step of {size:,} rows is {work / 1e6:,.0f} million multiply-adds, enough to fill the machine"
    copies = 6 if first.optimizer.average else 5
    held = copies * 4 * sum(p.numel() for p in model.parameters()) + _window_bytes(prepared)
    if runs * held > MOST_BYTES:
        return f"{runs} times {held / 2**20:,.0f} MB would be kept in memory at once"
    return _trial(first, prepared, tasks)


def _window_bytes(prepared: Prepared) -> int:
    """Bytes of the rows that each loader keeps for itself: none where all of them keep the same."""
    part = prepared.train
    window = Loader(part, 1).window
    if len(part.sizes) <= window:
        return 0
    shard = part.shards[0]
    tensors = [*shard[:2], *shard[3:], *(tensor for bag in shard.bags for tensor in bag)]
    return window * sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _trial(experiment: Experiment, prepared: Prepared, tasks: Sequence[int] | None) -> str:
    """What stacking two models and running two rows says against it."""
    batch = cut(prepared.train.shards[0], 0, 2)
    batch = batch if tasks is None else pick_tasks(batch, tasks)
    schema = (
        experiment.schema if tasks is None else experiment.schema.only([experiment.schema.tasks[i].name for i in tasks])
    )
    objective = Objective([prepared.layout.tasks[i] for i in tasks or range(len(schema.tasks))], schema.risks())
    with undisturbed(torch.device("cpu")), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "there is a performance drop because ..."
        model, balance = build_model(experiment, prepared.encoder, tasks), experiment.balance.build(schema.tasks)
        pair = [Replica(model, objective, balance, "float32")] * 2
        try:
            Replicas(pair, replica_loss, experiment.optimizer, steps=1).step(stack_batches([batch, batch]))
        except (RuntimeError, ValueError, LookupError, TypeError, UserWarning, ExperimentError) as error:
            return f"structure {experiment.sharing.name!r} cannot be stacked ({' '.join(str(error).split())[:120]})"
    return ""
