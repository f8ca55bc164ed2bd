"""The doctor: what is installed here, what computes, and what to install for the rest."""

import operator
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import requires, version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from multigate.cores import usable_cores

if TYPE_CHECKING:
    from rich.table import Table

State = Literal["ok", "none", "slow", "missing", "failed"]
STYLES: dict[State, str] = {"ok": "green", "none": "dim", "slow": "yellow", "missing": "yellow", "failed": "red"}
Verdict = tuple[State, str]

FOR_DEVELOPERS = {"dev", "docs"}
IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn", "vl-convert-python": "vl_convert"}
"""Packages whose module is not called like them."""
LEAST_SPACE = 2**30
"""Bytes below which a disk counts as full."""


class Check(NamedTuple):
    """One thing looked at. ``none``: not there, and nothing needs it; the note says what was found or what to do."""

    name: str
    state: State
    note: str


def diagnose() -> list[Check]:
    """Versions, extras, devices, a training step on each, folders. Never raises: a check that fails says so."""
    return [check for section in SECTIONS for check in section()]


def doctor_tables() -> "Table":
    """What ``diagnose`` finds, for people."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    for section in SECTIONS:
        for check in section():
            # as text, for rich takes the brackets of multigate[report] for a style
            table.add_row(check.name, Text(check.state, STYLES[check.state]), Text(check.note))
        table.add_section()
    return table


def _check(name: str, look: Callable[..., Verdict], *about: object) -> Check:
    try:
        return Check(name, *look(*about))
    except Exception as error:
        return Check(name, "failed", " ".join(f"{type(error).__name__}: {error}".split()))


class _Requirement(NamedTuple):
    """A package that multigate, or an extra of it, wants; ``wanted`` reads like ">=2.9,<2.14"."""

    name: str
    wanted: str
    extra: str


REQUIREMENT = re.compile(r"([\w.-]+)[^;<>=!~]*([^;]*)(?:;.*extra\s*==\s*['\"]([\w.-]+)['\"])?")


def _requirements() -> list[_Requirement]:
    """What the installed package states; nothing where multigate is not installed as a package."""
    stated = None
    with suppress(Exception):  # the row "multigate" says why
        stated = requires("multigate")
    matches = [REQUIREMENT.match(one) for one in stated or ()]
    return [_Requirement(*(group or "" for group in match.groups())) for match in matches if match]


def _versions() -> Iterator[Check]:
    yield _check("python", lambda: ("ok", platform.python_version()))
    yield _check("multigate", lambda: ("ok", version("multigate")))
    for one in _requirements():
        if not one.extra:
            yield _check(one.name, _required, one)


def _extras() -> Iterator[Check]:
    stated = _requirements()
    for extra in dict.fromkeys(one.extra for one in stated):
        if extra and extra not in FOR_DEVELOPERS:
            yield _check(f"extra {extra}", _extra, extra, [one for one in stated if one.extra == extra])


def _required(one: _Requirement) -> Verdict:
    state, note = _package(one)
    return state, note if state == "ok" else f"{note}; to install: pip install '{one.name}{one.wanted}'"


def _extra(name: str, parts: Sequence[_Requirement]) -> Verdict:
    verdicts = [(one.name, *_package(one)) for one in parts]
    worst: State = next((state for _, state, _ in verdicts if state != "ok"), "ok")
    notes = ", ".join(f"{package} {note}" for package, _, note in verdicts)
    return worst, notes if worst == "ok" else f"{notes}; to install: pip install 'multigate[{name}]'"


def _package(one: _Requirement) -> Verdict:
    """Importing is the proof: a package may be on the disk and broken."""
    try:
        import_module(IMPORTED_AS.get(one.name, one.name.replace("-", "_")))
        found = version(one.name)
    except ModuleNotFoundError:
        return "missing", "missing"
    return ("ok", found) if _fits(found, one.wanted) else ("failed", f"{found} is not {one.wanted}")


COMPARED = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "!=": operator.ne}


def _fits(found: str, wanted: str) -> bool:
    bounds = re.findall(r"(>=|<=|!=|>|<)\s*([\d.]+)", wanted)
    return all(COMPARED[sign](_release(found), _release(bound)) for sign, bound in bounds)


def _release(text: str) -> list[int]:
    """The leading numbers of a version: [2, 13, 0] of 2.13.0+cpu."""
    return [int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", text)[0])]


def _devices() -> Iterator[Check]:
    yield _check("cpu", lambda: ("ok", processor()))
    yield _check("threads", _threads)
    yield _check("bfloat16 on cpu", _bfloat16)
    yield _check("compiled kernels", _kernels)
    gpus = _gpus()
    for gpu in gpus:
        yield _check(gpu, _gpu, gpu)
    if not gpus:
        yield _check("cuda", _no_gpu)
    for device in ("cpu", *gpus):
        yield _check(f"training on {device}", _training, device)


def processor() -> str:
    """The processor's name, and how many of its cores may be used."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text(encoding="utf-8").splitlines() if about.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.processor() or platform.machine()}, {usable_cores()} cores"


