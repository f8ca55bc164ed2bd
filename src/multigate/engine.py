"""Engines: what turns encoded rows into outputs when a bundle predicts: torch, or a graph of the same model."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Barrier, Lock
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from multigate.batch import BagIds, Batch, IdColumn, Layout
from multigate.data.encoder import Arrays
from multigate.data.rows import cuts
from multigate.errors import BundleError
from multigate.model import TOGETHER, Model
from multigate.precision import multiplying

Floats = NDArray[np.float32]
More = TypeVar("More")

BLOCK = 512
"""Rows that a graph computes in one call at most: what lies between its operators then stays in the cache."""
SMALL = 64
"""Rows that are not worth another thread."""
CPU = torch.device("cpu")
_BEGINNING = Lock()
ABSOLUTE, RELATIVE = 1e-5, 3e-5
"""How far outputs of two engines may lie apart: no probability then differs by more than 1e-5."""


class Answers(NamedTuple):
    """What ``Outputs`` holds for those who predict: logits and conditionals (R, O), gates (R, readers, sources).

    Where there are no chains, conditionals are the logits, the same array.
    """

    logits: Floats
    conditionals: Floats
    gates: tuple[Floats, ...]


class Engine(Protocol):
    """Computes what a model computes, in evaluation and float32."""

    name: str

    def __call__(self, rows: Arrays) -> Answers:
        """Of few rows, on this thread."""
        ...

    def over(self, batches: Iterable[tuple[Batch, More]]) -> Iterator[tuple[Answers, More]]:
        """Of one batch after the other, each with what came beside it."""
        ...


Some = TypeVar("Some", bound=Engine)


class Torch:
    """The model itself; it is always there. ``precision`` is that of its matmuls, float32 or bfloat16."""

    name = "torch"

    def __init__(self, model: Model, precision: str = "float32") -> None:
        self.model = model
        self.precision = precision

    def __call__(self, rows: Arrays) -> Answers:
        bags = [BagIds(torch.from_numpy(values), torch.from_numpy(offsets)) for values, offsets in rows.bags]
        if self.model.training:  # by whoever trained it further: dropout would be drawn, and moments of rows learnt
            self.model.eval()
        with torch.inference_mode(), multiplying(self.precision, CPU):
            out = self.model(torch.from_numpy(rows.numbers), torch.from_numpy(rows.categories), bags)
        logits = out.logits.float().numpy()
        conditionals = logits if out.conditionals is out.logits else out.conditionals.float().numpy()
        return Answers(logits, conditionals, tuple(gate.float().numpy() for gate in out.gates))

    def over(self, batches: Iterable[tuple[Batch, More]]) -> Iterator[tuple[Answers, More]]:
        return _spread(self, batches, TOGETHER)


class Onnx:
    """A graph that ``export_graph`` wrote, run by ONNX Runtime.

    It shares the weights of ``model``; without one it maps those that lie beside the graph into memory, and computes
    with others once that file is written over.

    ``of_one``, where it is set, computes a row that is alone. Raises ``BundleError`` where ONNX Runtime is missing or
    broken, or refuses the graph or its rows.
    """

    name = "onnx"

    def __init__(self, graph: Path, model: Model | None = None) -> None:
        self.of_one: Onnx | None = None
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise BundleError("engine 'onnx' needs the package onnxruntime; pip install 'multigate[onnx]'") from None
        except Exception as error:  # made for another numpy, a library that is not there: each says it in its own way
            raise BundleError(f"ONNX Runtime cannot be imported ({_short(error)}); install it again") from error
        self._graph = graph
        try:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 4
            self._held = {} if model is None else _values(onnxruntime.OrtValue, model)
            for name, value in self._held.items():
                options.add_initializer(name, value)
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own errors have no public parent
            raise BundleError(f"ONNX Runtime refuses {graph} ({_short(error)}); export the bundle again") from error
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._outputs = [one.name for one in self._session.get_outputs()]
        self._chains = "conditionals" in self._outputs

    def __call__(self, rows: Arrays) -> Answers:
        if self.of_one is not None and len(rows.numbers) == 1:
            return self.of_one(rows)
        if not len(rows.numbers):
            made = self(_blank(rows))  # up to version 1.31 ONNX Runtime ends the process where there are no rows
            logits = made.logits[:0]
            conditionals = made.conditionals[:0] if self._chains else logits
            return Answers(logits, conditionals, tuple(one[:0] for one in made.gates))
        columns = [rows.numbers, rows.categories]
        for bag in rows.bags:
            columns += bag
        feed = dict(zip(self._inputs, columns, strict=True))
        try:
            logits, *rest = self._session.run(self._outputs, feed)
        except Exception as error:
            why = _short(error)
            raise BundleError(f"ONNX Runtime cannot run {self._graph} ({why}); predict with engine 'torch'") from error
        return Answers(logits, rest.pop(0) if self._chains else logits, tuple(rest))

    def over(self, batches: Iterable[tuple[Batch, More]]) -> Iterator[tuple[Answers, More]]:
        return _spread(self, batches, BLOCK)


def _values(kind: Any, model: Model) -> dict[str, Any]:
    """A model's weights by their names in its graph, in the memory that they have."""
    return {
        f"model.{name}": kind.ortvalue_from_numpy(one.contiguous().numpy()) for name, one in model.state_dict().items()
    }


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def arrays(batch: Batch) -> Arrays:
    """What a model reads of a batch; nothing is copied."""
    bags = tuple((bag.values.numpy(), bag.offsets.numpy()) for bag in batch.bags)
    return Arrays(batch.numbers.numpy(), batch.categories.numpy(), bags)


