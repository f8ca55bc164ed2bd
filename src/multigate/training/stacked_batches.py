"""Batches of several runs as one, with an axis in front; bags, which are of any length, become rectangles."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from multigate.batch import BagIds, Batch
from multigate.data.rows import join
from multigate.nn.embedding_tables import StackedTables


def stack_batches(batches: Sequence[Batch]) -> Batch:
    """Batches of as many rows each, of R runs, as one with an axis in front."""
    return in_front(join(batches), len(batches))


def in_front(batch: Batch, runs: int) -> Batch:
    """The rows of R runs, as many of each, one run after the other (R * B, ...) -> (R, B, ...).

    Bags become rectangles: values (R, B * L), each bag filled up to L, a power of two that the longest fits into, and
    offsets (R, B + 1) as if it were not.
    """
    numbers, categories, bags, *rest = batch
    rows = batch.rows // runs
    apart = [tensor.reshape(runs, rows, *tensor.shape[1:]) for tensor in (numbers, categories, *rest)]
    return Batch(apart[0], apart[1], tuple(_rectangle(bag, runs) for bag in bags), *apart[2:])


def _rectangle(bag: BagIds, runs: int) -> BagIds:
    lengths = bag.offsets.numpy()[1:] - bag.offsets.numpy()[:-1]  # numpy's copies: this runs beside the training
    width = 1 << int(lengths.max(initial=1) - 1).bit_length()  # few shapes, so that batches are alike
    there = np.arange(width) < lengths[:, None]  # (R * B, L)
    values = np.zeros(there.shape, dtype=bag.values.numpy().dtype)
    values[there] = bag.values.numpy()
    offsets = np.zeros((runs, len(lengths) // runs + 1), dtype=lengths.dtype)
    np.cumsum(lengths.reshape(runs, -1), axis=1, out=offsets[:, 1:])
    return BagIds(torch.from_numpy(values.reshape(runs, -1)), torch.from_numpy(offsets))


class _Rectangle(StackedTables):
    """Tables that read bags as ``in_front`` lays them out: vmap has no rule for bags of any length."""

    def forward(self, ids: Tensor, offsets: Tensor | None = None) -> Tensor:
        if offsets is None:
            return super().forward(ids)
        lengths = offsets.diff()
        ids = ids.view(len(lengths), -1)
        there = (torch.arange(ids.shape[1], device=ids.device) < lengths.unsqueeze(-1)).unsqueeze(-1)
        return (super().forward(ids) * there).sum(1) / lengths.unsqueeze(-1)


def rectangular(module: nn.Module) -> nn.Module:
    """The module, whose tables read bags as rectangles from now on."""
    for part in module.modules():
        if type(part) is StackedTables:
            part.__class__ = _Rectangle
    return module
