"""Curves for TensorBoard: events in a file of the run, written before training goes on.

Its own writer has a thread, which prints a traceback where the disk is full.
"""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from multigate.writing import disk_errors

VERSION = "brain.Event:2"
"""Of the format of the file, which its first event names."""
_numbers = count()


class Board:
    """A new file of events in a folder. Raises ``ImportError`` where TensorBoard is not installed, ``RunError`` where
    the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / name
        with disk_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb")
            self._writer = RecordWriter(self._file)
        try:
            self._add(file_version=VERSION)
        except BaseException:
            self.close()
            raise

    def draw(self, values: Mapping[str, float | None], step: int) -> None:
        """A point on the curve of each name that has a value. Raises ``RunError`` where the disk refuses."""
        points = [self._summary.Value(tag=name, simple_value=one) for name, one in values.items() if one is not None]
        self._add(step=step, summary=self._summary(value=points))

    def close(self) -> None:
        with suppress(OSError):  # what did not fit is still in its buffer
            self._file.close()

    def _add(self, **content: Any) -> None:
        with disk_errors(self.path):
            self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
            self._writer.flush()
