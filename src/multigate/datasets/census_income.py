"""Census-Income (KDD): people of the 1994 and 1995 US surveys, UCI data set 117, doi 10.24432/C5N30T, CC BY 4.0.

199,523 training and 99,762 test rows of 42 fields. What to know before using it:

- ``instance_weight`` says how many people a row stands for; it is kept in the tables and never a feature.
- ``det_ind_code``, ``det_occ_code``, ``own_or_self``, ``vet_benefits`` and ``year`` are codes written as numbers.
- Missing is "?" (eight columns). ``read_census`` keeps it as the text it is; ``write_census`` writes null.
- "NA" in ``hisp_origin`` is an answer. Some values end in a blank and are kept so ("Handlers equip cleaners etc ").
- 2,925 test rows also occur in train; they stay, as in the published protocol (Ma et al. 2018, section 6.1: test split
  1:1 at random into validation and test, ``education`` and ``marital_stat`` never features).
"""

import gzip
import hashlib
import io
import tarfile
import zipfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from multigate.errors import DataError
from multigate.progress import Progress, silent
from multigate.schema import Category, Feature, Number, Schema, Task
from multigate.writing import writing

_WORD = pa.dictionary(pa.int32(), pa.string())
_CODE = pa.int8()

TABLE = pa.schema(
    [
        ("age", pa.int8()),
        ("class_worker", _WORD),
        ("det_ind_code", _CODE),
        ("det_occ_code", _CODE),
        ("education", _WORD),
        ("wage_per_hour", pa.int16()),
        ("hs_college", _WORD),
        ("marital_stat", _WORD),
        ("major_ind_code", _WORD),
        ("major_occ_code", _WORD),
        ("race", _WORD),
        ("hisp_origin", _WORD),
        ("sex", _WORD),
        ("union_member", _WORD),
        ("unemp_reason", _WORD),
        ("full_or_part_emp", _WORD),
        ("capital_gains", pa.int32()),
        ("capital_losses", pa.int16()),
        ("stock_dividends", pa.int32()),
        ("tax_filer_stat", _WORD),
        ("region_prev_res", _WORD),
        ("state_prev_res", _WORD),
        ("det_hh_fam_stat", _WORD),
        ("det_hh_summ", _WORD),
        ("instance_weight", pa.float64()),
        ("mig_chg_msa", _WORD),
        ("mig_chg_reg", _WORD),
        ("mig_move_reg", _WORD),
        ("mig_same", _WORD),
        ("mig_prev_sunbelt", _WORD),
        ("num_emp", pa.int8()),
        ("fam_under_18", _WORD),
        ("country_father", _WORD),
        ("country_mother", _WORD),
        ("country_self", _WORD),
        ("citizenship", _WORD),
        ("own_or_self", _CODE),
        ("vet_question", _WORD),
        ("vet_benefits", _CODE),
        ("weeks_worked", pa.int8()),
        ("year", _CODE),
        ("income_50k", _WORD),
    ]
)
"""The fields in the order of the UCI files, and how a table holds them."""
COLUMNS: tuple[str, ...] = tuple(TABLE.names)
QUANTITIES = (
    *("age", "wage_per_hour", "capital_gains", "capital_losses", "stock_dividends"),
    *("num_emp", "weeks_worked"),
)
"""The columns whose numbers measure something (``instance_weight`` apart)."""
_MONEY = ("wage_per_hour", "capital_gains", "capital_losses", "stock_dividends")
_NOT_FEATURES = ("education", "marital_stat", "income_50k", "instance_weight")
COLLEGE = (
    "Associates degree-occup /vocational",
    "Associates degree-academic program",
    "Bachelors degree(BA AB BS)",
    "Masters degree(MA MS MEng MEd MSW MBA)",
    "Prof school degree (MD DDS DVM LLB JD)",
    "Doctorate degree(PhD EdD)",
)
"""Values of ``education`` that mean at least an Associate's degree."""


class _File(NamedTuple):
    text: str
    table: str
    rows: int
    sha256: str


_TRAIN = _File(
    "census-income.data",
    "train.parquet",
    199_523,
    "3676a81db7d3528f3f8b9f3c699d0f0aa28db45e6e994fa0b8ed38327539ee86",
)
_TEST = _File(
    "census-income.test",
    "test.parquet",
    99_762,
    "98402b1ab879573d0a7f38a699a40258080e25e33d3401e7bf9c96d3fa0fab8c",
)


