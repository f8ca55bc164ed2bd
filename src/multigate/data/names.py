"""What encoded columns mean, in words: where each feature lies in a batch, and what its ids stand for."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from multigate.data.encoder import Encoder
from multigate.data.features import PART_SIZES
from multigate.data.numbers import Scale
from multigate.data.vocabulary import FIRST, MISSING, table_of
from multigate.schema import Bag, Category, Feature, Hashed, Number, Time, Vector

Words = Callable[[int], str]
"""What an id stands for."""

ROUNDING = float(np.finfo(np.float32).eps)
"""Of an encoded number, as a share of it."""

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
PARTS = {
    "hour": tuple(f"hour {at}" for at in range(PART_SIZES["hour"])),
    "weekday": WEEKDAYS,
    "day": tuple(f"day {at + 1}" for at in range(PART_SIZES["day"])),
    "month": MONTHS,
}


class FeatureColumns(NamedTuple):
    """The columns one feature has in ``Batch.numbers`` and ``Batch.categories``, and its place among the bags."""

    feature: Feature
    numbers: range
    categories: range
    bags: range
    words: tuple[Words, ...]
    """Of each id column, or of the bag."""


def feature_columns(encoder: Encoder) -> tuple[FeatureColumns, ...]:
    """The columns of every feature, in the order of the schema, which is that of the layout."""
    found = []
    numbers = categories = bags = 0
    for feature in encoder.schema.features:
        words = _words(encoder, feature)
        many = feature.size if isinstance(feature, Vector) else int(isinstance(feature, Number))
        bag = int(isinstance(feature, Bag))
        ids = 0 if bag else len(words)
        found.append(
            FeatureColumns(
                feature, range(numbers, numbers + many), range(categories, categories + ids), range(bags, bags + bag),
                words,
            )
        )  # fmt: skip
        numbers, categories, bags = numbers + many, categories + ids, bags + bag
    return tuple(found)


def raw_values(scale: Scale, encoded: np.ndarray) -> np.ndarray:
    """Encoded numbers (R,) in their own unit again, to float32's precision; what was clipped stays so."""
    off = encoded.astype(np.float64) * scale.sd
    x = off + scale.mean
    zero = dict(zip(scale.knots, scale.scores, strict=True)).get(0.0, np.nan) if scale.transform == "quantile" else 0.0
    x[np.abs(x - zero) <= ROUNDING * np.abs(off)] = zero  # it may have been a 0
    if scale.transform == "log":
        x = np.copysign(np.expm1(np.abs(x)), x)
    if scale.transform == "quantile":
        x = np.interp(x, scale.scores, scale.knots) if scale.knots else x
    return x


def range_words(edges: Sequence[float]) -> Words:
    """Of the bins that begin at each of ``edges``, and of the one below them."""
    if not len(edges):
        return _named(("known",).__getitem__)
    shown = [_short(edge) for edge in edges]
    between = [f"[{low}, {high})" for low, high in pairwise(shown)]
    return _named([f"< {shown[0]}", *between, f"≥ {shown[-1]}"].__getitem__)


def _named(value: Words) -> Words:
    """Words of the ids of a table: unseen, missing, then ``value`` of 0, 1, ..."""
    return lambda at: value(at - FIRST) if at >= FIRST else ("missing" if at == MISSING else "unseen")


def _words(encoder: Encoder, feature: Feature) -> tuple[Words, ...]:
    """One for each id column of a feature, or for its bag."""
    fitted = encoder.fitted
    match feature:
        case Number():
            bins = (range_words(fitted.edges[feature.name]),) if fitted.embeddings[feature.name] == "bins" else ()
            values = [f"{value:.12g}" for value in fitted.values.get(feature.name, ())]
            return (*bins, _named(values.__getitem__)) if values else bins
        case Vector():
            return ()
        case Time():
            return tuple(_named(PARTS[part].__getitem__) for part in feature.parts)
        case Category() | Hashed() | Bag():
            vocabulary = fitted.vocabularies.get(table_of(feature))
            return (_named(vocabulary.values.__getitem__ if vocabulary else "bucket {}".format),)


def _short(value: float) -> str:
    """Six digits that mean something, and no exponent unless the number is very large or small."""
    return f"{float(f'{value:.6g}') + 0.0:.12g}"  # -0 is 0
