"""From the text of a value to its id: by a vocabulary of the training rows, or by hashing."""

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.data.buffers import as_arrow, as_arrow_text, as_text, known, stored
from multigate.data.cells import DIGITS, SHORT
from multigate.data.hashes import hashes_of, xxh64
from multigate.data.text_counts import TextCounts
from multigate.data.text_index import TextIndex
from multigate.data.whole_numbers import WholeIndex, text_order
from multigate.errors import ExperimentError
from multigate.schema import Bag, Category, Feature, Hashed, Number, Schema, Time

UNSEEN, MISSING, FIRST = 0, 1, 2
"""The two ids every embedding table begins with, and the first id of a value."""
SMALL = 1 << 12
"""Values of a vocabulary from which on texts are looked up by their hashes, all at once; and texts, where there is a
dict as well (measured)."""


class Lookup(Protocol):
    """Gives ids of one embedding table."""

    @property
    def size(self) -> int:
        """Rows of the table."""
        ...

    def id(self, text: str | None) -> int: ...

    def ids(self, texts: pa.Array) -> np.ndarray:
        """(V,) int32 of texts, or of int64s in their place."""
        ...


class Vocabulary:
    """Ids by falling frequency, ties by value, so that the order of the rows does not matter.

    Codes filled up with zeros to one width are found without those too, as who reads 01023 as a number has them.
    """

    def __init__(self, values: Sequence[str] | pa.Array, counts: Sequence[int] | np.ndarray, left_out: int = 0) -> None:
        self.texts = as_text(values) if isinstance(values, pa.Array) else as_arrow_text(values)
        """The values, in the order of their ids, as large strings; what is made of them is made when asked for."""
        self.times = np.array(counts, dtype=np.int64)
        """How often each was seen."""
        self.left_out = left_out
        """Values of the rows fitted on that are too rare or too many to be kept; known only where it was fitted."""

    @classmethod
    def fit(cls, counts: TextCounts, min_count: int = 1, max_size: int | None = None) -> "Vocabulary":
        """The values seen at least ``min_count`` times, at most ``max_size`` of them."""
        texts, times = counts.together()
        least = min_count
        if max_size is not None and len(times) > max_size:
            least = max(least, int(np.partition(times, -max_size)[-max_size]))
        often = np.flatnonzero(times >= least)
        by_value = often[text_order(texts.take(as_arrow(often)))]
        kept = by_value[np.argsort(-times[by_value], kind="stable")][:max_size]
        return cls(texts.take(as_arrow(kept)), times[kept], len(times) - len(kept))

    @cached_property
    def values(self) -> tuple[str, ...]:
        return tuple(self.texts.to_pylist())

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(self.times.tolist())

    @cached_property
    def _zeros(self) -> list[int]:
        """The places of codes that are found without the zeros they begin with, too."""
        return _padded(self.texts)

    @cached_property
    def _width(self) -> int:
        """That those have in common, 0 without any."""
        return len(self.texts[self._zeros[0]].as_py()) if self._zeros else 0

    @cached_property
    def _shorter(self) -> dict[str, int]:
        """The ids of those codes by what they are without zeros."""
        codes = self.texts.take(as_arrow(np.array(self._zeros, dtype=np.int64))).to_pylist()
        return {code.lstrip("0") or "0": FIRST + at for code, at in zip(codes, self._zeros, strict=True)}

    @cached_property
    def _id(self) -> dict[str | None, int]:
        return self._shorter | {value: at for at, value in enumerate(self.values, FIRST)} | {None: MISSING}

    @cached_property
    def _index(self) -> tuple[TextIndex, np.ndarray]:
        """Of all that is found, and the id of each; at the end, where -1 is, that of all others."""
        ids = np.append(np.arange(FIRST, self.size), [*self._shorter.values(), UNSEEN]).astype(np.int32)
        return TextIndex(pa.concat_arrays([self.texts, as_arrow_text([*self._shorter])])), ids

    @cached_property
    def _wholes(self) -> WholeIndex | None:
        return WholeIndex.of(self.texts)

    def grown(self, newer: "Vocabulary", max_size: int | None = None) -> "Vocabulary":
        """This one with the values that only ``newer`` has behind its own, whose ids stay; counts are added.

        Where the codes here begin with zeros and none of the newer ones does, those were read as numbers, and are
        filled up as the codes here are: kept as they came, none here would be found without its zeros any more.
        """
        times = dict(zip(newer.values, newer.counts, strict=True))
        if self._width and not any(value[:1] == "0" for value in times if value != "0"):
            times = {value.zfill(self._width) if value.isdecimal() else value: times[value] for value in times}
        counts = [count + times.get(value, 0) for value, count in zip(self.values, self.counts, strict=True)]
        new = [value for value in times if value not in self._id]
        added = new[: None if max_size is None else max(max_size - len(self.values), 0)]
        left_out = newer.left_out + len(new) - len(added)
        return Vocabulary((*self.values, *added), (*counts, *(times[value] for value in added)), left_out)

    @property
    def size(self) -> int:
        return FIRST + len(self.texts)

    @property
    def found(self) -> Callable[[str], int | None]:
        """From a text to its id, None where it has none."""
        return self._id.get

    @property
    def found_whole(self) -> Callable[[int], int | None]:
        """The same from a whole number of few digits, which most columns spell as Python does."""
        if self.size <= SMALL:
            whole = (text for text in self._id if text and len(text) <= DIGITS and text.removeprefix("-").isdecimal())
            return {int(text): self._id[text] for text in whole if str(int(text)) == text}.get
        find = self._id.get
        return lambda value: find(str(value)) if -SHORT < value < SHORT else None

    def id(self, text: str | None) -> int:
        return self._id.get(text, UNSEEN)

    def ids(self, texts: pa.Array) -> np.ndarray:
        """(V,) int32. Whole numbers may stand, as int64s, in the place of their texts."""
        if pa.types.is_integer(texts.type):
            if self.size > SMALL and self._wholes is not None:
                places = self._wholes.places(stored(texts))
                return np.where(places < 0, UNSEEN, FIRST + places).astype(np.int32)
            texts = as_text(texts)
        if texts.null_count == len(texts):
            return np.full(len(texts), MISSING, dtype=np.int32)
        if self.size <= SMALL or (len(texts) < SMALL and "_id" in vars(self)):
            find = self._id.get
            return np.array([find(text, UNSEEN) for text in texts.to_pylist()], dtype=np.int32)
        index, ids = self._index
        found = ids[index.places(texts)]
        found[~known(texts)] = MISSING
        return found


