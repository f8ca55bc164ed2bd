"""Feature gates: what each of n readers makes of the features before it reads them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from multigate.nn.compiled import plain
from multigate.nn.eager import eager, multiplied_in, pays
from multigate.nn.kernels import kernels_for
from multigate.nn.layout import units
from multigate.nn.parallel import ParallelLinear, inputs


class FeatureGate(nn.Module):
    """x * 2 sigmoid(x A_i B_i), with A_i, B_i of a low rank, for each of n readers (Wang et al. 2024).

    x (B, D), read by all, or (B, u, D), of which reader i reads unit ``read[i]``, (n,) int64 -> (B, n, D). What
    many read is not to be copied for each of them before: passes over memory are what a feature gate costs.
    """

    def __init__(self, n: int, d_in: int, rank: int) -> None:
        super().__init__()
        self.down = ParallelLinear(n, d_in, rank, bias=False)
        self.up = ParallelLinear(n, rank, d_in, bias=False)

    def forward(self, x: Tensor, read: Tensor | None = None) -> Tensor:
        weights = self.down.weight, self.up.weight
        at_once = (self.training or pays(x)) and eager(x) and self._by_weight(x, read)
        if at_once:
            x = x.to(multiplied_in(x))
            if kernels_for(x) is not None:
                gated: Tensor = CompiledFeatures.apply(x, read, *weights)  # type: ignore[no-untyped-call]
                return gated
        if read is not None:
            x = units(x, read)
        if at_once:
            gated = GatedFeatures.apply(x, *weights)  # type: ignore[no-untyped-call]
            return gated
        gate = 2 * torch.sigmoid(self.up(self.down(x)))  # (B, n, D)
        return gate * (x if x.dim() == 3 else x.unsqueeze(1))

    def _by_weight(self, x: Tensor, read: Tensor | None) -> bool:
        """Whether the weights of both layers themselves multiply, and x has a unit for each, as wide as they are."""
        n, _, d_in = self.down.weight.shape
        if x.shape[-1] != d_in or (x.dim() == 3 and read is None and x.shape[1] != n):
            return False  # the layers say so
        return self.down.plain(x.shape[0], inputs(x)) and self.up.plain(x.shape[0], inputs(x))

    def multiply_adds(self) -> int:
        """Multiply-adds of one row through all gates."""
        return self.down.multiply_adds() + self.up.multiply_adds()


class CompiledFeatures(torch.autograd.Function):
    """The same of x (B, D) or (B, u, D), by weights down (n, r, D) and up (n, D, r), in one pass over memory each way.

    The batch lies last in what it makes and in its gradients; gates are made again for the gradients, not kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, read: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        last = (x.t().unsqueeze(0) if x.dim() == 2 else x.permute(1, 2, 0)).contiguous()  # (u, D, B)
        if read is None:
            read = torch.arange(len(down), device=x.device)
            read = torch.zeros_like(read) if x.dim() == 2 else read
        ctx.kept, ctx.found = (x.dim(), down.dtype), kernels_for(last)
        given = last, read, plain(down), plain(up)
        made, low = ctx.found.gate_features(*given)
        ctx.save_for_backward(*given, low)
        gated: Tensor = made.permute(2, 0, 1)
        return gated

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dims, of_weights = ctx.kept
        pull = gradients[0].permute(1, 2, 0).contiguous()  # (n, D, B)
        of_x, of_down, of_up = ctx.found.ungate_features(*ctx.saved_tensors, pull)
        of_x = of_x[0].t() if dims == 2 else of_x.permute(2, 0, 1)
        return of_x, None, of_down.to(of_weights), of_up.to(of_weights)


class GatedFeatures(torch.autograd.Function):
    """The same by torch's operators, of x (B, D) or (B, n, D).

    The batch lies last in what it makes and in its gradients. Passes over memory are what a feature gate costs, so the
    factor of 2 has none of its own: it is the ``value`` of a product, or that of what is small.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        ctx.dtype = down.dtype
        down, up = down.to(x.dtype), up.to(x.dtype)
        if x.dim() == 2:
            read = x.t().contiguous()  # (D, B)
            low = torch.mm(down.flatten(0, 1), read).view(*down.shape[:2], -1)  # (n, r, B)
        else:
            read = x.permute(1, 2, 0).contiguous()  # (n, D, B)
            low = torch.bmm(down, read)
        gate = torch.bmm(up, low).sigmoid_()  # (n, D, B)
        ctx.save_for_backward(read, down, up, low, gate)
        return torch.addcmul(read.new_zeros(()), read, gate, value=2).permute(2, 0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        read, down, up, low, gate = ctx.saved_tensors
        pull = gradients[0].permute(1, 2, 0).contiguous()
        at = pull * read
        torch.ops.aten.sigmoid_backward.grad_input(at, gate, grad_input=at)  # half the gradient of the logits
        of_up = torch.bmm(at, low.transpose(1, 2)).mul_(2)
        at_low = torch.bmm(up.transpose(1, 2), at).mul_(2)
        at_read = torch.addcmul(read.new_zeros(()), pull, gate, value=2)
        if read.dim() == 2:
            flat = at_low.flatten(0, 1)
            of_down = torch.mm(flat, read.t()).view(down.shape)
            made = torch.addmm(at_read.sum(0), down.flatten(0, 1).t(), flat).t()
        else:
            of_down = torch.bmm(at_low, read.transpose(1, 2))
            made = at_read.baddbmm_(down.transpose(1, 2), at_low).permute(2, 0, 1)
        return made, of_down.to(ctx.dtype), of_up.to(ctx.dtype)
