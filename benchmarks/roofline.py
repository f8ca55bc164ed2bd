"""What the machine can do: its GEMM rate and memory bandwidth, measured, and the least time a training step could take.

    python benchmarks/roofline.py --threads 2

The limit of a step is its counted multiply-adds over the best rate that any of the shapes below reached, in this
process and with this number of threads. That is a bound for all shapes, so shares of it are on the low side. Bytes are
told beside it: what the optimiser and the embeddings must move, at the bandwidth of the memory; a model that fits into
a cache is not bound by that.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from machine import PRECISIONS, describe
from quiet import LEGEND, Spread, Watch, options, spread
from results import show, table

DTYPES = {name: getattr(torch, name) for name in PRECISIONS}
MEMORY = 256 << 20
"""Bytes walked to measure the memory: more than any cache holds."""
SECONDS = 0.15
"""Spent on each shape."""
SHORT = 0.04
"""The same, beside a run."""


class Shape(NamedTuple):
    """``n`` products of (rows, inner) by (inner, columns)."""

    name: str
    n: int
    rows: int
    inner: int
    columns: int

    @property
    def multiply_adds(self) -> int:
        return self.n * self.rows * self.inner * self.columns


SHAPES = (
    Shape("first layer, forward", 1, 1024, 336, 1024),
    Shape("first layer, gradient of its weights", 1, 1024, 1024, 336),
    Shape("first layer, gradient of its input", 1, 336, 1024, 1024),
    Shape("second layer of 8 experts, forward", 8, 64, 128, 1024),
    Shape("second layer, gradient of its weights", 8, 64, 1024, 128),
    Shape("second layer, gradient of its input", 8, 128, 64, 1024),
    Shape("first layer at 4096 rows", 1, 1024, 448, 4096),
)
"""Those of the tutorial's MMoE on Census-Income in batches of 1024 rows, and of the wide one in batches of 4096."""


class Machine(NamedTuple):
    """Multiply-adds a second by precision; bytes a second read and written."""

    rates: dict[str, float]
    read: float
    write: float


class Work(NamedTuple):
    """What one training step must do: multiply-adds, bytes to read and bytes to write."""

    multiply_adds: int
    read: int = 0
    written: int = 0


class Limit(NamedTuple):
    """The least milliseconds of a step: of its matmuls, and of its bytes where nothing is in a cache."""

    gemm: float
    memory: float


def step_multiply_adds(forward: int, rows: int, frozen: int = 0) -> int:
    """Multiply-adds of a step on ``rows`` rows, of which one takes ``forward`` of them forwards.

    The backward pass multiplies twice as much, for the gradients of weights and of inputs. ``frozen`` of the forward
    ones, a row, read an input that needs no gradient.
    """
    return rows * (3 * forward - frozen)


def adam_bytes(weights: int) -> tuple[int, int]:
    """Bytes that Adam reads (weight, gradient, two moments) and writes (all but the gradient), in float32."""
    return 16 * weights, 12 * weights


def adagrad_bytes(weights: int, dim: int) -> tuple[int, int]:
    """Bytes that row-wise Adagrad reads (weight, gradient, one number a row) and writes."""
    return 8 * weights + 4 * weights // dim, 4 * weights + 4 * weights // dim


def embedding_bytes(look_ups: int, dim: int) -> tuple[int, int]:
    """Bytes read (rows of tables, gradient of x) and written (x, the gradient's rows) by gathering and scattering."""
    return 8 * look_ups * dim, 8 * look_ups * dim


def step_work(forward: int, rows: int, *moved: tuple[int, int], frozen: int = 0) -> Work:
    """The work of a step, with what is moved: pairs of bytes read and written."""
    return Work(
        step_multiply_adds(forward, rows, frozen), sum(one for one, _ in moved), sum(other for _, other in moved)
    )


def limit(work: Work, machine: Machine, precision: str) -> Limit:
    """The least time of some work on this machine."""
    memory = work.read / machine.read + work.written / machine.write
    return Limit(1e3 * work.multiply_adds / machine.rates[precision], 1e3 * memory)


