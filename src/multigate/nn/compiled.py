"""Functions of the compiled library, as calls on tensors: what lies in ``cpp``, behind Python's names."""

import ctypes
from ctypes import c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "mix": (*[c_void_p] * 3, *[c_int64] * 4, c_int),
    "unmix": (*[c_void_p] * 5, *[c_int64] * 4, c_int),
    "relu": (c_void_p, c_int64, c_int),
    "relu_of_sum": (*[c_void_p] * 2, *[c_int64] * 2, c_int),
    "mask": (*[c_void_p] * 2, c_int64, c_int),
    "activate": (*[c_void_p] * 7, *[c_int64] * 6, c_int),
    "of_activated": (*[c_void_p] * 10, *[c_int64] * 6, c_int),
    "scatter": (*[c_void_p] * 2, c_int64, c_int),
    "gate_features": (*[c_void_p] * 6, *[c_int64] * 5, c_int),
    "ungate_features": (*[c_void_p] * 9, *[c_int64] * 5, c_int),
    "sum_of_product": (*[c_void_p] * 3, *[c_int64] * 13, c_int),
    "look_up": (*[c_void_p] * 4, *[c_int64] * 4, c_int),
    "add_up": (*[c_void_p] * 5, *[c_int64] * 4, c_int),
    "lazy_adam": (*[c_void_p] * 7, *[c_int64] * 2, c_int),
    "number_terms": (*[c_void_p] * 10, *[c_int64] * 3, c_int),
    "add_looked_up": (*[c_void_p] * 12, *[c_int64] * 9, c_int),
    "of_looked_up": (*[c_void_p] * 14, *[c_int64] * 8, c_int),
}
"""Of each function: arrays, then sizes, then threads."""
IN_FLOAT32_ALONE = ("scatter", "sum_of_product", "look_up", "add_up", "lazy_adam", "number_terms")
COUNTING = ("look_up", "number_terms")
"""Those that return how many ids have no row."""
ALIGNED = 64
"""Bytes of which addresses of what is read as vectors are multiples, as torch's are."""
TERMS = 256
"""Those of a sum at most that are added one after the other."""


def plain(x: Tensor) -> Tensor:
    """x as compiled code reads what is multiplied: float32, one number after the other."""
    return x.float().contiguous()


class Columns(NamedTuple):
    """c columns of ids (B, C) and of x (B, D), all int64 (c,): column k is ids[:, ``read[k]``], its values are the
    ``sizes[k]`` rows of a table (rows, dim) from ``starts[k]`` on, and in x they are columns from ``places[k]`` on."""

    read: Tensor
    starts: Tensor
    sizes: Tensor
    places: Tensor


class Lookups(NamedTuple):
    """c columns of x (B, D) that are rows of one table (rows, dim), by the values that they have in these B rows.

    What a linear map makes of a value is a term: those of column k are terms ``first[k]`` to ``first[k + 1]`` (c + 1,)
    int64, of the table's rows ``row`` (V,) int32. Where columns meet in few pairs of values, those are terms too: V + s
    is the sum of two terms before it, ``one[s]`` and ``other[s]`` (S,) int32. Each row of the batch is the sum of m
    terms, ``at`` (B, m) int32. ``places`` (c,) int64 are those of ``Columns``.
    """

    at: Tensor
    row: Tensor
    first: Tensor
    one: Tensor
    other: Tensor
    places: Tensor


class Dense(NamedTuple):
    """Columns of x (B, D) that are multiplied as they are: themselves, (B, k), and their places in x, (k,) int64."""

    x: Tensor
    places: Tensor


class Normalised(NamedTuple):
    """How layers (n, H, B) are normalised and which of their elements are dropped.

    ``kind``: "none", "layer" or "batch"; with the latter a scale and a shift (n, H), and moments, (n, B) of layers and
    (n, H) of batches, all float32. ``bytes`` like the layers, if any are dropped: those of an element that is kept are
    below ``level``.
    """

    kind: str
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor
    variance: Tensor
    bytes: Tensor | None
    level: int