def _threads() -> Verdict:
    import torch

    asked, used, usable = os.environ.get("OMP_NUM_THREADS", "not set"), torch.get_num_threads(), usable_cores()
    note = f"torch uses {used}; OMP_NUM_THREADS is {asked}"
    if used > usable:
        return "slow", f"{note}; this process may use {usable} cores: set OMP_NUM_THREADS={usable}"
    return "ok", note


def _bfloat16() -> Verdict:
    import torch

    if not torch.cpu._is_avx512_bf16_supported():
        return "none", "not native: precision auto trains in float32"
    amx = " and AMX" if torch.cpu._is_amx_tile_supported() else ""
    return "ok", f"native (AVX-512{amx}): precision auto trains in bfloat16"


def _kernels() -> Verdict:
    from multigate.nn.kernels import built

    kernels, told = built()
    return ("none", f"{told}; torch's operators do the same work") if kernels is None else ("ok", told)


def _gpus() -> list[str]:
    with suppress(Exception):  # the row "torch" says why
        import torch

        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return []


def _gpu(device: str) -> Verdict:
    import torch

    about = torch.cuda.get_device_properties(device)
    precision = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16"
    return "ok", f"{about.name}, {about.total_memory / 2**30:.0f} GiB, {precision}, CUDA {torch.version.cuda}"


def _no_gpu() -> Verdict:
    import torch

    return "none", "no device found" if torch.version.cuda else "this torch is built for the CPU alone"


def _training(device: str) -> Verdict:
    """A few steps of a small model on rows it can learn: the loss must fall."""
    import torch

    from multigate.batch import IdColumn, Layout, NumberColumn, TaskColumn
    from multigate.model import Model
    from multigate.nn.embed import Embedding
    from multigate.objective import Objective
    from multigate.sharing import MMoE

    tasks = (TaskColumn(name="a", kind="binary", mean=0.5), TaskColumn(name="b", kind="regression"))
    number, id_ = NumberColumn(feature="number"), IdColumn(feature="id", table="id")
    layout = Layout(numbers=(number,), categories=(id_,), bags=(), tables={"id": 8}, tasks=tasks)
    with torch.random.fork_rng(devices=[]):
        model = Model(layout, MMoE(experts=2, hidden=(16,)), embedding=Embedding(dropout=0, unseen=0)).to(device)
        numbers = torch.randn(256, 1).to(device)
    ids = torch.arange(256, dtype=torch.int32, device=device).unsqueeze(1) % 8
    labels = torch.cat([(numbers > 0).float(), numbers], dim=1)
    known, weights = torch.ones_like(labels, dtype=torch.bool), torch.ones_like(labels)
    objective = Objective(tasks).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    losses, seconds = [], 0.0
    for _ in range(3):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = objective(model(numbers, ids).logits, labels, known, weights).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())  # waits for the device
        seconds = time.perf_counter() - start
    fell = all(after < before for before, after in pairwise(losses))
    return "ok" if fell else "failed", f"loss {losses[0]:.3f} to {losses[-1]:.3f}, {1000 * seconds:.1f} ms a step"


def _folders() -> Iterator[Check]:
    yield _check("MULTIGATE_DATA", _data)
    yield _check("cache", _cache)
    yield _check("temporary files", _temporary)


def _data() -> Verdict:
    named = os.environ.get("MULTIGATE_DATA")
    if not named:
        return "none", "not set: multigate fetch downloads public data sets"
    held = sorted(path.name for path in Path(named).iterdir() if path.is_dir())
    return "ok" if held else "missing", f"{named} holds {', '.join(held) or 'no folder of a data set'}"


def _cache() -> Verdict:
    from multigate.cache import cache_folder

    folder = cache_folder()
    _write(next(place for place in (folder, *folder.parents) if place.exists()))
    return "ok", f"{folder} can be written"


def _temporary() -> Verdict:
    folder = Path(tempfile.gettempdir())
    _write(folder)
    free = shutil.disk_usage(folder).free
    return "ok" if free >= LEAST_SPACE else "failed", f"{folder} has {free / 2**30:.1f} GiB free"


def _write(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0")


SECTIONS = (_versions, _extras, _devices, _folders)
