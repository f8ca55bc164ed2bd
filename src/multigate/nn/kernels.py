"""Compiled code for what is no matmul: built once by the machine's own compiler, kept, and never needed.

``kernels.cpp`` is built on first use, in a few seconds, and kept in the cache folder under a name that says what it
was built from (its source, the compiler, the processor) and what is in it: a file that was cut off or altered since
would end the process, so it is never loaded, but built anew. Where there is no compiler, where it fails, or where what
it made does not give torch's numbers, ``kernels()`` is None and torch's operators do the same work.
``MULTIGATE_KERNELS=off`` does without them.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import threading
from contextlib import suppress
from ctypes import c_int, c_int64, c_void_p
from functools import cache
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multigate.cache import cache_folder
from multigate.writing import remove, writing

OFF = "MULTIGATE_KERNELS"
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
SECONDS = 120
"""After which a compiler is given up."""
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "mix": (*[c_void_p] * 3, *[c_int64] * 4, c_int),
    "unmix": (*[c_void_p] * 5, *[c_int64] * 4, c_int),
    "relu": (c_void_p, c_int64, c_int),
    "relu_of_sum": (*[c_void_p] * 2, *[c_int64] * 2, c_int),
    "mask": (*[c_void_p] * 2, c_int64, c_int),
    "sum_of_product": (*[c_void_p] * 3, *[c_int64] * 13, c_int),
    "look_up": (*[c_void_p] * 4, *[c_int64] * 4, c_int),
    "add_up": (*[c_void_p] * 5, *[c_int64] * 4, c_int),
    "lazy_adam": (*[c_void_p] * 7, *[c_int64] * 2, c_int),
    "number_pairs": (*[c_void_p] * 7, *[c_int64] * 3, c_int),
    "add_looked_up": (*[c_void_p] * 13, *[c_int64] * 8, c_int),
    "of_looked_up": (*[c_void_p] * 15, *[c_int64] * 7, c_int),
}
"""Of each function: arrays, then sizes, then threads."""
IN_FLOAT32_ALONE = (
    "sum_of_product", "look_up", "add_up", "lazy_adam", "number_pairs", "add_looked_up", "of_looked_up",
)  # fmt: skip
COUNTING = ("look_up", "number_pairs")
"""Those that return how many ids have no row."""
TERMS = 256
"""Those of a sum at most that are added one after the other."""
_ONE_AT_A_TIME = threading.Lock()


class Pairs(NamedTuple):
    """c columns of ids read as m terms, each one column or two of them, all int64.

    Term t is column ``one[t]`` and column ``other[t]`` (m,), -1 where there is none: the pairs of their values, those
    of the other one after another for each of the one, are numbered from ``first[t]`` on (m + 1,). Values of column k
    are numbered from ``value[k]`` on (c + 1,).
    """

    first: Tensor
    one: Tensor
    other: Tensor
    value: Tensor


class Lookups(NamedTuple):
    """c columns of x (B, D) that are rows of one table (rows, dim).

    ``at`` (B, m) int32: the pair of each term that a row has. The values of column k are the rows of the table from
    ``starts[k]`` on, and in x they are the ``dim`` columns from ``places[k]`` on (c,), int64.
    """

    at: Tensor
    pairs: Pairs
    starts: Tensor
    places: Tensor


class Dense(NamedTuple):
    """Columns of x (B, D) that are multiplied as they are: themselves, (B, k), and their places in x, (k,) int64."""

    x: Tensor
    places: Tensor


class Moments(NamedTuple):
    """What Adam keeps of a table (rows, dim): both moments, like it, and each row's count of steps (rows,)."""

    first: Tensor
    second: Tensor
    steps: Tensor
    betas: tuple[float, float]
    epsilon: float