def _padded(texts: pa.Array) -> list[int]:
    """Places of those of digits alone that begin with a 0, where they have one width, and no others of digits are
    shorter."""
    decimal = pc.utf8_is_decimal(texts)
    zeros = pc.and_(decimal, pc.starts_with(texts, "0"))
    lengths = pc.utf8_length(texts)
    widths = pc.unique(lengths.filter(zeros))
    alike = len(widths) == 1 and pc.min(lengths.filter(decimal)).as_py() == widths[0].as_py()
    return pc.indices_nonzero(zeros).to_pylist() if alike else []


class Buckets:
    """2 + xxh64(text) modulo ``buckets``; nothing to fit, nothing to store."""

    def __init__(self, buckets: int) -> None:
        self.buckets = buckets

    @property
    def size(self) -> int:
        return FIRST + self.buckets

    def id(self, text: str | None) -> int:
        return MISSING if text is None else FIRST + xxh64(text) % self.buckets

    def ids(self, texts: pa.Array) -> np.ndarray:
        """(V,) int32."""
        found = (FIRST + hashes_of(texts) % np.uint64(self.buckets)).astype(np.int32)
        found[~known(texts)] = MISSING
        return found


def table_of(feature: Category | Hashed | Bag) -> str:
    """The embedding table of a feature: the one it names, else its own."""
    return feature.table or feature.name


def own_tables(feature: Feature) -> tuple[str, ...]:
    """Tables that hold the bins and values of a number or the parts of a time."""
    if isinstance(feature, Number) and feature.embedding in ("auto", "bins"):
        return feature.name, f"{feature.name}:value"
    return tuple(f"{feature.name}:{part}" for part in feature.parts) if isinstance(feature, Time) else ()


def implied_tables(features: Iterable[Feature]) -> dict[str, str]:
    """``own_tables`` of all features, each with the name of its feature."""
    return {table: one.name for one in features for table in own_tables(one)}


def check_own_tables(features: Iterable[Feature]) -> None:
    """Raise ``ExperimentError`` where a number has the name of a table of another feature's values or parts."""
    taken: dict[str, str] = {}
    for one in features:
        for table in own_tables(one):
            other = taken.setdefault(table, one.name)
            if other != one.name:
                raise ExperimentError(
                    f"features {other!r} and {one.name!r} both want the table {table!r} for bins, values or parts; "
                    f"give the feature {table!r} another name, and {table!r} as its 'column'"
                )


def table_features(schema: Schema) -> dict[str, Category | Hashed | Bag]:
    """The first feature of each embedding table; ``ExperimentError`` where features that share one do not agree."""
    first: dict[str, Category | Hashed | Bag] = {}
    taken = implied_tables(schema.features)
    for feature in schema.features:
        if not isinstance(feature, Category | Hashed | Bag):
            continue
        table = table_of(feature)
        if table in taken:
            raise ExperimentError(
                f"feature {feature.name!r} wants the table {table!r}, which holds the bins or parts of feature "
                f"{taken[table]!r}; name another table"
            )
        other = first.setdefault(table, feature)
        for setting in ("buckets", "min_count", "max_size", "dim"):
            here, there = getattr(feature, setting, None), getattr(other, setting, None)
            hashed = getattr(feature, "buckets", None)
            if here != there and not (hashed and setting in ("min_count", "max_size")):
                raise ExperimentError(
                    f"features {other.name!r} and {feature.name!r} share the table {table!r} but differ in {setting} "
                    f"({there} and {here}); give both the same, or tables of their own"
                )
    return first
