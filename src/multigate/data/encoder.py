"""The encoder: fitted once on the training rows, it turns raw rows into tensors, by the table or one at a time."""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from torch import Tensor

from multigate.batch import BagIds, Batch, IdColumn, Layout, NumberColumn
from multigate.data import bags, cells
from multigate.data.labels import LabelFit, Labels, LabelStats
from multigate.data.numbers import Moments, Sample, Scale, Scales, bin_ids, fit_ranks, quantile_edges, signed_log
from multigate.data.vocabulary import FIRST, MISSING, Buckets, Lookup, Vocabulary, add_counts, hash_of
from multigate.errors import DataError, ExperimentError, nearest
from multigate.schema import Bag, Category, Hashed, Number, Schema, Time, Vector

FORMAT = 1
"""Version of what ``save`` writes; encoded shards of another version are not reused."""

_DAY = 86_400_000_000
_FIRST_DAY, _LAST_DAY = date.min.toordinal() - 719_163, date.max.toordinal() - 719_163
_PART_SIZES = {"hour": 24, "weekday": 7, "day": 31, "month": 12}


class Encoder:
    """Raw rows -> ``Batch``. Made by ``fit`` or ``load``; ``columns`` and ``row`` give the same answers."""

    def __init__(
        self,
        schema: Schema,
        rows: int,
        scales: tuple[Scale, ...],
        edges: dict[str, tuple[float, ...]],
        vocabularies: dict[str, Vocabulary],
        stats: tuple[LabelStats, ...],
    ) -> None:
        self.schema, self.rows, self.scales, self.edges = schema, rows, scales, edges
        """``rows`` counts the training rows; ``edges`` are bin edges (raw) or piecewise knots (encoded) by feature."""
        self.vocabularies, self.stats = vocabularies, stats
        self.labels = Labels(schema, rows, stats)
        self._scales = Scales(scales)
        self._lookups: dict[str, Lookup] = dict(vocabularies)
        for table, feature in table_features(schema).items():
            if table not in self._lookups and isinstance(feature, Hashed | Bag):
                self._lookups[table] = Buckets(feature.buckets or 0)
        self._cells = [_Cells(self, feature) for feature in schema.features]
        self._bags = [feature for feature in schema.features if isinstance(feature, Bag)]

    @classmethod
    def fit(cls, schema: Schema, batches: Iterable[pa.RecordBatch]) -> "Encoder":
        """Fit on the training rows, in one pass whose memory is that of the vocabularies and a sample of the numbers."""
        fit = _Fit(schema)
        for batch in batches:
            fit.add(batch)
        return fit.finish()

    def columns(self, batch: pa.RecordBatch, labels: bool = True, first_row: int | None = None) -> Batch:
        """Encode a record batch (columns beyond those needed are ignored).

        Raises ``DataError`` where a needed column is missing or a cell does not hold what the schema says;
        ``first_row``, the number of the batch's first row, makes errors name the row. The group column may be
        missing without ``labels``.
        """
        column = by_name(batch)
        rows = batch.num_rows
        raw = np.empty((len(self.scales), rows))
        ids: list[np.ndarray] = []
        packed: list[BagIds] = []
        at = 0
        for feature in self.schema.features:
            array = column(feature.source)
            match feature:
                case Number():
                    raw[at] = cells.numbers(array, feature.source, first_row)
                    if feature.embedding == "bins":
                        ids.append(bin_ids(raw[at], np.array(self.edges[feature.name])))
                    at += 1
                case Vector():
                    raw[at : at + feature.size] = _vectors(array, feature, first_row)
                    at += feature.size
                case Time():
                    ids.extend(_time_ids(cells.moments(array, feature.source, first_row), feature))
                case Category() | Hashed():
                    index, values = cells.codes(array, feature.source)
                    found = self._lookups[table_of(feature)].ids(cells.texts(values))
                    ids.append(np.append(found, np.int32(MISSING))[index])
                case Bag():
                    lookup = self._lookups[table_of(feature)]
                    values, offsets = bags.column_ids(array, feature.separator, lookup, feature.source)
                    packed.append(BagIds(torch.from_numpy(values), torch.from_numpy(offsets)))
        numbers = torch.from_numpy(self._scales.encode(raw)).t().contiguous()
        categories = torch.from_numpy(np.stack(ids)).t().contiguous() if ids else _no_ids(rows)
        if labels:
            return Batch(
                numbers, categories, tuple(packed), *self.labels.encode(rows, column, first_row),
                self._groups(batch, required=True),
            )  # fmt: skip
        return Batch(numbers, categories, tuple(packed), *_no_labels(rows), self._groups(batch, required=False))

    def row(self, row: Mapping[str, Any]) -> Batch:
        """Encode one raw row without labels: the same tensors as ``columns`` gives for a table of this row."""
        raw: list[float] = []
        ids: list[int] = []
        packed: list[list[int]] = []
        for one in self._cells:
            try:
                value = row[one.column]
            except KeyError:
                raise _missing(one.column, row) from None
            try:
                one.read(value, raw, ids, packed)
            except cells.BadCell as bad:
                raise bad.error(one.column) from None
        numbers = self._scales.encode(np.array(raw, dtype=np.float64).reshape(-1, 1)).reshape(1, -1)
        group = 0 if self.schema.group is None else hash_of(cells.text(row.get(self.schema.group)))
        return Batch(
            torch.from_numpy(numbers),
            torch.tensor([ids], dtype=torch.int32),
            tuple(BagIds(torch.tensor(one, dtype=torch.int32), torch.tensor([0, len(one)], dtype=torch.int32))
                  for one in packed),
            *_no_labels(1),
            torch.tensor([group], dtype=torch.int64),
        )  # fmt: skip

    def decode(self, task: int, values: Tensor) -> Tensor:
        """Predictions of a regression task in the label's own unit; those of other tasks as they are."""
        return self.labels.decode(task, values)

    def classes(self, task: int) -> tuple[str, ...]:
        """Values of a multiclass task in the order of its outputs."""
        return self.stats[task].classes

    @cached_property
    def layout(self) -> Layout:
        """What a model must know of the encoded columns."""
        numbers: list[NumberColumn] = []
        categories: list[IdColumn] = []
        packed: list[IdColumn] = []
        tables: dict[str, int] = {}
        for feature in self.schema.features:
            match feature:
                case Number():
                    numbers.append(self._number_column(feature))
                    if feature.embedding == "bins":
                        categories.append(IdColumn(feature=feature.name, table=feature.name, dim=feature.dim))
                        tables[feature.name] = FIRST + len(self.edges[feature.name]) + 1
                case Vector():
                    numbers.extend(NumberColumn(feature=f"{feature.name}[{at}]") for at in range(feature.size))
                case Time():
                    for part in feature.parts:
                        name = f"{feature.name}:{part}"
                        categories.append(IdColumn(feature=name, table=name, dim=feature.dim))
                        tables[name] = FIRST + _PART_SIZES[part]
                case Category() | Hashed() | Bag():
                    table = table_of(feature)
                    into = packed if isinstance(feature, Bag) else categories
                    into.append(IdColumn(feature=feature.name, table=table, dim=feature.dim))
                    tables[table] = self._lookups[table].size
        return Layout(
            numbers=tuple(numbers), categories=tuple(categories), bags=tuple(packed), tables=tables,
            tasks=self.labels.layout(),
        )  # fmt: skip

    def _number_column(self, feature: Number) -> NumberColumn:
        if feature.embedding == "bins":
            return NumberColumn(feature=feature.name)
        edges = self.edges[feature.name] if feature.embedding == "piecewise" else ()
        return NumberColumn(feature=feature.name, embedding=feature.embedding, edges=edges, dim=feature.dim)

    def _groups(self, batch: pa.RecordBatch, required: bool) -> Tensor:
        name = self.schema.group
        if name is None or (not required and name not in batch.schema.names):
            return torch.zeros(batch.num_rows, dtype=torch.int64)
        index, values = cells.codes(by_name(batch)(name), name)
        hashes = np.array([hash_of(one) for one in cells.texts(values)] + [0], dtype=np.int64)
        return torch.from_numpy(hashes[index])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides how rows are encoded."""
        hashed = xxhash.xxh3_128(self._json().encode())
        for table in sorted(self.vocabularies):
            hashed.update(table.encode() + b"\0")
            hashed.update("\0".join(self.vocabularies[table].values).encode("utf-8", "surrogatepass"))
        return str(hashed.hexdigest())

    def _json(self) -> str:
        content = {
            "format": FORMAT,
            "rows": self.rows,
            "schema": self.schema.model_dump(mode="json"),
            "scales": [scale.model_dump(mode="json") for scale in self.scales],
            "edges": {name: list(edges) for name, edges in self.edges.items()},
            "tables": sorted(self.vocabularies),
            "tasks": [one.model_dump(mode="json") for one in self.stats],
        }
        return json.dumps(content, indent=1)

    def save(self, folder: Path) -> None:
        """Write ``encoder.json`` and ``vocabularies.parquet`` (table, value, count; in the order of the ids)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "encoder.json").write_text(self._json() + "\n", encoding="utf-8")
        held = sorted(self.vocabularies.items())
        names = pa.DictionaryArray.from_arrays(
            pa.array(np.repeat(np.arange(len(held), dtype=np.int32), [len(one.values) for _, one in held])),
            pa.array([name for name, _ in held], pa.string()),
        )
        values = pa.array([value for _, one in held for value in one.values], pa.string())
        counts = pa.array([count for _, one in held for count in one.counts], pa.int64())
        table = pa.table({"table": names, "value": values, "count": counts})
        pq.write_table(table, folder / "vocabularies.parquet", compression="zstd")

    @classmethod
    def load(cls, folder: Path, schema: Schema | None = None) -> "Encoder":
        """Read what ``save`` wrote; ``DataError`` where that was for another schema than the one told."""
        try:
            content = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
            table = pq.ParquetFile(folder / "vocabularies.parquet").read()
        except FileNotFoundError as missing:
            raise DataError(f"{folder} holds no saved encoder: {Path(missing.filename).name} is not there") from None
        if content["format"] != FORMAT:
            raise DataError(
                f"{folder} holds an encoder of format {content['format']}, wanted {FORMAT}; prepare it again"
            )
        saved = Schema.model_validate(content["schema"])
        if schema is not None and schema != saved:
            raise DataError(f"{folder} holds an encoder for another schema than the experiment's; prepare it again")
        index, names = cells.codes(table["table"].combine_chunks(), "table")
        values, counts = table["value"].to_pylist(), table["count"].to_pylist()
        vocabularies = {name: Vocabulary((), ()) for name in content["tables"]}
        for at, name in enumerate(names.to_pylist()):
            start, stop = np.searchsorted(index, at), np.searchsorted(index, at, side="right")
            vocabularies[name] = Vocabulary(values[start:stop], counts[start:stop])
        return cls(
            saved,
            content["rows"],
            tuple(Scale.model_validate(one) for one in content["scales"]),
            {name: tuple(edges) for name, edges in content["edges"].items()},
            vocabularies,
            tuple(LabelStats.model_validate(one) for one in content["tasks"]),
        )