class Kernels:
    """Functions of a built library, on contiguous tensors on the CPU."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.functions = {}
        for name, arguments in ARGUMENTS.items():
            for dtype, suffix in NAMES.items():
                if dtype == torch.float32 or name not in IN_FLOAT32_ALONE:
                    function = self.functions[name, dtype] = library[f"{name}_{suffix}"]
                    function.argtypes, function.restype = arguments, c_int64 if name in COUNTING else None

    def mix(self, weights: Tensor, sources: Tensor) -> Tensor:
        """sum_e weights[t, e, b] sources[e, h, b], float32 (T, E, B) and (E, H, B) -> (T, H, B)."""
        (t, e, b), h = weights.shape, sources.shape[1]
        made = sources.new_empty((t, h, b))
        self._call("mix", sources.dtype, (weights, sources, made), t, e, h, b)
        return made

    def unmix(self, weights: Tensor, sources: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of weights (T, E, B), in float32, and of sources (E, H, B), from that of ``mix`` (T, H, B)."""
        (t, e, b), h = weights.shape, sources.shape[1]
        of_sources, of_weights = torch.empty_like(sources), torch.empty_like(weights)
        self._call("unmix", sources.dtype, (weights, sources, pull, of_sources, of_weights), t, e, h, b)
        return of_weights, of_sources

    def sum_of_product(self, one: Tensor, other: Tensor, dim: int) -> Tensor | None:
        """(one * other).sum(dim), the product written nowhere, of tensors that are broadcast against each other.

        None where it is left to torch: anything but float32 on the CPU, of two to five axes, of which not the last is
        summed, and that is contiguous in both; and sums of so many terms that adding them one by one loses digits.
        """
        one, other = torch.broadcast_tensors(one, other)  # type: ignore[no-untyped-call]
        axes = one.dim()
        if not (
            one.dtype == other.dtype == torch.float32
            and one.device.type == other.device.type == "cpu"
            and 2 <= axes <= 5
            and dim % axes != axes - 1
            and one.shape[dim] <= TERMS
            and one.stride(-1) == other.stride(-1) == 1
        ):
            return None
        kept = [at for at in range(axes - 1) if at != dim % axes]
        made = one.new_empty([one.shape[at] for at in (*kept, -1)])
        missing, kept = 3 - len(kept), [*kept, dim]
        sizes = [1] * missing + [one.shape[at] for at in kept]
        strides = [[0] * missing + [x.stride(at) for at in kept] for x in (one, other)]
        self._call("sum_of_product", one.dtype, (one, other, made), *sizes, *strides[0], *strides[1], one.shape[-1])
        return made

    def relu_(self, x: Tensor) -> Tensor:
        """max(x, 0), in place."""
        self._call("relu", x.dtype, (x,), x.numel())
        return x

    def relu_of_sum_(self, x: Tensor, bias: Tensor) -> Tensor:
        """max(x + bias, 0), x (..., units, B) and bias (..., units) of the same kind, in place."""
        self._call("relu_of_sum", x.dtype, (x, bias), bias.numel(), x.shape[-1])
        return x

    def mask_(self, pull: Tensor, x: Tensor) -> Tensor:
        """The gradient of what x was before ``relu_``, in place of that of x."""
        self._call("mask", x.dtype, (pull, x), x.numel())
        return pull

    def look_up(self, table: Tensor, ids: Tensor, starts: Tensor) -> Tensor:
        """Rows starts[c] + ids[b, c] of a table, float32 (rows, dim), int32 (B, C) and int64 (C,) -> (B, C, dim).

        Raises ``IndexError`` where there is no such row.
        """
        (rows, dim), (b, columns) = table.shape, ids.shape
        made = table.new_empty((b, columns, dim))
        lost = self._call("look_up", table.dtype, (table, ids, starts, made), rows, b, columns, dim)
        if lost:
            raise IndexError(f"{lost} ids are out of range of the {rows} rows of their embedding tables")
        return made

    def add_up(self, pull: Tensor, ids: Tensor, starts: Tensor, owners: Tensor, rows: int) -> Tensor:
        """The gradient of a table (rows, dim) from that of ``look_up``, (B, C, dim), whose rows may lie apart.

        ``owners`` (C,) int64: columns that may meet in a row have the same.
        """
        b, columns, dim = pull.shape
        sums = pull.new_zeros((rows, dim))
        arrays = (pull, ids, starts, owners, sums)
        self._call("add_up", pull.dtype, arrays, b, columns, dim, pull.stride(0))
        return sums

    def lazy_adam_(
        self, weight: Tensor, moments: Moments, rows: Tensor, gradient: Tensor, rate: float, kept: float
    ) -> None:
        """A step of Adam on the ``rows`` (U,) int64 of a table (rows, dim), each of them once, by their gradient
        (U, dim), and on their moments; decay leaves ``kept`` of a weight. The tables are all in float32."""
        how = torch.tensor([rate, kept, *moments.betas, moments.epsilon], dtype=torch.float64, device="cpu")
        arrays = (rows, gradient, weight, moments.first, moments.second, moments.steps, how)
        self._call("lazy_adam", weight.dtype, arrays, *gradient.shape)

    def number_pairs(self, ids: Tensor, read: Tensor, pairs: Pairs) -> Tensor:
        """``Lookups.at`` (B, m) of ids (B, C) int32, of which column k is ``read[k]`` (c,), int64.

        Raises ``IndexError`` where a column has no such value.
        """
        at = ids.new_empty((len(ids), len(pairs.one)))
        lost = self._call("number_pairs", torch.float32, (ids, read, *pairs, at), *ids.shape, len(pairs.one))
        if lost:
            raise IndexError(f"{lost} ids are out of range of the rows of their embedding tables")
        return at

    def add_looked_up_(
        self,
        made: Tensor,
        weight: Tensor,
        table: Tensor,
        of: Lookups,
        dense: Dense | None = None,
        active: int = 0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """made (m, B) + weight (m, D) @ x^T of the columns of x that are looked up + bias (m,), and ReLU of its first
        ``active`` rows, in place; all in float32, the table's width a multiple of 8.

        With ``dense`` columns the product is that of both, and written over ``made``.
        """
        arrays, sizes = self._of_x(table, of, dense)
        self._call("add_looked_up", made.dtype, (*arrays, weight, bias, made), *sizes, *weight.shape, active)
        return made

    def of_looked_up_(
        self,
        pull: Tensor,
        weight: Tensor,
        table: Tensor,
        of: Lookups,
        grown: Tensor,
        dense: Dense | None = None,
        of_bias: Tensor | None = None,
    ) -> Tensor:
        """The gradient of a table (rows, dim) from that of ``add_looked_up_``, (m, B); that of the weight is written
        into its columns of ``grown`` (m, D), that of the bias into ``of_bias`` (m,)."""
        of_table, (arrays, sizes) = torch.zeros_like(table), self._of_x(table, of, dense)
        arrays = (*arrays, weight, pull, grown, of_bias, of_table)
        self._call("of_looked_up", pull.dtype, arrays, *sizes, *weight.shape)
        return of_table

    @staticmethod
    def _of_x(table: Tensor, of: Lookups, dense: Dense | None) -> tuple[tuple[Tensor | None, ...], tuple[int, ...]]:
        """What x is made of, as arrays and sizes."""
        read, many = ((None, None), -1) if dense is None else (dense, dense.x.shape[1])
        arrays = (table, of.at, *of.pairs, of.starts, of.places, *read)
        return arrays, (*of.at.shape, len(of.starts), table.shape[1], many)

    def _call(self, name: str, dtype: torch.dtype, tensors: tuple[Tensor | None, ...], *sizes: int) -> int | None:
        arrays = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        found: int | None = self.functions[name, dtype](*arrays, *sizes, torch.get_num_threads())
        return found


class Built(NamedTuple):
    """What came of building: the kernels, or None; and the library's place, or why there are none."""

    kernels: Kernels | None
    told: str


def kernels() -> Kernels | None:
    """The kernels, built now where they never were; None where there cannot be any."""
    return built().kernels


def kernels_for(x: Tensor) -> Kernels | None:
    """The kernels, where they can compute with numbers like those of x: of a kind they know, on the CPU."""
    return kernels() if x.device.type == "cpu" and x.dtype in NAMES else None


@cache
def built() -> Built:
    """The kernels and where they lie, or why there are none; looked for once in a process."""
    if os.environ.get(OFF, "").lower() in ("off", "0", "no", "false"):
        return Built(None, f"{OFF} is {os.environ[OFF]}")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "c++"))), None)
    if compiler is None:
        return Built(None, "no C++ compiler found; install g++")
    with _ONE_AT_A_TIME:  # threads that ask before the first is done find what it has built
        return _built(compiler)


