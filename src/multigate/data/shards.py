"""Encoded rows on disk, in shards that are mapped into memory: written in order, read as a part of a table."""

import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import overload

import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from multigate.batch import BagIds, Batch
from multigate.data.missingness import Followed
from multigate.data.rows import cut, join
from multigate.errors import RunError, shortage
from multigate.schema import Schema
from multigate.writing import show

PIECES = 6
"""Of which a sample of rows consists at least."""

_TENSORS = ("numbers", "categories", "labels", "known", "weights", "groups")


class Shards(Sequence[Batch]):
    """The shards of a part, each mapped when first asked for; their pages belong to the files, not to the process.

    ``weigh`` gives rows their weights, where those of the files are not all there is to them. ``checksums``, by the
    files' names, are looked at then (.1 s for a GB that is in memory). Raises ``RunError`` where a file is not what was
    written.
    """

    def __init__(
        self, paths: Sequence[Path], checksums: Mapping[str, str] = {}, weigh: Callable[[Batch], Batch] | None = None
    ) -> None:
        self._paths, self._checksums, self._weigh = paths, checksums, weigh
        self._open: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def there(self) -> bool:
        """Whether no file is missing."""
        return all(path.is_file() for path in self._paths)

    @overload
    def __getitem__(self, at: int) -> Batch: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Batch]: ...

    def __getitem__(self, at: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        at = range(len(self))[at]
        if at not in self._open:
            path = self._paths[at]
            found = _read_shard(path, self._checksums.get(path.name))
            self._open[at] = found if self._weigh is None else self._weigh(found)
        return self._open[at]


class Part:
    """The rows of one split."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        sizes: Sequence[int],
        checksums: Mapping[str, str] = {},
        weigh: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self.name = name
        self.sizes = tuple(sizes)
        """Rows of each shard."""
        self.rows = sum(sizes)
        self.shards = Shards(paths, checksums, weigh)

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows in order, ``size`` at a time; views of the shards where a batch lies within one."""
        waiting: list[Batch] = []
        held = 0
        for shard in self.shards:
            at = 0
            while at < shard.rows:
                many = min(size - held, shard.rows - at)
                waiting.append(cut(shard, at, at + many))
                held, at = held + many, at + many
                if held == size:
                    yield join(waiting)
                    waiting, held = [], 0
        if waiting:
            yield join(waiting)

    def sample(self, size: int, most: int) -> Iterator[Batch]:
        """Every so many of those batches: at most about ``most`` rows, evenly spread.

        Of few rows the batches are smaller than ``size``, for a single one would be the first rows alone.
        """
        apart = max(1, math.ceil(self.rows / most))
        if apart > 1:
            size = min(size, max(1, most // PIECES))
            if self.rows <= size * apart * (PIECES - 1):  # so little is left out that fewer pieces would be left
                size = max(1, self.rows // apart // PIECES)
        return islice(self.batches(size), 0, None, apart)

    def labelled(self, place: int) -> bool:
        """Whether some row has a label, of a weight above 0, of the task at a place."""
        return any(bool((shard.known[:, place] & (shard.weights[:, place] > 0)).any()) for shard in self.shards)

    def mean_weight(self, place: int) -> float:
        """Of the known labels of the task at a place; 0 where there are none."""
        total, known = 0.0, 0
        for shard in self.shards:
            held = shard.weights[:, place][shard.known[:, place]]
            total, known = total + float(held.double().sum()), known + len(held)
        return total / max(known, 1)


class ShardWriter:
    """Gathers the rows of one part into shards of exactly ``shard_rows`` rows (the last one fewer)."""

    def __init__(self, folder: Path, name: str, shard_rows: int, schema: Schema) -> None:
        self._folder, self._name, self._shard_rows = folder, name, shard_rows
        self.followed = Followed(schema)
        self._waiting: list[Batch] = []
        self._held = 0
        self._sizes: list[int] = []
        self.checksums: dict[str, str] = {}
        """Of the files written, by name."""

    def add(self, batch: Batch) -> None:
        at = 0
        while at < batch.rows:
            many = min(self._shard_rows - self._held, batch.rows - at)
            self._waiting.append(cut(batch, at, at + many))
            self._held, at = self._held + many, at + many
            if self._held == self._shard_rows:
                self._flush()

    def close(self) -> list[int]:
        """Write what is left; returns the rows of each shard."""
        if self._held:
            self._flush()
        return self._sizes

    def _flush(self) -> None:
        path = shard_path(self._folder, self._name, len(self._sizes))
        shard = join(self._waiting)
        self.followed.add(shard.labels.numpy().T, shard.known.numpy().T)
        tensors = {name: getattr(shard, name).contiguous() for name in _TENSORS}
        for at, bag in enumerate(shard.bags):
            tensors |= {f"bag{at}.values": bag.values.contiguous(), f"bag{at}.offsets": bag.offsets.contiguous()}
        save_file(tensors, path, metadata={"bags": str(len(shard.bags))})
        show(path)
        self.checksums[path.name] = checksum(path)
        self._sizes.append(self._held)
        self._waiting, self._held = [], 0


def shard_path(folder: Path, part: str, at: int) -> Path:
    """Of the shard of a part at a place."""
    return folder / f"{part}-{at:05d}.safetensors"


def checksum(path: Path) -> str:
    """XXH3 of a file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return str(xxhash.xxh3_64_hexdigest(content))


def _read_shard(path: Path, wanted: str | None) -> Batch:
    try:
        if wanted is not None and checksum(path) != wanted:
            raise ValueError("it is not what was written")
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in _TENSORS}
            bags = tuple(
                BagIds(file.get_tensor(f"bag{at}.values"), file.get_tensor(f"bag{at}.offsets"))
                for at in range(int(file.metadata()["bags"]))
            )
    except PermissionError as error:
        raise RunError(f"prepared rows {path} cannot be read ({error.strerror}); ask their owner for them") from None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if shortage(error) is not None:
            raise
        raise RunError(
            f"prepared rows {path} are damaged ({error}); delete the folder {path.parent}, and going on with the "
            "training prepares them anew"
        ) from None
    return Batch(bags=bags, **found)
