"""A bundle: weights, schema and fitted encoder in one folder, which predicts from raw rows. No pickle anywhere."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import narwhals as nw
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from multigate.assembly import build_model, check_names
from multigate.batch import Batch
from multigate.bundle_files import (
    ABOUT,
    FILES,
    FORMAT,
    GRAPH,
    ROW_GRAPH,
    WEIGHTS,
    check_files,
    check_replaceable,
    checksum,
    model_of,
    read_about,
)
from multigate.calibration import Calibration, Curve
from multigate.data.cells import placed
from multigate.data.encoder import Arrays, Encoder
from multigate.data.features import by_name
from multigate.data.files import open_table
from multigate.data.labels import Spelling
from multigate.engine import (
    BLOCK,
    CPU,
    SMALL,
    Answers,
    Engine,
    Engines,
    Onnx,
    Torch,
    arrays,
    disagreement,
    faster,
    faster_on_one,
    made_up,
    together,
)
from multigate.errors import BundleError, DataError, MultigateError, nearest, shortage
from multigate.experiment import Experiment, make_experiment, unknown_structure, with_balance, with_structures
from multigate.first_layers import FirstLayers, worth_reading
from multigate.folders import at_home
from multigate.graph import export_graph
from multigate.model import Model
from multigate.naming import Predictions, name_outputs
from multigate.nn.blank import Blank
from multigate.nn.defaults import defaults
from multigate.outputs import DeclaredOutputs, Rows
from multigate.precision import PRECISIONS, Precision, choose_precision
from multigate.schema import Output
from multigate.sealed import sealed
from multigate.sharing import Structure, Structures, known_as
from multigate.writing import held_apart, writing

ROWS = 8192
"""Rows that go through the model together."""

EngineName = Literal["torch", "onnx", "auto"]
ENGINES = ("torch", "onnx", "auto")


class Bundle:
    """A trained model with all it needs to read raw rows.

    ``curves`` calibrate the towers' logits, by task (of p(task | parent) for a task with a ``given`` parent).
    ``engines`` compute the outputs, one those of a single row and one those of tables; of a new bundle both are torch,
    which takes ``precision`` in the matmuls of tables.
    It may be copied and sent to another process: a pickle of it holds the bytes of its files, and computes with torch.
    """

    def __init__(
        self,
        experiment: Experiment,
        encoder: Encoder,
        model: Model,
        curves: Mapping[str, Curve] | None = None,
        precision: str = "float32",
    ) -> None:
        self.experiment = experiment
        self.schema = experiment.schema
        self.encoder = encoder
        self.curves = dict(curves or {})
        self.model = model.eval()
        with CPU:  # where the model is, and not where the caller wants new tensors
            self.model.calibration = Calibration(encoder.layout.tasks, self.curves).float() if self.curves else None
        self.engines = Engines(Torch(self.model), Torch(self.model, precision))
        self.precision = precision
        self.loaded_as: str | None = None
        """Checksum of all that made it what it is in the folder it was loaded from."""
        self._declared = DeclaredOutputs(self.schema)

    def __repr__(self) -> str:
        features, tasks = len(self.schema.features), ", ".join(self.schema.task_names)
        return f"<Bundle: {known_as(self.experiment.sharing)} of {features} features; tasks {tasks}>"

    def __reduce__(self) -> tuple[Callable[..., "Bundle"], tuple[type[Structure], dict[str, bytes], str]]:
        with TemporaryDirectory() as temporary:
            folder = Path(temporary, "bundle")
            self.save(folder)
            paths = (path for path in folder.rglob("*") if path.is_file())
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        return _unpickled, (type(self.experiment.sharing), files, self.precision)

    def predict(self, rows: Any, *, gates: bool = False) -> Predictions | dict[str, Any]:
        """Probabilities and values by name, in the order of the rows.

        ``rows``: one row as a dict of values (or a pandas Series), a list of such dicts, a dict of lists, a pandas,
        polars or pyarrow table, or a path. A binary task gives p(task); one with a ``given`` parent also
        ``task|parent``; regression gives the value in the label's own unit; multiclass gives the most likely class and
        ``task=class`` for each probability. Then come the ``outputs`` that the schema declares. ``gates=True`` adds
        ``gate/<reader>`` with a weight per expert, of several levels ``gate/<level>/<reader>`` counted from 1. Each is
        an array (R,), gates (R, E); for one row plain values.

        Raises ``DataError`` for a feature column that is missing or of the wrong kind, and for a table without rows; of
        an empty list the arrays are empty. Values unseen in training and nulls are read by the same rule as in
        training.
        """
        if type(rows) is not dict and nw.dependencies.is_pandas_series(rows):  # asking takes a twentieth of an answer
            rows = rows.to_dict()
        if isinstance(rows, Mapping):
            if not all(_is_column(value) for value in rows.values()):
                return self.predict_row(rows, gates=gates)
            # of a tensor Arrow would read every value as a tensor of its own
            rows = {name: _plain(one) if isinstance(one, Tensor) else one for name, one in rows.items()}
        if _are_rows(rows):
            return self.predict_rows(rows, gates=gates)
        answers = self.engines.table.over(self.batches(rows))
        return _joined([self._named(one, record, gates=gates) for one, record in answers])

    def predict_row(self, row: Mapping[str, Any], *, gates: bool = False) -> dict[str, Any]:
        """``predict`` of one row, also where every cell of it is a list: plain values, a list of weights per gate."""
        named = self._named(self.engines.row(self.encoder.arrays(row)), [row], gates=gates)
        return {name: value.tolist()[0] for name, value in named.items()}

    def predict_rows(self, rows: Sequence[Mapping[str, Any]], *, gates: bool = False) -> Predictions:
        """``predict`` of rows that others sent: whatever stands in the list, nothing is read as a path.

        Raises ``DataError`` for the first row that is no dict, and for what is no list.
        """
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise DataError(
                f"a list of rows is wanted, found {type(rows).__name__}; give [row, ...], one row to predict_row, or a "
                "table to predict"
            )
        return _joined([self._named(self.engines.table(read), some, gates=gates) for read, some in self._read(rows)])

    def predict_batches(self, rows: Any) -> Iterator[tuple[Predictions, pa.RecordBatch]]:
        """Predictions and the rows' key columns, a few thousand rows at a time: for tables of any length.

        Raises as ``predict`` does, when the rows that are at fault are reached.
        """
        for answers, record in self.engines.table.over(self.batches(rows, carried=self.schema.keys)):
            yield self._named(answers, record), record.select(list(self.schema.keys))

    def batches(
        self, rows: Any, *, labels: bool = False, carried: Sequence[str] = ()
    ) -> Iterator[tuple[Batch, pa.RecordBatch]]:
        """Encoded and raw rows of a table, in order."""
        columns = [*self.schema.columns(labels=labels, carried=False), *carried]
        if labels and self.schema.group:
            columns.append(self.schema.group)
        source = open_table(rows, types=self.schema.later_types(), trained=self.schema.types)
        spelling = Spelling(self.schema, self.encoder.stats) if labels else None
        first_row = 0
        for record in source.batches(list(dict.fromkeys(columns)), rows=ROWS):
            with placed(source.name, range(first_row, first_row + record.num_rows)):
                batch = self.encoder.columns(record, labels=labels)
                if spelling is not None:
                    spelling.add(by_name(record))
            yield batch, record
            first_row += record.num_rows
        if spelling is not None:
            with placed(source.name, ()):
                spelling.check()

    def _read(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Arrays, Rows]]:
        """Rows given as dicts, each read by itself, some hundred at a time; of an empty list one batch of no rows."""
        if not rows:
            yield arrays(made_up(self.encoder.layout, 0)), rows
        for start in range(0, len(rows), BLOCK):
            some = rows[start : start + BLOCK]
            yield together([self._one(row, at) for at, row in enumerate(some, start + 1)]), some

    def _one(self, row: Mapping[str, Any], number: int) -> Arrays:
        if not isinstance(row, Mapping):
            raise DataError(
                f"row {number:,}: wanted a dict of values, found {type(row).__name__}; give every row as one"
            )
        try:
            return self.encoder.arrays(row)
        except DataError as error:
            raise DataError(f"row {number:,}: {error}") from None

    def _named(self, answers: Answers, rows: pa.RecordBatch | Rows, *, gates: bool = False) -> Predictions:
        named = name_outputs(self.schema, self.encoder, answers)
        self._declared.add(named, rows)
        if gates:
            # structures that only weigh by 1 have levels but no gates
            wiring = self.model.sharing.wiring
            for at, (level, gate) in enumerate(zip(wiring, answers.gates, strict=bool(answers.gates)), 1):
                place = f"gate/{at}" if len(wiring) > 1 else "gate"
                for i, reader in enumerate(level.readers):
                    named[f"{place}/{reader}"] = gate[:, i]
        return named

    def with_outputs(self, *outputs: Output) -> "Bundle":
        """The same model with other declared outputs, in place of its own.

        Raises ``SettingError`` where one cannot be computed.
        """
        experiment = self.experiment.with_(schema=self.schema.with_(outputs=outputs))
        check_names(experiment.schema, self.encoder)
        bundle = Bundle(experiment, self.encoder, self.model, self.curves, self.precision)
        bundle.engines = self.engines
        return bundle

    def save(self, folder: str | Path) -> None:
        """Write the bundle; an existing one at the same place is replaced only once the new one is whole.

        Raises ``BundleError`` where the folder holds anything else, ``RunError`` where the disk refuses.
        """
        self._write(at_home(folder), compiled=False)

    def export(self, folder: str | Path) -> None:
        """Write the bundle with its model as an ONNX graph beside it, for the engine ``onnx``; takes seconds.

        ``model.onnx`` reads its weights from ``model.safetensors`` and can be run by ONNX Runtime alone; ``row.onnx``
        is a second one, for single rows, where they are answered faster by it (measured). Raises as
        ``save`` does, and ``BundleError`` where a package is missing, the model cannot be written as a graph, or the
        graph answers differently.
        """
        self._write(at_home(folder), compiled=True)

    def _write(self, folder: Path, *, compiled: bool) -> None:
        check_replaceable(folder)
        weights = held_apart(self.model.state_dict())
        with writing(folder) as temporary:
            temporary.mkdir()
            save_file(weights, temporary / WEIGHTS)
            self.encoder.save(temporary / "encoder")
            about: dict[str, Any] = {
                "format": FORMAT,
                "multigate": version("multigate"),
                "experiment": self.experiment.to_dict(full=True),
                "calibration": {name: curve.to_dict(full=True) for name, curve in self.curves.items()},
                "files": {name: checksum(temporary / name) for name in FILES},
            }
            if compiled:
                about["graph_of"] = model_of(about)
                with defaults(CPU):  # a graph traced within autocast would have bfloat16 in it
                    graphs = self._write_graphs(temporary, folder)
                about["files"] |= {name: checksum(temporary / name) for name in graphs}
            text = json.dumps(sealed(about), indent=1, ensure_ascii=False)
            (temporary / ABOUT).write_text(text, encoding="utf-8")

    def _write_graphs(self, folder: Path, told: Path) -> list[str]:
        """Write the graph beside the weights, and one for single rows where that is faster; what they are named.

        Which is faster is measured here and not where it is loaded: every process then answers with the same digits.
        """
        layout, weights = self.encoder.layout, folder / WEIGHTS
        sample = made_up(layout, SMALL)
        (folder / GRAPH).write_bytes(export_graph(self.model, layout, sample, weights))
        onnx = Onnx(folder / GRAPH)
        _check_agreement(onnx, self, told)
        with suppress(BundleError):  # the first graph computes single rows too
            if worth_reading(self.model, sample):
                graph = export_graph(self.model, layout, sample, weights, mode=FirstLayers(self.model))
                (folder / ROW_GRAPH).write_bytes(graph)
                of_one = Onnx(folder / ROW_GRAPH)
                _check_agreement(of_one, self, told)
                if faster_on_one([onnx, of_one], layout) is of_one:
                    return [GRAPH, ROW_GRAPH]
        (folder / ROW_GRAPH).unlink(missing_ok=True)
        return [GRAPH]


def load(
    path: str | PathLike[str],
    *,
    structures: Structures = (),
    engine: EngineName = "torch",
    precision: Precision = "float32",
) -> Bundle:
    """The bundle in a folder, or of a run folder. ``structures`` names structures of your own that it may use.

    ``engine`` computes predictions: torch; onnx, the graph that ``Bundle.export`` wrote; or auto, for single rows and
    for tables whichever of them is faster here, torch where there is no graph or no ONNX Runtime.

    ``precision`` is that of torch's matmuls where tables are predicted or scored: bfloat16 answers faster on processors
    that multiply it natively, and otherwise in the third digit (where gates read few experts, at times others); auto is
    bfloat16 on those alone. A row given as a dict is always computed in float32, and so is the graph.

    Where another bundle is put in its place meanwhile, that one is read. Raises ``BundleError`` where a file is missing
    or altered, or was written by a newer version, and where the engine asked for cannot be had.
    """
    if engine not in ENGINES:
        raise BundleError(f"there is no engine {engine!r}; {nearest(engine, ENGINES)}")
    if precision not in PRECISIONS:
        raise BundleError(f"there is no precision {precision!r}; {nearest(precision, PRECISIONS)}")
    multiplied_in = choose_precision(precision, CPU)
    if engine == "onnx" and precision == "bfloat16":
        raise BundleError("engine 'onnx' computes in float32 alone; take engine 'auto' or 'torch' for bfloat16")
    if not isinstance(path, str | PathLike):
        raise BundleError(f"the folder of a run or a bundle is wanted, found {type(path).__name__}; name it")
    folder = at_home(path)
    if (folder / "bundle" / ABOUT).is_file():
        folder = folder / "bundle"
    while True:
        before = _identity(folder)
        try:
            bundle = _load(folder, read_about(folder), structures, engine, multiplied_in)
        except BundleError:
            if _identity(folder) == before:
                raise
        else:
            if _identity(folder) == before:
                return bundle
        # another was put in its place meanwhile: what was read may be partly of the one, partly of the other


def _identity(folder: Path) -> tuple[int, int] | None:
    """Which file ``bundle.json`` is now; None where there is none."""
    try:
        found = (folder / ABOUT).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _load(folder: Path, about: dict[str, Any], structures: Structures, engine: EngineName, precision: str) -> Bundle:
    """The bundle in a folder, as long as that stays as it is."""
    try:
        check_files(folder, about["files"])
        bundle = _restored(folder, about, structures, precision)
        bundle.loaded_as = model_of(about)
        bundle.engines = _engines(engine, bundle, folder, about)
        return bundle
    except BundleError:
        raise
    except MultigateError as error:
        raise BundleError(str(error)) from error
    except OSError as error:
        raise BundleError(f"bundle {folder} cannot be read ({error.strerror}: {error.filename}); mend that") from error
    except Exception as error:  # whole files, but written by hand or by something else: anything may be wrong in them
        if shortage(error) is not None:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise BundleError(f"bundle {folder} does not fit together ({reason}); save or copy it again") from error


def _unpickled(structure: type[Structure], files: dict[str, bytes], precision: Precision = "float32") -> Bundle:
    with TemporaryDirectory() as temporary:
        for name, content in files.items():
            path = Path(temporary, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return load(temporary, structures=[structure], precision=precision)


def _restored(folder: Path, about: dict[str, Any], structures: Structures, precision: str) -> Bundle:
    data = with_structures(with_balance(about["experiment"]), structures)
    unknown = unknown_structure(f"bundle {folder}", data)
    if unknown is not None:
        raise BundleError(unknown)
    experiment = make_experiment(data, name=f"bundle {folder}")
    encoder = Encoder.load(folder / "encoder", experiment.schema)
    wanted = dict.fromkeys(experiment.schema.columns(labels=False, carried=False), pa.nulls(1))
    encoder.columns(pa.RecordBatch.from_pydict(wanted), labels=False)  # or it fits no row at all
    with defaults(CPU), Blank():
        model = build_model(experiment, encoder)
    try:
        weights = load_file(folder / WEIGHTS)
        model.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        if shortage(error) is not None:
            raise
        raise BundleError(f"bundle {folder}: its weights do not fit its experiment; save or copy it again") from error
    for name, tensor in weights.items():
        # the sum is read at the speed of memory, and is finite wherever all are but for the largest of numbers
        if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
            raise BundleError(f"bundle {folder}: its weights {name!r} are not all finite numbers; train again")
    curves = {name: Curve.model_validate(one) for name, one in about.get("calibration", {}).items()}
    return Bundle(experiment, encoder, model, curves, precision)


def _engines(engine: str, bundle: Bundle, folder: Path, about: dict[str, Any]) -> Engines:
    """What computes one row, and what computes tables."""
    by_torch = bundle.engines
    if engine == "torch":
        return by_torch
    try:
        if GRAPH not in about["files"]:
            raise BundleError(f"bundle {folder} has no graph for engine 'onnx'; write one with Bundle.export")
        if about.get("graph_of") != model_of(about):
            raise BundleError(f"bundle {folder}: {GRAPH} was written for another model; export it again")
        onnx = Onnx(folder / GRAPH, bundle.model)
        _check_agreement(onnx, bundle, folder)
        if ROW_GRAPH in about["files"]:
            with suppress(BundleError):  # the first graph computes single rows too
                of_one = Onnx(folder / ROW_GRAPH, bundle.model)
                _check_agreement(of_one, bundle, folder)
                onnx.of_one = of_one
        by_graph = Engines(onnx, onnx)
        return by_graph if engine == "onnx" else faster([by_torch, by_graph], bundle.encoder.layout)
    except BundleError:
        if engine == "onnx":
            raise
        return by_torch


def _check_agreement(engine: Engine, bundle: Bundle, folder: Path) -> None:
    apart = disagreement(Torch(bundle.model), engine, bundle.encoder.layout)
    if apart is not None:
        raise BundleError(
            f"bundle {folder}: the outputs of engine {engine.name!r} are up to {apart:.1e} away from those of torch; "
            "predict with engine 'torch'"
        )


def _joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of rows one after the other; nothing where there are no parts."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _are_rows(rows: Any) -> bool:
    """Whether a list holds rows, not paths; an empty one holds none."""
    return isinstance(rows, list | tuple) and (not rows or any(isinstance(row, Mapping) for row in rows))


def _is_column(value: Any) -> bool:
    """Whether a value in a dict may be a column; a bag's cell may look like one, so one plain cell makes a row."""
    if isinstance(value, str | int | float):  # asking for the rest takes ten times as long
        return False
    return (
        isinstance(value, list | tuple | range | np.ndarray | pa.Array | pa.ChunkedArray)
        or hasattr(value, "__arrow_c_stream__")
        or (isinstance(value, Tensor) and value.dim() > 0)
        or (hasattr(value, "__array__") and getattr(value, "ndim", None) == 1)
    )


def _plain(tensor: Tensor) -> NDArray[Any]:
    """A tensor as an array, of which numpy has no half-width floats but its own."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy(force=True)