def _built(compiler: str) -> Built:
    told = ""
    for anew in (False, True):  # what lies in a cache may be broken
        try:
            path = _library(compiler, anew=anew)
            found = Kernels(path)
            with (
                torch.autocast("cpu", enabled=False),
                torch.device("cpu"),
            ):  # whoever asks first may be in the midst of it
                agrees = _agrees(found)
            if agrees:
                return Built(found, str(path))
            told = f"{path} does not give torch's numbers"
        except Exception as error:  # whatever it is, training goes on without
            told = " ".join(str(getattr(error, "stderr", None) or error).split())[:200]
    return Built(None, told)


def _library(compiler: str, *, anew: bool) -> Path:
    """The library of this source, compiler and processor, made where it is not there whole or is asked for anew."""
    source = files("multigate.nn").joinpath("kernels.cpp").read_text(encoding="utf-8")
    version = _run(compiler, "--version")
    parts = (source, compiler, version, _processor(), *FLAGS)
    key, folder = _digest("\0".join(parts).encode()), cache_folder() / "kernels"
    for path in folder.glob(f"{key}*.so"):
        if not anew and path.name == _name(key, path.read_bytes()):
            return path
        with suppress(OSError):
            remove(path)
    with TemporaryDirectory() as scratch:
        made = Path(scratch, "kernels.so")
        _run(compiler, *FLAGS, "-x", "c++", "-", "-o", str(made), given=source)
        content = made.read_bytes()
    path = folder / _name(key, content)
    with writing(path) as temporary:
        temporary.write_bytes(content)
    return path