class _Cells:
    """Reads one feature's cell of one raw row: appends to the row's raw numbers, ids and bags."""

    read: Callable[[Any, list[float], list[int], list[list[int]]], None]

    def __init__(self, encoder: Encoder, feature: Any) -> None:
        self.column: str = feature.source
        self._feature = feature
        match feature:
            case Number():
                self._edges = list(encoder.edges[feature.name]) if feature.embedding == "bins" else []
                self.read = self._binned if feature.embedding == "bins" else self._number
            case Vector():
                self.read = self._vector
            case Time():
                self.read = self._time
            case Category() | Hashed():
                self._id = encoder._lookups[table_of(feature)].id
                self.read = self._category
            case Bag():
                self._lookup = encoder._lookups[table_of(feature)]
                self.read = self._bag

    def _number(self, value: Any, raw: list[float], ids: list[int], packed: list[list[int]]) -> None:
        raw.append(cells.number(value))

    def _binned(self, value: Any, raw: list[float], ids: list[int], packed: list[list[int]]) -> None:
        x = cells.number(value)
        raw.append(x)
        ids.append(MISSING if x != x else FIRST + bisect_right(self._edges, x))

    def _vector(self, value: Any, raw: list[float], ids: list[int], packed: list[list[int]]) -> None:
        size = self._feature.size
        if value is None or value != value if isinstance(value, float) else value is None:
            raw.extend([float("nan")] * size)
            return
        if not isinstance(value, list | tuple | np.ndarray):
            raise cells.BadCell(f"a list of {size} numbers", value, "give a list")
        if len(value) != size:
            raise cells.BadCell(f"a list of {size} numbers", f"{len(value)} of them", "see 'size' of the vector")
        raw.extend(cells.number(item) for item in value)

    def _time(self, value: Any, raw: list[float], ids: list[int], packed: list[list[int]]) -> None:
        micros = cells.moment(value)
        day = None if micros is None else micros // _DAY
        if micros is None or day is None or not _FIRST_DAY <= day <= _LAST_DAY:
            ids.extend([MISSING] * len(self._feature.parts))
            return
        at = date.fromordinal(day + 719_163)
        parts = {
            "hour": micros % _DAY // 3_600_000_000,
            "weekday": at.weekday(),
            "day": at.day - 1,
            "month": at.month - 1,
        }
        ids.extend(FIRST + parts[part] for part in self._feature.parts)

    def _category(self, value: Any, raw: list[float], ids: list[int], packed: list[list[int]]) -> None:
        ids.append(self._id(cells.text(value)))

    def _bag(self, value: Any, raw: list[float], ids: list[int], packed: list[list[int]]) -> None:
        packed.append(bags.cell_ids(value, self._feature.separator, self._lookup))


