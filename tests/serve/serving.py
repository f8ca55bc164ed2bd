"""What is served, a server in a process of its own, as ``multigate serve`` starts it, and who asks it."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import httpx

from multigate.schema import Bag, Category, Hashed, Number, Schema, Task, Time, Vector
from processes import TOLD, Ended, begin, ended

Rows = list[dict[str, Any]]

SCHEMA = Schema(
    features=(
        Category("user"), Hashed("word", buckets=50), Category("member"), Number("price", transform="log"),
        Bag("tags"), Vector("face", size=2), Time("when"), Number("place", use="bias:click"),
    ),
    tasks=(
        Task("click"), Task("buy", given="click"), Task("seconds", kind="regression"),
        Task("mood", kind="multiclass"),
    ),
    types={"user": "int64", "member": "bool"},
)  # fmt: skip
"""Every kind of feature and task."""


class Serving(NamedTuple):
    """Where a server is, and what asks it."""

    url: str
    process: ForkServerProcess
    folder: Path
    client: httpx.Client

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> Ended:
        """How it ended, within half a minute."""
        self.process.join(30)
        assert not self.process.is_alive(), (self.folder / TOLD).read_text(encoding="utf-8")
        return ended(self.process, self.folder)


@contextmanager
def serving(folder: Path, *words: object) -> Iterator[Serving]:
    """A server that runs while entered, in ``folder`` as its working folder."""
    process = begin(["serve", *words, "--port", 0], folder)
    try:
        found = None
        while found is None:
            told = (folder / TOLD).read_text(encoding="utf-8")
            assert process.is_alive(), told
            found = re.search(r"^serving .* at (\S+) .*$", told, re.MULTILINE)
            time.sleep(0.01)
        with httpx.Client(base_url=found[1], timeout=60) as client:
            yield Serving(found[1], process, folder, client)
    finally:
        if process.is_alive():
            process.terminate()
            process.join(30)
        process.kill()


def read(answer: httpx.Response) -> Any:
    """What JSON an answer is, read as strictly as any program reads it."""
    assert answer.headers["content-type"] == "application/json"
    return json.loads(answer.content, parse_constant=_no_json)


def _no_json(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")
