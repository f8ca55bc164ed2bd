"""Gates: for every reader a distribution over sources, and the mixture it makes of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from multigate.nn.parallel import ParallelLinear

Mask = Sequence[Sequence[bool]]
"""(readers, sources): which source each reader may read."""


class Gated(NamedTuple):
    """What a gate returns: ``weights`` (B, readers, sources) and ``penalty``, a scalar that is added to the loss."""

    weights: Tensor
    penalty: Tensor


class Gate(nn.Module):
    """softmax(W_k x): a linear map without bias and a softmax, nothing else (Ma et al. 2018, Eq. 8).

    x (B, D), or (B, readers, D) -> weights (B, readers, sources); each row of the last axis sums to one, and a source
    that ``mask`` bars from a reader weighs 0. ``dropout`` sets each source to zero with that probability in training
    and rescales the rest to sum to one (Zhao et al. 2019, section 5.2.4, against gates that settle on one expert).
    ``temperature`` divides the logits: above 1 evens the weights out, below 1 sharpens them.
    """

    allowed: Tensor | None

    def __init__(
        self,
        readers: int,
        sources: int,
        d_in: int,
        *,
        mask: Mask | None = None,
        dropout: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.linear = ParallelLinear(readers, d_in, sources, bias=False)
        barred = mask is not None and not all(all(row) for row in mask)
        self.register_buffer("allowed", torch.tensor(mask) if barred else None, persistent=False)
        self.dropout = dropout
        self.temperature = temperature

    def forward(self, x: Tensor) -> Gated:
        logits = self.linear(x)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.allowed is not None:
            logits = logits.masked_fill(~self.allowed, -torch.inf)
        weights = torch.softmax(logits, dim=-1)
        if self.dropout and self.training:
            weights = drop_sources(weights, self.dropout)
        return Gated(weights, x.new_zeros(()))

    def multiply_adds(self) -> int:
        """Multiply-adds of one row."""
        return self.linear.multiply_adds()


def drop_sources(gate: Tensor, rate: float) -> Tensor:
    """Zero each weight with probability ``rate``, rescale each row to sum to one; a row that would lose all is kept."""
    kept = gate * (torch.rand_like(gate) >= rate)
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp_min(torch.finfo(gate.dtype).tiny), gate)


def mix(gate: Tensor, sources: Tensor) -> Tensor:
    """sum_e gate[b, t, e] sources[b, e, :] (Ma et al. 2018, Eq. 7). (B, T, E), (B, E, H) -> (B, T, H)."""
    return torch.bmm(gate, sources)


def beside(x: Tensor, context: Tensor | None) -> Tensor:
    """What gates read: x, (B, D) or (B, n, D), and beside it the columns (B, G) that only gates read, if any."""
    if context is None:
        return x
    if x.dim() == 3:
        context = context.unsqueeze(1).expand(-1, x.shape[1], -1)
    return torch.cat((x, context), dim=-1)