def _blank(rows: Arrays) -> Arrays:
    """A row like these, of zeros and empty bags."""
    numbers, categories = (np.zeros((1, x.shape[1]), x.dtype) for x in (rows.numbers, rows.categories))
    bags = tuple((values[:0], np.zeros(2, offsets.dtype)) for values, offsets in rows.bags)
    return Arrays(numbers, categories, bags)


def together(rows: Sequence[Arrays]) -> Arrays:
    """What was read of rows one after the other, as one; of at least one."""
    bags = []
    for parts in zip(*(one.bags for one in rows), strict=True):
        sizes = np.concatenate([np.diff(offsets) for _, offsets in parts])
        offsets = np.concatenate([[0], sizes.cumsum()]).astype(np.int32)
        bags.append((np.concatenate([values for values, _ in parts]), offsets))
    return Arrays(
        np.concatenate([one.numbers for one in rows]), np.concatenate([one.categories for one in rows]), tuple(bags)
    )


def _spread(engine: Engine, batches: Iterable[tuple[Batch, More]], block: int) -> Iterator[tuple[Answers, More]]:
    """Answers to one batch after the other, its rows spread over as many threads as torch has, each of which computes
    by itself, at most ``block`` at a time. The next batch is made while this one is computed."""
    ahead: tuple[list[Future[Answers]], More] | None = None
    with ExitStack() as stack:
        pool: ThreadPoolExecutor | None = None
        for batch, more in batches:
            if pool is None:
                if batch.rows <= block:  # a table so short that threads would take longer to begin
                    yield engine(arrays(batch)), more
                    continue
                pool = stack.enter_context(_workers())
            size = min(block, max(SMALL, -(-batch.rows // torch.get_num_threads())))
            running = [pool.submit(engine, arrays(part)) for part in cuts(batch, size)]
            if ahead is not None:
                yield _results(ahead[0]), ahead[1]
            ahead = running, more
        if ahead is not None:
            yield _results(ahead[0]), ahead[1]


def _workers() -> ThreadPoolExecutor:
    """As many threads as torch has, on each of which it computes without the others.

    Torch gives threads that come later the number that was set last, by whichever of them: so all of these begin now,
    and then it is set as it was.
    """
    with _BEGINNING:
        threads = torch.get_num_threads()
        begun = Barrier(threads)
        pool = ThreadPoolExecutor(threads, "multigate-predict", _alone)
        try:
            list(pool.map(lambda _: begun.wait(), range(threads)))
        except BaseException:  # fewer threads than were asked for would wait for ever
            begun.abort()
            pool.shutdown()
            raise
        finally:
            torch.set_num_threads(threads)
    return pool


def _alone() -> None:
    """On this thread torch computes without others; a thread that has not been asked yet would forget it again."""
    torch.get_num_threads()
    torch.set_num_threads(1)


def _results(running: Sequence[Future[Answers]]) -> Answers:
    return _joined([one.result() for one in running])


def _joined(done: Sequence[Answers]) -> Answers:
    if len(done) == 1:
        return done[0]
    logits = np.concatenate([one.logits for one in done])
    same = done[0].conditionals is done[0].logits
    conditionals = logits if same else np.concatenate([one.conditionals for one in done])
    return Answers(logits, conditionals, tuple(map(np.concatenate, zip(*(one.gates for one in done), strict=True))))


class Engines(NamedTuple):
    """What computes one row, and what computes tables."""

    row: Engine
    table: Engine


def faster(choices: Sequence[Engines], layout: Layout) -> Engines:
    """The engine that is faster on one row, and the one on many: both are measured, in about a second."""
    many = made_up(layout, 16 * BLOCK)
    return Engines(
        faster_on_one([choice.row for choice in choices], layout),
        _fastest([choice.table for choice in choices], lambda engine: list(engine.over([(many, None)])), times=5),
    )


def faster_on_one(engines: Sequence[Some], layout: Layout) -> Some:
    """The engine that is fastest on one row."""
    one = arrays(made_up(layout, 1))
    return _fastest(engines, lambda engine: engine(one), times=30)


def _fastest(engines: Sequence[Some], work: Callable[[Some], object], times: int) -> Some:
    """The engine whose best time is the least: what else the machine does only adds.

    One after the other, not in turn: for a while after its work torch's threads stay awake, at the cost of others.
    """

    def seconds(engine: Some) -> float:
        began = time.perf_counter()
        work(engine)
        return time.perf_counter() - began

    return min(engines, key=lambda engine: min(seconds(engine) for _ in range(times)))


def disagreement(one: Engine, other: Engine, layout: Layout) -> float | None:
    """The largest difference between two engines' answers to made-up rows; None where they agree."""
    rows = arrays(made_up(layout, SMALL))
    pairs = list(zip(_each(one(rows)), _each(other(rows)), strict=True))
    if all(np.allclose(b, a, RELATIVE, ABSOLUTE) for a, b in pairs):
        return None
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def _each(answers: Answers) -> list[Floats]:
    return [answers.logits, answers.conditionals, *answers.gates]


def made_up(layout: Layout, rows: int) -> Batch:
    """Rows of such columns, drawn at random, the same each time."""
    draw = np.random.default_rng(0)
    numbers = draw.normal(0, 2, (rows, len(layout.numbers))).astype(np.float32)
    numbers[draw.random(numbers.shape) < 0.1] = np.nan

    def ids(column: IdColumn, many: int) -> NDArray[np.int32]:
        return draw.integers(0, layout.tables[column.table], many, dtype=np.int32)

    categories = np.empty((rows, len(layout.categories)), np.int32)
    for at, column in enumerate(layout.categories):
        categories[:, at] = ids(column, rows)
    bags = []
    for column in layout.bags:
        offsets = np.append(0, draw.integers(1, 5, rows).cumsum()).astype(np.int32)
        bags.append(BagIds(torch.from_numpy(ids(column, int(offsets[-1]))), torch.from_numpy(offsets)))
    empty = torch.empty(rows, 0, device=CPU)
    return Batch(
        torch.from_numpy(numbers), torch.from_numpy(categories), tuple(bags),
        empty, empty.bool(), empty, torch.zeros(rows, dtype=torch.int64, device=CPU),
    )  # fmt: skip
