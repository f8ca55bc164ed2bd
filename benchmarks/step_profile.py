"""What a training step is made of: the time of each operator, put into groups.

Times are those of torch's profiler, which slows small operators down; ``plain`` is the step without it. What no
operator accounts for is Python's: the time between them.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity
from torch.profiler import profile as watched

from multigate.batch import Batch
from multigate.training.fit import Fit
from results import table
from steps import step_ms

GAP = "Python, between operators"
GROUPS = (
    ("optimiser", r"adam|adagrad|sgd|_foreach|lerp|Optimizer|clip_grad"),
    ("matmul", r"mm\b|mm_|matmul|linear\b|gemm|mkldnn"),
    ("embeddings: gather, scatter", r"embedding|index|gather|scatter|unique|coalesce|sparse|sort|take"),
    ("softmax, mix", r"softmax"),
    ("loss", r"binary_cross|bce|nll|log_sigmoid|logsigmoid|softplus|cross_entropy|mse"),
    ("activation", r"relu|threshold|silu|gelu|tanh|clamp"),
    ("random draws", r"rand|bernoulli|dropout|uniform"),
    ("copies and casts", r"copy|\bcat|clone|contiguous|::to\b|stack|zero|fill|empty|ones|full"),
    ("views", r"view|reshape|expand|permute|transpose|::t$|slice|select|squeeze|as_strided|narrow|detach|unbind|split"),
    ("other arithmetic", r"aten::[a-z_]+$"),
)
"""Groups by what the names of their operators hold; the first that fits."""


class Operator(NamedTuple):
    """Milliseconds a step of one operator itself, and its calls a step."""

    name: str
    group: str
    milliseconds: float
    calls: float


class Profile(NamedTuple):
    """A step with and without the profiler, in milliseconds, and its operators, the slowest first."""

    plain: float
    under_profiler: float
    parts: tuple[Operator, ...]

    def shares(self) -> dict[str, float]:
        """Milliseconds a step of each group, the largest first."""
        sums: dict[str, float] = defaultdict(float)
        for part in self.parts:
            sums[part.group] += part.milliseconds
        sums[GAP] = max(0.0, self.under_profiler - sum(sums.values()))
        return dict(sorted(sums.items(), key=lambda one: -one[1]))

    def told(self, limit: float) -> str:
        matmul = self.shares().get("matmul", 0.0)
        return (
            f"{self.plain:.2f} ms a step, {self.under_profiler:.2f} under the profiler, matmuls {matmul:.2f} there; at "
            f"the machine's best rate they would take {limit:.2f}."
        )

    def groups(self) -> str:
        rows = [[name, f"{ms:.2f}", f"{ms / self.under_profiler:.0%}"] for name, ms in self.shares().items()]
        return table(["group", "ms a step", "share"], rows)

    def operators(self, many: int = 12) -> str:
        slowest = self.parts[:many]
        rows = [[f"`{one.name}`", one.group, f"{one.calls:.1f}", f"{one.milliseconds:.2f}"] for one in slowest]
        return table(["operator", "group", "calls a step", "ms a step, itself"], rows)


def profile(fit: Fit, batches: list[Batch]) -> Profile:
    """Look at a step of a training over some batches, the first of which warm up."""
    step_ms(fit, batches[:5])
    plain = step_ms(fit, batches)
    with watched(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
        slow = step_ms(fit, batches)
    found = record.key_averages(group_by_input_shape=True)
    return Profile(plain, slow, operators(found, len(batches), fit.loader.batch_size))


def operators(found: Iterable[Any], steps: int, rows: int) -> tuple[Operator, ...]:
    """Operators of so many steps of ``rows`` rows, each with its group."""
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in found:
        at = sums[event.key, group_of(event.key, event.input_shapes, rows)]
        at[0] += event.self_cpu_time_total / 1e3 / steps
        at[1] += event.count / steps
    parts = [Operator(name, group, *figures) for (name, group), figures in sums.items() if figures[0] > 0]
    return tuple(sorted(parts, key=lambda one: -one.milliseconds))


def group_of(name: str, shapes: Iterable[Any], rows: int) -> str:
    """The group of an operator; a batched product with a matrix for each row is the mixture."""
    first = next((shape for shape in shapes or () if isinstance(shape, list | tuple) and shape), ())
    if re.search(r"bmm", name) and len(first) == 3 and first[0] == rows:
        return "softmax, mix"
    return next((group for group, pattern in GROUPS if re.search(pattern, name)), "the rest")
