"""What soft sharing's penalties add to a training step, ours beside a singular value decomposition at every step.

    python benchmarks/trace_norm.py --rounds 9

A step: forward and backward of T networks of [128, 64] on 1,024 rows of width 700, penalty and fused AdamW included, no
embeddings and towers; float32, one thread. The sides take turns; medians, least and most in milliseconds of the
processor, in which other programs do not count.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from machine import describe
from multigate.sharing import Soft

D, ROWS = 700, 1024
EVERY = 10


class NaiveTrace(nn.Module):
    """Sum of singular values of the first unfolding, differentiated through the decomposition."""

    def forward(self, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.linalg.svdvals(torch.cat((weight.flatten(1), bias), dim=1)).sum()


class NaiveTucker(nn.Module):
    """The same of all three unfoldings."""

    def forward(self, weight: Tensor, bias: Tensor) -> Tensor:
        weight = torch.cat((weight, bias.unsqueeze(-1)), dim=-1)
        return sum(torch.linalg.svdvals(weight.movedim(axis, 0).flatten(1)).sum() for axis in range(3))


SIDES: dict[str, tuple[Soft, type[nn.Module] | None]] = {
    "no penalty": (Soft(strength=0.0), None),
    "l2": (Soft(), None),
    "trace": (Soft(penalty="trace"), None),
    "trace, by SVD": (Soft(penalty="trace"), NaiveTrace),
    f"tucker, a subgradient for {EVERY} steps": (Soft(penalty="tucker", every=EVERY), None),
    "tucker, a subgradient a step": (Soft(penalty="tucker", every=1), None),
    "tucker, by SVD": (Soft(penalty="tucker"), NaiveTucker),
}


def stepping(options: Soft, naive: type[nn.Module] | None, tasks: int) -> Callable[[], None]:
    """A function that takes one training step."""
    torch.manual_seed(0)
    module = options.build(D, tuple(f"task {i}" for i in range(tasks)))
    if naive is not None:
        module.ties = nn.ModuleList(naive() for _ in module.ties)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    x = torch.randn(ROWS, D, requires_grad=True)
    target = torch.randn(ROWS, tasks, module.d_out)

    def step() -> None:
        shared = module(x)
        optimizer.zero_grad()
        ((shared.z - target).square().mean() + shared.penalty).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 8])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(describe())
    for tasks in arguments.tasks:
        steps = {name: stepping(*side, tasks) for name, side in SIDES.items()}
        times: dict[str, list[float]] = {name: [] for name in SIDES}
        for number in range(arguments.rounds + 1):
            for name, step in steps.items():
                start = time.process_time()
                for _ in range(EVERY):
                    step()
                if number:  # the first round warms up
                    times[name].append(1000 * (time.process_time() - start) / EVERY)
        without = statistics.median(times["no penalty"])
        print(f"\n| {tasks} tasks | ms a step (min to max) | more than without |")
        print("|---|---|---|")
        for name, values in times.items():
            middle = statistics.median(values)
            print(f"| {name} | {middle:.1f} ({min(values):.1f} to {max(values):.1f}) | {middle / without - 1:+.0%} |")


if __name__ == "__main__":
    main()
