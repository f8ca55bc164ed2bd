"""One pass over a table in bounded memory: what is in each column, and a sample of whole rows."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from multigate.data import arrow, buffers, cells, float32
from multigate.data.files import Source
from multigate.data.types import is_list, is_moment, is_number, is_scalar, is_text, value_type
from multigate.progress import Progress

COUNTED = 2_000
"""Columns with up to so many different values have each of them counted."""
SAMPLE, SAMPLE_VALUES = 20_000, 1 << 25
"""Rows of the sample, fewer of a wide table: at most so many cells."""
SKETCH = 16_384
VALUES = 1 << 24
"""Cells that are looked at together."""
ITEMS = 1 << 20
"""Items of lists that are looked at together: distinct ones take many times their size."""

_TIME = r"[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?"
_MOMENT = rf"^\d{{4}}-\d{{2}}-\d{{2}}({_TIME})?$"
_ZONED_MOMENT = rf"^\d{{4}}-\d{{2}}-\d{{2}}{_TIME}(Z|[+-]\d{{2}}(:?\d{{2}})?)$"


class Survey(NamedTuple):
    """What one pass found: the columns by name, and up to ``SAMPLE`` rows in their order (no list columns)."""

    rows: int
    columns: dict[str, "Column"]
    sample: pa.Table

    def sampled(self, name: str) -> pa.Array:
        """A column of the sample, without its extension type."""
        return buffers.plain(self.sample[name].combine_chunks())


def survey(source: Source, columns: Sequence[str], progress: Progress | None = None) -> Survey:
    """Look at some columns of a table, telling ``progress`` how far."""
    found = {name: Column(name, source.schema.field(name).type) for name in columns}
    flat = [name for name in columns if not is_list(found[name].kind)]
    sample = Sample(flat, rows=max(1, min(SAMPLE, SAMPLE_VALUES // max(len(flat), 1))))
    rows = 0
    for batch in source.batches(columns, rows=max(1024, min(65_536, VALUES // max(len(columns), 1)))):
        with cells.placed(source.name, range(rows, rows + batch.num_rows)):
            for name, array in zip(columns, batch.columns, strict=True):
                found[name].add(array)
        sample.add(batch)
        rows += batch.num_rows
        if progress is not None:
            progress("looking at the table", rows, source.rows)
    return Survey(rows, found, sample.table())


class Column:
    """What one column holds; its values are looked at once per batch and distinct value."""

    def __init__(self, name: str, kind: pa.DataType) -> None:
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        self.name = name
        self.declared_category = bool(pa.types.is_dictionary(kind)) and not is_text(kind)
        """An Arrow dictionary of something other than text."""
        self.kind = value_type(kind)
        self.rows = self.known = 0
        """``known`` leaves out nulls, NaN, infinities and empty text; of a list column it counts the items."""
        self.counts: dict[Any, int] | None = None if is_moment(self.kind) else {}
        """Rows of each value; None from more than ``COUNTED`` different ones on, and of times."""
        self.distinct = Distinct()
        self.low, self.high, self.integral = np.inf, -np.inf, True
        """Of numbers: the least, the greatest, whether all are whole."""
        self.long = 0
        """Different numbers beyond 2^53, which a float64 does not hold, at most in one batch."""
        self.moments = self.zoned_moments = 0
        """Rows of a text column that read as an ISO 8601 time, and of those the ones with a zone."""
        self.lengths: tuple[int, int] | None = None
        """Of lists: the shortest and the longest."""

    def add(self, array: pa.Array) -> None:
        self.rows += len(array)
        array = buffers.plain(array)
        if is_list(array.type):
            lengths = pc.min_max(pc.list_value_length(array))
            if lengths["min"].is_valid:
                known = self.lengths or (lengths["min"].as_py(), lengths["max"].as_py())
                self.lengths = min(known[0], lengths["min"].as_py()), max(known[1], lengths["max"].as_py())
            array = buffers.plain(array.flatten())
        if pa.types.is_null(array.type) or not is_scalar(array.type):
            return
        for at in range(0, len(array), ITEMS):
            self._add_values(array.slice(at, ITEMS))

    def _add_values(self, array: pa.Array) -> None:
        index, values = arrow.codes(array, self.name)
        many = np.bincount(index, minlength=len(values))[: len(values)]
        used = (many > 0) & _known(values)
        if not used.all():
            values, many = values.filter(pa.array(used)), many[used]
        if len(values):
            self._add_distinct(values, many)

    def _add_distinct(self, values: pa.Array, many: np.ndarray) -> None:
        self.known += int(many.sum())
        if self.counts is not None and len(values) <= COUNTED:
            for value, count in zip(values.to_pylist(), many.tolist(), strict=True):
                self.counts[value] = self.counts.get(value, 0) + count
        if self.counts is not None and (len(values) > COUNTED or len(self.counts) > COUNTED):
            self.counts = None
        self.distinct.add(_hashes(values))
        if is_text(values.type):
            self._add_moments(values, many)
        elif is_number(values.type):
            x = _floats(values)
            self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
            self.integral = self.integral and bool((x == np.floor(x)).all())
            self.long = max(self.long, int((np.abs(x) > 2**53).sum()))

    def _add_moments(self, values: pa.Array, many: np.ndarray) -> None:
        for pattern, zone in ((_MOMENT, None), (_ZONED_MOMENT, "UTC")):
            fits = pc.match_substring_regex(values, pattern)
            if not pc.any(fits).as_py():
                continue
            try:
                values.filter(fits).cast(pa.timestamp("us", zone))
            except pa.ArrowInvalid:  # the 31st of February
                fits = pc.and_(fits, pa.array([_is_iso(one) for one in values.to_pylist()]))
            rows = int(many[fits.to_numpy(zero_copy_only=False)].sum())
            self.moments += rows
            self.zoned_moments += rows if zone else 0


class Distinct:
    """How many different values there are: exact up to ``SKETCH``, then estimated within about 1 % from their
    smallest hashes (Bar-Yossef et al. 2002, "Counting distinct elements in a data stream")."""

    def __init__(self) -> None:
        self.least = np.empty(0, np.uint64)

    def add(self, hashes: np.ndarray) -> None:
        """(V,) uint64, repeats allowed."""
        if len(self.least) == SKETCH:
            hashes = hashes[hashes < self.least[-1]]
        if len(hashes):
            self.least = np.unique(np.concatenate([self.least, hashes]))[:SKETCH]

    @property
    def estimate(self) -> int:
        if len(self.least) < SKETCH:
            return len(self.least)
        return round((SKETCH - 1) / (float(self.least[-1]) / 2.0**64))


class Sample:
    """A uniform sample of whole rows, in their order: those with the smallest of one random number per row.

    The numbers are drawn in the order of the rows, so the sample does not depend on how these are batched.
    """

    def __init__(self, columns: Sequence[str], rows: int = SAMPLE, seed: int = 0) -> None:
        self._columns, self._rows = list(columns), rows
        self._random = np.random.default_rng(seed)
        self._parts: list[pa.Table] = []
        self._draws: list[np.ndarray] = []
        self._bound = np.inf

    def add(self, batch: pa.RecordBatch) -> None:
        draws = self._random.random(batch.num_rows)
        kept = np.flatnonzero(draws < self._bound)
        if not len(kept):
            return
        part = batch.select(self._columns).take(pa.array(kept))
        schema = pa.schema([(one.name, _decoded(one.type)) for one in part.schema])
        self._parts.append(pa.Table.from_batches([part]).cast(schema))
        self._draws.append(draws[kept])
        if sum(map(len, self._draws)) > 2 * self._rows:
            self._prune()

    def _prune(self) -> None:
        draws = np.concatenate(self._draws)
        if len(draws) > self._rows:
            self._bound = float(np.partition(draws, self._rows)[self._rows])
        kept = draws < self._bound
        self._parts = [pa.concat_tables(self._parts).filter(pa.array(kept)).combine_chunks()]
        self._draws = [draws[kept]]

    def table(self) -> pa.Table:
        if not self._parts:
            return pa.table({})
        self._prune()
        return self._parts[0]


def _decoded(kind: pa.DataType) -> pa.DataType:
    return value_type(kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind)


def _is_iso(text: str) -> bool:
    try:
        cells.moment(text)
    except cells.BadCell:
        return False
    return True


def _known(values: pa.Array) -> np.ndarray:
    valid: np.ndarray = values.is_valid().to_numpy(zero_copy_only=False)
    if is_text(values.type):
        return valid & pc.fill_null(pc.not_equal(values, ""), False).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(values.type):
        return valid & (np.abs(_floats(values)) <= float32.LARGEST)
    return valid


def _floats(values: pa.Array) -> np.ndarray:
    kind = values.type
    values = values.cast(pa.float32()) if kind == pa.float16() else values
    found: np.ndarray = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return found


def _hashes(values: pa.Array) -> np.ndarray:
    """(V,) uint64 of values without nulls."""
    kind = values.type
    if is_text(kind):
        hash_of = xxhash.xxh3_64_intdigest
        texts = (hash_of(one.encode("utf-8", "surrogatepass")) for one in values.to_pylist())
        return np.fromiter(texts, np.uint64, len(values))
    if pa.types.is_boolean(kind):
        bits = values.cast(pa.int8()).to_numpy(zero_copy_only=False).astype(np.uint64)
    elif pa.types.is_unsigned_integer(kind):
        bits = values.to_numpy().astype(np.uint64)
    elif is_number(kind) and not pa.types.is_integer(kind):
        bits = (_floats(values) + 0.0).view(np.uint64)  # -0.0 is 0.0
    else:
        small = pa.types.is_date32(kind)
        bits = values.cast(pa.int32() if small else pa.int64()).to_numpy().astype(np.int64).view(np.uint64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # splitmix64 (Steele et al. 2014)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