KINDS = ("none", "layer", "batch")
ACTIVATED = ("relu", "silu", "gelu", "tanh")


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
        self.most_pairs = c_int64.in_dll(library, "most_pairs").value
        """Of the values of two columns that are terms."""
        self.tile = c_int64.in_dll(library, "tile").value
        """Rows of a batch that are gated at a time."""
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

    def activate(self, x: Tensor, of: Normalised, activation: str) -> Tensor:
        """x (n, H, B) normalised, activated and dropped out; moments are written into ``of``."""
        made = torch.empty_like(x)
        self._call("activate", x.dtype, (x, *self._of_layers(of), made), *self._how(x, of, activation))
        return made

    def of_activated(self, x: Tensor, of: Normalised, activation: str, pull: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, like it, and of scale and shift (n, H), in float32, from that of ``activate`` (n, H, B)."""
        of_x, (of_scale, of_shift) = (
            torch.empty_like(x),
            torch.zeros((2, *x.shape[:2]), dtype=torch.float32, device="cpu"),
        )
        arrays = (x, *self._of_layers(of), pull, of_x, of_scale, of_shift)
        self._call("of_activated", x.dtype, arrays, *self._how(x, of, activation))
        return of_x, of_scale, of_shift

    @staticmethod
    def _of_layers(of: Normalised) -> tuple[Tensor | None, ...]:
        return of.scale, of.shift, of.bytes, of.mean, of.variance

    @staticmethod
    def _how(x: Tensor, of: Normalised, activation: str) -> tuple[int, ...]:
        return (*x.shape, KINDS.index(of.kind), ACTIVATED.index(activation), of.level)

    def scatter(self, seed: Tensor, many: int) -> Tensor:
        """So many random int64 (many,) that follow from one (1,), as SplitMix64 has them."""
        made = seed.new_empty(many)
        self._call("scatter", torch.float32, (seed, made), many)
        return made

    def gate_features(self, x: Tensor, read: Tensor, down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """2 x sigmoid(up down x) for n readers, each of unit ``read`` (n,) int64 of x (u, D, B) -> (n, D, B).

        Weights down (n, r, D) and up (n, D, r) are in float32, and so is what down makes of x, which comes besides,
        (tiles, n, r, rows of one).
        """
        (u, d, b), (n, r, _) = x.shape, down.shape
        made, low = x.new_empty((n, d, b)), down.new_empty((-(-b // self.tile), n, r, self.tile))
        self._call("gate_features", x.dtype, (down, up, read, low, x, made), n, r, d, u, b)
        return made, low

    def ungate_features(
        self, x: Tensor, read: Tensor, down: Tensor, up: Tensor, low: Tensor, pull: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of x, like it, and of both weights, in float32, from that of ``gate_features`` (n, D, B)."""
        (u, d, b), (n, r, _) = x.shape, down.shape
        if low.data_ptr() % ALIGNED:  # as where a hook keeps what autograd saves, and brings it back
            low = low.clone()
        of_x, of_down, of_up = torch.empty_like(x), torch.zeros_like(down), torch.zeros_like(up)
        self._call("ungate_features", x.dtype, (down, up, read, low, x, pull, of_x, of_down, of_up), n, r, d, u, b)
        return of_x, of_down, of_up

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

    def number_terms(self, ids: Tensor, columns: Columns, most: int) -> Lookups:
        """Of ids (B, C) int32 the terms of some columns, whose tables have ``most`` rows in all.

        Raises ``IndexError`` where a column has no such value.
        """
        c, rows = len(columns.read), len(ids)
        at, row = ids.new_empty(rows * c), ids.new_empty(most)
        one, other = ids.new_empty((2, c * self.most_pairs))
        first = columns.read.new_empty(c + 1)
        made = columns.read.new_empty(2)
        arrays = (ids, columns.read, columns.starts, columns.sizes, at, row, first, one, other, made)
        lost = self._call("number_terms", torch.float32, arrays, *ids.shape, c)
        if lost:
            raise IndexError(f"{lost} ids are out of range of the rows of their embedding tables")
        m, sums = made.tolist()
        return Lookups(at[: rows * m].view(rows, m), row, first, one[:sums], other[:sums], columns.places)

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
        ``active`` rows, in place; all but ``made`` in float32, the table's width even.

        With ``dense`` columns the product is that of both, and written over ``made``.
        """
        assert weight.dtype == table.dtype == torch.float32
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
        into its columns of ``grown`` (m, D), that of the bias into ``of_bias`` (m,); all but ``pull`` in float32."""
        assert weight.dtype == table.dtype == grown.dtype == torch.float32
        of_table, (arrays, sizes) = torch.zeros_like(table), self._of_x(table, of, dense)
        arrays = (*arrays, weight, pull, grown, of_bias, of_table)
        self._call("of_looked_up", pull.dtype, arrays, *sizes, *weight.shape)
        return of_table

    @staticmethod
    def _of_x(table: Tensor, of: Lookups, dense: Dense | None) -> tuple[tuple[Tensor | None, ...], tuple[int, ...]]:
        """What x is made of, as arrays and sizes."""
        read, many = ((None, None), -1) if dense is None else (dense, dense.x.shape[1])
        return (table, *of, *read), (*of.at.shape, len(of.places), table.shape[1], len(of.one), many)

    def _call(self, name: str, dtype: torch.dtype, tensors: tuple[Tensor | None, ...], *sizes: int) -> int | None:
        arrays = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        found: int | None = self.functions[name, dtype](*arrays, *sizes, torch.get_num_threads())
        return found
