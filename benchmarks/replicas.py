"""Many runs at once: 200 MMoE of the paper's synthetic experiments as one stack, and one by one as tutorials do it.

    python benchmarks/replicas.py --threads 2

Each run has a data draw and an initialisation of its own: 100 inputs, two regressions, 8 experts of 16, towers of 8,
batches of 32, Adam (Ma et al. 2018, section 3). The yardstick, which is not to be improved, is such an MMoE as
tutorials write it: lists of experts, gates and towers, Python loops over them, plain Adam. Both sides start from the
same weights, read the same batches, from memory, and must have the same losses in their first ten steps.
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from multigate.batch import TaskColumn
from multigate.datasets.synthetic import Synthetic, signal
from multigate.experiment import Optimizer
from multigate.model import Heads
from multigate.nn.parallel import ParallelMLP
from multigate.sharing import MMoE
from multigate.training.replicas import Replicas
from multigate.training.traced import TRACE_AFTER
from quiet import LEGEND, Spread, Watch, options, spread
from results import show, table
from roofline import adam_bytes, best, limit, measure, step_work, told

INPUTS, EXPERTS, HIDDEN, TOWER, TASKS, BATCH = 100, 8, 16, 8, ("y0", "y1"), 32
ADAM = Optimizer(name="adam", learning_rate=1e-3, weight_decay=0.0, schedule="constant")
BATCHES = 16
"""Different batches that each run goes round."""
EXACT = 10
"""Steps that must agree; after that rounding grows."""
SOME = 8
"""Runs of the yardstick that are timed: all cost the same."""


class MLP(nn.Module):
    """Linear layers, each followed by ReLU."""

    def __init__(self, input_dim, hidden_units):
        super().__init__()
        layers = []
        for units in hidden_units:
            layers += [nn.Linear(input_dim, units), nn.ReLU()]
            input_dim = units
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class Tutorial(nn.Module):
    """Multi-gate mixture of experts (Ma et al. 2018) over numbers: the yardstick. Do not improve it."""

    def __init__(self, input_dim=INPUTS, num_experts=EXPERTS, num_tasks=2):
        super().__init__()
        self.experts = nn.ModuleList([MLP(input_dim, [HIDDEN]) for _ in range(num_experts)])
        self.gates = nn.ModuleList([nn.Linear(input_dim, num_experts, bias=False) for _ in range(num_tasks)])
        self.towers = nn.ModuleList(
            [nn.Sequential(MLP(HIDDEN, [TOWER]), nn.Linear(TOWER, 1)) for _ in range(num_tasks)]
        )

    def forward(self, x):
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)  # (B, E, H)
        outputs = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = torch.softmax(gate(x), dim=1).unsqueeze(2)  # (B, E, 1)
            outputs.append(tower((weights * experts).sum(dim=1)).squeeze(1))
        return outputs


def train_tutorial(model, optimizer, batches):
    """Steps over batches of x (B, D) and y (B, T); the losses of each."""
    loss_function = nn.MSELoss()
    found = []
    for x, y in batches:
        losses = [loss_function(output, y[:, k]) for k, output in enumerate(model(x))]
        loss = sum(losses)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append([one.item() for one in losses])
    return found


class Paper(nn.Module):
    """The same model of this library's parts: x (B, D) -> (B, T)."""

    def __init__(self) -> None:
        super().__init__()
        self.sharing = MMoE(experts=EXPERTS, hidden=(HIDDEN,)).build(INPUTS, TASKS)
        self.towers = ParallelMLP(len(TASKS), HIDDEN, (TOWER,))
        self.heads = Heads([TaskColumn(name=name, kind="regression") for name in TASKS], [None] * len(TASKS), TOWER)

    def forward(self, x: Tensor) -> Tensor:
        return self.heads(self.towers(self.sharing(x).z))

    @torch.no_grad()
    def begin_with(self, model: Tutorial) -> "Paper":
        """Take over the weights of the other."""
        for i, expert in enumerate(model.experts):
            self.sharing.experts.layers[0].weight[i] = expert.layers[0].weight
            self.sharing.experts.layers[0].bias[i] = expert.layers[0].bias
        for k, (gate, tower) in enumerate(zip(model.gates, model.towers, strict=True)):
            self.sharing.gate.linear.weight[k] = gate.weight
            self.towers.layers[0].weight[k] = tower[0].layers[0].weight
            self.towers.layers[0].bias[k] = tower[0].layers[0].bias
            self.heads.weight[k] = tower[1].weight[0]
            self.heads.bias[k] = tower[1].bias[0]
        return self

    def multiply_adds(self) -> int:
        """Of one row, forwards."""
        return self.sharing.multiply_adds() + self.towers.multiply_adds() + self.heads.weight.numel()

    def first_layers(self) -> int:
        """Those of them that read x, which needs no gradient."""
        return INPUTS * (EXPERTS * HIDDEN + len(TASKS) * EXPERTS)


