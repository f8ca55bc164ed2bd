"""Rows of batches: put together, cut out, picked.

Copies go through numpy, on one thread: this runs beside the training, and torch would split each small copy over
the threads the training needs (on two busy cores 100 times slower). Rows on a GPU are picked there.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from multigate.batch import BagIds, Batch
from multigate.data.bags import positions


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of all (at least one), in order."""
    if len(batches) == 1:
        return batches[0]
    whole = [_cat([_tensors(batch)[at] for batch in batches]) for at in range(6)]
    bags = tuple(_join_bags([batch.bags[at] for batch in batches]) for at in range(len(batches[0].bags)))
    return _batch(whole, bags)


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """Rows start to stop, as views except for bags' offsets."""
    bags = []
    for bag in batch.bags:
        offsets = bag.offsets[start : stop + 1]
        bags.append(BagIds(bag.values[int(offsets[0]) : int(offsets[-1])], offsets - offsets[0]))
    return _batch([tensor[start:stop] for tensor in _tensors(batch)], tuple(bags))


def cuts(batch: Batch, rows: int) -> Iterator[Batch]:
    """The batch in order, at most so many rows at a time; a batch of no rows is one part."""
    for start in range(0, max(batch.rows, 1), rows):
        yield batch if batch.rows <= rows else cut(batch, start, start + rows)


def pick(batch: Batch, rows: Tensor) -> Batch:
    """The rows (P,) int64 in that order, copied."""
    picked = [_take(tensor, rows) for tensor in _tensors(batch)]
    return _batch(picked, tuple(_pick_bag(bag, rows) for bag in batch.bags))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on a device; itself where it is there already."""
    if device.type == "cpu":
        return batch
    bags = tuple(BagIds(bag.values.to(device), bag.offsets.to(device)) for bag in batch.bags)
    return _batch([tensor.to(device, non_blocking=True) for tensor in _tensors(batch)], bags)


def pick_tasks(batch: Batch, tasks: Sequence[int]) -> Batch:
    """The batch with some of its tasks."""
    index = torch.tensor(list(tasks), dtype=torch.int64, device=batch.labels.device)
    return batch._replace(
        labels=batch.labels.index_select(1, index),
        known=batch.known.index_select(1, index),
        weights=batch.weights.index_select(1, index),
    )


def _tensors(batch: Batch) -> list[Tensor]:
    return [batch.numbers, batch.categories, batch.labels, batch.known, batch.weights, batch.groups]


def _batch(tensors: Sequence[Tensor], bags: tuple[BagIds, ...]) -> Batch:
    numbers, categories, labels, known, weights, groups = tensors
    return Batch(numbers, categories, bags, labels, known, weights, groups)


def _join_bags(bags: Sequence[BagIds]) -> BagIds:
    lengths = _cat([bag.offsets.diff() for bag in bags])
    return BagIds(_cat([bag.values for bag in bags]), _offsets(lengths))


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0, dtype=lengths.dtype)])


def _pick_bag(bag: BagIds, rows: Tensor) -> BagIds:
    first = _take(bag.offsets, rows)
    lengths = _take(bag.offsets[1:], rows) - first
    taken = positions(first.numpy(), lengths.numpy())
    return BagIds(_take(bag.values, torch.from_numpy(taken)), _offsets(lengths))


def _take(tensor: Tensor, rows: Tensor) -> Tensor:
    if tensor.device.type != "cpu":
        return tensor.index_select(0, rows)
    # "clip" never clips here: it is numpy's only mode without a second copy
    return torch.from_numpy(tensor.numpy().take(rows.numpy(), axis=0, mode="clip"))


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    if tensors[0].device.type != "cpu":
        return torch.cat(list(tensors))
    return torch.from_numpy(np.concatenate([tensor.numpy() for tensor in tensors]))