def _name(key: str, content: bytes) -> str:
    """Of a library in the cache."""
    return f"{key}-{_digest(content)}.so"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _run(*command: str, given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=SECONDS, check=True)
    return done.stdout


def _processor() -> str:
    """What "native" means here: the kind of processor and what it can do."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join((platform.machine(), platform.processor(), *kinds))


def _agrees(found: Kernels) -> bool:
    """Whether they compute what torch does, on a few numbers."""
    random = torch.Generator().manual_seed(0)
    starts, owners = torch.tensor([0, 4, 0]), torch.tensor([0, 1, 0])
    ids = torch.randint(0, 4, (7, 3), generator=random, dtype=torch.int32)
    places = (ids + starts).long()
    pairs: list[tuple[Tensor, Tensor, float]] = []
    for dim in (5, 8, 16):  # any, and those that have code of their own
        table = torch.randn((9, dim), generator=random)
        rows = found.look_up(table, ids, starts)
        sums = torch.zeros(9, dim).index_add_(0, places.flatten(), rows.flatten(0, 1))
        pairs += [(rows, table[places], 0.0), (found.add_up(rows, ids, starts, owners, 9), sums, 1e-5)]
    pairs += [*_pairs_looked_up(found, random), *_pairs_of_adam(found, random)]
    # a tile, and in the next one 64, 16 and single rows at a time
    weights, pull, sources = (torch.randn(shape, generator=random) for shape in ((2, 3, 213), (2, 5, 213), (3, 5, 213)))
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        x, dz = sources.to(dtype), pull.to(dtype)
        of_weights, of_sources = found.unmix(weights, x, dz)
        active = torch.relu(x)
        pairs += [
            (found.mix(weights, x), (weights.unsqueeze(2) * x.float()).sum(1), near),
            (of_weights, (dz.float().unsqueeze(1) * x.float()).sum(2), near),
            (of_sources, (weights.unsqueeze(2) * dz.float().unsqueeze(1)).sum(0), near),
            (found.relu_(x.clone()), active, 0.0),
            (found.mask_(x.clone(), active), active, 0.0),
            (found.relu_of_sum_(x.clone(), x[..., 0].contiguous()), torch.relu(x + x[..., :1]), 0.0),
        ]
    one, other = weights.unsqueeze(2), torch.stack((sources, sources.flip(0))).unsqueeze(1)
    made = found.sum_of_product(one, other, 2)
    if made is None:
        return False
    pairs.append((made, (one * other).sum(2), 1e-5))
    return all(torch.allclose(one.float(), other.float(), atol=near, rtol=near) for one, other, near in pairs)


def _pairs_of_adam(found: Kernels, random: torch.Generator) -> list[tuple[Tensor, Tensor, float]]:
    """A table of which rows were moved and its moments, and the same by torch in float64."""
    table, first, second = (torch.randn((9, 5), generator=random) for _ in range(3))
    moments = Moments(first, second.square(), torch.arange(9.0) ** 2, (0.9, 0.999), 1e-8)
    rows, gradient = torch.tensor([1, 2, 8]), torch.randn((3, 5), generator=random)
    w, m, v, steps = (x[rows].double() for x in (table, *moments[:3]))
    m, v, steps = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient.square(), steps + 1
    of_first, of_second = (1 - beta ** steps.unsqueeze(1) for beta in moments.betas)
    moved = 0.5 * w - 0.01 * m / of_first / ((v / of_second).sqrt() + 1e-8)
    made = (table, *moments[:3])
    wanted = [x.double().index_copy(0, rows, new) for x, new in zip(made, (moved, m, v, steps), strict=True)]
    found.lazy_adam_(table, moments, rows, gradient, 0.01, 0.5)
    return [(one, other, 1e-5) for one, other in zip(made, wanted, strict=True)]


def _pairs_looked_up(found: Kernels, random: torch.Generator) -> list[tuple[Tensor, Tensor, float]]:
    """What is computed of columns that are looked up, and by torch, with how near they must come."""
    m, b, d = 19, 133, 80  # more than one tile of units and of rows, and a last one that is not full
    pairs_of = Pairs(*map(torch.tensor, ([0, 12, 17], [0, 2], [1, -1], [0, 4, 7, 12])))
    starts, places = torch.tensor([5, 0, 4]), torch.tensor([1, 26, 52])
    ids = torch.stack([torch.randint(0, size, (b,), generator=random) for size in (4, 3, 5)], 1).int()
    of = Lookups(found.number_pairs(ids, torch.arange(3), pairs_of), pairs_of, starts, places)
    weight, made, pull = (torch.randn(shape, generator=random) for shape in ((m, d), (m, b), (m, b)))
    pairs, dense = [], Dense(torch.randn((b, 3), generator=random), torch.tensor([0, 51, 79]))
    for dim in (16, 24):  # what is computed sixteen and eight columns at a time
        table = torch.randn((9, dim), generator=random)
        rows = ids.long() + starts
        columns = (places.unsqueeze(1) + torch.arange(dim)).flatten()
        x, part = table[rows].flatten(1), weight[:, columns]
        grown, of_bias, of_x = torch.zeros_like(weight), made.new_empty(m), (pull.t() @ part).view(-1, dim)
        of_table = found.of_looked_up_(pull, weight, table, of, grown, dense, of_bias)
        sums, of_units = part @ x.t(), weight[:, 0].contiguous()
        whole = sums + weight[:, dense.places] @ dense.x.t() + of_units.unsqueeze(1)
        pairs += [
            (found.add_looked_up_(made.clone(), weight, table, of), made + sums, 1e-4),
            (
                found.add_looked_up_(made.clone(), weight, table, of, dense, 7, of_units),
                torch.cat((whole[:7].relu(), whole[7:])),
                1e-4,
            ),
            (grown[:, columns], pull @ x, 1e-3),
            (grown[:, dense.places], pull @ dense.x, 1e-3),
            (of_bias, pull.sum(1), 1e-3),
            (of_table, torch.zeros(9, dim).index_add_(0, rows.flatten(), of_x), 1e-3),
        ]
    return pairs