def squares(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    losses = (model(x) - y).square().mean(0)
    return losses, losses.sum()


def draw(runs: int) -> tuple[Tensor, Tensor]:
    """A data draw for each run: x (batches, R, B, D) and y (batches, R, B, T)."""
    each = []
    for run in range(runs):
        random = np.random.default_rng(run)
        x = random.standard_normal((BATCHES * BATCH, INPUTS))
        y = signal(Synthetic(seed=run), x) + 0.1 * random.standard_normal((len(x), len(TASKS)))
        each.append((torch.from_numpy(x).float(), torch.from_numpy(y).float()))
    xs, ys = (
        torch.stack(one).unflatten(1, (BATCHES, BATCH)).transpose(0, 1).contiguous() for one in zip(*each, strict=True)
    )
    return xs, ys


def milliseconds(steps: int, step) -> float:
    began = time.perf_counter()
    for at in range(steps):
        step(at)
    return 1e3 * (time.perf_counter() - began) / steps


def check(tutorials: Sequence[Tutorial], replicas: Replicas, x: Tensor, y: Tensor) -> float:
    """The largest relative difference of losses in the first steps."""
    together = torch.stack([replicas.step(x[at], y[at]) for at in range(EXACT)], 1)
    most = 0.0
    for run, model in enumerate(tutorials):
        batches = [(x[at, run], y[at, run]) for at in range(EXACT)]
        alone = torch.tensor(
            train_tutorial(model, torch.optim.Adam(model.parameters(), lr=ADAM.learning_rate), batches)
        )
        most = max(most, ((together[run] - alone).abs() / alone).max().item())
    return most


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 10, 50, 200], help="sizes of the stack")
    parser.add_argument("--steps", type=int, default=40, help="steps of each side in each round")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    watch = Watch(arguments.patience)
    x, y = draw(max(arguments.runs))
    tutorials = [Tutorial() for _ in range(max(arguments.runs))]
    stacks: dict[int, Replicas] = {}
    for runs in arguments.runs:
        stacks[runs] = Replicas([Paper().begin_with(one) for one in tutorials[:runs]], squares, ADAM)
    off = check(tutorials[:SOME], stacks[max(arguments.runs)], x, y)
    if off > 1e-4:
        raise SystemExit(f"the losses of the two sides differ by {off:.1e} in their first {EXACT} steps")
    some = [(model, torch.optim.Adam(model.parameters(), lr=ADAM.learning_rate)) for model in tutorials[:SOME]]

    def one_by_one() -> float:
        steps = max(1, arguments.steps // 2)
        began = time.perf_counter()
        for run, (model, optimizer) in enumerate(some):
            train_tutorial(model, optimizer, [(x[at % BATCHES, run], y[at % BATCHES, run]) for at in range(steps)])
        return 1e3 * (time.perf_counter() - began) / steps / len(some)

    def stacked(runs: int) -> float:
        xs, ys = x[:, :runs].contiguous(), y[:, :runs].contiguous()
        return milliseconds(arguments.steps, lambda at: stacks[runs].step(xs[at % BATCHES], ys[at % BATCHES]))

    for runs in arguments.runs:  # until they are traced
        milliseconds(TRACE_AFTER + 5, lambda at, runs=runs: stacks[runs].step(x[0, :runs], y[0, :runs]))
        stacked(runs)
    sides = {"tutorial": one_by_one} | {str(runs): partial(stacked, runs) for runs in arguments.runs}
    machines, found = [], {name: [] for name in sides}
    for _ in range(arguments.rounds):
        machines.append(measure())
        for name, taken in watch.in_turn(sides, 1).items():
            found[name] += taken
    spreads: dict[str, Spread] = {name: spread(taken, float) for name, taken in found.items()}
    machine, model = best(machines), Paper()
    weights = sum(p.numel() for p in model.parameters())
    rows = [["tutorial, one after the other", spreads["tutorial"].text(2), spreads["tutorial"].text(2), "1", "", ""]]
    for runs in arguments.runs:
        took = spreads[str(runs)]
        work = step_work(model.multiply_adds(), runs * BATCH, adam_bytes(runs * weights), frozen=model.first_layers())
        least = limit(work, machine, "float32")
        ratio = spreads["tutorial"].middle * runs / took.middle
        each = f"{took.middle / runs:.3f}".lstrip("0")
        rows.append(
            [
                f"{runs} stacked",
                took.text(2),
                each,
                f"{ratio:.1f}",
                f"{least.gemm / took.middle:.0%}",
                f"{least.memory:.1f}",
            ]
        )
    head = [
        "runs",
        "ms a step of all",
        "ms a run",
        "x tutorial",
        "share of the GEMM limit",
        "ms to move weights, moments, gradients",
    ]
    foot = f"Losses of the first {EXACT} steps agree to {off:.0e}. {weights:,} weights a run. {told(machine)} {LEGEND}"
    show("replicas", table(head, rows), foot)


if __name__ == "__main__":
    main()
