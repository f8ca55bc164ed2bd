"""AITM: tasks in order, each of which takes over from the step before what an attention finds worth it."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, Self

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from multigate.errors import ExperimentError, nearest
from multigate.sharing.structure import Level, Shared, Structure


class AITM(Structure):
    """z_t = AIT(p_{t-1}, q_t), q_t = f_t(x), p_{t-1} = g_{t-1}(z_{t-1}), z_1 = q_1 (Xi et al. 2021, section 3)."""

    structure: Literal["aitm"] = "aitm"
    order: tuple[str, ...] = ()
    """All tasks by name, as the steps of a funnel; empty takes them as they are listed, and asks for no order of
    their probabilities."""
    order_penalty: float = Field(default=0.6, ge=0)
    """Weight alpha of what a step's probability exceeds that of the step before."""

    @field_validator("order")
    @classmethod
    def _each_once(cls, order: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((name for name in order if order.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'order' names {twice!r} twice; each task is one step")
        return order

    def check(self, tasks: tuple[str, ...]) -> None:
        self.steps(tasks)

    def idle(self) -> Mapping[str, str]:
        return {} if self.order else {"order_penalty": "no 'order' names the steps"}

    def build(self, d_in: int, tasks: tuple[str, ...]) -> "AITMSharing":
        return AITMSharing(self, d_in, tasks)

    def for_tasks(self, tasks: tuple[str, ...]) -> Self:
        return self.with_(order=tuple(name for name in self.order if name in tasks))

    def inputs(self, tasks: int) -> int | None:
        return tasks

    def steps(self, tasks: tuple[str, ...]) -> tuple[int, ...]:
        """Places of the tasks, in order; raises ``ExperimentError`` where ``order`` is not all of them."""
        for name in self.order:
            if name not in tasks:
                raise ExperimentError(f"order of aitm: there is no task {name!r}; {nearest(name, tasks)}")
        order = self.order or tasks
        for name in tasks:
            if name not in order:
                raise ExperimentError(
                    f"order of aitm names every task, and {name!r} is missing; say after which it comes"
                )
        return tuple(tasks.index(name) for name in order)


class AITMSharing(nn.Module):
    """x (B, D) or (B, T, D) -> z (B, T, H), gates ((B, T, T),): a task's weights of its own network and of the step
    before."""

    sequence: Tensor
    own: Tensor
    previous: Tensor

    def __init__(self, options: AITM, d_in: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        self.networks = options.parallel_mlp(len(tasks), d_in)
        self.d_out = self.networks.d_out
        self.steps = options.steps(tasks)
        self.transfers = nn.ModuleList(Transfer(options, self.d_out) for _ in self.steps[1:])
        self.order_penalty = options.order_penalty if options.order else 0.0
        before = {task: earlier for earlier, task in pairwise(self.steps)}
        places = range(len(tasks))
        previous = [[float(before.get(task) == source) for source in places] for task in places]
        own = [[float(task == source) for source in places] for task in places]
        self.register_buffer("sequence", torch.tensor(self.steps), persistent=False)
        self.register_buffer("own", torch.tensor(own), persistent=False)
        self.register_buffer("previous", torch.tensor(previous), persistent=False)
        mask = tuple(tuple(source in (task, before.get(task)) for source in places) for task in places)
        self.wiring = (Level(tasks, tuple(f"network of {task}" for task in tasks), mask),)

    def forward(self, x: Tensor) -> Shared:
        # q_t, replaced step by step; (H, B), where the batch lies
        z = list(self.networks(x).permute(1, 2, 0).unbind(0))
        taken = [torch.zeros_like(one[0]) for one in z]  # (B,) weight of the step before
        for (before, task), transfer in zip(pairwise(self.steps), self.transfers, strict=True):
            z[task], taken[task] = transfer(z[before], z[task])
        w = torch.stack(taken, dim=1).unsqueeze(-1)
        gates = ((1 - w) * self.own + w * self.previous,)
        return Shared(torch.stack(z).permute(2, 0, 1), gates, penalty=x.new_zeros(()))

    def output_penalty(self, probabilities: Tensor, binary: Tensor) -> Tensor:
        """alpha / N sum_n sum_{t >= 2} max(p_t - p_{t-1}, 0), over pairs of binary steps (Xi et al. 2021).

        probabilities (B, T), binary (T,) bool -> scalar.
        """
        if not self.order_penalty:
            return probabilities.new_zeros(())
        p, counts = probabilities.index_select(1, self.sequence), binary.index_select(0, self.sequence)
        beyond = (p[:, 1:] - p[:, :-1]).clamp_min(0) * (counts[1:] & counts[:-1])
        return self.order_penalty * beyond.sum() / max(len(p), 1)

    def multiply_adds(self) -> int:
        return self.networks.multiply_adds() + sum(
            one.multiply_adds() for one in self.transfers if isinstance(one, Transfer)
        )


class Transfer(nn.Module):
    """AIT(g(z_{t-1}), q_t) = sum_u w_u h1(u), w = softmax(<h2(u), h3(u)> / sqrt(H)) over the two u.

    Both (H, B) -> z_t (H, B), and the weight (B,) of what the step before passed on.

    h1, h2 and h3 are linear. So <W2 u, W3 u> = <u, (W2^T W3) u>, whose matrix is made once for a batch, and
    sum_u w_u W1 u = W1 sum_u w_u u: a row takes three products with a matrix in place of six.
    """

    def __init__(self, options: AITM, width: int) -> None:
        super().__init__()
        self.info = options.parallel_mlp(1, width, (width,))
        self.attention = nn.Linear(width, 3 * width, bias=False)

    def forward(self, before: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        w1, w2, w3 = self.attention.weight.view(3, -1, len(own)).unbind()
        of_scores = w2.t() @ w3
        passed = self.info(before.t()).permute(1, 2, 0).squeeze(0)  # p_{t-1}, beside q_t
        score, score_of_own = ((u * (of_scores @ u)).sum(0) / math.sqrt(len(u)) for u in (passed, own))
        w = torch.sigmoid(score - score_of_own)  # (B,): softmax over two
        return w1 @ (own + w * (passed - own)), w

    def multiply_adds(self) -> int:
        return self.info.multiply_adds() + self.attention.weight.numel()
