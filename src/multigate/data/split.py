"""Which rows train, validate and test: by time, by group, or by chance."""

import math
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from multigate.data import arrow, cells
from multigate.data.buffers import known
from multigate.data.hashes import hashes_of
from multigate.data.numbers import Sample, row_hashes
from multigate.data.types import value_type
from multigate.errors import DataError, ExperimentError
from multigate.options import Options
from multigate.schema import Schema

PARTS = ("train", "valid", "test")
"""What ``Splitter.assign`` numbers 0, 1 and 2."""


class Table(Protocol):
    """As much of a ``Source`` as a split needs."""

    @property
    def name(self) -> str: ...

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def batches(self) -> Callable[..., Any]: ...


class Split(Options):
    """Where validation and test rows come from."""

    by: Literal["auto", "fraction", "time", "group"] = "auto"
    """By time (the last rows validate), by group (no group in two parts) or by chance; auto is the first of these
    whose column the schema names."""
    valid: float = Field(default=0.1, ge=0, lt=1)
    """Share of the rows; by time as near as equal times allow."""
    test: float = Field(default=0.0, ge=0, lt=1)
    valid_from: str | None = None
    """First time (ISO 8601, or a number where the column holds numbers) of the validation rows."""
    test_from: str | None = None
    """First time of the test rows, later than ``valid_from``."""
    seed: int = Field(default=0, ge=0)

    @field_validator("valid_from", "test_from", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # YAML reads an unquoted date as a date and an unquoted number as a number
        return str(value) if isinstance(value, int | float | date) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _fits_together(self) -> "Split":
        if self.valid + self.test >= 1:
            raise ValueError(f"valid {self.valid} and test {self.test} leave no rows to train on; lower one of them")
        if self.by in ("fraction", "group") and (self.valid_from or self.test_from):
            raise ValueError(f"'valid_from' and 'test_from' are for a split by time, this one is by {self.by}")
        return self

    def without(self, *, valid: bool, test: bool) -> "Split":
        """The split where validation (or test) rows have a table of their own: none are taken from training."""
        changes: dict[str, Any] = {}
        if valid:
            changes |= {"valid": 0.0, "valid_from": None}
        if test:
            changes |= {"test": 0.0, "test_from": None}
        return self.with_(**changes) if changes else self

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts this split makes."""
        valid = ("valid",) if self.valid or self.valid_from else ()
        return ("train", *valid, *(("test",) if self.test or self.test_from else ()))

    def resolve(self, source: Table, schema: Schema) -> "Splitter":
        """Fix what depends on the table; a split by time without thresholds reads its time column once."""
        if self.parts == ("train",):
            return _All()
        by = self.by
        if by == "auto":
            by = "time" if schema.time else "group" if schema.group else "fraction"
            if by != "time" and (self.valid_from or self.test_from):
                raise ExperimentError("split: 'valid_from' and 'test_from' need the schema to name its 'time' column")
        if by == "fraction":
            return _ByFraction(self)
        name = schema.time if by == "time" else schema.group
        if name is None:
            raise ExperimentError(f"split by {by}: the schema names no {by!r} column; set it, or split by fraction")
        if by == "time":
            return _by_time(self, source, name)
        return _ByGroup(self, name, cells.spelling(schema.types.get(name)))


class Splitter(Protocol):
    """Says for every row which part it belongs to; the answer does not depend on how rows come in batches."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns ``assign`` reads."""
        ...

    @property
    def thresholds(self) -> dict[str, str]:
        """First time of each later part, for people; empty unless the split is by time."""
        ...

    def assign(self, batch: pa.RecordBatch, first_row: int) -> np.ndarray:
        """(R,) uint8: 0 train, 1 valid, 2 test; ``first_row`` is the number of the batch's first row."""
        ...


class _All:
    columns: tuple[str, ...] = ()
    thresholds: dict[str, str] = {}  # noqa: RUF012

    def assign(self, batch: pa.RecordBatch, first_row: int) -> np.ndarray:
        return np.zeros(batch.num_rows, dtype=np.uint8)


class _ByFraction:
    columns: tuple[str, ...] = ()
    thresholds: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, split: Split) -> None:
        self._split = split

    def assign(self, batch: pa.RecordBatch, first_row: int) -> np.ndarray:
        return _place(row_hashes(first_row, batch.num_rows, self._split.seed), self._split)


class _ByGroup:
    """By hash of the group; rows without a group go one by one."""

    thresholds: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, split: Split, name: str, spell: cells.Spell | None) -> None:
        self._split, self._name, self._spell = split, name, spell
        self.columns = (name,)

    def assign(self, batch: pa.RecordBatch, first_row: int) -> np.ndarray:
        index, texts = arrow.distinct_texts(batch.column(self._name), self._name, self._spell)
        hashes = np.append(hashes_of(texts, self._split.seed), np.uint64(0))[index]
        alone = np.append(~known(texts), True)[index]
        if alone.any():
            hashes = np.where(alone, row_hashes(first_row, len(index), self._split.seed), hashes)
        return _place(hashes, self._split)


