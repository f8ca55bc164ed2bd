"""The encoder: fitted once on the training rows, it turns raw rows into tensors, by the table or one at a time."""

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from multigate.batch import BagIds, Batch, IdColumn, Layout, NumberColumn
from multigate.data import arrow, bags, buffers, cells, float32
from multigate.data.features import PART_SIZES, by_name, missing, time_cell, time_column, vector_cell, vector_column
from multigate.data.fitting import Fit, Fitted
from multigate.data.hashes import hash_of, hashes_of
from multigate.data.labels import Labels, LabelStats, rows_first
from multigate.data.numbers import Scale, Scales, bin_ids, value_ids
from multigate.data.vocabulary import (
    FIRST,
    MISSING,
    UNSEEN,
    Buckets,
    Lookup,
    Vocabulary,
    table_features,
    table_of,
)
from multigate.errors import DataError
from multigate.schema import Bag, Category, Feature, Hashed, Number, Schema, Time, Vector

FORMAT = 1
"""Version of what ``save`` writes; encoded shards of another version are not reused."""
FILES = CONTENT, VOCABULARIES = "encoder.json", "vocabularies.parquet"
"""What it writes."""

Reader = Callable[[Any, list[float], list[int], list[list[int]]], None]
"""Reads one raw cell: appends to the row's raw numbers, its ids and its bags."""
Found = Mapping[type, Callable[[Any], int | None]]
"""By the type of a cell what finds its id, where it has one."""


class Arrays(NamedTuple):
    """What a model reads of R rows, as in ``Batch``: numbers (R, N), ids (R, C), values and offsets of each bag."""

    numbers: np.ndarray
    categories: np.ndarray
    bags: tuple[tuple[np.ndarray, np.ndarray], ...]


