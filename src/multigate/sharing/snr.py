"""Sub-network routing: levels of small networks, and gates that learn which of them the next level and tasks read."""

import math
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from multigate.nn.layout import lies_last
from multigate.nn.mixture import mix
from multigate.nn.parallel import ParallelMLP
from multigate.sharing.structure import Level, Shared, Structure, all_read_all

OPEN = 2.0
"""log alpha of every gate at first: z_hat is .96 and 97 % of draws are not zero, with the default beta, gamma, zeta."""


class SNR(Structure):
    """Sub-networks u_j are read as v_i = sum_j z_ij W_ij u_j (trans) or sum_j z_ij u_j (aver), by sub-networks of the
    next level and by tasks; z_ij is a hard concrete gate (Ma et al. 2019)."""

    stochastic: ClassVar[bool] = True

    structure: Literal["snr"] = "snr"
    routing: Literal["trans", "aver"] = "trans"
    """Whether each reading has a matrix of its own, or passes its source on as it is."""
    experts: int = Field(default=4, ge=1)
    """Sub-networks of a level; ``hidden`` holds a level per width."""
    beta: float = Field(default=0.67, ge=0.5, le=0.9)
    """Of the hard concrete distribution: less is closer to a coin."""
    gamma: float = Field(default=-0.1, ge=-1, le=-0.1)
    zeta: float = Field(default=1.1, ge=1.1, le=2)
    """gamma and zeta: ends of the interval from which draws are cut to 0 .. 1."""
    l0: float = Field(default=1e-4, ge=0)
    """Weight lambda of the expected number of open gates in the loss."""

    def build(self, d_in: int, tasks: tuple[str, ...]) -> "SNRSharing":
        return SNRSharing(self, d_in, tasks)


class SNRSharing(nn.Module):
    """x (B, D) -> z (B, T, H), gates (B, readers, E) a level: z_ij, one draw a batch in training, z_hat after it."""

    def __init__(self, options: SNR, d_in: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        levels = [
            tuple(f"network {level}.{i}" for i in range(options.experts)) for level in range(1, len(options.hidden) + 1)
        ]
        self.wiring = tuple(
            Level(readers, sources, all_read_all(readers, sources), distribution=False)
            for sources, readers in pairwise((*levels, tasks))
        )
        self.networks = nn.ModuleList(
            options.parallel_mlp(options.experts, reads, (width,)) for reads, width in pairwise((d_in, *options.hidden))
        )
        self.routes = nn.ModuleList(
            Route(options, len(level.readers), width) for level, width in zip(self.wiring, options.hidden, strict=True)
        )
        self.d_out = options.hidden[-1]
        self.l0 = options.l0

    def forward(self, x: Tensor) -> Shared:
        gates = []
        first, *others = self.networks
        x = first(x)
        for route, networks in zip(self.routes, (*others, None), strict=True):
            x, z = route(x, networks)
            gates.append(z)
        return Shared(x, tuple(gates), self.penalty() if self.training else x.new_zeros(()))

    def penalty(self) -> Tensor:
        """lambda times the expected number of gates that are not zero, of all levels."""
        return self.l0 * torch.cat([route.open().flatten() for route in self.routes if isinstance(route, Route)]).sum()

    def multiply_adds(self) -> int:
        first, *others = (one for one in self.networks if isinstance(one, ParallelMLP))
        routes = (one for one in self.routes if isinstance(one, Route))
        read = zip(routes, (*others, None), strict=True)
        return first.multiply_adds() + sum(route.multiply_adds(networks) for route, networks in read)


class Route(nn.Module):
    """u (B, E, H) -> what each reader reads, v (B, readers, H), and the gates z (B, readers, E).

    With the ``networks`` that read it, what they make of it: their first layers, like readings, are linear.
    """

    def __init__(self, options: SNR, readers: int, width: int) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((readers, options.experts), OPEN))
        bound = 1 / math.sqrt(options.experts * width)
        shape = (readers, width, options.experts, width)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound)) if options.routing == "trans" else None
        self.width = width
        self.beta, self.gamma, self.zeta = options.beta, options.gamma, options.zeta

    def forward(self, u: Tensor, networks: ParallelMLP | None = None) -> tuple[Tensor, Tensor]:
        z = self.drawn() if self.training else self.expected()
        gates = z.to(u.dtype).expand(u.shape[0], -1, -1)
        if self.weight is None:
            v = mix(gates, u)
            return v if networks is None else networks(v), gates
        # z_ij is one number for a whole batch: on the matrices it costs less than on the rows
        matrices = (self.weight * z[:, None, :, None]).flatten(2)  # (readers, H, E H)
        last = u.permute(1, 2, 0).flatten(0, 1) if lies_last(u) else u.flatten(1).t()  # (E H, B)
        if networks is not None:
            return networks.through(last.t(), matrices), gates
        return (matrices.flatten(0, 1) @ last).view(*matrices.shape[:2], -1).permute(2, 0, 1), gates

    def drawn(self) -> Tensor:
        """z = min(1, max(0, s (zeta - gamma) + gamma)), s = sigmoid((log u - log(1 - u) + log alpha) / beta).

        u ~ U(0, 1); hard concrete as in Louizos et al. 2018: beta divides the whole sum, not log alpha alone as Ma et
        al. print it.
        """
        noise = torch.rand_like(self.log_alpha).logit(1e-6)
        return self.cut(torch.sigmoid((noise + self.log_alpha) / self.beta))

    def expected(self) -> Tensor:
        """z_hat = min(1, max(0, sigmoid(log alpha) (zeta - gamma) + gamma)); what serves (Louizos et al. 2018)."""
        return self.cut(torch.sigmoid(self.log_alpha))

    def open(self) -> Tensor:
        """1 - Q(s < 0) = sigmoid(log alpha - beta log(-gamma / zeta)), the probability that a gate is not zero."""
        return torch.sigmoid(self.log_alpha - self.beta * math.log(-self.gamma / self.zeta))

    def cut(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def multiply_adds(self, networks: ParallelMLP | None) -> int:
        """Multiply-adds of one row through this and what reads it."""
        if self.weight is not None and networks is not None:
            return networks.multiply_adds_through(self.weight.shape[2:].numel())
        own = self.log_alpha.numel() * self.width if self.weight is None else self.weight.numel()
        return own + (0 if networks is None else networks.multiply_adds())
