"""Ties: what it costs in the loss that tasks' weights of one layer are unlike each other.

A layer's weights (T, H, D) and biases (T, H), those of one more input that is always 1, are W (T, H, D + 1).
"""

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable would import the compiler here and now

from multigate.nn.gate import at_least_float32

FLOOR = 1e-6
"""Squared singular values below this part of the largest cannot be told from 0 in float32."""


class PairDistance(nn.Module):
    """sum_{j<k} ||W_j - W_k||^2, as T sum_k ||W_k - mean W||^2 (Duong et al. 2015; Ma et al. 2018, section 6.1)."""

    def forward(self, weight: Tensor, bias: Tensor) -> Tensor:
        return len(weight) * ((weight - weight.mean(0)).square().sum() + (bias - bias.mean(0)).square().sum())


class TraceNorm(nn.Module):
    """The trace norm of the matrix of a row per task (Yang and Hospedales 2016, "last axis flattening")."""

    recordable = False  # on a GPU: to decompose a matrix is to look at it

    def forward(self, weight: Tensor, bias: Tensor) -> Tensor:
        return trace_norm(weight.flatten(1), bias)


class TuckerNorm(nn.Module):
    """Sum of the trace norms of the three unfoldings of W, one per axis (Yang and Hospedales 2016, "Tucker").

    To take its subgradient S costs about a training step, so S serves for ``every`` calls with gradients: <S, W> is the
    norm at the W that S was taken of, and its tangent at others. S and the number of calls are part of the state.
    """

    subgradient: Tensor

    def __init__(self, shape: tuple[int, ...], every: int) -> None:
        super().__init__()
        tasks, d_out, d_in = shape
        self.register_buffer("subgradient", torch.zeros(tasks, d_out, d_in + 1))
        self.every = every
        self.calls = 0

    def forward(self, weight: Tensor, bias: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not self.calls:  # to look at a loss, as FAMO does after a step, is no step
            self.renew(weight, bias)
        kept = self.subgradient.clone()  # graphs may outlive the next renewal
        return (kept[..., :-1] * weight).sum() + (kept[..., -1] * bias).sum()

    @_disable_dynamo
    def renew(self, weight: Tensor, bias: Tensor) -> None:
        """Take the subgradient anew where that is due."""
        if self.calls % self.every == 0:
            with torch.no_grad():
                self.subgradient.copy_(tucker_subgradient(torch.cat((weight, bias.unsqueeze(-1)), dim=-1)))
        self.calls += 1

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_extra_state(self, state: Tensor) -> None:
        self.calls = int(state)


def trace_norm(*blocks: Tensor) -> Tensor:
    """Sum of the singular values of W, blocks (n, .) side by side, with few rows; W itself is not decomposed.

    With P = (W W^T)^-1/2 held fixed it is (<P, W W^T> + tr P^-1) / 2, whose gradient is P W = U V^T, the subgradient
    (Yang and Hospedales 2016). Values near 0 count quadratically, as in Huber's loss, so that there is a gradient there
    and where values repeat; differentiating a decomposition divides by their differences.
    """
    with torch.autocast(blocks[0].device.type, enabled=False):
        gram = torch.stack([block @ block.mT for block in map(at_least_float32, blocks)]).sum(0)
        with torch.no_grad():
            inverse, values = _inverse_root(gram)
        return ((inverse * gram).sum() + values.sum()) / 2


def tucker_subgradient(weight: Tensor) -> Tensor:
    """U V^T of the unfolding along each axis, folded back and added up. (T, H, D) -> (T, H, D)."""
    unfoldings = [weight.movedim(axis, 0) for axis in range(weight.dim())]
    parts = [polar(one.flatten(1)).view(one.shape).movedim(0, axis) for axis, one in enumerate(unfoldings)]
    return torch.stack(parts).sum(0)


def polar(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T, by the Gram matrix of its shorter side; 0 along directions that it does not have."""
    matrix = at_least_float32(matrix)
    if matrix.shape[0] > matrix.shape[1]:
        return polar(matrix.mT).mT
    with torch.autocast(matrix.device.type, enabled=False):
        return _inverse_root(matrix @ matrix.mT)[0] @ matrix


def _inverse_root(gram: Tensor) -> tuple[Tensor, Tensor]:
    """(W W^T)^-1/2 (n, n) and the singular values of W (n,), both with values below the floor raised to it."""
    squares, vectors = torch.linalg.eigh(gram.nan_to_num())  # eigh raises where the loss should say "not a number"
    floor = (FLOOR * squares[-1:]).clamp_min(torch.finfo(gram.dtype).tiny)
    values = squares.maximum(floor).sqrt()
    return (vectors / values) @ vectors.mT, values
