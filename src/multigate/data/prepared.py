"""Prepared rows: encoded once, kept on disk, reused while nothing changed."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch
import xxhash

from multigate.batch import Batch, Layout
from multigate.data.ahead import ahead, worked
from multigate.data.arrow import with_codes
from multigate.data.buffers import as_arrow
from multigate.data.cells import placed
from multigate.data.encoder import FILES, FORMAT, Encoder
from multigate.data.features import by_name
from multigate.data.kept import Kept
from multigate.data.labels import Spelling
from multigate.data.missingness import weighed
from multigate.data.rows import pick
from multigate.data.shards import Part, ShardWriter, checksum, shard_path
from multigate.data.split import PARTS, Split, Splitter
from multigate.errors import DataError, MultigateError, RunError, shortage
from multigate.progress import Progress, silent
from multigate.schema import Schema
from multigate.sealed import sealed, unsealed
from multigate.writing import writing

SHARD, SHARD_BYTES = 65_536, 64 << 20
"""Rows of a shard, fewer of a wide table: at most so many bytes (but for bags), for a loader holds several."""

MANIFEST = "manifest.json"
"""What says which rows a folder holds, and that they are whole."""
KEPT = 1 << 30
"""Bytes that a training table may take on disk from the fit to the encoding; a larger one is parsed twice."""
OUTPUTS = 1 << 27
"""Outputs of the validation rows that are held at once, at most: 512 MB."""


class Table(Protocol):
    """As much of a ``Source`` as preparing needs."""

    @property
    def name(self) -> str: ...

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def rows(self) -> int | None: ...

    @property
    def fingerprint(self) -> str: ...

    def content(self) -> str: ...

    def check_unchanged(self) -> None: ...

    @property
    def at_hand(self) -> bool: ...

    @property
    def batches(self) -> Callable[..., Iterator[pa.RecordBatch]]: ...


class Prepared:
    """A folder of encoded rows and the encoder that made them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest = _read_manifest(folder)
            self.encoder = self._encoder()
            self.parts = {name: self._part(name, sizes) for name, sizes in self.manifest["parts"].items()}
            """The parts there are, by name."""
        except MultigateError:
            raise
        except Exception as error:  # damaged files: anything may be wrong in them
            if shortage(error) is not None:
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise RunError(
                f"prepared rows {folder} are damaged ({reason}); delete the folder to prepare anew"
            ) from error

    def _encoder(self) -> Encoder:
        for path in (self.folder / "encoder").glob("*"):
            wanted = self.manifest.get("checksums", {}).get(path.name)
            if wanted is not None and checksum(path) != wanted:
                raise ValueError(f"{path.name} is not what was written")
        return Encoder.load(self.folder / "encoder")

    def _part(self, name: str, sizes: list[int]) -> Part:
        paths = [shard_path(self.folder, name, at) for at in range(len(sizes))]
        shares, beside = (self.manifest.get(one, {}).get(name, {}) for one in ("followed", "beside"))
        weigh = partial(weighed, self.encoder.schema, shares, beside) if shares else None
        return Part(name, paths, sizes, self.manifest.get("checksums", {}), weigh)  # older rows have no checksums

    @property
    def content(self) -> str:
        """What says that two folders hold the same rows, wherever their tables are."""
        return str(self.manifest.get("content", self.manifest["key"]))  # older rows know their tables by place and time

    def is_known_as(self, content: object) -> bool:
        """Whether that is their ``content``, now or as it was told before there was one."""
        return content in (self.content, self.manifest["key"])

    @property
    def whole(self) -> bool:
        """Whether all shards are there."""
        return all(part.shards.there for part in self.parts.values())

    @cached_property
    def layout(self) -> Layout:
        return self.encoder.layout

    @property
    def train(self) -> Part:
        return self.parts["train"]

    @property
    def valid(self) -> Part:
        return self.parts["valid"]

    @property
    def test(self) -> Part | None:
        return self.parts.get("test")

    def looked_at(self, size: int, most: int) -> Iterator[Batch]:
        """Validation rows to score after an epoch, ``size`` at a time: at most about ``most``, and as many as have
        2^27 outputs, or those of thousands of classes would take all memory."""
        outputs = sum(task.outputs for task in self.layout.tasks)
        return self.valid.sample(size, min(most, max(1, OUTPUTS // outputs)))


def open_prepared(folder: Path) -> Prepared | None:
    """The rows prepared in a folder; None where there are none, or files of theirs are missing.

    Raises ``RunError`` where they are damaged, or something else is there.
    """
    if _manifest_in(folder) is None or not all((folder / "encoder" / name).is_file() for name in FILES):
        return None
    prepared = Prepared(folder)
    return prepared if prepared.whole else None


def prepare(
    schema: Schema,
    train: Table,
    valid: Table | None,
    test: Table | None,
    split: Split,
    folder: Path,
    progress: Progress | None = None,
    *,
    base: Encoder | None = None,
    replace: bool = True,
    known: str | None = None,
    encoder: str | None = None,
    shard_rows: int = SHARD,
) -> Prepared:
    """Fit the encoder on the training rows (or grow ``base`` by them), encode every row into ``folder``, and open it.

    Validation and test rows are split off ``train`` unless they have a table of their own. A folder prepared before
    from the same schema, split and tables is opened at once, unless files are missing; one prepared from others is
    replaced once the new one is whole, or, without ``replace``, refused. Files of another place or time are the same
    tables where their bytes are, which are read to know it. Where it is ``known`` which rows are wanted, by their
    ``content``, others are refused, whether or not any are there. ``encoder``: the fingerprint of the one that models
    were trained with.

    Raises:
        DataError: a column or cell is not what the schema says, or a part has no rows.
        RunError: the folder holds files that are no prepared rows, or rows of others that are not to be replaced.
    """
    tables = {"train": train} | {name: one for name, one in (("valid", valid), ("test", test)) if one is not None}
    split = split.without(valid=valid is not None, test=test is not None)
    if valid is None and "valid" not in split.parts:
        raise DataError("the split leaves no valid rows: its valid is 0 and there is no valid table; give one of them")
    recipe = _Recipe(schema, tables, split, base, encoder, shard_rows)
    keys = {"key": recipe.key({name: table.fingerprint for name, table in tables.items()})}
    found = _manifest_in(folder)
    same = found is not None and found["key"] == keys["key"]
    opened = open_prepared(folder) if same else None
    if opened is None:
        keys["content"] = recipe.key({name: table.content() for name, table in tables.items()})
    if found is not None and not same and found.get("content") == keys["content"]:
        same, opened = True, open_prepared(folder)
    if opened is not None and (known is None or opened.is_known_as(known)):
        return opened
    others = found is not None and not same and not replace
    if others if known is None else known not in keys.values():
        raise RunError(f"the tables changed since {folder} was prepared; change them back, or use another folder")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with Kept(temporary, KEPT) as kept:
            written = _write(recipe, temporary, kept, progress or silent)
            write_manifest(temporary, {"format": FORMAT, **keys, **written})
        for table in tables.values():  # read twice, and known by what they held before: rows of both would go together
            table.check_unchanged()
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Prepared(folder)


def thinned(prepared: Prepared, share: float, folder: Path) -> Prepared:
    """The same rows with a share of the training rows alone, drawn at random, in their order, and no test rows.

    A folder thinned before from the same rows is opened at once. Raises ``RunError`` where the disk refuses.
    """
    content = f"{prepared.content}-{share!r}"
    found = _manifest_in(folder)
    opened = open_prepared(folder) if found is not None and found["key"] == content else None
    if opened is not None:
        return opened
    random = np.random.default_rng(0)
    chosen = np.sort(random.choice(prepared.train.rows, max(1, round(share * prepared.train.rows)), replace=False))
    with writing(folder) as temporary:
        temporary.mkdir()
        shutil.copytree(prepared.folder / "encoder", temporary / "encoder")
        train = ShardWriter(temporary, "train", max(prepared.train.sizes), prepared.encoder.schema)
        first = 0
        for shard in prepared.train.shards:
            here = chosen[(first <= chosen) & (chosen < first + shard.rows)] - first
            if len(here):
                train.add(pick(shard, torch.from_numpy(here)))
            first += shard.rows
        valid = ShardWriter(temporary, "valid", max(prepared.valid.sizes), prepared.encoder.schema)
        for shard in prepared.valid.shards:
            valid.add(shard)
        sizes = {"train": train.close(), "valid": valid.close()}
        checksums = {path.name: checksum(path) for path in (temporary / "encoder").iterdir()}
        manifest = prepared.manifest | {
            "key": content,
            "content": content,
            "parts": sizes,
            "rows": {name: sum(one) for name, one in sizes.items()},
            "checksums": checksums | train.checksums | valid.checksums,
            "followed": {},  # the weights of its rows say it
            "beside": {},
        }
        write_manifest(temporary, manifest)
    return Prepared(folder)


class _Recipe(NamedTuple):
    """What prepared rows are made of, and how."""

    schema: Schema
    tables: Mapping[str, Table]
    split: Split
    base: Encoder | None
    known: str | None
    shard_rows: int

    def key(self, tables: Mapping[str, str]) -> str:
        """What says that rows are these, given what says it of their tables."""
        content = {
            "format": FORMAT,
            "shard_rows": self.shard_rows,
            "schema": self.schema.model_dump(mode="json", exclude={"outputs"}),  # made of predictions, not of rows
            "split": self.split.model_dump(mode="json"),
            "tables": tables,
            "base": None if self.base is None else self.base.fingerprint,
        }
        return str(xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode()))


def _write(recipe: _Recipe, folder: Path, kept: Kept, progress: Progress) -> dict[str, Any]:
    """Fit the encoder and encode all rows into a folder; what its manifest says of them."""
    schema, tables, split, base, known, shard_rows = recipe
    splitter = split.resolve(tables["train"], schema)
    why = _why_empty(tables["train"], split, splitter)
    rows = _Rows(schema, tables["train"], splitter.columns, kept)
    training = _TrainingRows(rows, splitter, progress, why)
    with placed(tables["train"].name, training):
        fitted = Encoder.fit(schema, training) if base is None else base.grown(schema, training)
    encoder = fitted.as_known(known)
    encoder.save(folder / "encoder")
    sources = {name: rows if name == "train" else _Rows(schema, table) for name, table in tables.items()}
    shard_rows = max(1, min(shard_rows, SHARD_BYTES // _row_bytes(encoder.layout)))
    writers = {name: ShardWriter(folder, name, shard_rows, schema) for name in (*split.parts, *tables)}
    _encode(sources, encoder, splitter, writers, progress)
    sizes = {name: writers[name].close() for name in PARTS if name in writers}
    for name, shards in sizes.items():
        if not shards:
            own = f"the {name} table {tables[name].name} has no rows; give one with rows" if name in tables else None
            raise DataError(own or why.format(part=name))
    checksums = {path.name: checksum(path) for path in (folder / "encoder").iterdir()}
    return {
        "encoder": encoder.fingerprint,
        "parts": sizes,
        "rows": {name: sum(one) for name, one in sizes.items()},
        "checksums": checksums | {name: one for writer in writers.values() for name, one in writer.checksums.items()},
        "tables": {name: table.name for name, table in tables.items()},
        "thresholds": splitter.thresholds,
        "followed": _told({name: one.followed.by_name(one.followed.shares()) for name, one in writers.items()}),
        "beside": _told({name: one.followed.by_name(one.followed.beside()) for name, one in writers.items()}),
        "unflagged": dict(fitted.fitted.unflagged),
        "left_out": {table: one.left_out for table, one in encoder.fitted.vocabularies.items() if one.left_out},
        "labels": {one.name: {"known": one.known, "violations": one.violations} for one in encoder.stats},
    }


def _encode(
    sources: Mapping[str, "_Rows"],
    encoder: Encoder,
    splitter: Splitter,
    writers: Mapping[str, ShardWriter],
    progress: Progress,
) -> None:
    """Encode the rows of all tables, each into the part that it belongs to."""
    done = dict.fromkeys(sources, 0)
    for name, batch, parts in worked(partial(_encoded, encoder, splitter), _numbered(sources, encoder)):
        if parts is None or not parts.any():
            writers[name].add(batch)
        else:
            for at, part in enumerate(PARTS):
                chosen = torch.from_numpy(np.flatnonzero(parts == at))
                if len(chosen):
                    writers[part].add(pick(batch, chosen))
        done[name] += batch.rows
        progress(f"encode {name}", done[name], sources[name].table.rows)


def _told(parts: Mapping[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Without parts of which there is nothing to tell."""
    return {name: shares for name, shares in parts.items() if shares}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write what prepared rows in a folder are."""
    (folder / MANIFEST).write_text(json.dumps(sealed(manifest), indent=1) + "\n", encoding="utf-8")


def _read_manifest(folder: Path) -> Any:
    """What stands in the file of that. Raises ``ValueError`` where it is damaged."""
    found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    return unsealed(found) if isinstance(found, dict) else found


class _Rows:
    """What encoding needs of a table, in batches with text as codes; the second time they come from what was kept."""

    def __init__(self, schema: Schema, table: Table, more: Sequence[str] = (), kept: Kept | None = None) -> None:
        group = (schema.group,) if schema.group else ()
        self.table = table
        self._columns = list(dict.fromkeys((*schema.columns(carried=False), *group, *more)))
        self._most, self._kept, self._read = _read_rows(schema), None if table.at_hand else kept, False

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self._read and self._kept is not None and self._kept.whole:
            yield from self._kept
            return
        yield from ahead(self._coded(None if self._read else self._kept))
        self._read = True

    def _coded(self, kept: Kept | None) -> Iterator[pa.RecordBatch]:
        for batch in map(with_codes, ahead(self.table.batches(self._columns, rows=self._most, as_read=True))):
            if kept is not None:
                kept.add(batch)
            yield batch


class _TrainingRows:
    """The training rows of a table in batches; ``rows[i]`` is the number in the table of a row of the last of them."""

    def __init__(self, rows: _Rows, splitter: Splitter, progress: Progress, why_empty: str) -> None:
        self._rows, self._splitter = rows, splitter
        self._progress, self._why_empty = progress, why_empty
        self._numbers = np.empty(0, dtype=np.int64)

    def __getitem__(self, row: int, /) -> int:
        return int(self._numbers[row])

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        first_row, found, total = 0, 0, self._rows.table.rows
        self._progress("fit encoder", 0, total)
        for batch in self._rows:
            kept = self._splitter.assign(batch, first_row) == 0
            self._numbers = first_row + np.flatnonzero(kept)
            first_row += batch.num_rows
            found += len(self._numbers)
            yield batch if len(self._numbers) == batch.num_rows else batch.filter(as_arrow(kept))
            self._progress("fit encoder", first_row, total)
        if not found:
            raise DataError(self._why_empty.format(part="train"))


class _Numbered(NamedTuple):
    """A batch of a table, and the number of its first row."""

    name: str
    table: Table
    batch: pa.RecordBatch
    first_row: int


def _numbered(sources: Mapping[str, _Rows], encoder: Encoder) -> Iterator[_Numbered]:
    for name, rows in sources.items():
        spelling = None if name == "train" else Spelling(encoder.schema, encoder.stats)
        first_row = 0
        for batch in rows:
            yield _Numbered(name, rows.table, batch, first_row)
            if spelling is not None:
                spelling.add(by_name(batch))
            first_row += batch.num_rows
        if spelling is not None:
            with placed(rows.table.name, ()):
                spelling.check()


def _encoded(encoder: Encoder, splitter: Splitter, given: _Numbered) -> tuple[str, Batch, np.ndarray | None]:
    """The rows of a batch, encoded, and the part of each of them (None: all belong to the table's own)."""
    name, table, batch, first_row = given
    with placed(table.name, range(first_row, first_row + batch.num_rows)):
        encoded = encoder.columns(batch)
    return name, encoded, splitter.assign(batch, first_row) if name == "train" else None


def _read_rows(schema: Schema) -> int:
    """Rows to read at a time: fewer of a wide table, so that a batch stays below about 100 MB."""
    width = sum(getattr(feature, "size", 1) for feature in schema.features)
    return max(1024, min(SHARD, (1 << 22) // width))


def _row_bytes(layout: Layout) -> int:
    """Of a row in a shard, its bags left out."""
    return 4 * (len(layout.numbers) + len(layout.categories)) + 9 * len(layout.tasks) + 8


def _manifest_in(folder: Path) -> dict[str, Any] | None:
    """What prepared rows in a folder are, None where there are none; ``RunError`` where there is something else."""
    try:
        manifest = _read_manifest(folder)
        if isinstance(manifest, dict) and "encoder" in manifest:
            return manifest | {"key": str(manifest["key"])}
    except NotADirectoryError:
        raise RunError(f"{folder} is a file, wanted a folder for prepared rows; choose another name") from None
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, RecursionError) as error:
        raise RunError(
            f"{folder / MANIFEST} cannot be read ({error}); if these are prepared rows, delete the folder to "
            "prepare anew"
        ) from None
    if folder.is_dir() and any(folder.iterdir()):
        raise RunError(f"{folder} holds files but no prepared rows; choose another folder or empty this one")
    return None


def _put_in_place(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _why_empty(table: Table, split: Split, splitter: Splitter) -> str:
    cuts = " and ".join(f"{what} {value}" for what, value in splitter.thresholds.items())
    how = cuts or f"valid {split.valid} and test {split.test}"
    how += f" by column {splitter.columns[0]!r}" if splitter.columns else ""
    name = table.name.replace("{", "{{").replace("}", "}}")
    return f"the split leaves no {{part}} rows of {name} with {how}; change the split or give a {{part}} table"