def census_schema(group: Literal[1, 2] = 1) -> Schema:
    """Features and tasks of the published task groups.

    1: income above 50,000 and never married. 2: at least an Associate's degree and never married.
    """
    features: list[Feature] = []
    for name in COLUMNS:
        if name in _MONEY:
            features.append(Number(name=name, transform="log"))
        elif name in QUANTITIES:
            features.append(Number(name=name))
        elif name not in _NOT_FEATURES:
            features.append(Category(name=name))
    income = Task(name="income", column="income_50k", positive="50000+.")
    college = Task(name="college", column="education", positive=COLLEGE)
    never_married = Task(name="never_married", column="marital_stat", positive="Never married")
    return Schema(features=tuple(features), tasks=(income if group == 1 else college, never_married))


def read_census(path: Path) -> pa.Table:
    """One file of it as a table with the columns of ``TABLE`` and every value as the file has it.

    ``path`` is UCI text (42 fields joined by ", ", no header), the same gzipped, or Parquet. ``DataError`` if not.
    """
    try:
        if path.suffix == ".parquet":
            return _typed(pq.read_table(path), str(path))
        content = path.read_bytes()
        return _parse(gzip.decompress(content) if path.suffix == ".gz" else content, str(path))
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        raise DataError(f"cannot read {str(path)!r} as Census-Income: {_one_line(error)}") from None


def render_census(table: pa.Table) -> bytes:
    """The table as UCI text: the inverse of ``read_census``."""
    columns = []
    for name in COLUMNS:
        column = table[name]
        if pa.types.is_floating(column.type):  # 1700.0 is "1700" in the files
            columns.append(pa.array([f"{value:.15g}" for value in column.to_pylist()], pa.string()))
        else:
            columns.append(column.cast(pa.string()).combine_chunks())
    lines = pc.binary_join_element_wise(*columns, ", ").to_pylist()
    return "".join(f"{line}\n" for line in lines).encode()


