"""Compiled code for what is no matmul: built once by the machine's own compiler, kept, and never needed.

What lies in ``cpp`` is built on first use, in a few seconds, and kept in the cache folder under a name that says what
it was built from (the sources, the compiler, the processor) and what is in it: a file that was cut off or altered
since would end the process, so it is never loaded, but built anew. Where the cache cannot be written every process
builds its own. Where there is no compiler, where it fails, or where what it made does not give torch's numbers,
``kernels()`` is None and torch's operators do the same work. ``MULTIGATE_KERNELS=off`` does without them.
"""

import hashlib
import os
import platform
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import NamedTuple

import torch
from torch import Tensor

from multigate.cache import cache_folder
from multigate.cores import usable_cores
from multigate.errors import RunError
from multigate.nn.agreement import agrees
from multigate.nn.compiled import NAMES, Kernels
from multigate.writing import remove, writing

OFF = "MULTIGATE_KERNELS"
SOURCES = Path(__file__).with_name("cpp")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17")
SECONDS = 120
"""After which a compiler is given up, however many files are left."""
_ONE_AT_A_TIME = threading.Lock()


class Built(NamedTuple):
    """What came of building: the kernels, or None; and where they lie, why they are not kept, or why there are none."""

    kernels: Kernels | None
    told: str


def kernels() -> Kernels | None:
    """The kernels, built now where they never were; None where there cannot be any."""
    return built().kernels


def kernels_for(x: Tensor) -> Kernels | None:
    """The kernels, where they can compute with numbers like those of x: of a kind they know, on the CPU."""
    return kernels() if x.device.type == "cpu" and x.dtype in NAMES else None


@cache
def built() -> Built:
    """The kernels and where they lie, or why there are none; looked for once in a process."""
    if os.environ.get(OFF, "").lower() in ("off", "0", "no", "false"):
        return Built(None, f"{OFF} is {os.environ[OFF]}")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++", "c++"))), None)
    if compiler is None:
        return Built(None, "no C++ compiler found; install g++")
    with _ONE_AT_A_TIME:  # threads that ask before the first is done find what it has built
        return _built(compiler)


def _built(compiler: str) -> Built:
    try:
        key = _key(compiler)
        for path in _kept(key):
            with suppress(Exception):  # whatever it is, there is another to be built
                found = Kernels(path)
                if _right(found):
                    return Built(found, str(path))
            _drop(path)
        with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            made = Path(scratch, "kernels.so")
            build(compiler, SOURCES, made)
            path, told = _keep(made, key)
            found = Kernels(path)  # which may lie in the scratch folder: what is loaded may be removed
        return Built(found, told) if _right(found) else Built(None, f"{path} does not give torch's numbers")
    except Exception as error:  # whatever it is, training goes on without
        return Built(None, " ".join(str(getattr(error, "stderr", None) or error).split())[:200])


def _right(found: Kernels) -> bool:
    """Whether they compute what torch does, whatever whoever asks first has set of torch."""
    kind = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast("cpu", enabled=False), torch.device("cpu"):
            return agrees(found)
    finally:
        torch.set_default_dtype(kind)


def _key(compiler: str) -> str:
    """Of what a library is built from: these sources, the compiler, the processor."""
    sources = [
        part for path in sorted(SOURCES.glob("*.[ch]*")) for part in (path.name, path.read_text(encoding="utf-8"))
    ]
    version = _run([], monotonic() + SECONDS, compiler, "--version")
    return _digest("\0".join((*sources, compiler, version, _processor(), *FLAGS)).encode())


def _folder() -> Path:
    return cache_folder() / "kernels"


def _kept(key: str) -> Iterator[Path]:
    """The libraries of a key that are in the cache; others by their name are removed, for they are not whole."""
    for path in _folder().glob(f"{key}*.so"):
        if _is_whole(path, key):
            yield path
        else:
            _drop(path)


def _is_whole(path: Path, key: str) -> bool:
    with suppress(OSError):
        return path.name == _name(key, path.read_bytes())
    return False


def _keep(made: Path, key: str) -> tuple[Path, str]:
    """Where a library lies: in the cache, or where it was made if that cannot be written; and what to tell of it."""
    content = made.read_bytes()
    path = _folder() / _name(key, content)
    try:
        with writing(path) as temporary:
            temporary.write_bytes(content)
    except RunError as error:
        return made, f"built by every process anew, for it cannot be kept ({error})"
    return path, str(path)


def _drop(path: Path) -> None:
    with suppress(OSError):
        remove(path)


def build(compiler: str, sources: Path, made: Path) -> None:
    """Make a library of all files in a folder, side by side."""
    until = monotonic() + SECONDS
    at_work: list[subprocess.Popen[str]] = []

    def compiled(source: Path) -> str:
        made_of_it = str(made.with_suffix(f".{source.stem}.o"))
        _run(at_work, until, compiler, *FLAGS, "-c", str(source), "-o", made_of_it)
        return made_of_it

    longest_first = sorted(sources.glob("*.cpp"), key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor(usable_cores()) as pool:
        try:
            _run(at_work, until, compiler, *FLAGS, *pool.map(compiled, longest_first), "-o", str(made))
        except BaseException:  # a signal too; leaving the pool would wait for the others
            pool.shutdown(wait=False, cancel_futures=True)
            for process in at_work:
                _end(process)
            raise


def _name(key: str, content: bytes) -> str:
    """Of a library in the cache."""
    return f"{key}-{_digest(content)}.so"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _run(at_work: list[subprocess.Popen[str]], until: float, *command: str) -> str:
    """What a compiler prints; one that is not done in time is ended, and with it all that it has started."""
    late = RunError(f"{command[0]} was not done after {SECONDS} s")
    if monotonic() >= until:
        raise late
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, errors="replace", start_new_session=True
    ) as process:
        at_work.append(process)
        try:
            printed, told = process.communicate(timeout=max(until - monotonic(), 0))
        except subprocess.TimeoutExpired:
            raise late from None
        finally:
            _end(process)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, printed, told)
    return printed


def _end(process: subprocess.Popen[str]) -> None:
    """A compiler that is still at work, and the processes it has started: they would go on for ever without it."""
    if process.poll() is not None:
        return
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _processor() -> str:
    """What "native" means here: the kind of processor and what it can do."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
    return "\n".join((platform.machine(), platform.processor(), *kinds))
