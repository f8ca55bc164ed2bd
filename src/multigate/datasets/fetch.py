"""Getting a public data set: from a folder, from MULTIGATE_DATA, from the cache, or over the network."""

import os
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from urllib.request import Request, urlopen

from multigate.cache import cache_folder
from multigate.datasets import census_income, kuairand
from multigate.errors import DataError, ExperimentError, nearest
from multigate.folders import at_home
from multigate.progress import Progress
from multigate.writing import disk_errors, writing

PIECE = 1 << 18


class Dataset(NamedTuple):
    """A data set that can be fetched."""

    address: str
    """Of the site that publishes it."""
    archive: str
    """Its path below that address."""
    write: Callable[[Path, Path, int, Progress | None], None]
    """(source, out, seed, progress) -> tables in ``out``; raises ``DataError`` where the source is not as published."""
    is_written: Callable[[Path], bool]


DATASETS = {
    "census-income": Dataset(
        "https://archive.ics.uci.edu/static/public",
        "117/census+income+kdd.zip",
        census_income.write_census,
        census_income.is_written,
    ),
    "kuairand": Dataset(
        "https://zenodo.org/records/10439422/files",
        "KuaiRand-Pure.tar.gz",
        kuairand.write_kuairand,
        kuairand.is_written,
    ),
}


def fetch(
    name: str,
    out: Path,
    source: Path | None = None,
    progress: Progress | None = None,
    *,
    address: str | None = None,
    timeout: float = 30.0,
) -> Path:
    """Write the tables of data set ``name`` to ``out``/``name`` and return that folder.

    The data comes from ``source`` (a folder or file) if given, else from the folder ``name`` in ``MULTIGATE_DATA`` if
    there is one, else from a download, kept in the cache ($XDG_CACHE_HOME or ~/.cache, then multigate). Tables already
    there are left as they are, unless ``source`` is given. Values are checked against the published ones before
    anything is written. ``address`` is a mirror to download from in place of the publisher's site.

    ``ExperimentError`` for an unknown name, ``DataError`` where the data cannot be had or is not as published,
    ``RunError`` where the disk refuses.
    """
    if name not in DATASETS:
        raise ExperimentError(f"there is no data set {name!r} to fetch; {nearest(name, DATASETS)}")
    dataset = DATASETS[name]
    folder = at_home(out) / name
    if source is not None:
        source = at_home(source)
        if not source.exists():
            raise DataError(f"--from {str(source)!r} does not exist; it wants a folder or file already downloaded")
        dataset.write(source, folder, 0, progress)
        return folder
    if dataset.is_written(folder):
        return folder
    shared = os.environ.get("MULTIGATE_DATA")
    if shared and (Path(shared) / name).is_dir():
        dataset.write(Path(shared) / name, folder, 0, progress)
        return folder
    url = f"{address or dataset.address}/{quote(dataset.archive, safe='/+')}"
    archive = cache_folder() / Path(dataset.archive).name
    if not archive.exists():
        _download(url, archive, name, timeout, progress)
    try:
        dataset.write(archive, folder, 0, progress)
    except DataError as error:
        archive.unlink(missing_ok=True)  # another process may have removed it
        raise DataError(f"the download of {url} is not {name} ({error}); it was removed, so try again") from None
    return folder


def _download(url: str, path: Path, name: str, timeout: float, progress: Progress | None) -> None:
    """The file at ``url`` as ``path``, which appears whole or not at all."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as temporary, temporary.open("wb") as file:
        for piece in _pieces(url, name, timeout, progress):
            file.write(piece)


def _pieces(url: str, name: str, timeout: float, progress: Progress | None) -> Iterator[bytes]:
    """What is at ``url``, all of it. Raises ``DataError`` where it cannot be had."""
    try:
        with urlopen(Request(url, headers={"User-Agent": "multigate"}), timeout=timeout) as answer:
            length = answer.headers.get("Content-Length")
            total = int(length) if length else None
            done = 0
            while piece := answer.read(PIECE):
                yield piece
                done += len(piece)
                if progress is not None:
                    progress(f"downloading {name} (bytes)", done, total)
        if total is not None and done != total:
            raise OSError(f"the connection ended after {done:,} of {total:,} bytes")
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an address or length that is none
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"cannot download {url}: {reason}; download it by hand and say multigate fetch {name} --from FILE"
        ) from None
