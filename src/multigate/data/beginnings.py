"""What a file is by its first bytes, where that is not what its name says."""

from pathlib import Path

import pyarrow as pa

from multigate.errors import DataError

PACKED = {".gz": ("gzip", b"\x1f\x8b"), ".bz2": ("bz2", b"BZh"), ".zst": ("zstd", b"\x28\xb5\x2f\xfd")}
"""How text may be compressed, by the end of its name: the word that Arrow has for it, and the first bytes."""
_OTHER = (
    (b"PAR1", "a Parquet file", "name it .parquet"),
    (b"PARE", "an encrypted Parquet file", "write it without encryption"),
    *(
        (magic, f"compressed with {word}", f"name it {{suffix}}{end} if it holds {{kind}}")
        for end, (word, magic) in PACKED.items()
    ),
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save it as CSV"),
    (b"ARROW1", "an Arrow (Feather) file", "name it .arrow"),
    (b"FEA1", "a Feather file of version 1", "write it as version 2 or as Parquet"),
    (b"\xfd7zXZ", "compressed with xz", "unpack it"),
)
"""First bytes, what they say, and what to do about it."""


def check_parquet(path: Path) -> None:
    """Raise ``DataError`` where the file is empty or not a Parquet file."""
    head = _head(path)
    if not head:
        raise DataError(f"{path} is empty (0 bytes); write it again")
    if not head.startswith((b"PAR1", b"PARE")):
        what, advice = _other(head) or ("something else", "name it .csv if it holds CSV, or write it again")
        raise DataError(f"{path} is not a Parquet file but {what}; {advice}")


def check_text(path: Path, kind: str, suffix: str) -> None:
    """Raise ``DataError`` where the file is not text, or not compressed although it is called so.

    ``kind`` is what its name says ("CSV"), ``suffix`` how names of such files end.
    """
    head = _head(path)
    if (packed := PACKED.get(path.suffix.lower())) is not None:
        word, magic = packed
        if not head.startswith(magic):
            found, advice = _other(head, kind, suffix) or ("", f"name it {path.stem}")
            raise DataError(f"{path} is not compressed with {word}{' but ' * bool(found)}{found}; {advice}")
    elif min(head, default=9) < 9:  # a column of a CSV file may well be called PAR1
        other = _other(head, kind, suffix)
        if other is not None:
            raise DataError(f"{path} is not a {kind} file but {other[0]}; {other[1]}")


def unpacked(path: Path) -> pa.NativeFile:
    """The bytes of the file, unpacked; Arrow knows ends of names by small letters alone."""
    word, _ = PACKED.get(path.suffix.lower(), (None, b""))
    return pa.input_stream(str(path), compression=word)


def check_arrow(path: Path) -> bool:
    """Whether it holds a stream, not an Arrow file; raise ``DataError`` where it is empty or neither."""
    head = _head(path)
    if not head:
        raise DataError(f"{path} is empty (0 bytes); write it again")
    if head.startswith(b"ARROW1"):
        return False
    if head.startswith(b"\xff\xff\xff\xff"):  # goes before every message of a stream
        return True
    what, advice = _other(head) or ("something else", "name it .csv if it holds CSV, or write it again")
    raise DataError(f"{path} is not an Arrow file but {what}; {advice}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _other(head: bytes, kind: str = "CSV", suffix: str = ".csv") -> tuple[str, str] | None:
    return next(
        ((what, advice.format(kind=kind, suffix=suffix)) for magic, what, advice in _OTHER if head.startswith(magic)),
        None,
    )
