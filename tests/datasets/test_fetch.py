import io
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from multigate.datasets.census_income import is_written, render_census
from multigate.datasets.fetch import DATASETS, fetch
from multigate.errors import DataError, ExperimentError, RunError

ARCHIVE = "/117/census+income+kdd.zip"


class Site:
    """A web site on this machine: what it answers by path, and what it was asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.short = 0
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                if self.path not in site.files:
                    self.send_error(404)
                    return
                content = site.files[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) - site.short])

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.server.shutdown()
    thread.join()
    site.server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no shared data."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("MULTIGATE_DATA", raising=False)
    return tmp_path / "cache" / "multigate"


@pytest.fixture(scope="module")
def archive(shared_data: Path) -> bytes:
    """What UCI offers: a zip with a tar.gz with the two texts."""
    census = shared_data / "census-income"
    if not census.is_dir():
        pytest.skip(f"{census} is absent")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:gz", compresslevel=1) as inner:
        for table, name in (("train.parquet", "census-income.data"), ("test.parquet", "census-income.test")):
            text = render_census(pq.read_table(census / table))
            member = tarfile.TarInfo(name)
            member.size = len(text)
            inner.addfile(member, io.BytesIO(text))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as both:
        both.writestr("census.tar.gz", tar.getvalue())
    return outer.getvalue()


@pytest.fixture(scope="module")
def kuairand_archive(shared_data: Path) -> bytes:
    """What Zenodo offers: a tar.gz with the three texts that are used, here without the days before 04-25."""
    folder = shared_data / "kuairand"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for table, name in (
            ("log_standard_0425_0508", "log_standard_4_22_to_5_08_pure"),
            ("user_features", "user_features_pure"),
            ("video_features_basic", "video_features_basic_pure"),
        ):
            text = io.BytesIO()
            pyarrow.csv.write_csv(pq.read_table(folder / f"kuairand_pure_{table}.parquet"), text)
            member = tarfile.TarInfo(f"KuaiRand-Pure/data/{name}.csv")
            member.size = text.tell()
            text.seek(0)
            archive.addfile(member, text)
    return packed.getvalue()


def test_each_data_set_comes_from_its_own_address(shared_data, kuairand_archive, site, cache, tmp_path):
    """Once, and from the cache from then on; not at all where a folder is given."""
    site.files["/KuaiRand-Pure.tar.gz"] = kuairand_archive
    local = fetch("kuairand", tmp_path / "local", shared_data / "kuairand", address=site.address)
    assert site.asked == []
    for place in ("data", "elsewhere"):
        folder = fetch("kuairand", tmp_path / place, address=site.address)
        assert site.asked == ["/KuaiRand-Pure.tar.gz"]
        assert [path.name for path in cache.iterdir()] == ["KuaiRand-Pure.tar.gz"]
        for part in ("train", "valid", "test"):
            assert pq.read_table(folder / f"{part}.parquet").equals(pq.read_table(local / f"{part}.parquet"))
    addresses = {dataset.address for dataset in DATASETS.values()}
    assert len(addresses) == len(DATASETS)
    assert all(address.startswith("https://") for address in addresses)


def test_a_download_is_told_and_written_once(archive, site, cache, tmp_path):
    site.files[ARCHIVE] = archive
    told: list[tuple[str, int, int | None]] = []
    folder = fetch("census-income", tmp_path / "data", progress=lambda *p: told.append(p), address=site.address)
    assert folder == tmp_path / "data" / "census-income"
    assert is_written(folder)
    assert ("downloading census-income (bytes)", len(archive), len(archive)) in told
    assert [path.name for path in cache.iterdir()] == ["census+income+kdd.zip"]
    (cache / "census+income+kdd.zip").unlink()
    assert fetch("census-income", tmp_path / "data", address=site.address) == folder  # its tables are there already
    assert site.asked == [ARCHIVE]


def test_local_data_come_before_a_download(shared_data, site, cache, tmp_path, monkeypatch):
    if not (shared_data / "census-income").is_dir():
        pytest.skip("census-income is absent")
    monkeypatch.setenv("MULTIGATE_DATA", str(shared_data))
    fetch("census-income", tmp_path, address=site.address)
    assert is_written(tmp_path / "census-income")
    assert site.asked == []


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(ExperimentError, match="did you mean 'census-income'"):
        fetch("census_incom", tmp_path)


def test_a_source_that_is_not_there_or_not_it_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        fetch("census-income", tmp_path, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no Census-Income"):
        fetch("census-income", tmp_path, tmp_path / "empty")


def test_without_a_network_the_error_says_what_to_do(site, cache, tmp_path):
    site.server.server_close()
    for address in (site.address, "nonsense"):
        with pytest.raises(DataError, match="--from") as caught:
            fetch("census-income", tmp_path / "data", address=address, timeout=2)
        assert ARCHIVE in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "data").exists()


def test_a_missing_or_broken_off_download_leaves_nothing(site, cache, tmp_path):
    with pytest.raises(DataError, match="404"):
        fetch("census-income", tmp_path / "data", address=site.address)
    site.files[ARCHIVE], site.short = b"x" * 1_000_000, 400_000
    with pytest.raises(DataError, match="600,000 of 1,000,000"):
        fetch("census-income", tmp_path / "data", address=site.address)
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "data").exists()


def test_what_a_killed_download_left_goes_with_the_next_one(archive, site, cache, tmp_path):
    """Killed in the middle of it: by SIGKILL, which leaves no time to remove anything."""
    site.files[ARCHIVE] = archive
    killed = (
        "import os, signal, sys; from pathlib import Path; from multigate.datasets.fetch import fetch;"
        "fetch('census-income', Path(sys.argv[1]), address=sys.argv[2],"
        " progress=lambda *told: os.kill(os.getpid(), signal.SIGKILL))"
    )
    done = subprocess.run([sys.executable, "-c", killed, str(tmp_path / "data"), site.address], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(cache.iterdir())) == 1
    fetch("census-income", tmp_path / "data", address=site.address)
    assert [path.name for path in cache.iterdir()] == ["census+income+kdd.zip"]


def test_a_disk_that_is_full_while_it_downloads_is_told(site, cache, tmp_path):
    resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")
    site.files[ARCHIVE] = b"x" * 1_000_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write .*kdd\.zip: File too large; make room there"):
            fetch("census-income", tmp_path / "data", address=site.address)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(cache.iterdir()) == []


def test_a_download_of_something_else_does_not_stay(site, cache, tmp_path):
    site.files[ARCHIVE] = b"<html>sorry</html>"
    for _ in range(2):
        with pytest.raises(DataError, match="was removed"):
            fetch("census-income", tmp_path / "data", address=site.address)
    assert len(site.asked) == 2
    assert list(cache.iterdir()) == []
