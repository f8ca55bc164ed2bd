"""Gates: for every reader a distribution over sources, and the mixture it makes of them."""

import torch
from torch import Tensor, nn

from multigate.nn.parallel import ParallelLinear


class Gate(nn.Module):
    """softmax(W_k x): a linear map without bias and a softmax, nothing else (Ma et al. 2018, Eq. 8).

    x (B, D), or (B, readers, D) -> (B, readers, sources); each row of the last axis sums to one.
    ``dropout`` sets each source to zero with that probability in training and rescales the rest to sum to one
    (Zhao et al. 2019, section 5.2.4, against gates that settle on one expert).
    """

    def __init__(self, readers: int, sources: int, d_in: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = ParallelLinear(readers, d_in, sources, bias=False)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.softmax(self.linear(x), dim=-1)
        return drop_sources(gate, self.dropout) if self.dropout and self.training else gate

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
