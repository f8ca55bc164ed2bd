"""What an encoder learns from the training rows, in one pass."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from multigate.data import arrow, bags, cells, float32
from multigate.data.ahead import worked
from multigate.data.features import by_name, vector_column
from multigate.data.labels import LabelFit, LabelStats
from multigate.data.numbers import (
    Moments,
    Sample,
    Scale,
    Scales,
    counted,
    edges_of,
    fit_ranks,
    frequent_values,
    signed_log,
)
from multigate.data.text_counts import TextCounts
from multigate.data.vocabulary import SMALL, Vocabulary, check_own_tables, table_features, table_of
from multigate.errors import DataError
from multigate.schema import Bag, Category, Number, Schema, Vector

OFTEN = 100
"""Rows a value, on average, from which on each value may have an embedding of its own."""
CUT = ("auto", "bins", "piecewise")
"""Embeddings of numbers that are cut at quantiles, or may be."""

_Edges = dict[str, tuple[float, ...]]


class Fitted(NamedTuple):
    """All that is fitted."""

    rows: int
    """Training rows."""
    scales: tuple[Scale, ...]
    """Of each number column."""
    edges: _Edges
    """By feature: bin edges of the raw value, or piecewise knots of the encoded one."""
    embeddings: dict[str, str]
    """By number feature: what ``auto`` came to, or what the schema says."""
    values: _Edges
    """By feature with bins: the raw values that have an embedding of their own, where there are any."""
    vocabularies: dict[str, Vocabulary]
    """By embedding table."""
    tasks: tuple[LabelStats, ...]
    flagged: tuple[str, ...] | None = None
    """Number and vector features that have a flag for being missing: those that are, in training. None: all."""
    flags_apart: bool = False
    """Whether each number of a vector has a flag of its own, in place of one for all, as it once had."""
    unflagged: tuple[tuple[str, int], ...] = ()
    """Features without a flag, and in how many of the later training rows each is missing. This is not saved."""


class Fit:
    """What one pass over the training rows gathers.

    With ``base``, what an earlier pass fitted, scales and bins stay as they are there, vocabularies grow.
    """

    def __init__(self, schema: Schema, base: Fitted | None = None) -> None:
        self._schema, self._base = schema, base
        self._numeric = [one for one in schema.features if isinstance(one, Number | Vector)]
        self._transforms = [
            one.transform if isinstance(one, Number) else "standard" for one in self._numeric for _ in range(_size(one))
        ]
        if base is None:
            check_own_tables(schema.features)
        self._tables = table_features(schema)
        self._counts = {
            table: TextCounts()
            for table, one in self._tables.items()
            if isinstance(one, Category) or (isinstance(one, Bag) and not one.buckets)
        }
        self._sampled = [
            at
            for at, one in self._placed()
            if isinstance(one, Number) and (one.transform == "quantile" or one.embedding in CUT)
        ]
        """The places of numbers of which some values are wanted themselves."""
        self._moments, self._sample = Moments(len(self._transforms)), Sample(len(self._sampled))
        self._labels = LabelFit(schema, None if base is None else base.tasks)
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        column = by_name(batch)
        raw = np.empty((len(self._transforms), batch.num_rows))
        at = 0
        for feature in self._schema.features:
            array = column(feature.source)
            match feature:
                case Number():
                    raw[at] = arrow.numbers(array, feature.source)
                    at += 1
                case Vector():
                    raw[at : at + feature.size] = vector_column(array, feature)
                    at += feature.size
                case Category():
                    spell = cells.spelling(self._schema.types.get(feature.source))
                    index, values = arrow.distinct_values(array, feature.source, spell)
                    many = np.bincount(index, minlength=len(values))[: len(values)]
                    self._counts[table_of(feature)].add(values, many)
                case Bag() if not feature.buckets:
                    bags.count_items(array, feature.separator, self._counts[table_of(feature)], feature.source)
        if self._sampled:
            self._sample.add(raw if len(self._sampled) == len(raw) else raw[self._sampled])
        logs = [row for row, transform in enumerate(self._transforms) if transform == "log"]
        if logs:
            raw = raw.copy()
            for row in logs:
                raw[row] = signed_log(raw[row])
        self._moments.add(raw)
        self._labels.add(batch.num_rows, column)
        self._rows += batch.num_rows

    def _placed(self) -> Iterator[tuple[int, Number | Vector]]:
        """Number and vector features, and the place of the first number of each."""
        at = 0
        for one in self._numeric:
            yield at, one
            at += _size(one)

    def _values(self, at: int) -> np.ndarray:
        """The known values of the number at a place, or many of them."""
        return self._sample.column(self._sampled.index(at))

    def finish(self) -> Fitted:
        if self._rows == 0:
            raise DataError("wanted training rows to fit the encoder on, found none; check the table and the split")
        threads = any(len(one) >= SMALL for one in self._counts.values())  # for few they take longer than the work
        fitted = worked(self._vocabulary, self._counts) if threads else map(self._vocabulary, self._counts)
        vocabularies = dict(zip(self._counts, fitted, strict=True))
        stats = self._labels.finish()
        known, mean, sd = self._moments.finish()
        missing = self._missing(known)
        if self._base is not None:
            flagged = self._base.flagged
            gaps = () if flagged is None else tuple(one for one in missing.items() if one[0] not in flagged)
            return self._base._replace(rows=self._rows, vocabularies=vocabularies, tasks=stats, unflagged=gaps)
        scales = [
            self._ranked(at) if transform == "quantile" else
            Scale(transform=transform, mean=float(mean[at]), sd=float(sd[at]) or 1.0)
            for at, transform in enumerate(self._transforms)
        ]  # fmt: skip
        edges, embeddings, own = self._embeddings(scales)
        # biases are missing in a tenth of the rows in training, whatever the table holds
        flagged = tuple(one.name for one in self._numeric if one.name in missing or one.biased is not None)
        return Fitted(
            self._rows, tuple(scales), edges, embeddings, own, vocabularies, stats,
            flagged=None if len(flagged) == len(self._numeric) else flagged,
        )  # fmt: skip

    def _vocabulary(self, table: str) -> Vocabulary:
        feature = self._tables[table]
        assert isinstance(feature, Category | Bag)
        fitted = Vocabulary.fit(self._counts[table], feature.min_count, feature.max_size)
        return fitted if self._base is None else self._base.vocabularies[table].grown(fitted, feature.max_size)

    def _missing(self, known: np.ndarray) -> dict[str, int]:
        """By feature with gaps: in how many rows it is missing, or the number of a vector that most often is."""
        gaps = {one.name: self._rows - int(known[at : at + _size(one)].min()) for at, one in self._placed()}
        return {name: many for name, many in gaps.items() if many}

    def _ranked(self, at: int) -> Scale:
        knots, scores = fit_ranks(self._values(at))
        scale = Scale(transform="quantile", knots=tuple(knots.tolist()), scores=tuple(scores.tolist()))
        found = Scales([scale]).encode(self._values(at)[None]).astype(np.float64)
        if not found.size:
            return scale
        return scale.with_(mean=float(found.mean()), sd=float(found.std()) or 1.0)

    def _embeddings(self, scales: list[Scale]) -> tuple[_Edges, dict[str, str], _Edges]:
        """Edges, what stands beside the value, and values that have an embedding of their own, by feature."""
        edges: _Edges = {}
        embeddings: dict[str, str] = {}
        own: _Edges = {}
        for at, feature in self._placed():
            if isinstance(feature, Number):
                kind: str = feature.embedding
                if kind in CUT:
                    distinct, counts = counted(self._values(at))
                    knots = _knots(distinct, counts, feature.bins, scales[at])
                    if kind == "auto":
                        kind = _beside(feature, distinct, counts, knots)
                    if kind == "bins":
                        distinct = float32.shortest(distinct)
                        frequent = frequent_values(distinct, counts, feature.bins, feature.values)
                        own |= {feature.name: tuple(frequent.tolist())} if len(frequent) else {}
                        knots = edges_of(distinct, counts, feature.bins)
                    edges[feature.name] = tuple(knots.tolist())
                embeddings[feature.name] = kind
        return edges, embeddings, own


def _size(feature: Number | Vector) -> int:
    """Numbers that it has."""
    return feature.size if isinstance(feature, Vector) else 1


def _knots(distinct: np.ndarray, counts: np.ndarray, bins: int, scale: Scale) -> np.ndarray:
    """Ends of at most ``bins`` intervals between quantiles, encoded; none where there is no value."""
    if not len(distinct):
        return distinct
    ends = np.concatenate([distinct[:1], edges_of(distinct, counts, bins), distinct[-1:]])
    return np.unique(Scales([scale]).encode(ends[None])).astype(np.float64)


def _beside(feature: Number, distinct: np.ndarray, counts: np.ndarray, knots: np.ndarray) -> str:
    """What ``auto`` is. An embedding of each value wants each to be seen often; a line between values does not.

    Beside an absurd number others are so close together, once standardised, that no line leads from one to the next.
    """
    often = len(distinct) <= feature.values and counts.sum() >= OFTEN * len(distinct)
    crowded = len(knots) < min(len(distinct), feature.bins) / 2
    return "bins" if often or crowded else "piecewise"
