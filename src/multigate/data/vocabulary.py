"""From the text of a value to its id: by a vocabulary of the training rows, or by hashing."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
import xxhash

from multigate.errors import ExperimentError
from multigate.schema import Bag, Category, Feature, Hashed, Number, Schema, Time

UNSEEN, MISSING, FIRST = 0, 1, 2
"""The two ids every embedding table begins with, and the first id of a value."""


class Lookup(Protocol):
    """Gives ids of one embedding table."""

    @property
    def size(self) -> int:
        """Rows of the table."""
        ...

    def id(self, text: str | None) -> int: ...

    def ids(self, texts: Sequence[str | None]) -> np.ndarray: ...


class Vocabulary:
    """Ids by falling frequency, ties by value, so that the order of the rows does not matter.

    Codes filled up with zeros to one width are found without those too, as who reads 01023 as a number has them.
    """

    def __init__(self, values: Sequence[str], counts: Sequence[int], left_out: int = 0) -> None:
        self.values, self.counts = tuple(values), tuple(counts)
        self.left_out = left_out
        """Values of the rows fitted on that are too rare or too many to be kept; known only where it was fitted."""
        self._id: dict[str | None, int] = {value: at for at, value in enumerate(self.values, FIRST)}
        self._id[None] = MISSING
        zeros = _padded(self.values)
        self._width = len(zeros[0]) if zeros else 0
        for code in zeros:
            self._id.setdefault(code.lstrip("0") or "0", self._id[code])

    @classmethod
    def fit(cls, counts: dict[str, int], min_count: int = 1, max_size: int | None = None) -> "Vocabulary":
        """The values seen at least ``min_count`` times, at most ``max_size`` of them."""
        least = min_count
        if max_size is not None and len(counts) > max_size:
            times = np.fromiter(counts.values(), np.int64, len(counts))
            least = max(least, int(np.partition(times, -max_size)[-max_size]))
        kept = sorted((item for item in counts.items() if item[1] > least), key=lambda item: (-item[1], item[0]))
        kept += [(value, least) for value in sorted(value for value, count in counts.items() if count == least)]
        kept = kept[:max_size]
        return cls([value for value, _ in kept], [count for _, count in kept], len(counts) - len(kept))

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
        return FIRST + len(self.values)

    @property
    def found(self) -> Callable[[str], int | None]:
        """From a text to its id, None where it has none."""
        return self._id.get

    def id(self, text: str | None) -> int:
        return self._id.get(text, UNSEEN)

    def ids(self, texts: Sequence[str | None]) -> np.ndarray:
        """(V,) int32."""
        find = self._id.get
        return np.array([find(text, UNSEEN) for text in texts], dtype=np.int32)


def _padded(values: Sequence[str]) -> list[str]:
    """Those of digits alone that begin with a 0, where they have one width, and no others of digits are shorter."""
    zeros = [value for value in values if value[:1] == "0" and value.isdecimal()]
    widths = {len(value) for value in zeros}
    alike = len(widths) == 1 and min(len(value) for value in values if value.isdecimal()) in widths
    return zeros if alike else []


class Buckets:
    """2 + xxh64(text) modulo ``buckets``; nothing to fit, nothing to store."""

    def __init__(self, buckets: int) -> None:
        self.buckets = buckets

    @property
    def size(self) -> int:
        return FIRST + self.buckets

    def id(self, text: str | None) -> int:
        return MISSING if text is None else FIRST + xxh64(text) % self.buckets

    def ids(self, texts: Sequence[str | None]) -> np.ndarray:
        """(V,) int32."""
        return np.array([self.id(text) for text in texts], dtype=np.int32)


def add_counts(counts: dict[str, int], texts: Iterable[str | None], times: Iterable[int]) -> None:
    """Count ``times`` more of each text into ``counts``; missing and unused values are left out."""
    for text, many in zip(texts, times, strict=True):
        if many and text is not None:
            counts[text] = counts.get(text, 0) + many


def hash_of(text: str | None) -> int:
    """xxh64 as a signed 64-bit integer, 0 where missing: how rows of one group find each other."""
    if text is None:
        return 0
    found = xxh64(text)
    return found - (1 << 64) if found >= 1 << 63 else found


def xxh64(text: str, seed: int = 0) -> int:
    """Unsigned 64-bit xxHash of the UTF-8 text."""
    return xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass"), seed)


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
