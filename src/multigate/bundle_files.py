"""The files of a bundle in its folder: which they are, what they are about, and whether they are what was written."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multigate.errors import BundleError, DamagedBundleError
from multigate.folders import SUMMARY, made_anew, other_than_a_model
from multigate.sealed import unsealed
from multigate.writing import disk_errors

FORMAT = 1
ABOUT, WEIGHTS, GRAPH, ROW_GRAPH = "bundle.json", "model.safetensors", "model.onnx", "row.onnx"
FILES = (WEIGHTS, "encoder/encoder.json", "encoder/vocabularies.parquet")
LARGEST = 64 << 20
"""Bytes that ``bundle.json`` may have."""


def check_replaceable(folder: Path) -> None:
    """Raise ``BundleError`` where a folder holds more than a bundle, for all in it goes when one takes its place."""
    with disk_errors(folder):
        there = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) if folder.is_dir() else []
    if there and not (folder / ABOUT).is_file():
        raise BundleError(f"{folder} is not empty and holds no bundle; choose another folder")
    own = {ABOUT, GRAPH, ROW_GRAPH, *FILES, *(Path(name).parent.as_posix() for name in FILES)}
    for name in there:
        if name not in own:
            raise BundleError(
                f"{folder} holds {name!r} beside its bundle, which a new one would not keep; choose another folder, or "
                "move that away"
            )


def read_about(folder: Path) -> dict[str, Any]:
    """What ``bundle.json`` says, each part of the kind it should be."""
    path = folder / ABOUT
    if not path.is_file():
        raise BundleError(_missing(folder))
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST >> 20} MB")
        about = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(about, dict) or type(about.get("format")) is not int:
            raise ValueError("it names no format")
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedBundleError(f"bundle {folder}: {ABOUT} cannot be read ({error}); {_again(folder)}") from None
    if about["format"] > FORMAT:
        raise BundleError(
            f"bundle {folder} has format {about['format']}, this multigate reads up to {FORMAT}; install a newer one"
        )
    try:
        about = unsealed(about)
    except ValueError:
        raise DamagedBundleError(
            f"bundle {folder}: {ABOUT!r} was altered or damaged after it was written; {_again(folder)}"
        ) from None
    files = about.get("files")
    if not isinstance(files, dict) or not set(FILES) <= files.keys() or not isinstance(about.get("experiment"), dict):
        raise DamagedBundleError(
            f"bundle {folder}: {ABOUT} lacks its experiment or files; {_again(folder, 'save or copy it again')}"
        )
    return about


def _missing(folder: Path) -> str:
    """What a folder without ``bundle.json`` is, and which command suits."""
    if not folder.exists():
        return f"there is no folder {folder}; name that of a run or a bundle"
    return (
        other_than_a_model(folder)
        or f"{folder} is no bundle (and no finished run): it has no {ABOUT}; name the --out folder of a training"
    )


def checksum(path: Path) -> str:
    """That of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_damaged(folder: Path) -> bool:
    """Whether a bundle lacks a file, or one is not what was written; one of a newer version is not known to be."""
    try:
        check_files(folder, read_about(folder)["files"])
    except DamagedBundleError:
        return True
    except (BundleError, OSError):
        return False
    return False


def check_files(folder: Path, checksums: Mapping[str, str]) -> None:
    """Raise ``DamagedBundleError`` where a file is missing, or is not what was written."""
    for name, wanted in checksums.items():
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
            advice = _again(folder, "save or copy it again")
            raise DamagedBundleError(f"bundle {folder} lacks its file {name!r}; {advice}")
        if checksum(file) != wanted:
            raise DamagedBundleError(
                f"bundle {folder}: {name!r} was altered or damaged after it was written; {_again(folder)}"
            )


def _again(folder: Path, advice: str = "copy it again") -> str:
    """How a bundle that is not whole is had again; that of a finished run is made from the weights beside it."""
    run = folder.parent
    return made_anew(run) if folder.name == "bundle" and (run / SUMMARY).is_file() else advice


def model_of(about: dict[str, Any]) -> str:
    """Checksum of all that makes a model what it is."""
    files = {name: about["files"][name] for name in FILES}
    parts = [about["experiment"], about.get("calibration"), files]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