def _place(hashes: np.ndarray, split: Split) -> np.ndarray:
    """(R,) uint64 -> (R,) uint8."""
    share = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.where(share < split.test, 2, np.where(share < split.test + split.valid, 1, 0)).astype(np.uint8)


class _Cut(NamedTuple):
    """Where a part begins: at the first time that is not below ``at``."""

    at: float
    label: str


class _ByTime:
    """Rows of equal time stay together; rows without a time train."""

    def __init__(self, table: str, name: str, as_moments: bool, valid: _Cut | None, test: _Cut | None) -> None:
        self.columns = (name,)
        self._table = table
        cuts = {"valid_from": valid, "test_from": test}
        self.thresholds = {name: cut.label for name, cut in cuts.items() if cut is not None}
        self._name, self._as_moments = name, as_moments
        self._valid = math.inf if valid is None else valid.at
        self._test = math.inf if test is None else test.at

    def assign(self, batch: pa.RecordBatch, first_row: int) -> np.ndarray:
        with cells.placed(self._table, range(first_row, first_row + batch.num_rows)):
            times = _times(batch.column(self._name), self._name, self._as_moments)
        return np.where(times >= self._test, 2, np.where(times >= self._valid, 1, 0)).astype(np.uint8)


def _times(array: pa.Array, name: str, as_moments: bool) -> np.ndarray:
    """(R,) float64, NaN where missing. Microseconds since 1970 are whole below 2^53, the year 2255."""
    if not as_moments:
        return arrow.numbers(array, name)
    moments = arrow.moments(array, name)
    return np.where(moments == arrow.NO_MOMENT, np.nan, moments.astype(np.float64))


def _by_time(split: Split, source: Table, name: str) -> _ByTime:
    if name not in source.schema.names:
        raise DataError(f"split by time: there is no column {name!r}; set the schema's 'time', or split by fraction")
    kind = value_type(source.schema.field(name).type)
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    given = [one for one in (split.valid_from, split.test_from) if one is not None]
    as_moments = not (numeric and all(_is_number(one) for one in given))
    zone = cells.zone_of(str(kind))
    valid = _threshold(split.valid_from, as_moments, zone, "valid_from")
    test = _threshold(split.test_from, as_moments, zone, "test_from")
    if valid is not None and test is not None and valid.at >= test.at:
        raise ExperimentError(f"split: test_from {test.label} must be later than valid_from {valid.label}")
    if (split.valid and valid is None) or (split.test and test is None):
        distinct, before = _shares(source, name, as_moments)
        if split.test and test is None:
            after = float(distinct[0]) if valid is None else valid.at
            test = _cut_at(distinct, before, 1 - split.test, after, as_moments)
        if split.valid and valid is None:
            early = distinct < (math.inf if test is None else test.at)
            rest = 1.0 if early.all() else float(before[~early][0])
            valid = _cut_at(distinct[early], before[early], rest - split.valid, float(distinct[0]), as_moments)
    return _ByTime(source.name, name, as_moments, valid, test)


def _shares(source: Table, name: str, as_moments: bool) -> tuple[np.ndarray, np.ndarray]:
    """The distinct times of a sample of the rows, rising, and the share of rows before each."""
    sample = Sample(1)
    first_row = 0
    for batch in source.batches([name]):
        with cells.placed(source.name, range(first_row, first_row + batch.num_rows)):
            sample.add(_times(batch.column(0), name, as_moments)[None])
        first_row += batch.num_rows
    distinct, counts = np.unique(sample.column(0), return_counts=True)
    if len(distinct) < 2:
        found = "no times" if len(distinct) == 0 else "one and the same time in every row"
        raise DataError(f"split by time: wanted different times in column {name!r}, found {found}; split by fraction")
    return distinct, (np.cumsum(counts) - counts) / counts.sum()


def _cut_at(distinct: np.ndarray, before: np.ndarray, share: float, after: float, as_moments: bool) -> _Cut:
    """The time later than ``after`` before which lies a share of rows nearest to ``share``."""
    allowed = np.flatnonzero(distinct > after)
    if len(allowed) == 0:
        raise DataError("split by time: there are too few different times for the parts asked for; split by fraction")
    at = float(distinct[allowed[np.argmin(np.abs(before[allowed] - share))]])
    label = str(datetime(1970, 1, 1) + timedelta(microseconds=at)) if as_moments else cells.text(at)
    return _Cut(at, str(label))


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _threshold(value: str | None, as_moments: bool, zone: str | None, what: str) -> _Cut | None:
    if value is None:
        return None
    try:
        at = cells.moment(value, zone) if as_moments else float(value)
    except cells.BadCell:
        at = None
    if at is None:
        raise ExperimentError(f"split: {what} {value!r} is not a time; write it as ISO 8601, such as 2024-05-31")
    return _Cut(float(at), value)