def fastest(work: Callable[[], object], seconds: float = SECONDS) -> float:
    """Seconds of the fastest of as many calls as fit into ``seconds``, after two that are not timed."""
    work()
    work()
    least, end = float("inf"), time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        work()
        least = min(least, time.perf_counter() - began)
    return least


def rate(precision: str) -> float:
    """Multiply-adds a second of the best of the shapes, by a short look."""
    return max(gemm_rate(shape, DTYPES[precision], SHORT) for shape in SHAPES)


def gemm_rate(shape: Shape, dtype: torch.dtype, seconds: float = SECONDS) -> float:
    """Multiply-adds a second of one shape."""
    a = torch.randn(shape.n, shape.rows, shape.inner).to(dtype)
    b = torch.randn(shape.n, shape.inner, shape.columns).to(dtype)
    out = torch.empty(shape.n, shape.rows, shape.columns, dtype=dtype)
    if shape.n == 1:
        a, b, out = a[0], b[0], out[0]
        return shape.multiply_adds / fastest(lambda: torch.mm(a, b, out=out), seconds)
    return shape.multiply_adds / fastest(lambda: torch.bmm(a, b, out=out), seconds)


def bandwidths() -> tuple[float, float]:
    """Bytes a second read, by a sum, and written, by filling."""
    memory = torch.zeros(MEMORY // 4)
    return MEMORY / fastest(memory.sum, 0.4), MEMORY / fastest(lambda: memory.fill_(1.0), 0.4)


def measure() -> Machine:
    """The best rate over the shapes, for each precision, and the bandwidths; takes some three seconds."""
    rates = {name: max(gemm_rate(shape, dtype) for shape in SHAPES) for name, dtype in DTYPES.items()}
    return Machine(rates, *bandwidths())


def best(machines: list[Machine]) -> Machine:
    """The best that was seen in any round: a limit is what the machine can do when nothing holds it up."""
    rates = {name: max(one.rates[name] for one in machines) for name in machines[0].rates}
    return Machine(rates, max(one.read for one in machines), max(one.write for one in machines))


def told(machine: Machine) -> str:
    """One line for the foot of a table."""
    rates = ", ".join(f"{name} {2e-9 * rate:,.0f} GFLOP/s" for name, rate in machine.rates.items())
    memory = f"read {machine.read / 1e9:.1f} GB/s, written {machine.write / 1e9:.1f} GB/s"
    return f"Measured beside it: {rates}; memory {memory}."


def main() -> None:
    arguments = options(__doc__).parse_args()
    torch.set_num_threads(arguments.threads)
    watch = Watch(arguments.patience)
    kinds = {
        f"{shape.name}/{name}": (lambda shape=shape, dtype=dtype: 2e-9 * gemm_rate(shape, dtype))
        for shape in SHAPES
        for name, dtype in DTYPES.items()
    }
    found = {name: spread(runs, float) for name, runs in watch.in_turn(kinds, arguments.rounds).items()}
    memory = watch.in_turn({"memory": bandwidths}, arguments.rounds)["memory"]
    rows = [
        [f"{shape.name}: {_size(shape)}", *(found[f"{shape.name}/{name}"].text() for name in PRECISIONS)]
        for shape in SHAPES
    ]
    ends = [spread(memory, lambda pair, at=at: pair[at] / 1e9) for at in (0, 1)]
    print(describe())
    show(
        "roofline",
        table(["GFLOP/s, the fastest call in .15 s", *PRECISIONS], rows),
        f"Memory, GB/s: read {ends[0].text(1)}, written {ends[1].text(1)}.",
        *([LEGEND] if any(one.disturbed for one in (*found.values(), *ends)) else []),
    )


def _size(shape: Shape) -> str:
    return f"{f'{shape.n} x ' if shape.n > 1 else ''}{shape.rows} x {shape.inner} x {shape.columns}"


def share(limit_ms: float, measured: Spread) -> str:
    """A limit as a share of what was measured, in percent."""
    return f"{limit_ms / measured.middle:.0%}"


if __name__ == "__main__":
    main()
