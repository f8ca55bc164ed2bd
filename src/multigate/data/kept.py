"""Record batches kept in a file until they are wanted again: a table is parsed once, and memory stays as it was."""

import contextlib
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa


class Kept:
    """Record batches written to a nameless file in a folder, read back in order as views of that file.

    It holds all that were added or, where they take more than ``most`` bytes or the disk is full, none.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self.whole = True
        self._most = most
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        self._starts: list[int] = []
        self._writer: pa.RecordBatchStreamWriter | None = None
        self._schema = pa.schema([])

    def __enter__(self) -> "Kept":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # what did not fit is still in its buffer
            self._file.close()

    def add(self, batch: pa.RecordBatch) -> None:
        if not self.whole:
            return
        try:
            self._write(batch)
            self.whole = self._file.tell() <= self._most
        except (OSError, pa.ArrowException):
            self.whole = False
        if not self.whole:
            with contextlib.suppress(OSError):
                self._file.truncate(0)

    def _write(self, batch: pa.RecordBatch) -> None:
        """Into a stream of its own where the types are not those of the batch before."""
        if self._writer is None or self._schema != batch.schema:
            if self._writer is not None:
                self._writer.close()
            self._starts.append(self._file.tell())
            self._schema = batch.schema
            self._writer = pa.ipc.new_stream(self._file, batch.schema)
        self._writer.write_batch(batch)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self._writer is None:
            return
        self._writer.close()
        self._file.flush()
        content = pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        for start in self._starts:
            with pa.ipc.open_stream(content.slice(start)) as stream:
                yield from stream
