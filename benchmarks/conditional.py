"""From which size on sparse gates save time: all experts on all rows, or each on the rows that read it.

    OMP_NUM_THREADS=1 python benchmarks/conditional.py --rounds 5

Evaluation of gate, experts [128, 64] and mixture on x (B, 700), the two ways in turn; rows per second of CPU time (with
one thread that is time, but for other programs), ratios of medians. Last, which way ``mix_experts`` takes. k = 1 is
DSelect-k with settled selectors, as a top-1 gate cannot be trained; the others are top-k.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from machine import describe
from multigate.nn.dispatch import dispatch_pays, dispatched
from multigate.nn.mixture import mix
from multigate.sharing import MMoE
from multigate.sharing.mmoe import MixtureSharing

D, HIDDEN = 700, (128, 64)


def build(experts: int, k: int, tasks: int) -> MixtureSharing:
    """An MMoE whose gates choose k experts for each row and task."""
    options = MMoE(experts=experts, hidden=HIDDEN, gating="top_k" if k > 1 else "dselect_k", k=k)
    module = options.build(D, tuple(f"task {i}" for i in range(tasks))).eval()
    if k == 1:
        for parameter in module.gate.to_z.parameters():
            parameter.mul_(1e6)
    return module


def dense(module: MixtureSharing, x: Tensor) -> Tensor:
    return mix(module.gate(x).weights, module.experts(x))


def sparse(module: MixtureSharing, x: Tensor) -> Tensor:
    weights = module.gate(x).weights
    used = (weights != 0).any(1)
    return dispatched(weights, module.experts, x, used, used.sum(0).tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[8192, 256, 1])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    print(describe())
    print("| rows | T | E | k | M mult-adds a row, all | a row, read | rows/s, all | rows/s, dispatched | x | rule |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for rows in arguments.batches:
        for tasks in (2, 8):
            for experts in arguments.experts:
                for k in (1, 2, 4):
                    print(line(rows, tasks, experts, k, arguments.rounds), flush=True)


def line(rows: int, tasks: int, experts: int, k: int, rounds: int) -> str:
    module, x = build(experts, k, tasks), torch.randn(rows, D)
    each = module.experts.multiply_adds() // experts
    by_expert = (module.gate(x).weights != 0).any(1).sum(0).tolist()
    torch.testing.assert_close(dense(module, x), sparse(module, x), atol=1e-5, rtol=1e-5)
    repeats = max(1, 512 // rows)
    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    for _ in range(rounds):
        for name, way in (("dense", dense), ("sparse", sparse)):
            began = time.process_time()
            for _ in range(repeats):
                way(module, x)
            seconds[name].append((time.process_time() - began) / repeats)
    slow, fast = (statistics.median(seconds[name]) for name in ("dense", "sparse"))
    fixed = module.gate.multiply_adds() + tasks * experts * HIDDEN[-1]
    rule = "dispatched" if dispatch_pays(rows, by_expert, each) else "all"
    return (
        f"| {rows} | {tasks} | {experts} | {k} | {(experts * each + fixed) / 1e6:.2f} | "
        f"{(sum(by_expert) / rows * each + fixed) / 1e6:.2f} | {rows / slow:,.0f} | {rows / fast:,.0f} | "
        f"{slow / fast:.2f} | {rule} |"
    )


if __name__ == "__main__":
    main()
