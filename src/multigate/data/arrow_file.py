"""Arrow files: Feather (version 2), and the streams that data sets of Hugging Face are kept as."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from multigate.data.beginnings import check_arrow
from multigate.data.damage import DAMAGED, file_errors
from multigate.data.types import check_names, plain_column, plain_type


class ArrowFile:
    """One file as a part of a table, a stored batch at a time.

    It is not mapped into memory: where somebody cuts it short meanwhile, that would end the process.
    """

    guessed = sparse = False

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.rows: int | None = None
        self._streamed = check_arrow(path)
        with file_errors(self.name, "is not a whole Arrow file, perhaps cut off while it was written"):
            with pa.OSFile(self.name) as file:
                stored = (pa.ipc.open_stream if self._streamed else pa.ipc.open_file)(file).schema
            self._names: list[str] = stored.names
            check_names(self._names, self.name)
            self.schema = pa.schema([(field.name, plain_type(field.type)) for field in stored])
        if self._names and not self._streamed:
            with file_errors(self.name, DAMAGED):
                self.rows = sum(batch.num_rows for batch in self._stored(self._names[:1]))

    def read(self, wanted: pa.Schema, rows: int) -> Iterator[pa.RecordBatch]:
        with file_errors(self.name, DAMAGED):
            for stored in self._stored(wanted.names or self._names[:1]):
                stored.validate(full=True)  # nothing else tells that a text or a code points beside its values
                columns = [plain_column(stored.column(name)) for name in wanted.names]
                batch = pa.RecordBatch.from_arrays(columns, names=wanted.names) if columns else stored.select([])
                for start in range(0, stored.num_rows, rows):
                    yield batch.slice(start, rows)

    def _stored(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The batches as they lie in the file, of these columns alone."""
        options = pa.ipc.IpcReadOptions(included_fields=[self._names.index(name) for name in names])
        with pa.OSFile(self.name) as file:
            if self._streamed:
                yield from pa.ipc.open_stream(file, options=options)
            else:
                reader = pa.ipc.open_file(file, options=options)
                yield from map(reader.get_batch, range(reader.num_record_batches))