class _Fit:
    """What one pass over the training rows gathers."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._numeric = [one for one in schema.features if isinstance(one, Number | Vector)]
        self._transforms = [
            one.transform if isinstance(one, Number) else "standard"
            for one in self._numeric
            for _ in range(one.size if isinstance(one, Vector) else 1)
        ]
        self._tables = table_features(schema)
        self._counts: dict[str, dict[str, int]] = {
            table: {}
            for table, one in self._tables.items()
            if isinstance(one, Category) or (isinstance(one, Bag) and not one.buckets)
        }
        self._moments, self._sample = Moments(len(self._transforms)), Sample(len(self._transforms))
        self._labels = LabelFit(schema)
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
                    raw[at] = cells.numbers(array, feature.source)
                    at += 1
                case Vector():
                    raw[at : at + feature.size] = _vectors(array, feature, None)
                    at += feature.size
                case Category():
                    index, values = cells.codes(array, feature.source)
                    many = np.bincount(index, minlength=len(values))[: len(values)]
                    add_counts(self._counts[table_of(feature)], cells.texts(values), many.tolist())
                case Bag() if not feature.buckets:
                    bags.count_items(array, feature.separator, self._counts[table_of(feature)], feature.source)
        self._sample.add(raw)
        for row, transform in enumerate(self._transforms):
            if transform == "log":
                raw[row] = signed_log(raw[row])
        self._moments.add(raw)
        self._labels.add(batch.num_rows, column)
        self._rows += batch.num_rows

    def finish(self) -> Encoder:
        if self._rows == 0:
            raise DataError("wanted training rows to fit the encoder on, found none; check the table and the split")
        _, mean, sd = self._moments.finish()
        scales = [
            self._ranked(at) if transform == "quantile" else
            Scale(transform=transform, mean=float(mean[at]), sd=float(sd[at]) or 1.0)
            for at, transform in enumerate(self._transforms)
        ]  # fmt: skip
        vocabularies = {}
        for table, counts in self._counts.items():
            feature = self._tables[table]
            assert isinstance(feature, Category | Bag)
            vocabularies[table] = Vocabulary.fit(counts, feature.min_count, feature.max_size)
        stats = self._labels.finish()
        return Encoder(self._schema, self._rows, tuple(scales), self._edges(scales), vocabularies, stats)

    def _ranked(self, at: int) -> Scale:
        knots, scores = fit_ranks(self._sample.column(at))
        scale = Scale(transform="quantile", knots=tuple(knots.tolist()), scores=tuple(scores.tolist()))
        found = Scales([scale]).encode(self._sample.column(at)[None]).astype(np.float64)
        if not found.size:
            return scale
        return scale.with_(mean=float(found.mean()), sd=float(found.std()) or 1.0)

    def _edges(self, scales: list[Scale]) -> dict[str, tuple[float, ...]]:
        edges: dict[str, tuple[float, ...]] = {}
        at = 0
        for feature in self._numeric:
            if isinstance(feature, Number) and feature.embedding in ("bins", "piecewise"):
                values = self._sample.column(at)
                found = quantile_edges(values, feature.bins) if len(values) else values
                if feature.embedding == "piecewise" and len(values):
                    ends = np.concatenate([[values.min()], found, [values.max()]])
                    found = np.unique(Scales([scales[at]]).encode(ends[None])).astype(np.float64)
                edges[feature.name] = tuple(found.tolist())
            at += feature.size if isinstance(feature, Vector) else 1
        return edges


def table_of(feature: Category | Hashed | Bag) -> str:
    """The embedding table of a feature: the one it names, else its own."""
    return feature.table or feature.name


def table_features(schema: Schema) -> dict[str, Category | Hashed | Bag]:
    """The first feature of each embedding table; ``ExperimentError`` where features that share one do not agree."""
    first: dict[str, Category | Hashed | Bag] = {}
    taken = {one.name: one.name for one in schema.features if isinstance(one, Number) and one.embedding == "bins"}
    for one in schema.features:
        if isinstance(one, Time):
            taken |= {f"{one.name}:{part}": one.name for part in one.parts}
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


def by_name(batch: pa.RecordBatch) -> Callable[[str], pa.Array]:
    """The columns of a batch by name, ``DataError`` where there is none of the name."""
    index = {name: at for at, name in enumerate(batch.schema.names)}

    def column(name: str) -> pa.Array:
        if name not in index:
            raise _missing(name, index)
        return batch.column(index[name])

    return column


def _missing(name: str, there: Iterable[str]) -> DataError:
    return DataError(f"there is no column {name!r}; {nearest(name, there)}")


def _vectors(array: pa.Array, feature: Vector, first_row: int | None) -> np.ndarray:
    """(size, R) float64, NaN where missing."""
    array = cells.plain(array)
    kind = array.type
    if pa.types.is_null(kind):
        return np.full((feature.size, len(array)), np.nan)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise DataError(f"column {feature.source!r}: wanted lists of {feature.size} numbers, found {kind}; give lists")
    known = array.is_valid().to_numpy(zero_copy_only=False)
    lengths = pa.compute.list_value_length(array).fill_null(feature.size).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero(lengths != feature.size)
    if len(wrong):
        bad = cells.BadCell(
            f"a list of {feature.size} numbers", f"{lengths[wrong[0]]} of them", "see 'size' of the vector"
        )
        raise bad.error(feature.source, None if first_row is None else first_row + int(wrong[0]))
    found = np.full((feature.size, len(array)), np.nan)
    found[:, known] = cells.numbers(array.flatten(), feature.source).reshape(-1, feature.size).T
    return found


def _time_ids(micros: np.ndarray, feature: Time) -> list[np.ndarray]:
    """(R,) int32 per part."""
    days = micros // _DAY
    known = (micros != cells.NO_MOMENT) & (days >= _FIRST_DAY) & (days <= _LAST_DAY)
    days = np.where(known, days, 0)
    stamps = days.astype("datetime64[D]")
    months = stamps.astype("datetime64[M]")
    parts = {
        "hour": np.where(known, micros, 0) % _DAY // 3_600_000_000,
        "weekday": (days + 3) % 7,
        "day": (stamps - months).astype(np.int64),
        "month": months.astype(np.int64) % 12,
    }
    return [np.where(known, FIRST + parts[part], MISSING).astype(np.int32) for part in feature.parts]


def _no_ids(rows: int) -> Tensor:
    return torch.empty((rows, 0), dtype=torch.int32)


def _no_labels(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty((rows, 0)), torch.empty((rows, 0), dtype=torch.bool), torch.empty((rows, 0))
