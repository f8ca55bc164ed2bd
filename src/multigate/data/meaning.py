"""What a column most likely means: the feature it becomes, or why it becomes none."""

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from multigate.data import arrow, cells
from multigate.data.survey import Column, Survey
from multigate.data.types import is_list, is_moment, is_number, is_scalar, is_text, type_name
from multigate.schema import Bag, Category, Feature, Hashed, Number, Time, Vector

FEW = 50
"""Whole numbers of at most so many different values may be codes, unless their name says that they count something."""
SEEN, OFTEN = 10, 1_000
"""Times that each is seen on average, from which on a value can be learnt by itself, and its place among the others
adds nothing."""
HASHED = 100_000
"""Categories with more different values than this are hashed."""
MANY_ROWS = 1_000
"""Only in tables longer than this does a value of its own in every row say that a column is a key, unless its name says
so too."""

_IDS = {
    "id",
    "ids",
    "uid",
    "uuid",
    "guid",
    "userid",
    "itemid",
    "pid",
    "sid",
    "sku",
    "code",
    "zip",
    "zipcode",
    "postcode",
}
_THINGS = {
    *("user", "customer", "member", "visitor", "account", "author", "creator", "seller", "publisher", "advertiser"),
    *("patient", "subject", "person", "firm", "company", "hospital"),
    *("item", "product", "article", "video", "movie", "song", "track", "book", "post", "ad", "campaign", "creative"),
    *(
        "shop",
        "store",
        "merchant",
        "brand",
        "category",
        "city",
        "country",
        "region",
        "session",
        "device",
        "page",
        "tag",
    ),
}
"""A column of whole numbers that is called by the name of a thing names things."""
_ROWS = {"unnamed", "rownames", "rowname", "row", "index", "obs"}
"""What the number of a row is called: Unnamed: 0 by pandas, rownames by R."""
_NUMBER, _NUMBERED = {"no", "nr", "number"}, {"user", "customer", "patient", "member", "visitor", "account"}
"""What numbers are given to: a patient number, or Patient No., names a patient. ``nr`` by itself names one too."""
QUANTITIES = {
    *("age", "num", "count", "cnt", "amount", "amt", "qty", "quantity", "total", "sum", "avg", "mean", "rate", "ratio"),
    *("price", "cost", "fee", "wage", "income", "salary", "revenue", "spend", "balance", "gain", "gains", "loss"),
    *("losses", "dividends", "score", "percent", "pct", "width", "height", "length", "size", "distance", "duration"),
    *("seconds", "minutes", "hours", "days", "weeks", "months", "years", "views", "visits", "clicks", "population"),
    *("time", "latitude", "longitude", "lat", "lon", "temperature", "ms", "sec", "secs"),
}
_WHEN = {"time", "timestamp", "ts", "date", "datetime", "dt", "day", "at", "when"}
_NOT_WHEN = {"birth", "birthday", "birthdate", "dob", "born", "expiry", "expires"}
_WEIGHTS = {
    "weight",
    "weights",
    "instance_weight",
    "sample_weight",
    "row_weight",
    "case_weight",
    "survey_weight",
    "fnlwgt",
}


class Verdict(NamedTuple):
    """What a column becomes: a feature, or nothing for a reason; a key, a time or both."""

    feature: Feature | None = None
    reason: str = ""
    key: bool = False
    time: int | None = None
    """How well it orders the rows, less is better."""
    kind: pa.DataType | None = None
    """Its type in the schema where that is not the table's."""