def open_census(source: Path) -> tuple[pa.Table, pa.Table]:
    """The training and the test table, every value as the files have it, wherever those lie.

    ``source`` is a folder with the two files (text, gzipped text or Parquet), one of the two, or an archive of them.
    They are not compared with the published ones. ``DataError`` where they are not found or cannot be read.
    """
    if _is_archive(source.name) and source.is_file():
        try:
            texts = _members(source.name, source.read_bytes())
        except (OSError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
            raise DataError(f"cannot read archive {str(source)!r}: {_one_line(error)}") from None
        if texts.keys() != {_TRAIN.text, _TEST.text}:
            raise DataError(
                f"archive {str(source)!r} should hold {_TRAIN.text} and {_TEST.text}, "
                f"found {', '.join(sorted(texts)) or 'neither'}"
            )
        train, test = (_parse(texts[file.text], f"{source}: {file.text}") for file in (_TRAIN, _TEST))
        return train, test
    folder = _folder(source)
    for pair in (
        (_TRAIN.text, _TEST.text),
        (f"{_TRAIN.text}.gz", f"{_TEST.text}.gz"),
        (_TRAIN.table, _TEST.table),
    ):
        paths = [folder / name for name in pair]
        if all(path.is_file() for path in paths):
            train, test = map(read_census, paths)
            return train, test
    archives = sorted(path for path in folder.glob("*") if _is_archive(path.name)) if source.is_dir() else []
    if archives:
        return open_census(archives[0])
    raise DataError(
        f"{str(source)!r} holds no Census-Income: wanted {_TRAIN.text} and {_TEST.text} (or both with .gz), "
        f"{_TRAIN.table} and {_TEST.table}, or the archive with them"
    )


def write_census(source: Path, out: Path, seed: int = 0, progress: Progress | None = None) -> None:
    """Write train.parquet (199,523 rows), valid.parquet and test.parquet (49,881 each) to ``out``, "?" as null.

    ``source`` is what ``open_census`` takes. Train is train; of the test file the rows at the first half of
    ``default_rng(seed).permutation(99_762)`` are valid and the others test, both in the order of the file. Rows and
    values are compared with the published ones: ``DataError`` where they differ.
    """
    report = progress or silent
    steps = 5
    if out.resolve() == _folder(source).resolve():
        raise DataError(f"writing to {str(out)!r} would overwrite the data it is made from; choose another folder")
    report("reading Census-Income", 0, steps)
    train, test = open_census(source)
    for step, (table, file) in enumerate(((train, _TRAIN), (test, _TEST)), start=1):
        report("checking Census-Income", step, steps)
        _check(table, file, source)

    order = np.random.default_rng(seed).permutation(test.num_rows)
    half = test.num_rows // 2
    splits = {"train": train, "valid": test.take(np.sort(order[:half])), "test": test.take(np.sort(order[half:]))}
    with ExitStack() as placed_together:
        for step, (name, table) in enumerate(splits.items(), start=3):
            path = placed_together.enter_context(writing(out / f"{name}.parquet"))
            pq.write_table(_with_nulls(table), path, compression="zstd", row_group_size=65_536)
            report("writing Census-Income", step, steps)


def is_written(out: Path) -> bool:
    """Whether ``write_census`` has written all of its tables to this folder."""
    rows = {"train": _TRAIN.rows, "valid": _TEST.rows // 2, "test": _TEST.rows - _TEST.rows // 2}
    try:
        return all(pq.read_metadata(out / f"{name}.parquet").num_rows == count for name, count in rows.items())
    except (OSError, pa.ArrowException):
        return False


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _is_archive(name: str) -> bool:
    return name.endswith((".zip", ".tar.gz", ".tgz", ".tar"))


def _members(name: str, content: bytes) -> dict[str, bytes]:
    """The two texts in an archive, or in an archive inside it, by file name."""
    files: list[tuple[str, bytes]] = []
    if name.endswith(".zip"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = [(Path(one).name, archive.read(one)) for one in archive.namelist() if _wanted(one)]
    else:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.isfile() and _wanted(member.name) else None
                if stream is not None:
                    files.append((Path(member.name).name, stream.read()))
    texts: dict[str, bytes] = {}
    for inner, data in files:
        if _is_archive(inner):
            texts |= _members(inner, data)
        else:
            texts[inner.removesuffix(".gz")] = gzip.decompress(data) if inner.endswith(".gz") else data
    return texts


def _wanted(member: str) -> bool:
    name = Path(member).name
    return not name.startswith(".") and (_is_archive(name) or name.removesuffix(".gz") in (_TRAIN.text, _TEST.text))


def _parse(text: bytes, name: str) -> pa.Table:
    """UCI text as a table: a blank follows every comma, and other blanks belong to the values."""
    try:
        table = pyarrow.csv.read_csv(
            pa.py_buffer(text),
            read_options=pyarrow.csv.ReadOptions(column_names=COLUMNS),
            parse_options=pyarrow.csv.ParseOptions(quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=TABLE, null_values=[], strings_can_be_null=False, check_utf8=True
            ),
        )
    except pa.ArrowException as error:
        raise DataError(
            f"{name!r} is not Census-Income text of {len(COLUMNS)} fields a line: {_one_line(error)}"
        ) from None
    return _typed(table, name, strip=" ")


def _typed(table: pa.Table, name: str, strip: str = "") -> pa.Table:
    """With the columns and types of ``TABLE``, one dictionary a column, ``strip`` removed once before each text."""
    missing = [column for column in COLUMNS if column not in table.column_names]
    if missing:
        raise DataError(f"{name!r} has no column {missing[0]!r}; Census-Income has {len(COLUMNS)} columns")
    columns = []
    for field in TABLE:
        column = table[field.name]
        if field.type == _WORD:
            column = column.cast(_WORD).unify_dictionaries().combine_chunks()
            column = column if isinstance(column, pa.DictionaryArray) else pa.array([], _WORD)
            words = [word.removeprefix(strip) for word in column.dictionary.to_pylist()]
            columns.append(pa.DictionaryArray.from_arrays(column.indices, pa.array(words, pa.string())))
        else:
            columns.append(column.cast(field.type))
    return pa.table(columns, schema=TABLE)


def _check(table: pa.Table, file: _File, source: Path) -> None:
    """That rows and values are the published ones."""
    if table.num_rows != file.rows:
        raise DataError(
            f"{file.text} (or {file.table}) from {str(source)!r} has {table.num_rows:,} rows where Census-Income has "
            f"{file.rows:,}; it is cut short or another file"
        )
    if hashlib.sha256(render_census(table)).hexdigest() != file.sha256:
        raise DataError(
            f"{file.text} (or {file.table}) from {str(source)!r} has values that differ from Census-Income as "
            "published (sha256 of its text); get the original"
        )


def _with_nulls(table: pa.Table) -> pa.Table:
    """The table with null in place of "?"."""
    columns = []
    for field in TABLE:
        column = table[field.name]
        if field.type == _WORD:
            words = column.cast(pa.string())
            column = pc.if_else(pc.equal(words, "?"), pa.scalar(None, pa.string()), words).dictionary_encode()
        columns.append(column)
    return pa.table(columns, schema=TABLE)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
