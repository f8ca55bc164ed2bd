"""n linear maps whose weights, stacked to one tensor, are a product of factors that all of them share."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from multigate.nn.composition import composes
from multigate.nn.eager import transformed, watched
from multigate.nn.layout import batch_last
from multigate.nn.mixture import combine
from multigate.nn.parallel import inputs, parallel_linear

Form = Literal["tucker", "tt", "laf"]


class FactorisedLinear(nn.Module):
    """n linear maps side by side, of factors (Yang and Hospedales 2017). x (B, D) or (B, n, D) -> (B, n, H).

    W_t = U2 (sum_k U3[t, k] S_k) U1, all trained. ``tucker`` has every factor: U1 (r1, D), S (K, r2, r1), U2 (H, r2),
    U3 (n, K); ``tt``, a tensor train, has no U2; ``laf``, the last axis flattened, neither U1 nor U2. r1 and r2 are
    ``rank`` times the largest rank that inputs and outputs can have; K is ``task_rank`` times n, but at least 2 where n
    is: with one direction all maps would be the same but for their size.
    """

    def __init__(self, n: int, d_in: int, d_out: int, *, form: Form, rank: float, task_rank: float) -> None:
        super().__init__()
        r1 = _part(rank, min(d_in, n * d_out)) if form != "laf" else d_in
        r2 = _part(rank, min(d_out, n * d_in)) if form == "tucker" else d_out
        directions = min(n, max(2, round(task_rank * n)))
        # U1 and U2 keep lengths and the rows of U3 have length 1, so that each W_t varies as torch.nn.Linear's weight
        # does: by 1 / (3 D). Tasks start half alike: on average cos(W_s, W_t) is near 1/2.
        self.input_factor = nn.Parameter(_orthonormal(r1, d_in)) if form != "laf" else None
        self.output_factor = nn.Parameter(_orthonormal(d_out, r2)) if form == "tucker" else None
        # never computed on the meta device, where comparisons count costs: it would import the compiler, for seconds
        tasks = functional.normalize(1 + torch.randn(n, directions, device="cpu"))
        self.task_factor = nn.Parameter(tasks.to(torch.get_default_device()))
        # "weight": only one factor decays, by which their product decays as a plain weight does
        deviation = math.sqrt(d_out / (3 * max(r1, 1) * r2))
        self.core_weight = nn.Parameter(torch.randn(directions, r2, r1).mul_(deviation))
        bound = 1 / math.sqrt(max(d_in, 1))
        self.bias = nn.Parameter(torch.empty(n, d_out).uniform_(-bound, bound))

    @property
    def weight(self) -> Tensor:
        """The maps' weights, composed. (n, H, D)."""
        weight = self._leave(self._cores())
        return weight if self.input_factor is None else weight @ self.input_factor

    def forward(self, x: Tensor) -> Tensor:
        if self._composes(x.shape[0], inputs(x), x.shape[-1]):
            return parallel_linear(x, self.weight, self.bias)
        if x.dim() == 2:
            last = x.t() if self.input_factor is None else self.input_factor @ x.t()  # (r1, B)
            # one input: first every direction, then the tasks' mixtures of them
            directions, r2, _ = self.core_weight.shape
            each = self._leave((self.core_weight.flatten(0, 1) @ last).view(directions, r2, -1))
            last = combine(self.task_factor, each)
        else:
            last = batch_last(x)
            last = last if self.input_factor is None else _each(self.input_factor, last)  # (n, r1, B)
            last = self._leave(torch.bmm(self._cores(), last))
        return (last + self.bias.to(last.dtype).unsqueeze(-1)).permute(2, 0, 1)

    def plain(self, rows: int, inputs: int, numbers: int | None = None) -> bool:
        """Whether ``weight`` itself multiplies rows of so many inputs, and nobody hooks in or transforms it.

        It does where that takes less: ``numbers`` of an input are multiplied by each unit, or all.
        """
        hooked = watched(self) or transformed(self.core_weight)
        composed = self._composes(rows, inputs, self._d_in if numbers is None else numbers)
        return type(self) is FactorisedLinear and composed and not hooked

    def _composes(self, rows: int, inputs: int, numbers: int) -> bool:
        return composes(rows, self._apart(inputs), self.bias.numel() * numbers, self._making)

    def _cores(self) -> Tensor:
        """sum_k U3[t, k] S_k of each task. (n, r2, r1)."""
        return torch.einsum("tk,kqp->tqp", self.task_factor, self.core_weight)

    def _leave(self, last: Tensor) -> Tensor:
        return last if self.output_factor is None else _each(self.output_factor, last)

    def multiply_adds(self, inputs: int) -> int:
        """Multiply-adds of one row of one input, or of n, among rows that are worth composing weights for; what is made
        once for a batch is not a row's."""
        return min(self.bias.numel() * self._d_in, self._apart(inputs))

    def _apart(self, inputs: int) -> int:
        """Multiply-adds of one row of one input, or of n, through one factor after another."""
        n, d_out = self.bias.shape
        directions, r2, r1 = self.core_weight.shape
        enter = 0 if self.input_factor is None else self.input_factor.numel()
        leave = 0 if self.output_factor is None else self.output_factor.numel()
        if inputs == 1:
            return enter + directions * (r1 * r2 + leave + n * d_out)
        return n * (enter + r1 * r2 + leave)

    @property
    def _d_in(self) -> int:
        return self.core_weight.shape[2] if self.input_factor is None else self.input_factor.shape[1]

    @property
    def _making(self) -> int:
        """Multiply-adds of composing the weights."""
        n, d_out = self.bias.shape
        directions, r2, r1 = self.core_weight.shape
        enter = 0 if self.input_factor is None else d_out * r1 * self._d_in
        leave = 0 if self.output_factor is None else d_out * r2 * r1
        return n * (directions * r2 * r1 + enter + leave)


def _each(factor: Tensor, last: Tensor) -> Tensor:
    """The same factor (H, r) times each of (n, r, B). -> (n, H, B)."""
    return torch.bmm(factor.expand(last.shape[0], -1, -1), last)


def _part(share: float, of: int) -> int:
    return max(1, round(share * of))


def _orthonormal(rows: int, columns: int) -> Tensor:
    """Orthonormal rows or columns, whichever are fewer."""
    return nn.init.orthogonal_(torch.empty(rows, columns))