def is_readable(kind: pa.DataType) -> bool:
    """Whether the columns of this type are looked at: single values, or lists of them."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    inner = kind.value_type if is_list(kind) else kind
    return is_scalar(inner) or bool(pa.types.is_null(inner))


def unsupported(kind: pa.DataType) -> Verdict:
    """Of a column that is not looked at."""
    return Verdict(reason=f"its type {type_name(kind)} is not one that features can read")


def judge(column: Column, seen: Survey) -> Verdict:
    """What becomes of a column that is no label."""
    reason = _useless(column)
    if reason:
        return Verdict(reason=reason)
    if is_list(column.kind):
        return _list_verdict(column)
    if is_moment(column.kind):
        return _moment_verdict(column, seen)
    if is_text(column.kind):
        return _text_verdict(column, seen)
    if is_number(column.kind) and not column.declared_category:
        return _number_verdict(column, seen)
    return _category_verdict(column)


def _useless(column: Column) -> str:
    if column.known == 0:
        return "holds no value in any row"
    if is_list(column.kind):
        return ""
    if column.distinct.estimate == 1 and column.known == column.rows:
        return f"holds {only_value(column)} in every row"
    if column.name.lower() in _WEIGHTS and is_number(column.kind):
        return (
            "its name says that it weighs the rows; name it as the sample_weight of a task, "
            "or add it as a number if it is a measurement"
        )
    return ""


def _list_verdict(column: Column) -> Verdict:
    kind, name = column.kind.value_type, column.name
    low, high = column.lengths or (0, 0)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if low == high > 0:
            return Verdict(Vector(name=name, size=high))
        return Verdict(
            reason=f"holds lists of {low} to {high} fractional numbers; lists of one length would be a vector"
        )
    if column.distinct.estimate > HASHED:
        return Verdict(Bag(name=name, buckets=_buckets(column.distinct.estimate)))
    return Verdict(Bag(name=name))


def _moment_verdict(column: Column, seen: Survey, kind: pa.DataType | None = None) -> Verdict:
    """Of times: which parts vary, and how well the column orders the rows."""
    array = seen.sampled(column.name)
    micros = arrow.moments(array, column.name)
    micros = micros[micros != arrow.NO_MOMENT]
    if not len(micros):
        return Verdict(reason="holds no time of the years 1 to 9999")
    daily = bool((micros % 86_400_000_000 == 0).all())
    ordered = bool((np.diff(micros) >= 0).all())
    words = set(words_of(column.name))
    time = None if words & _NOT_WHEN or micros.min() == micros.max() else 2 * (not ordered) + daily
    feature = Time(name=column.name, parts=("weekday",)) if daily else Time(name=column.name)
    return Verdict(feature, time=time, kind=kind)


def _text_verdict(column: Column, seen: Survey) -> Verdict:
    share = column.moments / column.known
    if share == 1 and column.zoned_moments in (0, column.known):
        return _moment_verdict(column, seen, pa.timestamp("us", "UTC" if column.zoned_moments else None))
    if share > 0.99:
        return Verdict(
            reason=f"{share:.2%} of its values are times"
            + (", some with a zone and some without" if share == 1 else " and the others are not")
            + "; write all of them alike"
        )
    bag = _bag(column, seen)
    if bag is not None:
        return Verdict(bag)
    if _one_per_row(column):
        if is_id(column) or not pc.any(pc.match_substring(seen.sampled(column.name), " ")).as_py():
            return Verdict(reason="has a value of its own in almost every row; kept as a key", key=True)
        return Verdict(reason="has a text of its own in almost every row, which no category can learn from")
    return _category_verdict(column)


def _bag(column: Column, seen: Survey) -> Bag | None:
    """Text whose pieces repeat much more than its whole cells do; words of phrases only where phrases are many."""
    whole = pc.unique(pc.drop_null(seen.sampled(column.name)))
    for separator in (", ", ",", " | ", "|", "; ", ";", " "):
        share = pc.mean(pc.match_substring(whole, separator).cast(pa.int8())).as_py() or 0
        if share < 0.1 or (separator == " " and len(whole) <= MANY_ROWS):
            continue
        pieces = pc.list_flatten(pc.split_pattern(whole, separator))
        different = len(pc.unique(pieces))
        if len(pieces) >= (4 if separator == " " else 2) * different and different < len(whole):
            growing = seen.rows > 2 * len(seen.sample) and different > HASHED / 10
            return Bag(name=column.name, separator=separator, buckets=_buckets(2 * HASHED) if growing else None)
    return None


def _number_verdict(column: Column, seen: Survey) -> Verdict:
    words = set(words_of(column.name))
    whole = column.integral and not pa.types.is_decimal(column.kind)
    if whole and words & _WHEN and (_is_epoch(column) or _is_day_number(column)):
        return _moment_verdict(column, seen)
    if whole and _one_per_row(column) and (is_id(column) or _is_dense(column)):
        return Verdict(reason="has a number of its own in almost every row; kept as a key", key=True)
    if column.distinct.estimate <= 2 or (whole and _are_codes(column, seen)):
        return _category_verdict(column)
    feature = Number(name=column.name, transform="log" if heavy_tailed(column, seen) else "standard")
    if whole and _may_be_codes(column):  # the value keeps their order, the embedding beside it is free of it
        feature = feature.with_(embedding="bins")
    return Verdict(feature)


def _are_codes(column: Column, seen: Survey) -> bool:
    """Whether whole numbers name things rather than count or measure them."""
    if is_id(column):
        return True
    if _may_be_codes(column):
        return column.known >= OFTEN * column.distinct.estimate
    if column.distinct.estimate <= FEW or set(words_of(column.name)) & QUANTITIES:
        return False
    return column.low in (0, 1) and _is_dense(column) and _is_rough(seen.sampled(column.name), column)


def _may_be_codes(column: Column) -> bool:
    """Whether whole numbers are so few, and each so often seen, that they may name things as well as count them."""
    different = column.distinct.estimate
    return different <= FEW and column.known >= SEEN * different and not set(words_of(column.name)) & QUANTITIES


def _category_verdict(column: Column) -> Verdict:
    if column.distinct.estimate > HASHED:
        return Verdict(Hashed(name=column.name, buckets=_buckets(column.distinct.estimate)))
    return Verdict(Category(name=column.name))


def heavy_tailed(column: Column, seen: Survey) -> bool:
    """Whether a few numbers are far larger than the rest: a logarithm makes them learnable."""
    x = arrow.numbers(seen.sampled(column.name), column.name)
    x = x[~np.isnan(x)]
    if len(x) < 2 or x.std() == 0:
        return column.high > column.low  # what differs is too rare to be in the sample
    upper = float(np.quantile(np.abs(x), 0.75))
    skewness = float(np.mean(((x - x.mean()) / x.std()) ** 3))
    return abs(skewness) > 5 or (upper > 0 and max(abs(column.low), abs(column.high)) > 100 * upper)


def _is_rough(array: pa.Array, column: Column) -> bool:
    """Whether values differ in frequency from what lies between their neighbours' far beyond chance: codes do,
    quantities do not, however steeply fewer rows have larger ones.

    The statistic is about 1 for counts along a curve; a tenth of the values, the most different, may be the edge or
    the mode of a quantity and is left aside.
    """
    x = arrow.numbers(array, column.name)
    many = np.bincount((x[~np.isnan(x)] - column.low).astype(np.int64)).astype(np.float64)
    before, here, after = many[:-2], many[1:-1], many[2:]
    apart, chance = (here - np.sqrt(before * after)) ** 2, here + (before + after) / 4
    kept = np.argsort(apart)[: int(0.9 * len(apart))]
    return bool(apart[kept].sum() > 3 * chance[kept].sum())


def _is_epoch(column: Column) -> bool:
    """Seconds, milli-, micro- or nanoseconds since 1970, all between 1990 and 2100."""
    return any(6.3e8 * unit <= column.low and column.high <= 4.1e9 * unit for unit in (1.0, 1e3, 1e6, 1e9))


def _is_day_number(column: Column) -> bool:
    """Days as numbers such as 20240531."""
    return bool(column.counts) and all(cells.day_number(float(day)) is not None for day in column.counts or ())


def _one_per_row(column: Column) -> bool:
    different = column.distinct.estimate
    if column.rows > MANY_ROWS:
        return different > 0.95 * column.known
    return different == column.rows > FEW and (is_id(column) or _numbers_rows(column))


def _numbers_rows(column: Column) -> bool:
    """By its name, and all whole numbers from 0 or 1 on."""
    words = words_of(column.name)
    return bool(words) and words[0] in _ROWS and column.low in (0, 1) and column.high - column.low + 1 == column.rows


def _buckets(different: int) -> int:
    """About twice as many, as a power of two."""
    return int(1 << round(np.log2(2 * different)))


def words_of(name: str) -> list[str]:
    """``userId`` and ``USER_id`` are user, id."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name)]


def is_id(column: Column) -> bool:
    """By its name, or by whole numbers too large to be told apart as quantities, and not larger than ids are; one or
    two, such as the least int64, stand for missing among counts."""
    words = words_of(column.name)
    numbered = words == ["nr"] or (len(words) > 1 and words[-1] in _NUMBER and words[-2] in _NUMBERED)
    named = bool(words) and ("id" in words or words[-1] in _IDS | _THINGS or numbered)
    return named or (column.long > 2 and column.integral and max(-column.low, column.high) <= 2**64)


def _is_dense(column: Column) -> bool:
    return column.distinct.estimate > 0.5 * (column.high - column.low + 1)


def only_value(column: Column) -> str:
    """The value of a column of one value."""
    return cells.short(next(iter(column.counts))) if column.counts else "one value"
