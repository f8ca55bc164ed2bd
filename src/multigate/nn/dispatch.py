"""Conditional computation: in evaluation an expert runs on those rows alone that some reader reads it for."""

import torch
from torch import Tensor
from torch.nn import functional

from multigate.nn.eager import eager, watched
from multigate.nn.mixture import mix
from multigate.nn.parallel import ParallelMLP

# What time costs on a CPU, in multiply-adds of experts; measured by benchmarks/conditional.py.
CALL = 1_500_000
"""Calling one expert by itself ..."""
SORTING = 4
"""... and sorting rows by expert and putting them together again takes as long as this many calls."""
WEIGHTS = 8
"""Reading the weights of an expert takes as long as this many rows."""
GATHERED = 1.25
"""A row that has to be gathered takes as long as this many that lie in order."""


def mix_experts(weights: Tensor, experts: ParallelMLP, x: Tensor, *, sparse: bool) -> Tensor:
    """sum_e weights[b, t, e] f_e(x_b), (B, T, E) and x (B, D) or (B, E, D) -> (B, T, H): ``mix(weights, experts(x))``.

    Where ``sparse`` weights are exactly 0 for every reader of a row, the expert need not run on it. In evaluation, on a
    CPU and eagerly, rows are dispatched to experts where that takes less time.
    """
    all_run = not sparse or experts.training or watched(*experts.modules())
    if not all_run and eager(weights) and weights.device.type == "cpu":
        used = (weights != 0).any(1)  # (B, E)
        rows: list[int] = used.sum(0).tolist()
        if dispatch_pays(len(weights), rows, experts.multiply_adds() // experts.n):
            return dispatched(weights, experts, x, used, rows)
    return mix(weights, experts(x))


def dispatch_pays(batch: int, rows: list[int], each: int) -> bool:
    """Whether experts of ``each`` multiply-adds take less time on so many ``rows`` of their own than on all."""
    calls = sum(count > 0 for count in rows)
    together = (batch + WEIGHTS) * len(rows) * each
    apart = (GATHERED * sum(rows) + WEIGHTS * calls) * each + CALL * (calls + SORTING)
    return calls > 0 and apart < together


def multiply_adds(experts: ParallelMLP, readers: int, read: int) -> int:
    """Multiply-adds of one row whose readers read so many of the experts, mixing included."""
    return experts.multiply_adds() // experts.n * read + readers * read * experts.d_out


def dispatched(weights: Tensor, experts: ParallelMLP, x: Tensor, used: Tensor, rows: list[int]) -> Tensor:
    """The same mixture, each expert run on the rows that use it, (B, E) bool; ``rows`` counts them by expert."""
    batch, readers, _ = weights.shape
    by_expert = used.t()  # (E, B)
    parts = []
    for i, part in enumerate(torch.split(by_expert.nonzero()[:, 1], rows)):
        if rows[i]:
            read = x if x.dim() == 2 else x[:, i]
            parts.append(experts.one(i, read if rows[i] == batch else read.index_select(0, part)))
    outputs = torch.cat(parts)  # (n, H), by expert and then by row
    place = (by_expert.flatten().cumsum(0) - 1).view(by_expert.shape)  # of each (expert, row) in outputs
    # weighted sums of rows of a table are what an embedding bag is: one bag for each row and reader
    row, reader, expert = weights.nonzero(as_tuple=True)
    bags = torch.bincount(row * readers + reader, minlength=batch * readers).cumsum(0)
    mixed = functional.embedding_bag(
        place[expert, row],
        outputs,
        functional.pad(bags, (1, 0)),
        mode="sum",
        per_sample_weights=weights[row, reader, expert].to(outputs.dtype),
        include_last_offset=True,
    )
    return mixed.view(batch, readers, -1)