class Encoder:
    """Raw rows -> ``Batch``. Made by ``fit`` or ``load``; ``columns`` and ``row`` give the same answers."""

    def __init__(self, schema: Schema, fitted: Fitted) -> None:
        schema = schema.with_(outputs=())  # those are made of predictions
        self.schema, self.fitted = schema, fitted
        self._labels = Labels(schema, fitted.rows, fitted.tasks)
        self._scales = Scales(fitted.scales)
        self._bin_edges = {name: np.array(edges, dtype=np.float64) for name, edges in fitted.edges.items()}
        self._values = {name: np.array(values, dtype=np.float64) for name, values in fitted.values.items()}
        self._narrow = {
            name
            for name, edges in self._bin_edges.items()
            if float32.are_shortest(edges) and float32.are_shortest(self._values.get(name, edges[:0]))
        }
        """Numbers whose bounds are no finer than float32s."""
        self._lookups: dict[str, Lookup] = dict(fitted.vocabularies)
        for table, feature in table_features(schema).items():
            if isinstance(feature, Hashed | Bag) and feature.buckets:
                self._lookups[table] = Buckets(feature.buckets)

    @cached_property
    def _readers(self) -> list[tuple[str, bool, Found, Reader]]:
        """What reads a single row, made where one comes: of large vocabularies it takes memory and a while."""
        return [(one.source, one.biased is None, self._found(one), self._reader(one)) for one in self.schema.features]

    @classmethod
    def fit(cls, schema: Schema, batches: Iterable[pa.RecordBatch]) -> "Encoder":
        """Fit on the training rows, in one pass whose memory is that of the vocabularies and a sample of the numbers.

        The result does not depend on how the rows come in batches. Raises ``DataError`` where a column is missing, a
        cell does not hold what the schema says, or a label cannot be learnt from these rows; ``ExperimentError``
        where features that share a table differ.
        """
        fit = Fit(schema)
        for batch in batches:
            fit.add(batch)
        return cls(schema, fit.finish())

    def grown(self, schema: Schema, batches: Iterable[pa.RecordBatch]) -> "Encoder":
        """An encoder for training rows that came later: ids and scales stay as they are, new values get new ids.

        ``schema`` is this one's but for what does not touch the encoding (weights of tasks, keys, types). A class
        that this encoder does not know is an unknown label.
        """
        fit = Fit(schema, self.fitted)
        for batch in batches:
            fit.add(batch)
        return Encoder(schema, fit.finish())

    def as_known(self, fingerprint: str | None) -> "Encoder":
        """This one, or as older ones were, with more flags for being missing, where that has the fingerprint."""
        if fingerprint in (None, self.fingerprint):
            return self
        of_all = self.fitted._replace(flagged=None)
        older = (Encoder(self.schema, one) for one in (of_all, of_all._replace(flags_apart=True)))
        return next((one for one in older if one.fingerprint == fingerprint), self)

    def make_ready(self) -> None:
        """Make what single rows are looked up in, before the first of them comes."""
        for lookup in self._lookups.values():
            lookup.id("")

    @property
    def rows(self) -> int:
        """Training rows."""
        return self.fitted.rows

    @property
    def stats(self) -> tuple[LabelStats, ...]:
        """What the training rows say of each task."""
        return self.fitted.tasks

    def columns(self, batch: pa.RecordBatch, labels: bool = True, first_row: int | None = None) -> Batch:
        """Encode a record batch (columns beyond those needed are ignored).

        Raises ``DataError`` where a needed column is missing or a cell does not hold what the schema says;
        ``first_row``, the number of the batch's first row, makes errors name the row. The group column may be
        missing without ``labels``.
        """
        if first_row is None:
            return self._columns(batch, labels)
        with cells.placed("", range(first_row, first_row + batch.num_rows)):
            return self._columns(batch, labels)

    def _columns(self, batch: pa.RecordBatch, labels: bool) -> Batch:
        column = by_name(batch)
        rows = batch.num_rows
        numbers: dict[int, np.ndarray] = {}
        raw: dict[int, np.ndarray] = {}
        ids: list[np.ndarray] = []
        packed: list[BagIds] = []
        for feature in self.schema.features:
            # what serving cannot know is unknown wherever rows have no labels
            array = column(feature.source) if labels or feature.biased is None else pa.nulls(rows)
            match feature:
                case Number():
                    index, x = arrow.distinct_numbers(array, feature.source)
                    at = len(numbers) + len(raw)
                    if index is None:
                        raw[at] = x
                    else:
                        numbers[at] = self._scales.encode(x[None], [at])[0].take(index)
                    if self.fitted.embeddings[feature.name] == "bins":
                        # of float32s the bounds are made as narrow as they are, which is quicker than the reverse
                        narrow = pa.types.is_float32(array.type) and feature.name in self._narrow
                        x, width = (x, np.float32) if narrow else (float32.shortest(x), np.float64)
                        ids.append(_each(bin_ids(x, self._bin_edges[feature.name].astype(width)), index))
                        if feature.name in self._values:
                            ids.append(_each(value_ids(x, self._values[feature.name].astype(width)), index))
                case Vector():
                    raw |= enumerate(vector_column(array, feature), len(numbers) + len(raw))
                case Time():
                    ids.extend(time_column(arrow.moments(array, feature.source, self._zone(feature.source)), feature))
                case Category() | Hashed():
                    index, values = arrow.distinct_values(array, feature.source, self._spell(feature.source))
                    found = self._lookups[table_of(feature)].ids(values)
                    ids.append(np.append(found, np.int32(MISSING)).take(index))
                case Bag():
                    lookup = self._lookups[table_of(feature)]
                    values, offsets = bags.column_ids(array, feature.separator, lookup, feature.source)
                    packed.append(BagIds(torch.from_numpy(values), torch.from_numpy(offsets)))
        if raw:
            numbers |= zip(raw, self._scales.encode(list(raw.values()), list(raw)), strict=True)
        return Batch(
            rows_first([numbers[at] for at in range(len(numbers))]) if numbers else _nothing(rows, np.float32),
            rows_first(ids) if ids else _nothing(rows, np.int32),
            tuple(packed),
            *(self._labels.encode(rows, column) if labels else _no_labels(rows)),
            self._groups(batch, required=labels),
        )

    def row(self, row: Mapping[str, Any]) -> Batch:
        """Encode one raw row without labels: the same tensors as ``columns`` gives for a table of this row."""
        read = self.arrays(row)
        group = 0 if self.schema.group is None else self._group(row.get(self.schema.group), self.schema.group)
        return Batch(
            torch.from_numpy(read.numbers),
            torch.from_numpy(read.categories),
            tuple(BagIds(torch.from_numpy(values), torch.from_numpy(offsets)) for values, offsets in read.bags),
            *_no_labels(1),
            torch.from_numpy(np.array([group], np.int64)),
        )

    def arrays(self, row: Mapping[str, Any]) -> Arrays:
        """What a model reads of one raw row. Without tensors, which would take a quarter of the time of an answer."""
        raw: list[float] = []
        ids: list[int] = []
        packed: list[list[int]] = []
        for column, told, found, read in self._readers:
            try:
                value = row[column] if told else None
                # most cells are values of the training rows, whose ids are found sooner than whatever else they may be
                if (find := found.get(type(value))) is not None and (known := find(value)) is not None:
                    ids.append(known)
                else:
                    read(value, raw, ids, packed)
            except KeyError:
                named = {str(name): value for name, value in row.items()}  # pandas has names that are no text, as 0
                if column in named:
                    return self.arrays(named)
                raise missing(column, named) from None
            except cells.BadCell as bad:
                raise bad.error(column) from None
            except TypeError:
                if isinstance(row, Mapping):
                    raise
                raise DataError(f"wanted a dict of values, found {type(row).__name__}; give the row as one") from None
        return Arrays(
            self._scales.row(raw),
            np.array([ids], dtype=np.int32),
            tuple((np.array(one, np.int32), np.array([0, len(one)], np.int32)) for one in packed),
        )

    def decode(self, task: int, values: NDArray[Any]) -> NDArray[Any]:
        """Predictions (any shape) of a regression task in the label's own unit, float64; of other tasks as they are."""
        return self._labels.decode(task, values)

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
                    if self.fitted.embeddings[feature.name] == "bins":
                        categories.append(_id_column(feature, feature.name))
                        tables[feature.name] = FIRST + len(self.fitted.edges[feature.name]) + 1
                    if feature.name in self._values:
                        name = f"{feature.name}:value"
                        categories.append(_id_column(feature, name))
                        tables[name] = FIRST + len(self._values[feature.name])
                case Vector():
                    names = [f"{feature.name}[{at}]" for at in range(feature.size)]
                    flag = self._flag(feature)
                    numbers.extend(
                        NumberColumn(feature=name, use=feature.use, of_vector=True, flag=flag) for name in names
                    )
                case Time():
                    for part in feature.parts:
                        name = f"{feature.name}:{part}"
                        categories.append(_id_column(feature, name))
                        tables[name] = FIRST + PART_SIZES[part]
                case Category() | Hashed() | Bag():
                    table = table_of(feature)
                    into = packed if isinstance(feature, Bag) else categories
                    into.append(IdColumn(feature=feature.name, table=table, dim=feature.dim, use=feature.use))
                    tables[table] = self._lookups[table].size
        return Layout(
            numbers=tuple(numbers), categories=tuple(categories), bags=tuple(packed), tables=tables,
            tasks=self._labels.layout(),
        )  # fmt: skip

    def _found(self, feature: Feature) -> Found:
        """What finds the ids of texts and whole numbers that stand in a vocabulary as the column spells them."""
        lookup = self._lookups[table_of(feature)] if isinstance(feature, Category) else None
        spell = self._spell(feature.source)
        if not isinstance(lookup, Vocabulary) or spell not in (None, *cells.NUMBERS):
            return {}
        return {int: lookup.found_whole} if spell is not None else {int: lookup.found_whole, str: lookup.found}

    def _reader(self, feature: Feature) -> Reader:
        """The door of one feature for single rows."""
        match feature:
            case Number():
                binned = self.fitted.embeddings[feature.name] == "bins"
                edges = list(self.fitted.edges[feature.name]) if binned else None
                values = {x: at for at, x in enumerate(self.fitted.values.get(feature.name, ()), FIRST)}

                def read_number(value: Any, raw: list[float], ids: list[int], packed: list[list[int]]) -> None:
                    x = cells.number(value)
                    raw.append(x)
                    if edges is None:
                        return
                    x = float32.shortest_of(x)
                    ids.append(MISSING if isnan(x) else FIRST + bisect_right(edges, x))
                    if values:
                        ids.append(MISSING if isnan(x) else values.get(x, UNSEEN))

                return read_number
            case Vector():
                return lambda value, raw, ids, packed: raw.extend(vector_cell(value, feature))
            case Time():
                zone, counted = self._zone(feature.source), self._spell(feature.source) in cells.NUMBERS
                return lambda value, raw, ids, packed: ids.extend(time_cell(value, feature, zone, counted))
            case Category() | Hashed():
                find, spell = self._lookups[table_of(feature)].id, self._spell(feature.source)
                exact = spell is cells.as_whole
                text = cells.exact_text if exact else cells.text

                def read_category(value: Any, raw: list[float], ids: list[int], packed: list[list[int]]) -> None:
                    found = (value or None) if type(value) is str and not exact else text(value)
                    ids.append(find(found if spell is None or found is None else spell(found)))

                return read_category
            case Bag():
                lookup = self._lookups[table_of(feature)]
                return lambda value, raw, ids, packed: packed.append(bags.cell_ids(value, feature.separator, lookup))

    def _number_column(self, feature: Number) -> NumberColumn:
        kind = self.fitted.embeddings[feature.name]
        flag = self._flag(feature)
        if kind == "bins":
            return NumberColumn(feature=feature.name, use=feature.use, flag=flag)
        edges = self.fitted.edges[feature.name] if kind == "piecewise" else ()
        return NumberColumn(
            feature=feature.name, embedding=kind, edges=edges, dim=feature.dim, use=feature.use, flag=flag
        )

    def _flag(self, feature: Number | Vector) -> str | None:
        """That of its ``NumberColumn``s."""
        if self.fitted.flagged is not None and feature.name not in self.fitted.flagged:
            return None
        return feature.name if isinstance(feature, Vector) and not self.fitted.flags_apart else ""

    def _spell(self, column: str) -> cells.Spell | None:
        return cells.spelling(self.schema.types.get(column))

    def _zone(self, column: str) -> str | None:
        return cells.zone_of(self.schema.types.get(column))

    def _group(self, value: Any, name: str) -> int:
        spell = self._spell(name)
        text = cells.exact_text if spell is cells.as_whole else cells.text
        try:
            found = text(value)
        except cells.BadCell as bad:
            raise bad.error(name) from None
        return hash_of(found if spell is None or found is None else spell(found))

    def _groups(self, batch: pa.RecordBatch, required: bool) -> Tensor:
        name = self.schema.group
        if name is None or (not required and name not in batch.schema.names):
            return torch.from_numpy(np.zeros(batch.num_rows, np.int64))
        index, texts = arrow.distinct_texts(by_name(batch)(name), name, self._spell(name))
        hashes = np.where(buffers.known(texts), hashes_of(texts).view(np.int64), 0)
        return torch.from_numpy(np.append(hashes, 0)[index])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that decides how rows are encoded."""
        tasks = [one.model_dump(mode="json", exclude={"values"}) for one in self.stats]
        hashed = xxhash.xxh3_128(json.dumps(self._content | {"tasks": tasks}, indent=1).encode())
        for table in sorted(self.fitted.vocabularies):
            hashed.update(table.encode() + b"\0")
            hashed.update(buffers.joined(self.fitted.vocabularies[table].texts))
        return str(hashed.hexdigest())

    @property
    def _content(self) -> dict[str, Any]:
        vectors = any(isinstance(one, Vector) for one in self.schema.features)
        return {
            "format": FORMAT,
            "rows": self.rows,
            "schema": self.schema.model_dump(mode="json"),
            "scales": [scale.model_dump(mode="json") for scale in self.fitted.scales],
            "edges": {name: list(edges) for name, edges in self.fitted.edges.items()},
            "embeddings": self.fitted.embeddings,
            "values": {name: list(values) for name, values in self.fitted.values.items()},
            "tables": sorted(self.fitted.vocabularies),
            "tasks": [one.model_dump(mode="json") for one in self.stats],
            **({"flags_apart": False} if vectors and not self.fitted.flags_apart else {}),
            **({} if self.fitted.flagged is None else {"flagged": list(self.fitted.flagged)}),
        }

    def save(self, folder: Path) -> None:
        """Write ``encoder.json`` and ``vocabularies.parquet`` (table, value, count; in the order of the ids)."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONTENT).write_text(json.dumps(self._content, indent=1) + "\n", encoding="utf-8")
        held = sorted(self.fitted.vocabularies.items())
        names = pa.DictionaryArray.from_arrays(
            buffers.as_arrow(np.repeat(np.arange(len(held), dtype=np.int32), [len(one.texts) for _, one in held])),
            buffers.as_arrow_text([name for name, _ in held]).cast(pa.string()),
        )
        values = pa.chunked_array([one.texts for _, one in held], pa.large_string()).cast(pa.string())
        counts = pa.chunked_array([buffers.as_arrow(one.times) for _, one in held], pa.int64())
        table = pa.table({"table": names, "value": values, "count": counts})
        pq.write_table(table, folder / VOCABULARIES, compression="zstd")

    @classmethod
    def load(cls, folder: Path, schema: Schema | None = None) -> "Encoder":
        """Read what ``save`` wrote; ``DataError`` where that was for another schema than the one told."""
        for name in FILES:
            if not (folder / name).is_file():
                raise DataError(f"{folder} holds no saved encoder: {name} is not there")
        content = json.loads((folder / CONTENT).read_text(encoding="utf-8"))
        table = pq.ParquetFile(folder / VOCABULARIES).read()
        if content["format"] != FORMAT:
            raise DataError(
                f"{folder} holds an encoder of format {content['format']}, wanted {FORMAT}; prepare it again"
            )
        saved = Schema.model_validate(content["schema"])
        embeddings = content.get("embeddings")
        if embeddings is None:  # written before there was ``auto``
            embeddings = {one.name: one.embedding for one in saved.features if isinstance(one, Number)}
        if schema is not None and schema.with_(outputs=()) != saved:
            raise DataError(f"{folder} holds an encoder for another schema than the experiment's; prepare it again")
        index, names = arrow.codes(table["table"].combine_chunks(), "table")
        values, counts = (
            table["value"].cast(pa.large_string()).combine_chunks(),
            buffers.stored(table["count"].combine_chunks()),
        )
        vocabularies = {name: Vocabulary((), ()) for name in content["tables"]}
        for at, name in enumerate(names.to_pylist()):
            start, stop = np.searchsorted(index, at), np.searchsorted(index, at, side="right")
            vocabularies[name] = Vocabulary(values.slice(start, stop - start), counts[start:stop])
        encoder = cls(
            saved,
            Fitted(
                rows=content["rows"],
                scales=tuple(Scale.model_validate(one) for one in content["scales"]),
                edges={name: tuple(edges) for name, edges in content["edges"].items()},
                embeddings=embeddings,
                values={name: tuple(values) for name, values in content["values"].items()},
                vocabularies=vocabularies,
                tasks=tuple(LabelStats.model_validate(one) for one in content["tasks"]),
                flagged=None if content.get("flagged") is None else tuple(content["flagged"]),
                flags_apart=content.get("flags_apart", True),
            ),
        )
        scales, numbers = len(encoder.fitted.scales), len(encoder.layout.numbers)
        if scales != numbers:
            raise DataError(f"{folder} has scales of {scales} numbers, its schema {numbers}; save or copy it again")
        return encoder


def _id_column(feature: Number | Time, name: str) -> IdColumn:
    """One of the id columns made of a feature, with a table of its own."""
    return IdColumn(feature=name, table=name, dim=feature.dim, use=feature.use)


def _each(values: np.ndarray, index: np.ndarray | None) -> np.ndarray:
    """(R,) from distinct values, or as they are without an index."""
    return values if index is None else values.take(index)


def _no_labels(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    return _nothing(rows, np.float32), _nothing(rows, np.bool_), _nothing(rows, np.float32)


def _nothing(rows: int, dtype: type[np.generic]) -> Tensor:
    """(R, 0), on the CPU wherever the caller wants new tensors."""
    return torch.from_numpy(np.empty((rows, 0), dtype))
